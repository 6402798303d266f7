"""DP-SGD: the gradients of single examples, clipped, summed, with noise.

    g = (sum over the batch of min(1, C / |g_i|) g_i + N(0, (z C)^2)) / expected size of the batch

One example, added or removed, changes the sum by C at most. The batch is a Poisson sample of the client's examples, so
its size is random as well, and the sum is divided by the expected size. An empty batch gives noise alone.

The gradient g_i of an example is that of a lane which has this example alone. All that follows, such as momentum,
weight decay, a correction by the strategy and codecs, reads g only and keeps the guarantee.

FedPEFT's mechanisms (privacy/fedpeft.py) add noise to the gradient of an ordinary batch and guarantee nothing.

Shapes: A lanes in use, P trained scalars.

Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.engine.bank import LaneBank
from fedelta.engine.exits import ExitSettings
from fedelta.engine.model import SharedModel
from fedelta.engine.work import Job
from fedelta.errors import ConfigError, ModelError
from fedelta.privacy.settings import Clipping, Mechanism
from fedelta.seeds import stream
from fedelta.tasks.base import Task
from fedelta.tasks.contract import losses_of
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.norms import LaneBatchNorm

_FEW_ROWS = 3
_CACHED_NUMBERS = 2**17  # float64 numbers that are worked on at a time: 1 MiB, which a processor's cache holds


@dataclass(frozen=True)
class DpSgd:
    """How the gradient of a step is limited before noise is added.

    Args:
        clipping_norm: C, the largest norm of an example's gradient; for FedPEFT's mechanisms see `privacy/fedpeft.py`.
        clipping: `flat`, over all tensors together, or `per-group`, to C / sqrt(number of groups) in each group.
        mechanism: DP-SGD, or FedPEFT's noise in the gradient of ordinary batches.
    """

    clipping_norm: float
    clipping: Clipping = "flat"
    mechanism: Mechanism = "gaussian"

    @property
    def of_examples(self) -> bool:
        """Whether gradients are those of single examples."""
        return self.mechanism == "gaussian"


def private_gradient(
    dp: DpSgd, bank: LaneBank, lanes: Lanes, *, job: Job, batch: Tensor, step: int, backward: Callable[[Tensor], object]
) -> Tensor:
    """The sum of the batch's clipped gradients, with noise: float64 of shape [P].

    Args:
        dp: how gradients are clipped.
        bank: has a row of gradients for each lane.
        lanes: of the tuned modules.
        job: gives noise, and masks for dropout.
        batch: a sample of the rows of the job; perhaps none.
        step: number of the step in the job, from 0.
        backward: writes the gradient of the loss of every lane in use into the bank, given the row of each lane [A].
    """
    masks = int(torch.randint(2**62, (), generator=job.noise))
    num_scalars = bank.grads_KP.shape[1]
    total_P = bank.grads_KP.new_zeros(num_scalars, dtype=torch.float64)
    for rows_A in even_parts(batch, lanes.num):
        # Dropout of an example must not depend on which others are in the batch.
        dropout = [stream(masks, row) for row in rows_A.tolist()]
        with lanes.training([1] * len(rows_A), dropout):
            backward(rows_A)
        if bank.pinned_P is not None:  # what is not trained does not use up the norm
            bank.grads_KP[: len(rows_A)].masked_fill_(bank.pinned_P, 0.0)
        total_P += clipped_sum(bank.grads_KP[: len(rows_A)], clipped_places(dp, bank), dp.clipping_norm)
    return total_P.add_(_noise(job, step, total_P).to(total_P))


def even_parts(batch: Tensor, most: int) -> Sequence[Tensor]:
    """`batch` in as few parts of at most `most` rows as possible, as even as possible; none if it is empty."""
    return batch.tensor_split(-(-len(batch) // most)) if len(batch) else ()


def clipped_places(dp: DpSgd, bank: LaneBank) -> list[list[slice]]:
    """The columns of gradients that are clipped together, for each norm that is limited."""
    if dp.clipping == "flat":
        return [[slice(0, bank.grads_KP.shape[1])]]
    tensors = bank.spec.tensors
    groups = [[name for name in names if tensors[name].trained] for names in bank.spec.groups.values()]
    return [bank.places(names) for names in groups if names]


@torch.no_grad()
def clipped_sum(grads_AP: Tensor, parts: Sequence[Sequence[slice]], clipping_norm: float) -> Tensor:
    """The sum of the rows, each clipped to a norm of at most `clipping_norm`: float64 of shape [P].

    A row that is not finite counts as zero: it must not decide whether the sum is finite.

    Args:
        grads_AP: gradients of examples, float32; rows that are not finite are set to zero.
        parts: columns that are clipped together, each part to `clipping_norm` / sqrt(number of parts).
        clipping_norm: C.
    """
    bound = clipping_norm / math.sqrt(len(parts))
    total_P = grads_AP.new_zeros(grads_AP.shape[1], dtype=torch.float64)
    width = max(1, _CACHED_NUMBERS // len(grads_AP))
    for places in parts:
        blocks = [block for place in places for block in grads_AP[:, place].split(width, dim=1)]
        totals = [block for place in places for block in total_P[place].split(width)]
        # float64, so that no rounding error adds to what an example can change.
        norms_A = torch.stack([torch.linalg.vector_norm(block.double(), dim=1) for block in blocks]).norm(dim=0)
        factors_A = (bound / norms_A).clamp_(max=1.0)
        if not (is_finite := norms_A.isfinite()).all():
            factors_A = torch.where(is_finite, factors_A, 0.0)
            grads_AP[~is_finite] = 0.0  # 0 times NaN is NaN
        for total, block in zip(totals, blocks, strict=True):
            total.addmv_(block.double().t(), factors_A)
    return total_P


@torch.no_grad()
def add_fedpeft_noise(dp: DpSgd, bank: LaneBank, lane: int, job: Job, step: int) -> None:
    """Adds FedPEFT's noise to the gradient of `lane`; `fedpeft-text` first clips each tensor of it."""
    grad_P = bank.grads_KP[lane]
    if dp.mechanism == "fedpeft-text":
        for place in bank.places([name for name, tensor in bank.spec.tensors.items() if tensor.trained]):
            grad_P[place] *= (dp.clipping_norm / grad_P[place].norm()).clamp(max=1.0)
    grad_P += _noise(job, step, grad_P).to(grad_P)


