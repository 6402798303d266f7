"""Correlated noise: its sensitivity by brute force, and its error beside that of independent noise."""

from __future__ import annotations

import re
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedelta.assembly.privacy import guarantee_of
from fedelta.config import parse_config
from fedelta.errors import ConfigError
from fedelta.privacy.accounting import epsilons
from fedelta.privacy.correlated import Correlated, binomial, fitted
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import EVERYONE, PrivacyState, Release
from fedelta.seeds import stream
from fedelta.strategies.base import turn

NUM_ROUNDS = 8


def weights_matrix(correlated: Correlated, num_rounds: int) -> np.ndarray:
    """W, by its definition."""
    matrix = np.zeros((num_rounds, num_rounds))
    for row in range(num_rounds):
        for age, weight in enumerate(correlated.weights[: row + 1]):
            matrix[row, row - age] = weight
    return matrix


def patterns(num_rounds: int, separation: int, most: int) -> list[tuple[int, ...]]:
    """All sets of at most `most` rounds that are `separation` rounds apart or more."""
    return [
        rounds
        for size in range(1, most + 1)
        for rounds in combinations(range(num_rounds), size)
        if all(later - earlier >= separation for earlier, later in pairwise(rounds))
    ]


def normal(round: int) -> Tensor:
    return torch.randn(5, generator=stream(0, round), dtype=torch.float64)


@pytest.mark.parametrize("num_rounds", range(1, NUM_ROUNDS + 1))
@pytest.mark.parametrize(("num_clients", "clients_per_round"), [(4, 4), (4, 2), (9, 3), (8, 2), (5, 2), (7, 3)])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_sensitivity_is_that_of_the_worst_of_all_turns(num_rounds, num_clients, clients_per_round, gamma):
    correlated = Correlated(binomial(gamma, 3), num_clients, clients_per_round)
    columns = np.linalg.inv(weights_matrix(correlated, num_rounds))
    turns = patterns(num_rounds, correlated.separation, correlated.num_turns(num_rounds))
    worst = max(np.linalg.norm(columns[:, list(rounds)].sum(axis=1)) for rounds in turns)
    assert correlated.sensitivity(num_rounds) == pytest.approx(worst, rel=1e-12)


def test_no_updates_of_norm_one_move_the_releases_further_than_the_sensitivity():
    correlated = Correlated(binomial(0.6, 4), 6, 2)  # every third round
    columns = np.linalg.inv(weights_matrix(correlated, NUM_ROUNDS))
    generator = np.random.default_rng(0)
    farthest = 0.0
    for _ in range(2000):
        updates = generator.normal(size=(3, 2)) + generator.choice([0, 5])  # of any direction, and nearly equal ones
        updates /= np.linalg.norm(updates, axis=1, keepdims=True)
        farthest = max(farthest, float(np.linalg.norm(columns[:, [0, 3, 6]] @ updates)))
    assert 0.99 * correlated.sensitivity(NUM_ROUNDS) < farthest <= correlated.sensitivity(NUM_ROUNDS)


def test_weights_whose_inverse_increases_are_bounded_by_its_largest_later_value():
    # 1 / (1 - 0.9 x^2) = 1 + 0.9 x^2 + ...: c = 1, 0, 0.9, 0, 0.81. With c = 1, 0.9, 0.9, 0.81, 0.81 the bound holds.
    correlated = Correlated((1.0, 0.0, -0.9), 3, 1)
    columns = np.linalg.inv(weights_matrix(correlated, 5))
    turns = patterns(5, 3, 2)
    worst = max(np.linalg.norm(columns[:, list(rounds)].sum(axis=1)) for rounds in turns)
    assert (
        worst
        <= correlated.sensitivity(5)
        == pytest.approx(np.linalg.norm(np.array([1, 0.9, 0.9, 0.81, 0.81]) + np.array([0, 0, 0, 1, 0.9])))
    )


