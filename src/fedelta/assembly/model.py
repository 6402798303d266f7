"""The model of a run: the backbone with its tuning method applied, and the tensors that round 1 starts from.

Server and site each build it from the configuration and the class names, and get the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedelta.aggregation.low_rank import prepared
from fedelta.config import Config
from fedelta.data.clients import Clients
from fedelta.engine.exits import ExitSettings
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, ModelError
from fedelta.federation.tiers import Tiers
from fedelta.inference.adapter import SavedAdapter, check_task, read_adapter
from fedelta.inference.classes import check_classes, in_order
from fedelta.inference.translate import placed
from fedelta.models.failures import model_errors
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.settings.base import as_settings
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.contract import applied
from fedelta.tuning.exits import exit_blocks, owned_at
from fedelta.tuning.full import Full
from fedelta.tuning.identity import identity, unlike
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.norms import LaneBatchNorm, LaneGroupNorm
from fedelta.tuning.proof import apply_proved

logger = logging.getLogger("fedelta")


@dataclass(frozen=True)
class TunedModel:
    """A backbone that can be trained.

    Args:
        backbone: the model with the tuning method applied.
        tuning: the method in use: that of the adapter if the run starts from one.
        spec: the tensors that are tuned.
        lanes: of the modules that the method inserted.
        params: of the server before round 1; on the CPU, float32.
        total_parameters: number of scalars of the model before tuning.
        identity: digests that identify the base model (`tuning/identity.py`).
        base_bytes: size of its tensors before tuning.
    """

    backbone: Backbone
    tuning: TuningMethod
    spec: ParamSpec
    lanes: Lanes
    params: Params
    total_parameters: int
    identity: Mapping[str, str]
    base_bytes: int


def tuned_model(
    config: Config,
    backbone: Backbone,
    class_names: Sequence[str],
    *,
    num_lanes: int = 1,
    adapter: SavedAdapter | None = None,
    sample: Mapping[str, Tensor] | None = None,
) -> TunedModel:
    """Returns the model that `config` describes, with its tuning method applied.

    Args:
        config: of the run.
        backbone: edited in place, and moved to the device of the run.
        class_names: in label order; empty if the task has no classes.
        num_lanes: upper limit; a tuning method may support fewer.
        adapter: starting point that overrides `model.adapter` and `[tuning]`.
        sample: inputs of a few rows, on which the tuning method is checked (`tuning/proof.py`); by default random
            inputs, if the backbone has a modality that can make them.

    Raises:
        ModelError: the tuning method does not fit the backbone.
        AdapterError: the adapter does not fit the backbone or the classes.
        ConfigError: `[tuning]` or `model.batch_norm` contradicts the adapter or the backbone.
    """
    _refuse_lazy(backbone)
    total_parameters, base_bytes = backbone.num_parameters, backbone.num_bytes
    backbone.module.to(config.runtime.torch_device())
    start = adapter
    if start is None and config.model.adapter is not None:
        start = read_adapter(config.model.adapter, backbone.anatomy)
    tuning = config.tuning
    if start is not None:
        check_task(start, config.task)
        check_classes(start, class_names)
        start = in_order(placed(start, backbone), class_names, backbone)
        tuning = start.tuning if adapter is not None else adopted_tuning(config, start, backbone)
    lanes = Lanes(_most_lanes(config, tuning, num_lanes))
    sample = _random(backbone) if sample is None else sample
    if config.task.has_classes and sample is not None:
        _check_width(backbone, sample, len(class_names))
    spec, lanes = _applied_in_lanes(config, tuning, backbone, lanes, sample)
    params = _start(backbone, spec) | ({} if start is None else _on_cpu(start.params))
    identity_now = identity(backbone, spec.names, config.model if backbone.modality is not None else None)
    if start is not None and (changed_parts := unlike(start.identity, identity_now)):
        logger.warning("the adapter was made for another base model: its %s differ.", ", ".join(changed_parts))
    return TunedModel(backbone, tuning, spec, lanes, params, total_parameters, identity_now, base_bytes)


def _most_lanes(config: Config, tuning: TuningMethod, num_lanes: int) -> int:
    """As many of `num_lanes` as the method may have."""
    if isinstance(tuning, Full) and not isinstance(config.tuning, Full):
        return 1  # the number was made for a method whose lanes share the model
    return min(num_lanes, tuning.max_lanes or num_lanes)


def _applied_in_lanes(
    config: Config, tuning: TuningMethod, backbone: Backbone, lanes: Lanes, sample: Mapping[str, Tensor] | None
) -> tuple[ParamSpec, Lanes]:
    """The specification of the tuned tensors, and the lanes: one if the model cannot give all its layers lanes."""
    asked, name = lanes.num, type(backbone.module).__name__
    reason = "a layer of it has tensors of a kind that cannot have lanes"
    try:
        spec = apply_tuning(config, tuning, backbone, lanes, sample)
    except ModelError as error:
        if asked == 1 or not isinstance(tuning, Full):
            raise
        # Its code uses the tensors of a layer without calling the layer.
        tuning.merge(backbone)
        lanes, reason = Lanes(1), error.message
        spec = apply_tuning(config, tuning, backbone, lanes, sample)
    if lanes.num < asked and config.runtime.lanes != "auto":
        logger.warning("one lane instead of %d: %s; %s", asked, name, reason)
    return spec, lanes


def _refuse_lazy(backbone: Backbone) -> None:
    """Raises if the caller's module has lazy layers, whose tensors have no shape before the first call."""
    lazy = [name for name, value in backbone.module.named_parameters() if nn.parameter.is_lazy(value)]
    if lazy:
        raise ModelError(
            f"{type(backbone.module).__name__} has tensors without a shape, such as `{lazy[0]}`.",
            hint="call it on one batch first, which gives lazy layers their sizes.",
        )


