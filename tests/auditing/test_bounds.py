"""The arithmetic of an audit: limits of probabilities, and lower bounds of epsilon."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedelta.auditing.bounds import Limits, Trials, clopper_pearson, measured, refutes
from fedelta.auditing.curve import DeltaCurve
from fedelta.privacy.accounting import epsilons
from fedelta.privacy.state import Release

ONE = {Release(1.0): 1}
DELTA = 1e-5


def normal_trials(distance: float, num: int, seed: int = 0) -> Trials:
    """Scores of one Gaussian mechanism: deviation 1, and `distance` between the two worlds."""
    random = np.random.default_rng(seed)
    return Trials(random.standard_normal(num), random.standard_normal(num) + distance)


def test_the_limits_of_a_probability_are_those_of_clopper_and_pearson():
    # 5 of 50: published tables give (0.0333, 0.2181) for the central 95 % interval.
    low, high = clopper_pearson(np.array([5]), 50, 0.025)
    assert low[0] == pytest.approx(0.0333, abs=5e-5)
    assert high[0] == pytest.approx(0.2181, abs=5e-5)
    # Nothing in n trials: (1 - p)^n = chance.
    assert clopper_pearson(np.array([0]), 30, 0.05)[1][0] == pytest.approx(1 - 0.05 ** (1 / 30))
    assert clopper_pearson(np.array([30]), 30, 0.05)[0][0] == pytest.approx(0.05 ** (1 / 30))
    assert clopper_pearson(np.array([0, 30]), 30, 0.05)[0][0] == 0
    assert clopper_pearson(np.array([0, 30]), 30, 0.05)[1][1] == 1


def test_limits_hold_as_often_as_they_claim():
    # 2,000 draws of 40 trials; each limit may be wrong with probability 0.1: 200 times, deviation 13.
    hits = np.random.default_rng(0).binomial(40, 0.3, 2000)
    low, high = clopper_pearson(hits, 40, 0.1)
    assert (low > 0.3).sum() <= 240
    assert (high < 0.3).sum() <= 240
    assert (low > 0.3).sum() >= 60  # and they are no wider than they must be


@pytest.mark.parametrize("epsilon", [0.5, 4.377, 8.0])
def test_the_curve_of_one_gaussian_is_the_analytic_one(epsilon: float):
    # dp-accounting answers 4.377 for sigma 1 and delta 1e-5.
    by_accountant = DeltaCurve({Release(1.0, 1 - 1e-12): 1}).delta(epsilon)
    assert DeltaCurve(ONE).delta(epsilon) == pytest.approx(by_accountant, rel=5e-3)


def test_the_curve_gives_the_epsilon_that_is_accounted():
    assert DeltaCurve(ONE).epsilon(DELTA) == pytest.approx(4.377, abs=1e-3)
    sampled = {Release(1.0, 0.125): 30}
    assert DeltaCurve(sampled).epsilon(1e-3) == pytest.approx(3.2539, abs=2e-3)
    assert DeltaCurve(ONE, 2.0).epsilon(DELTA) == pytest.approx(epsilons({Release(2.0): 1}, DELTA).pld, abs=1e-3)


def test_four_equal_releases_are_one_with_half_the_noise():
    assert DeltaCurve({Release(2.0): 4}).delta(1.0) == pytest.approx(DeltaCurve(ONE).delta(1.0), rel=1e-12)


def test_limits_that_the_curve_allows_are_not_refuted():
    # One Gaussian, threshold 1.5: FPR 0.066807, TPR 0.308538.
    assert not refutes((Limits(1.5, 0.3085, 0.0669),), DeltaCurve(ONE))
    assert refutes((Limits(1.5, 0.3100, 0.0667),), DeltaCurve(ONE))
    # The same from the other side: miss and false alarm change places.
    assert not refutes((Limits(-0.5, 1 - 0.0669, 1 - 0.3085),), DeltaCurve(ONE))
    assert refutes((Limits(-0.5, 1 - 0.0667, 1 - 0.3100),), DeltaCurve(ONE))


def test_the_measured_bound_stays_below_epsilon_in_as_many_audits_as_the_confidence_says():
    # At 90 % five of 50 audits may fail; Bonferroni makes it fewer.
    results = [measured(normal_trials(1.0, 200, seed), ONE, DELTA, 0.9) for seed in range(50)]
    assert sum(result.exceeds for result in results) <= 5
    accounted = epsilons(ONE, DELTA).pld
    assert all((result.epsilon >= accounted - 1e-6) == result.exceeds for result in results)


def test_the_measured_bound_is_not_far_below_epsilon():
    result = measured(normal_trials(1.0, 2000), ONE, DELTA, 0.95)
    assert 3.0 < result.epsilon_kind < 4.377
    assert 0.8 < result.epsilon_any < 4.377
    assert result.num_trials == 1000


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_noise_is_caught_in_400_trials(seed: int):
    result = measured(normal_trials(2.0, 200, seed), ONE, DELTA, 0.95)
    assert result.exceeds
    assert result.epsilon >= epsilons(ONE, DELTA).pld - 1e-6


def test_no_noise_is_caught_and_shows_all_that_so_many_trials_can_show():
    result = measured(Trials(np.zeros(400), np.ones(400)), ONE, DELTA, 0.95)
    # 200 trials without a false alarm, six limits: FPR <= 1 - (0.05 / 6)^(1/200), TPR >= (0.05 / 6)^(1/200).
    chance = (0.05 / 6) ** (1 / 200)
    assert result.epsilon_any == pytest.approx(math.log((chance - DELTA) / (1 - chance)))
    assert result.exceeds
    assert result.epsilon_kind > 15


def test_scores_that_say_nothing_give_zero():
    result = measured(Trials(np.zeros(100), np.zeros(100)), ONE, DELTA, 0.95)
    assert result.epsilon == 0
    assert not result.exceeds


def test_a_canary_that_lowers_the_score_is_no_evidence_for_a_wrong_direction():
    result = measured(normal_trials(-3.0, 200), ONE, DELTA, 0.95)
    assert not result.exceeds


def test_thresholds_are_not_chosen_in_the_trials_that_are_counted():
    # The first half of each kind (even places) tells the two apart, the second half does not.
    absent, present = np.zeros(200), np.zeros(200)
    present[::2] = 1
    assert measured(Trials(absent, present), ONE, DELTA, 0.95).epsilon == 0


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="a trial's score is not a number"):
        measured(Trials(np.zeros(8), np.full(8, math.nan)), ONE, DELTA, 0.95)
    with pytest.raises(ValueError, match="3 trials, expected at least 4 of each kind"):
        measured(Trials(np.zeros(3), np.zeros(8)), ONE, DELTA, 0.95)
