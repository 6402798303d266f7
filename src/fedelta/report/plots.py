"""The charts of the sections on results, participation and clients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

from fedelta.record.history import History
from fedelta.record.numbers import MIB, axis_title, capitalised, in_unit, mebibytes
from fedelta.record.partition import Partition
from fedelta.report.charts import (
    FAINT,
    FIT,
    LETTER,
    LONGEST,
    ROUNDS,
    Axis,
    Curve,
    beside,
    curves,
    keyed,
    message,
    named,
    of_amount,
    of_measure,
    width_of,
)
from fedelta.report.drawing import MUTED, NARROW, SERIES, WIDE, Chart, Spec, style_of
from fedelta.report.traffic import by_part
from fedelta.tasks.base import Measure

MAX_COLUMNS = 120  # of clients, and of rounds; more would be thinner than a pixel of a phone
MAX_NAMES = 24  # of rows, which then have names beside them
_ROW = 17  # height of a row with a name
_SENT = "Sent so far, both directions (MiB)"


def measure_by_round(runs: Sequence[History]) -> Chart:
    """Primary measure of runs that share it, against the round."""
    lines = [line for index, run in enumerate(runs) for line in _curve(run, index, _rounds(run))]
    return curves(lines, ROUNDS, _measured(runs), _emptiness(runs))


def measure_by_traffic(runs: Sequence[History]) -> Chart:
    """Primary measure of the runs against MiB sent so far; the first rounds of full fine-tuning are marked."""
    lines = [line for index, run in enumerate(runs) for line in _curve(run, index, _sent(run))]
    marks = _full_rounds(runs)
    x = of_amount(_SENT, [position for run in runs for position in _sent(run)], [mark["x"] for mark in marks])
    return curves(lines, x, _measured(runs), [*_emptiness(runs), *_dotted(marks, x)])


def measure_figure(runs: Sequence[History]) -> Chart:
    """The primary measure by round and by traffic, with a legend, as a picture for a README or a paper."""
    names = {run.name: style_of(index)[0] for index, run in enumerate(runs)}
    left, right = measure_by_round(runs), measure_by_traffic(runs)
    if len(runs) > 1:
        color = keyed("", names)
        color["legend"] |= {"symbolOpacity": 1, "symbolType": "stroke"}
        legend = {
            "data": {"values": [{"kind": name} for name in names]},
            "mark": {"type": "point", "opacity": 0},
            "encoding": {"color": color},
        }
        left = Chart(
            left.spec | {"layer": [*left.spec["layer"], legend], "resolve": {"scale": {"color": "independent"}}}
        )
    return beside([left, right])


def share_by_round(runs: Sequence[History], measure: Measure) -> Chart:
    """A fraction that runs have beside their primary measure, against the round."""
    lines = [
        Curve(run.name, index, [(round, in_unit(value, measure)) for round, value in curve])
        for index, run in enumerate(runs)
        if (curve := run.curve_of(measure))
    ]
    return curves(lines, ROUNDS, of_measure(measure.label, measure, [], domain=(0, 101)))


def loss_by_round(runs: Sequence[History]) -> Chart:
    """Test loss (strong) and training loss (faint) of runs with the same loss, against the round."""
    loss = runs[0].task.loss
    alone = len(runs) == 1
    lines = [
        Curve(word if alone else f"{run.name}, {word}", index, points, opacity=opacity)
        for index, run in enumerate(runs)
        for word, points, opacity in (("training", run.train_losses, FAINT), (run.measured_on, run.losses, 1.0))
        if points
    ]
    return curves(lines, ROUNDS, Axis(axis_title(loss.label, loss), has_zero=True), _emptiness(runs))


def bytes_by_part(run: History) -> Chart:
    """MiB by block or role and direction over the whole run; `headers` are the bytes of payloads besides tensors."""
    parts = by_part(run)
    rows = [
        {"part": name, "kind": kind, "mib": number / MIB, "text": mebibytes(number)}
        for name, (down, up) in parts.items()
        for kind, number in (("down", down), ("up", up))
    ]
    # Behind the longest bar there is room for its number.
    x = Axis("Sent over the run (MiB)", domain=(0, 1.18 * max(map(max, parts.values())) / MIB))
    color = keyed("", {"down": SERIES[0], "up": SERIES[1]})
    spec = {
        "width": NARROW,
        "height": 62 + 28 * len(parts),
        "autosize": FIT,
        "data": {"values": rows},
        "encoding": {
            "y": named_rows("part", list(parts)),
            "yOffset": {"field": "kind", "sort": ["down", "up"]},
            "x": x.encoding("mib"),
            "tooltip": [{"field": "part", "title": "Part"}, {"field": "kind", "title": "Direction"}, x.tip("mib")],
        },
        "layer": [
            {"mark": "bar", "encoding": {"color": color}},
            {
                "mark": {"type": "text", "align": "left", "baseline": "middle", "dx": 3, "fontSize": 9.5},
                "encoding": {"text": {"field": "text"}},
            },
        ],
    }
    return Chart(spec)


def participation(run: History) -> Chart:
    """Clients of each round by the outcome of their replies; of many rounds the means of neighbours."""
    causes = [[rejection["cause"] for rejection in record["rejections"]] for record in run.rounds]
    in_mean = [
        len(set(record["cohort"]) - {rejection["client_id"] for rejection in record["rejections"]})
        for record in run.rounds
    ]
    numbers = {"in the mean": in_mean} | {
        cause: [in_round.count(cause) for in_round in causes]
        for cause in sorted({cause for in_round in causes for cause in in_round})
    }
    rounds, wide = [record["round"] for record in run.rounds], -(-len(run.rounds) // MAX_COLUMNS)
    rows = [
        {"kind": kind, "from": rounds[first] - 0.5, "to": rounds[first] + wide - 0.5, "number": sum(part) / len(part)}
        for kind, of_kind in numbers.items()
        for first in range(0, len(rounds), wide)
        if sum(part := of_kind[first : first + wide])
    ]
    # A deployment has more causes than there are colours: the last ones share one.
    colors = dict(zip(numbers, chain(SERIES, repeat(MUTED)), strict=False))
    y = Axis("Clients asked" if wide == 1 else f"Clients asked, mean of {wide} rounds", has_zero=True)
    last = rounds[-1] + 0.5
    encoding = {
        "x": Axis("Round", is_whole=True, domain=(rounds[0] - 0.5, last)).encoding("from"),
        "x2": {"field": "to"},
        "y": y.encoding("number", stack="zero"),
        "color": keyed("", colors),
        "order": {"field": "place"},
        "tooltip": [{"field": "kind", "title": "Reply"}, {"field": "number", "title": "Clients", "format": ",.3~r"}],
    }
    places = list(numbers)
    data = {"values": [row | {"place": places.index(str(row["kind"]))} for row in rows]}
    return Chart({"width": WIDE, "height": 200, "autosize": FIT, "data": data, "mark": "bar", "encoding": encoding})


def label_distribution(partition: Partition) -> Chart:
    """Examples of each client, above the share of each class or stratum; of many clients, some in equal steps."""
    shown = shown_clients(partition)
    labels = [partition.label(client) for client in shown]
    sizes = [
        {"client": label, "size": sum(partition.counts[client])} for client, label in zip(shown, labels, strict=True)
    ]
    client = {"field": "client", "title": capitalised("client")}
    across: Spec = {"field": "client", "type": "nominal", "sort": labels, "title": None}
    few_ticks = {"axis": {"labelOverlap": True, "tickCount": 3, "format": ",d"}}
    hidden = {"axis": {"labels": False, "ticks": False}}
    size = Axis("Examples", has_zero=True, form=",d")
    above = {
        "width": WIDE - 200,
        "height": 85,
        "data": {"values": sizes},
        "mark": {"type": "bar", "color": SERIES[0]},
        "encoding": {
            "x": across | hidden,
            "y": size.encoding("size") | few_ticks,
            "tooltip": [client, size.tip("size")],
        },
    }
    kind, names = capitalised(partition.kind[0]), partition.class_names
    below = {
        "width": WIDE - 200,
        "height": min(380, max(100, _ROW * len(names))),
        "data": {"values": list(_held(partition, shown, labels))},
        "mark": {"type": "rect", "color": SERIES[0]},
        "encoding": {
            "x": across | {"title": "Client", "axis": _client_axis(labels)},
            "y": named_rows("name", names, kind),
            "opacity": SHADES | {"field": "share", "legend": {"title": "Share of the client's examples, %"}},
            "tooltip": [
                client,
                {"field": "name", "title": kind},
                {"field": "number", "title": "Examples", "format": ",d"},
                {"field": "share", "title": "Share, %", "format": ".1f"},
            ],
        },
    }
    return Chart({"vconcat": [above, below], "spacing": 6, "bounds": "flush"})


def shown_clients(partition: Partition) -> list[int]:
    """The numbers of the clients that are drawn: all or, of many, one in equal steps."""
    return list(partition.counts)[:: share_of_clients(partition)]


def share_of_clients(partition: Partition) -> int:
    """The step between clients that are drawn: 1 for all of them."""
    return -(-len(partition.counts) // MAX_COLUMNS)


# Opacity of a share in percent, from faint to full; nothing is drawn for zero.
SHADES: Spec = {"type": "quantitative", "scale": {"domain": [0, 100], "range": [0.12, 1]}}
ROW_AXIS: Spec = {"ticks": False, "labelOverlap": True, "grid": False} | named()


def named_rows(field: str, names: Sequence[str], title: str = "") -> Spec:
    """The vertical channel of rows with names beside them, of many only some."""
    return {"field": field, "type": "nominal", "sort": list(names), "title": title or None, "axis": ROW_AXIS}


def _client_axis(labels: Sequence[str]) -> Spec:
    """Names below each other's columns where they fit, and else inclined; of many only some."""
    column, label = (WIDE - 200) / len(labels), width_of(labels)
    is_upright = label + 8 < column or label < 20
    every = math.ceil((label + 8 if is_upright else 14) / column)
    axis: Spec = {"labelAngle": 0 if is_upright else -45, "ticks": False, "values": labels[::every]}
    return axis | named(max(LONGEST, int(column / LETTER) - 2))


