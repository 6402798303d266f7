"""The elements of a page as values; macros.html makes HTML of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from fedelta.report.drawing import SERIES, STYLES, to_svg

NO_NUMBERS = 1_000_000  # a column that no table has


@dataclass(frozen=True)
class Picture:
    """A drawing.

    Args:
        svg: an SVG element, trusted.
        title: above it.
        note: below it.
        is_wide: it takes the width of the page; a narrow screen scrolls it.
    """

    svg: str
    title: str = ""
    note: str = ""
    is_wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        header: names of the columns.
        rows: the cells, which are text already; the first of each row is its heading.
        numbers_from: the first of the columns that are aligned right.
        strong: (row, column) of the cells that stand out, from 0.
        title: above it, where there is one.
        note: below it, where there is one.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = NO_NUMBERS
    strong: Collection[tuple[int, int]] = ()
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Line:
    """How the plots draw a run.

    Args:
        name: of the run.
        color: number of its series in style.css.
        dashes: lengths on and off, as SVG has them; empty for a solid line.
    """

    name: str
    color: int
    dashes: str


def picture(
    figure: Figure, prefix: str, title: str, *, says: str = "", note: str = "", is_wide: bool = False
) -> Picture:
    """`figure` as an element of a page.

    Args:
        figure: as plots.py draws them.
        prefix: makes its ids unique within the page.
        title: above it.
        says: what it shows, for readers who do not see it; the title where this is empty.
        note: below it.
        is_wide: it takes the width of the page.
    """
    return Picture(to_svg(figure, prefix, says or title), title, note, is_wide)


def legend(names: Sequence[str], shown: Collection[int] | None = None) -> list[Line]:
    """The lines of the runs called `names`; of all, or of those at the places `shown`."""
    places = range(len(names)) if shown is None else sorted(shown)
    return [
        Line(
            name=names[place],
            color=place % len(SERIES) + 1,
            dashes=" ".join(f"{2.4 * length:g}" for length in STYLES[place % len(STYLES)]),
        )
        for place in places
    ]
