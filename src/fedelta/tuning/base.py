"""What a tuning method is, and the few moves that all of them make on a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Generator, Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fedelta.errors import ModelError
from fedelta.models.discovery import takes_other_input
from fedelta.models.hub import Backbone
from fedelta.models.layers import is_plain, oddity
from fedelta.params import ParamSpec, TensorSpec
from fedelta.tuning.lanes import LaneLinear, LaneModule, Lanes, Wrapper


class TuningMethod(Protocol):
    """What is trained. Edits the model once, before round 1."""

    @property
    def name(self) -> str:
        """Name in configurations."""

    @property
    def max_lanes(self) -> int | None:
        """Most lanes its tensors can carry; None when there is no bound."""

    @property
    def merges(self) -> bool:
        """Whether `merge` gives the model its own modules and names back."""

    @property
    def starts_as_base(self) -> bool:
        """Whether `apply` leaves the model's answers as they are; proof.py holds it to that."""

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """Makes the method's tensors part of the model and freezes everything else.

        Args:
            backbone: edited in place. Names of the result are paths in the edited module, where
                `module.get_parameter(name)` is [lanes.num, *shape] or, if the method has one lane in place, [*shape].
                Other methods may be in it already (combined.py): layers are found with `untouched`.
            lanes: shared by all modules that the method puts in.
            generator: for tensors that start at random.

        Returns:
            Names, shapes and groups of what is tuned, in the order of the model; made by `specification`.

        Raises:
            ModelError: the method does not fit the model.
        """

    def merge(self, backbone: Backbone) -> None:
        """Folds lane 0 into the model, as far as that is possible."""


def specification(backbone: Backbone, tensors: Mapping[str, TensorSpec]) -> ParamSpec:
    """`tensors` in the order of the edited model; from now on these ask for gradients and nothing else does."""
    module = backbone.module
    without_fast_paths(module)
    module.requires_grad_(False)
    for name, tensor in tensors.items():
        module.get_parameter(name).requires_grad_(tensor.trained)
    return ParamSpec({name: tensors[name] for name, _ in module.named_parameters() if name in tensors})


def without_fast_paths(module: nn.Module) -> None:
    """Keeps PyTorch's transformer encoders from computing with the weights of their layers, past what is tuned there.

    In evaluation they run a fused kernel that calls none of the layers. These two fields are what it asks first.
    """
    for layer in module.modules():
        if isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = False
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0


def ride_along(spec: ParamSpec) -> ParamSpec:
    """`spec`, in which a group without a matrix or kernel, such as a norm, is part of the one before it that has one.

    What FedLAMA (arXiv 2110.10302) counts as a layer: a kernel with its bias and norm.
    """
    kernels = {tensor.group for tensor in spec.tensors.values() if len(tensor.shape) > 1}
    tensors, last = {}, next((tensor.group for tensor in spec.tensors.values() if tensor.group in kernels), None)
    for name, tensor in spec.tensors.items():
        last = tensor.group if tensor.group in kernels else last
        tensors[name] = dataclasses.replace(tensor, group=last or tensor.group)
    return ParamSpec(tensors)


