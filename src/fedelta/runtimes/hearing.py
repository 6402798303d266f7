"""Shows what worker processes log and warn of as this process would have shown it."""

from __future__ import annotations

import builtins
import logging
import warnings
from collections import Counter
from collections.abc import Sequence

from fedelta.runtimes.crossing import Values


class Hearing:
    """What workers have said so far.

    Several workers say what one process would have said once, such as that a file is old. So a text counts as often as
    the worker that said it most often has said it.
    """

    def __init__(self) -> None:
        self._said: dict[int, Counter[str]] = {}
        self._shown: Counter[str] = Counter()

    def pass_on(self, worker: int, heard: Sequence[Values]) -> None:
        """Shows what is new.

        Args:
            worker: number of the worker.
            heard: what it said since the last time.
        """
        said = self._said.setdefault(worker, Counter())
        for item in heard:
            key = repr(sorted(item.items()))
            said[key] += 1
            if said[key] > self._shown[key]:
                self._shown[key] += 1
                _show(item)


def _show(item: Values) -> None:
    if "logger" in item:
        logging.getLogger(item["logger"]).log(item["level"], "%s", item["text"])
        return
    category = vars(builtins).get(item["category"], UserWarning)
    warnings.warn_explicit(item["warning"], category, item["file"], item["line"])
