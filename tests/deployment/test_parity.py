"""What the sites of a deployment compute, with their own data, models and disks, is what a simulation computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.deployment.local import AT, DATA
from tests.runtimes.remote.local_link import LocalLink, LocalSite
from tests.runtimes.remote.test_parity import assert_same
from tests.small import CONVOLUTIONAL, SMALL

from fedelta import __version__
from fedelta.assembly.run import Assembly, assemble
from fedelta.config import Config, load_config
from fedelta.deployment.site.service import Service
from fedelta.deployment.site.settings import parse_site
from fedelta.federation.base import Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.runtimes.remote.post import Post
from fedelta.runtimes.remote.profiles import Invitation
from fedelta.runtimes.remote.roster import gather
from fedelta.runtimes.remote.runtime import Remote
from fedelta.runtimes.remote.settings import Deployment
from fedelta.runtimes.remote.terms import Terms
from fedelta.runtimes.remote.versions import Copying

WINDOWS = ("strategy.name=fedlama", "strategy.phi=2", "strategy.tau=2", "client.local_epochs=", "strategy.num_rounds=4")
TIERS = ("tuning.name=accumulator", "tuning.r=", "exits.tiers=[1, 2]", "tuning.num_heads=2", "tuning.mlp_width=16")
PRIVATE = (
    "privacy.noise_multiplier=0.5", "privacy.randomness=seeded", "client.local_epochs=", "client.local_steps=2",
    "client.batch_size=4",
)  # fmt: skip
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "windows": (SMALL, WINDOWS),
    "control variates, residuals": (SMALL, ("strategy.name=scaffold", "codec.name=int8")),
    "int4 in both directions": (SMALL, ("codec.name=int4",)),
    "ranks that differ": (SMALL, ("aggregation.name=hlora", "tuning.rank_by_client.ranks=[1, 2]")),
    "what is carried": (SMALL, ("aggregation.name=fedex", "tuning.rank_by_client.ranks=[1, 2]")),
    "tiers": (SMALL, TIERS),
    "local norms": (CONVOLUTIONAL, ("model.batch_norm=local",)),
    "private examples": (SMALL, (*PRIVATE, "privacy.unit=example", "codec.name=int8", "strategy.num_rounds=2")),
    "private clients": (SMALL, (*PRIVATE, "privacy.unit=client")),
    "private clients with turns": (SMALL, (*PRIVATE, *WINDOWS, "privacy.unit=client")),
    "local noise in windows": (SMALL, (*PRIVATE, *WINDOWS, "privacy.unit=local")),
    "local noise with tiers": (SMALL, (*PRIVATE, *TIERS, "privacy.unit=local", "strategy.num_rounds=1")),
    "local noise": (SMALL, (*PRIVATE, "privacy.unit=local", "strategy.name=scaffold", "codec.name=int8")),
    "augmented": (SMALL, ("augmentation.crop_padding=2", "augmentation.flip=true")),
}


def simulated(assembly: Assembly) -> list[RoundOutcome]:
    federation = replace(assembly.federation, evaluate=None)
    state = assembly.strategy.init(assembly.params, assembly.spec)
    return list(federate(federation, Standing(assembly.params, state)))


def service_of(name: str, folder: Path, config: Config) -> Service:
    table = {
        "name": name, "state": str(folder / name), "clients": AT[name], "data": DATA,
        "runtime": {"lanes": config.runtime.lanes},
    }  # fmt: skip
    return Service(parse_site(table, folder))


def deployed(assembly: Assembly, folder: Path) -> list[RoundOutcome]:
    """The rounds over two sites, one of which starts anew after the first of them."""
    config, model, steering = assembly.config, assembly.model, assembly.strategy.steering
    link = LocalLink({name: LocalSite(service_of(name, folder, config).answer) for name in AT})
    settings = Deployment()
    invitation = Invitation("run", config.to_toml(), __version__)
    post = Post(link, settings, link.clock)
    roster = gather(post, settings, invitation)
    wire = assembly.federation.wire
    remote = Remote(
        post, settings, roster, invitation=invitation, wire=wire,
        terms=Terms(
            "run", assembly.data.class_names, wire.fingerprint.hex(), model.identity, config.task.name,
            None if assembly.tiers is None else assembly.tiers.depths,
            None if assembly.federation.privacy is None else assembly.federation.privacy.noise_multiplier,
        ),
        copying=None if steering is None else Copying(steering, model.spec, config.codec.up),
    )  # fmt: skip
    remote.prepare()
    federation = replace(assembly.federation, runtime=remote, evaluate=None)
    outcomes = []
    state = assembly.strategy.init(assembly.params, assembly.spec)
    for outcome in federate(federation, Standing(assembly.params, state)):
        outcomes.append(outcome)
        if outcome.round == 1:
            link.sites["hamburg"].handler = service_of("hamburg", folder, config).answer
            link.sites["hamburg"].restart()
    return outcomes


@pytest.mark.parametrize("name", RECIPES)
def test_sites_compute_the_bits_of_a_simulation(name: str, tmp_path: Path):
    text, overrides = RECIPES[name]
    (tmp_path / "recipe.toml").write_text(text)
    config = load_config(tmp_path / "recipe.toml", (*overrides, "runtime.lanes=1", "runtime.name=simulation"))
    assembly = assemble(config)
    assert_same(deployed(assembly, tmp_path), simulated(assembly))