def _held(partition: Partition, shown: Sequence[int], labels: Sequence[str]) -> Iterator[Spec]:
    for client, label in zip(shown, labels, strict=True):
        of_client = partition.counts[client]
        for name, number in zip(partition.class_names, of_client, strict=True):
            if number:
                yield {"client": label, "name": name, "number": number, "share": 100 * number / sum(of_client)}


def _rounds(run: History) -> list[float]:
    return [record["round"] for record in run.evaluated]


def _sent(run: History) -> list[float]:
    return [record["cumulative_bytes"] / MIB for record in run.evaluated]


def _curve(run: History, index: int, positions: Sequence[float]) -> list[Curve]:
    """The evaluated rounds at `positions`, faint with strong full syncs if some were partial syncs."""
    heights = [in_unit(value, run.primary) for _, value in run.curve]
    points = list(zip(positions, heights, strict=True))
    if not run.has_partial_syncs:
        return [Curve(run.name, index, points)]
    synced = [point for point, record in zip(points, run.evaluated, strict=True) if record["round"] in run.full_syncs]
    return [
        Curve(f"{run.name}, all rounds", index, points, opacity=FAINT),
        Curve(f"{run.name}, full syncs", index, synced, is_dotted=True),
    ]


def measured(runs: Sequence[History]) -> str:
    """The primary measure of `runs`, with the set that it was measured on if that is the same."""
    words, primary = {run.measured_on for run in runs}, runs[0].primary
    return f"{words.pop()} {primary.label}" if len(words) == 1 else primary.label


