"""The privacy of a run as its server counts it: what each round releases about whom, and whether it may begin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fedelta.privacy.accounting import Epsilons, joint, worst
from fedelta.privacy.correlated import Correlated
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import EVERYONE, PrivacyState, Release, Spent, grown


class Work(NamedTuple):
    """What a client does in one round of example-level privacy.

    Args:
        rate: probability with which each of its examples is in a batch.
        num_steps: noisy steps in a round.
    """

    rate: float
    num_steps: int


@dataclass(frozen=True)
class Guarantee:
    """What is promised, and how it is counted.

    | unit | one round releases |
    |---|---|
    | client | to everyone, on this round's sample of clients, a Gaussian of `noise_multiplier` |
    | client, in turns | to everyone, together with all rounds before, one Gaussian: see `Correlated.sensitivity` |
    | example | about each client of the cohort, `num_steps` Gaussians on samples of its examples |
    | local | about each client of the cohort, a Gaussian of half `noise_multiplier`: two deltas differ by 2 C at most |

    If a cohort stays for several rounds (FedLAMA), these are releases about one sample: they are joined before the
    sampling amplifies them.

    Args:
        settings: section `[privacy]`.
        noise_multiplier: given, or calculated for the target.
        cohort_rate: probability with which a client is in a cohort; 1 if the sampling is not counted on.
        cohort_rounds: number of rounds that a cohort stays.
        work: client number to its work, for examples.
        correlated: the turns of clients, and how their noise is correlated; None if cohorts are drawn.
        planned: what all rounds of the run will have released if no client is lost.
    """

    settings: Privacy
    noise_multiplier: float
    cohort_rate: float = 1.0
    cohort_rounds: int = 1
    work: Mapping[int, Work] = field(default_factory=dict)
    correlated: Correlated | None = None
    planned: Spent = field(default_factory=dict)

    @property
    def limit(self) -> float | None:
        """The epsilon that no round may exceed; None without a limit."""
        settings = self.settings
        return settings.target_epsilon if settings.max_epsilon is None else settings.max_epsilon

    def after(self, state: PrivacyState, round: int, client_ids: Collection[int]) -> PrivacyState:
        """What has been released when `round` is over.

        Every round of client-level privacy counts, also one in which no tensor is due (FedLAMA): when that is follows
        from earlier results, and what is counted may not.

        Args:
            state: before the round.
            round: its number, from 1.
            client_ids: clients whose uploads may have been seen.
        """
        if self.correlated is not None:
            # It takes the place of the release of the rounds before, which is a part of it.
            release = Release(self.noise_multiplier / self.correlated.sensitivity(round))
            return replace(state, spent={EVERYONE: {release: 1}})
        if self.settings.unit == "client":
            is_new = (round - 1) % self.cohort_rounds == 0
            before = () if is_new else state.releases_of_draw
            now = (*before, self.noise_multiplier)
            spent = grown(state.spent, {EVERYONE: (self._of_draw(before), -1)}) if before else state.spent
            spent = grown(spent, {EVERYONE: (self._of_draw(now), 1)})
            return replace(state, spent=spent, releases_of_draw=now)
        about = {str(client_id): self._of(client_id) for client_id in sorted(client_ids)}
        return replace(state, spent=grown(state.spent, about))

    def epsilons(self, spent: Spent) -> Epsilons | None:
        """The epsilon of whoever is protected least; None if the mechanism guarantees nothing."""
        if self.settings.is_reproduction:
            return None
        return worst(spent.values(), self.settings.target_delta)

    def epsilon(self, spent: Spent) -> float | None:
        """The epsilon that is reported and held against the limit (`Privacy.accountant`); None as for `epsilons`."""
        both = self.epsilons(spent)
        if both is None:
            return None
        return both.pld if self.settings.accountant == "pld" else both.rdp

    def allows(self, spent: Spent) -> bool:
        """Whether `spent` stays within the limit."""
        if self.limit is None:
            return True
        epsilon = self.epsilon(spent)
        return epsilon is None or epsilon <= self.limit

    def _of_draw(self, noise_multipliers: tuple[float, ...]) -> Release:
        """What all rounds of one cohort release together."""
        return Release(joint(*noise_multipliers), self.cohort_rate)

    def _of(self, client_id: int) -> tuple[Release, int]:
        """What one round releases about a client, and how often."""
        if self.settings.unit == "local":
            return Release(self.noise_multiplier / 2), 1
        rate, num_steps = self.work[client_id]
        return Release(self.noise_multiplier, rate), num_steps
