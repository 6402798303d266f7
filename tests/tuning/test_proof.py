"""A tuning method is proved on a few rows: what would be silently wrong is refused, with the size of the difference."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.builders import assert_same_bits, tiny_backbone, tiny_inputs
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.seeds import stream
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel
from fedelta.tuning.prompt import Prompt
from fedelta.tuning.proof import apply_proved

WIDTH = 8
LORA = Lora(r=2, target_modules=("layer",))


class Net(nn.Module):
    """A layer and a head; derived classes say how the layer is used."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).tanh())

    def hidden(self, x: Tensor) -> Tensor:
        return self.layer(x)


class ReadsTheWeight(Net):
    def hidden(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight, self.layer.bias)


class ScalesTheWeight(Net):
    """Calls the layer, and computes with its weight besides."""

    def hidden(self, x: Tensor) -> Tensor:
        return self.layer(x) / self.layer.weight.norm()


class Random(Net):
    def hidden(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.rand(WIDTH)


class LeavesOut(Net):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.spare = nn.Linear(WIDTH, WIDTH)


class OtherInEvaluation(Net):
    """Takes a short cut past its layers when no gradients are needed, as fused kernels do."""

    def hidden(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.layer(x)
        return functional.linear(x, self.layer.weight, self.layer.bias)


def backbone_of(kind: type[Net], layer: nn.Module | None = None) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone(kind(layer or nn.Linear(WIDTH, WIDTH)).eval(), Anatomy(("head",)))


def proved(method: TuningMethod, backbone: Backbone, sample: dict[str, Tensor] | None = None) -> Lanes:
    lanes = Lanes(method.max_lanes or 3)
    sample = sample or {"x": torch.randn(2, WIDTH, generator=stream(0))}
    apply_proved(method, backbone, lanes, stream(0), sample)
    return lanes


@pytest.mark.parametrize(
    ("method", "kind", "problem"),
    [
        (LORA, ReadsTheWeight, "gives other outputs after the method is merged into it"),
        (LORA, ScalesTheWeight, "gives other outputs after the method is merged into it"),
        (LORA, Random, "Random: two calls of the model with the same inputs differ, even in evaluation"),
        (LORA, OtherInEvaluation, "gives other outputs in evaluation than in training"),
        (Bias(), ReadsTheWeight, "size of tensor|shape|fails on x"),
        (Full(), Random, "two calls of the model with the same inputs differ"),
    ],
)
def test_a_method_that_would_be_silently_wrong_is_refused(method: TuningMethod, kind: type[Net], problem: str):
    with pytest.raises(ModelError, match=problem) as raised:
        proved(method, backbone_of(kind))
    assert kind.__name__ in raised.value.message


def test_the_error_names_method_model_and_difference():
    with pytest.raises(ModelError, match=r"'lora' does not fit ReadsTheWeight: .* largest difference is \d\.\de.\d\d"):
        proved(LORA, backbone_of(ReadsTheWeight))


@pytest.mark.parametrize("method", [Head(), LORA, Bias(), Full(), Combined(methods=(LORA, Bias()))])
def test_what_fits_is_applied_and_nothing_else_has_changed(method: TuningMethod):
    backbone, plain = backbone_of(Net), backbone_of(Net)
    plain_lanes, chance = Lanes(method.max_lanes or 3), torch.random.get_rng_state()
    lanes = proved(method, backbone)
    method.apply(plain, plain_lanes, stream(0))
    assert_same_bits(plain.module.state_dict(), backbone.module.state_dict())
    assert (lanes.active, lanes.lengths) == (lanes.num, None)
    assert torch.equal(chance, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("method", "family"),
    [
        (Prompt(num_virtual_tokens=2), "vit"),
        (Adapter(), "bert"),
        (Parallel(), "small-resnet"),
        (Parallel(init="zero"), "resnet"),
        (Full(), "resnet"),
    ],
)
def test_methods_fit_the_families_that_they_are_made_for(method: TuningMethod, family: str):
    backbone, plain = tiny_backbone(family), tiny_backbone(family)
    proved(method, backbone, tiny_inputs(family, 2).tensors)
    method.apply(plain, Lanes(method.max_lanes or 3), stream(0))
    assert_same_bits(plain.module.state_dict(), backbone.module.state_dict())


def test_tensors_that_no_answer_depends_on_are_named(caplog):
    with caplog.at_level(logging.WARNING, "fedelta"):
        proved(Lora(r=2, target_modules=("spare", "layer")), backbone_of(LeavesOut))
    assert "the outputs do not depend on 2 of 6 tuned tensors ('spare.lora_A', 'spare.lora_B')" in caplog.text


class LessTheMean(Net):
    def hidden(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def test_a_model_whose_answer_depends_on_the_batch_is_named(caplog):
    with caplog.at_level(logging.WARNING, "fedelta"):
        proved(Head(), backbone_of(LessTheMean))
        proved(Head(), backbone_of(Net))
    [record] = caplog.records
    assert "LessTheMean gives other outputs for a row if other rows are in its batch" in record.getMessage()


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Activated(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Standardised(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = Activated(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(x))).mean((2, 3)))


IMAGES = {"x": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            Lora(r=1, target_modules="all-conv"),
            "leaves out `first`: the layer is a Standardised that overrides `forward`",
        ),
        (Parallel(), "the norm `norm` is not tuned: it is a Activated that overrides `forward`"),
        (Full(), "the norm `norm` is not tuned"),
    ],
)
def test_layers_that_do_more_than_their_class_are_left_alone_with_a_word(method: TuningMethod, words: str, caplog):
    backbone = Backbone(Images().eval(), Anatomy(("head",)))
    with caplog.at_level(logging.WARNING, "fedelta"):
        proved(method, backbone, IMAGES)
    assert words in caplog.text
    assert type(backbone.module.first) is Standardised
    assert type(backbone.module.norm) is Activated


@pytest.mark.parametrize(
    ("method", "layer", "problem"),
    [
        (LORA, parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), "to `layer`: it is parametrized"),
        (Lora(r=1, target_modules=("first",)), None, "cannot add a pair to `first`: it is a Standardised"),
        (Bias(), parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)), "cannot tune `layer.bias`"),
    ],
)
def test_they_are_refused_by_name_where_they_are_asked_for(method: TuningMethod, layer: nn.Module | None, problem: str):
    backbone = backbone_of(Net, layer) if layer else Backbone(Images().eval(), Anatomy(("head",)))
    with pytest.raises(ModelError, match=problem):
        proved(method, backbone, None if layer else IMAGES)