@torch.no_grad()
def _check_width(backbone: Backbone, sample: Mapping[str, Tensor], num_classes: int) -> None:
    """Raises if the classifier and the data have different numbers of classes."""
    device = next(backbone.module.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in sample.items()}
    with model_errors(type(backbone.module).__name__, inputs), torch.random.fork_rng(devices=[]):
        shape = backbone.logits(inputs).shape
    if shape[1:].numel() != num_classes and len(shape) == 2:
        raise ModelError(
            f"{type(backbone.module).__name__} gives {shape[1]} logits a row, but the data have {num_classes} classes.",
            hint="give it a head with one output for each class.",
        )


def work_of(config: Config) -> ClientSettings:
    """Section `[client]`, counted in local steps instead of epochs if the strategy counts steps."""
    return config.client.in_steps(config.strategy.local_steps)


def _random(backbone: Backbone) -> Mapping[str, Tensor] | None:
    """Random inputs of two rows; None for a backbone without a modality."""
    return None if backbone.modality is None else backbone.modality.export_inputs(2, 16, stream(0, "proof", "inputs"))


def apply_tuning(
    config: Config, tuning: TuningMethod, backbone: Backbone, lanes: Lanes, sample: Mapping[str, Tensor] | None = None
) -> ParamSpec:
    """Adds the tensors of `tuning` to the backbone, and returns their specification.

    Args:
        config: of the run.
        tuning: the tuning method.
        backbone: edited in place.
        lanes: of the modules that the method inserts.
        sample: inputs of a few rows, on which the method is checked; None skips the check.

    Raises:
        ModelError: the method does not fit the backbone.
        ConfigError: `model.batch_norm` has no effect, or differs from that of the caller's backbone.
    """
    generator = stream(config.seed, "tuning")
    if sample is None:
        spec = applied(tuning, backbone, lanes, generator)
    else:
        spec = apply_proved(tuning, backbone, lanes, generator, sample)
    _check_norms(config, tuning, backbone)
    return prepared(config.aggregation, backbone.module, spec)


def adopted_tuning(config: Config, adapter: SavedAdapter, backbone: Backbone) -> TuningMethod:
    """Returns the tuning method of the adapter that a run starts from.

    Raises:
        ConfigError: section `[tuning]` contradicts the adapter.
    """
    tuning, differing = _reconcile(config.tuning, adapter.tuning, backbone)
    if differing:
        raise ConfigError(
            [
                f"`tuning.{field}` is {configured!r}, but the adapter {config.model.adapter!r} has {adopted!r}"
                for field, configured, adopted in differing
            ],
            hint="leave `[tuning]` to the adapter: keep only its `name`; `--set tuning.r=` drops a key.",
        )
    return tuning


