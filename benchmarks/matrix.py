"""The results of `families.py` as a page in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKS = {"works": "✓", "refused": "–", "fault": "✗"}


def line(keep: Path, family: str) -> str:
    """One family's results in a line of text."""
    facts = _read(keep / f"{family}.json")
    for key in ("error", "unbuilt", "refused", "fault"):
        if key in facts:
            return f"{family}: {key}: {facts[key]}"
    cells = facts["cells"]
    marks = " ".join(f"{name}{MARKS[cell['kind']]}" for name, cell in cells.items())
    faults = "".join(f"\n    {name}: {cell['note']}" for name, cell in cells.items() if cell["kind"] == "fault")
    return f"{family}: {marks}{faults}"


def page(keep: Path) -> str:
    """The matrix."""
    return "\n".join(sorted(line(keep, file.stem) for file in keep.glob("*.json")))


def _read(file: Path) -> Mapping[str, Any]:  # Any: JSON
    return dict(json.loads(file.read_text()))