def untouched(module: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """The modules that were there before any tuning: own path to path now and module, in the order of the model.

    Wrappers are looked through, and what tuning methods put in is left out; so is a layer that is never called, because
    the module around it computes with its weight.
    """
    return dict(_untouched(module, "", ""))


def _untouched(module: nn.Module, own: str, now: str) -> Iterator[tuple[str, tuple[str, nn.Module]]]:
    while isinstance(module, Wrapper):
        module, now = module.base, f"{now}.base"
    if isinstance(module, LaneModule):
        return
    yield own, (now, module)
    for name, child in module.named_children():
        if name == "out_proj" and type(module).forward is nn.MultiheadAttention.forward:
            continue
        yield from _untouched(child, f"{own}.{name}".lstrip("."), f"{now}.{name}".lstrip("."))


def answers_at_exits(backbone: Backbone) -> bool:
    """Whether a tuning method put exits into the model (exits.py), so that nothing behind its blocks is read."""
    last = backbone.module.get_submodule(backbone.anatomy.head[-1])
    return isinstance(last, LaneModule) and not isinstance(last, LaneLinear)


def read_layers(backbone: Backbone) -> dict[str, tuple[str, nn.Module]]:
    """`untouched`, without what the model's answer does not depend on."""
    layers = untouched(backbone.module)
    others = [own for own, (_, part) in layers.items() if takes_other_input(part, backbone.module)]
    for other in others:
        layers = {own: layer for own, layer in layers.items() if not f"{own}.".startswith(f"{other}.")}
    if not answers_at_exits(backbone):
        return layers
    embeddings = f"{backbone.anatomy.embeddings}."
    return {
        own: layer
        for own, layer in layers.items()
        if f"{own}.".startswith(embeddings) or backbone.anatomy.block_of(own) is not None
    }


def role_paths(backbone: Backbone, role: str) -> list[str]:
    """Own paths of the layers that play `role`, one a block; none when the family's blocks are unknown."""
    anatomy = backbone.anatomy
    if role not in anatomy.roles:
        return []
    return [f"{block}.{anatomy.roles[role]}" for block in block_paths(backbone)]


def block_paths(backbone: Backbone) -> list[str]:
    """Own paths of the blocks, lowest first; none when the family's blocks are unknown."""
    places = ((own, backbone.anatomy.block_of(own)) for own in untouched(backbone.module))
    return [own for own, place in places if place is not None and place[0] == own]


def replace(module: nn.Module, path: str, new: nn.Module) -> None:
    """Puts `new` where the submodule `path` is."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def tune_head(backbone: Backbone, lanes: Lanes) -> dict[str, TensorSpec]:
    """Gives every linear layer of the head lanes, unless another method did; returns its part of the specification.

    That is empty where the model answers at exits, which have heads of their own.
    """
    module = backbone.module
    if answers_at_exits(backbone):
        return {}
    tensors: dict[str, TensorSpec] = {}
    for root in backbone.anatomy.head:
        for path, layer in list(module.get_submodule(root).named_modules(prefix=root)):
            if isinstance(layer, NonDynamicallyQuantizableLinear):
                continue  # the projection of an attention that computes with its weight
            if isinstance(layer, nn.Linear):
                if odd := oddity(layer, nn.Linear):
                    raise ModelError(
                        f"the head of {type(module).__name__} cannot be tuned: `{path}` {odd}.",
                        hint="give the model a head of plain `torch.nn.Linear` layers.",
                    )
                own = dict(layer.named_parameters())
                replace(module, path, LaneLinear(lanes, own["weight"], own.get("bias"), instead_of=layer))
            if isinstance(layer, nn.Linear | LaneLinear):
                tensors |= specify(path, module.get_submodule(path))
    if not tensors:
        raise ModelError(f"the head {list(backbone.anatomy.head)} of {type(module).__name__} has no linear layer.")
    return tensors


def specify(path: str, layer: nn.Module) -> dict[str, TensorSpec]:
    """The tensors at and below the lane module `layer`, named by its `path`, which is their group."""
    return {f"{path}.{name}": TensorSpec(tuple(tensor.shape[1:]), path) for name, tensor in layer.named_parameters()}


def merge_head(backbone: Backbone) -> None:
    """Turns the lanes of the head back into linear layers with the values of lane 0."""
    module = backbone.module
    for root in backbone.anatomy.head:
        for path, layer in list(module.get_submodule(root).named_modules(prefix=root)):
            if isinstance(layer, LaneLinear):
                replace(module, path, _as_linear(layer))


def _as_linear(layer: LaneLinear) -> nn.Linear:
    weight = layer.weight[0]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device=weight.device)
    linear.weight = frozen(weight)
    if layer.bias is not None:
        linear.bias = frozen(layer.bias[0])
    return linear


def frozen(value: Tensor) -> nn.Parameter:
    """A parameter with a copy of `value` that asks for no gradient."""
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def is_plain_3x3(layer: nn.Module) -> bool:
    """Whether a 1x1 convolution of the same stride can stand beside this layer, and be folded into it.

    It then reads the pixels under the centre of the kernel, and the layer computes what PyTorch's convolution does.
    """
    if not isinstance(layer, nn.Conv2d) or not is_plain(layer, nn.Conv2d):
        return False
    fields = (layer.kernel_size, layer.dilation, layer.groups, layer.padding in ((1, 1), "same"))
    return fields == ((3, 3), (1, 1), 1, True)


def misfit(method: str, backbone: Backbone, lacks: str) -> ModelError:
    """The error for a method on a model of another kind, with the methods that are made for that kind."""
    if block_paths(backbone):
        instead = "'adapter' or 'lora'"
    elif any(is_plain_3x3(layer) for layer in backbone.module.modules()):
        instead = "'parallel' or 'lora'"
    else:
        instead = "'lora' or 'bias'"
    return ModelError(
        f"tuning method {method!r} does not fit {type(backbone.module).__name__}: {lacks}.",
        hint=f"use {instead} for this model.",
    )
