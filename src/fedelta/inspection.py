"""`fedelta inspect`: sizes of what a configuration would tune and send, without training."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

from fedelta.assembly.model import adopted_tuning, apply_tuning
from fedelta.assembly.sizes import Sizes, ranks_of_method
from fedelta.config import Config
from fedelta.data.sources import class_names
from fedelta.errors import DataError
from fedelta.federation.tiers import Tiers
from fedelta.imports import collector_paused
from fedelta.inference.adapter import read_adapter
from fedelta.inference.translate import placed
from fedelta.models.hub import Backbone, build
from fedelta.params import ParamSpec
from fedelta.record.runlog import BYTES_PER_FLOAT32
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
class Ranked:
    """Sizes for the clients of a rank (`tuning.rank_by_client`).

    Args:
        rank: of their pairs.
        payload_bytes: length of one upload with all of its tensors.
        download_bytes: length of a download before anything is carried beside the pairs.
    """

    rank: int
    payload_bytes: int
    download_bytes: int


@dataclass(frozen=True)
class Inspection:
    """Sizes of the tuned tensors and of their payloads.

    Args:
        tuned_parameters: number of scalars that are trained.
        total_parameters: number of scalars of the model.
        running_statistics: number of scalars of batch norms that travel but are not trained.
        groups: group to the number of its scalars that travel, those that the strategy adds included.
        payload_bytes: length of one upload with all tensors, header included; with ranks that differ of a client that
            has the rank of the server, and where factors take turns the longer one.
        download_bytes: length of the first download of a client, or of any if downloads carry whole values.
        change_bytes: length of the download of a client that was in the round before; None if downloads carry whole
            values.
        is_estimate: whether the lengths depend on the values; these are drawn from a normal distribution.
        largest_download_bytes: length of a download in the last round, with what is carried beside the pairs by then if
            every reply counts (aggregation/carrying.py); None if nothing is carried.
        tensor_bytes: length of that upload without the header.
        full_model_bytes: length of the whole model in float32, without running statistics.
        tiers: one for each exit; empty for a model without exits.
        ranks: one for each rank that clients have, ascending; empty if all have that of the server.
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
    largest_download_bytes: int | None = None
    tiers: tuple[Tier, ...] = ()
    ranks: tuple[Ranked, ...] = ()

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
    codec, sizes = config.codec, Sizes(config, tuning, spec)
    wire, values = sizes.wire, sizes.values(sizes.wire.shared)
    shared = {name: wire.tensors[name] for name in wire.shared}
    upload, tensor_bytes = sizes.upload()
    return Inspection(
        tuned_parameters=spec.num_parameters,
        total_parameters=total_parameters,
        running_statistics=sum(spec.tensors[name].numel for name in spec.statistics),
        groups={
            group: sum(shared[name].numel for name in names if name in shared and name not in spec.statistics)
            for group, names in wire.groups.items()
        },
        payload_bytes=len(upload),
        download_bytes=sizes.download_bytes(wire.shared),
        change_bytes=len(codec.change(values, wire)) if codec.sends_changes else None,
        is_estimate=codec.is_estimate,
        largest_download_bytes=sizes.download_bytes(wire.shared, at_most=True) if wire.received else None,
        tensor_bytes=sum(tensor_bytes.values()),
        full_model_bytes=BYTES_PER_FLOAT32 * total_parameters,
        tiers=_tiers(config, backbone, spec, sizes),
        ranks=tuple(
            Ranked(rank, len(sizes.upload(rank)[0]), sizes.download_bytes(wire.shared, rank))
            for rank in ranks_of_method(tuning)
        ),
    )


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


def _tiers(config: Config, backbone: Backbone, spec: ParamSpec, sizes: Sizes) -> tuple[Tier, ...]:
    depths = range(1, len(exit_blocks(backbone.module)) + 1)
    tiers = Tiers(
        dict(zip(depths, depths, strict=True)),
        {depth: owned_at(backbone, spec, depth, config.exits.answers(depth)) for depth in depths},
    )
    rows = []
    for depth in depths:
        owned = [name for name in sizes.wire.shared if tiers.owns(depth, name)]
        scalars = sum(spec.tensors[name].numel for name in owned if name in spec and spec.tensors[name].trained)
        rows.append(Tier(depth, scalars, len(sizes.upload(names=owned)[0])))
    return tuple(rows)
