"""The model of a run: the backbone with its tuning method applied, and the tensors that round 1 starts from.

Both sides make it from the configuration and the class names, and get the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedelta.config import Config
from fedelta.data.clients import Clients
from fedelta.engine.exits import ExitSettings
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, ModelError
from fedelta.federation.tiers import Tiers
from fedelta.inference.adapter import Adapter, check_task, read_adapter
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
        backbone: with the tuning method applied.
        tuning: the method that is really used: where a run starts from an adapter, the adapter's.
        spec: what is tuned.
        lanes: of the modules that the method put in.
        params: the server's before round 1; on the CPU, float32.
        total_parameters: scalars of the model before tuning.
        identity: which base model it is (`tuning/identity.py`).
    """

    backbone: Backbone
    tuning: TuningMethod
    spec: ParamSpec
    lanes: Lanes
    params: Params
    total_parameters: int
    identity: Mapping[str, str]


def tuned_model(
    config: Config,
    backbone: Backbone,
    class_names: Sequence[str],
    *,
    num_lanes: int = 1,
    adapter: Adapter | None = None,
    sample: Mapping[str, Tensor] | None = None,
) -> TunedModel:
    """The model that `config` describes.

    Args:
        config: of the run.
        backbone: edited in place, and moved to the device of the run.
        class_names: in label order; nothing where the task has no classes.
        num_lanes: at most; a method whose tensors cannot carry as many has fewer.
        adapter: start from this one, whatever `model.adapter` and `[tuning]` say.
        sample: inputs of a few rows, on which it is proved that the tuning method does what it says; by default random
            ones, where the backbone knows what its inputs are.

    Raises:
        ModelError: the tuning method does not fit the backbone.
        AdapterError: the adapter does not fit the backbone or the classes.
        ConfigError: `[tuning]` or `model.batch_norm` contradicts the adapter or the backbone.
    """
    _refuse_lazy(backbone)
    total_parameters = backbone.num_parameters
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
    lanes = Lanes(min(num_lanes, tuning.max_lanes or num_lanes))
    sample = _random(backbone) if sample is None else sample
    if config.task.has_classes and sample is not None:
        _check_width(backbone, sample, len(class_names))
    spec = apply_tuning(config, tuning, backbone, lanes, sample)
    params = _start(backbone, spec) | ({} if start is None else _on_cpu(start.params))
    found = identity(backbone, spec.names, config.model if backbone.modality is not None else None)
    if start is not None and (other := unlike(start.identity, found)):
        logger.warning("the adapter was made for another base model: its %s differ.", ", ".join(other))
    return TunedModel(backbone, tuning, spec, lanes, params, total_parameters, found)


def _refuse_lazy(backbone: Backbone) -> None:
    """Refuses a module of the caller's own whose layers do not know their size yet."""
    lazy = [name for name, value in backbone.module.named_parameters() if nn.parameter.is_lazy(value)]
    if lazy:
        raise ModelError(
            f"{type(backbone.module).__name__} has tensors without a shape, such as `{lazy[0]}`.",
            hint="call it once on a batch before you give it away, so that its lazy layers find their sizes.",
        )


@torch.no_grad()
def _check_width(backbone: Backbone, sample: Mapping[str, Tensor], num_classes: int) -> None:
    """Refuses a classifier that has another number of classes than the data."""
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
    """What a client does in a round: `[client]`, in steps where the strategy counts in steps."""
    return config.client.in_steps(config.strategy.local_steps)


def _random(backbone: Backbone) -> Mapping[str, Tensor] | None:
    """Inputs of two rows; None where nobody knows what they are."""
    return None if backbone.modality is None else backbone.modality.export_inputs(2, 16, stream(0, "proof", "inputs"))


def apply_tuning(
    config: Config, tuning: TuningMethod, backbone: Backbone, lanes: Lanes, sample: Mapping[str, Tensor] | None = None
) -> ParamSpec:
    """Makes the tensors of `tuning` part of the backbone, and returns their specification.

    Args:
        config: of the run.
        tuning: the method.
        backbone: edited in place.
        lanes: of the modules that the method puts in.
        sample: inputs of a few rows to prove the method on; None where there is nothing to compute with.

    Raises:
        ModelError: the method does not fit the backbone.
        ConfigError: `model.batch_norm` has no effect, or is not that of a backbone of the caller's own.
    """
    generator = stream(config.seed, "tuning")
    if sample is None:
        spec = applied(tuning, backbone, lanes, generator)
    else:
        spec = apply_proved(tuning, backbone, lanes, generator, sample)
    _check_norms(config, tuning, backbone)
    return spec


