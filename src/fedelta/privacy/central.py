"""Client-level privacy, given by the server: it clips the update of every client, adds noise to their sum, and divides.

A round releases, for the clients i of its cohort,

    (sum_i clip(delta_i, C) + N(0, (z' C)^2 I)) / m_l

for all tensors l that are due in the round, also those that nobody sent. m_l is the number of clients expected to send
the tensor, clients_per_round times the share of all clients that hold it: a constant, because the number that did send
it would tell who was there. A client that is lost counts as zero, and an empty cohort gives noise.

Sensitivity: with or without one client, the sum differs by its clipped delta, whose norm over all tensors of the round
together is at most C, whatever the client or its codec does, because clipping comes after decoding. With clipping per
group each of the G groups that are due contributes at most C / sqrt(G), and all of them C.

A round may release two more sums over the same clients. With the noise multipliers z_k they get a share of z, which is
what the round releases altogether, and the deltas get the rest: z' = (z^-2 - sum_k z_k^-2)^-1/2.

Number of clients with a norm of at most C, for adaptive clipping: sum_i (b_i - 1/2) with bits b_i differs by 1/2 with
or without one client, so that noise of the standard deviation sigma_b has the multiplier 2 sigma_b. C moves towards the
quantile gamma of the norms:

    C <- C exp(-eta_C (b - gamma)),    b = 1/2 + (sum_i (b_i - 1/2) + N(0, sigma_b^2)) / clients_per_round

Squared norms of groups, for FedLAMA's discrepancies: the vector sum_i ||delta_i,g||^2 over groups g differs by one
whose norm is at most the sum of its elements, sum_g ||delta_i,g||^2 <= C^2. They get a tenth of z^-2 (of what the count
leaves of it), so their noise has the standard deviation sqrt(10) z C^2.

Sources: McMahan et al. 2018 (DP-FedAvg, arXiv 1710.06963), fixed-denominator estimator; Andrew et al. 2021 (arXiv
1905.03871), Algorithm 1 and Theorem 1, for adaptive clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedelta.aggregation.base import Update
from fedelta.errors import ConfigError
from fedelta.params import Params, ParamSpec, digest_of, norm
from fedelta.privacy.clipping import clipped, clipped_by_group
from fedelta.privacy.correlated import Correlated
from fedelta.privacy.randomness import Randomness
from fedelta.privacy.settings import Privacy
from fedelta.strategies.base import Noised, RoundPlan

_SQUARES_SHARE = 0.1  # our choice: of z^-2, in the rounds that release squared norms; deltas get 5 % more noise
_COUNT_SHARE = 1 / 20  # Andrew et al. 2021: sigma_b = clients_per_round / 20


@dataclass(frozen=True)
class Central:
    """The server's mechanism for client-level privacy.

    Args:
        settings: section `[privacy]`.
        noise_multiplier: z, of everything that one round releases.
        expected_clients: number of clients in a cohort, or with Poisson sampling its mean.
        num_clients: N.
        randomness: draws noise and cohorts.
        correlated: how the noise of the deltas is correlated over rounds; None: not at all.

    Raises:
        ConfigError: adaptive clipping, with so little noise in the count that the count alone releases more than z.
    """

    settings: Privacy
    noise_multiplier: float
    expected_clients: float
    num_clients: int
    randomness: Randomness
    correlated: Correlated | None = None

    def __post_init__(self) -> None:
        if self.is_adaptive and 2 * self.count_noise <= self.noise_multiplier:
            least = self.noise_multiplier / 2
            problem = (
                f"`privacy.count_noise` is {self.count_noise:g} for `strategy.clients_per_round` = "
                f"{self.expected_clients:g}, expected more than {least:g}, half of the noise multiplier "
                f"{self.noise_multiplier:.4g}: the number of clients below the clipping norm alone would release more "
                f"than a round may"
            )
            raise ConfigError(
                [problem],
                hint=f"set `privacy.count_noise` above {least:.3g}, ask more clients per round, or give up "
                "`privacy.clipping = 'adaptive'`.",
            )

    @property
    def is_adaptive(self) -> bool:
        """Whether C moves."""
        return self.settings.clipping == "adaptive"

    @cached_property
    def count_noise(self) -> float:
        """sigma_b, the standard deviation of the noise in the number of clients below C."""
        count_noise = self.settings.count_noise
        return self.expected_clients * _COUNT_SHARE if count_noise is None else count_noise

    def multiplier(self, plan: RoundPlan) -> float:
        """z', the noise multiplier of the deltas."""
        beside = [2 * self.count_noise] if self.is_adaptive else []
        if plan.asks_squares:
            beside.append(self.squares_multiplier)
        left = self.noise_multiplier**-2 - math.fsum(z**-2 for z in beside)
        return 1 / math.sqrt(left) if beside else self.noise_multiplier

    @property
    def squares_multiplier(self) -> float:
        """The noise multiplier of squared norms."""
        left = self.noise_multiplier**-2 - ((2 * self.count_noise) ** -2 if self.is_adaptive else 0.0)
        return 1 / math.sqrt(_SQUARES_SHARE * left)

    @property
    def memory(self) -> int:
        """Number of earlier rounds whose noise is a part of a round's noise."""
        return 0 if self.correlated is None else len(self.correlated.weights) - 1

    def start(
        self, plan: RoundPlan, spec: ParamSpec, clipping_norm: float | None, labels: Sequence[str] = ()
    ) -> Noising:
        """The mechanism of a round, before the first update.

        Args:
            plan: of the round.
            spec: all tensors that can travel.
            clipping_norm: C of the round; None in round 1.
            labels: of the noise of earlier rounds, the last one first (`Released.labels`).
        """
        norm = self.settings.clipping_norm if clipping_norm is None else clipping_norm
        return Noising(self, plan, spec, norm, tuple(labels))


