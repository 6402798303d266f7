from __future__ import annotations

import dataclasses
import io
from typing import get_args

from PIL import Image
from tests.report.pages import rows
from tests.report.synthetic import SMALL, history_of, make_run

from fedelta.federation.records import Cause, Rejection
from fedelta.report.drawing import to_png
from fedelta.report.plots import bytes_by_part, participation
from fedelta.report.traffic import MAX_PARTS
from fedelta.report.writing import measure_figure


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
