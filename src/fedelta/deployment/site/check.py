"""`python -m fedelta.deployment.site.check FOLDER`: reads a site's settings and data, for the process that serves it.

A process of its own, since reading data takes libraries and memory that serving a site does without. Prints one JSON
object a line: first the address, then lines for people, or an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedelta.errors import FedeltaError, InputError


@dataclass(frozen=True)
class Address:
    """What serving a site takes of its settings; the fields are those of site.toml."""

    name: str
    server: str
    ca: str
    key: str
    state: str
    max_message_mib: int


def check(folder: Path) -> Generator[Address | str]:
    """The address of the site in `folder`, when its settings are read, and then lines about its data.

    Raises:
        InputError: something in its settings or data cannot be used.
    """
    command = [sys.executable, "-m", "fedelta.deployment.site.check", str(folder)]
    with subprocess.Popen(  # noqa: S603 ours
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                yield _read(json.loads(line))
        finally:
            process.kill()
    if process.returncode not in {0, -9}:
        raise InputError(
            f"reading the site's data ended with exit code {process.returncode}.",
            hint=f"`fedelta site check {folder}` says more.",
        )


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    """What `check` reads, as JSON values."""
    from fedelta.deployment.site.data_check import check_site
    from fedelta.deployment.site.settings import load_site

    settings = load_site(folder)
    yield {
        "address": asdict(
            Address(
                settings.name,
                settings.server,
                settings.ca,
                settings.key,
                settings.state,
                settings.worker.max_message_mib,
            )
        )
    }
    for line in check_site(settings):
        yield {"line": line}


def _read(values: dict[str, Any]) -> Address | str:
    if "error" in values:
        raise InputError(values["error"], hint=values["hint"])
    return Address(**values["address"]) if "address" in values else str(values["line"])


def main() -> None:
    """Prints the lines."""
    try:
        for values in lines(Path(sys.argv[1])):
            sys.stdout.write(json.dumps(values) + "\n")
            sys.stdout.flush()
    except FedeltaError as error:
        sys.stdout.write(json.dumps({"error": error.message, "hint": error.hint}) + "\n")
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or 'while reading'}"
        sys.stdout.write(json.dumps({"error": reason, "hint": None}) + "\n")


if __name__ == "__main__":
    main()
