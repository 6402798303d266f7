"""Checks of a tuning method on a model, on a few rows, before training.

    fresh = base          `apply` does not change the outputs, if the method says so (`TuningMethod.starts_as_base`)
    evaluated = trained   the outputs are the same with and without gradients
    merged = unmerged     `merge` does not change the outputs for tuned values, if the method says so (`merges`)

A model may come from any package. One layer may use its weights in an unusual way, and another may read the weight of a
layer without calling the layer; no list of classes covers all such cases.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Generator, Tensor

from fedelta.errors import ModelError, listed
from fedelta.models.failures import model_errors
from fedelta.models.halves import in_float32
from fedelta.models.hub import Backbone
from fedelta.models.layers import is_quantised
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.base import TuningMethod, without_fast_paths
from fedelta.tuning.contract import applied
from fedelta.tuning.exits import exit_blocks, logits_at
from fedelta.tuning.lanes import LaneModule, Lanes

logger = logging.getLogger("fedelta")

# Relative to the largest output. Rounding errors are 1e-7 per operation in float32, and up to 1e-4 in deep models with
# large activations. A layer that was edited wrongly differs by about 1e-1, an input that bypasses attention by 1e-2.
TOLERANCE = 1e-3
# Noise relative to a tensor's root mean square: enough to change the outputs, too little to destroy the model.
_NOISE_SCALE = 0.3


def apply_proved(
    method: TuningMethod, backbone: Backbone, lanes: Lanes, generator: Generator, sample: Mapping[str, Tensor]
) -> ParamSpec:
    """Applies `method` to the model, and checks the result on `sample`; the checks do not change the model.

    Args:
        method: the tuning method.
        backbone: edited in place.
        lanes: shared by all modules that the method adds.
        generator: for tensors with random initial values; the checks draw nothing from it.
        sample: inputs of a few rows.

    Raises:
        ModelError: the method does not fit the model; the message names both, and the difference in the outputs.
    """
    device = next(backbone.module.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in sample.items()}
    without_fast_paths(backbone.module)
    with in_float32(backbone.module), torch.no_grad(), exact(), model_errors(type(backbone.module).__name__, inputs):
        base = _outputs(backbone, inputs)
        _check_repeats(method, backbone, inputs, base)
        _note_batch_effect(backbone, inputs, base)
    spec = applied(method, backbone, lanes, generator)
    active, lanes.active = lanes.active, 1
    try:
        with (
            in_float32(backbone.module),
            torch.no_grad(),
            exact(),
            model_errors(type(backbone.module).__name__, inputs),
        ):
            _prove(method, backbone, spec, inputs, base)
    finally:
        lanes.active = active
    return spec


@contextmanager
def exact() -> Iterator[None]:
    """Switches off TensorFloat-32, whose rounding error is 1e-3, and restores the global generator at the end."""
    with torch.random.fork_rng(devices=[]), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def perturbed(params: Params, spec: ParamSpec, generator: Generator) -> Params:
    """`params` plus noise, so that tensors of zeros have an effect too; running statistics only grow, to stay valid."""
    noisy = {}
    for name, tensor in params.items():
        size = float(tensor.square().mean().sqrt()) or tensor.shape[1:].numel() ** -0.5
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype) * _NOISE_SCALE * size
        noisy[name] = tensor + (noise if spec.tensors[name].trained else noise.abs())
    return noisy


def gap(left: Tensor, right: Tensor) -> tuple[float, float]:
    """The largest difference and the largest value; the difference is infinite if shapes or finite elements differ."""
    if left.shape != right.shape or not torch.equal(left.isfinite(), right.isfinite()):
        return float("inf"), 0.0
    # Elements that are NaN or infinite on both sides cannot be compared.
    left, right = (tensor[left.isfinite()] for tensor in (left, right))
    if not left.numel():
        return 0.0, 0.0
    return float((left - right).abs().max()), max(float(left.abs().max()), float(right.abs().max()))


def _prove(method: TuningMethod, backbone: Backbone, spec: ParamSpec, inputs: dict[str, Tensor], base: Tensor) -> None:
    """Runs the checks; `base` holds the outputs of the model without the method."""
    if method.starts_as_base:
        _compare(method, backbone, inputs, base, "gives other outputs before training than without the method")
    tensors = _lane_tensors(backbone, spec)
    start = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        for name, value in perturbed(start, spec, stream(0, "proof")).items():
            tensors[name].copy_(value)
        trained, without_gradient = _trained_outputs(method, backbone, spec, inputs)
        _compare(method, backbone, inputs, trained, "gives other outputs in evaluation than in training")
        if method.merges and not any(map(is_quantised, backbone.module.modules())):
            merged = _merged(method, backbone)
            _compare(method, merged, inputs, trained, "gives other outputs after the method is merged into it")
        _refuse_head_alone(method, backbone, spec, without_gradient)
    finally:
        for name, value in start.items():
            tensors[name].copy_(value)


def _check_repeats(method: TuningMethod, backbone: Backbone, inputs: dict[str, Tensor], base: Tensor) -> None:
    """Refuses a model that is not deterministic."""
    difference, size = gap(_outputs(backbone, inputs), base)
    if difference > TOLERANCE / 10 * size:
        raise ModelError(
            f"tuning method {method.name!r} cannot be checked on {type(backbone.module).__name__}: two calls of the "
            f"model with the same inputs differ, even in evaluation ({difference:.1e} of {size:.1e}).",
            hint="the model draws random numbers, so no run could be repeated; use another model.",
        )


def _note_batch_effect(backbone: Backbone, inputs: dict[str, Tensor], base: Tensor) -> None:
    """Logs a warning if the output for a row depends on the other rows of its batch."""
    difference, size = gap(_outputs(backbone, {name: tensor[:1] for name, tensor in inputs.items()}), base[:1])
    if difference > TOLERANCE * size:
        logger.warning(
            "%s gives other outputs for a row if other rows are in its batch (%.1e of %.1e): measures depend on how "
            "rows are divided into batches.",
            type(backbone.module).__name__, difference, size,
        )  # fmt: skip


def _outputs(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """The model's outputs [N, ...], or [E, N, ...] at all exits if it has exits."""
    blocks = exit_blocks(backbone.module)
    if not blocks:
        return backbone.logits(inputs)
    by_exit = logits_at(blocks, lambda: backbone.logits(inputs), range(1, len(blocks) + 1))
    return torch.stack(list(by_exit.values()))


