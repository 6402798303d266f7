"""The command lines of Flower's programs, and what is in their environment.

They get files with secrets, never secrets. They look up one another on PATH, so the folder of this Python's programs
comes first there; their configuration, telemetry and downloads are not the user's and not wanted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedelta.deployment.server.certificates import Certificates
from fedelta.errors import InputError

# Tried with these; a later one may bring another transport, as 1.41 did.
TESTED = ("1.41", "1.42")
# Key of a run's configuration, and variable of the environment, in which a ServerApp finds what it is to run.
DEPLOYMENT, HUB = "deployment", "FEDELTA_HUB"
_INSTALL = "pip install 'fedelta[flower]'"


def flower_version() -> str:
    """The version of Flower that is installed.

    Raises:
        InputError: none is, or one that was not tried.
    """
    try:
        installed = version("flwr")
    except PackageNotFoundError as error:
        raise InputError("a deployment needs Flower, which is not installed.", hint=_INSTALL) from error
    if ".".join(installed.split(".")[:2]) not in TESTED:
        raise InputError(f"Flower is {installed}, expected {' or '.join(TESTED)}.", hint=_INSTALL)
    return installed


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's programs.

    Args:
        home: where they keep what they install; only its owner may enter it.
    """
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONUNBUFFERED": "1",
    }


def superlink(address: str, certificates: Certificates, database: Path, secret: Path) -> list[str]:
    """The command of the SuperLink, which keeps everything in `database` and starts no ServerApp itself.

    Args:
        address: on loopback.
        certificates: of this server.
        database: its file.
        secret: file with what operators and the program that starts ServerApps have to know.
    """
    host, port = split(address)
    return [
        *(sys.executable, "-m", "fedelta.runtimes.flower.superlink", str(secret)),
        "flower-superlink",
        *("--host", host, "--port", str(port)),
        *("--ssl-ca-certfile", str(certificates.authority)),
        *("--ssl-certfile", str(certificates.server), "--ssl-keyfile", str(certificates.server_key)),
        "--enable-supernode-auth",
        *("--database", str(database)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
        "--disable-runtime-dependency-installation",
    ]


def superexec(address: str, certificates: Certificates, secret: Path) -> list[str]:
    """The command of the program that starts a ServerApp for each run. Refused, it ends with exit code 0."""
    return [
        program("flower-superexec"),
        *("--runtime-api-address", address),
        *("--root-certificates", str(certificates.authority)),
        *("--superexec-auth-secret-file", str(secret)),
    ]


def program(name: str) -> str:
    """The path of one of Flower's programs, beside this Python."""
    return str(Path(sys.executable).with_name(name))


def split(address: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def bundle(package: Mapping[str, str]) -> str:
    """The pyproject.toml that is all of the submitted app: its parts are in the installed package.

    Args:
        package: keys of the run's configuration, with their values at first.
    """
    keys = "".join(f'{key} = "{value}"\n' for key, value in package.items())
    return f"""[project]
name = "fedelta-deployment"
version = "1.0.0"
description = "Names the parts of the installed package."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedelta"

[tool.flwr.app.components]
serverapp = "fedelta.runtimes.flower.server_app:app"
clientapp = "fedelta.runtimes.flower.client_app:app"

[tool.flwr.app.config]
{keys}"""
