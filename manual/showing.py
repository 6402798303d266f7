"""What differs between a page's source and what the site shows of it."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^(```\w+) .+$", flags=re.MULTILINE)
_ROW = re.compile(r"^\|.*\|$", flags=re.MULTILINE)
_HARD = "\u00a0"  # a space at which no line ends


def shown(markdown: str) -> str:
    """A page without the notes for tests behind the language of its code, whose tables keep numbers whole.

    >>> shown("```python no-run")
    '```python'
    >>> shown("| 98.7 % ± 1.0 |") == "| 98.7\u00a0%\u00a0±\u00a01.0 |"
    True
    """
    return _ROW.sub(lambda row: _whole(row[0]), _FENCE.sub(r"\1", markdown))


def _whole(row: str) -> str:
    return re.sub(r"(?<=\d) (?=%)", _HARD, row.replace(" ± ", f"{_HARD}±{_HARD}"))
