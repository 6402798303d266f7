"""`make deploy-demo`: a server and two sites on this machine, with TLS and keys, run one recipe, and are ended.

Every step is what a person would type (docs/deployment.md), and is shown before it is done.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedelta.deployment.children import die_with_parent
from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.submit import is_served
from fedelta.errors import FedeltaError
from fedelta.record.rundir import free_name

# Name of each site, and which of the recipe's 64 clients it has.
SITES = {"north": "0-31", "south": "32-63"}
_START_SECONDS, _END_SECONDS = 60.0, 20.0


def demonstrate(recipe: Path, folder: Path) -> int:
    """Runs `recipe` over two sites, and returns the exit code of `fedelta deploy`.

    Args:
        recipe: of a run whose data come with fedelta.
        folder: to be made, for everything.
    """
    hub = folder / "hub"
    address = f"127.0.0.1:{_free_port()}"
    host, port = address.split(":")
    _run("server", "init", hub, "--host", host, "--port", port)
    for name, clients in SITES.items():
        options = ("--name", name, "--server", address, "--ca", hub / "tls" / "ca.crt")
        _run("site", "init", folder / name, *options, "--data", "digits", "--clients", clients)
        with (folder / name / "site.toml").open("a", encoding="utf-8") as settings:
            settings.write(f"[runtime]\nthreads = {max(1, (os.cpu_count() or 1) // len(SITES))}\n")
        shutil.copy(folder / name / f"{name}.pub", hub / "sites")
        _say(f"cp {folder / name / name}.pub {hub / 'sites'}")
    with ExitStack() as programs:
        programs.enter_context(_running(folder / "server.log", "server", "run", hub))
        _wait_for_server(hub)
        for name in SITES:
            programs.enter_context(_running(folder / f"{name}.log", "site", "run", folder / name))
        command = ("deploy", recipe, "--server", hub, "--out", folder / "run")
        _say(shlex.join(["fedelta", *map(str, command)]))
        code = subprocess.run(_command(command), check=False, preexec_fn=die_with_parent).returncode  # noqa: S603
    _say(f"everything is ended; what is left is in {folder}")
    return code


@contextmanager
def _running(log: Path, *arguments: str | Path) -> Iterator[None]:
    """Keeps a command running in this context; it gets Ctrl-C only from here, so that it ends in order."""
    _say(f"{shlex.join(['fedelta', *map(str, arguments)])} > {log} &")
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 ours
            _command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 it is one system call
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _run(*arguments: str | Path) -> None:
    """Runs a command.

    Raises:
        FedeltaError: it failed.
    """
    _say(shlex.join(["fedelta", *map(str, arguments)]))
    if subprocess.run(_command(arguments), check=False).returncode:  # noqa: S603 ours
        raise FedeltaError(f"`fedelta {shlex.join(map(str, arguments))}` failed.")


def _wait_for_server(hub: Path) -> None:
    """Returns when the server takes deployments.

    Raises:
        FedeltaError: it did not start.
    """
    end = time.monotonic() + _START_SECONDS
    while not is_served(Hub(hub)):
        if time.monotonic() > end:
            raise FedeltaError(f"the server did not start within {_START_SECONDS:g} s; its log says why.")
        time.sleep(0.2)


def _command(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-c", "from fedelta.cli import main; main()", *map(str, arguments)]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def _say(line: str) -> None:
    sys.stderr.write(f"$ {line}\n")


def main() -> None:
    """Entry point; exit code 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, help="a folder to make; default runs/deploy-demo, or the next free name")
    arguments = parser.parse_args()
    folder = arguments.out or free_name(Path("runs"), "deploy-demo")
    with contextlib.suppress(KeyboardInterrupt):
        try:
            folder.mkdir(parents=True)
            sys.exit(demonstrate(arguments.recipe, folder))
        except (FedeltaError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(1)
    sys.exit(130)


if __name__ == "__main__":
    main()
