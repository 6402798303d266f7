"""What an answer costs at each exit: multiplications, and milliseconds on the machine that asks.

Both are of one example and of everything from the input to that exit's answer, without the answers of other exits and
without reading and preparing the example.

FLOPs are those of matrix products and convolutions, two for a multiplication with its addition; norms, activations and
sums are left out, as PyTorch's counter does.
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

_WARM_UP = 2  # passes that are not counted: memory is laid out, kernels are chosen
_LEAST, _MOST = 3, 50  # passes of which the median is taken
_SECONDS = 1.0  # after them no further pass begins, once there are enough


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
            InputError: not even the first does.
        """
        fitting = [number for number, each in enumerate(self.milliseconds, start=1) if each <= budget_ms]
        if not fitting:
            raise InputError(
                f"the budget is {budget_ms:g} ms, but the first of {len(self.milliseconds)} exits takes "
                f"{self.milliseconds[0]:.3g} ms on this machine.",
                hint=f"give at least {self.milliseconds[0] * 1.01:.3g} ms; all exits take {self.milliseconds[-1]:.3g}.",
            )
        return fitting[-1]


def costs_of(run: Path, backbone: Backbone, inputs: dict[str, Tensor] | None = None) -> Costs:
    """What the exits of a run's model cost here: read from the run directory, or measured and kept there.

    Args:
        run: the run directory; what it holds counts where it was measured on an equal machine, with as many threads
            and the same PyTorch.
        backbone: the run's model, with one lane in use.
        inputs: see `calibrate`.

    Raises:
        ModelError: the model has no exits.
    """
    path, num_exits = run / rundir.EXITS, len(exits_of(backbone))
    kept = _read(path)
    if kept is not None and kept.machine == machine(_device(backbone)) and len(kept.milliseconds) == num_exits:
        return kept
    found = calibrate(backbone, inputs)
    try:
        write_atomic(path, to_json(found.model_dump(), indent=2) + "\n")
    except OSError as error:  # a run that may only be read still answers
        logger.warning("the latencies cannot be kept in %r: %s", str(path), error.strerror or error)
    return found


@torch.no_grad()
def calibrate(backbone: Backbone, inputs: dict[str, Tensor] | None = None) -> Costs:
    """Measures what the exits of a model cost on this machine, with as many threads as PyTorch has now.

    It takes a second, or six passes through the model where these take longer.

    Args:
        backbone: has exits, and one lane in use.
        inputs: of one example; by default an image of the model's size, or the longest text that it takes.

    Raises:
        ModelError: the model has no exits, or no modality, and `inputs` is not given.
    """
    blocks, device = exits_of(backbone), _device(backbone)
    inputs = {name: tensor.to(device) for name, tensor in (inputs or one_example(backbone)).items()}

    def passed(meter: Callable[[], float]) -> list[float]:
        """By how much `meter` goes up until each exit has answered, less what the answers before it took."""
        start, answers, found = meter(), 0.0, []
        for block in walk(blocks, lambda: backbone.logits(inputs)):
            reached = meter()
            block.answer()
            own = meter() - reached
            found.append(reached - start - answers + own)
            answers += own
        return found

    # PyTorch counts nothing of its fused attention on CPUs; taken apart it is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        flops = passed(counter.get_total_flops)
    for _ in range(_WARM_UP):
        passed(_clock(device))
    times: list[list[float]] = []
    began = time.perf_counter()
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() - began < _SECONDS):
        times.append(passed(_clock(device)))
    medians = [1000 * statistics.median(each) for each in zip(*times, strict=True)]
    # An exit has run all blocks of those before it; where it seems to be faster, the clock was disturbed.
    rising = tuple(accumulate(medians, max))
    return Costs(flops=tuple(map(int, flops)), milliseconds=rising, machine=machine(device))


def one_example(backbone: Backbone) -> dict[str, Tensor]:
    """Model inputs of one example that costs as much as any: a black image, silence, or a text of the greatest length.

    Raises:
        ModelError: the model has no modality.
    """
    if backbone.modality is None:
        raise ModelError(
            "this backbone has no modality that could make an example.", hint="give `inputs` of one example."
        )
    return backbone.modality.costliest()


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds, after everything that was asked of `device` is done."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _device(backbone: Backbone) -> torch.device:
    return next(backbone.module.parameters()).device


def _read(path: Path) -> Costs | None:
    """What is at `path`; None where that is nothing, or nothing of use: it can be measured again."""
    try:
        return Costs.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
