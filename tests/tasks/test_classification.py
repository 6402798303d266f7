from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tests.small import write_small
from torch import Tensor, tensor
from torch.nn import functional

from fedelta.config import load_config
from fedelta.errors import ConfigError
from fedelta.seeds import stream
from fedelta.tasks.base import Sums
from fedelta.tasks.classification import Classification, Prediction
from fedelta.tasks.details import Answered, Confusion, Details
from fedelta.tasks.labels import Labels

TASK = Classification()
# Six examples of three classes: 0 0 0 1 1 2 are taken for 0 0 1 1 1 0.
LABELS = tensor([0, 0, 0, 1, 1, 2])
ANSWERS = tensor([0, 0, 1, 1, 1, 0])
NAMES = ("cat", "dog", "fox")


def sure(answers: Tensor, num_classes: int = 3) -> Tensor:
    """Logits of 2 for these classes and 0 for the others."""
    return 2.0 * functional.one_hot(answers, num_classes).float()


def answered(outputs: Tensor, labels: Tensor, size: int = 2, rows: Tensor | None = None) -> list[Answered]:
    rows = torch.arange(len(labels)) if rows is None else rows
    return [
        Answered(rows[a:b], outputs[a:b], labels[a:b]) for a, b in pairwise([*range(0, len(labels), size), len(labels)])
    ]


def details(clients: Tensor | None = None, size: int = 2) -> Details:
    return TASK.details(answered(sure(ANSWERS), LABELS, size), NAMES, clients)


def test_losses_are_cross_entropies_by_row():
    # Two classes with logits x and 0: ln(1 + e^-x) where class 0 is right.
    losses = TASK.losses(tensor([[1.0, 0.0], [-2.0, 0.0]]), tensor([0, 0]))
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))])


def test_divergences_are_those_of_kullback_and_leibler_and_teach_one_side_only():
    outputs, teacher = torch.randn(2, 4, 3, generator=stream(1), dtype=torch.float64).unbind()
    outputs.requires_grad_()
    teacher.requires_grad_()
    divergences = TASK.divergences(outputs, teacher)
    p, q = teacher.softmax(1), outputs.softmax(1)
    torch.testing.assert_close(divergences, (p * (p / q).log()).sum(1))
    assert TASK.divergences(teacher, teacher).abs().max() < 1e-12
    divergences.sum().backward()
    assert teacher.grad is None
    torch.testing.assert_close(outputs.grad, q - p)


def test_sums_of_batches_give_the_measures_of_the_whole():
    outputs, labels = torch.randn(50, 4, generator=stream(2)), torch.arange(50) % 4
    whole = TASK.values(TASK.sums(outputs, labels))
    parts = TASK.values(TASK.sums(outputs[:17], labels[:17]) + TASK.sums(outputs[17:], labels[17:]))
    assert list(whole) == [TASK.primary.name, TASK.loss.name]
    assert whole["accuracy"] == parts["accuracy"] == int((outputs.max(1).indices == labels).sum()) / 50
    assert parts["loss_nats"] == pytest.approx(whole["loss_nats"])
    assert whole["loss_nats"] == pytest.approx(TASK.losses(outputs, labels).mean().item())


def test_measures_of_a_whole_set_by_hand():
    # F1: cat 2 of 3 found, 2 of 3 right: 2/3; dog 2 of 2 found, 2 of 3 right: 4/5; fox 0.
    # Recall: 2/3, 1, 0.
    measures = details().measures
    assert list(measures) == ["accuracy", "loss_nats", "macro_f1", "balanced_accuracy"]
    assert measures["accuracy"] == 4 / 6
    assert measures["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    assert measures["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    right, wrong = math.log(1 + 2 * math.exp(-2)), math.log(math.exp(2) + 2)
    assert measures["loss_nats"] == pytest.approx((4 * right + 2 * wrong) / 6)


def test_measures_by_class_and_the_confusion_by_hand():
    result, third = details(), pytest.approx(2 / 3)
    assert result.by_class == {
        "cat": {"precision": third, "recall": third, "f1": third, "num_examples": 3},
        "dog": {"precision": third, "recall": 1.0, "f1": pytest.approx(4 / 5), "num_examples": 2},
        "fox": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "num_examples": 1},
    }
    assert result.confusion == Confusion(NAMES, ((2, 1, 0), (0, 2, 0), (1, 0, 0)), 6)


def test_a_class_without_examples_has_no_recall():
    result = TASK.details(answered(sure(ANSWERS[:3]), LABELS[:3]), NAMES)
    assert result.by_class["dog"] == {"precision": 0.0, "recall": None, "f1": None, "num_examples": 0}
    # Of the classes that occur: cat 2 of 3 found, all that were called so are; dog was answered and never right.
    assert result.measures["macro_f1"] == pytest.approx((4 / 5 + 0) / 2)
    assert result.measures["balanced_accuracy"] == pytest.approx(2 / 3)


def test_measures_by_client_are_those_of_its_rows_alone():
    result = details(tensor([5, 5, 9, 9, -1, 5]))
    assert list(result.by_client) == [5, 9]
    # Client 5 has cat, cat, fox, all taken for cat; client 9 cat and dog, both taken for dog.
    assert result.by_client[5]["num_examples"] == 3
    assert result.by_client[5]["accuracy"] == pytest.approx(2 / 3)
    assert result.by_client[5]["macro_f1"] == pytest.approx((4 / 5 + 0) / 2)
    assert result.by_client[9]["balanced_accuracy"] == pytest.approx(1 / 2)
    right, wrong = math.log(1 + 2 * math.exp(-2)), math.log(math.exp(2) + 2)
    assert result.by_client[9]["loss_nats"] == pytest.approx((right + wrong) / 2)
    assert details().by_client == {}


