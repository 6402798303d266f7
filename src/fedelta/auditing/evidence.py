"""The score of a trial: how much more likely what was seen is with the canary than without it.

A round shows x = shift + z n if the canary was there, and x = z n if not, with a standard normal n. The logarithm of
the ratio of the two probabilities is

    e = (shift x - shift^2 / 2) / z^2

Rounds for which one sample was drawn add up; a sample has the canary with probability q, so that its ratio is
(1 - q) + q exp(sum of e). No other score tells more (Neyman and Pearson 1933), if the mechanism is the claimed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


def evidence(seen: float, noise_multiplier: float, shift: float = 1.0) -> float:
    """The logarithm e for one number.

    >>> evidence(1.0, 1.0), evidence(0.0, 1.0), evidence(0.5, 0.1)
    (0.5, -0.5, 0.0)

    Args:
        seen: x, in units of the largest contribution.
        noise_multiplier: z.
        shift: what the canary adds to x.
    """
    return float((shift * seen - shift**2 / 2) / noise_multiplier**2)


def score(draws: Iterable[Sequence[float]], rate: float) -> float:
    """The logarithm of the likelihood ratio of a trial.

    Args:
        draws: for each sample the evidence of its rounds.
        rate: q.
    """
    sums = [math.fsum(draw) for draw in draws]
    if rate == 1:
        return math.fsum(sums)
    return math.fsum(np.logaddexp(math.log1p(-rate), math.log(rate) + total) for total in sums)
