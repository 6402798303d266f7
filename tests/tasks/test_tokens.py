from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

from fedelta.errors import InputError
from fedelta.tasks.details import Answered
from fedelta.tasks.tags import Span
from fedelta.tasks.tokens import Tokens

NAMES = ("O", "B-X", "I-X")
TASK = Tokens(tags=NAMES)
WRONG, RIGHT = math.log(5), math.log(5 / 3)  # of three logits 0, 0, ln 3


def outputs_of(*rows: list[int | None]) -> Tensor:
    """Each word has the probability 3/5 for its answer; None: the model does not read the word."""
    answers = tensor([[0 if label is None else label for label in row] for row in rows])
    logits = math.log(3) * torch.nn.functional.one_hot(answers, 3)
    is_read = tensor([[float(label is not None) for label in row] for row in rows]).unsqueeze(-1)
    return torch.cat([logits * is_read, is_read], dim=-1)


# Words 0 and 1 are a span; the second row has two words, the third is not read to its end.
TARGETS = tensor([[1, 2, 0], [0, 1, -100], [0, 0, 1]])
OUTPUTS = outputs_of([1, 2, 0], [1, 1, None], [0, 0, None])


def test_the_loss_of_a_row_is_that_of_the_words_that_are_read_by_all_its_words():
    assert TASK.losses(OUTPUTS, TARGETS).tolist() == pytest.approx([RIGHT, (WRONG + RIGHT) / 2, 2 * RIGHT / 3])
    assert TASK.weights(TARGETS).tolist() == [3.0, 2.0, 3.0]


def test_a_word_that_is_not_read_gets_no_gradient():
    outputs = OUTPUTS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(TASK.losses(outputs, TARGETS).sum(), outputs)
    assert gradient[2, 2].abs().max() == 0
    assert gradient[2, 1].abs().max() > 0


def test_measures_by_hand():
    # Spans: one of two words, right; X at word 1, right beside a wrong one at word 0; X at the end, not read.
    # Right 2, answered 3, labelled 3. Tags: 3 of 3, 1 of 2, 2 of 3.
    measures = TASK.values(TASK.sums(OUTPUTS[:1], TARGETS[:1]) + TASK.sums(OUTPUTS[1:], TARGETS[1:]))
    assert list(measures) == ["entity_f1", "entity_precision", "entity_recall", "tag_accuracy", "loss_nats"]
    assert measures == pytest.approx({
        "entity_f1": 4 / 6, "entity_precision": 2 / 3, "entity_recall": 2 / 3, "tag_accuracy": 6 / 8,
        "loss_nats": (6 * RIGHT + WRONG) / 8,
    })  # fmt: skip


def test_details_are_by_kind_of_span_and_by_client():
    rows = tensor([0, 1, 2])
    batches = [Answered(rows[:2], OUTPUTS[:2], TARGETS[:2]), Answered(rows[2:], OUTPUTS[2:, :2], TARGETS[2:, :2])]
    details = TASK.details(batches, NAMES, tensor([4, 4, 5]))
    assert details.by_class == {"X": pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 4 / 5, "num_examples": 2})}
    assert details.by_client[4]["num_examples"] == 2
    # Without a span neither recall nor F1 is defined.
    assert details.by_client[5] == pytest.approx({"tag_accuracy": 1.0, "loss_nats": RIGHT, "num_examples": 1})


def test_answers_are_spans_with_the_numbers_of_their_words():
    first, second, third = TASK.answers(OUTPUTS, NAMES, exit=None)
    assert (first.tags, first.spans) == (("B-X", "I-X", "O"), (Span(0, 2, "X"),))
    assert first.cells == ("X 1-2", "B-X I-X O")
    assert second.tags == ("B-X", "B-X")
    assert third.cells == ("(none)", "O O")
    assert TASK.records(OUTPUTS[1:2], TARGETS[1:2], NAMES) == [{"tags": "O B-X", "predicted": "B-X B-X"}]


def test_tags_have_no_confidence_and_must_be_settled():
    with pytest.raises(InputError, match="tags have no confidence of a whole text"):
        TASK.confidence(OUTPUTS)
    with pytest.raises(ValueError, match="the tags are not settled yet"):
        Tokens().sums(OUTPUTS, TARGETS)


@pytest.mark.parametrize(
    ("columns", "candidates"),
    [
        ({"tokens": "lists of text", "ner_tags": "lists of classes"}, ["ner_tags"]),
        ({"words": "lists of text", "tags": "lists of text"}, ["tags"]),
        ({"text": "text", "tags": "text"}, []),
    ],
)
def test_tags_are_in_the_only_column_of_lists_of_class_labels_or_of_a_usual_name(columns, candidates):
    assert TASK.candidates(columns) == candidates
