"""A configuration becomes objects: data, model, tuning method, engine, strategy, runtime.

The only file that knows every part. What is done with the objects is experiment.py's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import torch

from fedelta.codecs.wire import encode
from fedelta.config import Config
from fedelta.data.batches import FederatedData, LabelledData
from fedelta.data.federate import adapted
from fedelta.data.federate import federate as divide
from fedelta.data.sources import RawData, read
from fedelta.engine.exits import ExitSettings
from fedelta.engine.lanes import LaneEngine
from fedelta.errors import ConfigError, ModelError
from fedelta.federation.client import Site
from fedelta.federation.rounds import Federation
from fedelta.federation.tiers import Tiers
from fedelta.inference.adapter import Adapter, check_classes, check_fits, read_adapter
from fedelta.models.hub import Backbone, build
from fedelta.params import Params, ParamSpec, select
from fedelta.runtimes.simulation import Simulation
from fedelta.runtimes.stability import Unstable
from fedelta.seeds import stream
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.windows import Windows
from fedelta.tasks.base import Evaluation, mean_of
from fedelta.tuning import AnyTuning
from fedelta.tuning.combined import Combined
from fedelta.tuning.exits import exit_blocks, owned_at
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.norms import LaneBatchNorm, LaneGroupNorm
from fedelta.tuning.scopes import scopes_of

logger = logging.getLogger("fedelta")


@dataclass(frozen=True)
class Assembly:
    """The objects of one run.

    Args:
        config: with the tuning method that is really used.
        backbone: with the tuning method applied.
        data: of all clients, and the test set.
        engine: trains and evaluates.
        site: serves the clients, and has what they keep.
        federation: what `federate` needs.
        params: server params before round 1.
        total_parameters: scalars of the model before tuning.
        tiers: how deep each client runs, those that no round asks among them; None: all through the whole model.
    """

    config: Config
    backbone: Backbone
    data: FederatedData
    engine: LaneEngine
    site: Site
    federation: Federation
    params: Params
    total_parameters: int
    tiers: Tiers | None = None

    @property
    def spec(self) -> ParamSpec:
        """Names, shapes and groups of what is tuned."""
        return self.engine.spec

    def evaluate(self, params: Params) -> Evaluation:
        """Accuracy and loss on the test set: see `evaluate`."""
        return evaluate(self.site, params, self.data.test)


def assemble(config: Config, *, backbone: Backbone | None = None, data: FederatedData | None = None) -> Assembly:
    """The objects that `config` describes; reads data and weights, trains nothing.

    Args:
        config: what to run.
        backbone: a model of your own instead of `config.model`; edited in place.
        data: data of your own instead of `config.data` and `config.partition`.

    Raises:
        InputError: something in it cannot be used.
    """
    if config.strategy.local_steps is not None:
        client = config.client.model_copy(update={"local_steps": config.strategy.local_steps})
        config = config.model_copy(update={"client": client})
    backbone, data = _model_and_data(config, backbone, data)
    _check_cohort(config, data)
    _check_owners(config, data)
    total_parameters = backbone.num_parameters
    backbone.module.to(config.runtime.torch_device())
    adapter = None if config.model.adapter is None else read_adapter(config.model.adapter, backbone.anatomy)
    if adapter is not None:
        check_classes(adapter, data.class_names)
        config = adopt_tuning(config, adapter, backbone)
    engine = _engine(config, backbone, data)
    params = _on_cpu(engine.bank.read(0) | (adapter.params if adapter is not None else {}))
    start = select(params, engine.spec.kept)
    config = _within_bytes(config, engine.spec, params, len(data.partition))
    _warn_of_one_group(config, engine.spec)
    num_rounds, memory = config.strategy.num_rounds, config.strategy.memory
    if data.unseen:
        config.personalization.scopes(scopes_of(backbone, engine.spec), config.tuning.name)
    everyone = _tiers(config, backbone, engine.spec, sorted([*data.partition, *data.unseen]))
    tiers = None if everyone is None else everyone.only(sorted(data.partition))
    site = Site(engine, data.partition, config.codec, config.seed, num_rounds, start, memory=memory, tiers=tiers)
    federation = _federation(config, site, backbone, data)
    config.strategy.init(params, engine.spec)  # refuses what does not fit the groups
    _check_deadline(config, federation, params)
    return Assembly(config, backbone, data, engine, site, federation, params, total_parameters, everyone)


def _model_and_data(
    config: Config, backbone: Backbone | None, data: FederatedData | None
) -> tuple[Backbone, FederatedData]:
    """Those that are given, the others made; with the clients that no round asks apart."""
    personal = config.personalization
    if data is not None:
        backbone = backbone or build(config.model, data.class_names, seed=config.seed)
        data = data.without(personal.unseen(sorted(data.partition), config.seed))
    else:
        raw = read(config.data, seed=config.seed)
        _check_num_classes(config, len(raw.class_names))
        _check_modality(config, raw)
        backbone = backbone or build(config.model, raw.class_names, seed=config.seed)
        if backbone.modality is None:
            raise ModelError("a backbone without a modality cannot read raw data; give `data` too.")
        modality = adapted(backbone.modality, raw)
        backbone = replace(backbone, modality=modality)
        unseen = partial(personal.unseen, seed=config.seed)
        data = divide(raw, config.partition, modality, seed=config.seed, held_out=unseen)
    personal.check_sizes(data.unseen)
    return backbone, data


def _engine(config: Config, backbone: Backbone, data: FederatedData) -> LaneEngine:
    num_lanes = config.runtime.num_lanes(
        clients_per_round=config.strategy.clients_per_round,
        batch_size=config.client.batch_size,
        max_lanes=config.tuning.max_lanes,
    )
    lanes = Lanes(num_lanes)
    spec = config.tuning.apply(backbone, lanes, stream(config.seed, "tuning"))
    check_norms(config, backbone)
    engine = LaneEngine(
        backbone,
        spec,
        lanes,
        data.train,
        client=config.client,
        rule=config.local_rule,
        cache_bytes=config.runtime.cache_mib * 2**20,
        compute_dtype=config.runtime.compute_dtype,
        augmentation=config.augmentation,
        exits=config.exits,
    )
    for note in engine.notes:
        logger.warning(note)
    return engine


def evaluate(site: Site, params: Params, test: LabelledData) -> Evaluation:
    """Accuracy and loss of `params` on `test`.

    Where clients keep tensors of their own there is no one model: then the mean over the clients that have trained,
    each with its own tensors, on the whole of `test`.
    """
    models = [params | own for _, own in sorted(site.kept.items())] or [params]
    found = [site.engine.evaluate(model, test) for model in models]
    return mean_of(found)


def _tiers(config: Config, backbone: Backbone, spec: ParamSpec, client_ids: list[int]) -> Tiers | None:
    """How deep each client runs; None where all hold all that is tuned.

    Raises:
        ConfigError: the section asks for exits that the model does not have.
    """
    num_blocks = len(exit_blocks(backbone.module))
    if not num_blocks and config.exits != ExitSettings():
        raise ConfigError(
            [f"`[exits]` is there, but tuning method {config.tuning.name!r} gives the model no exits"],
            hint="'accumulator' and 'exit-heads' do; leave the section out for the others.",
        )
    if not num_blocks:
        return None
    depths = config.exits.depths(client_ids, num_blocks, config.seed)
    owned = {depth: owned_at(backbone, spec, depth, config.exits.answers(depth)) for depth in set(depths.values())}
    return None if all(len(names) == len(spec) for names in owned.values()) else Tiers(depths, owned)


def _federation(config: Config, site: Site, backbone: Backbone, data: FederatedData) -> Federation:
    budget = config.byte_budget_mib
    num_examples = {client_id: len(rows) for client_id, rows in data.partition.items()}
    depths = {} if site.tiers is None else site.tiers.depths
    num_blocks = len(exit_blocks(backbone.module))
    workloads = {client_id: depth / num_blocks for client_id, depth in depths.items()}
    return Federation(
        strategy=config.strategy,
        runtime=Unstable(Simulation(site), config.stability, config.client, num_examples, config.seed, workloads),
        codec=config.codec,
        spec=site.engine.spec,
        client_ids=sorted(data.partition),
        seed=config.seed,
        evaluate=lambda params: evaluate(site, params, data.test),
        effective_steps=config.client.effective_steps,
        evaluate_every=config.evaluate_every,
        byte_budget=None if budget is None else int(budget * 2**20),
        tiers=site.tiers,
    )


def adopt_tuning(config: Config, adapter: Adapter, backbone: Backbone) -> Config:
    """The configuration with the tuning method of the adapter that the run starts from.

    Raises:
        AdapterError: the adapter does not fit the model.
        ConfigError: section `[tuning]` says something else.
    """
    check_fits(adapter, backbone)
    found, differing = _reconcile(config.tuning, adapter.tuning, backbone)
    if differing:
        raise ConfigError(
            [
                f"`tuning.{field}` is {ours!r}, but the adapter {config.model.adapter!r} has {theirs!r}"
                for field, ours, theirs in differing
            ],
            hint="leave `[tuning]` to the adapter: keep only its `name`; `--set tuning.r=` drops a key.",
        )
    return config.model_copy(update={"tuning": found})


def _reconcile(
    chosen: AnyTuning, found: AnyTuning, backbone: Backbone
) -> tuple[AnyTuning, list[tuple[str, object, object]]]:
    """The method of the adapter, with what a configuration may choose, and the fields that differ: ours, theirs."""
    ours, theirs = (method.names if isinstance(method, Combined) else method.name for method in (chosen, found))
    if ours != theirs:
        return found, [("name", ours, theirs)]
    if isinstance(chosen, Combined) and isinstance(found, Combined):
        parts = [_reconcile(*pair, backbone) for pair in zip(chosen.methods, found.methods, strict=True)]
        methods = tuple(method for method, _ in parts)
        return found.model_copy(update={"methods": methods}), [each for _, own in parts for each in own]
    if isinstance(chosen, Lora) and isinstance(found, Lora):
        # An adapter from elsewhere may come without a head; whether ours is trained is the configuration's choice.
        found = found.model_copy(update={"train_head": found.train_head or chosen.train_head})
        if "target_modules" in chosen.model_fields_set and chosen.targets(backbone) == found.targets(backbone):
            chosen = chosen.model_copy(update={"target_modules": found.target_modules})
    values = ((name, getattr(chosen, name), getattr(found, name)) for name in sorted(chosen.model_fields_set))
    return found, [(name, mine, other) for name, mine, other in values if mine != other]


def check_norms(config: Config, backbone: Backbone) -> None:
    """Refuses a policy for batch norms that has no effect, or one that the caller's own model does not have.

    Args:
        config: of the run.
        backbone: with the tuning method applied.
    """
    policy = config.model.batch_norm
    if policy != backbone.batch_norm:
        raise ConfigError(
            [f"`model.batch_norm` is {policy!r}, but the backbone that was given has {backbone.batch_norm!r}"],
            hint="a backbone of your own says it itself: `Backbone(..., batch_norm=...)`.",
        )
    trains_norms = any(isinstance(layer, LaneBatchNorm | LaneGroupNorm) for layer in backbone.module.modules())
    if policy != "average" and not trains_norms:
        raise ConfigError(
            [f"`model.batch_norm` is {policy!r}, but tuning method {config.tuning.name!r} trains no norm"],
            hint="'full' and 'parallel' do; leave it out for the others.",
        )


def _check_num_classes(config: Config, found: int) -> None:
    wanted = config.model.num_classes
    if wanted is not None and wanted != found:
        raise ConfigError(
            [f"`model.num_classes` is {wanted}, but the training data have {found} classes"],
            hint="leave it out: it is found from the data.",
        )


def _check_modality(config: Config, raw: RawData) -> None:
    found = raw.modality.plural
    if config.augmentation.is_on and not raw.modality.is_augmented:
        raise ConfigError(
            [f"`[augmentation]` crops and flips images, but column {raw.columns.input!r} holds {found}"],
            hint="leave the section out.",
        )


def _check_owners(config: Config, data: FederatedData) -> None:
    if not config.augmentation.is_on:
        return
    rows = torch.cat([*data.partition.values(), *data.unseen.values()])
    if len(rows.unique()) < len(rows):
        raise ConfigError(
            ["`[augmentation]` changes a row in the way of the client that has it, but some rows have two clients"],
            hint="give each client its own copy of the row.",
        )


def _within_bytes(config: Config, spec: ParamSpec, params: Params, num_clients: int) -> Config:
    """The configuration in which a byte budget is the share of traffic of a strategy that asks for one."""
    strategy, budget = config.strategy, config.byte_budget_mib
    if not isinstance(strategy, FedLamaAuto) or strategy.has_budget or budget is None:
        return config

    def num_bytes(names: tuple[str, ...]) -> int:
        payload, _ = encode(select(params, names), spec, config.codec)
        return len(payload) * 2 * min(strategy.clients_per_round, num_clients) * strategy.num_rounds

    headers = num_bytes(())
    least = (headers + strategy.least_share * (num_bytes(spec.shared) - headers)) / 2**20
    if budget < least:
        problem = (
            f"`byte_budget_mib` is {budget:g}, expected at least {least:.3g}: every group travels in every `phi`-th "
            f"round and in the last"
        )
        raise ConfigError([problem], hint="raise it or `strategy.phi`, or run fewer rounds.")
    # Shares count trained scalars, and running statistics ride along: every scalar is taken to be as dear as the
    # dearest, so that the run cannot reach the budget before its end.
    dearest = max((num_bytes(spec.shared_of({group})) - headers) / size for group, size in spec.sizes.items())
    share = (budget * 2**20 - headers) / (dearest * sum(spec.sizes.values()))
    share = min(1.0, max(strategy.least_share, share))
    return config.model_copy(update={"strategy": strategy.model_copy(update={"share": share})})


def _warn_of_one_group(config: Config, spec: ParamSpec) -> None:
    if isinstance(config.strategy, Windows) and len(spec.sizes) == 1:
        logger.warning(
            "strategy %r has nothing to gain: tuning method %r has only one group that could travel less often, %r.",
            config.strategy.name,
            config.tuning.name,
            next(iter(spec.sizes)),
        )


def _check_cohort(config: Config, data: FederatedData) -> None:
    wanted, found = config.strategy.clients_per_round, len(data.partition)
    if wanted > found:
        beside = f" beside the {len(data.unseen)} that are held out" if data.unseen else ""
        raise ConfigError([f"`strategy.clients_per_round` is {wanted}, but the data have {found} clients{beside}"])


def _check_deadline(config: Config, federation: Federation, params: Params) -> None:
    """Refuses a deadline that too few clients can ever meet."""
    deadline, runtime = config.stability.deadline_seconds, federation.runtime
    if deadline is None or not isinstance(runtime, Unstable):
        return
    state = federation.strategy.init(params, federation.spec)
    cohort = stream(config.seed, "cohort", 1)
    plan = federation.strategy.plan(state, 1, federation.client_ids, federation.spec, cohort)
    everyone = dict.fromkeys(federation.client_ids, plan.download[plan.cohort[0]])
    if federation.tiers is not None:
        everyone = dict(federation.tiers.restrict(replace(plan, download=everyone)).download)
    num_bytes = {
        names: len(encode(select({**state, **params}, names), federation.wire, config.codec)[0])
        for names in set(everyone.values())
    }
    times = sorted(runtime.seconds(client_id, num_bytes[names]) for client_id, names in everyone.items())
    if (met := sum(time <= deadline for time in times)) < config.strategy.min_replies:
        problem = (
            f"`stability.deadline_seconds` is {deadline:g}, which {met} of {len(times)} clients can meet; "
            f"`strategy.min_replies` is {config.strategy.min_replies}, the fastest client needs {times[0]:.1f} s, "
            f"half of them {times[len(times) // 2]:.1f} s or less"
        )
        raise ConfigError(
            [problem],
            hint="raise the deadline, or let clients do less: `client.local_epochs`, `client.local_steps`.",
        )


def _on_cpu(params: Params) -> Params:
    return {name: tensor.detach().cpu().float() for name, tensor in params.items()}
