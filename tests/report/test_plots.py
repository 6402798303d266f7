from __future__ import annotations

import dataclasses
import io
from typing import get_args

from PIL import Image
from tests.report.synthetic import SMALL, history_of, make_run

from fedelta.federation.records import Cause, Rejection
from fedelta.report.drawing import to_png
from fedelta.report.plots import MAX_GROUPS, bytes_by_group, participation
from fedelta.report.writing import measure_figure


def test_many_groups_are_merged(tmp_path):
    groups = tuple((f"layers.{index}", 10 + index) for index in range(50))
    history = history_of(make_run(tmp_path / "deep", dataclasses.replace(SMALL, groups=groups)).path)
    labels = [label.get_text() for label in bytes_by_group(history).axes[0].get_yticklabels()]
    assert len(labels) == MAX_GROUPS + 2
    assert labels[-2:] == ["30 more", "headers"]
    assert labels[0] == "layers.30"  # the largest twenty, in the model's order


def test_every_cause_is_drawn_however_many_there_are(tmp_path):
    shape = dataclasses.replace(
        SMALL,
        num_rounds=4,
        num_finished=4,
        num_clients=20,
        clients_per_round=20,
        rejections=tuple(Rejection(client, "lost", cause) for client, cause in enumerate(get_args(Cause))),
    )
    figure = participation(history_of(make_run(tmp_path / "run", shape).path))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["in the mean", *sorted(get_args(Cause))]


def test_the_accuracy_figure_has_both_plots_and_a_legend(tmp_path, small):
    other = make_run(tmp_path / "_other", dataclasses.replace(SMALL, seed=9)).path
    figure = measure_figure([small, other])
    left, right = figure.axes
    assert left.get_xlabel() == "Round"
    assert "MiB" in right.get_xlabel()
    assert [text.get_text().strip() for text in left.get_legend().get_texts()] == ["small", "_other"]
    picture = Image.open(io.BytesIO(to_png(figure, dots_per_inch=50)))
    assert picture.width > 2 * picture.height