def test_a_head_that_does_more_than_its_class_is_refused():
    backbone = backbone_of(Net)
    backbone.module.head = parametrizations.weight_norm(nn.Linear(WIDTH, 3))
    with pytest.raises(ModelError, match="the head of Net cannot be tuned: `head` is parametrized"):
        proved(Head(), backbone)


class Encoder(nn.Module):
    """PyTorch's own transformer, whose fused kernel in evaluation calls none of its layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


ENCODED = {"x": torch.linspace(-1, 1, 2 * 4 * WIDTH).sin().view(2, 4, WIDTH), "padding": torch.eye(4).bool()[-2:]}


@pytest.mark.parametrize("targets", [("linear1",), ("layers.1.linear2",), "all-linear"])
def test_the_fused_kernel_of_pytorchs_encoder_does_not_bypass_what_is_tuned(targets: tuple[str, ...] | str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Backbone(Encoder().eval(), Anatomy(("head",), blocks="encoder.layers"))
    lanes = proved(Lora(r=2, target_modules=targets), backbone, ENCODED)
    lanes.active = 1
    for name, parameter in backbone.module.named_parameters():
        if name.endswith("lora_B"):
            parameter.data += 1
    with torch.no_grad():
        evaluated = backbone.logits(ENCODED)
    trained = backbone.logits(ENCODED).detach()
    torch.testing.assert_close(evaluated, trained)
    assert not any("out_proj" in name and "lora" in name for name, _ in backbone.module.named_parameters())


@pytest.mark.parametrize("method", [Bias(), Lora(r=2, target_modules=("out_proj",))])
def test_the_projection_that_an_attention_never_calls_is_left_out(method: TuningMethod):
    backbone = Backbone(Encoder().eval(), Anatomy(("head",)))
    if isinstance(method, Lora):
        with pytest.raises(ModelError, match="'out_proj' matches no"):
            proved(method, backbone, ENCODED)
        return
    proved(method, backbone, ENCODED)
    assert backbone.module.get_parameter("encoder.layers.0.self_attn.out_proj.bias").shape == (WIDTH,)


def test_a_method_that_only_its_head_can_learn_with_is_refused():
    class PassesBy(Net):
        def hidden(self, x: Tensor) -> Tensor:
            return x

    backbone = Backbone(PassesBy(nn.Linear(WIDTH, WIDTH)), Anatomy(("head",)))
    inputs = {"x": torch.randn(3, WIDTH, generator=stream(0))}
    with pytest.raises(
        ModelError,
        match=r"the outputs depend on none of its tensors outside of the head .*only the head would be tuned",
    ):
        apply_proved(LORA, backbone, Lanes(1), stream(0), inputs)
