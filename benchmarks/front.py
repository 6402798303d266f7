"""Accuracy against bytes of finished comparisons: one table and one figure with the Pareto front.

    python -m benchmarks.front FIGURE COMPARISON...

Each comparison is a directory that `fedelta compare` has written, with the axes tuning, algorithm and codec. Bytes are
of both directions and all rounds; ratios are to the row with most bytes, which should be full fine-tuning in float32.
Cells without a finished run are left out. Accuracies are means with sample standard deviations over n seeds.
Differences from float32 are taken seed by seed, with 95 % t-intervals of their means.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import matplotlib as mpl
from scipy.special import stdtrit

from fedelta.comparison.intervals import LEVEL, is_better

Name = tuple[str, str, str]


class Point(NamedTuple):
    """A row of the table: accuracy in % by seed, and MiB of a run."""

    name: Name
    accuracy: dict[str, float]
    mib: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.accuracy.values())


def points(folders: list[Path]) -> list[Point]:
    """The finished cells, averaged over seeds, the most bytes first."""
    accuracy: dict[Name, dict[str, float]] = defaultdict(dict)
    mib: dict[Name, list[float]] = defaultdict(list)
    for folder in folders:
        with (folder / "cells.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["state"] == "finished":
                    name = row["tuning"], row["algorithm"], row["codec"]
                    accuracy[name][row["seed"]] = float(row["accuracy_percent"])
                    mib[name].append(float(row["mib_total"]))
    rows = [Point(name, by_seed, fmean(mib[name])) for name, by_seed in accuracy.items()]
    return sorted(rows, key=lambda point: -point.mib)


def front(rows: list[Point]) -> dict[Name, str]:
    """Those for which none with fewer bytes is as accurate, to whether seeds tell them apart from all of these."""
    marks = {}
    for point in rows:
        fewer = [other for other in rows if other.mib < point.mib]
        if all(other.mean < point.mean for other in fewer):
            clear = all(is_better(point.accuracy, other.accuracy, higher_is_better=True) for other in fewer)
            marks[point.name] = "front" if clear else "within noise"
    return marks


def difference(point: Point, rows: list[Point]) -> str:
    """Accuracy less that of float32 with the same tuning and algorithm, in points: the mean and its 95 % interval."""
    exact = next((row.accuracy for row in rows if row.name == (*point.name[:2], "float32")), {})
    differences = [point.accuracy[seed] - exact[seed] for seed in point.accuracy if seed in exact]
    if point.name[2] == "float32" or not differences:
        return ""
    if len(differences) == 1:
        return f"{differences[0]:+.1f} (one seed)"
    half = stdtrit(len(differences) - 1, (1 + LEVEL) / 2) * stdev(differences) / len(differences) ** 0.5
    return f"{fmean(differences):+.1f} ± {half:.1f}"


def table(rows: list[Point]) -> str:
    """As Markdown."""
    lines = [
        "| tuning | algorithm | codec | accuracy, % | n | less that of float32, points | MiB | one of | front |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    marks = front(rows)
    for point in rows:
        spread = f" ± {stdev(point.accuracy.values()):.1f}" if len(point.accuracy) > 1 else ""
        cells = [*point.name, f"{point.mean:.1f}{spread}", str(len(point.accuracy)), difference(point, rows)]
        cells += [f"{point.mib:,.2f}", f"{rows[0].mib / point.mib:,.0f}", marks.get(point.name, "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Point], path: Path) -> None:
    """The figure: a point for each row, and a line through the front."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "front"  # the same bytes for the same numbers
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    codecs = list(dict.fromkeys(point.name[2] for point in rows))
    markers = dict(zip(dict.fromkeys(point.name[:2] for point in rows), "osD^vP*X", strict=False))
    for point in rows:
        axes.plot(point.mib, point.mean, markers[point.name[:2]], color=f"C{codecs.index(point.name[2])}", alpha=0.8)
    best = front(rows)
    line = sorted((point.mib, point.mean) for point in rows if point.name in best)
    axes.step(*zip(*line, strict=True), where="post", color="gray", linewidth=1, zorder=0)
    for codec, place in zip(codecs, range(len(codecs)), strict=True):
        axes.plot([], [], "o", color=f"C{place}", label=codec)
    for (tuning, algorithm), marker in markers.items():
        axes.plot([], [], marker, color="black", fillstyle="none", label=f"{tuning}, {algorithm}")
    axes.set(xscale="log", xlabel="MiB of a run, both directions", ylabel="accuracy, %")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Writes the figure and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path)
    parser.add_argument("comparisons", type=Path, nargs="+")
    arguments = parser.parse_args()
    rows = points(arguments.comparisons)
    draw(rows, arguments.figure)
    print(table(rows))


if __name__ == "__main__":
    main()
