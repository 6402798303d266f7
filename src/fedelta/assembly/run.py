"""Builds server and site in one process: a simulation."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from fedelta.assembly.fitting import fit_lanes, fit_workers
from fedelta.assembly.lanes import num_lanes
from fedelta.assembly.local import processes_of, shared_out
from fedelta.assembly.metrics import Metrics, checked_metrics
from fedelta.assembly.mistakes import Mistakes
from fedelta.assembly.model import TunedModel, tiers_of, tuned_model, work_of
from fedelta.assembly.origin import origin_of
from fedelta.assembly.parts import Peaks
from fedelta.assembly.privacy import guarantee_of, warn_of_measures
from fedelta.assembly.server import build_server, check_cohort, protecting, strategy_of
from fedelta.assembly.settling import adopting, settled
from fedelta.assembly.site import build_site, details, evaluate, few_rows, read_data, thorough
from fedelta.config import Config, parse_config
from fedelta.data.batches import FederatedData
from fedelta.data.clients import Clients
from fedelta.data.folders import Splits
from fedelta.data.skipping import Skipped
from fedelta.engine.lanes import LaneEngine
from fedelta.errors import ConfigError
from fedelta.federation.base import Federation, Runtime
from fedelta.federation.client import Site
from fedelta.federation.pairs import NO_RANKS
from fedelta.federation.records import RoundOutcome
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec, select
from fedelta.plugins import for_processes, load_same
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import Randomness, Secret, Seeded, new_key
from fedelta.record.files import Record
from fedelta.record.origin import Origin
from fedelta.record.partition import partition_record
from fedelta.runtimes.processes import Processes
from fedelta.runtimes.stability import Stability, Unstable
from fedelta.strategies.base import Strategy
from fedelta.tasks.base import Evaluation, Task
from fedelta.tasks.details import Details
from fedelta.tuning.exits import exit_blocks
from fedelta.tuning.scopes import scopes_of

Stage = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, repr=False)
class Assembly:
    """The objects of one run.

    Args:
        config: as read from the file, with what the adapter settles that the run starts from.
        task: of the configuration, with the settings that follow from the training data.
        model: the backbone, the tensors that are tuned and their initial values.
        data: of all clients, and the test set.
        site: trains the clients, and holds their memories.
        federation: the server's objects, for `federate`.
        tiers: depth of each client, held-out clients included; None if all clients train the whole model.
        processes: may train the clients in worker processes; None if they train in this one.
        key: of secret noise and cohorts; None if the run has none.
        metrics: further numbers about the finished model; None for none.
    """

    config: Config
    task: Task
    model: TunedModel
    data: FederatedData
    site: Site
    federation: Federation
    tiers: Tiers | None = None
    processes: Processes | None = None
    key: bytes | None = field(default=None, repr=False)
    metrics: Metrics | None = None

    def __repr__(self) -> str:
        name = type(self.backbone.module).__name__
        return f"Assembly({name}, {self.model.tuning.name!r}, {len(self.clients.numbers)} clients)"

    @property
    def backbone(self) -> Backbone:
        """The model with the tuning method applied."""
        return self.model.backbone

    @property
    def engine(self) -> LaneEngine:
        """The engine that trains and evaluates."""
        return self.site.engine

    @property
    def params(self) -> Params:
        """Server params before round 1."""
        return self.model.params

    @property
    def strategy(self) -> Strategy:
        """Section `[strategy]`, adapted to the byte budget if there is one."""
        return self.federation.strategy

    @property
    def spec(self) -> ParamSpec:
        """Names, shapes and groups of the tuned tensors."""
        return self.model.spec

    @property
    def clients(self) -> Clients:
        """All clients, held-out ones included."""
        return self.data.clients

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order; empty if the task has no classes."""
        return self.data.class_names

    @cached_property
    def origin(self) -> Origin:
        """The settings and inputs that the run starts from."""
        pairs = self.federation.pairs
        ranks = NO_RANKS if pairs is None else pairs.ranks
        return origin_of(self.config, self.model, self.data, self.tiers, ranks)

    @property
    def partition(self) -> Record:
        """The content of `partition.json`."""
        return partition_record(self.data)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Examples that could not be read and were left out."""
        return self.data.skipped

    @property
    def num_skipped(self) -> int:
        """Their number."""
        return len(self.data.skipped)

    @property
    def row(self) -> dict[str, Tensor] | None:
        """Inputs of one test row; None if the backbone has a modality that makes an example."""
        return None if self.backbone.modality else self.data.test.inputs.fetch(torch.tensor([0]))

    @property
    def min_sites(self) -> None:
        """None: there are no sites."""

    def starting_from(self, params: Params) -> Assembly:
        """A copy whose clients start with those tensors of `params` that never travel."""
        if not self.spec.kept:
            return self
        site = replace(self.site, start=select(params, self.spec.kept))
        processes = None if self.processes is None else self.processes.serving(site)
        runtime = _runtime(self.config, self.model, site, processes)
        federation = _measured(replace(self.federation, runtime=runtime), self.task, site, processes)
        return replace(self, site=site, federation=federation, processes=processes)

    def at_work(self) -> AbstractContextManager[Peaks]:
        """See `Parts.at_work`."""
        return nullcontext(tuple) if self.processes is None else self.processes.at_work()

    def evaluate(self, params: Params) -> Evaluation:
        """The measures on the test set; see `site.evaluate`."""
        return evaluate(self.site, params)

    def details(self, params: Params) -> Details:
        """All that the task measures of a finished model on the test set; see `site.details`."""
        test, names = self.data.test, self.data.class_names
        # Of many models none is shown; and of a private run nothing of those whom it protects.
        if self.spec.kept or (self.config.privacy.is_on and self.config.data.evaluate_on != "test"):
            return details(self.site, params, test, names)
        mistakes = Mistakes(test, self.task, names, self.backbone.modality)
        return replace(details(self.site, params, test, names, mistakes), mistakes=mistakes.records())

    def at_sites(self, outcome: RoundOutcome) -> Mapping[str, Record]:
        """Empty: there are no sites."""
        return {}

    def at_the_end(self, params: Params, last: Record) -> Record:
        """What the caller's metrics give."""
        if self.metrics is None:
            return {}
        answered = list(self.engine.evaluator.answers(params, self.data.test))
        outputs, targets = (torch.cat(parts) for parts in zip(*((a.outputs, a.targets) for a in answered), strict=True))
        return {"metrics": checked_metrics(self.metrics(outputs.cpu(), targets.cpu()))}


