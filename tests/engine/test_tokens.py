"""Language models without padding, and with a last block for few tokens: as the whole model."""

from __future__ import annotations

import pytest
import torch
from tests.small_language import small_network

from fedelta.engine.tokens import ways_without_padding
from fedelta.models.decoders import decoder_of
from fedelta.models.hub import Backbone
from fedelta.models.token_losses import IGNORED
from fedelta.models.vocabulary import vocabulary_of
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

TRIED = ("llama", "qwen3", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "opt")


def backbone_of(family: str, **fields: object) -> Backbone:
    network = small_network(family, **fields)
    return Backbone(
        network, decoder_of(network, family), extra_inputs={"use_cache": False}, vocabulary=vocabulary_of(network)
    )


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 320, (5, 16), generator=stream(0, "ids"))
    lengths = torch.tensor([16, 5, 9, 12, 7]).unsqueeze(1)
    mask = (torch.arange(16) < lengths).long()
    labels = ids.where((mask == 1) & (torch.arange(16) >= 3), IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("family", TRIED)
def test_sums_and_gradients_of_lanes_are_those_of_a_padded_batch(family: str):
    backbone, lanes = backbone_of(family), Lanes(2)
    spec = Lora(r=2, target_modules=("q", "v", "o", "fc1")).apply(backbone, lanes, stream(1))
    tuned = [backbone.module.get_parameter(name) for name in spec]
    with torch.no_grad():
        for number, tensor in enumerate(tuned):
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=stream(2, number)))
    results = []
    for way in (None, *ways_without_padding(backbone, lanes)):
        # Of the five rows, the first lane has two.
        with lanes.training([2, 3], [stream(3), stream(4)]):
            sums = backbone.logits(inputs()) if way is None else way.sums(inputs())
            results.append((sums.detach(), torch.autograd.grad(sums.sum(), tuned)))
    assert len(results) == 3
    whole = results[0]
    for sums, grads in results[1:]:
        torch.testing.assert_close(sums, whole[0], rtol=1e-4, atol=1e-4)
        for grad, expected in zip(grads, whole[1], strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4)


def test_a_window_of_attention_is_kept():
    backbone = backbone_of("mistral", sliding_window=4)
    (way,) = [way for way in ways_without_padding(backbone, Lanes(1)) if way.last is None]
    with torch.no_grad():
        torch.testing.assert_close(way.sums(inputs()), backbone.logits(inputs()), rtol=1e-4, atol=1e-4)


def test_a_model_that_changes_its_logits_is_left_as_it_is():
    assert ways_without_padding(backbone_of("gemma2"), Lanes(1)) == []


def test_an_attention_that_is_not_chosen_by_name_is_an_error():
    with pytest.raises(TypeError, match="BloomForCausalLM has an attention of its own"):
        ways_without_padding(backbone_of("bloom"), Lanes(1))[0].sums(inputs())


def test_the_model_computes_its_layers_for_tokens_alone():
    backbone = backbone_of("llama")
    rows = []
    backbone.module.model.layers[0].mlp.register_forward_hook(lambda _layer, args, _output: rows.append(len(args[0])))
    backbone.module.model.layers[1].mlp.register_forward_hook(lambda _layer, args, _output: rows.append(len(args[0])))
    ways_without_padding(backbone, Lanes(1))[0].sums(inputs())
    # 16 + 5 + 9 + 12 + 7 tokens; of them 13 + 2 + 6 + 9 + 4 stand before one that is trained on.
    assert rows == [49, 34]
