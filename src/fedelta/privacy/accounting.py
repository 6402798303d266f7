"""Epsilon of releases, and the least noise for an epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from heapq import heapify, heapreplace
from typing import Literal, NamedTuple

from fedelta.privacy.bounds import Releases, merged, pld_epsilon, rdp_epsilon
from fedelta.privacy.state import Release

Accountant = Literal["pld", "rdp"]

MOST_NOISE = 1e4
"""The largest noise multiplier that is calculated."""
_LEAST_NOISE = 1e-2
_COARSENESS = (100, 10, 1)  # of the PLD bounds that are tried one after the other
_TOLERANCE = 1e-3  # by which a calculated noise may exceed the least one


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
    power = math.fsum(1 / z / z for z in noise_multipliers)
    return 1 / math.sqrt(power) if power else math.inf


def epsilons(releases: Mapping[Release, int], delta: float) -> Epsilons:
    """The epsilon of all `releases` together.

    Args:
        releases: and how often each of them happened.
        delta: of the guarantee.

    Raises:
        ValueError: a noise multiplier is not finite and positive, a rate is not in (0, 1], a number of releases is not
            positive, or delta is not in (0, 1).
    """
    return worst([releases], delta)


def worst(everyone: Iterable[Mapping[Release, int]], delta: float) -> Epsilons:
    """The epsilon of whoever is protected least; 0 for no one.

    Args:
        everyone: the releases about each, and how often they happened.
        delta: of the guarantee.

    Raises:
        ValueError: see `epsilons`.
    """
    candidates = _candidates(everyone, delta)
    if not candidates:
        return Epsilons(0.0, 0.0)
    return Epsilons(_largest_pld(candidates, delta)[0], _largest_rdp(candidates, delta)[0])


def calibrated(
    everyone: Iterable[Mapping[Release, int]], delta: float, target: float, accountant: Accountant = "pld"
) -> float:
    """The least noise multiplier with which everyone's epsilon stays within `target`; infinite if there is none.

    It is on the safe side: up to 0.1 % more than the least one, and never less.

    Args:
        everyone: the planned releases about each, as they are with a noise multiplier of 1.
        delta: of the guarantee.
        target: the largest epsilon.
        accountant: which bound of epsilon counts.

    Raises:
        ValueError: see `epsilons`.
    """
    planned = _candidates(everyone, delta)
    return _rounded_up(_least_noise(planned, delta, target, accountant)) if planned else _LEAST_NOISE


def _least_noise(planned: Sequence[Releases], delta: float, target: float, accountant: Accountant) -> float:
    largest = _largest_pld if accountant == "pld" else _largest_rdp
    noise, (epsilon, least_protected) = _LEAST_NOISE, _largest_rdp(planned, delta)
    # Noise for one, then for whoever needs more, because the epsilon of everyone takes long.
    while True:
        noise = _noise_for(least_protected, delta, target, accountant, noise)
        if noise == math.inf:
            return noise
        original = {_louder(releases, noise): releases for releases in planned}
        epsilon, releases = largest(original, delta)
        if epsilon <= target:
            return noise
        least_protected = original[releases]


def scaled(releases: Mapping[Release, int], factor: float) -> dict[Release, int]:
    """The same releases with `factor` times the noise."""
    return {Release(release.noise_multiplier * factor, release.rate): times for release, times in releases.items()}


def _rounded_up(noise: float) -> float:
    """At most five digits, so that another machine gets the same noise.

    >>> _rounded_up(0.807463257), _rounded_up(12.0)
    (0.80747, 12.0)
    """
    if noise == math.inf:
        return noise
    digits = 4 - math.floor(math.log10(noise))
    return round(math.ceil(round(noise * 10.0**digits, 3)) / 10.0**digits, digits)


def _candidates(everyone: Iterable[Mapping[Release, int]], delta: float) -> list[Releases]:
    """Checked and merged, without those whom another one surely exceeds."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, expected a number between 0 and 1")
    distinct = {tuple(sorted(releases.items())) for releases in everyone if releases}
    for releases in distinct:
        _check(releases)
    return _undominated({merged(releases) for releases in distinct})


