"""Values of an answer's manifest, checked: a site may send anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedelta.errors import PayloadError
from fedelta.tasks.base import Sums

_LONGEST_TEXT = 1000  # characters: a reason of a site is shown to people
_MOST_SUMS = 10_000
_LARGEST_SUM = 1e100  # ours are losses of float32, at most 4e38, times rows
_MOST = 2**53  # what any program that writes JSON can hold


def whole(value: object, name: str, *, least: int) -> int:
    """`value` as a whole number.

    Raises:
        PayloadError: it is none, or less than `least`.
    """
    if type(value) is not int or not least <= value <= _MOST:
        raise PayloadError(f"`{name}` is {value!r:.40}, expected a whole number of {least} or more.")
    return value


def text(manifest: Mapping[str, Any], name: str) -> str:
    """The text `name` of a manifest, cut to a length that can be shown.

    Raises:
        PayloadError: it is missing, or no text.
    """
    value = manifest.get(name)
    if not isinstance(value, str):
        raise PayloadError(f"`{name}` is {value!r:.40}, expected a text.")
    return value[:_LONGEST_TEXT]


def strings(manifest: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The list of different texts `name` of a manifest.

    Raises:
        PayloadError: it is no such list.
    """
    values = manifest.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise PayloadError(f"`{name}` is {values!r:.40}, expected a list of texts.")
    if len(set(values)) < len(values):
        raise PayloadError(f"`{name}` holds a text twice.")
    return tuple(values)


def sums_in(totals: object, name: str) -> Sums:
    """Sums and their weights by name, none of them so large that those of all sites could not be added.

    Raises:
        PayloadError: `totals` has another form.
    """
    if not isinstance(totals, dict) or len(totals) > _MOST_SUMS:
        raise PayloadError(f"`{name}` do not map names to a sum and its weight")
    for key, pair in totals.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_finite, pair)) or pair[1] < 0:
            raise PayloadError(f"`{name}` has {pair!r:.40} for {key!r:.40}, expected a sum and its weight")
    return Sums({key: (float(pair[0]), float(pair[1])) for key, pair in totals.items()})


def _is_finite(value: object) -> bool:
    """Whether it is a number so small that the sums of all sites are finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_SUM


def one_line(manifest: Mapping[str, Any], name: str, remark: str = "") -> str:
    """The text of this name in one line, with that of the name `remark` in brackets; empty if there are no texts.

    A character that is not printable becomes a question mark: a terminal would obey it, a file might not take it.
    """
    text, more = (_line(manifest.get(key)) for key in (name, remark))
    return f"{text} ({more})" if text and more else text or more


def _line(value: object) -> str:
    """A text without line breaks; the items of a list after semicolons."""
    text = value if isinstance(value, str) else ""
    line = " ".join(text.replace(":\n  - ", ": ").replace("\n  - ", "; ").split())
    return "".join(char if char.isprintable() else "?" for char in line)[:_LONGEST_TEXT]
