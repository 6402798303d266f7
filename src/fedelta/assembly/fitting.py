"""Fits lanes and worker processes into the memory of this machine, before the first round."""

from __future__ import annotations

import logging

import torch

from fedelta.assembly.model import TunedModel
from fedelta.assembly.site import dp_of
from fedelta.config import Config
from fedelta.data.batches import FederatedData
from fedelta.engine.footprint import Footprint, footprint_of
from fedelta.engine.packs import MOST_PER_LANE
from fedelta.errors import ConfigError
from fedelta.machine import available_bytes, resident_bytes
from fedelta.runtimes.processes import OWN_BYTES, Processes
from fedelta.runtimes.starting import can_copy

logger = logging.getLogger("fedelta")

_SAMPLE_ROWS = 4  # texts are as long as the longest of these
# Of the tuned tensors of each client of a pack: its delta, and that as a payload.
_REPLY_COPIES = 2


def fit_lanes(config: Config, model: TunedModel, data: FederatedData) -> None:
    """Takes lanes away where a step of all of them would not fit into free memory; automatic lanes only.

    Halved until they fit, so that their number, on which the last bits depend, seldom changes with what is free.

    Raises:
        ConfigError: `runtime.lanes` is a number, and so many do not fit.
    """
    free, num_lanes = _free_bytes(model), model.lanes.num
    if free is None or num_lanes == 1:
        return
    batch_size, footprint = _lane_samples(config, data), _footprint(config, model, data)
    most = footprint.most_lanes(free, batch_size)
    if most >= num_lanes:
        return
    step = (
        f"a step of {num_lanes} lanes with {batch_size} sample{'s' * (batch_size > 1)} each takes about "
        f"{_mib(footprint.of_step(num_lanes, batch_size))} MiB, and {_mib(free)} MiB are free"
    )
    if config.runtime.lanes != "auto":
        raise ConfigError(
            [f"`runtime.lanes` is {num_lanes}, but {step}; expected {max(1, most)} or fewer, or 'auto'"],
            hint="a smaller `client.batch_size`, or for most models `runtime.compute_dtype` 'bfloat16', takes less.",
        )
    while num_lanes > max(1, most):
        num_lanes //= 2
    logger.warning("%d lanes instead of %d: %s.", num_lanes, model.lanes.num, step)
    model.lanes.limit(num_lanes, [model.backbone.module.get_parameter(name) for name in model.spec])


def fit_workers(config: Config, model: TunedModel, data: FederatedData, processes: Processes) -> Processes:
    """Returns `processes` with no more workers than there is memory for, if they start at once.

    Those that start when it is known that they save time are fitted then, to what training has taken.

    Raises:
        ConfigError: `runtime.workers` is a number, and so many do not fit.
    """
    runtime, available = config.runtime, available_bytes()
    if available is None or (runtime.workers == "auto" and runtime.name == "auto"):
        return processes
    parts = _parts(config, model, data)
    workers, each = processes.most_workers, sum(parts.values())
    most = max(1, available // each)
    if workers <= most:
        return processes
    terms = ", ".join(f"{_mib(num_bytes)} {purpose}" for purpose, num_bytes in parts.items())
    total = (
        f"they would take about {_mib(workers * each)} MiB, {_mib(each)} each ({terms}), and {_mib(available)} MiB "
        f"are free"
    )
    if runtime.workers == "auto":
        logger.warning("%d worker%s instead of %d: %s.", most, "s" * (most > 1), workers, total)
        return processes.limited(most)
    raise ConfigError(
        [f"`runtime.workers` is {workers}, but {total}; expected {most} or fewer, or 'auto'"],
        hint="a smaller `client.batch_size` or `runtime.lanes` lets more workers fit.",
    )


def _parts(config: Config, model: TunedModel, data: FederatedData) -> dict[str, int]:
    """Bytes that a worker takes of this machine's memory, by what for."""
    lanes, device = model.lanes.num, config.runtime.torch_device()
    parts = {
        # A copy of this process shares model and data with it.
        "for itself": OWN_BYTES if can_copy(device) else max(OWN_BYTES, resident_bytes() or 0),
        "for replies": lanes * MOST_PER_LANE * _REPLY_COPIES * 4 * model.spec.num_parameters,
    }
    if device != "cpu":  # a step takes memory of the worker's GPU
        return parts
    step = _footprint(config, model, data).of_step(lanes, _lane_samples(config, data))
    return {**parts, f"for a step of {lanes} lane{'s' * (lanes > 1)}": step}


def _footprint(config: Config, model: TunedModel, data: FederatedData) -> Footprint:
    sample = data.train.inputs.fetch(torch.arange(min(_SAMPLE_ROWS, len(data.train))))
    return footprint_of(
        model.backbone, model.spec, model.lanes, sample,
        optimizer=config.client.optimizer, dtype=config.runtime.compute_dtype,
    )  # fmt: skip


def _lane_samples(config: Config, data: FederatedData) -> int:
    """The largest number of samples of a lane in a step."""
    dp = dp_of(config.privacy)
    if dp is not None and dp.of_examples:
        return 1
    largest = max(map(len, [*data.partition.values(), *data.held_out.values()]))
    return min(config.client.batch_size, largest)


def _free_bytes(model: TunedModel) -> int | None:
    """Memory that is free where `model` is, on its GPU or in this machine; None if unknown."""
    device = model.backbone.module.get_parameter(model.spec.names[0]).device
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()


def _mib(num_bytes: int) -> str:
    return f"{-(-num_bytes // 2**20):,}"
