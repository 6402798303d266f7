"""The objects of a deployed run at its server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

from fedelta.assembly.model import TunedModel
from fedelta.assembly.origin import evaluated
from fedelta.assembly.parts import Peaks
from fedelta.assembly.server_model import Bench
from fedelta.config import Config
from fedelta.data.clients import Clients
from fedelta.deployment.run.measures import SiteMeasures
from fedelta.federation.base import Federation
from fedelta.federation.records import RoundOutcome
from fedelta.params import Params
from fedelta.record.files import Record
from fedelta.record.origin import Origin, settings_of
from fedelta.record.partition import roster_record
from fedelta.record.sites import AT_THE_END
from fedelta.runtimes.remote.roster import Roster
from fedelta.tasks.details import Details


@dataclass(frozen=True)
class ServerParts:
    """The `Parts` of a run whose clients are at sites.

    Args:
        config: of the run.
        model: of the server.
        federation: the arguments of `federate`.
        roster: the sites and their clients.
        class_names: in label order.
        sites: asks the sites for their measures.
        bench: measures the model at the server; None if the sites do.
    """

    config: Config
    model: TunedModel
    federation: Federation
    roster: Roster
    class_names: tuple[str, ...]
    sites: SiteMeasures
    bench: Bench | None = None

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
        """The settings, the base model and the test set; the roster is in `partition.json`, which may not change."""
        known = evaluated(None if self.bench is None else self.bench.test, self.class_names)
        settings = settings_of(self.config.to_table({"tuning": self.model.tuning}))
        return Origin(settings, {**self.model.identity, **known})

    @property
    def partition(self) -> Record:
        """The content of `partition.json`."""
        return roster_record(self.roster.as_record(), self.clients)

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
        return self.sites.measure(outcome.params) if isinstance(every, int) and outcome.round % every == 0 else {}

    def at_the_end(self, params: Params, last: Record) -> Record:
        """What the sites measure of the finished model, unless they have done so in the last round."""
        is_known = self.bench is None or any("measures" in entry for entry in last.get("sites", ()))
        if is_known or self.config.deployment.site_measures == "never":
            return {}
        measured = self.sites.measure(params)
        return {AT_THE_END: measured} if measured else {}
