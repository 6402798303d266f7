"""The figures of the report, drawn with matplotlib's objects (without pyplot's global figures)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedelta.data.clients import Name
from fedelta.record.history import History
from fedelta.record.numbers import axis_title, capitalised, in_unit
from fedelta.record.partition import Partition
from fedelta.report.drawing import INK, MUTED, SERIES, SIZE, STYLES, blank, single, style, transparent_to
from fedelta.tasks.base import Measure

MIB = 2**20
MAX_GROUPS = 20
MAX_BARS = 300
MAX_DOTS = 60


def measure_by_round(runs: Sequence[History]) -> Figure:
    """Primary measure of runs that share it, against the round."""
    with style():
        figure, axes = single()
        _draw_by_round(axes, runs)
        return figure


def measure_by_traffic(runs: Sequence[History]) -> Figure:
    """Primary measure of the runs against MiB sent so far; the first rounds of full fine-tuning are marked."""
    with style():
        figure, axes = single()
        _draw_by_traffic(axes, runs)
        return figure


def measure_figure(runs: Sequence[History]) -> Figure:
    """The primary measure by round and by traffic, with a legend, as a picture for a README or a paper."""
    with style():
        figure = blank((2 * SIZE[0], SIZE[1]))
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_by_round(left, runs)
        _draw_by_traffic(right, runs)
        right.set_ylabel("")
        if len(runs) > 1:
            left.legend(loc="lower right", fontsize=8)
        return figure


def share_by_round(runs: Sequence[History], measure: Measure) -> Figure:
    """A fraction that runs have beside their primary measure, against the round."""
    with style():
        figure, axes = single()
        for index, run in enumerate(runs):
            if curve := run.curve_of(measure):
                line(axes, [(round, in_unit(value, measure)) for round, value in curve], index, label=run.name)
        axes.set(xlabel="Round", ylabel=axis_title(measure.label, measure), ylim=(0, 101))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        return figure


def loss_by_round(runs: Sequence[History]) -> Figure:
    """Test loss (strong) and training loss (faint) of runs with the same loss, against the round."""
    with style():
        figure, axes = single()
        for index, run in enumerate(runs):
            line(axes, run.train_losses, index, alpha=0.4)
            line(axes, run.losses, index)
        loss = runs[0].task.loss
        axes.set(xlabel="Round", ylabel=axis_title(loss.label, loss))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.plot([], [], color=INK, label="test")
        if any(run.train_losses for run in runs):
            axes.plot([], [], color=INK, alpha=0.4, label="training")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
        return figure


def bytes_by_group(run: History) -> Figure:
    """MiB by group and direction over the whole run; `headers` are the bytes of payloads besides tensors."""
    groups = _largest_groups(run)
    with style():
        figure = blank((SIZE[0], max(1.5, 0.7 + 0.3 * len(groups))))
        axes = figure.subplots()
        rows = np.arange(len(groups))
        for offset, column, color, label in ((-0.19, 0, SERIES[0], "down"), (0.19, 1, SERIES[1], "up")):
            widths = [pair[column] / MIB for pair in groups.values()]
            axes.barh(rows + offset, widths, height=0.36, color=color, label=label)
        axes.set_yticks(rows, [shortened(group) for group in groups])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="Sent over the run (MiB)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
        return figure


def participation(run: History) -> Figure:
    """Clients of each round by the outcome of their replies."""
    rounds = [record["round"] for record in run.rounds]
    causes = [[rejection["cause"] for rejection in record["rejections"]] for record in run.rounds]
    rejected = [{rejection["client_id"] for rejection in record["rejections"]} for record in run.rounds]
    layers = {
        "in the mean": [len(set(record["cohort"]) - out) for record, out in zip(run.rounds, rejected, strict=True)]
    }
    layers |= {
        cause: [in_round.count(cause) for in_round in causes]
        for cause in sorted({cause for in_round in causes for cause in in_round})
    }
    with style():
        figure = blank((2 * SIZE[0], 2.4))
        axes = figure.subplots()
        bottom = np.zeros(len(rounds))
        # A deployment has more causes than there are colours: the last ones share one.
        for (label, heights), color in zip(layers.items(), chain(SERIES, repeat(MUTED)), strict=False):
            edges = np.arange(len(rounds) + 1) + 0.5
            axes.stairs(bottom + heights, edges, baseline=bottom, fill=True, color=color, label=label)
            bottom = bottom + heights
        axes.set(xlabel="Round", ylabel="Clients asked")
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=6, fontsize=8)
        return figure


def label_distribution(partition: Partition) -> Figure:
    """Examples of each client, above the share of each class or stratum."""
    counts = np.array(list(partition.counts.values()), dtype=float)
    sizes = counts.sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    num_classes = counts.shape[1]
    with style():
        height = 1.7 + min(3.4, max(1.2, 0.17 * num_classes))
        figure = blank((2 * SIZE[0], height))
        grid = figure.add_gridspec(
            2, 2, height_ratios=[1.2, height - 1.7], width_ratios=[70, 1], hspace=0.08, wspace=0.03
        )
        above = figure.add_subplot(grid[0, 0])
        below = figure.add_subplot(grid[1, 0], sharex=above)
        if len(sizes) <= MAX_BARS:
            above.bar(np.arange(len(sizes)), sizes, width=0.8, color=SERIES[0])
        else:  # one path: 10,000 bars would be 1.5 MB of page
            above.stairs(sizes, np.arange(len(sizes) + 1) - 0.5, fill=True, color=SERIES[0])
        above.set_ylabel("Examples")
        above.grid(visible=False, axis="x")
        above.tick_params(axis="x", length=0, labelbottom=False)
        image = below.imshow(
            shares.T, aspect="auto", cmap=transparent_to(SERIES[0]), vmin=0, vmax=shares.max(), interpolation="nearest"
        )
        below.grid(visible=False)
        below.set(xlabel="Client", ylabel=capitalised(partition.kind[0]))
        _name_rows(below, partition.class_names)
        names = partition.clients.names
        _name_columns(below, [names.get(number, number) for number in partition.counts])
        bar = figure.colorbar(image, cax=figure.add_subplot(grid[:, 1]))
        bar.set_label("Share of the client's examples")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        bar.outline.set_visible(False)
        return figure


def traffic_axis(axes: Axes, lowest: float, highest: float) -> None:
    """Makes the horizontal axis logarithmic if a linear one would crowd most points at the left edge."""
    if lowest <= 0 or highest <= 10 * lowest:
        return
    subdivisions = (1, 2, 5) if highest < 300 * lowest else (1,)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subdivisions, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def line(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    index: int,
    *,
    label: str | None = None,
    alpha: float = 1.0,
) -> None:
    """Draws the curve of a run; a single point is shown as a dot."""
    color = SERIES[index % len(SERIES)]
    dashes = STYLES[index % len(STYLES)]
    # A leading underscore would hide the run from the legend.
    label = f" {label}" if label is not None and label.startswith("_") else label
    x, y = [point[0] for point in points], [point[1] for point in points]
    axes.plot(x, y, color=color, linestyle=(0, dashes) if dashes else "-", label=label, alpha=alpha)
    axes.plot(x[-1:], y[-1:], color=color, marker="o", markersize=4, alpha=alpha, linestyle="none")


def shortened(name: str) -> str:
    """A long name, shortened to its prefix (`control/`) and its end, which is more specific than its beginning."""
    kind, slash, end = name.rpartition("/")
    room = 27 - len(kind + slash)
    return name if len(end) <= room + 1 or room < 1 else f"{kind}{slash}…{end[-room:]}"


def measured(runs: Sequence[History]) -> str:
    """Title of an axis with the primary measure of `runs`."""
    words, primary = {run.measured_on for run in runs}, runs[0].primary
    return axis_title(f"{words.pop()} {primary.label}" if len(words) == 1 else primary.label, primary)


def limits(axes: Axes, values: Sequence[float], measure: Measure) -> None:
    """Shows a fraction from 0 to 100 %, unless all values are high; other measures keep matplotlib's limits."""
    if measure.is_fraction and min(values, default=0.0) < 0.5:
        axes.set_ylim(0, 101)


