from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from fedelta.deployment.run.measures import SiteMeasures, read_sums
from fedelta.errors import PayloadError
from fedelta.tasks.classification import Classification
from fedelta.tasks.language import Language


class Sites:
    """Answers of sites, as `Remote.measure` gives them."""

    def __init__(self, **answers: Mapping[str, Any]) -> None:
        self.answers = answers

    def measure(self, params: object, *, with_answers: bool) -> Mapping[str, Mapping[str, Any]]:
        self.asked_for_answers = with_answers
        return self.answers


def measures_of(**answers: Mapping[str, Any]) -> SiteMeasures:
    return SiteMeasures(Sites(**answers), Classification())  # type: ignore[arg-type]


def answer(correct: float, loss: float, num_examples: int, **other: object) -> dict[str, Any]:
    sums = {"accuracy": [correct, num_examples], "loss_nats": [loss, num_examples], **other}
    return {"sums": [sums], "num_examples": num_examples}


def test_measures_of_sites_are_those_of_all_their_rows_together():
    sites = measures_of(berlin=answer(9, 3.0, 10), hamburg=answer(15, 12.0, 30))
    evaluation = sites.evaluate({})
    assert evaluation is not None
    # (9 + 15) / (10 + 30) = 0.6, not the mean of 0.9 and 0.5; (3 + 12) / 40 = 0.375.
    assert evaluation.measures == {"accuracy": 0.6, "loss_nats": 0.375}
    assert sites.records["hamburg"] == {"measures": {"accuracy": 0.5, "loss_nats": 0.4}, "num_test_examples": 30}


def test_sites_tell_how_good_the_answers_of_a_language_model_are():
    totals = {"test_loss": [6.0, 4], "exact_match": [1, 2], "rouge_l": [1.5, 2]}
    more = {"test_loss": [2.0, 4], "exact_match": [2, 2], "rouge_l": [2.0, 2]}
    sites = Sites(berlin={"sums": [totals], "num_examples": 3}, hamburg={"sums": [more], "num_examples": 3})
    evaluation = SiteMeasures(sites, Language()).evaluate({}, with_answers=True)
    assert sites.asked_for_answers
    assert evaluation is not None
    # (6 + 2) / (4 + 4) = 1, (1 + 2) / (2 + 2) = 0.75, (1.5 + 2) / 4 = 0.875.
    measures = {"test_loss": 1.0, "perplexity": math.e, "exact_match": 0.75, "rouge_l": 0.875}
    assert evaluation.measures == pytest.approx(measures)


def test_without_an_answer_there_are_no_measures():
    assert measures_of().evaluate({}) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "`sums` is no list of sums at each exit"),
        ({"sums": []}, "`sums` is no list of sums at each exit"),
        ({"sums": [7], "num_examples": 1}, "`sums` do not map names to a sum and its weight"),
        ({"sums": [{"accuracy": 1}], "num_examples": 1}, "`sums` has 1 for 'accuracy', expected a sum and its weight"),
        ({"sums": [{"accuracy": [True, 1]}], "num_examples": 1}, "`sums` has"),
        ({"sums": [{"accuracy": [1.0, -1]}], "num_examples": 1}, "`sums` has"),
        ({"sums": [{"accuracy": [float("inf"), 1]}], "num_examples": 1}, "`sums` has"),
        ({"sums": [{"accuracy": [10**400, 1]}], "num_examples": 1}, "`sums` has"),
        ({"sums": [{"accuracy": [1e308, 1]}], "num_examples": 1}, "`sums` has"),
        ({"sums": [{"accuracy": [1.0, 10**400]}], "num_examples": 1}, "`sums` has"),
        ({"sums": [{}], "num_examples": 0}, "`num_examples` is 0, expected a whole number of 1 or more"),
    ],
)
def test_an_answer_of_another_form_is_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(PayloadError, match=message):
        read_sums(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sums": [{"accuracy": [1.0, 2]}], "num_examples": 2},
        answer(1, 1.0, 2, accuracy=[0.0, 0]),
        answer(1, 1.0, 2) | {"sums": [{"accuracy": [1, 2], "loss_nats": [1, 2]}] * 2},
        {"sums": "all"},
    ],
    ids=["no loss", "no weight", "two exits", "a text"],
)
def test_a_site_whose_sums_cannot_be_used_is_named_and_left_out(
    wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    sites = measures_of(bonn=wrong, kiel=answer(9, 3.0, 10))
    evaluation = sites.evaluate({})
    assert evaluation is not None
    assert evaluation.measures == {"accuracy": 0.9, "loss_nats": 0.3}
    assert list(sites.records) == ["kiel"]
    assert "site 'bonn': its measures cannot be used" in caplog.text
