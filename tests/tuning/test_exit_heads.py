"""Heads behind every block: their answers by hand, names and sizes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.builders import tiny_backbone, tiny_inputs
from torch.nn import functional

from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.exits import exit_blocks, logits_at
from fedelta.tuning.lanes import Lanes


def applied(method: ExitHeads, lanes: int = 1, family: str = "vit") -> tuple[Backbone, ParamSpec]:
    """Tuned tensors differ from lane to lane."""
    backbone = tiny_backbone(family)
    spec = method.apply(backbone, Lanes(lanes), stream(0))
    generator = stream(0, "lanes")
    with torch.no_grad():
        for name in spec:
            parameter = backbone.module.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return backbone, spec


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_head_reads_the_class_token_of_the_model_as_it_was(head: str):
    lanes, method = 3, ExitHeads(head=head, head_width=5)
    backbone, _ = applied(method, lanes)
    inputs = tiny_inputs("vit", 2 * lanes).tensors
    untouched = tiny_backbone().module
    with torch.no_grad():
        logits = logits_at(exit_blocks(backbone.module), lambda: backbone.logits(inputs), {1, 2})
        hidden = untouched.vit.embeddings(inputs["pixel_values"])
        for number in (1, 2):
            hidden = untouched.vit.layers[number - 1](hidden)
            parameters = dict(exit_blocks(backbone.module)[number - 1].exit_head.named_parameters())
            for row in range(2 * lanes):
                x, values = hidden[row, 0], {name: tensor[row // 2] for name, tensor in parameters.items()}
                if head == "mlp":
                    x = functional.layer_norm(x, (16,), values["norm.weight"], values["norm.bias"], 1e-5)
                    x = functional.gelu(values["hidden.weight"] @ x + values["hidden.bias"])
                expected = values["out.weight"] @ x + values["out.bias"]
                torch.testing.assert_close(logits[number][row], expected, rtol=1e-4, atol=1e-5)


def test_names_groups_and_sizes():
    _, spec = applied(ExitHeads(head="mlp", head_width=5))
    endings = ["norm.weight", "norm.bias", "hidden.weight", "hidden.bias", "out.weight", "out.bias"]
    assert list(spec) == [f"vit.layers.{block}.exit_head.{name}" for block in (0, 1) for name in endings]
    assert list(spec.groups) == ["vit.layers.0.exit_head", "vit.layers.1.exit_head"]
    # A norm of 16, 16 x 5 + 5, and 5 x 3 + 3; behind two blocks.
    assert spec.num_parameters == 2 * (32 + 85 + 18)
    # One layer of 16 x 3 + 3.
    assert applied(ExitHeads())[1].num_parameters == 2 * 51


def test_an_exit_learns_in_its_own_head_alone():
    backbone, spec = applied(ExitHeads())
    logits = logits_at(exit_blocks(backbone.module), lambda: backbone.logits(tiny_inputs("vit", 2).tensors), {2})[2]
    grads = torch.autograd.grad(logits.sum(), [backbone.module.get_parameter(n) for n in spec], allow_unused=True)
    assert [grad is None for grad in grads] == [True, True, False, False]


@pytest.mark.parametrize("field", [{"head": "conv"}, {"head_width": 0}])
def test_impossible_values_are_refused(field: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(field))):
        ExitHeads(**field)
