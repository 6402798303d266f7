"""Lower bounds of epsilon from the scores of trials, of which half have a canary.

Whoever sees the score of a trial says "canary" if it is at least a threshold t. Under (epsilon, delta) privacy, the
probabilities of saying so rightly (TPR) and wrongly (FPR) satisfy

    TPR <= e^epsilon FPR + delta      and      1 - FPR <= e^epsilon (1 - TPR) + delta

so that limits of TPR and FPR, measured in trials, give a lower bound of epsilon. The thresholds are chosen in one half
of the trials; limits (Clopper-Pearson) and bounds come from the other half. All limits hold together with the stated
confidence (Bonferroni).

There are two bounds. The first needs no assumption, but n trials can never show more than about ln(n). The second asks
which noise, in a mechanism that is otherwise the accounted one, can be reconciled with the trials: it holds
the limits against the whole curve delta(epsilon) instead of one point.

Source: Jagielski et al. 2020 (arXiv 2006.07709), Nasr et al. 2021 (arXiv 2101.04535) and 2023 (arXiv 2302.07956).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedelta.auditing.curve import DeltaCurve
from fedelta.privacy.state import Release

Scores = NDArray[np.float64]

_NUM_LIMITS = 6  # of TPR and of FPR, at three thresholds
_SMALLEST_SCALE, _LARGEST_SCALE, _HALVINGS = 1 / 8, 64.0, 7


class Trials(NamedTuple):
    """One score for each trial, the higher the more it looks like a canary.

    Args:
        absent: of trials without the canary.
        present: of trials with it.
    """

    absent: Scores
    present: Scores


class Limits(NamedTuple):
    """What was measured at a threshold.

    Args:
        threshold: the lowest score at which one says "canary".
        true_positives: lower limit of TPR.
        false_positives: upper limit of FPR.
    """

    threshold: float
    true_positives: float
    false_positives: float


class Measured(NamedTuple):
    """The lower bounds of epsilon.

    Args:
        epsilon: the larger of the two.
        epsilon_any: holds for every mechanism.
        epsilon_kind: holds if the mechanism is the accounted one but for the size of its noise.
        exceeds: whether the trials contradict what was accounted.
        limits: at each threshold.
        num_trials: trials behind the limits, with the canary and without it.
    """

    epsilon: float
    epsilon_any: float
    epsilon_kind: float
    exceeds: bool
    limits: tuple[Limits, ...]
    num_trials: int


def measured(trials: Trials, releases: Mapping[Release, int], delta: float, confidence: float) -> Measured:
    """The lower bounds of epsilon that `trials` show.

    Args:
        trials: at least four of each kind, independent of each other.
        releases: those that were accounted for.
        delta: of the guarantee.
        confidence: probability with which the bounds hold, in (0, 1).

    Raises:
        ValueError: there are too few trials, or scores that are not numbers.
    """
    _check(trials)
    chance = (1 - confidence) / _NUM_LIMITS
    first, second = (Trials(trials.absent[part::2], trials.present[part::2]) for part in (0, 1))
    limits = tuple(limits_at(second, threshold, chance) for threshold in _thresholds(first, delta, chance))
    any_mechanism = max(0.0, *(_epsilon(at, delta) for at in limits))
    scale = _scale(limits, releases)
    kind = 0.0 if scale is None else DeltaCurve(releases, scale).epsilon(delta)
    exceeds = scale is not None and scale <= 1
    return Measured(max(any_mechanism, kind), any_mechanism, kind, exceeds, limits, len(second.absent))


def clopper_pearson(hits: NDArray[np.int64], num: int, chance: float) -> tuple[Scores, Scores]:
    """The lower and the upper limit of a probability, each of which is wrong with probability `chance` at most.

    >>> low, high = clopper_pearson(np.array([0]), 100, 0.05)
    >>> float(low[0]), round(float(high[0]), 4)  # 1 - 0.05^(1/100)
    (0.0, 0.0295)

    Args:
        hits: how often it happened.
        num: in so many trials.
        chance: of each limit being wrong.

    Source: Clopper and Pearson 1934; the quantiles of beta distributions.
    """
    from scipy.special import betaincinv

    low = np.where(hits > 0, betaincinv(np.maximum(hits, 1), num - hits + 1, chance), 0.0)
    high = np.where(hits < num, betaincinv(hits + 1, np.maximum(num - hits, 1), 1 - chance), 1.0)
    return low, high


def limits_at(trials: Trials, threshold: float, chance: float) -> Limits:
    """The limits at a threshold that was chosen without looking at `trials`."""
    true_positives, false_positives = _limits(trials, np.array([threshold]), chance)
    return Limits(threshold, float(true_positives[0]), float(false_positives[0]))


def refutes(limits: tuple[Limits, ...], curve: DeltaCurve) -> bool:
    """Whether no mechanism with this curve delta(epsilon) can have such limits."""
    for _, true_positives, false_positives in limits:
        for hit, false_alarm in ((true_positives, false_positives), (1 - false_positives, 1 - true_positives)):
            if hit <= false_alarm:
                continue
            # A curve can only be above the line hit - e^epsilon false_alarm where that is positive.
            for epsilon in np.linspace(0.0, math.log(hit / false_alarm), 24, endpoint=False):
                if hit - math.exp(epsilon) * false_alarm > curve.delta(float(epsilon)):
                    return True
    return False


def _check(trials: Trials) -> None:
    for scores in trials:
        if len(scores) < 4:
            raise ValueError(f"{len(scores)} trials, expected at least 4 of each kind")
        if np.isnan(scores).any():
            raise ValueError("a trial's score is not a number")


def _limits(trials: Trials, thresholds: Scores, chance: float) -> tuple[Scores, Scores]:
    """At each threshold the lower limit of TPR and the upper limit of FPR."""
    false_hits, true_hits = (len(scores) - np.searchsorted(np.sort(scores), thresholds) for scores in trials)
    low, _ = clopper_pearson(true_hits, len(trials.present), chance)
    _, high = clopper_pearson(false_hits, len(trials.absent), chance)
    return low, high


def _thresholds(trials: Trials, delta: float, chance: float) -> list[float]:
    """Three thresholds: the best for either inequality, and the best for telling two normal distributions apart."""
    from scipy.special import ndtri

    candidates = np.unique(np.concatenate([trials.absent, trials.present]))
    low, high = _limits(trials, candidates, chance)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (
            np.log(np.maximum(low - delta, 0) / high),
            np.log(np.maximum(1 - high - delta, 0) / (1 - low)),
            ndtri(low) - ndtri(high),
        )
    ranked = (np.argsort(-np.nan_to_num(value, nan=-np.inf), kind="stable") for value in values)
    return [float(candidates[order[0]]) for order in ranked]


def _epsilon(at: Limits, delta: float) -> float:
    """The lower bound that both inequalities give at a threshold; may be negative."""
    hit, false_alarm = at.true_positives, at.false_positives
    pairs = ((hit - delta, false_alarm), (1 - false_alarm - delta, 1 - hit))
    return max((math.log(above / below) for above, below in pairs if above > 0), default=0.0)


def _scale(limits: tuple[Limits, ...], releases: Mapping[Release, int]) -> float | None:
    """The smallest factor of the noise that `limits` refute, between 1/8 and 64; None if they refute none.

    It is at most 1 if, and only if, they refute what was accounted.
    """

    def is_refuted(scale: float) -> bool:
        return refutes(limits, DeltaCurve(releases, scale))

    low, high = (_SMALLEST_SCALE, 1.0) if is_refuted(1.0) else (1.0, _LARGEST_SCALE)
    if high > 1 and not is_refuted(high):
        return None
    if low < 1 and is_refuted(low):
        return low
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_refuted(middle) else (middle, high)
    return high
