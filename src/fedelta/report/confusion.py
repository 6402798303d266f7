"""The confusion matrix as a chart, and the most frequent mistakes."""

from __future__ import annotations

from fedelta.report.charts import FIT, named, width_of
from fedelta.report.drawing import INK, NARROW, ON_STRONG, SERIES, Chart, Spec
from fedelta.report.plots import SHADES, named_rows
from fedelta.tasks.details import Confusion

MAX_NUMBERS = 12  # the largest number of classes for which the matrix shows numbers
MAX_CELLS = 2000  # of the largest shares; a larger drawing would be most of the page
_WITH_COUNTS = 5  # the largest number of classes for which the counts fit too
_STRONG = 72  # shares, in percent, above which they are dark on a light page, and text on them is light


def matrix(confusion: Confusion) -> Chart:
    """The share of each answer among the examples of each true class; rows sum to 100 % or are empty."""
    names, number = list(confusion.class_names), len(confusion.class_names)
    label = width_of(names)
    is_upright = label < (NARROW - label - 40) / number
    cells = sorted(_cells(confusion, with_counts=number <= _WITH_COUNTS), key=lambda cell: -cell["share"])[:MAX_CELLS]
    across: Spec = {"labelAngle": 0 if is_upright else -45, "ticks": False, "grid": False} | named()
    across |= {"labelOverlap": number > MAX_NUMBERS}
    encoding = {
        "x": {"field": "answer", "type": "nominal", "sort": names, "title": "Answer", "axis": across},
        "y": named_rows("true", names, "True class"),
        "tooltip": [
            {"field": "true", "title": "True class"},
            {"field": "answer", "title": "Answer"},
            {"field": "count", "title": "Examples", "format": ",d"},
            {"field": "share", "title": "Share of the class, %", "format": ".1f"},
        ],
    }
    legend = None if number <= MAX_NUMBERS else {"title": "Share of the true class, %"}
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "color": SERIES[0]},
            "encoding": {"opacity": SHADES | {"field": "share", "legend": legend}},
        }
    ]
    if number <= MAX_NUMBERS:
        color = {"condition": {"test": f"datum.share > {_STRONG}", "value": ON_STRONG}, "value": INK}
        layers.append(
            {"mark": {"type": "text", "lineBreak": "\n"}, "encoding": {"text": {"field": "text"}, "color": color}}
        )
    # Every class has its row and column, though nothing may be in them.
    layers.append({"data": {"values": _diagonal(names)}, "mark": {"type": "point", "opacity": 0}})
    height = 50 + min(340, 36 * number) + (15 if is_upright else 0.75 * label)
    data = {"values": cells}
    return Chart(
        {"width": NARROW, "height": height, "autosize": FIT, "data": data, "encoding": encoding, "layer": layers}
    )


def _cells(confusion: Confusion, *, with_counts: bool) -> list[Spec]:
    """A row for each cell with examples; its text is the share in percent, and the count if there is room."""
    cells = []
    for true, row in zip(confusion.class_names, confusion.counts, strict=True):
        for answer, count in zip(confusion.class_names, row, strict=True):
            if count:
                share = 100 * count / sum(row)
                text = f"{share:.0f} %\n{count:,}" if with_counts else f"{share:.0f}"
                cells.append({"true": true, "answer": answer, "count": count, "share": share, "text": text})
    return cells


def _diagonal(names: list[str]) -> list[Spec]:
    return [{"true": name, "answer": name} for name in names]


def mistakes(confusion: Confusion, most: int) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: true class, predicted class, count, and share of the true class.

    >>> mistakes(Confusion(("cat", "dog"), ((6, 2), (3, 9)), 20), most=1)
    [('dog', 'cat', 3, 0.25)]
    """
    errors = [
        (true, answer, count, count / sum(row))
        for true, row in zip(confusion.class_names, confusion.counts, strict=True)
        for answer, count in zip(confusion.class_names, row, strict=True)
        if answer != true and count
    ]
    return sorted(errors, key=lambda mistake: (-mistake[2], -mistake[3]))[:most]
