"""Proof that a tuning method does to a model what it says, on a few rows, before anything is trained.

    fresh = base          where the method starts as the identity (`TuningMethod.starts_as_base`)
    evaluated = trained   the model answers alike with and without gradients
    merged = unmerged     with other values than those of the start, where the method merges

A model is code from elsewhere. A layer may do more with its weights than its class says, and another may compute with
the weight of a layer and never call it; no table of classes knows all that.
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
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.base import TuningMethod, without_fast_paths
from fedelta.tuning.contract import applied
from fedelta.tuning.exits import exit_blocks, logits_at
from fedelta.tuning.lanes import LaneModule, Lanes

logger = logging.getLogger("fedelta")

# Of the largest output. float32 rounds at 1e-7, deep models with large activations come to 1e-4; a layer that was
# edited wrongly shows at 1e-1, and what enters attention by a side path at 1e-2.
TOLERANCE = 1e-3
# Of a tensor's root mean square: other values than those of the start, in a model that still works.
_SPREAD = 0.3


def apply_proved(
    method: TuningMethod, backbone: Backbone, lanes: Lanes, generator: Generator, sample: Mapping[str, Tensor]
) -> ParamSpec:
    """`method.apply`, and the proof; the model is as `apply` left it.

    Args:
        method: what is trained.
        backbone: edited in place.
        lanes: of the modules that the method puts in.
        generator: for tensors that start at random; the proof draws nothing from it.
        sample: inputs of a few rows.

    Raises:
        ModelError: the method does not fit the model; names the method, the model and the difference.
    """
    device = next(backbone.module.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in sample.items()}
    without_fast_paths(backbone.module)
    with torch.no_grad(), exact(), model_errors(type(backbone.module).__name__, inputs):
        base = _answers(backbone, inputs)
        _check_repeats(method, backbone, inputs, base)
        _note_batch_effect(backbone, inputs, base)
    spec = applied(method, backbone, lanes, generator)
    active, lanes.active = lanes.active, 1
    try:
        with torch.no_grad(), exact(), model_errors(type(backbone.module).__name__, inputs):
            _prove(method, backbone, spec, inputs, base)
    finally:
        lanes.active = active
    return spec


@contextmanager
def exact() -> Iterator[None]:
    """Without TensorFloat-32, which rounds at 1e-3, and with what a model draws from the global generator undone."""
    with torch.random.fork_rng(devices=[]), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def perturbed(params: Params, spec: ParamSpec, generator: Generator) -> Params:
    """`params` with noise added, so that a tensor of zeros has an effect; running statistics stay positive."""
    found = {}
    for name, tensor in params.items():
        size = float(tensor.square().mean().sqrt()) or tensor.shape[1:].numel() ** -0.5
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype) * _SPREAD * size
        found[name] = tensor + (noise if spec.tensors[name].trained else noise.abs())
    return found


def gap(left: Tensor, right: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest value; the first infinite where one is finite and the other is not."""
    if left.shape != right.shape or not torch.equal(left.isfinite(), right.isfinite()):
        return float("inf"), 0.0
    # A row that is broken in the same way on both sides says nothing.
    left, right = (each[left.isfinite()] for each in (left, right))
    if not left.numel():
        return 0.0, 0.0
    return float((left - right).abs().max()), max(float(left.abs().max()), float(right.abs().max()))


def _prove(method: TuningMethod, backbone: Backbone, spec: ParamSpec, inputs: dict[str, Tensor], base: Tensor) -> None:
    if method.starts_as_base:
        _compare(method, backbone, inputs, base, "gives other answers before it is trained than without it")
    own = _lane_tensors(backbone, spec)
    start = {name: tensor.clone() for name, tensor in own.items()}
    try:
        for name, value in perturbed(start, spec, stream(0, "proof")).items():
            own[name].copy_(value)
        trained, unread = _reach(method, backbone, spec, inputs)
        _compare(method, backbone, inputs, trained, "gives other answers in evaluation than in training")
        if method.merges:
            merged = _merged(method, backbone)
            _compare(method, merged, inputs, trained, "gives other answers once it is folded into the weights")
        _refuse_head_alone(method, backbone, spec, unread)
    finally:
        for name, value in start.items():
            own[name].copy_(value)


