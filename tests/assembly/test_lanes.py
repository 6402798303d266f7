"""How many lanes a language model gets on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.pretraining.test_words import RECIPE

from fedelta.assembly.lanes import with_tokens
from fedelta.config import Config, load_config
from fedelta.models.hub import Backbone, build
from fedelta.tasks.language import Language


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    model = build(load_config(RECIPE).model, (), seed=0, task=Language())
    return replace(model, modality=replace(model.modality, max_length=64))


def config(*overrides: str) -> Config:
    return load_config(RECIPE, ("runtime.device=cpu", *overrides))


def test_the_tokens_of_all_lanes_stay_in_the_cache(backbone: Backbone):
    # 8 rows of 64 tokens with 128 features are 2^16 numbers: 4 lanes are 2^18.
    assert with_tokens(config(), backbone, 8, batch_size=8) == 4
    assert with_tokens(config(), backbone, 8, batch_size=64) == 1


def test_fewer_lanes_and_lanes_of_the_user_stay(backbone: Backbone):
    assert with_tokens(config(), backbone, 2, batch_size=8) == 2
    assert with_tokens(config("runtime.lanes=8"), backbone, 8, batch_size=8) == 8


def test_other_models_keep_their_lanes(backbone: Backbone):
    assert with_tokens(config(), replace(backbone, modality=None), 8, batch_size=8) == 8