@dataclass(frozen=True)
class Released:
    """What a round releases.

    Args:
        mean: tensors that are due, float64.
        noised: what a strategy must know of the noise.
        clipping_norm: C of the next round.
        labels: what the next round needs to draw the noise of this and earlier rounds again, the last one first.
    """

    mean: Params
    noised: Noised
    clipping_norm: float
    labels: tuple[str, ...]


class Noising:
    """The unfinished mechanism of one round.

    Args:
        central: the mechanism.
        plan: of the round; `due` is set.
        spec: all tensors that can travel.
        clipping_norm: C of the round.
        earlier: labels of the noise of earlier rounds, the last one first.

    Attributes:
        clipping_norm: C of the round.
        due: names of the tensors that are released.
    """

    def __init__(
        self, central: Central, plan: RoundPlan, spec: ParamSpec, clipping_norm: float, earlier: tuple[str, ...]
    ) -> None:
        self.clipping_norm = clipping_norm
        self._central, self._plan, self._spec = central, plan, spec
        holders = plan.num_holders
        # A tensor that no client of the federation holds is not sent by anybody, in whatever cohort.
        self.due = [name for name in plan.due or () if holders is None or holders[name]]
        self._num_groups = len({spec.tensors[name].group for name in self.due})
        self._sum = {name: torch.zeros(spec.tensors[name].shape, dtype=torch.float64) for name in self.due}
        self._squares = {spec.tensors[name].group: 0.0 for name in self.due}
        self._above_half = 0.0  # sum_i (b_i - 1/2)
        self._earlier, self._label = earlier, ""

    def add(self, update: Update) -> None:
        """Adds the clipped delta of a client; called in ascending client id."""
        limit = self.clipping_norm
        if self._central.settings.clipping == "per-group":
            delta = clipped_by_group(update.delta, self._spec, limit / math.sqrt(max(1, self._num_groups)))
        else:
            delta = clipped(update.delta, limit)
            self._above_half += 0.5 if norm(update.delta) <= limit else -0.5
        for name, tensor in delta.items():
            self._sum[name].add_(tensor)
            if self._plan.asks_squares:
                self._squares[self._spec.tensors[name].group] += float(tensor.square().sum())

    def finish(self) -> Released:
        """Adds the noise and divides; called once, after the last `add`."""
        central, plan = self._central, self._plan
        digest = self._digest() if central.randomness.is_secure else ""
        self._label = central.randomness.label("release", plan.round, digest)
        streams = self._streams(plan.round)
        deviation = central.multiplier(plan) * self.clipping_norm
        mean, variances = {}, {}
        for name, total in self._sum.items():
            expected = self._expected(name)
            mean[name] = total.add_(self._noise(name), alpha=deviation).div_(expected)
            variances[name] = (deviation / expected) ** 2
            if central.correlated is not None:
                variances[name] *= central.correlated.variance(plan.round)
        noised, labels = Noised(variances, self._mean_squares(streams)), (self._label, *self._earlier)
        return Released(mean, noised, self._next_norm(streams), labels[: central.memory])

    def _digest(self) -> str:
        """Of all that noise is added to."""
        others = [self._above_half, *self._squares.values()]
        return digest_of({**self._sum, "": torch.tensor(others, dtype=torch.float64)})

    def _streams(self, round: int) -> Randomness:
        """The noise of this round or of an earlier one.

        A round that is repeated after a kill may have other replies: two sums must not get the same secret noise.
        """
        age = self._plan.round - round
        return self._central.randomness.below("release", round, self._earlier[age - 1] if age else self._label)

    def _noise(self, name: str) -> Tensor:
        """The noise of a tensor's delta, before scaling."""
        correlated, shape = self._central.correlated, self._sum[name].shape

        def normal(round: int) -> Tensor:
            return self._streams(round).normal(shape.numel(), "privacy", round, "delta", name).reshape(shape)

        round = self._plan.round
        return normal(round) if correlated is None else correlated.noise(normal, round)

    def _expected(self, name: str) -> float:
        """m_l of the module docstring."""
        holders, num_clients = self._plan.num_holders, self._central.num_clients
        return self._central.expected_clients * (1.0 if holders is None else holders[name] / num_clients)

    def _mean_squares(self, streams: Randomness) -> Mapping[str, float]:
        """Group to the mean squared norm of its deltas; empty if the plan does not ask."""
        if not self._plan.asks_squares:
            return {}
        groups = list(self._squares)
        deviation = self._central.squares_multiplier * self.clipping_norm**2
        noise = streams.normal(len(groups), "privacy", self._plan.round, "squares").tolist()
        expected = {self._spec.tensors[name].group: self._expected(name) for name in self.due}
        return {
            group: (self._squares[group] + deviation * draw) / expected[group]
            for group, draw in zip(groups, noise, strict=True)
        }

    def _next_norm(self, streams: Randomness) -> float:
        """C of the next round."""
        central, settings = self._central, self._central.settings
        if not central.is_adaptive:
            return self.clipping_norm
        noise = float(streams.normal(1, "privacy", self._plan.round, "count"))
        below = 0.5 + (self._above_half + central.count_noise * noise) / central.expected_clients
        return self.clipping_norm * math.exp(-settings.clipping_lr * (below - settings.target_quantile))
