"""Answers before the end, and what they cost."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from tests.inference.exits import ACCUMULATOR, METHODS, predictor_of, random_images

from fedelta.errors import InputError, ModelError
from fedelta.inference import costs
from fedelta.inference.costs import Costs, calibrate, costs_of
from fedelta.inference.predict import Predictor
from fedelta.record.environment import machine
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.exits import exit_blocks
from fedelta.tuning.head import Head

BY_HAND = ((0.5, 0.3, 0.2), (0.8, 0.1, 0.1), (0.1, 0.15, 0.75))  # what exits 1, 2 and 3 say, whatever the image


@pytest.fixture(params=METHODS)
def predictor(request) -> Predictor:
    return predictor_of(METHODS[request.param])


def counted(predictor: Predictor) -> Counter[int]:
    """Exit number to how often its block has run from now on."""
    runs: Counter[int] = Counter()
    for number, block in enumerate(exit_blocks(predictor.backbone.module), start=1):
        block.register_forward_hook(lambda *_, number=number: runs.update([number]))
    return runs


def fixed_heads() -> Predictor:
    """Exits that say BY_HAND."""
    predictor = predictor_of(ExitHeads())
    for block, row in zip(exit_blocks(predictor.backbone.module), BY_HAND, strict=True):
        block.exit_head.out.weight.data.zero_()
        block.exit_head.out.bias.data[0] = torch.tensor(row).log()
    return predictor


@pytest.mark.parametrize(
    ("confidence", "label", "exit", "probability"),
    [(0.4, "cat", 1, 0.5), (0.7, "cat", 2, 0.8), (0.9, "owl", 3, 0.75), (1, "owl", 3, 0.75)],
)
def test_the_first_exit_that_is_sure_answers_and_else_the_last(confidence, label, exit, probability):
    predictor = fixed_heads()
    runs = counted(predictor)
    (result,) = predictor.predict(random_images(1), confidence=confidence)
    assert (result.label, result.exit) == (label, exit)
    assert result.probability == pytest.approx(probability, abs=1e-6)
    assert runs == dict.fromkeys(range(1, exit + 1), 1)


def test_each_example_stops_where_it_is_sure(predictor):
    images = random_images(12)
    by_exit = [predictor.predict(images, exit=number) for number in (1, 2, 3)]
    threshold = sorted(item.probability for item in by_exit[0])[6]  # half of them stop at exit 1
    expected = [
        next((item for item in answers if item.probability >= threshold - 1e-6), answers[-1])
        for answers in zip(*by_exit, strict=True)
    ]
    result = predictor.predict(images, confidence=threshold - 1e-6)
    assert [item.exit for item in result] == [item.exit for item in expected]
    assert len({item.exit for item in result}) > 1
    for one, other in zip(result, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_an_exit_computes_nothing_above_it_and_the_last_is_the_model(predictor):
    images, runs = random_images(3), counted(predictor)
    assert [item.exit for item in predictor.predict(images, exit=2)] == [2, 2, 2]
    assert runs == {1: 1, 2: 1}
    assert predictor.predict(images, exit=3) == predictor.predict(images)
    assert predictor.predict(images, exit=1) != predictor.predict(images, exit=2)


def test_an_answer_runs_one_block_more(predictor):
    (image,), runs = random_images(1), counted(predictor)
    answers = predictor.answers(image)
    assert not runs
    for number in (1, 2, 3):
        result = next(answers)
        assert runs == dict.fromkeys(range(1, number + 1), 1)
        assert result.exit == number
        assert torch.is_grad_enabled()  # the caller's, between two answers
    assert next(answers, None) is None


def test_answers_do_not_disturb_each_other(predictor):
    one, other = random_images(2)
    expected = list(predictor.answers(one)), list(predictor.answers(other))
    first, second = predictor.answers(one), predictor.answers(other)
    result: tuple[list[object], list[object]] = ([], [])
    for _ in range(3):
        result[0].append(next(first))
        predictor.predict([other])  # the whole model, in the middle of two walks
        result[1].append(next(second))
    assert result == expected
    assert [item.exit for item in expected[0]] == [1, 2, 3]
    assert expected[0] == [predictor.predict([one], exit=number)[0] for number in (1, 2, 3)]


def test_a_model_without_exits_says_so():
    predictor = predictor_of(Head())
    images = random_images(1)
    assert predictor.predict(images)[0].exit is None
    for ask in (
        lambda: predictor.predict(images, exit=1),
        lambda: predictor.predict(images, confidence=0.9),
        lambda: predictor.answers(images[0]),
        lambda: calibrate(predictor.backbone),
    ):
        with pytest.raises(ModelError, match=r"ViTForImageClassification has no exits.*\nhint: .*`accumulator`"):
            ask()


@pytest.mark.parametrize("number", [0, -1, 4])
def test_an_exit_that_is_not_there_is_refused(number, predictor):
    with pytest.raises(InputError, match=rf"there is no exit {number}: the model has 3.*\nhint: use 1 to 3"):
        predictor.predict(random_images(1), exit=number)


@pytest.mark.parametrize("confidence", [0, -0.5, 1.01, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(confidence, predictor):
    with pytest.raises(InputError, match=rf"the confidence is {confidence}, expected a probability above 0"):
        predictor.predict(random_images(1), confidence=confidence)


def test_an_exit_and_a_confidence_exclude_each_other(predictor):
    with pytest.raises(TypeError, match="exclude each other"):
        predictor.predict(random_images(1), exit=1, confidence=0.9)


KNOWN = Costs(flops=(10, 20, 30), milliseconds=(1.0, 2.0, 4.0), machine={})


@pytest.mark.parametrize(("budget", "exit"), [(1.0, 1), (1.99, 1), (2.0, 2), (3.9, 2), (4.0, 3), (math.inf, 3)])
def test_a_budget_buys_the_deepest_exit_that_fits(budget, exit):
    assert KNOWN.deepest(budget) == exit


@pytest.mark.parametrize("budget", [0.99, 0, -1, math.nan])
def test_a_budget_below_the_first_exit_is_refused(budget):
    with pytest.raises(InputError, match=r"the first of 3 exits takes 1 ms on this machine.*\nhint: use at least 1.01"):
        KNOWN.deepest(budget)


def test_flops_are_two_for_a_multiplication():
    # 4 patches of 3 x 4 x 4 values and a class token, width 16, MLP of 24:
    embeddings = 2 * 4 * 48 * 16
    block = 2 * (4 * 5 * 16 * 16 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 24)
    head = 2 * 16 * 3
    result = calibrate(predictor_of(ExitHeads()).backbone)
    assert result.flops == tuple(embeddings + number * block + head for number in (1, 2, 3))


def test_milliseconds_rise_with_the_exits_and_belong_to_a_machine():
    backbone = predictor_of(ACCUMULATOR, lanes=3).backbone
    result = calibrate(backbone)
    assert 0 < result.milliseconds[0] <= result.milliseconds[1] <= result.milliseconds[2]
    assert result.machine == machine(torch.device("cpu"))
    assert result.machine["num_threads"] == torch.get_num_threads()


def test_costs_are_measured_once_on_a_machine(tmp_path, monkeypatch):
    backbone, measured = predictor_of(ExitHeads()).backbone, []
    here = machine(torch.device("cpu"))

    def fake(*_: object) -> Costs:
        measured.append(1)
        return KNOWN.model_copy(update={"machine": here})

    monkeypatch.setattr(costs, "calibrate", fake)
    assert [costs_of(tmp_path, backbone).milliseconds for _ in range(2)] == [(1.0, 2.0, 4.0)] * 2
    assert len(measured) == 1
    path = tmp_path / "exits.json"
    kept = json.loads(path.read_text())
    assert kept == {"flops": [10, 20, 30], "milliseconds": [1.0, 2.0, 4.0], "machine": here}
    stale = (
        kept | {"machine": here | {"processor": "another"}},
        kept | {"machine": here | {"num_threads": 99}},
        kept | {"milliseconds": [1.0]},
        {},
    )
    for number, content in enumerate(stale, start=2):
        path.write_text(json.dumps(content))
        assert costs_of(tmp_path, backbone).milliseconds == (1.0, 2.0, 4.0)
        assert len(measured) == number
        assert json.loads(path.read_text()) == kept