def _draw_by_round(axes: Axes, runs: Sequence[History]) -> None:
    for index, run in enumerate(runs):
        _draw_curve(axes, run, index, [record["round"] for record in run.evaluated])
    axes.set(xlabel="Round", ylabel=measured(runs))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _limit(axes, runs)


def _draw_by_traffic(axes: Axes, runs: Sequence[History]) -> None:
    positions: list[float] = []
    for index, run in enumerate(runs):
        sent = [record["cumulative_bytes"] / MIB for record in run.evaluated]
        _draw_curve(axes, run, index, sent)
        positions += sent
    axes.set(xlabel="Sent so far, both directions (MiB)", ylabel=measured(runs))
    full_round = min((run.full_round_bytes / MIB for run in runs if run.full_round_bytes is not None), default=None)
    reach = max([*positions, full_round or 0])
    traffic_axis(axes, min(positions, default=0), reach)
    if full_round is not None:
        _mark_full_rounds(axes, full_round)
    _limit(axes, runs)


def _draw_curve(axes: Axes, run: History, index: int, positions: Sequence[float]) -> None:
    """Draws the evaluated rounds at `positions`, faint with strong full syncs if some were partial syncs."""
    heights = [in_unit(value, run.primary) for _, value in run.curve]
    points = list(zip(positions, heights, strict=True))
    if not run.has_partial_syncs:
        line(axes, points, index, label=run.name)
        return
    synced = [point for point, record in zip(points, run.evaluated, strict=True) if record["round"] in run.full_syncs]
    line(axes, points, index, alpha=0.35)
    line(axes, synced, index, label=run.name)
    if len(synced) <= MAX_DOTS:
        x, y = [point[0] for point in synced], [point[1] for point in synced]
        axes.plot(x, y, color=SERIES[index % len(SERIES)], marker="o", markersize=3, linestyle="none")


