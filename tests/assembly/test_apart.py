"""Server and site are built apart, and a round that is carried between them is that of a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from tests.builders import assert_same_bits
from tests.small import CONVOLUTIONAL, SMALL, write_small

from fedelta.assembly import site as site_module
from fedelta.assembly.lanes import num_lanes
from fedelta.assembly.model import TunedModel, tiers_of, tuned_model
from fedelta.assembly.server import build_server
from fedelta.assembly.site import build_site, read_data
from fedelta.config import Config, load_config
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment
from fedelta.federation.client import Site
from fedelta.federation.records import Reply, RoundOutcome
from fedelta.federation.rounds import Federation, Standing, federate
from fedelta.models.hub import build
from fedelta.strategies.base import RoundPlan

CLASSES = tuple("0123456789")
CLIENTS = Clients.of(range(6))
EXITS = SMALL.replace('name = "lora"\nr = 2\n', 'name = "exit-heads"\n') + '\n[exits]\ntiers = [1, 2]\ntrain = "sum"\n'


class Carried:
    """Bytes that are carried from the server to the site and back."""

    def __init__(self) -> None:
        self.site: Site | None = None

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        assert self.site is not None
        return list(self.site.run(plan, payloads))

    def accept(self, client_ids: Iterable[int]) -> None:
        assert self.site is not None
        self.site.accept(client_ids)


def at_the_server(config: Config) -> tuple[Federation, TunedModel, Carried]:
    """All that a server has: no row of data, and of the weights nothing but the start."""
    model = tuned_model(config, build(config.model, CLASSES, seed=config.seed), CLASSES)
    carried = Carried()
    tiers = tiers_of(config, model, CLIENTS)
    return build_server(config, model.spec, model.params, CLIENTS, runtime=carried, tiers=tiers), model, carried


def at_the_site(config: Config) -> Site:
    """All that a site has; who else takes part it learns from the ids alone."""
    backbone, data = read_data(config)
    model = tuned_model(config, backbone, data.class_names, num_lanes=num_lanes(config, backbone))
    return build_site(config, model, data, tiers_of(config, model, CLIENTS))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the server read data")


def first_round(config: Config, monkeypatch: pytest.MonkeyPatch) -> RoundOutcome:
    with monkeypatch.context() as patched:
        patched.setattr(site_module, "read", refuse)
        patched.setattr(site_module, "federate", refuse)
        server, model, carried = at_the_server(config)
    carried.site = at_the_site(config)
    return next(federate(server, Standing(model.params, server.strategy.init(model.params, model.spec))))


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (SMALL, ()),
        (SMALL, ("strategy.name=scaffold",)),
        (SMALL, ("client.local_epochs=", "strategy.name=fedlama", "strategy.tau=2")),
        (EXITS, ()),
        (CONVOLUTIONAL, ("tuning.name=full", "model.batch_norm=local")),
    ],
    ids=["lora", "scaffold", "fedlama", "tiers", "local norms"],
)
def test_a_round_between_a_server_and_a_site_is_that_of_the_simulation(
    text: str, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_small(tmp_path, text=text)
    # The last bits depend on which clients share a step, and a site's cohort is one pack.
    once = (*overrides, "strategy.num_rounds=1", "runtime.lanes=1")
    outcome = first_round(load_config(path, once), monkeypatch)
    result = Experiment.from_toml(path, once).run(tmp_path / "run")
    assert_same_bits(outcome.params, result.params)
    transfers = [(transfer.client_id, transfer.direction, transfer.payload_bytes) for transfer in outcome.transfers]
    assert sum(length for *_, length in transfers) == result.ledger.total_bytes
    assert len(transfers) == 6


def test_a_server_that_does_not_evaluate_leaves_the_measures_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outcome = first_round(load_config(write_small(tmp_path), ["strategy.num_rounds=1"]), monkeypatch)
    assert outcome.evaluation is None
    assert outcome.train_loss is not None


def test_a_server_refuses_cohorts_that_its_clients_do_not_fill(tmp_path: Path):
    config = load_config(write_small(tmp_path))
    model = tuned_model(config, build(config.model, CLASSES, seed=config.seed), CLASSES)
    with pytest.raises(ConfigError, match=r"`strategy\.clients_per_round` is 3, but the data have 2 clients"):
        build_server(config, model.spec, model.params, Clients.of([4, 7]), runtime=Carried())


def test_a_server_refuses_a_strategy_that_does_not_fit_the_groups(tmp_path: Path):
    config = load_config(write_small(tmp_path), ["strategy.name=fedluar", "tuning.name=head"])
    with pytest.raises(ConfigError, match="num_recycled"):
        at_the_server(config)


def test_both_sides_make_the_same_model_from_the_configuration(tmp_path: Path):
    config = load_config(write_small(tmp_path))
    _, at_server, _ = at_the_server(config)
    site = at_the_site(config)
    assert at_server.spec.fingerprint == site.engine.spec.fingerprint
    assert_same_bits(at_server.params, site.engine.bank.read(0))


def test_a_method_in_place_has_one_lane_however_many_are_asked_for(tmp_path: Path):
    config = load_config(write_small(tmp_path), ["tuning.name=full"])
    model = tuned_model(config, build(config.model, CLASSES, seed=0), CLASSES, num_lanes=4)
    assert model.lanes.num == 1


def test_a_mean_says_what_it_needs_more_replies_than_were_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = write_small(tmp_path)
    at_the_server(load_config(config, ["strategy.mean.name=median"]))
    told = "the mean 'median' needs 3 replies: a round with fewer does not count, although `strategy.min_replies` is 1."
    assert told in caplog.text
    caplog.clear()
    at_the_server(load_config(config, ["strategy.mean.name=median", "strategy.min_replies=3"]))
    assert caplog.text == ""


def test_a_mean_is_refused_where_too_few_clients_hold_a_tensor(tmp_path: Path):
    write_small(tmp_path, text=EXITS)
    overrides = ["strategy.mean.name=trimmed", "strategy.mean.fraction=0.34", "partition.num_clients=4"]
    config = load_config(tmp_path / "small.toml", overrides)
    clients = Clients.of(range(4))
    model = tuned_model(config, build(config.model, CLASSES, seed=config.seed), CLASSES)
    tiers = tiers_of(config, model, clients)
    assert tiers is not None
    assert sorted(tiers.depths.values()) == [1, 1, 2, 2]
    with pytest.raises(
        ConfigError, match=r"which needs 3 values of a tensor, .*, first `vit.layers.1.exit_head.out.weight` by 2"
    ):
        build_server(config, model.spec, model.params, clients, runtime=Carried(), tiers=tiers)
