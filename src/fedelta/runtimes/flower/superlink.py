"""Flower's SuperLink, whose interface for operators asks for a secret.

A program: `python -m fedelta.runtimes.flower.superlink SECRET-FILE flower-superlink ARGUMENTS`.

Flower lets every caller that reaches its port start a run, and a run executes code as the server: any user of the
server's machine could do so. Here only sites (by their keys) and Flower's own tasks (by their tokens) are let in
without the secret.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flwr.superlink import main as superlink
from flwr.superlink.cli.flower_superlink import flower_superlink

from fedelta.runtimes.flower.guard import Guard


def main(secret_file: str, *command: str) -> None:
    """Runs `command`, a `flower-superlink` with its arguments, in this process."""
    secret, create_app = Path(secret_file).read_bytes().strip(), superlink.create_app

    def guarded(*arguments: Any, **options: Any) -> Any:  # Any: Flower's own, passed on as they are
        app = create_app(*arguments, **options)
        app.add_middleware(Guard, secret=secret)
        return app

    # The command looks it up here when it starts to serve.
    superlink.create_app = guarded
    sys.argv = list(command)
    flower_superlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
