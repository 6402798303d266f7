"""Accuracy against bytes of finished comparisons: one table and one figure with the Pareto front.

    python -m benchmarks.front FIGURE COMPARISON...

Each comparison is a directory that `fedelta compare` has written, with the axes tuning, algorithm and codec. Bytes are
of both directions and all rounds; ratios are to the row with most bytes, which should be full fine-tuning in float32.
Cells without a finished run are left out. Accuracies are means with sample standard deviations over n seeds.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import matplotlib as mpl

Name = tuple[str, str, str]


class Point(NamedTuple):
    """A row of the table: accuracies in % by seed, and MiB of a run."""

    name: Name
    accuracies: list[float]
    mib: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for one seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


def points(folders: list[Path]) -> list[Point]:
    """The finished cells, averaged over seeds, the most bytes first."""
    cells: dict[Name, list[tuple[float, float]]] = defaultdict(list)
    for folder in folders:
        with (folder / "cells.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["state"] == "finished":
                    name = row["tuning"], row["algorithm"], row["codec"]
                    cells[name].append((float(row["accuracy_percent"]), float(row["mib_total"])))
    rows = [
        Point(name, [accuracy for accuracy, _ in runs], fmean(mib for _, mib in runs)) for name, runs in cells.items()
    ]
    return sorted(rows, key=lambda point: -point.mib)


def front(rows: list[Point]) -> set[Name]:
    """The names of those for which no other is at least as accurate with fewer bytes."""
    return {
        point.name for point in rows if not any(other.mib < point.mib and other.mean >= point.mean for other in rows)
    }


def table(rows: list[Point]) -> str:
    """As Markdown."""
    lines = [
        "| tuning | algorithm | codec | accuracy, % | n | MiB | one of | front |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best = front(rows)
    for point in rows:
        spread = "" if point.deviation is None else f" ± {point.deviation:.1f}"
        mark = "front" if point.name in best else ""
        lines.append(
            f"| {' | '.join(point.name)} | {point.mean:.1f}{spread} | {len(point.accuracies)} | {point.mib:,.2f} | "
            f"{rows[0].mib / point.mib:,.0f} | {mark} |"
        )
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
