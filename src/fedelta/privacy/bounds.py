"""Upper bounds of the epsilon of some releases, by `dp_accounting`: a fast one, and tighter ones that take longer.

Only Gaussian mechanisms, with or without Poisson sampling, and the relation that adds or removes one unit. (Under the
relation that replaces one, the library's two accountants take the noise relative to different sensitivities.)

What one release costs is kept, because every round repeats it: only its composition with itself is computed again.

Source: for privacy loss distributions (PLD) Koskela et al. 2020 (arXiv 1906.03049) and Doroshenko et al. 2022 (arXiv
2207.04380); for Renyi differential privacy (RDP) Mironov 2017 (arXiv 1702.07476) and Mironov et al. 2019 (arXiv
1908.10530); without sampling, Dong et al. 2019 (arXiv 1905.02383): Gaussians compose to a Gaussian.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from fedelta.privacy.state import Release

Releases = tuple[tuple[Release, int], ...]
"""Releases and how often each happened, ascending."""

# Any, in this file: the library has no types.
# What the library raises for a noise multiplier of 0.002 or less with sampling; the bound is then infinite here.
_TOO_LITTLE_NOISE = (OverflowError, ZeroDivisionError)
_FINEST = 1e-4  # of privacy loss; the intervals of the grid are this times a power of ten
_ERROR = 1e-3  # of epsilon, allowed for the grid; it errs on the safe side
# A release that is composed with itself loses this probability in the library, to an infinite loss.
_LOST = 1e-15
# The Fourier transforms of such a composition have rounding errors in the probability of large losses: 6e-18 for each
# time at most in comparisons with exact values, and 4e-15 for the composition of two different releases. With a delta
# of 1e-10 or less they can make epsilon too small: findings/dp_accounting_pld_falls_below_the_exact_epsilon.sh.
_ROUNDING, _ROUNDING_OF_TWO = 1e-17, 1e-14


def merged(releases: Releases) -> Releases:
    """The same, with all releases that were not sampled as one: Gaussians compose to a Gaussian, exactly."""
    unsampled = [(release, times) for release, times in releases if release.rate == 1]
    if sum(times for _, times in unsampled) < 2:
        return releases
    power = math.fsum(times / release.noise_multiplier / release.noise_multiplier for release, times in unsampled)
    sampled = [(release, times) for release, times in releases if release.rate < 1]
    # Within what floating-point numbers can square; epsilon is huge or next to nothing beyond.
    power = min(max(power, 1e-300), 1e300)
    return tuple(sorted([*sampled, (Release(power**-0.5), 1)]))


@lru_cache(maxsize=65_536)
def rdp_epsilon(releases: Releases, delta: float) -> float:
    """The bound from Renyi differential privacy: 50 ms for a release that is new, microseconds after that."""
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant, compute_epsilon

    try:
        rdp = sum(times * _curve(release) for release, times in releases)
    except _TOO_LITTLE_NOISE:
        return math.inf
    # An order that is negative by a rounding error would give epsilon 0.
    return float(compute_epsilon(RdpAccountant().orders, np.where(rdp < 0, np.inf, rdp), delta)[0])


@lru_cache(maxsize=4096)
def pld_epsilon(releases: Releases, delta: float, coarseness: int = 1) -> float:
    """The bound from privacy loss distributions; infinite if delta is too small for them.

    Args:
        releases: merged, at least one.
        delta: of the guarantee.
        coarseness: 1, or a power of ten, which makes the bound looser and its computation as many times faster.
    """
    (release, times), *others = releases
    if release.rate == 1 and times == 1 and not others:
        try:
            return _exact_epsilon(release.noise_multiplier, delta)
        except _TOO_LITTLE_NOISE:
            return math.inf
    repeated = [times for _, times in releases if times > 1]
    rounding = _ROUNDING * sum(repeated) + _ROUNDING_OF_TWO * (len(releases) - 1)
    if delta <= rounding + _LOST * len(repeated):
        return math.inf
    try:
        losses = composed(releases, coarseness * _interval(releases, delta))
    except _TOO_LITTLE_NOISE:
        return math.inf
    return float(losses.get_epsilon_for_delta(delta - rounding))


def _exact_epsilon(noise_multiplier: float, delta: float) -> float:
    """The epsilon of one Gaussian without sampling, which needs no grid: its delta has a formula.

    Source: Balle and Wang 2018 (arXiv 1805.06530), Theorem 5.
    """
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

    loss = GaussianPrivacyLoss(noise_multiplier)
    low, high = 0.0, 1.0
    while loss.get_delta_for_epsilon(high) > delta:
        low, high = high, 2 * high
    while high - low > _ERROR**2 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if loss.get_delta_for_epsilon(middle) > delta else (low, middle)
    return high if loss.get_delta_for_epsilon(0.0) > delta else 0.0


def composed(releases: Releases, interval: float) -> Any:
    """The privacy loss distribution of all releases, with `get_epsilon_for_delta` and `get_delta_for_epsilon`.

    Args:
        releases: at least one.
        interval: of the grid, to which losses are rounded so that the bounds hold.
    """
    total: Any = None
    for release, times in releases:
        one = (_fine_loss if interval <= _FINEST else _coarse_loss)(release, interval)
        many = one if times == 1 else one.self_compose(times)
        total = many if total is None else total.compose(many)
    return total


def _interval(releases: Releases, delta: float) -> float:
    """The interval of the grid.

    The grid adds to epsilon between a third and a few times `number of releases * interval^2`, and its size is
    proportional to epsilon / interval.
    """
    epsilon = rdp_epsilon(releases, delta)
    interval = _FINEST * 10.0 ** max(0, math.floor(math.log10(max(epsilon, 1) / 3)))
    num = sum(times for _, times in releases)
    return interval if num * interval**2 <= _ERROR * epsilon else interval / 10


@lru_cache(maxsize=4096)
def _curve(release: Release) -> Any:
    """The Renyi divergence of a release by order."""
    from dp_accounting import dp_event
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    gaussian = dp_event.GaussianDpEvent(release.noise_multiplier)
    event = gaussian if release.rate == 1 else dp_event.PoissonSampledDpEvent(release.rate, gaussian)
    with _silence():
        return RdpAccountant().compose(event).rdp


@lru_cache(maxsize=8)  # 1 MB each, or 10
def _fine_loss(release: Release, interval: float) -> Any:
    return _loss(release, interval)


@lru_cache(maxsize=256)  # 100 kB each
def _coarse_loss(release: Release, interval: float) -> Any:
    return _loss(release, interval)


def _loss(release: Release, interval: float) -> Any:
    """The privacy loss distribution of a release."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    with _silence():
        return from_gaussian_mechanism(
            release.noise_multiplier, sampling_prob=release.rate, value_discretization_interval=interval
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Holds back what the library says of orders that it leaves out; the bound is valid without them."""
    logger = logging.getLogger("absl")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
