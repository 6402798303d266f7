"""Memory of a side: the proportional set sizes of all of its processes, so that what they share counts once."""

from __future__ import annotations

import threading
from pathlib import Path

HERTZ = 20
MIB = 2**20


def family(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """`pid` and all processes below it, also those that left for another session."""
    pids, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        pids.append(pid)
        for task in proc.glob(f"{pid}/task/*/children"):
            waiting += map(int, _text(task).split())
    return pids


def pss_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """The proportional set size of one process; 0 once it has ended."""
    for line in _text(proc / str(pid) / "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


class Watch:
    """Samples a family while it is open; `peak_bytes` is the highest sum.

    Args:
        pid: of the family's first process.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join(10)

    def _sample(self) -> None:
        while not self._is_over.wait(1 / HERTZ):
            self.peak_bytes = max(self.peak_bytes, sum(map(pss_bytes, family(self._pid))))
