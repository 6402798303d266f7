"""The objects of a deployed run at its server, and how they are built."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from fedelta.assembly.answering import has_answers
from fedelta.assembly.model import TunedModel, adopted_tuning, tiers_of
from fedelta.assembly.origin import evaluated, ranked
from fedelta.assembly.parts import Peaks
from fedelta.assembly.privacy import guarantee_of, warn_of_measures
from fedelta.assembly.server import build_server, protecting, strategy_of
from fedelta.assembly.server_model import Bench, server_bench, server_model
from fedelta.assembly.settling import with_task
from fedelta.assembly.site import built, thorough
from fedelta.config import Config
from fedelta.data.clients import Clients
from fedelta.data.skipping import Skipped
from fedelta.data.sources import RawData
from fedelta.deployment.run.measures import SiteMeasures
from fedelta.federation.base import Federation, Thorough
from fedelta.federation.pairs import NO_RANKS
from fedelta.federation.records import RoundOutcome
from fedelta.inference.adapter import read_adapter
from fedelta.params import Params
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.randomness import Secret, Seeded
from fedelta.record.files import Record
from fedelta.record.origin import Origin, settings_of
from fedelta.record.partition import roster_record
from fedelta.record.sites import AT_THE_END
from fedelta.runtimes.remote.post import Post
from fedelta.runtimes.remote.profiles import Invitation
from fedelta.runtimes.remote.roster import Roster
from fedelta.runtimes.remote.runtime import Remote
from fedelta.runtimes.remote.terms import Terms
from fedelta.runtimes.remote.versions import Copying
from fedelta.runtimes.remote.waiting import Watch
from fedelta.settings.base import as_settings
from fedelta.tasks.base import Sums, Task
from fedelta.tasks.contract import settled_of
from fedelta.tasks.details import Details
from fedelta.tuning.exits import exit_blocks

logger = logging.getLogger("fedelta")


@dataclass(frozen=True)
class ServerParts:
    """The `Parts` of a run whose clients are at sites.

    Args:
        config: of the run.
        task: of the configuration, with the settings that follow from the data of all sites.
        model: of the server.
        federation: the arguments of `federate`.
        roster: the sites and their clients.
        class_names: in label order.
        sites: asks the sites for their measures.
        bench: measures the model at the server; None if the sites do.
        key: of the server's secret noise and cohorts; None if it draws none.
        skipped: examples that were left out of the server's test set.
    """

    config: Config
    task: Task
    model: TunedModel
    federation: Federation
    roster: Roster
    class_names: tuple[str, ...]
    sites: SiteMeasures
    bench: Bench | None = None
    key: bytes | None = field(default=None, repr=False)
    skipped: tuple[Skipped, ...] = ()

    @property
    def clients(self) -> Clients:
        """All clients."""
        return self.roster.clients

    @property
    def min_sites(self) -> int:
        """Number of sites that every round should have."""
        return self.config.deployment.min_sites

    @cached_property
    def origin(self) -> Origin:
        """The settings, the base model, the test set and the ranks of clients.

        The roster is in `partition.json`, which may not change.
        """
        known = evaluated(None if self.bench is None else self.bench.test, self.class_names)
        known |= ranked(NO_RANKS if self.federation.pairs is None else self.federation.pairs.ranks)
        settings = settings_of(self.config.to_table({"tuning": self.model.tuning}))
        return Origin(settings, {**self.model.identity, **known})

    @property
    def partition(self) -> Record:
        """The content of `partition.json`."""
        return roster_record(self.roster.as_record(), self.clients)

    @property
    def num_skipped(self) -> int:
        """Examples that were left out of the server's test set, and at the sites."""
        return len(self.skipped) + sum(profile.num_skipped for profile in self.roster.profiles.values())

    @property
    def row(self) -> None:
        """None: the model's modality makes examples."""

    def starting_from(self, params: Params) -> ServerParts:
        """The same: sites begin with the tensors of their base model that never travel."""
        return self

    def details(self, params: Params) -> Details | None:
        """What the task measures on the server's test set; None without one."""
        return None if self.bench is None else self.bench.details(params)

    def at_work(self) -> AbstractContextManager[Peaks]:
        """See `Parts.at_work`; the workers of sites are not those of the server."""
        return nullcontext(tuple)

    def at_sites(self, outcome: RoundOutcome) -> Mapping[str, Record]:
        """What the sites have measured in this round, if they were asked."""
        every = self.config.deployment.site_measures
        if self.bench is None:
            return {} if outcome.evaluation is None else self.sites.records
        is_last = outcome.round == self.federation.strategy.num_rounds
        if not isinstance(every, int) or outcome.round % every:
            return {}
        return self.sites.measure(outcome.params, with_answers=is_last and has_answers(self.task))

    def at_the_end(self, params: Params, last: Record) -> Record:
        """What the sites measure of the finished model, unless they have done so in the last round."""
        is_known = self.bench is None or any("measures" in entry for entry in last.get("sites", ()))
        if is_known or self.config.deployment.site_measures == "never":
            return {}
        measured = self.sites.measure(params, with_answers=has_answers(self.task))
        return {AT_THE_END: measured} if measured else {}