def tiers_of(config: Config, model: TunedModel, clients: Clients) -> Tiers | None:
    """Returns the depth of each client; None if all clients hold all tuned tensors.

    Args:
        config: of the run.
        model: with or without exits.
        clients: all clients; a client's depth depends on its position among them.

    Raises:
        ConfigError: `[exits]` is set, but the model has no exits.
    """
    num_blocks = len(exit_blocks(model.backbone.module))
    if not num_blocks and config.exits != ExitSettings():
        raise ConfigError(
            [f"`[exits]` is there, but tuning method {model.tuning.name!r} gives the model no exits"],
            hint="'accumulator' and 'exit-heads' do; leave the section out for the others.",
        )
    if not num_blocks:
        return None
    return tiers_at(config, model, config.exits.depths(clients, num_blocks, config.seed))


def tiers_at(config: Config, model: TunedModel, depths: Mapping[int, int]) -> Tiers | None:
    """Returns what clients of these depths hold; None if that is all for each of them.

    Args:
        config: of the run.
        model: with exits.
        depths: client id to a number of blocks that the model has.
    """
    owned = {
        depth: owned_at(model.backbone, model.spec, depth, config.exits.answers(depth))
        for depth in set(depths.values())
    }
    return None if all(len(names) == len(model.spec) for names in owned.values()) else Tiers(depths, owned)


def _reconcile(
    chosen: TuningMethod, adopted: TuningMethod, backbone: Backbone
) -> tuple[TuningMethod, list[tuple[str, object, object]]]:
    """The adapter's method, with the choices that a configuration may make, and the fields in which the two differ.

    A field is its name, the configuration's value and the adapter's value.
    """
    name, adopted_name = (method.names if isinstance(method, Combined) else method.name for method in (chosen, adopted))
    if name != adopted_name:
        return adopted, [("name", name, adopted_name)]
    if isinstance(chosen, Combined) and isinstance(adopted, Combined):
        parts = [_reconcile(*pair, backbone) for pair in zip(chosen.methods, adopted.methods, strict=True)]
        methods = tuple(method for method, _ in parts)
        return adopted.model_copy(update={"methods": methods}), [field for _, fields in parts for field in fields]
    if isinstance(chosen, Lora) and isinstance(adopted, Lora):
        adopted = adopted.model_copy(update={"rank_by_client": chosen.rank_by_client})
        # An adapter from elsewhere may lack a head; then the configuration decides whether one is trained.
        if adopted.train_head is False:
            adopted = adopted.model_copy(update={"train_head": chosen.train_head})
        elif chosen.train_head:  # as it is by default, where there is a head
            chosen = chosen.model_copy(update={"train_head": adopted.train_head})
        if "target_modules" in chosen.model_fields_set and chosen.targets(backbone) == adopted.targets(backbone):
            chosen = chosen.model_copy(update={"target_modules": adopted.target_modules})
    values = (
        (field, getattr(chosen, field), getattr(adopted, field))
        for field in sorted(as_settings(chosen).model_fields_set)
    )
    return adopted, [
        (field, chosen_value, adopted_value)
        for field, chosen_value, adopted_value in values
        if chosen_value != adopted_value
    ]


def _check_norms(config: Config, tuning: TuningMethod, backbone: Backbone) -> None:
    """Raises if `model.batch_norm` has no effect, or differs from that of the caller's backbone."""
    policy = config.model.batch_norm
    if policy != backbone.batch_norm:
        raise ConfigError(
            [f"`model.batch_norm` is {policy!r}, but the backbone that was given has {backbone.batch_norm!r}"],
            hint="for a backbone of your own, set it there: `Backbone(..., batch_norm=...)`.",
        )
    trains_norms = any(isinstance(layer, LaneBatchNorm | LaneGroupNorm) for layer in backbone.module.modules())
    if policy != "average" and not trains_norms:
        raise ConfigError(
            [f"`model.batch_norm` is {policy!r}, but tuning method {tuning.name!r} trains no norm"],
            hint="choose a method that trains norms, such as 'full' or 'parallel', or leave the key out.",
        )


def _start(backbone: Backbone, spec: ParamSpec) -> Params:
    """A copy of the tuned tensors as the method initialised them; all lanes start with the same values."""
    values = {name: backbone.module.get_parameter(name) for name in spec}
    return _on_cpu({name: _lane(value, spec.tensors[name].shape).detach().clone() for name, value in values.items()})


def _lane(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first lane of a tensor; the tensor itself if it has no lanes."""
    return value if value.shape == shape else value[0]


def _on_cpu(params: Params) -> Params:
    return {name: tensor.detach().cpu().float() for name, tensor in params.items()}
