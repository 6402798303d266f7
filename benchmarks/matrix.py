"""The results of `families.py` as a page in Markdown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import small

MARKS = {"works": "✓", "refused": "-", "fault": "✗"}
_HEAD = """# Model families and tuning methods

What every tuning method does with every family of transformers {transformers} that has a classifier of texts or images:
each family small, with random weights, saved as a checkpoint and opened as any other. Written by

    .venv/bin/python -m benchmarks.families --out docs/families.md

with torch {torch} and peft {peft}.

- ✓: three clients in two lanes end where each ends alone, the fresh model answers as the base does (unless the method
  adds tokens or answers), what is merged answers as what is not, exits answer alike block by block and at once, and an
  evaluation is finite. A letter behind it: something is to be said.
- a number: refused before anything is trained, for the reason below.
- ✗: a fault.

LoRA without `target_modules` takes the query and value projections of every attention, by the table of a family or by
the structure of the model, and every convolution where there is no attention; the log says which. For the families in
PEFT's own table these are the layers of that table, but for `phi`, where PEFT takes the MLP too.
"""
# A note of a method that works, by a word in it, to what stands on the page.
_REMARKS = {
    "one lane": "the model mixes what lanes keep apart, so that it runs with one lane, as the log says",
    "no answer depends on": "some tuned tensors are in parts that no answer depends on, as the log says",
}
_EXPLICIT = re.compile(r"`[^`]*\.[^`]*`")


def line(keep: Path, family: str) -> str:
    """One family's results in a line of text, faults below."""
    facts = _read(keep / f"{family}.json")
    for key in ("error", "unbuilt", "refused", "fault"):
        if key in facts:
            return f"{family}: {key}: {facts[key]}"
    cells = facts["cells"]
    marks = " ".join(f"{name}{MARKS[cell['kind']]}" for name, cell in cells.items())
    faults = "".join(f"\n    {name}: {cell['note']}" for name, cell in cells.items() if cell["kind"] == "fault")
    return f"{family}: {marks}{faults}"


def page(keep: Path) -> str:
    """The matrix of all results in `keep`, with counts above and reasons below."""
    by_name = {file.stem: _read(file) for file in sorted(keep.glob("*.json"))}
    built = {family: facts["cells"] for family, facts in by_name.items() if "cells" in facts}
    methods = list(next(iter(built.values())))
    numbers = _Numbers()
    rows = [
        [family, *(_mark(cells[name], numbers) if name in cells else "" for name in methods)]
        for family, cells in built.items()
    ]
    counts = {name: Counter(cells[name]["kind"] for cells in built.values() if name in cells) for name in methods}
    return "\n".join(
        [
            _HEAD.format(**_versions()),
            f"## Counts, of {len(built)} families that could be opened\n",
            *_table(
                ["method", "works", "refused", "fault"],
                ([name, *(str(counts[name][kind]) for kind in MARKS)] for name in methods),
            ),
            "\n## Families\n",
            *_table(["family", *methods], rows),
            "\n## Why not\n",
            *(f"{number}. {reason}" for reason, number in numbers.reasons.items()),
            "\n## What is to be said\n",
            *(f"- {letter}: {remark}" for remark, letter in zip(_REMARKS.values(), "ab", strict=True)),
            "\n## Families that were not tried\n",
            *_table(["family", "reason"], _others(by_name)),
            "",
        ]
    )


class _Numbers:
    """Reasons in the order in which they come, and their numbers."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def of(self, reason: str) -> int:
        return self.reasons.setdefault(reason, len(self.reasons) + 1)


def _mark(cell: Mapping[str, Any], numbers: _Numbers) -> str:
    if cell["kind"] == "refused":
        return str(numbers.of(_in_general(cell["note"])))
    if cell["kind"] == "fault":
        return "✗"
    letters = [letter for letter, word in zip("ab", _REMARKS, strict=True) if word in cell["note"]]
    return "✓" + f" {','.join(letters)}" * bool(letters)


def _in_general(reason: str) -> str:
    """A reason without what differs between families alone: class names and paths."""
    reason = re.sub(r"\b\w+For(Sequence|Image)Classification\b", "the model", reason)
    reason = re.sub(r" \((`[^`]*`|'[^']*')(, '[^']*')*( and \d+ more)?\)", "", reason)
    reason = re.sub(r"`[^`]*\.bias`", "a bias", reason)
    reason = re.sub(r"(a|an) \w+ is none of", "its layer is none of", reason)
    return _EXPLICIT.sub(lambda found: found[0] if found[0].startswith("`tuning.") else "a layer", reason)


def _others(found: Mapping[str, Mapping[str, Any]]) -> Iterable[list[str]]:
    reasons = dict(small.ELSEWHERE)
    for family, facts in found.items():
        for key in ("error", "unbuilt", "refused", "fault"):
            if key in facts:
                reasons[family] = ("" if key == "refused" else f"{key}: ") + facts[key].partition("\n")[0]
    return ([family, reasons[family].replace("|", "/")] for family in sorted(reasons))


def _table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(item)} |" for item in (header, ["---"] * len(header), *rows)]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft")}


def _read(file: Path) -> Mapping[str, Any]:  # Any: JSON
    return dict(json.loads(file.read_text()))
