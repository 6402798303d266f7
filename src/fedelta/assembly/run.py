"""Server and site in one process: a simulation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from fedelta.assembly.model import TunedModel, tiers_of, tuned_model, work_of
from fedelta.assembly.server import build_server
from fedelta.assembly.site import build_site, details, evaluate, few_rows, num_lanes, read_data
from fedelta.codecs.wire import encode
from fedelta.config import Config
from fedelta.data.batches import FederatedData
from fedelta.engine.lanes import LaneEngine
from fedelta.errors import ConfigError
from fedelta.federation.base import Federation
from fedelta.federation.client import Site
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec, select
from fedelta.runtimes.stability import Stability, Unstable
from fedelta.seeds import stream
from fedelta.strategies.base import Strategy
from fedelta.tasks.base import Evaluation
from fedelta.tasks.details import Details
from fedelta.tuning.exits import exit_blocks
from fedelta.tuning.scopes import scopes_of

Stage = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Assembly:
    """The objects of one run.

    Args:
        config: as it was read.
        model: the backbone, what is tuned of it, and where that starts.
        data: of all clients, and the test set.
        site: serves the clients, and has what they keep.
        federation: what `federate` needs.
        tiers: how deep each client runs, those that no round asks among them; None: all through the whole model.
    """

    config: Config
    model: TunedModel
    data: FederatedData
    site: Site
    federation: Federation
    tiers: Tiers | None = None

    @property
    def backbone(self) -> Backbone:
        """With the tuning method applied."""
        return self.model.backbone

    @property
    def engine(self) -> LaneEngine:
        """Trains and evaluates."""
        return self.site.engine

    @property
    def params(self) -> Params:
        """Server params before round 1."""
        return self.model.params

    @property
    def strategy(self) -> Strategy:
        """Section `[strategy]`, with what a byte budget made of it."""
        return self.federation.strategy

    @property
    def spec(self) -> ParamSpec:
        """Names, shapes and groups of what is tuned."""
        return self.model.spec

    def starting_from(self, params: Params) -> Assembly:
        """The same, with clients that begin with those of `params` that never travel."""
        if not self.spec.kept:
            return self
        site = replace(self.site, start=select(params, self.spec.kept))
        runtime = _runtime(self.config, self.model, site)
        federation = replace(
            self.federation, runtime=runtime, evaluate=lambda params: evaluate(site, params, self.data.test)
        )
        return replace(self, site=site, federation=federation)

    def evaluate(self, params: Params) -> Evaluation:
        """The measures on the test set: see `evaluate`."""
        return evaluate(self.site, params, self.data.test)

    def details(self, params: Params) -> Details:
        """What the task has to say of a finished model on the test set: see `details`."""
        return details(self.site, params, self.data.test, self.data.class_names)


def assemble(
    config: Config,
    *,
    backbone: Backbone | None = None,
    data: FederatedData | None = None,
    at_a_glance: bool = False,
    stage: Stage = nullcontext,
) -> Assembly:
    """The objects that `config` describes; reads data and weights, trains nothing.

    Args:
        config: what to run.
        backbone: a model of your own instead of `config.model`; edited in place.
        data: data of your own instead of `config.data` and `config.partition`.
        at_a_glance: examples are read when they are asked for, and not all at once: enough to see whether it can run.
        stage: entered with a name for each part of the work.

    Raises:
        InputError: something in it cannot be used.
    """
    with stage("data and base model"):
        backbone, data = read_data(config, backbone, data, at_a_glance=at_a_glance)
    with stage("tuning method"):
        model = tuned_model(config, backbone, data.class_names, num_lanes=num_lanes(config), sample=few_rows(data))
    if data.held_out:
        config.personalization.scopes(scopes_of(backbone, model.spec), model.tuning.name)
    clients = data.clients.only(data.partition)
    everyone = tiers_of(config, model, data.clients)
    tiers = None if everyone is None else everyone.only(clients.numbers)
    with stage("lanes"):
        site = build_site(config, model, data, tiers)
    runtime = _runtime(config, model, site)
    federation = build_server(
        config,
        model.spec,
        model.params,
        clients,
        runtime=runtime,
        evaluate=lambda params: evaluate(site, params, data.test),
        tiers=tiers,
        num_held_out=len(data.held_out),
    )
    _check_deadline(config, federation, runtime, model.params)
    return Assembly(config, model, data, site, federation, everyone)


def _runtime(config: Config, model: TunedModel, site: Site) -> Site | Unstable:
    """All clients in this process, as reliable as `[stability]` has them."""
    if config.stability == Stability():
        return site
    num_examples = {client_id: len(rows) for client_id, rows in site.partition.items()}
    depths = {} if site.tiers is None else site.tiers.depths
    num_blocks = len(exit_blocks(model.backbone.module))
    workloads = {client_id: depth / num_blocks for client_id, depth in depths.items()}
    return Unstable(site, config.stability, work_of(config), num_examples, config.seed, workloads)


def _check_deadline(config: Config, federation: Federation, runtime: Site | Unstable, params: Params) -> None:
    """Refuses a deadline that too few clients can ever meet."""
    deadline = config.stability.deadline_seconds
    if deadline is None or not isinstance(runtime, Unstable):
        return
    state = federation.strategy.init(params, federation.spec)
    cohort = stream(config.seed, "cohort", 1)
    plan = federation.strategy.plan(state, 1, federation.clients.numbers, federation.spec, cohort)
    everyone = dict.fromkeys(federation.clients.numbers, plan.download[plan.cohort[0]])
    if federation.tiers is not None:
        everyone = dict(federation.tiers.restrict(replace(plan, download=everyone)).download)
    num_bytes = {
        names: len(encode(select({**state, **params}, names), federation.wire, config.codec.down)[0])
        for names in set(everyone.values())
    }
    times = sorted(runtime.seconds(client_id, num_bytes[names]) for client_id, names in everyone.items())
    if (met := sum(time <= deadline for time in times)) < federation.min_replies:
        problem = (
            f"`stability.deadline_seconds` is {deadline:g}, which {met} of {len(times)} clients can meet; "
            f"a round needs {federation.min_replies}, the fastest client needs {times[0]:.1f} s, "
            f"half of them {times[len(times) // 2]:.1f} s or less"
        )
        raise ConfigError(
            [problem],
            hint="raise the deadline, or let clients do less: `client.local_epochs`, `client.local_steps`.",
        )