def test_the_size_of_batches_does_not_matter():
    whole, parts = details(tensor([1, 1, 2, 2, 2, 1]), size=6), details(tensor([1, 1, 2, 2, 2, 1]), size=1)
    assert (whole.by_class, whole.confusion) == (parts.by_class, parts.confusion)
    assert whole.measures == pytest.approx(parts.measures)
    assert whole.by_client == {client: pytest.approx(values) for client, values in parts.by_client.items()}


def test_two_classes_have_an_area_under_the_curve():
    # Scores of class 1: 0.1 0.4 | 0.35 0.8 for labels 0 0 | 1 1: of four pairs three are in order.
    scores = tensor([0.1, 0.4, 0.35, 0.8])
    outputs = torch.stack([1 - scores, scores], 1).log()
    both = TASK.details(answered(outputs, tensor([0, 0, 1, 1])), ("no", "yes"))
    assert both.measures["auroc"] == pytest.approx(0.75)
    one_class = TASK.details(answered(outputs[:2], tensor([0, 0])), ("no", "yes"))
    assert "auroc" not in one_class.measures
    broken = TASK.details(answered(outputs.where(outputs < -1, math.nan), tensor([0, 0, 1, 1])), ("no", "yes"))
    assert "auroc" not in broken.measures


def test_every_measure_of_details_has_a_label():
    result = details(torch.zeros(6, dtype=torch.int64))
    names = {*result.measures, *result.by_class["cat"], *result.by_client[0]} - {"num_examples"}
    assert names | {"auroc"} == TASK.measured.keys()
    assert all(name == measure.name for name, measure in TASK.measured.items())


def test_an_answer_is_the_most_probable_class_with_the_probability_of_each():
    (answer,) = TASK.answers(tensor([[0.0, math.log(3.0)]]), ("no", "yes"), exit=2)
    assert answer == Prediction("yes", pytest.approx(0.75), {"no": pytest.approx(0.25), "yes": pytest.approx(0.75)}, 2)
    assert answer.cells == ("yes", "0.7500")
    assert TASK.confidence(tensor([[0.0, math.log(3.0)], [0.0, 0.0]])).tolist() == pytest.approx([0.75, 0.5])


def test_records_name_what_is_true_and_what_is_answered():
    (record,) = TASK.records(tensor([[0.0, math.log(3.0)]]), tensor([0]), ("no", "yes"))
    assert record == {
        "label": "no", "predicted": "yes", "probability of no": pytest.approx(0.25),
        "probability of yes": pytest.approx(0.75),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "candidates"),
    [
        ({"x": "image", "kind": "classes"}, ["kind"]),
        ({"label": "text", "kind": "classes"}, ["kind"]),
        ({"label": "integer", "score": "float"}, ["label"]),
        ({"label": "integer", "a": "classes", "b": "classes"}, ["label"]),
        ({"a": "classes", "b": "classes"}, ["a", "b"]),
        ({"score": "float"}, []),
    ],
)
def test_labels_are_in_the_only_column_of_class_labels_or_in_one_of_that_name(columns, candidates):
    assert TASK.candidates(columns) == candidates


@pytest.mark.parametrize(
    ("modality", "words"),
    [
        ("image", ("AutoModelForImageClassification", "image-classification", None)),
        ("audio", ("AutoModelForImageClassification", "audio-classification", None)),
        ("text", ("AutoModelForSequenceClassification", "text-classification", "SEQ_CLS")),
    ],
)
def test_every_modality_has_its_classifiers(modality, words):
    loader = TASK.loader(modality)
    assert loader is not None
    assert (loader.auto_class, loader.pipeline_tag, loader.peft_task) == words
    assert TASK.num_outputs(("a", "b", "c")) == 3


def test_an_unknown_modality_has_none():
    assert TASK.loader("smell") is None


def test_the_loss_of_weighted_classes_is_that_of_pytorch():
    from torch.nn import CrossEntropyLoss

    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(10, 3, generator=generator), torch.randint(3, (10,), generator=generator)
    weights = {"a": 0.5, "b": 1.0, "c": 4.0}
    task = Classification(class_weights={"c": 4.0, "a": 0.5}).settled(Sums(), "abc")
    assert task.class_weights == weights
    expected = CrossEntropyLoss(weight=tensor(list(weights.values())))(outputs, labels).item()
    measures = task.values(task.sums(outputs[:4], labels[:4]) + task.sums(outputs[4:], labels[4:]))
    assert measures["loss_nats"] == pytest.approx(expected, rel=1e-5)
    details = task.details([Answered(torch.arange(10), outputs, labels)], "abc", torch.zeros(10, dtype=torch.int64))
    assert details.by_client[0]["loss_nats"] == pytest.approx(expected, rel=1e-5)
    assert measures["accuracy"] == TASK.values(TASK.sums(outputs, labels))["accuracy"]


def test_balanced_weights_follow_from_counts_over_clients():
    task = Classification(class_weights="balanced")
    counts = task.statistics(Labels(tensor([0, 0, 1])), "ab") + task.statistics(Labels(tensor([1, 1, 1])), "ab")
    assert task.settled(counts, "ab").class_weights == pytest.approx({"a": 6 / 4, "b": 6 / 8})
    with pytest.raises(ValueError, match="`class_weights` is not settled yet"):
        task.weights(tensor([0]))


def test_weights_have_no_effect_where_each_gradient_is_clipped(tmp_path):
    private = ["privacy.unit=example", "privacy.noise_multiplier=1.0", "privacy.clipping_norm=1.0"]
    with pytest.raises(ConfigError, match=r"`task.class_weights` has no effect with `privacy.unit` = 'example'"):
        load_config(write_small(tmp_path), ["task.name=classification", "task.class_weights={'1'=2.0}", *private])
