"""The protocol of a tuning method, and functions with which methods find, replace and describe layers.

A layer has two paths: its *original* path in the untouched model, by which users and messages name it, and its
*current* path in the edited model, where tuning methods may have put wrappers around it.
"""

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
    """Decides what is trained, by editing the model once before round 1."""

    @property
    def name(self) -> str:
        """Its name in configurations."""

    @property
    def max_lanes(self) -> int | None:
        """The largest number of lanes that its tensors can have; None for no limit."""

    @property
    def merges(self) -> bool:
        """Whether `merge` restores the model's original modules and names."""

    @property
    def starts_as_base(self) -> bool:
        """Whether the outputs of the model are the same before and after `apply`; proof.py checks this."""

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """Adds the method's tensors to the model and freezes everything else.

        Args:
            backbone: edited in place. Other methods may already be in it (combined.py), so layers have to be found with
                `untouched`.
            lanes: shared by all modules that the method adds.
            generator: for tensors with random initial values.

        Returns:
            Names, shapes and groups of what is tuned, in the order of the model; made by `specification`. A name is a
            path in the edited module, where `module.get_parameter(name)` has shape [lanes.num, *shape] or, if the
            method tunes the model's own tensors in one lane, [*shape].

        Raises:
            ModelError: the method does not fit the model.
        """

    def merge(self, backbone: Backbone) -> None:
        """Folds the tensors of lane 0 into the model, as far as possible."""


def specification(backbone: Backbone, tensors: Mapping[str, TensorSpec]) -> ParamSpec:
    """The specification of `tensors`, in the order of the model; only these require gradients from now on."""
    module = backbone.module
    without_fast_paths(module)
    module.requires_grad_(False)
    for name, tensor in tensors.items():
        module.get_parameter(name).requires_grad_(tensor.trained)
    return ParamSpec({name: tensors[name] for name, _ in module.named_parameters() if name in tensors})


def without_fast_paths(module: nn.Module) -> None:
    """Switches off the fused kernels of PyTorch's transformer encoders.

    In evaluation these read the weights of the layers and do not call the layers, so tuned tensors would be ignored.
    """
    # PyTorch runs a fused kernel only if these two fields allow it.
    for layer in module.modules():
        if isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = False
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0


def ride_along(spec: ParamSpec) -> ParamSpec:
    """`spec` with every group that has no matrix or kernel, such as a norm, joined to the group before it that has one.

    A group is then what FedLAMA (arXiv 2110.10302) counts as a layer: a kernel with its bias and norm.
    """
    kernels = {tensor.group for tensor in spec.tensors.values() if len(tensor.shape) > 1}
    # What comes before the first kernel joins the first kernel.
    tensors, kernel = {}, next((tensor.group for tensor in spec.tensors.values() if tensor.group in kernels), None)
    for name, tensor in spec.tensors.items():
        kernel = tensor.group if tensor.group in kernels else kernel
        tensors[name] = dataclasses.replace(tensor, group=kernel or tensor.group)
    return ParamSpec(tensors)


