"""Writes the report: one self-contained HTML page about one or more runs.

The page contains its style and its figures (SVG), loads nothing, runs no script, and suits light and dark
screens, phones and paper. An unfinished run is reported up to its last round.

Each section is a value with the name of its template. Python decides what is shown, HTML how it looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from fedelta.durable import write_atomic
from fedelta.errors import InputError
from fedelta.record.history import History, read_histories
from fedelta.report import (
    exit_section,
    layer_section,
    measure_section,
    mistake_section,
    personal_section,
    plots,
    privacy_section,
    site_section,
)
from fedelta.report.clients import clients
from fedelta.report.details import details
from fedelta.report.drawing import Chart
from fedelta.report.headline import headline
from fedelta.report.misfits import misfits
from fedelta.report.participation import participation, rejections
from fedelta.report.rendering import render
from fedelta.report.results import results
from fedelta.report.side_by_side import side_by_side


class Section(Protocol):
    """A part of the page: a frozen value, which its template reads under the name `section`."""

    template: ClassVar[str]


def write_report(runs: str | Path | Sequence[str | Path], out: str | Path = "report.html") -> None:
    """Writes the report about one or more run directories to the file `out`, and creates missing parents.

    Raises:
        InputError: there are no runs.
        RunError: runs are missing or damaged; names all of them, and leaves `out` unchanged.
        OSError: `out` cannot be written.
    """
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not paths:
        raise InputError("a report needs at least one run, found none.", hint="give the directories of runs.")
    content, out = page(read_histories(paths)), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, content)


def page(runs: Sequence[History]) -> str:
    """The HTML page about `runs`."""
    title = f"{', '.join(run.name for run in runs)} · fedelta report"
    return render("report.html", {"title": title, "sections": list(_sections(runs))})


def measure_figure(runs: Sequence[Path]) -> Chart:
    """A figure of the primary measure by round and by traffic; `drawing.to_png` makes a picture of it.

    Raises:
        RunError: runs are missing or damaged.
    """
    return plots.measure_figure(read_histories(runs))


def _sections(runs: Sequence[History]) -> Iterator[Section]:
    """The sections that apply to the runs, in the order of the page."""
    several = len(runs) > 1
    sections: list[Section | None] = [
        side_by_side(runs) if several else headline(runs[0]),
        misfits(runs),
        results(runs),
        privacy_section.section(runs),
        measure_section.section(runs),
        *(mistake_section.section(run, titled=several) for run in runs),
        exit_section.section(runs),
        *(personal_section.section(run, titled=several) for run in runs),
        *(layer_section.section(run, f"g{index}", titled=several) for index, run in enumerate(runs)),
        *(site_section.section(run, f"s{index}", titled=several) for index, run in enumerate(runs)),
        *clients(runs),
        *(participation(run, f"l{index}", titled=several) for index, run in enumerate(runs)),
        rejections(runs),
        *(details(run, titled=several) for run in runs),
    ]
    return (section for section in sections if section is not None)
