"""Builds the objects of a deployed run at its server."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedelta.assembly.model import adopted_tuning, tiers_of
from fedelta.assembly.server import build_server
from fedelta.assembly.server_model import server_bench, server_model
from fedelta.assembly.site import built
from fedelta.config import Config
from fedelta.data.sources import RawData
from fedelta.deployment.measures import SiteMeasures
from fedelta.deployment.parts import ServerParts
from fedelta.inference.adapter import read_adapter
from fedelta.runtimes.remote.post import Post
from fedelta.runtimes.remote.profiles import Invitation
from fedelta.runtimes.remote.roster import Roster
from fedelta.runtimes.remote.runtime import Remote
from fedelta.runtimes.remote.terms import Terms
from fedelta.runtimes.remote.versions import Copying
from fedelta.runtimes.remote.waiting import Watch
from fedelta.tuning.exits import exit_blocks


@dataclass(frozen=True)
class Basis:
    """What a deployed run is built from.

    Args:
        config: of the run.
        roster: the sites and their clients.
        raw: the server's test set; None if the sites measure.
    """

    config: Config
    roster: Roster
    raw: RawData | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order: those of the server's data if it has some, else those of the sites."""
        if not self.config.task.has_classes:
            return ()
        return self.roster.class_names if self.raw is None else self.raw.class_names


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
    config, roster, class_names = basis.config, basis.roster, basis.class_names
    model, test = server_model(config, class_names, basis.raw, roster.clients)
    tiers, steering = tiers_of(config, model, roster.clients), config.strategy.steering
    wire = model.spec if steering is None else steering.extend(model.spec)
    depths = None if tiers is None else tiers.depths
    terms = Terms(invitation.run, class_names, wire.fingerprint.hex(), model.identity, config.task.name, depths)
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
    federation = replace(federation, attendance=remote.attendance, site_of=roster.site_of)
    return ServerParts(config, model, federation, roster, class_names, sites, bench), remote


def sent_to_sites(config: Config) -> Config:
    """The configuration as sites get it: without the adapter, of which they need only the tuning method."""
    path = config.model.adapter
    if path is None:
        return config
    backbone = built(config, ("0", "1"))  # its head is of no importance here
    tuning = adopted_tuning(config, read_adapter(path, backbone.anatomy), backbone)
    return config.model_copy(update={"tuning": tuning, "model": config.model.model_copy(update={"adapter": None})})
