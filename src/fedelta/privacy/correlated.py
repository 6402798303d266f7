"""Noise that is correlated over rounds, so that later noise takes back a part of the earlier one (DP-FTRL).

The server params depend on the sums of all updates so far. Let g_1, ..., g_R be the sums of the clipped updates of R
rounds, in units of the clipping norm, and z_1, ..., z_R independent normal numbers times the noise multiplier. Round t
releases

    g_t + w_0 z_t + w_1 z_{t-1} + ... + w_{p-1} z_{t-p+1},    w_0 = 1,    w_j = (-1)^j binomial(gamma, j)

With W, the lower triangular matrix of these weights, and C = W^-1, all releases together are W (C g + z): a Gaussian
mechanism on C g, followed by W, which reads no data. C is lower triangular too, so this also holds if the updates of a
round depend on the releases before it, and after T rounds for the first T rows and columns.

**Sensitivity.** A client is there or not: in each round of its turn it sends a vector u_t of norm 1 at most, or
nothing. All entries of C are >= 0 (c_0 = 1, c_n = sum_j |w_j| c_{n-j}), and so are the products of its columns:

    || sum_t C_t u_t ||^2 = sum_{s, t} <C_s, C_t> <u_s, u_t> <= sum_{s, t} <C_s, C_t> = || sum_t C_t ||^2

It is reached if all u_t are equal. As for the rounds of the turns, <C_s, C_t> = sum_i c_i c_{i+t-s} over i < T - t: if
c does not increase, this does not decrease when turns become earlier and closer. Clients take turns in a circle
(`strategies.base.turn`): b = floor(N / M) rounds or more lie from one turn of a client to its next, and no client has
more than k = ceil(T M / N) turns in T rounds. So the worst case is a turn in the rounds 1, 1 + b, ..., 1 + (k - 1) b.
Where c increases, the largest later value takes its place, which can only raise the bound.

The cohorts need not be secret or random: the bound holds for every client whatever the order is. A tensor that is not
due in a round is one for which everybody sends zero and whose release nobody sees. gamma is the one with the least
error of the params for a given epsilon; gamma = 0 is independent noise.

Source: Kairouz et al. 2021 (DP-FTRL, arXiv 2103.00039); Denisov et al. 2022 (arXiv 2202.08312), Theorem 2.1, for
updates that depend on earlier releases; Choquette-Choo et al. 2023 (arXiv 2306.08153) for turns b rounds apart; Kalinin
and Lampert 2024 (arXiv 2405.13763) for the worst case of turns; Kalinin et al. 2025 (arXiv 2505.12128) for weights that
end after p rounds, with gamma = 1/2. Other gammas as in arXiv 2605.18379; the search is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_NUM_GAMMAS = 101  # between 0 and 1; the error is flat around its minimum


@dataclass(frozen=True)
class Correlated:
    """The weights of earlier noise in a round, and the turns for which they are meant.

    Args:
        weights: w_0 = 1, w_1, ..., w_{p-1}; all but the first are <= 0.
        num_clients: N.
        clients_per_round: M.
    """

    weights: tuple[float, ...]
    num_clients: int
    clients_per_round: int

    @property
    def separation(self) -> int:
        """Fewest rounds from one turn of a client to its next."""
        return self.num_clients // self.clients_per_round

    def num_turns(self, num_rounds: int) -> int:
        """The most turns that a client has among the first `num_rounds` rounds."""
        return -(-num_rounds * self.clients_per_round // self.num_clients)

    def sensitivity(self, num_rounds: int) -> float:
        """How far one client can move C g of the first `num_rounds` rounds, in units of the clipping norm.

        See the module docstring; sqrt(number of turns) for independent noise.
        """
        column = _column(self.weights, num_rounds)
        column = np.maximum.accumulate(column[::-1])[::-1]
        total = np.zeros(num_rounds)
        for start in range(0, self.separation * self.num_turns(num_rounds), self.separation):
            total[start:] += column[: num_rounds - start]
        return float(np.linalg.norm(total))

    def error(self, num_rounds: int) -> float:
        """Root mean square of the noise in the sums of all releases so far, over the rounds, in units of z times C."""
        padded = np.zeros(num_rounds)
        padded[: len(self.weights)] = self.weights[:num_rounds]
        return float(np.sqrt(np.cumsum(np.cumsum(padded) ** 2).mean()))

    def variance(self, round: int) -> float:
        """The variance of the noise of `round` (from 1), for z = 1."""
        return math.fsum(weight**2 for weight in self.weights[:round])

    def noise(self, normal: Callable[[int], Tensor], round: int) -> Tensor:
        """The noise of `round` (from 1), for z = 1.

        Args:
            normal: gives the independent normal numbers of a round, the same in every call.
            round: number of the round.
        """
        noise = normal(round)
        for age, weight in enumerate(self.weights[1:round], start=1):
            noise = noise + weight * normal(round - age)
        return noise


def fitted(bands: int, num_rounds: int, num_clients: int, clients_per_round: int) -> Correlated:
    """The correlation with the least error for a given epsilon after `num_rounds` rounds.

    Args:
        bands: p, number of rounds whose noise is in a release; 1: independent noise.
        num_rounds: R.
        num_clients: N.
        clients_per_round: M.
    """
    gammas = np.linspace(0.0, 1.0, _NUM_GAMMAS) if bands > 1 else np.zeros(1)
    choices = [Correlated(binomial(float(gamma), bands), num_clients, clients_per_round) for gamma in gammas]
    return min(choices, key=lambda choice: choice.error(num_rounds) * choice.sensitivity(num_rounds))


def binomial(gamma: float, num: int) -> tuple[float, ...]:
    """The first `num` coefficients of (1 - x)^gamma.

    >>> binomial(0.5, 4)
    (1.0, -0.5, -0.125, -0.0625)
    """
    weights = [1.0]
    for j in range(1, num):
        weights.append(weights[-1] * (j - 1 - gamma) / j)
    return tuple(weights)


def _column(weights: Sequence[float], num: int) -> NDArray[np.float64]:
    """c_0, ..., c_{num-1}, the first column of C: the coefficients of 1 / (w_0 + w_1 x + ...)."""
    from scipy.signal import lfilter

    impulse = np.zeros(num)
    impulse[0] = 1.0
    return np.asarray(lfilter([1.0], weights, impulse))