def assemble(
    config: Config,
    *,
    backbone: Backbone | None = None,
    data: FederatedData | Splits | None = None,
    at_a_glance: bool = False,
    key: bytes | None = None,
    lanes: int | None = None,
    stage: Stage = nullcontext,
) -> Assembly:
    """Builds the objects that `config` describes; reads data and weights, but does not train.

    Args:
        config: of the run.
        backbone: your model instead of `config.model`; edited in place.
        data: your data instead of `config.data` and `config.partition`, or splits to read as `config.data` says.
        at_a_glance: read examples only when they are fetched, which is enough for a check.
        key: of secret noise and cohorts, if the run goes on with one; None: a new one, if it needs one.
        lanes: of the run whose worker this is; None: as many as the configuration says, and memory holds.
        stage: context that is entered with the name of each part of the work.

    Raises:
        InputError: configuration, model or data cannot be used.
    """
    is_from_config = backbone is None and data is None
    with stage("data and base model"):
        backbone, data = read_data(config, backbone, data, at_a_glance=at_a_glance)
        config = settled(open_config := adopting(config), data)
    with stage("tuning method"):
        model = _model(config, backbone, data, lanes)
    if data.held_out:
        config.personalization.scopes(scopes_of(backbone, model.spec), model.tuning.name)
    all_tiers = tiers_of(config, model, data.clients)
    tiers = None if all_tiers is None else all_tiers.only(data.clients.only(data.partition).numbers)
    with stage("noise for privacy") if config.privacy.is_on else nullcontext():
        guarantee = _guarantee(config, model, data)
    key = (key or new_key()) if config.privacy.is_secure(is_deployed=False) else None
    randomness = Seeded(config.seed) if key is None else Secret(key)
    with stage("lanes"):
        site = shared_out(config, build_site(config, model, data, tiers))
        site = replace(site, test=data.test, privacy=_site_privacy(guarantee, randomness.below("site")))
    build = (
        partial(worker_site, open_config.to_toml(), tuple(for_processes()), model.lanes.num) if is_from_config else None
    )
    if (processes := processes_of(config, site, build)) is not None:
        processes = fit_workers(config, model, data, processes)
    federation = _federation(config, model, data, site, processes=processes)
    federation = protecting(federation, guarantee, randomness.below("server"))
    _check_deadline(config, federation, model.params)
    return Assembly(open_config, config.task, model, data, site, federation, all_tiers, processes, key)


