"""The elements of a page as values; macros.html turns them into HTML."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from fedelta.report.drawing import Chart, Spec, style_of, to_live, to_svg

NO_NUMBERS = 1_000_000  # beyond the last column of any table
_MAX_ROWS = 10  # visible rows of a long table


@dataclass(frozen=True)
class Picture:
    """A drawing.

    Args:
        svg: an SVG element, trusted.
        live: the same as a Vega specification, which shows values to a pointer.
        says: what it shows, for readers who cannot see it.
        title: above it.
        note: below it.
        is_wide: whether it takes the width of the page; narrow screens scroll it.
    """

    svg: str
    live: Spec
    says: str
    title: str = ""
    note: str = ""
    is_wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        header: names of the columns.
        rows: the cells as text; the first of each row is its heading.
        numbers_from: index of the first column that is aligned right.
        strong: (row, column) of the highlighted cells, from 0.
        title: above it, if there is one.
        note: below it, if there is one.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = NO_NUMBERS
    strong: Collection[tuple[int, int]] = ()
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class LongTable:
    """A table whose end is folded if it is long."""

    first: Table
    rest: Table | None


@dataclass(frozen=True)
class Line:
    """The line of a run in plots.

    Args:
        name: of the run.
        color: of its series, a variable of style.css.
        dashes: lengths on and off, in SVG's form; empty for a solid line.
    """

    name: str
    color: str
    dashes: str


def picture(chart: Chart, prefix: str, title: str, *, says: str = "", note: str = "", is_wide: bool = False) -> Picture:
    """`chart` as an element of the page.

    Args:
        chart: what is drawn.
        prefix: makes its ids unique within the page.
        title: above it.
        says: description for readers who cannot see it; by default the title.
        note: below it.
        is_wide: whether it takes the width of the page.
    """
    says = says or title
    return Picture(to_svg(chart, prefix, says), to_live(chart), says, title, note, is_wide)


def long_table(table: Table) -> LongTable:
    """`table`, of which all rows after the first ten are folded if they are more than two."""
    if len(table.rows) <= _MAX_ROWS + 2:
        return LongTable(table, None)
    return LongTable(replace(table, rows=table.rows[:_MAX_ROWS]), replace(table, rows=table.rows[_MAX_ROWS:]))


def legend(names: Sequence[str], shown: Collection[int] | None = None) -> list[Line]:
    """The lines of the runs called `names`, or only of those with the indices `shown`."""
    places = range(len(names)) if shown is None else sorted(shown)
    styles = {place: style_of(place) for place in places}
    return [
        Line(names[place], color, " ".join(f"{length:g}" for length in dashes))
        for place, (color, dashes) in styles.items()
    ]
