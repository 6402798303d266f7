"""Frozen tensors that are rounded once under autocast: the same bits, and nothing is rounded that others read."""

from __future__ import annotations

import pytest
import torch
from tests.builders import assert_close, assert_same_bits, deltas_of, jobs_for, start_of, tiny_data, tiny_engine
from torch import Tensor, nn

from fedelta.engine.half import Half, _only_rounded
from fedelta.engine.lanes import LaneEngine
from fedelta.tuning.full import Full
from fedelta.tuning.lora import Lora


def engine_of(family: str = "vit", method=None) -> LaneEngine:
    return tiny_engine(method or Lora(), tiny_data(family), family=family, lanes=2, compute_dtype="bfloat16")[0]


def half_of(engine: LaneEngine) -> Half:
    half = engine._model._half
    assert half is not None
    return half


class Reads(nn.Module):
    """A norm that a linear layer reads, and the sum as well if it `adds`."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.norm, self.linear, self.adds = nn.LayerNorm(4).requires_grad_(False), nn.Linear(4, 4), adds

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return self.linear(normed[:, :1]) + (normed[:, :1] if self.adds else 0)


@pytest.mark.parametrize(("adds", "num_rounded"), [(False, 1), (True, 0)])
def test_a_norm_is_rounded_if_only_what_rounds_it_reads_it(adds: bool, num_rounded: int):
    module = Reads(adds)

    def outputs() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [module(torch.rand(2, 3, 4))]

    assert len(_only_rounded(module, outputs)) == num_rounded


def test_a_model_with_norms_before_its_layers_has_all_of_them_rounded():
    half = half_of(engine_of())
    assert {weight.name for weight in half.weights} == {"weight", "bias"}
    assert len(half.norms) == 5  # two in each of two blocks, and the last


def test_a_residual_that_a_norm_makes_stays_float32():
    assert len(half_of(engine_of("bert")).norms) <= 1


@pytest.mark.parametrize("family", ["vit", "bert", "resnet"])
def test_rounded_weights_train_to_the_same_bits(family: str):
    method = Lora(target_modules="all-conv") if family == "resnet" else Lora()
    engine = engine_of(family, method)
    start = start_of(engine)
    engine._model._half = Half(half_of(engine).weights, ())
    once = deltas_of(engine, jobs_for((6, 3, 5), start))
    engine._model._half = None
    for client, delta in deltas_of(engine, jobs_for((6, 3, 5), start)).items():
        assert_same_bits(once[client], delta)


def test_rounded_norms_train_to_nearly_the_same():
    engine = engine_of()
    start = start_of(engine)
    once = deltas_of(engine, jobs_for((6, 3, 5), start))
    engine._model._half = None
    for client, delta in deltas_of(engine, jobs_for((6, 3, 5), start)).items():
        assert_close(once[client], delta, rtol=0.05, atol=1e-3)


def test_trained_tensors_are_not_rounded():
    assert not half_of(engine_of(method=Full())).weights


def test_the_model_is_as_it_was_after_a_round():
    engine = engine_of()
    module = engine._model.backbone.module
    before = {name: (id(tensor), tensor.dtype) for name, tensor in module.named_parameters()}
    deltas_of(engine, jobs_for((6, 3), start_of(engine)))
    assert {name: (id(tensor), tensor.dtype) for name, tensor in module.named_parameters()} == before
    assert not any(layer._forward_hooks for layer in module.modules())
