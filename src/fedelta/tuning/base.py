"""What a tuning method is, and the few moves that all of them make on a model."""

from __future__ import annotations

from typing import Protocol

from torch import Generator, nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.tuning.lanes import LaneLinear, Lanes


class TuningMethod(Protocol):
    """What is trained. Edits the model once, before round 1."""

    @property
    def max_lanes(self) -> int | None:
        """Most lanes its tensors can carry; None when there is no bound."""

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """Makes the method's tensors part of the model and freezes everything else.

        Args:
            backbone: edited in place. Names of the result are paths in the edited module, where
                `module.get_parameter(name)` is [lanes.num, *shape] or, if the method has one lane in place, [*shape].
            lanes: shared by all modules that the method puts in.
            generator: for tensors that start at random.

        Returns:
            Names, shapes and groups of what is tuned, in the order of the model.

        Raises:
            ModelError: the method does not fit the model.
        """

    def merge(self, backbone: Backbone) -> None:
        """Folds lane 0 into the model, which then has its own modules and names again."""


def freeze(module: nn.Module) -> None:
    """No tensor of `module` asks for a gradient."""
    module.requires_grad_(False)


def replace(module: nn.Module, path: str, new: nn.Module) -> None:
    """Puts `new` where the submodule `path` is."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def linear_layers(module: nn.Module, inside: tuple[str, ...]) -> list[str]:
    """Paths of the linear layers at or below the paths `inside`, in the order of the model."""
    return [
        f"{root}.{path}" if path else root
        for root in inside
        for path, layer in module.get_submodule(root).named_modules()
        if isinstance(layer, nn.Linear)
    ]


def tune_head(backbone: Backbone, lanes: Lanes) -> dict[str, TensorSpec]:
    """Gives every linear layer of the head a lane axis and a gradient; returns its part of the specification."""
    module = backbone.module
    tensors: dict[str, TensorSpec] = {}
    paths = linear_layers(module, backbone.anatomy.head)
    if not paths:
        raise ModelError(f"the head {list(backbone.anatomy.head)} of {type(module).__name__} has no linear layer.")
    for path in paths:
        layer = module.get_submodule(path)
        own = dict(layer.named_parameters(recurse=False))
        replace(module, path, LaneLinear(lanes, own["weight"], own.get("bias")))
        tensors |= specify(path, layer)
    return tensors


def specify(path: str, layer: nn.Module) -> dict[str, TensorSpec]:
    """The tensors of `layer` itself, named by `path` and in the group `path`."""
    return {
        f"{path}.{name}" if path else name: TensorSpec(tuple(tensor.shape), path or name)
        for name, tensor in layer.named_parameters(recurse=False)
    }


def merge_head(backbone: Backbone) -> None:
    """Turns the lanes of the head back into linear layers with the values of lane 0."""
    for path, layer in list(backbone.module.named_modules()):
        if isinstance(layer, LaneLinear):
            replace(backbone.module, path, _as_linear(layer))


def _as_linear(layer: LaneLinear) -> nn.Linear:
    weight = layer.weight[0]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device=weight.device)
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias[0].detach().clone(), requires_grad=False)
    return linear
