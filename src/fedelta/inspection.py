"""`fedelta inspect`: sizes of what a configuration would tune and send, without training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from fedelta.assembly.model import adopted_tuning, apply_tuning
from fedelta.codecs.wire import encode
from fedelta.config import Config
from fedelta.data.sources import class_names
from fedelta.errors import DataError
from fedelta.federation.tiers import Tiers
from fedelta.imports import collector_paused
from fedelta.inference.adapter import read_adapter
from fedelta.inference.translate import placed
from fedelta.models.hub import Backbone, build
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.record.runlog import BYTES_PER_FLOAT32
from fedelta.seeds import stream
from fedelta.tuning.exits import exit_blocks, owned_at
from fedelta.tuning.lanes import Lanes

logger = logging.getLogger("fedelta")


@dataclass(frozen=True)
class Tier:
    """Sizes for a client that runs only the blocks up to an exit.

    Args:
        depth: number of blocks.
        tuned_parameters: number of scalars that it trains, given the exits that `[exits]` has it learn at.
        payload_bytes: length of one upload with all of its tensors.
    """

    depth: int
    tuned_parameters: int
    payload_bytes: int


@dataclass(frozen=True)
class Inspection:
    """Sizes of the tuned tensors and of their payloads.

    Args:
        tuned_parameters: number of scalars that are trained.
        total_parameters: number of scalars of the model.
        running_statistics: number of scalars of batch norms that travel but are not trained.
        groups: group to the number of its scalars that travel, those that the strategy adds included.
        payload_bytes: length of one upload with all tensors, header included.
        download_bytes: length of the first download of a client, or of any if downloads carry whole values.
        change_bytes: length of the download of a client that was in the round before; None if downloads carry whole
            values.
        is_estimate: whether the lengths depend on the values; these are drawn from a normal distribution.
        tensor_bytes: length of one upload without the header.
        full_model_bytes: length of the whole model in float32, without running statistics.
        tiers: one for each exit; empty for a model without exits.
    """

    tuned_parameters: int
    total_parameters: int
    running_statistics: int
    groups: dict[str, int]
    payload_bytes: int
    download_bytes: int
    tensor_bytes: int
    full_model_bytes: int
    change_bytes: int | None = None
    is_estimate: bool = False
    tiers: tuple[Tier, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def inspect(config: Config) -> Inspection:
    """Returns the sizes for `config`, from a model without memory and encoded numbers.

    Reads the data only to find their classes or the numbers of a regression: not if `model.num_classes` is set, nor for
    the embedded digits.

    Raises:
        InputError: something in the configuration cannot be used.
    """
    names = _class_names(config)
    with collector_paused():  # on the device "meta" most of the time goes into imports
        backbone = build(config.model, names, seed=config.seed, device="meta", task=config.task)
    total_parameters = backbone.num_parameters
    tuning = config.tuning
    if config.model.adapter is not None:
        adapter = placed(read_adapter(config.model.adapter, backbone.anatomy), backbone)
        tuning = adopted_tuning(config, adapter, backbone)
    spec = apply_tuning(config, tuning, backbone, Lanes(1))
    steering = config.strategy.steering
    wire = spec if steering is None else steering.extend(spec)
    shared = {name: wire.tensors[name] for name in wire.shared}
    codec = config.codec
    values = _values(shared, drawn=codec.is_estimate)
    payload, tensor_bytes = encode(values, wire, codec.up, compress=codec.compresses)
    return Inspection(
        tuned_parameters=spec.num_parameters,
        total_parameters=total_parameters,
        running_statistics=sum(spec.tensors[name].numel for name in spec.statistics),
        groups={
            group: sum(shared[name].numel for name in names if name in shared and name not in spec.statistics)
            for group, names in wire.groups.items()
        },
        payload_bytes=len(payload),
        download_bytes=len(codec.first_download(values, wire)),
        change_bytes=len(codec.change(values, wire)) if codec.sends_changes else None,
        is_estimate=codec.is_estimate,
        tensor_bytes=sum(tensor_bytes.values()),
        full_model_bytes=BYTES_PER_FLOAT32 * total_parameters,
        tiers=_tiers(config, backbone, spec, wire),
    )


def _values(tensors: Mapping[str, TensorSpec], *, drawn: bool) -> Params:
    """Values to encode: zeros, or drawn numbers where the length of what is encoded depends on them."""
    return {
        name: torch.randn(tensor.shape, generator=stream(0, name)) if drawn else torch.zeros(tensor.shape)
        for name, tensor in tensors.items()
    }


def _class_names(config: Config) -> tuple[str, ...]:
    """The names of the outputs: those of the data, of several columns, or numbers if `model.num_classes` is set."""
    task, num_classes, columns = config.task, config.model.num_classes, config.data.label_columns or ()
    if task.has_classes and num_classes is not None:
        return tuple(map(str, range(num_classes)))
    if not task.has_classes and len(columns) > 1:
        return columns
    if task.num_outputs(("0", "1")) == 1:
        return ()  # whatever the data hold
    try:
        return class_names(config.data, seed=config.seed, task=task)
    except DataError as error:
        if task.has_classes:
            raise
        logger.warning("sizes are those for one number, because the targets cannot be read: %s", error)
        return ()


def _tiers(config: Config, backbone: Backbone, spec: ParamSpec, wire: ParamSpec) -> tuple[Tier, ...]:
    depths = range(1, len(exit_blocks(backbone.module)) + 1)
    tiers = Tiers(
        dict(zip(depths, depths, strict=True)),
        {depth: owned_at(backbone, spec, depth, config.exits.answers(depth)) for depth in depths},
    )
    sizes = []
    for depth in depths:
        owned = {name: wire.tensors[name] for name in wire.shared if tiers.owns(depth, name)}
        values = _values(owned, drawn=config.codec.is_estimate)
        scalars = sum(spec.tensors[name].numel for name in values if name in spec and spec.tensors[name].trained)
        sizes.append(Tier(depth, scalars, len(config.codec.upload(values, wire))))
    return tuple(sizes)
