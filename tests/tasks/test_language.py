from __future__ import annotations

import math

import pytest
import torch

from fedelta.engine.work import lane_means
from fedelta.errors import InputError
from fedelta.tasks.details import Answered
from fedelta.tasks.language import Language, TokenCounts, compared, rouge_l
from fedelta.tasks.targets import TargetColumn

TASK = Language()
OUTPUTS, COUNTS = torch.tensor([[6.0], [1.0]]), torch.tensor([3.0, 1.0])


def test_the_loss_of_a_row_is_the_mean_over_its_tokens():
    assert TASK.losses(OUTPUTS, COUNTS).tolist() == [2.0, 1.0]


def test_a_row_counts_as_often_as_it_has_tokens():
    # (6 + 1) / (3 + 1), as over all tokens of the batch.
    assert lane_means(TASK.losses(OUTPUTS, COUNTS), [2], TASK.weights(COUNTS)).tolist() == [1.75]


def test_loss_and_perplexity_are_over_all_tokens():
    values = TASK.values(TASK.sums(OUTPUTS, COUNTS))
    assert values == {"test_loss": 1.75, "perplexity": pytest.approx(math.exp(1.75))}


def test_the_perplexity_of_a_hopeless_model_is_a_number():
    assert math.isfinite(TASK.values(TASK.sums(torch.tensor([[1e6]]), torch.tensor([1.0])))["perplexity"])


def test_details_have_the_measures_of_each_client():
    answered = [Answered(torch.tensor([0, 1]), OUTPUTS, COUNTS)]
    details = TASK.details(answered, (), torch.tensor([4, 5]))
    assert details.measures["test_loss"] == 1.75
    assert {client: values["test_loss"] for client, values in details.by_client.items()} == {4: 2.0, 5: 1.0}


@pytest.mark.parametrize(
    ("answer", "response", "score"),
    [
        ("the cat", "the cat", 1.0),
        ("The cat!", "the cat", 1.0),
        # Two of the words are in both, in this order: 2 * 2 / (3 + 3).
        ("police kill the", "police the gunman", 2 / 3),
        ("a", "b", 0.0),
        ("", "b", 0.0),
        ("", "", 1.0),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(answer: str, response: str, score: float):
    assert rouge_l(answer, response) == pytest.approx(score)


def test_exact_match_ignores_spaces_only():
    sums = compared([" a  b", "A b"], ["a b", "a b"])
    assert sums.mean("exact_match") == 0.5


def test_rows_that_are_no_dialogues_are_told_by_kind_with_the_first_row():
    column = TargetColumn("dialogue", "training set", [{"prompt": "a", "response": ""}, "text", None, None])
    assert TASK.targets(column, None).problems == (
        "training set, 1 dialogue: has an empty response; row 0 (from 0)",
        "training set, 2 dialogues: is empty; first row 2 (from 0)",
    )


def test_counts_are_selected_and_fetched_by_row():
    counts = TokenCounts(COUNTS)
    assert counts.select(torch.tensor([1])).fetch(torch.tensor([0])).tolist() == [1.0]


def test_there_is_no_confidence():
    with pytest.raises(InputError, match="a language model gives no confidence"):
        TASK.confidence(OUTPUTS)


def test_only_texts_have_language_models():
    assert TASK.loader("image") is None
    loader = TASK.loader("text")
    assert loader is not None
    assert (loader.auto_class, loader.peft_task) == ("AutoModelForCausalLM", "CAUSAL_LM")
