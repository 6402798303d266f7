"""The curve delta(epsilon) of releases: what they give away at every epsilon, not only at one delta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from statistics import NormalDist
from typing import Any

from fedelta.privacy.bounds import composed
from fedelta.privacy.state import Release

_NORMAL = NormalDist()
# Of the privacy loss. Coarser than where epsilon is reported: measured limits are coarser still.
_INTERVAL, _COARSE_INTERVAL = 1e-3, 1e-2


class DeltaCurve:
    """The curve of releases whose noise multipliers are `scale` times those of `releases`.

    Args:
        releases: of a run, each with how often it happened.
        scale: factor of the noise; below 1: the noise is smaller than it was said to be.
    """

    def __init__(self, releases: Mapping[Release, int], scale: float = 1.0) -> None:
        self._releases = {
            Release(release.noise_multiplier * scale, release.rate): times for release, times in releases.items()
        }
        self._is_sampled = any(release.rate < 1 for release in releases)

    def delta(self, epsilon: float) -> float:
        """The smallest delta at which the releases are (epsilon, delta)-private."""
        return float(self._losses.get_delta_for_epsilon(epsilon)) if self._is_sampled else _gaussian(epsilon, self._mu)

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 at which they are (epsilon, delta)-private."""
        if self._is_sampled:
            return float(self._losses.get_epsilon_for_delta(delta))
        low, high = 0.0, 1.0
        if self.delta(low) <= delta:
            return low
        while self.delta(high) > delta:
            high *= 2
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return high

    @cached_property
    def _mu(self) -> float:
        """The distance of the two distributions, in standard deviations."""
        return math.sqrt(math.fsum(times * release.noise_multiplier**-2 for release, times in self._releases.items()))

    @cached_property
    def _losses(self) -> Any:  # Any: the library has no types
        smallest = min(release.noise_multiplier for release in self._releases)
        return composed(tuple(self._releases.items()), _INTERVAL if smallest > 0.5 else _COARSE_INTERVAL)


def _gaussian(epsilon: float, mu: float) -> float:
    """Delta of a Gaussian mechanism without sampling.

    Source: Balle and Wang 2018 (arXiv 1805.06530), theorem 8.
    """
    from scipy.special import log_ndtr

    first, second = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    # In logarithms: e^epsilon is large where the second probability is small.
    return max(0.0, _NORMAL.cdf(first) - math.exp(epsilon + float(log_ndtr(second))))
