"""Frozen layers in few bits: found, tried, and never merged into. The libraries themselves are optional."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.small_language import write_model
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.hub import build
from fedelta.models.layers import is_linear, is_quantised, matrix_shape
from fedelta.models.quantised import check_layers, plain_weight, quantiser
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.settings import Context
from fedelta.tasks.classification import Classification
from fedelta.tasks.language import Language
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora, LoraLinear
from fedelta.tuning.proof import apply_proved


class Few(nn.Parameter):
    """A weight as a library for quantised ones has it, but in full precision."""

    __module__ = "torchao.fake"


def quantised(width: int = 4, out: int = 3) -> nn.Linear:
    layer = nn.Linear(width, out)
    torch.nn.init.normal_(layer.weight, generator=stream(0))
    layer.weight = Few(layer.weight.detach(), requires_grad=False)
    layer.bias.requires_grad_(False)
    return layer


class Biased(nn.Linear):
    """Gives a row another output in a batch than alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * len(x)


class Wrong(nn.Linear):
    """Lets half of the gradient through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(0.5 * x + 0.5 * x.detach())


def test_a_quantised_layer_is_linear_and_has_the_size_of_its_features():
    layer = quantised()
    assert is_quantised(layer)
    assert is_linear(layer)
    assert matrix_shape(layer) == (3, 4)
    assert not is_quantised(nn.Linear(2, 2))


def test_its_weight_is_what_it_makes_of_the_unit_vectors():
    layer = quantised()
    torch.testing.assert_close(plain_weight(layer), layer.weight.detach().as_subclass(torch.Tensor))


def test_a_layer_that_computes_what_it_should_passes():
    check_layers(nn.Sequential(quantised(), quantised(3, 2)))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(Biased, "gives another output for a row in a batch than alone"), (Wrong, "gives a wrong gradient of its input")],
)
def test_a_layer_that_does_not_is_refused_by_name(kind: type[nn.Linear], problem: str):
    layer = quantised()
    layer.__class__ = kind
    with pytest.raises(ModelError, match=f"the quantised layer `0` of Sequential {problem}"):
        check_layers(nn.Sequential(layer))


def test_a_pair_beside_it_computes_as_beside_a_plain_layer_and_is_not_merged():
    layer, lanes = quantised(), Lanes(2)
    plain = nn.Linear(4, 3)
    plain.load_state_dict({name: value.as_subclass(torch.Tensor) for name, value in layer.state_dict().items()})
    pairs = [LoraLinear(lanes, base, 2, 0.5, generator=stream(1)) for base in (layer, plain.requires_grad_(False))]
    x, results = torch.randn(4, 4, generator=stream(2)), []
    for pair in pairs:
        nn.init.normal_(pair.lora_B, generator=stream(3))
        y = pair(x)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), [pair.lora_A, pair.lora_B])))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    assert pairs[0].merged() is pairs[0]


def test_an_absent_library_is_named(monkeypatch):
    monkeypatch.setattr("fedelta.models.quantised.find_spec", lambda _: None)
    with pytest.raises(
        ModelError, match=r"`model.quantization` is 'nf4', which needs bitsandbytes; it is not installed"
    ):
        quantiser("nf4")


@pytest.mark.parametrize(
    ("fields", "task", "tuning", "problem"),
    [
        ({"quantization": "int8"}, Classification(), Lora(), "`model.quantization` is for language models, but"),
        ({"dtype": "bfloat16"}, Language(), Adapter(), "`model.dtype` needs tuning method 'lora', found 'adapter'"),
        ({"quantization": "int8", "dtype": "bfloat16"}, Language(), Lora(), "computes in float32, but `model.dtype`"),
        ({"quantization": "int8", "pretrained": False}, Language(), Lora(), "needs weights of a checkpoint"),
    ],
)
def test_settings_that_do_not_go_together_are_told(fields: dict, task: object, tuning: object, problem: str):
    source = ModelSource(source="bundled:words-micro", **fields)
    (told,) = source.problems(Context({"task": task, "tuning": tuning}))
    assert problem in told


def test_a_checkpoint_that_is_quantised_is_refused(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"quantization_config": {"quant_method": "gptq", "bits": 4},', 1))
    with pytest.raises(ModelError, match=r"are quantised \(gptq\), expected floating-point numbers"):
        build(ModelSource(source=str(folder)), (), seed=0, task=Language())


@pytest.mark.parametrize(("choice", "library", "error"), [("int8", "torchao", 0.1), ("nf4", "bitsandbytes", 0.6)])
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_a_model_can_be_stored_in_few_bits_and_tuned(choice: str, library: str, error: float, tmp_path: Path):
    pytest.importorskip(library)
    folder = write_model(tmp_path / "model", hidden_size=64)
    few = build(ModelSource(source=str(folder), quantization=choice), (), seed=0, task=Language())
    plain = build(ModelSource(source=str(folder)), (), seed=0, task=Language())
    inputs = plain.modality.export_inputs(3, 16, stream(0))
    with torch.no_grad():
        gap = (few.logits(inputs) - plain.logits(inputs)).abs().max() / plain.logits(inputs).abs().max()
    assert 0 < float(gap) < error
    spec = apply_proved(Lora(r=2), few, Lanes(2), stream(1), inputs)
    assert len(spec) == 8


def test_weights_in_half_precision_have_pairs_in_float32(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    backbone = build(ModelSource(source=str(folder), dtype="bfloat16"), (), seed=0, task=Language())
    assert backbone.module.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    inputs = backbone.modality.export_inputs(3, 16, stream(0))
    spec = apply_proved(Lora(r=2), backbone, Lanes(2), stream(1), inputs)
    assert {backbone.module.get_parameter(name).dtype for name in spec} == {torch.float32}
    assert backbone.module.model.layers[0].self_attn.k_proj.weight.dtype == torch.bfloat16
    backbone.logits({name: tensor[:2] for name, tensor in inputs.items()}).sum().backward()
    grads = [backbone.module.get_parameter(name).grad for name in spec if name.endswith("lora_B")]
    assert all(grad is not None and bool(grad.any()) for grad in grads)