def _model(config: Config, backbone: Backbone, data: FederatedData, lanes: int | None) -> TunedModel:
    """The model with the lanes of the run whose worker this is, or with as many as memory holds."""
    num = num_lanes(config, backbone) if lanes is None else lanes
    model = tuned_model(config, backbone, data.class_names, num_lanes=num, sample=few_rows(data))
    if lanes is None:
        fit_lanes(config, model, data)
    return model


def worker_site(config: str, plugins: Sequence[str], lanes: int, number: int) -> Site:
    """Builds the site of a worker that is a new process, on the GPU with its number if there are GPUs.

    Args:
        config: as TOML.
        plugins: those that it needs, as `for_processes` gives them.
        lanes: of the run.
        number: of the worker.
    """
    load_same(plugins)
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    return assemble(parse_config(tomllib.loads(config)), lanes=lanes).site


def _federation(
    config: Config, model: TunedModel, data: FederatedData, site: Site, *, processes: Processes | None
) -> Federation:
    """The server's objects, without what it does for privacy."""
    federation = build_server(
        config,
        model.spec,
        model.params,
        data.clients.only(data.partition),
        runtime=_runtime(config, model, site, processes),
        tiers=site.tiers,
        num_held_out=len(data.held_out),
    )
    return _measured(replace(federation, replies_once=True), config.task, site, processes)


def _measured(federation: Federation, task: Task, site: Site, processes: Processes | None) -> Federation:
    """A copy whose params are measured on the site's test data."""
    return replace(
        federation,
        evaluate=lambda params: evaluate(site, params, processes),
        thorough=thorough(task, lambda params: evaluate(site, params, processes, with_answers=True)),
    )


def _guarantee(config: Config, model: TunedModel, data: FederatedData) -> Guarantee | None:
    """What is guaranteed to the clients of a simulation; warns of what is not."""
    warn_of_measures(config, has_own_norms=bool(model.spec.kept))
    check_cohort(config, len(data.partition), len(data.held_out))
    strategy = strategy_of(config, model.spec, len(data.partition))
    return guarantee_of(config, strategy, {client_id: len(rows) for client_id, rows in data.partition.items()})


def _site_privacy(guarantee: Guarantee | None, randomness: Randomness) -> SitePrivacy | None:
    return None if guarantee is None else SitePrivacy(guarantee.settings, guarantee.noise_multiplier, randomness)


def _runtime(config: Config, model: TunedModel, site: Site, processes: Processes | None) -> Runtime:
    """The clients on this machine; if `[stability]` is set, some of them drop out or reply late."""
    local = processes or site
    if config.stability == Stability():
        return local
    num_examples = {client_id: len(rows) for client_id, rows in site.partition.items()}
    depths = {} if site.tiers is None else site.tiers.depths
    num_blocks = len(exit_blocks(model.backbone.module))
    mean_size = site.size_of(torch.cat(list(site.partition.values())))
    workloads = {
        client_id: site.size_of(rows) / mean_size * (depths[client_id] / num_blocks if depths else 1)
        for client_id, rows in site.partition.items()
    }
    return Unstable(local, config.stability, work_of(config), num_examples, config.seed, workloads)


def _check_deadline(config: Config, federation: Federation, params: Params) -> None:
    """Raises if too few clients can meet the deadline even without delays."""
    deadline, runtime = config.stability.deadline_seconds, federation.runtime
    if deadline is None or not isinstance(runtime, Unstable):
        return
    state = federation.strategy.init(params, federation.spec)
    downloads = dict.fromkeys(federation.clients.numbers, federation.wire.shared)
    if federation.tiers is not None:
        downloads = federation.tiers.held(downloads)
    num_bytes = {
        names: len(config.codec.whole_download(select({**state, **params}, names), federation.wire))
        for names in set(downloads.values())
    }
    times = sorted(runtime.seconds(client_id, num_bytes[names]) for client_id, names in downloads.items())
    if (in_time := sum(time <= deadline for time in times)) < federation.min_replies:
        problem = (
            f"`stability.deadline_seconds` is {deadline:g}, which {in_time} of {len(times)} clients can meet; "
            f"a round needs {federation.min_replies}, the fastest client needs {times[0]:.1f} s, "
            f"half of them {times[len(times) // 2]:.1f} s or less"
        )
        raise ConfigError(
            [problem],
            hint="raise the deadline, or let clients do less: `client.local_epochs`, `client.local_steps`.",
        )