def refuse_coupling(model: SharedModel, lanes: Lanes, exits: ExitSettings, task: Task, train: Examples) -> None:
    """Raises if one example has a part in the gradient of another, so that clipping limits neither.

    That lanes do not mix in the model itself is checked in engine/proof.py.

    Raises:
        ConfigError: exits are trained by a teacher that is chosen by all examples.
        ModelError: the model has batch norm that is trained, or the task's loss of a row depends on the others.
    """
    layers = [path for path, layer in model.backbone.module.named_modules() if isinstance(layer, LaneBatchNorm)]
    if layers:
        raise ModelError(
            f'`privacy.unit = "example"` needs a gradient for each example, but {len(layers)} layers of batch norm, '
            f"first `{layers[0]}`, compute with mean and variance of the whole batch.",
            hint='set `model.batch_norm = "group"`, or a tuning method that trains no norm.',
        )
    if model.blocks and exits.train == "distill":
        raise ConfigError(
            ['`exits.train` is "distill", which chooses the teacher by the loss of all examples of earlier batches'],
            hint='`privacy.unit = "example"` allows `exits.train` = "deepest", "random" or "sum".',
        )
    rows, lanes.active = torch.arange(min(_FEW_ROWS, len(train))), 1
    with torch.no_grad():
        outputs = model.outputs(train.inputs, rows, [len(model.blocks)] if model.blocks else ())[0]
    targets = train.targets.fetch(rows).to(outputs.device)
    together = losses_of(task, outputs, targets)
    alone = torch.cat([losses_of(task, outputs[row : row + 1], targets[row : row + 1]) for row in range(len(rows))])
    if not torch.allclose(together, alone, rtol=1e-4, atol=1e-6):
        raise ModelError(
            # Without figures: they are of examples, and the message goes to the server.
            f'`privacy.unit = "example"` needs a loss for each example, but the loss of task {task.name!r} for an '
            "example depends on the others.",
            hint="let `losses` of the task compute each row by itself.",
        )


def _noise(job: Job, step: int, exact: Tensor) -> Tensor:
    if job.noise_of_step is None:
        raise ValueError("the engine adds noise, but the job has no `noise_of_step`")
    return job.noise_of_step(step, exact)