def _check_repeats(method: TuningMethod, backbone: Backbone, inputs: dict[str, Tensor], base: Tensor) -> None:
    difference, size = gap(_answers(backbone, inputs), base)
    if difference > TOLERANCE / 10 * size:
        raise ModelError(
            f"tuning method {method.name!r} cannot be proved on {type(backbone.module).__name__}: the model gives "
            f"other answers at every call, even in evaluation ({difference:.1e} of {size:.1e}).",
            hint="it draws random numbers of its own, so that no run could be repeated; use another model.",
        )


def _note_batch_effect(backbone: Backbone, inputs: dict[str, Tensor], base: Tensor) -> None:
    """A word in the log where the answer to a row depends on the rows beside it in a batch."""
    difference, size = gap(_answers(backbone, {name: tensor[:1] for name, tensor in inputs.items()}), base[:1])
    if difference > TOLERANCE * size:
        logger.warning(
            "%s answers a row otherwise when other rows are in its batch (%.1e of %.1e): measures depend on how rows "
            "are divided into batches.",
            type(backbone.module).__name__, difference, size,
        )  # fmt: skip


def _answers(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """[N, ...], or [E, N, ...] where the model has exits."""
    blocks = exit_blocks(backbone.module)
    if not blocks:
        return backbone.logits(inputs)
    found = logits_at(blocks, lambda: backbone.logits(inputs), range(1, len(blocks) + 1))
    return torch.stack(list(found.values()))


def _compare(
    method: TuningMethod, backbone: Backbone, inputs: dict[str, Tensor], expected: Tensor, problem: str
) -> None:
    found = _answers(backbone, inputs)
    difference, size = gap(found, expected)
    if difference <= TOLERANCE * size:
        return
    raise ModelError(
        f"tuning method {method.name!r} does not fit {type(backbone.module).__name__}: the model {problem}. "
        f"The largest difference is {difference:.1e}, the largest output {size:.1e}.",
        hint="a layer of it computes something else than its class says; name other layers, or use 'head'.",
    )


def _lane_tensors(backbone: Backbone, spec: ParamSpec) -> dict[str, Tensor]:
    """What the method put in, in lane 0; tensors that are the model's own are right as they are."""
    layers = [layer for layer in backbone.module.modules() if isinstance(layer, LaneModule)]
    inside = {id(tensor) for layer in layers for tensor in layer.parameters(recurse=False)}
    named = {name: backbone.module.get_parameter(name) for name in spec}
    return {name: tensor.data[0] for name, tensor in named.items() if id(tensor) in inside}


def _reach(
    method: TuningMethod, backbone: Backbone, spec: ParamSpec, inputs: dict[str, Tensor]
) -> tuple[Tensor, list[str]]:
    """The answers as they are computed in training, and the tensors that no gradient reaches: these with a word."""
    with torch.enable_grad():
        answers = _answers(backbone, inputs)
        names = [name for name in spec if spec.tensors[name].trained]
        tensors = [backbone.module.get_parameter(name) for name in names]
        grads = torch.autograd.grad(answers.float().square().sum(), tensors, allow_unused=True)
    if unread := [name for name, grad in zip(names, grads, strict=True) if grad is None]:
        logger.warning(
            "tuning method %r: no answer depends on %d of %d tuned tensors (%s) on the rows tried; they would stay as "
            "they are.",
            method.name, len(unread), len(names), listed(unread, limit=2),
        )  # fmt: skip
    return answers.detach(), unread


def _refuse_head_alone(method: TuningMethod, backbone: Backbone, spec: ParamSpec, unread: list[str]) -> None:
    """Refuses a method of whose tensors outside of the head no answer depends on any: head tuning by another name."""
    names = (name for name in spec if spec.tensors[name].trained)
    inside = [name for name in names if name.partition(".")[0] not in backbone.anatomy.head]
    if inside and set(inside) <= set(unread):
        raise ModelError(
            f"tuning method {method.name!r} does not fit {type(backbone.module).__name__}: no answer depends on any of "
            f"its tensors outside of the head ({listed(inside, limit=2)}), so that it would be head tuning.",
            hint="use 'head', or a model of another family.",
        )


def _merged(method: TuningMethod, backbone: Backbone) -> Backbone:
    """A merged copy, which shares all tensors that merging leaves alone."""
    layers = [layer for layer in backbone.module.modules() if isinstance(layer, LaneModule)]
    edited = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    everything = [*backbone.module.parameters(), *backbone.module.buffers()]
    memo: dict[int, object] = {id(tensor): tensor for tensor in everything if id(tensor) not in edited}
    merged = replace(backbone, module=copy.deepcopy(backbone.module, memo))
    method.merge(merged)
    return merged