def _measured(runs: Sequence[History]) -> Axis:
    primary = runs[0].primary
    return of_measure(measured(runs), primary, [in_unit(value, primary) for run in runs for _, value in run.curve])


def _full_rounds(runs: Sequence[History]) -> list[Spec]:
    """Where each run would be with full fine-tuning after its first three rounds; runs with the same share a mark."""
    sizes = {index: run.full_round_bytes / MIB for index, run in enumerate(runs) if run.full_round_bytes is not None}
    shared = len(set(sizes.values())) == 1
    sizes = dict(list(sizes.items())[:1]) if shared else sizes
    return [
        {"x": number * size, "color": MUTED if shared else style_of(index)[0]}
        for index, size in sizes.items()
        for number in (1, 2, 3)
    ]


def _dotted(marks: Sequence[Spec], x: Axis) -> list[Spec]:
    """Dotted lines across the picture, each in the colour of its run."""
    if not marks:
        return []
    mark = {"type": "rule", "strokeDash": [2, 3], "strokeWidth": 1.3}
    color = {"field": "color", "type": "nominal", "scale": None}
    return [{"data": {"values": list(marks)}, "mark": mark, "encoding": {"x": x.encoding("x"), "color": color}}]


def _emptiness(runs: Sequence[History]) -> list[Spec]:
    return [] if any(run.evaluated for run in runs) else [message("no round evaluated yet")]
