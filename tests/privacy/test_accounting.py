from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from fedelta.privacy.accounting import Epsilons, calibrated, epsilons, joint, scaled, worst
from fedelta.privacy.bounds import pld_epsilon
from fedelta.privacy.state import Release

# 8 of 64 clients by Poisson sampling, noise multiplier 1, 30 rounds, delta 1e-3.
STANDARD = {Release(1.0, 8 / 64): 30}

# dp-accounting 0.6, ADD_OR_REMOVE_ONE, PLD interval 1e-4.
REFERENCES = {
    "q 256/60000, sigma 1.1": ({Release(1.1, 256 / 60_000): 14_062}, 1e-5, 2.382, 2.597),
    "q .01, sigma 1": ({Release(1.0, 0.01): 10_000}, 1e-5, 6.188, 6.713),
    "q .01, sigma 4": ({Release(4.0, 0.01): 10_000}, 1e-5, 0.947, 1.036),
    "8 of 64": (STANDARD, 1e-3, 3.253941, 3.983596),
    "100 of 3,400": ({Release(1.0, 100 / 3400): 1500}, 1e-5, 7.459, 8.159),
    "one Gaussian": ({Release(1.0): 1}, 1e-5, 4.377, 4.729),
    "q .00512": ({Release(1.0, 0.00512): 14_062}, 1e-5, 3.46837, 3.7766),
    "30 Gaussians": ({Release(1.0): 30}, 1e-3, 31.136155, 33.722878),
    "30 Gaussians of 4": ({Release(4.0): 30}, 1e-3, 4.650897, 5.206775),
    "68 rounds": ({Release(1.0, 8 / 64): 68}, 1e-3, 4.978, 5.913),
    "69 rounds": ({Release(1.0, 8 / 64): 69}, 1e-3, 5.018, 5.958),
}


