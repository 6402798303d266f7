"""Proof that lanes do not mix clients, on a few rows, when an engine is made.

Lanes rest on the order of the samples: every tuned layer takes the first axis of its input for the samples, lane after
lane. A model may do otherwise: project an embedding that all samples share, put tokens before samples, take statistics
over the batch, route tokens of all samples through one expert. So lanes are filled with values that differ, and each
must give what it gives alone: the outputs, and the gradient of every tensor.

Two passes show it: all lanes with batches of equal length, and fewer lanes than there are with batches of unequal
length, so that there is padding. Three lanes are compared; the others would fail as these do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.engine.bank import LaneBank
from fedelta.engine.work import padded
from fedelta.errors import FedeltaError
from fedelta.models.failures import model_errors
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.proof import TOLERANCE, exact, gap, perturbed

# Of the largest value in a gradient. Wider than for outputs: a gradient sums over tokens and samples, in another order.
_GRADIENT_TOLERANCE = 1e-2
# Of the largest value in any gradient: below, a gradient is zero but for rounding, as that of a key's bias is.
_NOTHING = 1e-4

_FEW = 8  # lanes

Outputs = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class _Part:
    """What one lane does: a number for its random streams, its batch (int64), and the values of its tensors."""

    number: int
    rows: Tensor
    values: Params


@dataclass(frozen=True)
class _Gave:
    """What a lane gave: outputs [E, rows, ...] without padding, and gradients by name."""

    outputs: Tensor
    grads: Params


def mixing(outputs: Outputs, bank: LaneBank, lanes: Lanes, num_rows: int) -> str | None:
    """How lanes together differ from each alone; None where they do not. Bank and lanes are as they were.

    Args:
        outputs: of the model for rows of the training data, [N, ...] for each exit or once.
        bank: of the model.
        lanes: two or more.
        num_rows: of the training data.

    Raises:
        ModelError: the model fails with one lane.
    """
    # Rows of each lane. Of many lanes one row is enough; with two lanes the second pass has both.
    all_lanes = (2 if lanes.num <= _FEW else 1,) * lanes.num
    fewer_lanes = (2, 1, 2)[: max(2, min(3, lanes.num - 1))]
    active, start = lanes.active, bank.read(0)
    try:
        with exact(), bank.unchanged():
            for lengths in (all_lanes, fewer_lanes):
                rows = [(torch.arange(length) + 2 * number) % num_rows for number, length in enumerate(lengths)]
                parts = [_Part(number, own, _values(bank, start, number)) for number, own in enumerate(rows)]
                if problem := _problem(parts, lambda each: _gave(each, outputs, bank, lanes)):
                    return f"with {len(parts)} lanes {problem}"
    finally:
        lanes.active = active
    return None


def _values(bank: LaneBank, start: Params, number: int) -> Params:
    return perturbed(start, bank.spec, stream(0, "proof", number))


def _problem(parts: Sequence[_Part], run: Callable[[Sequence[_Part]], list[_Gave]]) -> str | None:
    compared = sorted({0, 1, len(parts) - 1})
    alone = [run([parts[number]])[0] for number in compared]
    try:
        together = run(parts)
    except FedeltaError as error:
        return f"it fails: {error.message.rstrip('.')}"
    differences = (_difference(together[number], own) for number, own in zip(compared, alone, strict=True))
    return next(filter(None, differences), None)


def _gave(parts: Sequence[_Part], outputs: Outputs, bank: LaneBank, lanes: Lanes) -> list[_Gave]:
    """One training pass with a lane for each part."""
    for lane, part in enumerate(parts):
        bank.load(lane, part.values)
    rows_AB, _ = padded([part.rows for part in parts])
    lengths = [len(part.rows) for part in parts]
    noise = [stream(0, "proof", "noise", part.number) for part in parts]
    with lanes.training(lengths, noise), model_errors("the model in lanes", {"rows": rows_AB}):
        found_EABX = torch.stack(outputs(rows_AB.flatten())).unflatten(1, rows_AB.shape)
        own = [found_EABX[:, lane, :length] for lane, length in enumerate(lengths)]
        # Some direction in the space of outputs; a loss may be so small that its gradient is nothing but rounding.
        direction = torch.randn(own[0].shape[2:], generator=stream(0, "proof", "direction")).to(own[0])
        bank.backward(torch.stack([(each * direction).sum() for each in own]).sum())
    return [_Gave(each.detach(), bank.gradient(lane)) for lane, each in enumerate(own)]


def _difference(together: _Gave, alone: _Gave) -> str | None:
    difference, size = gap(together.outputs, alone.outputs)
    if difference > TOLERANCE * size:
        return f"outputs of {size:.1e} differ by {difference:.1e} from those of one lane"
    gaps = {name: gap(together.grads[name], grad) for name, grad in alone.grads.items()}
    nothing = _NOTHING * max(size for _, size in gaps.values())
    for name, (difference, size) in gaps.items():
        if difference > _GRADIENT_TOLERANCE * size + nothing:
            return f"a gradient of {size:.1e} for `{name}` differs by {difference:.1e} from that of one lane"
    return None
