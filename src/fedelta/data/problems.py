"""One error for everything that is wrong with a data set."""

from __future__ import annotations

from collections.abc import Sequence

from fedelta.errors import DataError

# A folder of a thousand damaged files must not fill the terminal.
_NUM_SHOWN = 10


def refuse(origin: str, problems: Sequence[str], *, hint: str | None = None) -> None:
    """Raise one `DataError` for all `problems` of `origin`, ten of them in words; nothing if none."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in problems[:_NUM_SHOWN])
        more = f"\n  - and {len(problems) - _NUM_SHOWN} more" if len(problems) > _NUM_SHOWN else ""
        raise DataError(f"{count} in {origin}:{lines}{more}", hint=hint)


def listed(items: Sequence[object], limit: int = 5) -> str:
    """The first `limit` items and how many more there are.

    >>> listed(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    shown = ", ".join(repr(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