def untouched(module: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """The model's original modules, in order: original path to current path and module.

    Modules that tuning methods have added are left out, and so is a layer that is never called because the module
    around it computes with its weight.
    """
    return dict(_untouched(module, "", ""))


def _untouched(module: nn.Module, path: str, current: str) -> Iterator[tuple[str, tuple[str, nn.Module]]]:
    while isinstance(module, Wrapper):
        module, current = module.base, f"{current}.base"
    if isinstance(module, LaneModule):
        return
    yield path, (current, module)
    for name, child in module.named_children():
        if name == "out_proj" and type(module).forward is nn.MultiheadAttention.forward:
            continue
        yield from _untouched(child, f"{path}.{name}".lstrip("."), f"{current}.{name}".lstrip("."))


def answers_at_exits(backbone: Backbone) -> bool:
    """Whether a tuning method has added exits (exits.py), so that the model's layers above its blocks are not used."""
    if not backbone.anatomy.head:
        return False
    head = backbone.module.get_submodule(backbone.anatomy.head[-1])
    return isinstance(head, LaneModule) and not isinstance(head, LaneLinear)


def effective_layers(backbone: Backbone) -> dict[str, tuple[str, nn.Module]]:
    """`untouched` without the layers on which the model's output does not depend."""
    layers = untouched(backbone.module)
    unused_parts = [path for path, (_, part) in layers.items() if takes_other_input(part, backbone.module)]
    for part_path in unused_parts:
        layers = {path: layer for path, layer in layers.items() if not f"{path}.".startswith(f"{part_path}.")}
    if not answers_at_exits(backbone):
        return layers
    embeddings = f"{backbone.anatomy.embeddings}."
    return {
        path: layer
        for path, layer in layers.items()
        if f"{path}.".startswith(embeddings) or backbone.anatomy.block_of(path) is not None
    }


def role_paths(backbone: Backbone, role: str) -> list[str]:
    """Original paths of the layers that play `role`, one per block; empty if the family's blocks are unknown."""
    anatomy = backbone.anatomy
    if role not in anatomy.roles:
        return []
    return [f"{block}.{anatomy.roles[role]}" for block in block_paths(backbone)]


def block_paths(backbone: Backbone) -> list[str]:
    """Original paths of the blocks, lowest first; empty if the family's blocks are unknown."""
    places = ((path, backbone.anatomy.block_of(path)) for path in untouched(backbone.module))
    return [path for path, place in places if place is not None and place[0] == path]


def replace(module: nn.Module, path: str, replacement: nn.Module) -> None:
    """Puts `replacement` in the place of the submodule at the current path `path`."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, replacement)


def tune_head(backbone: Backbone, lanes: Lanes) -> dict[str, TensorSpec]:
    """Gives every linear layer of the head lanes, unless another method has; returns the specification of the head.

    Does nothing and returns an empty dictionary if the model has exits, whose heads replace the model's, and for a
    model without a head, such as a language model.

    Raises:
        ModelError: the head has no linear layer, or one that computes something else than its class says.
    """
    module = backbone.module
    if answers_at_exits(backbone) or not backbone.anatomy.head:
        return {}
    tensors: dict[str, TensorSpec] = {}
    for root in backbone.anatomy.head:
        for path, layer in list(module.get_submodule(root).named_modules(prefix=root)):
            if isinstance(layer, NonDynamicallyQuantizableLinear):
                continue  # the projection of an attention that computes with its weight
            if isinstance(layer, nn.Linear):
                if problem := oddity(layer, nn.Linear):
                    raise ModelError(
                        f"the head of {type(module).__name__} cannot be tuned: `{path}` {problem}.",
                        hint="give the model a head of plain `torch.nn.Linear` layers.",
                    )
                parameters = dict(layer.named_parameters())
                lane_layer = LaneLinear(lanes, parameters["weight"], parameters.get("bias"), instead_of=layer)
                replace(module, path, lane_layer)
            if isinstance(layer, nn.Linear | LaneLinear):
                tensors |= specify(path, module.get_submodule(path))
    if not tensors:
        raise ModelError(f"the head {list(backbone.anatomy.head)} of {type(module).__name__} has no linear layer.")
    return tensors


def specify(path: str, layer: nn.Module) -> dict[str, TensorSpec]:
    """The tensors in the lane module `layer` at the current path `path`, which is their group."""
    return {f"{path}.{name}": TensorSpec(tuple(tensor.shape[1:]), path) for name, tensor in layer.named_parameters()}


def merge_head(backbone: Backbone) -> None:
    """Replaces the lanes of the head by plain linear layers with the values of lane 0."""
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
    """A parameter with a copy of `value` that does not require a gradient."""
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def is_plain_3x3(layer: nn.Module) -> bool:
    """Whether `layer` is a 3x3 convolution into which a parallel 1x1 convolution of the same stride can be folded.

    Padding must be 1, so that the 1x1 convolution reads the pixels under the centre of the kernel, and the layer must
    compute what its PyTorch class does.
    """
    if not isinstance(layer, nn.Conv2d) or not is_plain(layer, nn.Conv2d):
        return False
    fields = (layer.kernel_size, layer.dilation, layer.groups, layer.padding in ((1, 1), "same"))
    return fields == ((3, 3), (1, 1), 1, True)


def misfit(method: str, backbone: Backbone, reason: str) -> ModelError:
    """The error for a method that does not fit the kind of model; the hint names methods that do."""
    if block_paths(backbone):
        alternatives = ("adapter", "lora")
    elif any(is_plain_3x3(layer) for layer in backbone.module.modules()):
        alternatives = ("parallel", "lora")
    else:
        alternatives = ("lora", "bias")
    return ModelError(
        f"tuning method {method!r} does not fit {type(backbone.module).__name__}: {reason}.",
        hint=f"use {' or '.join(repr(name) for name in alternatives if name != method)} for this model.",
    )