def _compare(
    method: TuningMethod, backbone: Backbone, inputs: dict[str, Tensor], expected: Tensor, problem: str
) -> None:
    difference, size = gap(_outputs(backbone, inputs), expected)
    if difference <= TOLERANCE * size:
        return
    raise ModelError(
        f"tuning method {method.name!r} does not fit {type(backbone.module).__name__}: the model {problem}. "
        f"The largest difference is {difference:.1e}, the largest output {size:.1e}.",
        hint="one of its layers computes something else than its class says; name other layers, or use 'head'.",
    )


def _lane_tensors(backbone: Backbone, spec: ParamSpec) -> dict[str, Tensor]:
    """Lane 0 of the tensors that the method has added; tuned tensors of the model itself need no check."""
    layers = [layer for layer in backbone.module.modules() if isinstance(layer, LaneModule)]
    inside = {id(tensor) for layer in layers for tensor in layer.parameters(recurse=False)}
    named = {name: backbone.module.get_parameter(name) for name in spec}
    return {name: tensor.data[0] for name, tensor in named.items() if id(tensor) in inside}


def _trained_outputs(
    method: TuningMethod, backbone: Backbone, spec: ParamSpec, inputs: dict[str, Tensor]
) -> tuple[Tensor, list[str]]:
    """The outputs as computed in training, and the names of trained tensors without a gradient; warns about these."""
    with torch.enable_grad():
        outputs = _outputs(backbone, inputs)
        names = [name for name in spec if spec.tensors[name].trained]
        tensors = [backbone.module.get_parameter(name) for name in names]
        grads = torch.autograd.grad(outputs.float().square().sum(), tensors, allow_unused=True)
    if without_gradient := [name for name, grad in zip(names, grads, strict=True) if grad is None]:
        logger.warning(
            "tuning method %r: the outputs do not depend on %d of %d tuned tensors (%s) on the rows that were tried; "
            "training would not change these.",
            method.name, len(without_gradient), len(names), listed(without_gradient, limit=2),
        )  # fmt: skip
    return outputs.detach(), without_gradient


def _refuse_head_alone(method: TuningMethod, backbone: Backbone, spec: ParamSpec, without_gradient: list[str]) -> None:
    """Refuses a method that would train nothing but the head, because no other tensor has a gradient."""
    names = (name for name in spec if spec.tensors[name].trained)
    inside = [name for name in names if not backbone.anatomy.in_head(name)]
    if inside and set(inside) <= set(without_gradient):
        raise ModelError(
            f"tuning method {method.name!r} does not fit {type(backbone.module).__name__}: the outputs depend on none "
            f"of its tensors outside of the head ({listed(inside, limit=2)}), so only the head would be tuned.",
            hint="use 'head', or a model of another family.",
        )


def _merged(method: TuningMethod, backbone: Backbone) -> Backbone:
    """A merged copy of the model, which shares all tensors that merging does not change."""
    layers = [layer for layer in backbone.module.modules() if isinstance(layer, LaneModule)]
    edited = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    tensors = [*backbone.module.parameters(), *backbone.module.buffers()]
    # What is in the memo is not copied.
    memo: dict[int, object] = {id(tensor): tensor for tensor in tensors if id(tensor) not in edited}
    merged = replace(backbone, module=copy.deepcopy(backbone.module, memo))
    method.merge(merged)
    return merged
