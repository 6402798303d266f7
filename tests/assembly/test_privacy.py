"""The noise of a run: from its planned rounds, and refused or warned of where it cannot hold."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from fedelta.assembly.privacy import guarantee_of, planned_states, warn_of_measures
from fedelta.assembly.server import build_server
from fedelta.config import Config, parse_config
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError
from fedelta.federation.base import in_turns
from fedelta.federation.records import Reply
from fedelta.params import ParamSpec, TensorSpec
from fedelta.privacy.guarantee import Guarantee, Work
from fedelta.privacy.state import EVERYONE
from fedelta.seeds import stream
from fedelta.strategies.base import CombinedUpdates, RoundPlan

SIZES = dict.fromkeys(range(64), 40) | {0: 8, 63: 400}
SPEC = ParamSpec({"w": TensorSpec((2,), "g"), "v": TensorSpec((2,), "h")})


UNPROTECTED = {
    "model": {"architecture": {"model_type": "vit"}},
    "data": {"source": "digits"},
    "partition": {"name": "iid", "num_clients": 16},
}


def config_of(*overrides: str, clients: int = 64) -> Config:
    sections = {
        "seed": 5,
        "model": {"architecture": {"model_type": "vit"}},
        "data": {"source": "digits"},
        "partition": {"name": "iid", "num_clients": clients},
        "strategy": {"clients_per_round": 8, "num_rounds": 30},
        "client": {"batch_size": 16, "local_epochs": 2},
    }
    return parse_config(sections, ("privacy.target_delta=1e-3", *overrides))


def guaranteed(config: Config, sizes: Mapping[int, int] = SIZES) -> Guarantee:
    guarantee = guarantee_of(config, config.strategy, sizes)
    assert guarantee is not None
    return guarantee


def test_without_a_unit_nothing_is_guaranteed():
    config = parse_config(UNPROTECTED)
    assert guarantee_of(config, config.strategy, SIZES) is None


def test_clients_that_are_sampled_get_the_reference_noise():
    # 8 of 64, 30 rounds: noise 1 has epsilon 3.983596 by RDP.
    guarantee = guaranteed(
        config_of("privacy.unit=client", "privacy.target_epsilon=3.983596", "privacy.accountant=rdp")
    )
    assert guarantee.noise_multiplier == pytest.approx(1.0, rel=2e-3)
    assert guarantee.cohort_rate == 8 / 64
    assert guarantee.epsilon(guarantee.planned) == pytest.approx(3.983596, rel=2e-3)
    assert guarantee.allows(guarantee.planned)


def test_a_fixed_number_of_clients_is_not_counted_on():
    fixed = config_of("privacy.unit=client", "privacy.noise_multiplier=4.0", "strategy.sampling=fixed")
    guarantee = guaranteed(fixed)
    assert guarantee.cohort_rate == 1.0  # the reference for 30 Gaussians of 4, without sampling
    assert guarantee.epsilon(guarantee.planned) == pytest.approx(4.650897, abs=1e-3)


def test_windows_of_fedlama_are_joined_and_the_last_one_may_be_shorter():
    config = config_of(
        "privacy.unit=client", "privacy.noise_multiplier=2.0", "strategy.name=fedlama", "strategy.phi=4",
        "client.local_epochs=",
    )  # fmt: skip
    # 7 windows of 4 rounds, 2 / 4^1/2, and one of 2, 2 / 2^1/2.
    assert sorted(guaranteed(config).planned[EVERYONE].items()) == [
        (pytest.approx((1.0, 0.125)), 7),
        (pytest.approx((math.sqrt(2), 0.125)), 1),
    ]


def test_examples_are_sampled_at_the_rate_of_their_client():
    guarantee = guaranteed(config_of("privacy.unit=example", "privacy.noise_multiplier=1.5"))
    assert guarantee.work[0] == Work(1.0, 2)  # 8 examples, batches of 16: one step an epoch
    assert guarantee.work[1] == Work(0.4, 6)  # 16 of 40; 3 steps an epoch
    assert guarantee.work[63] == Work(0.04, 50)
    assert guarantee.cohort_rate == 1.0


def test_steps_are_those_of_the_strategy_if_it_sets_them():
    config = config_of(
        "privacy.unit=example", "privacy.noise_multiplier=1.5", "strategy.name=fedlama", "strategy.tau=7",
        "client.local_epochs=",
    )  # fmt: skip
    assert guaranteed(config).work[0] == Work(1.0, 7)


def test_local_noise_is_calculated_for_the_client_with_the_most_rounds():
    guarantee = guaranteed(config_of("privacy.unit=local", "privacy.target_epsilon=5"))
    most = max(sum(releases.values()) for releases in guarantee.planned.values())
    # One Gaussian with (z / 2) / most^1/2 has epsilon 5 at 1e-3, so it is .689951 (analytic).
    assert guarantee.noise_multiplier == pytest.approx(2 * 0.68995 * math.sqrt(most), rel=2e-3)


STRATEGIES = {
    "fedavg": (),
    "fedavgm": (),
    "fedadam": (),
    "fednova": (),
    "scaffold": (),
    "fedluar": (),
    "fedlama": ("strategy.phi=4", "client.local_epochs="),
    "fedlama-auto": ("strategy.phi=3", "strategy.tolerance=1.0", "client.local_epochs="),
}


@pytest.mark.parametrize("sampling", ["fixed", "poisson", "cyclic"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_planned_cohorts_are_those_of_the_strategy(name: str, sampling: str):
    config = config_of(
        "privacy.unit=local", "privacy.noise_multiplier=1.0", f"strategy.name={name}", f"strategy.sampling={sampling}",
        "strategy.num_rounds=7", *STRATEGIES[name],
    )  # fmt: skip
    strategy, client_ids = config.strategy, sorted(SIZES)
    params = {name: torch.zeros(2) for name in SPEC}
    in_order = in_turns(config.seed, client_ids) if sampling == "cyclic" else client_ids
    state, participations = strategy.init(params, SPEC), dict.fromkeys(client_ids, 0)
    for round in range(1, 8):
        plan = strategy.plan(state, round, in_order, SPEC, stream(config.seed, "cohort", round))
        for client_id in plan.cohort:
            participations[client_id] += 1
        wire = SPEC if strategy.steering is None else strategy.steering.extend(SPEC)
        mean = {tensor: torch.zeros(2, dtype=torch.float64) for tensor in wire.shared}
        _, state = strategy.update(state, params, plan, CombinedUpdates(mean, (), ()), SPEC)
    planned = guaranteed(config).planned
    assert {who: sum(releases.values()) for who, releases in planned.items()} == {
        str(client_id): times for client_id, times in participations.items() if times
    }


def test_noise_of_fedpeft_follows_its_formula_and_has_no_epsilon():
    # 2 (2 ln(1.25 / 1e-3))^1/2 / 5 = 1.511
    guarantee = guaranteed(
        config_of("privacy.unit=example", "privacy.target_epsilon=5", "privacy.mechanism=fedpeft-text")
    )
    assert guarantee.noise_multiplier == pytest.approx(1.511, abs=1e-3)
    assert guarantee.epsilon(guarantee.planned) is None


def test_banded_noise_is_calculated_for_clients_that_take_turns():
    guarantee = guaranteed(config_of("privacy.unit=client", "privacy.target_epsilon=5", "privacy.mechanism=banded"))
    assert guarantee.correlated is not None
    assert len(guarantee.correlated.weights) == 4
    assert guarantee.epsilon(guarantee.planned) == pytest.approx(5, rel=2e-3)


def test_an_epsilon_that_no_noise_reaches_is_refused():
    config = config_of("privacy.unit=local", "privacy.target_epsilon=1e-5", "privacy.target_delta=1e-12")
    with pytest.raises(
        ConfigError, match=r"`privacy.target_epsilon` is 1e-05 at `privacy.target_delta` = 1e-12, which "
    ):
        guaranteed(config)


def test_a_delta_below_the_accountants_is_refused():
    config = config_of("privacy.unit=client", "privacy.noise_multiplier=1.0", "privacy.target_delta=1e-16")
    problem = "`privacy.target_delta` is 1e-16, for which `privacy.accountant` = 'pld' has no finite epsilon"
    with pytest.raises(ConfigError, match=problem) as caught:
        guaranteed(config)
    assert caught.value.hint == 'set `privacy.accountant` to "rdp", or allow a larger delta.'
    by_rdp = guaranteed(config.model_copy(update={"privacy": config.privacy.model_copy(update={"accountant": "rdp"})}))
    assert by_rdp.epsilon(by_rdp.planned) == pytest.approx(14.5, abs=1)


@pytest.mark.parametrize(
    ("unit", "delta", "population", "advice"),
    [
        ("client", 1 / 64, "1 / 64, the number of clients", "0.002"),
        ("local", 0.5, "1 / 64, the number of clients", "0.002"),
        ("example", 1 / 8, "1 / 8, the number of examples of the smallest client", "0.01"),
    ],
)
def test_a_delta_of_one_in_the_population_is_warned_of(
    unit: str, delta: float, population: str, advice: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, "fedelta"):
        guaranteed(config_of(f"privacy.unit={unit}", "privacy.noise_multiplier=1.0", f"privacy.target_delta={delta}"))
    (message,) = caplog.messages
    assert message == (
        f"`privacy.target_delta` is {delta:g}, not below {population}: a mechanism that publishes all that one of them "
        f"has would satisfy it; set it to {advice} or less."
    )


def test_measures_that_no_noise_covers_are_warned_of(caplog: pytest.LogCaptureFixture):
    private = config_of("privacy.unit=client", "privacy.noise_multiplier=1", "data.evaluate_on=validation")
    warn_of_measures(private, has_own_norms=True, at_sites=True)
    assert len(caplog.messages) == 3
    for message, what in zip(caplog.messages, ("'validation'", "norms: no noise covers", "sites measure"), strict=True):
        assert what in message
        assert "no noise covers these measures" in message
    caplog.clear()
    warn_of_measures(config_of("privacy.unit=client", "privacy.noise_multiplier=1"))
    warn_of_measures(parse_config({**UNPROTECTED, "data": {"source": "digits", "evaluate_on": "validation"}}))
    assert not caplog.messages


def test_a_smaller_delta_is_not_warned_of(caplog: pytest.LogCaptureFixture):
    guaranteed(config_of("privacy.unit=client", "privacy.noise_multiplier=1.0", f"privacy.target_delta={0.99 / 64}"))
    assert not caplog.messages


def test_planned_states_end_with_what_is_planned():
    config = config_of("privacy.unit=example", "privacy.noise_multiplier=1.5")
    guarantee = guaranteed(config)
    *_, last = planned_states(guarantee, config, config.strategy, sorted(SIZES))
    assert last.spent == guarantee.planned


@pytest.mark.parametrize("unit", ["example", "client", "local"])
def test_running_statistics_that_travel_are_refused_under_every_unit(unit: str):
    tensors = {"w": TensorSpec((2,), "g"), "running_mean": TensorSpec((2,), "g", trained=False)}
    params = {name: torch.zeros(2) for name in tensors}
    config = config_of(f"privacy.unit={unit}", "privacy.noise_multiplier=1.0")
    problem = f"`privacy.unit` is {unit!r}, but 1 running statistics of batch norms travel, first `running_mean`"
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        build_server(config, ParamSpec(tensors), params, Clients.of(SIZES, {}), runtime=NoClients())
    assert caught.value.hint == (
        'set `model.batch_norm` to "local" or "group", or choose a tuning method that trains no norm.'
    )


class NoClients:
    """A runtime that is never asked to run."""

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        raise NotImplementedError

    def accept(self, client_ids: Iterable[int]) -> None:
        raise NotImplementedError

    def snapshot(self, folder: Path, round: int) -> str:
        raise NotImplementedError

    def restore(self, folder: Path, mark: str) -> None:
        raise NotImplementedError
