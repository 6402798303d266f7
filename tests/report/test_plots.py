from __future__ import annotations

import dataclasses
import io
from typing import get_args

import pytest
from PIL import Image
from tests.report.pages import rows
from tests.report.synthetic import SMALL, history_of, make_run

from fedelta.data.clients import Clients
from fedelta.federation.records import Cause, Rejection
from fedelta.record.partition import Partition
from fedelta.report.charts import ROUNDS, Axis, Curve, curves, of_measure
from fedelta.report.clients import _sizes
from fedelta.report.drawing import to_png, to_svg
from fedelta.report.plots import MAX_COLUMNS, bytes_by_part, label_distribution, participation
from fedelta.report.traffic import MAX_PARTS
from fedelta.report.writing import measure_figure
from fedelta.tasks.base import Measure


def test_many_unequal_blocks_are_merged(tmp_path):
    groups = tuple((f"layers.{index}", 10 + index) for index in range(50))
    history = history_of(make_run(tmp_path / "deep", dataclasses.replace(SMALL, groups=groups)).path)
    parts = list(dict.fromkeys(row["part"] for row in rows(bytes_by_part(history).spec)))
    assert len(parts) == MAX_PARTS + 2
    assert parts[-2:] == [f"{50 - MAX_PARTS} more", "headers"]
    assert parts[0] == f"layers.{50 - MAX_PARTS}"  # the largest, in the model's order


def test_equal_blocks_are_told_by_role(tmp_path):
    roles = ("attention.q", "mlp.fc1")
    groups = (*((f"layers.{block}.{role}", 20) for block in range(12) for role in roles), ("head", 30))
    history = history_of(make_run(tmp_path / "even", dataclasses.replace(SMALL, groups=groups)).path)
    parts = list(dict.fromkeys(row["part"] for row in rows(bytes_by_part(history).spec)))
    assert parts == ["attention.q, 12 blocks", "mlp.fc1, 12 blocks", "head", "headers"]


def test_every_cause_is_drawn_however_many_there_are(tmp_path):
    shape = dataclasses.replace(
        SMALL,
        num_rounds=4,
        num_finished=4,
        num_clients=20,
        clients_per_round=20,
        rejections=tuple(Rejection(client, "lost", cause) for client, cause in enumerate(get_args(Cause))),
    )
    spec = participation(history_of(make_run(tmp_path / "run", shape).path)).spec
    assert spec["encoding"]["color"]["scale"]["domain"] == ["in the mean", *sorted(get_args(Cause))]


def test_the_accuracy_figure_has_both_plots_and_a_legend(tmp_path, small):
    other = make_run(tmp_path / "_other", dataclasses.replace(SMALL, seed=9)).path
    figure = measure_figure([small, other])
    left, right = figure.spec["hconcat"]
    assert [view["layer"][0]["encoding"]["x"]["title"] for view in (left, right)] == [
        "Round",
        "Sent so far, both directions (MiB)",
    ]
    assert left["layer"][-1]["encoding"]["color"]["scale"]["domain"] == ["small", "_other"]
    picture = Image.open(io.BytesIO(to_png(figure, scale=0.5)))
    assert picture.width > 2 * picture.height


def test_an_axis_of_high_fractions_spans_five_points_and_ends_at_all():
    measure = Measure("accuracy", "accuracy", is_fraction=True)
    domains = [of_measure("", measure, values).domain for values in ([99.2, 100.0], [60.0], [55.0, 90.0], [20.0, 90.0])]
    assert domains == [(95.0, 100.0), (57.5, 62.5), None, (0, 101)]


def test_ticks_that_are_given_are_all_drawn():
    rounds = [(float(round), 0.5) for round in range(1, 9)]
    svg = to_svg(curves([Curve("a", 0, rounds)], ROUNDS, Axis("y")), "p", "")
    assert [round for round in range(1, 9) if f">{round}<" not in svg] == []


def test_long_names_are_cut_in_the_middle():
    counts = {3: (4, 5)} | dict.fromkeys(range(10, 30), (1, 2))
    svg = to_svg(label_distribution(partition_of(counts, {3: "a-hospital-with-a-very-long-name-in-kiel"})), "p", "")
    assert ">a-hospital-wit\N{HORIZONTAL ELLIPSIS}me-in-kiel (3)<" in svg


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            {0: (4, 0, 3), 1: (4, 0, 3)},
            "2 clients hold 14 training examples of 2 of 3 classes: 7 examples and 2 classes each.",
        ),
        (
            {0: (4, 1, 3), 1: (5, 0, 0)},
            "2 clients hold 13 training examples of 3 classes: 5 to 8 examples and 1 to 3 classes",
        ),
        ({client: (client + 1, 1, 1) for client in range(MAX_COLUMNS + 1)}, "One client in 2 is drawn."),
    ],
)
def test_sizes_of_clients_are_told(counts, said):
    assert said in _sizes(partition_of(counts))


def test_clients_that_are_held_out_are_told():
    assert "2 more are held out." in _sizes(dataclasses.replace(partition_of({0: (1, 2)}), held_out=frozenset({4, 5})))


def partition_of(counts, names=None) -> Partition:
    num = len(next(iter(counts.values())))
    clients = Clients.of(counts, {client: (names or {}).get(client, f"{client}") for client in counts} if names else {})
    return Partition(tuple("abc"[:num]), counts, clients=clients)
