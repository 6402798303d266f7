"""How much memory a training step takes, estimated from what one trial pass keeps for its backward pass.

The estimate follows from sizes alone: what autograd keeps grows in proportion to the samples of a step, so that passes
over one sample and over two tell the part that each sample adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

import torch
from torch import Tensor

from fedelta.engine.optimizers import Optimizer
from fedelta.models.failures import model_errors
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.tuning.lanes import Lanes

# On top of what is kept: gradients of activations, results that nothing keeps, and gaps between pieces of memory.
_SLACK = 1.5  # on a CPU a step of a ViT takes 1.45 times what it keeps
_ELEMENT_BYTES = 4  # tuned tensors are float32
_COPIES = 4  # of the tuned tensors of a lane: values, anchors, gradients, and those gradients as autograd gives them


@dataclass(frozen=True)
class Footprint:
    """Bytes that a training step takes beside model and data.

    Args:
        of_lane: tuned tensors of a lane with anchors, gradients and optimizer state.
        of_sample: what is kept for the backward pass.
    """

    of_lane: int
    of_sample: int

    def of_step(self, num_lanes: int, batch_size: int) -> int:
        """Bytes of a step of so many lanes with `batch_size` samples each."""
        return num_lanes * (self.of_lane + batch_size * self.of_sample)

    def most_lanes(self, num_bytes: int, batch_size: int) -> int:
        """The largest number of lanes whose step fits into `num_bytes`; 0 if none does."""
        return max(0, num_bytes) // self.of_step(1, batch_size)


def footprint_of(
    backbone: Backbone,
    spec: ParamSpec,
    lanes: Lanes,
    sample: Mapping[str, Tensor],
    *,
    optimizer: Optimizer,
    dtype: str,
) -> Footprint:
    """The footprint of a step, from passes of lane 0.

    Args:
        backbone: the model with the tuning method applied, on its device.
        spec: what is tuned.
        lanes: of the tuned modules.
        sample: inputs of one row or more; the first is tried.
        optimizer: whose state a lane has.
        dtype: "bfloat16" for autocast.

    Raises:
        ModelError: the model fails.
    """
    device = backbone.module.get_parameter(spec.names[0]).device
    one = {name: tensor[:1].to(device) for name, tensor in sample.items()}
    two = {name: torch.cat([tensor, tensor]) for name, tensor in one.items()}
    active, lanes.active = lanes.active, 1
    try:
        with (
            model_errors(type(backbone.module).__name__, two),
            torch.random.fork_rng(devices=[]),
            torch.autocast(device.type, torch.bfloat16, dtype == "bfloat16"),
        ):
            of_sample = kept_bytes(backbone, two) - kept_bytes(backbone, one)
    finally:
        lanes.active = active
    values = torch.zeros(1, 64, device=device)  # long enough that what a lane has once does not count
    state = chain.from_iterable(optimizer.state([values]).values())
    copies = _COPIES + sum(tensor.nbytes for tensor in state) // values.nbytes
    return Footprint(copies * spec.num_parameters * _ELEMENT_BYTES, max(1, int(_SLACK * of_sample)))


def kept_bytes(backbone: Backbone, inputs: Mapping[str, Tensor]) -> int:
    """Bytes of memory that a forward pass keeps for the backward pass, each piece counted once, and of the outputs."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> None:
        # Detached, because a result that keeps what it was computed from would never be freed.
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, _never):
        outputs = backbone.logits(dict(inputs)).float()
        # As a cross entropy does, `exp` keeps a tensor of the size of the outputs.
        loss = outputs.exp().sum() if outputs.dim() > 1 else outputs.sum()
    for result in (outputs, loss):
        keep(result)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _never(_kept: object) -> NoReturn:
    raise AssertionError("there is no backward pass")
