"""Blocks that are computed again in the backward pass: the same numbers, and less memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
from tests.engine.test_tokens import inputs
from tests.small_language import small_network

from fedelta.engine.footprint import kept_bytes
from fedelta.engine.recompute import recomputing
from fedelta.engine.tokens import ways_without_padding
from fedelta.models.decoders import decoder_of
from fedelta.models.hub import Backbone
from fedelta.models.unpadded import attending_within_rows
from fedelta.models.vocabulary import vocabulary_of
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora


def tuned(num_lanes: int = 2) -> tuple[Backbone, Lanes, list[torch.nn.Parameter]]:
    network = small_network("llama", num_hidden_layers=4)
    words = vocabulary_of(network)
    backbone = Backbone(network, decoder_of(network, "llama"), extra_inputs={"use_cache": False}, vocabulary=words)
    lanes = Lanes(num_lanes)
    spec = Lora(r=2, target_modules="all-linear").apply(backbone, lanes, stream(1))
    parameters = [backbone.module.get_parameter(name) for name in spec]
    with torch.no_grad():
        for number, tensor in enumerate(parameters):
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=stream(2, number)))
    return backbone, lanes, parameters


@pytest.mark.parametrize("is_padded", [True, False])
def test_gradients_are_bit_equal(is_padded: bool):
    backbone, lanes, parameters = tuned()
    way = None if is_padded else ways_without_padding(backbone, lanes)[0]
    again = nullcontext if is_padded else partial(attending_within_rows, backbone.module)

    def grads(context: Callable[[], AbstractContextManager[None]]) -> tuple[torch.Tensor, ...]:
        with lanes.training([2, 3], [stream(3), stream(4)]):
            with context():
                sums = backbone.logits(inputs()) if way is None else way.sums(inputs())
            return torch.autograd.grad(sums.sum(), parameters)

    plain = grads(nullcontext)
    recomputed = grads(lambda: recomputing(backbone, lanes, again))
    assert all(map(torch.equal, recomputed, plain))


def test_less_is_kept_for_the_backward_pass():
    backbone, lanes, _ = tuned(1)
    whole = kept_bytes(backbone, inputs())
    with recomputing(backbone, lanes):
        few = kept_bytes(backbone, inputs())
    # Three of four blocks keep their input alone.
    assert few < 0.6 * whole


def test_the_blocks_are_back_afterwards():
    backbone, lanes, _ = tuned()
    before = list(backbone.module.model.layers)
    with recomputing(backbone, lanes):
        assert list(backbone.module.model.layers)[-1] is before[-1]
        assert next(iter(backbone.module.model.layers)) is not before[0]
    assert list(backbone.module.model.layers) == before
