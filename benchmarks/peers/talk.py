"""How the benchmark talks with a side: commands come on one pipe, answers go on another, a line of JSON each.

A side prints what it likes. It trains one round when it is told to, and waits before the next, in the place where its
framework calls the user back after a round.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from torch import Tensor

Params = Callable[[], Mapping[str, "Tensor"]]


class Talk:
    """The side's end.

    Args:
        ask: where commands come from.
        answer: where answers go.
    """

    def __init__(self, ask: TextIO, answer: TextIO) -> None:
        self._ask = ask
        self._answer = answer
        self._said_ready = False

    def wait(self, params: Params | None = None) -> bool:
        """Says that all is done so far; returns whether another round is wanted.

        Args:
            params: gives the server's params by fedelta's names; None before the first round.
        """
        self._say({"ready": not self._said_ready})
        self._said_ready = True
        for line in self._ask:
            command, *rest = line.split(maxsplit=1)
            if command == "round":
                return True
            if command == "end":
                return False
            assert command == "params"
            assert params is not None
            _write(params(), Path(rest[0].strip()))
            self._say({"written": True})
        return False

    def _say(self, record: Mapping[str, object]) -> None:
        print(json.dumps(record), file=self._answer, flush=True)


def _write(params: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous().clone() for name, tensor in params.items()}, path)


def options() -> tuple[Path, int, int, Talk]:
    """The folder of the work, worker processes, arithmetic threads of each, and the pipes of a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pipes", type=int, nargs=2, required=True)
    given = parser.parse_args()
    ask, answer = given.pipes
    return given.folder, given.workers, given.threads, Talk(os.fdopen(ask), os.fdopen(answer, "w"))
