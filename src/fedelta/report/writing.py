"""The report: one or more runs as one HTML page that needs nothing else.

The page holds its style and its figures (SVG); it loads nothing, runs no script, and suits light and dark
screens, phones and paper. A run that is still going, or was killed, is reported as far as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from fedelta.durable import write_atomic
from fedelta.record.history import History, read_histories
from fedelta.record.partition import Partition
from fedelta.report import exit_section, layer_section, measure_section, page, personal_section, plots


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Writes the report of the run directories `runs` to the file `out`, making missing parents.

    Raises:
        RunError: some runs are missing or broken; all are named, and `out` is left as it was.
        OSError: `out` cannot be written.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    content = render(read_histories(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, content)


def render(runs: Sequence[History]) -> str:
    """The page as HTML."""
    several = len(runs) > 1
    parts = [page.comparison(runs) if several else page.headline(runs[0])]
    parts += [page.misfits(runs), page.curves(runs)]
    if several:
        figures = "".join(page.traffic(run, f"t{index}", run.name) for index, run in enumerate(runs) if run.rounds)
        parts.append(f'<h2>Traffic by group and direction</h2><div class="figures">{figures}</div>')
    parts += [measure_section.section(runs), exit_section.section(runs)]
    parts += [personal_section.section(run, titled=several) for run in runs]
    parts += [layer_section.section(run, f"g{index}", titled=several) for index, run in enumerate(runs)]
    for index, (partition, names) in enumerate(_partitions(runs)):
        parts.append(page.clients(partition, f"p{index}", ", ".join(names) if several else ""))
    parts += [page.participation(run, f"l{index}", titled=several) for index, run in enumerate(runs)]
    parts.append(page.rejections(runs))
    parts += [page.details(run, titled=several) for run in runs]
    return fill(", ".join(run.name for run in runs) + " · fedelta report", parts)


def fill(title: str, parts: Sequence[str]) -> str:
    """The frame of every page around `parts`, which are trusted as HTML; `title` is escaped."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), content="\n".join(parts), version=escape(_version()))


def measure_figure(runs: Sequence[Path]) -> Figure:
    """The primary measure against rounds and against traffic, side by side; `drawing.to_png` makes a picture of it.

    Raises:
        RunError: some runs are missing or broken.
    """
    return plots.measure_figure(read_histories(runs))


def _partitions(runs: Sequence[History]) -> list[tuple[Partition, list[str]]]:
    """Each different partition by class once, with the names of the runs that share it."""
    found: list[tuple[Partition, list[str]]] = []
    for run in runs:
        if run.partition is None or not run.partition.class_names:
            continue
        names = next((names for partition, names in found if partition == run.partition), None)
        if names is None:
            found.append((run.partition, [run.name]))
        else:
            names.append(run.name)
    return found


def _version() -> str:
    try:
        return metadata.version("fedelta")
    except metadata.PackageNotFoundError:
        return ""
