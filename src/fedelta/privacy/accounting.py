"""Epsilon of releases, and the noise for an epsilon, by `dp_accounting`.

All events are Gaussian mechanisms on Poisson samples, with the relation that adds or removes one unit. Under the
relation that replaces one, the library's two accountants take the noise relative to different sensitivities.

Source: Google's dp-accounting; for PLD Koskela et al. 2020 and Doroshenko et al. 2022, for RDP Mironov 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from fedelta.privacy.state import Release

_INTERVAL = 1e-4  # of privacy loss, in the PLD accountant; 1e-3 is wrong by 5 % after 100,000 steps


class Epsilons(NamedTuple):
    """Two upper bounds of the same epsilon.

    Args:
        pld: from privacy loss distributions, the tighter one; infinite where delta is too small for them.
        rdp: from Renyi differential privacy.
    """

    pld: float
    rdp: float


def joint(*noise_multipliers: float) -> float:
    """The noise multiplier of one Gaussian mechanism that releases as much as all of these together on one sample.

    (z_1^-2 + ... + z_k^-2)^-1/2; they may depend on each other's results.

    >>> joint(1.0, 1.0)
    0.7071067811865475
    """
    return 1 / math.sqrt(math.fsum(z**-2 for z in noise_multipliers))


def epsilons(releases: Mapping[Release, int], delta: float) -> Epsilons:
    """The epsilon of all `releases` together.

    Raises:
        ValueError: a noise multiplier is not finite and positive, a rate is not in (0, 1], or delta is not in (0, 1).
    """
    _check(releases, delta)
    return _epsilons(tuple(sorted(releases.items())), delta)


@lru_cache(maxsize=4096)
def _epsilons(releases: tuple[tuple[Release, int], ...], delta: float) -> Epsilons:
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    if not releases:
        return Epsilons(0.0, 0.0)
    pld, rdp = PLDAccountant(value_discretization_interval=_INTERVAL), RdpAccountant()
    for release, times in releases:
        for accountant in (pld, rdp):
            accountant.compose(_event(release), times)
    return Epsilons(float(pld.get_epsilon(delta)), float(rdp.get_epsilon(delta)))


def composed(releases: Mapping[Release, int], interval: float) -> Any:  # Any: the library has no types
    """The accountant by privacy loss distributions after `releases`, with `get_epsilon` and `get_delta`.

    Args:
        releases: each with how often it happened.
        interval: of the privacy loss, by which it is rounded up.
    """
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=interval)
    for release, times in releases.items():
        accountant.compose(_event(release), times)
    return accountant


def _event(release: Release) -> Any:  # Any: the library has no types
    from dp_accounting import dp_event

    gaussian = dp_event.GaussianDpEvent(release.noise_multiplier)
    return gaussian if release.rate == 1 else dp_event.PoissonSampledDpEvent(release.rate, gaussian)


def _check(releases: Mapping[Release, int], delta: float) -> None:
    for release in releases:
        # The library answers epsilon 0 for noise that is NaN or infinite.
        if not (math.isfinite(release.noise_multiplier) and release.noise_multiplier > 0):
            raise ValueError(f"a noise multiplier is {release.noise_multiplier}, expected a finite number above 0")
        if not 0 < release.rate <= 1:
            raise ValueError(f"a sampling rate is {release.rate}, expected more than 0 and at most 1")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, expected a number between 0 and 1")
