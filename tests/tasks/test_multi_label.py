from __future__ import annotations

import math

import pytest
import torch
from tests.small import write_small
from torch import tensor

from fedelta.config import load_config
from fedelta.errors import ConfigError
from fedelta.tasks.details import Answered
from fedelta.tasks.multi_label import LabelSet, MultiLabel
from fedelta.tasks.targets import TargetColumn

TASK = MultiLabel()
LN3 = math.log(3)
NAMES = ("a", "b", "c")
# Probabilities 3/4 where positive, 1/4 where negative: answers a; a, b; none; b.
OUTPUTS = tensor([[LN3, -LN3, -LN3], [LN3, LN3, -LN3], [-LN3, -LN3, -LN3], [-LN3, LN3, -LN3]])
TARGETS = tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
RIGHT, WRONG = math.log(4 / 3), math.log(4)


def test_the_loss_of_a_row_is_the_mean_over_its_labels():
    assert TASK.losses(OUTPUTS, TARGETS).tolist() == pytest.approx(
        [RIGHT, (2 * RIGHT + WRONG) / 3, RIGHT, (2 * RIGHT + WRONG) / 3]
    )


def test_a_label_may_count_more_where_it_is_there():
    task = MultiLabel(pos_weight={"b": 3.0, "a": 2.0}).settled(TASK.statistics(None, NAMES), NAMES)
    assert list(task.pos_weight.items()) == [("a", 2.0), ("b", 3.0), ("c", 1.0)]
    # Row 3: a is there and not answered (twice), b is there and answered (three times), c is right.
    assert task.losses(OUTPUTS[3:], TARGETS[3:]).item() == pytest.approx((2 * WRONG + 3 * RIGHT + RIGHT) / 3)
    assert MultiLabel(pos_weight=2.0).losses(OUTPUTS[:1], TARGETS[:1]).item() == pytest.approx(
        (2 * RIGHT + 2 * RIGHT) / 3
    )


def test_balanced_weights_are_rows_without_by_rows_with_a_label():
    targets = TASK.targets(TargetColumn("labels", "training set", [["a"], ["a"], ["a"], ["b"], []]), None)
    task = MultiLabel(pos_weight="balanced")
    settled = task.settled(task.statistics(targets.train, targets.class_names), targets.class_names)
    assert settled.pos_weight == pytest.approx({"a": 2 / 3, "b": 4.0})


def test_measures_by_hand():
    # a: 3 labelled, 2 answered, both right: F1 4/5. b: 1 labelled, 2 answered, 1 right: 2/3. c: neither.
    measures = TASK.values(TASK.sums(OUTPUTS[:1], TARGETS[:1]) + TASK.sums(OUTPUTS[1:], TARGETS[1:]))
    assert list(measures) == ["micro_f1", "macro_f1", "exact_match", "loss_nats"]
    assert measures == pytest.approx({
        "micro_f1": 6 / 8, "macro_f1": (4 / 5 + 2 / 3) / 2, "exact_match": 2 / 4,
        "loss_nats": (RIGHT * 10 + WRONG * 2) / 12,
    })  # fmt: skip


def test_measures_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(40, 5, generator=generator), (torch.rand(40, 5, generator=generator) < 0.3).float()
    details = TASK.details([Answered(torch.arange(40), outputs, targets)], "abcde")
    truth, answers = targets.numpy() > 0, outputs.numpy() >= 0
    assert details.measures["micro_f1"] == pytest.approx(f1_score(truth, answers, average="micro"))
    assert details.measures["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"))
    assert details.measures["exact_match"] == pytest.approx(accuracy_score(truth, answers))
    assert details.measures["auroc"] == pytest.approx(roc_auc_score(truth, outputs.numpy(), average="macro"))


def test_what_is_not_defined_is_left_out():
    rows = Answered(tensor([0, 1, 2, 3]), OUTPUTS, TARGETS)
    details = TASK.details([rows], NAMES, tensor([5, 5, 6, 7]))
    # Of a, rows 0 and 1 rank above row 2, row 3 ties with it: (1 + 1 + 1/2) / 3. Of b, row 3 ties with row 1 only.
    assert details.by_class["a"] == pytest.approx(
        {"precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "auroc": 5 / 6, "num_examples": 3}
    )
    assert details.by_class["c"] == {"precision": 0.0, "recall": None, "f1": None, "auroc": None, "num_examples": 0}
    assert details.measures["auroc"] == pytest.approx((5 / 6 + 5 / 6) / 2)
    assert details.by_client[6] == pytest.approx({"exact_match": 1.0, "loss_nats": RIGHT, "num_examples": 1})
    assert "auroc" not in details.by_client[7]


def test_divergences_are_those_of_the_teachers_probabilities():
    # KL between 3/4 and 1/2: ln 2 - entropy of 3/4.
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert TASK.divergences(tensor([[0.0, LN3]]), tensor([[LN3, LN3]])).tolist() == pytest.approx([kl / 2], rel=1e-5)


def test_an_answer_is_every_label_from_the_threshold_on():
    answers = TASK.answers(OUTPUTS[1:3], NAMES, exit=2)
    assert answers[0] == LabelSet(("a", "b"), pytest.approx({"a": 0.75, "b": 0.75, "c": 0.25}), 2)
    assert answers[0].cells == ("a, b", "0.7500, 0.7500")
    assert answers[1].cells == ("(none)", "")
    assert MultiLabel(threshold=0.8).answers(OUTPUTS[:1], NAMES, None)[0].labels == ()
    assert TASK.records(OUTPUTS[1:2], TARGETS[1:2], NAMES)[0]["predicted"] == "a|b"
    assert TASK.confidence(tensor([[LN3, 0.0], [LN3, -LN3]])).tolist() == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize(
    ("columns", "candidates"),
    [
        ({"x": "lists of classes", "labels": "text"}, ["x"]),
        ({"label": "lists of integer"}, ["label"]),
        ({"x": "text"}, []),
    ],
)
def test_labels_are_in_the_only_column_of_lists_of_class_labels_or_of_that_name(columns, candidates):
    assert TASK.candidates(columns) == candidates


def test_counts_of_protected_labels_are_not_shared(tmp_path):
    private = ["privacy.unit=client", "privacy.noise_multiplier=1.0", "privacy.clipping_norm=1.0"]
    path = write_small(tmp_path)
    with pytest.raises(ConfigError, match=r"`task.pos_weight` would follow from the clients' labels"):
        load_config(path, ["task.name=multi-label", "task.pos_weight=balanced", *private])
    load_config(path, ["task.name=multi-label", "task.pos_weight=2.0", *private])
    with pytest.raises(ConfigError, match=r"`task.class_weights` would follow from the clients' labels"):
        load_config(path, ["task.name=classification", "task.class_weights=balanced", *private])