@given(num_clients=st.integers(1, 30), clients_per_round=st.integers(1, 30), num_rounds=st.integers(1, 40))
def test_clients_take_turns_as_far_apart_and_as_rarely_as_the_sensitivity_assumes(
    num_clients, clients_per_round, num_rounds
):
    clients_per_round = min(clients_per_round, num_clients)
    correlated = Correlated((1.0,), num_clients, clients_per_round)
    order = torch.randperm(num_clients, generator=stream(num_clients)).tolist()
    rounds_of: dict[int, list[int]] = {client_id: [] for client_id in order}
    for round in range(1, num_rounds + 1):
        cohort = turn(clients_per_round, round, order)
        assert len(set(cohort)) == clients_per_round
        for client_id in cohort:
            rounds_of[client_id].append(round)
    for rounds in rounds_of.values():
        assert len(rounds) <= correlated.num_turns(num_rounds)
        assert all(second - first >= correlated.separation for first, second in pairwise(rounds))


def test_the_noise_of_a_round_is_its_row_of_the_weights():
    correlated = Correlated(binomial(0.5, 3), 4, 1)
    independent = torch.stack([normal(round) for round in range(1, 7)]).numpy()
    noise = torch.stack([correlated.noise(normal, round) for round in range(1, 7)]).numpy()
    np.testing.assert_allclose(noise, weights_matrix(correlated, 6) @ independent, rtol=0, atol=1e-14)


def test_independent_noise_is_the_case_of_one_band():
    correlated = Correlated(binomial(0.7, 1), 64, 8)
    assert torch.equal(correlated.noise(normal, 3), normal(3))
    # 7 turns in 50 rounds, and the sums of 1, ..., 50 rounds have variance 1, ..., 50.
    assert correlated.sensitivity(50) == pytest.approx(7**0.5)
    assert correlated.error(50) == pytest.approx((51 / 2) ** 0.5)


def test_the_error_is_that_of_the_sums_of_all_rounds_so_far():
    correlated = Correlated(binomial(0.4, 3), 4, 1)
    sums = np.tril(np.ones((6, 6))) @ weights_matrix(correlated, 6)
    assert correlated.error(6) == pytest.approx(np.sqrt((sums**2).sum() / 6))


# Errors relative to independent noise with the same epsilon; the best that any weights of this form reach, found by a
# search over all of them for 50 rounds (Nelder-Mead), is 0.503 for 8 of 64.
@pytest.mark.parametrize(
    ("num_rounds", "num_clients", "clients_per_round", "most"),
    [(50, 64, 8, 0.51), (200, 100, 10, 0.41), (1500, 3400, 100, 0.23)],
)
def test_the_fitted_noise_disturbs_the_params_far_less_than_independent_noise(
    num_rounds, num_clients, clients_per_round, most
):
    independent = Correlated((1.0,), num_clients, clients_per_round)
    best = fitted(4, num_rounds, num_clients, clients_per_round)
    of_independent = independent.error(num_rounds) * independent.sensitivity(num_rounds)
    assert best.error(num_rounds) * best.sensitivity(num_rounds) < most * of_independent


def test_the_fitted_noise_is_independent_where_every_client_is_in_every_round():
    assert fitted(4, 50, 16, 16).weights == (1.0, 0.0, 0.0, 0.0)


def test_all_rounds_together_are_one_release_that_grows_with_every_turn():
    # Independent noise, 2 of 4 clients: everyone has had 1 turn after round 2, and somebody a second after round 3.
    privacy = Privacy(unit="client", mechanism="banded", noise_multiplier=3.0, target_delta=1e-3)
    guarantee = Guarantee(privacy, noise_multiplier=3.0, correlated=Correlated((1.0,), 4, 2))
    state = PrivacyState()
    for round, num_turns in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3)):
        state = guarantee.after(state, round, [0, 1] if round % 2 else [2, 3])
        [(release, times)] = state.spent[EVERYONE].items()
        assert (release.noise_multiplier, release.rate, times) == (pytest.approx(3 / num_turns**0.5), 1.0, 1)
    # as a turn in three rounds with independent noise
    assert guarantee.epsilon(state.spent) == pytest.approx(epsilons({Release(3.0): 3}, 1e-3).pld, abs=1e-3)


def test_a_round_may_not_begin_that_would_exceed_the_budget():
    privacy = Privacy(unit="client", mechanism="banded", noise_multiplier=3.0, target_delta=1e-3, max_epsilon=1.3)
    guarantee = Guarantee(privacy, noise_multiplier=3.0, correlated=fitted(4, 20, 4, 2))
    spent = [guarantee.after(PrivacyState(), round, []).spent for round in range(1, 21)]
    results = [guarantee.epsilon(of_round) for of_round in spent]
    assert results == sorted(results)
    assert [guarantee.allows(of_round) for of_round in spent] == [epsilon <= 1.3 for epsilon in results]
    assert results[0] <= 1.3 < results[-1]


