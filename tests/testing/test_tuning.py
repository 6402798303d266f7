"""A tuning method that breaks a contract is told by it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field
from tests.testing.broken import broken
from torch import Generator, Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.testing import check
from fedelta.tuning.base import merge_head, misfit, replace, role_paths, specification, tune_head, untouched
from fedelta.tuning.lanes import Lanes, Wrapper, lane_parameter


class Scaled(Wrapper):
    def __init__(self, lanes: Lanes, base: nn.Module, generator: Generator) -> None:
        super().__init__(lanes, base)
        self.scale = self.start(base.get_parameter("weight")[0])
        self.draw(generator)

    def start(self, like: Tensor) -> nn.Parameter:
        return lane_parameter(self.lanes, torch.ones_like(like))

    def draw(self, generator: Generator) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x * self.lanes.repeat(self.scale, x).unsqueeze(1))


class Scale(Settings):
    """One factor for every feature inside of every MLP, and the head."""

    name: Literal["scale"] = "scale"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True
    wrapper: ClassVar[type[Scaled]] = Scaled

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        layers, tensors = untouched(backbone.module), {}
        for path in role_paths(backbone, "fc2"):
            now, layer = layers[path]
            replace(backbone.module, now, self.wrapper(lanes, layer, generator))
            tensors[f"{now}.scale"] = TensorSpec((layer.in_features,), now)
        if not tensors:
            raise misfit(self.name, backbone, "it has no blocks with an MLP that are known")
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, Scaled):
                layer.base.get_parameter("weight").data *= layer.scale[0].detach()
                replace(backbone.module, path, layer.base)
        merge_head(backbone)


class Nothing(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        return ParamSpec({})


class Loose(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        spec = super().apply(backbone, lanes, generator)
        next(iter(backbone.module.parameters())).requires_grad_(True)
        return spec


class Frozen(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        spec = super().apply(backbone, lanes, generator)
        backbone.module.get_parameter(spec.names[0]).requires_grad_(False)
        return spec


class Phantom(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        spec = super().apply(backbone, lanes, generator)
        return ParamSpec(spec.tensors | {"nowhere.scale": TensorSpec((2,), "nowhere")})


class Backward(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        spec = super().apply(backbone, lanes, generator)
        return ParamSpec(dict(reversed(spec.tensors.items())))


class Misgrouped(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        spec = super().apply(backbone, lanes, generator)
        return ParamSpec({name: dataclasses.replace(item, group="all") for name, item in spec.tensors.items()})


class Numbered(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        spec = super().apply(backbone, lanes, generator)
        group = f"lanes {lanes.num}"
        return ParamSpec({name: dataclasses.replace(item, group=group) for name, item in spec.tensors.items()})


class Laneless(Scaled):
    def start(self, like: Tensor) -> nn.Parameter:
        return nn.Parameter(torch.ones_like(like))


class OnTheProcessor(Scaled):
    def start(self, like: Tensor) -> nn.Parameter:
        return lane_parameter(self.lanes, torch.ones(like.shape))


class OtherLanes(Scaled):
    def start(self, like: Tensor) -> nn.Parameter:
        lanes = torch.arange(self.lanes.num, device=like.device).float().unsqueeze(1)
        return nn.Parameter(torch.ones_like(like) + 0.1 * lanes)


class Doubled(Scaled):
    def start(self, like: Tensor) -> nn.Parameter:
        return lane_parameter(self.lanes, 2 * torch.ones_like(like))


class GlobalDraw(Scaled):
    def start(self, like: Tensor) -> nn.Parameter:
        return lane_parameter(self.lanes, 1 + 1e-3 * torch.rand(like.shape).to(like.device))


class Projecting(Scaled):
    """With frozen noise that no specification names."""

    def draw(self, generator: Generator) -> None:
        self.register_buffer("noise", torch.rand(self.scale.shape[1:], generator=generator).to(self.scale.device))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + ((self.lanes.repeat(self.scale, x).unsqueeze(1) - 1) * self.noise).mean())


class Mixing(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Counting(Scaled):
    """Otherwise with more lanes than one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0.2 * (self.lanes.num - 1))


