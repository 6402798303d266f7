"""Trials of example-level privacy and of the local model find what is wrong with a site, and nothing else."""

from __future__ import annotations

import pytest
import torch

from fedelta.auditing.bounds import Measured, measured
from fedelta.auditing.examples import ExampleTrials
from fedelta.auditing.locals import LocalTrials
from fedelta.auditing.model import model_for
from fedelta.auditing.streams import Streams
from fedelta.params import Params, ParamSpec
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import Release
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

DELTA = 1e-5
MODEL, _ = model_for(Bias())


def of_examples(*, noise: float = 1.0, rows: int = 1, multiplier: float = 1.0, **settings: object) -> Measured:
    """One step on a sample of one in `rows`."""
    privacy = Privacy(unit="example", noise_multiplier=multiplier, clipping_norm=0.1, **settings)
    trials = ExampleTrials(MODEL, privacy, multiplier, rows, batch_size=1, num_rounds=1)
    return measured(trials.trials(100, Streams(0, noise=noise)), {Release(multiplier, 1 / rows): 1}, DELTA, 0.95)


def of_the_local_model(num: int = 200, *, noise: float = 1.0, **settings: object) -> Measured:
    """One upload with noise of deviation 2 C: two deltas differ by 2 C."""
    privacy = Privacy(unit="local", noise_multiplier=2.0, clipping_norm=0.1, **settings)
    trials = LocalTrials(MODEL.small_spec, privacy, 2.0, num_rounds=1).trials(num, Streams(0, noise=noise))
    return measured(trials, {Release(1.0): 1}, DELTA, 0.95)


@pytest.mark.parametrize("clipping", ["flat", "per-group"])
def test_right_training_is_not_blamed(clipping: str):
    assert not of_examples(clipping=clipping).exceeds


@pytest.mark.parametrize("noise", [0.4, 0.1, 0.0])
def test_too_little_noise_in_training_is_noticed(noise: float):
    assert of_examples(noise=noise).exceeds


def test_gradients_that_are_not_clipped_are_noticed(monkeypatch: pytest.MonkeyPatch):
    def unlimited(grads_AP: torch.Tensor, *_: object) -> torch.Tensor:
        return grads_AP.double().sum(0)

    monkeypatch.setattr("fedelta.engine.dp_sgd.clipped_sum", unlimited)
    assert of_examples().exceeds


def test_batches_that_are_no_samples_are_noticed(monkeypatch: pytest.MonkeyPatch):
    # Every row is in every batch, but only one in three should be.
    monkeypatch.setattr(
        "fedelta.engine.lanes.poisson_batches", lambda rows, rate, num_steps, _: iter([rows] * num_steps)
    )
    assert of_examples(rows=3, multiplier=0.5).exceeds


@pytest.mark.parametrize("clipping", ["flat", "per-group"])
def test_the_right_local_model_is_not_blamed(clipping: str):
    assert not of_the_local_model(clipping=clipping).exceeds


@pytest.mark.parametrize("noise", [0.5, 0.1, 0.0])
def test_too_little_noise_in_the_local_model_is_noticed(noise: float):
    assert of_the_local_model(noise=noise).exceeds


def test_deltas_that_are_not_clipped_are_noticed(monkeypatch: pytest.MonkeyPatch):
    def unlimited(delta: Params, *_: object) -> Params:
        return {name: tensor.double() for name, tensor in delta.items()}

    monkeypatch.setattr("fedelta.privacy.local.clipped", unlimited)
    assert of_the_local_model().exceeds


def test_secret_noise_is_tried_by_the_same_code():
    privacy = Privacy(unit="local", noise_multiplier=2.0)
    trials = LocalTrials(MODEL.small_spec, privacy, 2.0, num_rounds=1)
    results = [
        measured(trials.trials(100, Streams(0, is_secret=True, noise=noise)), {Release(1.0): 1}, DELTA, 0.95)
        for noise in (1.0, 0.0)
    ]
    assert [result.exceeds for result in results] == [False, True]


def test_another_method_takes_the_place_of_one_that_fits_no_small_model():
    model, notes = model_for(Lora(target_modules=("nowhere",)))
    assert notes == ("tuning method 'lora' does not fit the small model of an audit; LoRA takes its place.",)
    assert isinstance(model.spec, ParamSpec)


def test_dropout_is_switched_off_because_gradients_must_be_the_same_in_every_step():
    model, notes = model_for(Combined(methods=(Prompt(), Bias())))
    assert not notes
    assert "dropout=0.0" in repr(model.tuning)