@dataclass(frozen=True)
class Basis:
    """What a deployed run is built from.

    Args:
        config: of the run.
        roster: the sites and their clients.
        raw: the server's test set; None if the sites measure.
        key: of the server's secret noise and cohorts; None if it draws none (`needs_key`).
    """

    config: Config
    roster: Roster
    raw: RawData | None = None
    key: bytes | None = field(default=None, repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the outputs: those of the server's data if it has some, else those of the sites."""
        return self.roster.class_names if self.raw is None else self.raw.class_names

    @property
    def settled(self) -> Config:
        """The configuration, with the settings of the task that follow from the data of all sites."""
        task = self.config.task
        statistics = self.roster.statistics if task.automatic else Sums()
        return with_task(self.config, settled_of(task, statistics, self.class_names))


def build_parts(basis: Basis, post: Post, invitation: Invitation, watch: Watch) -> tuple[ServerParts, Remote]:
    """Returns the objects of a run, and its runtime.

    Args:
        basis: configuration, sites and test set.
        post: exchanges messages.
        invitation: what sites are told when they come back.
        watch: called while a round waits for sites.

    Raises:
        InputError: model, test set or configuration do not fit each other.
    """
    roster, class_names, config = basis.roster, basis.class_names, basis.settled
    model, test = server_model(config, class_names, basis.raw, roster.clients)
    tiers, steering = tiers_of(config, model, roster.clients), config.strategy.steering
    wire = model.spec if steering is None else steering.extend(model.spec)
    strategy = strategy_of(config, model.spec, len(roster.clients.numbers))
    guarantee = guarantee_of(config, strategy, roster.num_examples)
    _warn(basis, config, guarantee, model)
    terms = Terms(
        invitation.run, class_names, wire.fingerprint.hex(), model.identity, config.task.name,
        None if tiers is None else tiers.depths,
        noise_multiplier=None if guarantee is None else guarantee.noise_multiplier,
        settled=as_settings(config.task).model_dump(mode="json") if basis.config.task.automatic else {},
    )  # fmt: skip
    copying = None if steering is None else Copying(steering, model.spec, config.codec.up)
    remote = Remote(
        post, config.deployment, roster, invitation=invitation, terms=terms, wire=wire, copying=copying, watch=watch
    )
    sites = SiteMeasures(remote, config.task, num_exits=len(exit_blocks(model.backbone.module)))
    bench = None if test is None else server_bench(config, model, test, class_names)
    federation = build_server(
        config,
        model.spec,
        model.params,
        roster.clients,
        runtime=remote,
        evaluate=sites.evaluate if bench is None else bench.evaluate,
        tiers=tiers,
    )
    randomness = Seeded(config.seed) if basis.key is None else Secret(basis.key).below("server")
    federation = protecting(federation, guarantee, randomness)
    answering = _thorough(config.task, sites, bench)
    federation = replace(federation, thorough=answering, attendance=remote.attendance, site_of=roster.site_of)
    skipped = () if basis.raw is None else basis.raw.skipped
    return ServerParts(
        basis.config, config.task, model, federation, roster, class_names, sites, bench, basis.key, skipped
    ), remote


def _warn(basis: Basis, config: Config, guarantee: Guarantee | None, model: TunedModel) -> None:
    """Warns of what a run does not protect."""
    if guarantee is not None and not config.privacy.is_secure(is_deployed=True):
        logger.warning("`privacy.randomness` is 'seeded': whoever has the recipe can take the noise out again.")
    is_measured = basis.raw is None or config.deployment.site_measures != "never"
    warn_of_measures(config, has_own_norms=bool(model.spec.kept), at_sites=is_measured)


def _thorough(task: Task, sites: SiteMeasures, bench: Bench | None) -> Thorough | None:
    """The evaluation in which a language model answers prompts, too.

    If the sites measure, the last round has it in any case: nothing else measures the finished model's answers.
    """
    if bench is not None:
        return thorough(task, bench.evaluate_with_answers)
    return Thorough(partial(sites.evaluate, with_answers=True), task.answers_every) if has_answers(task) else None


def needs_key(config: Config) -> bool:
    """Whether the server of a deployed run draws secret noise; for other units the sites draw it."""
    return config.privacy.unit == "client" and config.privacy.is_secure(is_deployed=True)


def sent_to_sites(config: Config) -> Config:
    """The configuration as sites get it: without the adapter, of which they need only the tuning method."""
    path = config.model.adapter
    if path is None:
        return config
    backbone = built(config, ("0", "1"))  # its head is of no importance here
    tuning = adopted_tuning(config, read_adapter(path, backbone.anatomy), backbone)
    return config.model_copy(update={"tuning": tuning, "model": config.model.model_copy(update={"adapter": None})})
