"""The confusion matrix as a figure, and the most frequent mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedelta.report.drawing import GRID, INK, ON_STRONG, SERIES, SIZE, blank, style, transparent_to
from fedelta.tasks.details import Confusion

# Largest numbers of classes for which the matrix shows numbers, and its axes names.
MAX_NUMBERS, MAX_NAMES = 12, 24
_WITH_COUNTS = 5  # largest number of classes for which the counts fit too
_STRONG = 0.72  # shares above it are dark on a light page, and text on them is light
_NAME = 14  # characters


def matrix(confusion: Confusion) -> Figure:
    """A figure with the share of each answer among the examples of each true class; rows sum to 100 % or are empty."""
    counts = np.array(confusion.counts, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    number = len(shares)
    with style():
        figure = blank((SIZE[0], min(4.4, 1.3 + 0.5 * number)))
        axes = figure.subplots()
        image = axes.imshow(
            shares, aspect="auto", cmap=transparent_to(SERIES[0]), vmin=0, vmax=1, interpolation="nearest"
        )
        axes.grid(visible=False)
        axes.spines[:].set(visible=True, color=GRID)
        axes.set(xlabel="Answer", ylabel="True class")
        _name(axes, confusion.class_names)
        if number <= MAX_NUMBERS:
            _write(axes, shares, counts, with_counts=number <= _WITH_COUNTS)
        else:
            bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04, aspect=30)
            bar.set_label("Share of the true class")
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
            bar.outline.set_visible(False)
        return figure


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


def _name(axes: Axes, names: Sequence[str]) -> None:
    axes.tick_params(axis="both", length=0)
    if len(names) > MAX_NAMES:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        return
    # Both ends are kept, because names often differ only in the last word or number.
    short = [name if len(name) <= _NAME else f"{name[:6]}…{name[7 - _NAME :]}" for name in names]
    crowded = max(map(len, short)) * len(short) > 44
    axes.set_xticks(range(len(short)), short, rotation=90 if crowded else 0)
    axes.set_yticks(range(len(short)), short)


def _write(axes: Axes, shares: np.ndarray, counts: np.ndarray, *, with_counts: bool) -> None:
    """Writes the share into each cell that has examples, in percent."""
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f} %\n{counts[row, column]:,.0f}" if with_counts else f"{100 * share:.0f}"
        color = ON_STRONG if share > _STRONG else INK
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
