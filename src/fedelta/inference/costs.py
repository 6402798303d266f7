"""The cost of an answer at each exit: FLOPs, and milliseconds on this machine.

Both are for one example, from the model's input to the exit's answer, without the answers of other exits and without
reading and preparing the example.

FLOPs are those of matrix products and convolutions; a multiplication with its addition counts as two. Norms,
activations and sums are left out, as in PyTorch's counter.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedelta.durable import write_atomic
from fedelta.errors import InputError, ModelError
from fedelta.inference.anytime import exits_of
from fedelta.models.hub import Backbone
from fedelta.record import rundir
from fedelta.record.environment import machine
from fedelta.record.files import to_json
from fedelta.settings import Settings
from fedelta.tuning.exits import walk

logger = logging.getLogger("fedelta")

_WARM_UP = 2  # uncounted passes, in which memory is allocated and kernels are selected
_LEAST, _MOST = 3, 50  # number of passes for the median
_SECONDS = 1.0  # no further pass begins after this time, once there are `_LEAST`


class Costs(Settings):
    """The content of `exits.json`; one value per exit, lowest first.

    Args:
        flops: see above.
        milliseconds: median of several passes.
        machine: where `milliseconds` were measured.
    """

    flops: tuple[int, ...]
    milliseconds: tuple[float, ...]
    machine: dict[str, str | int | None]

    def deepest(self, budget_ms: float) -> int:
        """Number of the deepest exit that answers within `budget_ms` milliseconds.

        Raises:
            InputError: even the first exit takes longer.
        """
        fitting = [number for number, time_ms in enumerate(self.milliseconds, start=1) if time_ms <= budget_ms]
        if not fitting:
            raise InputError(
                f"the budget is {budget_ms:g} ms, but the first of {len(self.milliseconds)} exits takes "
                f"{self.milliseconds[0]:.3g} ms on this machine.",
                hint=f"use at least {self.milliseconds[0] * 1.01:.3g} ms; the last exit takes "
                f"{self.milliseconds[-1]:.3g} ms.",
            )
        return fitting[-1]


def costs_of(run: Path, backbone: Backbone, inputs: dict[str, Tensor] | None = None) -> Costs:
    """The costs of the exits of a run's model on this machine: read from the run directory, or measured.

    Args:
        run: the run directory; its costs are used if they were measured on an equal machine, with the same number of
            threads and the same PyTorch.
        backbone: the run's model, with one lane in use.
        inputs: see `calibrate`.

    Raises:
        ModelError: the model has no exits.
    """
    path, num_exits = run / rundir.EXITS, len(exits_of(backbone))
    stored = _read(path)
    if stored is not None and stored.machine == machine(_device(backbone)) and len(stored.milliseconds) == num_exits:
        return stored
    costs = calibrate(backbone, inputs)
    try:
        write_atomic(path, to_json(costs.model_dump(), indent=2) + "\n")
    except OSError as error:  # a read-only run directory can still be used
        logger.warning("the latencies cannot be stored in %r: %s", str(path), error.strerror or error)
    return costs


@torch.no_grad()
def calibrate(backbone: Backbone, inputs: dict[str, Tensor] | None = None) -> Costs:
    """Measures the costs of a model's exits on this machine, with PyTorch's current number of threads.

    Takes a second, or six passes through the model if these take longer.

    Args:
        backbone: has exits, and one lane in use.
        inputs: of one example; by default an image of the model's size, or the longest text that it takes.

    Raises:
        ModelError: the model has no exits, or no modality, and `inputs` is not given.
    """
    blocks, device = exits_of(backbone), _device(backbone)
    inputs = {name: tensor.to(device) for name, tensor in (inputs or one_example(backbone)).items()}

    def measured(meter: Callable[[], float]) -> list[float]:
        """The increase of `meter` until each exit has answered, without the answers of earlier exits."""
        start, answers, costs = meter(), 0.0, []
        for block in walk(blocks, lambda: backbone.logits(inputs)):
            reached = meter()
            block.answer()
            answer = meter() - reached
            costs.append(reached - start - answers + answer)
            answers += answer
        return costs

    # PyTorch does not count its fused attention on CPUs; the math backend is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        flops = measured(counter.get_total_flops)
    for _ in range(_WARM_UP):
        measured(_clock(device))
    times: list[list[float]] = []
    began = time.perf_counter()
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() - began < _SECONDS):
        times.append(measured(_clock(device)))
    medians = [1000 * statistics.median(seconds) for seconds in zip(*times, strict=True)]
    # A later exit runs all earlier blocks too. If it seems faster, the measurement was disturbed.
    rising = tuple(accumulate(medians, max))
    return Costs(flops=tuple(map(int, flops)), milliseconds=rising, machine=machine(device))


def one_example(backbone: Backbone) -> dict[str, Tensor]:
    """Model inputs of one example with the highest possible cost: a black image, silence, or a text of maximum length.

    Raises:
        ModelError: the model has no modality.
    """
    if backbone.modality is None:
        raise ModelError("this backbone has no modality to create an example.", hint="pass `inputs` of one example.")
    return backbone.modality.costliest()


def _clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds that waits until `device` has finished its work."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _device(backbone: Backbone) -> torch.device:
    return next(backbone.module.parameters()).device


def _read(path: Path) -> Costs | None:
    """The costs in the file at `path`; None if it is missing or invalid, as costs can be measured again."""
    try:
        return Costs.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
