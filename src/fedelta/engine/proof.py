"""Checks on a few rows, when an engine is made: that lanes do not mix clients, and that less work gives the same.

Lanes rely on the order of the samples: every tuned layer expects the samples on the first axis of its input, lane after
lane. A model may break this: it may project an embedding that all samples share, put tokens before samples, compute
statistics over the batch, or route the tokens of all samples through one expert. The check therefore fills the lanes
with different values and compares each lane with a run of that lane alone: outputs, and the gradient of every tensor.

Lanes that hold the examples of one client have the same values; then each lane has one row, and the check is that no
example has a part in the gradient of another.

There are two passes, because the tuned layers compute them differently: one with all lanes and batches of equal length,
and one with fewer lanes and batches of unequal length. Three lanes are compared; the others run the same code.

A way to compute less (readout.py) is compared with the whole model in the same manner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.engine.bank import LaneBank
from fedelta.errors import FedeltaError
from fedelta.models.failures import model_errors
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.proof import TOLERANCE, exact, gap, perturbed

# Relative to the largest value in a gradient. Wider than for outputs, because a gradient is a sum over tokens and
# samples, and lanes change the order of that sum.
_GRADIENT_TOLERANCE = 1e-2
# Relative to the largest value in all gradients. A smaller gradient is only rounding error; that of the bias of an
# attention key is zero in exact arithmetic.
_ROUNDING = 1e-4

_FEW_LANES = 8

Outputs = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class _LaneInput:
    """The input of one lane: a number that names its random streams, its batch (int64), and its tuned tensors."""

    number: int
    rows: Tensor
    values: Params


@dataclass(frozen=True)
class _LaneOutput:
    """The result of one lane: outputs [E, rows, ...], and gradients by name."""

    outputs: Tensor
    grads: Params


def mixing(outputs: Outputs, bank: LaneBank, lanes: Lanes, num_rows: int, *, of_examples: bool = False) -> str | None:
    """How lanes that run together differ from each lane alone, in words; None if they do not differ.

    Bank and lanes are restored.

    Args:
        outputs: gives the model's outputs for rows of the training data, one tensor [N, ...] per exit, or just one.
        bank: the tuned tensors of the model.
        lanes: two lanes or more.
        num_rows: number of rows of the training data.
        of_examples: whether each lane has one example, and all have the same values.

    Raises:
        ModelError: the model fails with one lane.
    """
    # Rows of each lane. With many lanes one row is enough and saves memory; two lanes are both in the second pass too.
    all_lanes = (1 if of_examples or lanes.num > _FEW_LANES else 2,) * lanes.num
    fewer_lanes = _unequal(max(2, min(3, lanes.num - 1)), of_examples)
    with _trial(bank, lanes):
        for lengths in (all_lanes, fewer_lanes):
            batches = [(torch.arange(length) + 2 * number) % num_rows for number, length in enumerate(lengths)]
            inputs = _lane_inputs(batches, bank, of_examples)
            if problem := _problem(inputs, lambda lane_inputs: _run(lane_inputs, outputs, bank, lanes)):
                return f"with {len(inputs)} lanes {problem}"
    return None


def first_same(
    whole: Outputs,
    candidates: Sequence[Outputs],
    bank: LaneBank,
    lanes: Lanes,
    num_rows: int,
    *,
    of_examples: bool = False,
) -> int | None:
    """The number of the first candidate with the outputs and gradients of the `whole` model; None without one.

    Two lanes with batches of unequal length are tried, or one lane. Bank and lanes are restored.

    Args:
        whole: gives the model's outputs for rows of the training data, as in `mixing`.
        candidates: give what should be the same.
        bank: the tuned tensors of the model.
        lanes: any number.
        num_rows: number of rows of the training data.
        of_examples: whether each lane has one example, and all have the same values.

    Raises:
        ModelError: the whole model fails.
    """
    with _trial(bank, lanes):
        lengths = _unequal(min(2, lanes.num), of_examples)
        # From all over the data: the rows of one client may be broken.
        rows = torch.linspace(0, num_rows - 1, sum(lengths)).long()
        inputs = _lane_inputs(rows.split(lengths), bank, of_examples)
        expected = _run(inputs, whole, bank, lanes)
        # Without a finite output there is no evidence.
        if not any(bool(output.outputs.isfinite().any()) for output in expected):
            return None
        for number, candidate in enumerate(candidates):
            try:
                results = _run(inputs, candidate, bank, lanes)
            except FedeltaError:
                continue
            if not any(map(_difference, results, expected)):
                return number
    return None


@contextmanager
def _trial(bank: LaneBank, lanes: Lanes) -> Iterator[None]:
    """Restores bank, lanes and the global generator at the end."""
    active = lanes.active
    try:
        with exact(), bank.unchanged():
            yield
    finally:
        lanes.active = active


def _unequal(num_lanes: int, of_examples: bool) -> tuple[int, ...]:
    """The number of rows of each of up to three lanes: unequal, or one with an example in each lane."""
    return ((1, 1, 1) if of_examples else (2, 1, 2))[:num_lanes]


def _lane_inputs(batches: Sequence[Tensor], bank: LaneBank, of_examples: bool) -> list[_LaneInput]:
    """An input for each of `batches`, all with different values unless lanes have examples."""
    start = bank.read(0)
    return [
        _LaneInput(number, rows, perturbed(start, bank.spec, stream(0, "proof", 0 if of_examples else number)))
        for number, rows in enumerate(batches)
    ]


def _problem(inputs: Sequence[_LaneInput], run: Callable[[Sequence[_LaneInput]], list[_LaneOutput]]) -> str | None:
    """The first difference between all lanes together and the first two and the last lane alone; None without one."""
    compared = sorted({0, 1, len(inputs) - 1})
    alone = [run([inputs[number]])[0] for number in compared]
    try:
        together = run(inputs)
    except FedeltaError as error:
        return f"it fails: {error.message.rstrip('.')}"
    differences = (_difference(together[number], output) for number, output in zip(compared, alone, strict=True))
    return next(filter(None, differences), None)


def _run(inputs: Sequence[_LaneInput], outputs: Outputs, bank: LaneBank, lanes: Lanes) -> list[_LaneOutput]:
    """One forward and backward pass with a lane for each of `inputs`."""
    for lane, lane_input in enumerate(inputs[: len(bank.values_KP)]):
        bank.load(lane, lane_input.values)
    rows = torch.cat([lane_input.rows for lane_input in inputs])
    lengths = [len(lane_input.rows) for lane_input in inputs]
    noise = [stream(0, "proof", "noise", lane_input.number) for lane_input in inputs]
    with lanes.training(lengths, noise), model_errors("the model in lanes", {"rows": rows}):
        of_rows = torch.stack(outputs(rows))
        # Of words, whose number depends on the other rows of a batch, only the sum: it is 0 for those of padding.
        by_lane = (of_rows.sum(2) if of_rows.dim() > 3 else of_rows).split(lengths, dim=1)
        # A random direction instead of the task's loss, whose gradient may be so small that only rounding is left.
        direction = torch.randn(by_lane[0].shape[2:], generator=stream(0, "proof", "direction")).to(by_lane[0])
        bank.backward(torch.stack([(output * direction).sum() for output in by_lane]).sum())
    return [_LaneOutput(output.detach(), bank.gradient(lane)) for lane, output in enumerate(by_lane)]


def _difference(together: _LaneOutput, alone: _LaneOutput) -> str | None:
    """The first output or gradient beyond its tolerance, in words; None if there is none."""
    difference, size = gap(together.outputs, alone.outputs)
    if difference > TOLERANCE * size:
        return f"outputs of {size:.1e} differ by {difference:.1e} from those of one lane"
    gaps = {name: gap(together.grads[name], grad) for name, grad in alone.grads.items()}
    rounding = _ROUNDING * max(size for _, size in gaps.values())
    for name, (difference, size) in gaps.items():
        if difference > _GRADIENT_TOLERANCE * size + rounding:
            return f"a gradient of {size:.1e} for `{name}` differs by {difference:.1e} from that of one lane"
    return None