def table(strategy: dict[str, object], privacy: dict[str, object]) -> dict[str, object]:
    return {
        "model": {"architecture": {"model_type": "vit"}},
        "data": {"source": "digits"},
        "partition": {"name": "iid", "num_clients": 64},
        "strategy": strategy,
        "privacy": {"unit": "client", "target_epsilon": 5.0, "target_delta": 1e-3, "mechanism": "banded"} | privacy,
    }


def test_clients_take_turns_with_banded_noise_unless_told_otherwise():
    config = parse_config(table({}, {}))
    assert (config.strategy.sampling, config.strategy.mean.name) == ("cyclic", "uniform")
    assert parse_config(config.to_table()) == config


@pytest.mark.parametrize(
    ("strategy", "privacy", "expected"),
    [
        ({}, {"unit": "example"}, "'banded', which is noise of the server: only for `privacy.unit` = 'client'"),
        (
            {"sampling": "poisson"},
            {},
            "is 'poisson', but the noise of `privacy.mechanism` = 'banded' is for clients that",
        ),
        ({"name": "fedlama", "phi": 4}, {}, "whose cohorts stay for 4 rounds, but the noise of"),
        ({}, {"clipping": "adaptive"}, "the noise of `privacy.mechanism` = 'banded' is for one clipping norm"),
    ],
)
def test_what_banded_noise_cannot_be_combined_with_is_said_before_round_1(strategy, privacy, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        parse_config(table(strategy, privacy))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedluar", "scaffold", "fedlama"])
def test_banded_noise_goes_with_every_strategy_that_has_a_new_cohort_in_every_round(name):
    strategy = {"name": name} | ({"phi": 1} if name == "fedlama" else {})
    client = {"client": {"optimizer": {"name": "sgd"}}} if name == "scaffold" else {}
    assert parse_config(table(strategy, {}) | client).strategy.sampling == "cyclic"


def test_the_noise_for_an_epsilon_is_enough_for_all_planned_rounds_and_for_no_more():
    config = parse_config(table({"clients_per_round": 8, "num_rounds": 50}, {}))
    guarantee = guarantee_of(config, config.strategy, dict.fromkeys(range(64), 100))
    last = guarantee.after(PrivacyState(), 50, [])
    assert 4.99 < guarantee.epsilon(last.spent) <= 5.0
    assert guarantee.allows(last.spent)
    # A client has 7 turns in 50 rounds. One Gaussian needs 0.6898 for epsilon 5 and delta 1e-3 (Balle and Wang).
    assert guarantee.noise_multiplier == pytest.approx(0.6898 * guarantee.correlated.sensitivity(50), rel=2e-3)


def test_turns_are_counted_for_independent_noise_too():
    config = parse_config(table({"sampling": "cyclic", "num_rounds": 50}, {"mechanism": "gaussian"}))
    guarantee = guarantee_of(config, config.strategy, dict.fromkeys(range(64), 100))
    assert guarantee.correlated == Correlated((1.0,), 64, 8)
    assert guarantee.noise_multiplier == pytest.approx(0.6898 * 7**0.5, rel=2e-3)


@pytest.mark.slow
def test_with_the_same_epsilon_banded_noise_disturbs_less_than_noise_without_amplification():
    # RMS of the noise in the sums of all rounds so far: fixed cohorts are counted as if everybody were in all of them.
    def error(sampling: str, mechanism: str, epsilon: float = 5.0) -> float:
        privacy = {"mechanism": mechanism, "target_epsilon": epsilon}
        config = parse_config(table({"sampling": sampling, "num_rounds": 50}, privacy))
        guarantee = guarantee_of(config, config.strategy, dict.fromkeys(range(64), 100))
        correlated = guarantee.correlated or Correlated((1.0,), 64, 8)
        return guarantee.noise_multiplier * correlated.error(50)

    banded, turns = error("cyclic", "banded"), error("cyclic", "gaussian")
    assert banded < 0.51 * turns
    assert turns < 0.38 * error("fixed", "gaussian")  # sqrt(7 / 50) = 0.374
    # With little noise it is also less than that of Poisson cohorts, whose amplification needs them to be secret.
    assert error("cyclic", "banded", 10.0) < 0.85 * error("poisson", "gaussian", 10.0)
