"""The clocks of a deployment's server; tests use a clock that only counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """How time passes.

    Args:
        seconds: time since any fixed moment; deadlines are kept by it, so that setting the machine's clock moves none.
        sleep: waits for so many seconds.
        now: date and time in UTC, for the record only.
    """

    seconds: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = _utc