class Ageing(Scaled):
    def draw(self, generator: Generator) -> None:
        self.age = 0

    def forward(self, x: Tensor) -> Tensor:
        self.age += self.lanes.lengths is not None
        return super().forward(x) * (1 + 1e-3 * self.age)


class Remembering(Scaled):
    """A buffer that changes in training."""

    def draw(self, generator: Generator) -> None:
        self.register_buffer("steps", torch.zeros((), device=self.scale.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.lanes.lengths is not None:
            self.steps += 1
        return super().forward(x)


class Detached(Scaled):
    """Without a gradient under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.detach() * 2 if torch.is_autocast_enabled("cpu") else y


def using(kind: type[Scaled]) -> Scale:
    """The method with another module in every MLP."""

    class Using(Scale):
        wrapper: ClassVar[type[Scaled]] = kind

    Using.__name__ = kind.__name__
    return Using()


class Unmerged(Scale):
    def merge(self, backbone: Backbone) -> None:
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, Scaled):
                replace(backbone.module, path, layer.base)
        merge_head(backbone)


class HalfMerged(Scale):
    def merge(self, backbone: Backbone) -> None:
        merge_head(backbone)


class Modest(Scale):
    merges: ClassVar[bool] = False


class Forgetful(Scale):
    factor: float = Field(default=1.0, exclude=True)


class Picky(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        raise ModelError("not this one")


class Failing(Scale):
    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        return {}["no such key"]


IS_PARAMETER = "every tensor of the specification is a parameter with or without a lane axis"
ASKS = "what asks for a gradient is what the specification trains"
DRAWS = "it draws from the generator that it gets"
MERGED = "the merged model answers as lane zero"


@pytest.mark.parametrize(
    ("method", "sentence", "problem"),
    [
        (Nothing(), "apply gives a specification of at least one tensor", "Nothing is tuned"),
        (Loose(), ASKS, "1 parameters are not frozen and not specified, first `vit.embeddings.cls_token`"),
        (Frozen(), ASKS, "1 tensors are specified and frozen, first `vit.layers.0.mlp.fc2.scale`"),
        (Phantom(), IS_PARAMETER, "The edited model has no parameter `nowhere.scale`"),
        (using(Laneless), IS_PARAMETER, "has the shape (24,) in a model with 3 lanes, expected (3, 24)"),
        (Backward(), "names come in the order of the model", "`specification` sorts them"),
        (Misgrouped(), "a group is named after the layer of one of its tensors", "The group 'all' holds"),
        (Numbered(), "the specification does not depend on the number of lanes", "With one lane it is"),
        (using(OnTheProcessor), "a model without memory has the same specification", "use the device of a layer"),
        (using(GlobalDraw), DRAWS, "draws from the global generator of torch"),
        (using(OtherLanes), "every lane starts with the same values", "start with different values"),
        (using(Doubled), "the model starts with the answers that it had", "It says `starts_as_base`, but"),
        (using(Mixing), "clients can train in lanes without mixing", "would mix them"),
        (
            using(Counting),
            "lanes give what a plain loop gives client after client",
            "differs between lanes and a plain",
        ),
        (using(Ageing), "a used engine gives the same bits as a fresh one", "Trained once more"),
        (using(Remembering), "training changes nothing but what is specified", "mlp.fc2.steps` differs"),
        (using(Detached), "in half precision a step goes nearly the same way", "expected above 0.98"),
        (Unmerged(), MERGED, "The merged model gives other answers"),
        (HalfMerged(), MERGED, "the model does not get its own names and shapes back"),
        (Modest(), MERGED, "It says `merges = False`, but it does"),
        (
            using(Projecting),
            "what was saved gives the same answers when it is loaded",
            "The loaded model gives other",
        ),
        (Forgetful(factor=2.0), "its settings are read back as they were written", "comes back as Forgetful("),
        (Picky(), "it fits one of the small models", "It refuses all of ['vit']"),
        (
            Failing(),
            "apply gives a specification of at least one tensor",
            "KeyError: 'no such key' (test_tuning.py, line",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Scale) else "",
)
def test_a_broken_tuning_method_breaks_its_contract(method: Scale, sentence: str, problem: str):
    assert problem in broken(method, only=sentence)[sentence]


def test_a_tuning_method_that_keeps_every_contract_passes():
    check(Scale)