def exact_of_gaussian(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang 2018 (arXiv 1805.06530), Theorem 8."""
    mu = 1 / noise_multiplier

    def excess(epsilon: float) -> float:
        above = norm.cdf(mu / 2 - epsilon / mu)
        return float(above - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu)) - delta)

    return float(brentq(excess, 0, 500, xtol=1e-12))


def delta_of_one_sampled(noise_multiplier: float, rate: float, epsilon: float) -> float:
    """The hockey-stick divergence of one Poisson-sampled Gaussian by numerical integration, the larger direction."""

    def with_unit(x: float) -> float:
        absent, present = norm.pdf(x, 0, noise_multiplier), norm.pdf(x, 1, noise_multiplier)
        return float((1 - rate) * absent + rate * present)

    def without(x: float) -> float:
        return float(norm.pdf(x, 0, noise_multiplier))

    pairs = ((with_unit, without), (without, with_unit))
    return max(
        quad(lambda x, p=p, q=q: max(0.0, p(x) - math.exp(epsilon) * q(x)), -12, 13, limit=400)[0] for p, q in pairs
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_epsilon_equals_the_reference_value(name: str):
    releases, delta, pld, rdp = REFERENCES[name]
    assert epsilons(releases, delta) == pytest.approx(Epsilons(pld, rdp), abs=1e-3)


@pytest.mark.parametrize(("delta", "pld"), [(1e-8, 7.609422), (1e-10, 9.147908), (1e-12, 10.626127)])
def test_epsilon_equals_the_reference_value_at_a_small_delta(delta: float, pld: float):
    assert epsilons(STANDARD, delta).pld == pytest.approx(pld, abs=1e-3)


def test_epsilon_of_one_sampled_release_equals_a_numerical_integral():
    epsilon = epsilons({Release(1.0, 0.125): 1}, 1e-3).pld
    assert delta_of_one_sampled(1.0, 0.125, epsilon) == pytest.approx(1e-3, rel=1e-3)


def test_epsilon_of_thirty_rounds_equals_that_of_losses_drawn_at_random():
    # delta = E[max(0, 1 - exp(epsilon - loss))] over the privacy loss of 30 rounds in which the unit may take part.
    rng = np.random.default_rng(0)
    taken_part = rng.random((200_000, 30)) < 8 / 64
    values = rng.standard_normal(taken_part.shape) + taken_part
    losses = np.log(1 - 8 / 64 + 8 / 64 * np.exp(values - 0.5)).sum(axis=1)
    epsilon = epsilons(STANDARD, 1e-2).pld
    terms = np.maximum(0, -np.expm1(epsilon - losses))
    assert abs(terms.mean() - 1e-2) < 3 * terms.std() / math.sqrt(len(terms))


@pytest.mark.parametrize(("times", "noise"), [(1, 1.0), (30, 4.0), (3000, 40.0)])
def test_epsilon_without_sampling_equals_the_analytic_gaussian(times: int, noise: float):
    exact = exact_of_gaussian(noise / math.sqrt(times), 1e-5)
    assert epsilons({Release(noise): times}, 1e-5).pld == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("delta", [1e-5, 1e-10, 1e-11, 1e-12, 1e-13])
def test_epsilon_is_never_below_the_exact_value_by_rounding_errors(delta: float):
    # Without the guard it is 9.75816 at 1e-11, and the exact value 9.75840. Not merged, so that it is composed.
    epsilon = pld_epsilon(((Release(40.0), 3000),), delta)
    assert epsilon > exact_of_gaussian(40 / math.sqrt(3000), delta) * (1 - 1e-9)


def test_a_delta_that_is_too_small_for_pld_has_an_epsilon_by_rdp_only():
    result = epsilons(STANDARD, 1e-15)
    assert result.pld == math.inf
    assert result.rdp == pytest.approx(13.5645, abs=1e-3)


def test_two_queries_on_one_sample_are_joined_before_sampling():
    # As two sampled releases they would have epsilon 2.539: too small.
    apart = epsilons({Release(math.sqrt(2), 8 / 64): 60}, 1e-3).pld
    assert apart == pytest.approx(2.539, abs=1e-3)
    assert epsilons({Release(joint(math.sqrt(2), math.sqrt(2)), 8 / 64): 30}, 1e-3).pld == pytest.approx(
        3.254, abs=1e-3
    )


def test_joint_noise_is_that_of_the_andrew_factor():
    # z_delta = (z^-2 - (2 sigma_b)^-2)^-1/2 = 1.0124352 for z = 1, sigma_b = 3.2
    assert joint(1.0124352, 2 * 3.2) == pytest.approx(1.0, abs=1e-7)
    assert joint(1.2810252, 2 * 0.8) == pytest.approx(1.0, abs=1e-7)


def test_releases_of_different_kinds_are_composed():
    # sum of z^-2: 3 / 4^2 + 5 / 2^2 = 1.4375
    one = Release(1.4375**-0.5)
    assert epsilons({Release(4.0): 3, Release(2.0): 5}, 1e-5) == pytest.approx(epsilons({one: 1}, 1e-5), rel=1e-9)
    mixed = epsilons({**STANDARD, Release(4.0): 2}, 1e-3)
    assert (
        epsilons(STANDARD, 1e-3).pld < mixed.pld < epsilons(STANDARD, 5e-4).pld + epsilons({Release(4.0): 2}, 5e-4).pld
    )
    assert mixed.pld < mixed.rdp


def test_nothing_released_has_epsilon_zero():
    assert epsilons({}, 1e-5) == worst([], 1e-5) == worst([{}], 1e-5) == Epsilons(0.0, 0.0)


@pytest.mark.parametrize("noise", [math.nan, math.inf, 0.0, -1.0])
def test_noise_that_is_no_positive_number_is_refused(noise: float):
    # The library's RDP accountant has epsilon 0 for NaN and infinity.
    with pytest.raises(ValueError, match=r"a noise multiplier is .*, expected a finite number above 0"):
        epsilons({Release(noise, 0.5): 1}, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, -1e-5, math.nan])
def test_a_delta_outside_of_zero_and_one_is_refused(delta: float):
    with pytest.raises(ValueError, match=r"delta is .*, expected a number between 0 and 1"):
        epsilons(STANDARD, delta)


@pytest.mark.parametrize("rate", [0.0, 1.5, -0.1, math.nan])
def test_a_rate_that_is_no_probability_is_refused(rate: float):
    with pytest.raises(ValueError, match=r"a sampling rate is .*, expected more than 0 and at most 1"):
        epsilons({Release(1.0, rate): 1}, 1e-5)


def test_a_number_of_releases_below_one_is_refused():
    with pytest.raises(ValueError, match="a release happened 0 times, expected at least once"):
        epsilons({Release(1.0): 0}, 1e-5)


def test_the_worst_client_has_the_largest_epsilon_of_all():
    rng = np.random.default_rng(0)
    everyone = [
        {Release(4.0, min(1.0, 32 / size)): -(-size // 32) * times}
        for size, times in zip(rng.integers(40, 900, 5).tolist(), rng.integers(1, 9, 5).tolist(), strict=True)
    ]
    single = [epsilons(releases, 1e-5) for releases in everyone]
    assert worst(everyone, 1e-5) == Epsilons(max(e.pld for e in single), max(e.rdp for e in single))


@pytest.mark.slow
def test_calibration_gives_the_reference_noise():
    noise = calibrated([scaled(STANDARD, 1.0)], 1e-3, 5.0)
    assert noise == pytest.approx(0.8075, abs=1e-4)
    assert 5 * (1 - 2e-3) < epsilons(scaled(STANDARD, noise), 1e-3).pld <= 5


@pytest.mark.parametrize("target", [0.05, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("releases", [{Release(1.0, 0.02): 200}, {Release(0.5): 3}])
def test_calibrated_noise_stays_within_its_target_and_wastes_little(releases: dict[Release, int], target: float):
    noise = calibrated([releases], 1e-5, target)
    assert epsilons(scaled(releases, noise), 1e-5).pld <= target
    assert epsilons(scaled(releases, noise * 0.997), 1e-5).pld > target


def test_calibration_by_rdp_holds_for_its_own_bound():
    noise = calibrated([STANDARD], 1e-3, 5.0, "rdp")
    assert 5 * (1 - 2e-3) < epsilons(scaled(STANDARD, noise), 1e-3).rdp <= 5


def test_calibration_protects_whoever_needs_most():
    # By RDP the first has more epsilon at a noise of 1, by PLD the order may be another one.
    everyone = [{Release(1.0, 0.5): 4}, {Release(1.0, 0.05): 100}, {Release(1.0, 0.01): 10}]
    noise = calibrated(everyone, 1e-3, 0.2)
    assert 0.2 * (1 - 2e-3) < worst([scaled(releases, noise) for releases in everyone], 1e-3).pld <= 0.2


def test_calibration_says_when_no_noise_is_enough():
    assert calibrated([{Release(1.0): 10_000}], 1e-5, 1e-3) == math.inf
    assert calibrated([STANDARD], 1e-15, 5.0) == math.inf  # no PLD at this delta
    assert calibrated([STANDARD], 1e-15, 5.0, "rdp") < math.inf


def test_calibration_without_releases_needs_the_least_noise():
    assert calibrated([], 1e-5, 1.0) == calibrated([{Release(1.0): 1}], 1e-5, 1e6) == 1e-2


def test_what_the_library_says_of_orders_stays_out_of_the_output(caplog: pytest.LogCaptureFixture):
    # It warns of this rate and noise that an order did not converge.
    with caplog.at_level(logging.DEBUG):
        epsilons({Release(1.0, 0.1251): 30}, 1e-3)
    assert not caplog.records
    assert not logging.getLogger("absl").disabled


@settings(max_examples=3)
@given(
    noise=st.floats(4, 20),
    rate=st.floats(0.001, 1),
    times=st.integers(1, 300),
    more=st.floats(1.01, 2),
)
def test_epsilon_grows_with_rounds_and_rate_and_falls_with_noise(noise: float, rate: float, times: int, more: float):
    epsilon = epsilons({Release(noise, rate): times}, 1e-5)
    others = (
        epsilons({Release(noise, rate): math.ceil(times * more)}, 1e-5),
        epsilons({Release(noise, min(1.0, rate * more)): times}, 1e-5),
        epsilons({Release(noise / more, rate): times}, 1e-5),
    )
    for other in others:
        assert other.pld >= epsilon.pld - 1e-6
        assert other.rdp >= epsilon.rdp - 1e-6
    assert epsilon.pld <= epsilon.rdp + 1e-3


@pytest.mark.parametrize("noise", [1e-300, 1e-8, 1e-3])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_next_to_no_noise_has_a_huge_or_infinite_epsilon_and_is_no_error(noise: float, rate: float):
    for releases in ({Release(noise, rate): 3}, {Release(noise, rate): 1, Release(1.0): 1}):
        assert min(epsilons(releases, 1e-5)) > 1e5
