"""Checks whether tuned tensors fit a model: names, kinds of layers, shapes and completeness."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.inference.layout import is_pair
from fedelta.models.heads import class_axes
from fedelta.models.hub import Backbone
from fedelta.models.layers import is_few_bits
from fedelta.params import ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora, pair_shapes, takes_pair


def misfits(tuning: TuningMethod, params: Mapping[str, Tensor], backbone: Backbone) -> list[str]:
    """The reasons why `params` are not the tensors of `tuning` in `backbone`; empty if they fit.

    Args:
        tuning: the settings of `params`.
        params: may lack tensors of the head if `tuning` is LoRA.
        backbone: before any tuning method is applied; not modified.
    """
    if isinstance(tuning, Lora):
        problems = [problem for name, tensor in params.items() if (problem := _misplaced(name, tensor, backbone))]
        if problems:
            # The errors of the method would refer to `[tuning]`, which the user did not write.
            return problems
    try:
        spec = _specification(tuning, backbone)
    except ModelError as error:
        return [error.message]
    problems = []
    for name, tensor in params.items():
        if name not in spec.tensors:
            problems.append(f"the model has no `{name}` that {tuning.name!r} tunes")
        elif tuple(tensor.shape) != spec.tensors[name].shape:
            problems.append(_other_shape(name, tensor, spec.tensors[name].shape))
    for name in spec:
        if name not in params and (is_pair(name) or not isinstance(tuning, Lora)):
            problems.append(f"the adapter lacks `{name}`")
    return problems


def _misplaced(name: str, tensor: Tensor, backbone: Backbone) -> str | None:
    """The problem with the place of one tensor of a LoRA adapter; None if there is none."""
    in_head = backbone.anatomy.in_head(name)
    path = name.rpartition(".")[0]
    if not is_pair(name):
        return None if in_head else f"`{name}` is a wholly saved module outside the head {list(backbone.anatomy.head)}"
    layer = dict(backbone.module.named_modules()).get(path)
    if layer is None:
        return f"the model has no module `{path}`"
    if not takes_pair(layer):
        return f"`{path}` is a {type(layer).__name__}, expected a linear layer, or a convolution without groups"
    if in_head:
        return f"`{path}` is in the head, which is tuned as a whole and has no pairs"
    is_a = name.endswith(".lora_A")
    a_shape, b_shape = pair_shapes(layer, tensor.shape[0 if is_a else 1])
    expected = a_shape if is_a else b_shape
    return None if tuple(tensor.shape) == expected else _other_shape(name, tensor, expected)


def _other_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> str:
    return f"`{name}` has shape {tuple(tensor.shape)}, the model's is {expected}"


def class_axes_of(tuning: TuningMethod, backbone: Backbone) -> dict[str, int]:
    """The tensors that `tuning` tunes in `backbone` with one row per class, and the axis of these rows.

    Found by comparison with a model of one more class.

    Args:
        tuning: any method.
        backbone: before any tuning method is applied; not modified.
    """
    spec = _specification(tuning, backbone)
    more = _skeleton(backbone)
    for name, axis in class_axes(more.module).items():
        _add_row(more.module, name, axis)
    sizes = {name: tensor.shape for name, tensor in tuning.apply(more, Lanes(1), stream(0)).tensors.items()}
    pairs = {name: list(zip(tensor.shape, sizes[name], strict=True)) for name, tensor in spec.tensors.items()}
    differing = {name: [axis for axis, (few, many) in enumerate(pair) if few != many] for name, pair in pairs.items()}
    return {name: axes[0] for name, axes in differing.items() if axes}


def _add_row(module: nn.Module, name: str, axis: int) -> None:
    path, _, last = name.rpartition(".")
    layer, shape = module.get_submodule(path), list(module.get_parameter(name).shape)
    shape[axis] += 1
    setattr(layer, last, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
    if isinstance(layer, nn.Linear):
        layer.out_features = shape[axis]
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels = shape[axis]


def _specification(tuning: TuningMethod, backbone: Backbone) -> ParamSpec:
    """The tensors that `tuning` would tune in `backbone`."""
    return tuning.apply(_skeleton(backbone), Lanes(1), stream(0))


def _skeleton(backbone: Backbone) -> Backbone:
    """A copy on the meta device, without memory for weights."""
    tensors = [*backbone.module.parameters(), *backbone.module.buffers()]
    memo: dict[int, object] = {id(tensor): _without_memory(tensor) for tensor in tensors}
    return replace(backbone, module=copy.deepcopy(backbone.module, memo))


def _without_memory(tensor: Tensor) -> Tensor:
    if is_few_bits(tensor):
        return tensor  # its size is that of another matrix
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