def adopted_tuning(config: Config, adapter: Adapter, backbone: Backbone) -> TuningMethod:
    """The tuning method of the adapter that a run starts from, which has its place in `backbone`.

    Raises:
        ConfigError: section `[tuning]` says something else.
    """
    tuning, differing = _reconcile(config.tuning, adapter.tuning, backbone)
    if differing:
        raise ConfigError(
            [
                f"`tuning.{field}` is {ours!r}, but the adapter {config.model.adapter!r} has {theirs!r}"
                for field, ours, theirs in differing
            ],
            hint="leave `[tuning]` to the adapter: keep only its `name`; `--set tuning.r=` drops a key.",
        )
    return tuning


def tiers_of(config: Config, model: TunedModel, clients: Clients) -> Tiers | None:
    """How deep each client runs; None where all hold all that is tuned.

    Args:
        config: of the run.
        model: with exits or without.
        clients: all there are: a client's depth depends on its place among them.

    Raises:
        ConfigError: the section asks for exits that the model does not have.
    """
    num_blocks = len(exit_blocks(model.backbone.module))
    if not num_blocks and config.exits != ExitSettings():
        raise ConfigError(
            [f"`[exits]` is there, but tuning method {model.tuning.name!r} gives the model no exits"],
            hint="'accumulator' and 'exit-heads' do; leave the section out for the others.",
        )
    if not num_blocks:
        return None
    depths = config.exits.depths(clients, num_blocks, config.seed)
    owned = {
        depth: owned_at(model.backbone, model.spec, depth, config.exits.answers(depth))
        for depth in set(depths.values())
    }
    return None if all(len(names) == len(model.spec) for names in owned.values()) else Tiers(depths, owned)


def _reconcile(
    chosen: TuningMethod, theirs: TuningMethod, backbone: Backbone
) -> tuple[TuningMethod, list[tuple[str, object, object]]]:
    """The method of the adapter, with what a configuration may choose, and the fields that differ: ours, theirs."""
    name, their_name = (method.names if isinstance(method, Combined) else method.name for method in (chosen, theirs))
    if name != their_name:
        return theirs, [("name", name, their_name)]
    if isinstance(chosen, Combined) and isinstance(theirs, Combined):
        parts = [_reconcile(*pair, backbone) for pair in zip(chosen.methods, theirs.methods, strict=True)]
        methods = tuple(method for method, _ in parts)
        return theirs.model_copy(update={"methods": methods}), [field for _, fields in parts for field in fields]
    if isinstance(chosen, Lora) and isinstance(theirs, Lora):
        # An adapter from elsewhere may come without a head; whether ours is trained is the configuration's choice.
        theirs = theirs.model_copy(update={"train_head": theirs.train_head or chosen.train_head})
        if "target_modules" in chosen.model_fields_set and chosen.targets(backbone) == theirs.targets(backbone):
            chosen = chosen.model_copy(update={"target_modules": theirs.target_modules})
    values = (
        (name, getattr(chosen, name), getattr(theirs, name)) for name in sorted(as_settings(chosen).model_fields_set)
    )
    return theirs, [(name, ours, other) for name, ours, other in values if ours != other]


def _check_norms(config: Config, tuning: TuningMethod, backbone: Backbone) -> None:
    """Refuses a policy for batch norms that has no effect, or one that the caller's own model does not have."""
    policy = config.model.batch_norm
    if policy != backbone.batch_norm:
        raise ConfigError(
            [f"`model.batch_norm` is {policy!r}, but the backbone that was given has {backbone.batch_norm!r}"],
            hint="a backbone of your own says it itself: `Backbone(..., batch_norm=...)`.",
        )
    trains_norms = any(isinstance(layer, LaneBatchNorm | LaneGroupNorm) for layer in backbone.module.modules())
    if policy != "average" and not trains_norms:
        raise ConfigError(
            [f"`model.batch_norm` is {policy!r}, but tuning method {tuning.name!r} trains no norm"],
            hint="'full' and 'parallel' do; leave it out for the others.",
        )


def _start(backbone: Backbone, spec: ParamSpec) -> Params:
    """A copy of the tuned tensors as the method made them, the same in every lane."""
    values = {name: backbone.module.get_parameter(name) for name in spec}
    return _on_cpu({name: _lane(value, spec.tensors[name].shape).detach().clone() for name, value in values.items()})


def _lane(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first lane of a tensor, or all of one that has no lanes."""
    return value if value.shape == shape else value[0]


def _on_cpu(params: Params) -> Params:
    return {name: tensor.detach().cpu().float() for name, tensor in params.items()}