def _mark_full_rounds(axes: Axes, full_round: float) -> None:
    """Draws dotted lines at the traffic of full fine-tuning after its first three rounds, named above the plot."""
    for number in (1, 2, 3):
        axes.axvline(number * full_round, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
    axes.autoscale_view()
    place = axes.transAxes.inverted().transform(axes.transData.transform((full_round, 0.0)))[0]
    axes.annotate(
        "full fine-tuning, rounds 1 to 3",
        (3 * full_round if place > 0.5 else full_round, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right" if place > 0.5 else "left",
        va="bottom",
        color=MUTED,
        fontsize=8,
    )


def _limit(axes: Axes, runs: Sequence[History]) -> None:
    limits(axes, [value for run in runs for _, value in run.curve], runs[0].primary)
    if not any(run.evaluated for run in runs):
        axes.text(0.5, 0.5, "no round evaluated yet", transform=axes.transAxes, ha="center", color=MUTED)


def _largest_groups(run: History) -> dict[str, tuple[int, int]]:
    """Bytes down and up by group in the model's order; the smallest groups are merged, and headers come last."""
    down, up = run.ledger.groups["down"], run.ledger.groups["up"]
    groups = {group: (down.get(group, 0), up.get(group, 0)) for group in {**down, **up}}
    largest = sorted(groups, key=lambda group: -sum(groups[group]))[:MAX_GROUPS]
    shown = {group: pair for group, pair in groups.items() if group in largest}
    merged = [pair for group, pair in groups.items() if group not in largest]
    if merged:
        shown[f"{len(merged)} more"] = (sum(pair[0] for pair in merged), sum(pair[1] for pair in merged))
    shown["headers"] = (
        run.ledger.downlink_bytes - run.ledger.downlink_tensor_bytes,
        run.ledger.uplink_bytes - run.ledger.uplink_tensor_bytes,
    )
    return shown


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Labels rows with class names or, if there are too many, with numbers."""
    axes.tick_params(axis="both", length=0)
    if len(names) <= 20:
        axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _name_columns(axes: Axes, clients: Sequence[Name]) -> None:
    """Labels columns with names or numbers of clients, of many only some; long names are slanted to avoid overlap."""
    step = max(1, -(-len(clients) // 16))
    places = range(0, len(clients), step)
    labels = [shortened(str(clients[place])) for place in places]
    axes.set_xticks(places, labels)
    if max(map(len, labels)) > 4:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(clients) - 0.5)