def _check(releases: Releases) -> None:
    for release, times in releases:
        # The library answers epsilon 0 for noise that is NaN or infinite.
        if not (math.isfinite(release.noise_multiplier) and release.noise_multiplier > 0):
            raise ValueError(f"a noise multiplier is {release.noise_multiplier}, expected a finite number above 0")
        if not 0 < release.rate <= 1:
            raise ValueError(f"a sampling rate is {release.rate}, expected more than 0 and at most 1")
        if times < 1:
            raise ValueError(f"a release happened {times} times, expected at least once")


def _undominated(candidates: Collection[Releases]) -> list[Releases]:
    """Without those that have the noise of another, but neither a higher rate nor more releases."""
    kept = [releases for releases in candidates if len(releases) > 1]
    most_times: dict[float, int] = {}  # noise multiplier to the largest number so far, from high rates to low ones
    singles = (releases[0] for releases in candidates if len(releases) == 1)
    for release, times in sorted(singles, key=lambda single: (-single[0].rate, -single[1])):
        if times > most_times.get(release.noise_multiplier, 0):
            most_times[release.noise_multiplier] = times
            kept.append(((release, times),))
    return kept


def _largest_rdp(candidates: Iterable[Releases], delta: float) -> tuple[float, Releases]:
    """The largest RDP bound, and whose it is."""
    return max((rdp_epsilon(releases, delta), releases) for releases in candidates)


def _largest_pld(candidates: Iterable[Releases], delta: float) -> tuple[float, Releases]:
    """The largest PLD bound, and whose it is.

    Not all of them are computed. Whoever has the largest bound, of whatever kind, gets the next tighter bound, until
    that is the tightest one: what the others have is less already.
    """
    bounds = [(-rdp_epsilon(releases, delta), 0, releases) for releases in candidates]
    heapify(bounds)
    while (level := bounds[0][1]) < len(_COARSENESS):
        releases = bounds[0][2]
        bound = pld_epsilon(releases, delta, _COARSENESS[level])
        heapreplace(bounds, (-bound, level + 1, releases))
    return -bounds[0][0], bounds[0][2]


def _noise_for(planned: Releases, delta: float, target: float, accountant: Accountant, start: float) -> float:
    """The least multiplier, from `start` on, with which `planned` stays within `target`."""
    noise = _root(lambda z: rdp_epsilon(_louder(planned, z), delta), target, start)
    for coarseness in _COARSENESS[1:] if accountant == "pld" else ():
        bound = partial(_pld_with, planned, delta, coarseness)
        # A looser bound needs more noise: that is where to begin with the next tighter one.
        noise = _root(bound, target, min(noise, MOST_NOISE))
    return noise


def _pld_with(planned: Releases, delta: float, coarseness: int, noise: float) -> float:
    return pld_epsilon(_louder(planned, noise), delta, coarseness)


def _louder(planned: Releases, noise: float) -> Releases:
    return tuple(sorted((Release(release.noise_multiplier * noise, release.rate), n) for release, n in planned))


def _root(epsilon: Callable[[float], float], target: float, start: float) -> float:
    """The least multiplier whose epsilon is within `target`, searched from `start` on; infinite if there is none."""
    if target * (1 - _TOLERANCE) <= epsilon(start) <= target:
        return start
    is_start_safe = epsilon(start) <= target
    step, unsafe, safe = 1.02, start, start
    while not is_start_safe and epsilon(safe) > target:
        if safe >= MOST_NOISE:
            return math.inf
        unsafe, safe, step = safe, min(safe * step, MOST_NOISE), step**2
    while is_start_safe and epsilon(unsafe) <= target:
        if unsafe <= _LEAST_NOISE:
            return _LEAST_NOISE
        safe, unsafe, step = unsafe, max(unsafe / step, _LEAST_NOISE), step**2
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        return max(-30.0, min(30.0, math.log(max(epsilon(math.exp(log_noise)), 1e-30) / target)))

    noise = math.exp(brentq(excess, math.log(unsafe), math.log(safe), xtol=_TOLERANCE / 4))
    while epsilon(noise) > target:
        noise *= 1 + _TOLERANCE / 4
    return noise
