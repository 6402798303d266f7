"""FedLAMA with any divisor of phi as the interval of a group, chosen to fit a budget of traffic or of discrepancy.

FedLAMA has two intervals only; its authors leave the best interval of each layer as an open question. Let d_l be the
discrepancy that group l gathers per step and scalar (Eq. 2). With interval a the group sends dim(u_l) / a scalars per
round and gathers a discrepancy of d_l dim(u_l) a tau. A step from a to the next divisor b therefore costs

    d_l dim(u_l) (b - a) / (dim(u_l) / a - dim(u_l) / b) = d_l a b

of discrepancy per scalar saved. All intervals start at 1, and the cheapest step of all groups is taken until the budget
is met. Discrepancy is convex in traffic, so no other choice with the same traffic has a smaller discrepancy.

A traffic budget is for the whole run: what one window saves, later windows may spend. A group whose discrepancy is
still unknown is assumed to have the largest one; while none is known, intervals do not change.

Source: our own, after Lee et al. 2023 (FedLAMA, arXiv 2110.10302), Algorithm 1 and Eq. 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, takewhile
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from fedelta.errors import ConfigError
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context
from fedelta.strategies import windows
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State
from fedelta.strategies.windows import Windows, window_departures, window_problems


class FedLamaAuto(Windows):
    """Chooses intervals by a budget, which is `share`, `tolerance` or the top-level key `byte_budget_mib`.

    Args:
        share: traffic of the run relative to FedAvg(tau), from `least_share` to 1.
        tolerance: by how much the discrepancy, summed over groups, may exceed that of FedAvg(tau), relative to it; 1
            allows twice as much.
    """

    name: Literal["fedlama-auto"] = "fedlama-auto"
    private: ClassVar[bool] = True
    phi: int = Field(default=8, ge=1)  # the paper's longest interval
    share: float | None = Field(default=None, gt=0, le=1)
    tolerance: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_budget(self) -> FedLamaAuto:
        if self.share is not None and self.tolerance is not None:
            raise ValueError("give `share` or `tolerance`, not both")
        if self.share is not None and self.share < self.least_share:
            raise ValueError(
                f"`share` is {self.share:g}, expected at least {self.least_share:.4g}: every group travels in every "
                f"`phi`-th round and in the last"
            )
        return self

    @property
    def least_share(self) -> float:
        """The share of a run in which every group has interval `phi`; 1 / `phi` if `num_rounds` is a multiple of it."""
        return -(-self.num_rounds // self.phi) / self.num_rounds

    @property
    def has_budget(self) -> bool:
        """Whether `share` or `tolerance` is set."""
        return self.share is not None or self.tolerance is not None

    def problems(self, context: Context) -> list[str]:
        """Reports the problems of all windowed strategies, and a missing budget."""
        problems = window_problems(self, context)
        if not self.has_budget and "byte_budget_mib" in context and context.get("byte_budget_mib") is None:
            problems.append(
                "`strategy.name` is 'fedlama-auto', which chooses intervals by a budget: give `strategy.share`, "
                "`strategy.tolerance` or `byte_budget_mib`"
            )
        return problems

    def departures(self, before: Context, now: Context, rounds_done: int) -> list[str]:
        """Says that intervals were chosen for another budget or length of the run; see `Settings.departures`."""
        departures = window_departures(self, before, now, rounds_done)
        planned = before.get("strategy.num_rounds")
        if self.tolerance is None:
            departures.append(
                f"the intervals up to round {rounds_done} were chosen so that {planned} rounds keep to the budget of "
                "'fedlama-auto'; what these sent counts in the budget of the longer run"
            )
        elif rounds_done == planned != now.get("strategy.num_rounds"):
            departures.append(f"after round {rounds_done}, the last, no new intervals were chosen")
        return departures

    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, exchange_bytes: Callable[[tuple[str, ...]], int]
    ) -> Self:
        """A copy with the byte budget as its `share`, unless `share` or `tolerance` is set; see `Strategy.within`."""
        if self.has_budget:
            return self
        num_exchanges = min(self.clients_per_round, num_clients) * self.num_rounds
        header_bytes, full_bytes = (num_exchanges * exchange_bytes(names) for names in ((), spec.shared))
        min_bytes = header_bytes + self.least_share * (full_bytes - header_bytes)
        if budget_bytes < min_bytes:
            problem = (
                f"`byte_budget_mib` is {budget_bytes / 2**20:g}, expected at least {min_bytes / 2**20:.3g}: "
                f"every group travels in every `phi`-th round and in the last"
            )
            raise ConfigError([problem], hint="raise the budget or `strategy.phi`, or run fewer rounds.")
        # A share counts trained scalars only, but running statistics travel with them, so scalars of some groups cost
        # more bytes. Counting every scalar at the highest cost keeps the run within the budget to its end.
        max_bytes_per_scalar = max(
            (num_exchanges * exchange_bytes(spec.shared_of({group})) - header_bytes) / size
            for group, size in spec.sizes.items()
        )
        share = (budget_bytes - header_bytes) / (max_bytes_per_scalar * sum(spec.sizes.values()))
        return self.model_copy(update={"share": min(1.0, max(self.least_share, share))})

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The state before round 1: all groups have the shortest interval that fits the budget."""
        intervals = torch.tensor(_divisors(self.phi))
        shares = windows.num_syncs(self, intervals, self.num_rounds).double() / self.num_rounds
        return windows.start(spec, int(intervals[shares <= (self.share or 1)].min()))

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """See `windows.plan`."""
        return windows.plan(self, state, round, client_ids, spec=spec, generator=generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """Adds the mean deltas; at the end of a window chooses new intervals."""
        params, state = windows.update(self, state, params, plan=plan, combined=combined, spec=spec)
        rounds_left = self.num_rounds - plan.round
        measured = state["num_measured"] > 0
        if windows.place(self, plan.round).is_last and rounds_left and measured.any():
            sizes = torch.tensor(list(spec.sizes.values()))
            choose = self._within_tolerance if self.share is None else self._within_share
            # An unknown discrepancy is assumed to be the largest one, so that its group is sent often and measured.
            unit = torch.where(measured, state["unit_discrepancy"], state["unit_discrepancy"][measured].max())
            state |= {"interval_rounds": choose(state | {"unit_discrepancy": unit}, sizes, rounds_left)}
        return params, state

    def _within_tolerance(self, state: State, sizes: Tensor, rounds_left: int) -> Tensor:
        """The longest intervals [G] whose discrepancy is within `tolerance`."""
        discrepancies = state["unit_discrepancy"] * sizes
        limit = (1 + (self.tolerance or 0)) * float(discrepancies @ torch.ones_like(discrepancies))
        choices = interval_choices(state["unit_discrepancy"], self.phi)
        *_, chosen = takewhile(lambda intervals: float(discrepancies @ intervals.double()) <= limit, choices)
        return chosen

    def _within_share(self, state: State, sizes: Tensor, rounds_left: int) -> Tensor:
        """The shortest intervals [G] with which the run has at most `share`, if they apply to all remaining rounds."""
        all_scalars, sent_scalars = self.num_rounds * int(sizes.sum()), int(state["num_syncs"] @ sizes)

        def share(intervals: Tensor) -> float:
            return (sent_scalars + int(windows.num_syncs(self, intervals, rounds_left) @ sizes)) / all_scalars

        choices = interval_choices(state["unit_discrepancy"], self.phi)
        return next(intervals for intervals in choices if share(intervals) <= (self.share or 1))


def interval_choices(unit_discrepancy: Tensor, phi: int) -> Iterator[Tensor]:
    """Intervals [G] from all 1 to all `phi`, each with the cheapest step taken from the previous one.

    >>> [intervals.tolist() for intervals in interval_choices(torch.tensor([1.0, 3.0]), 4)]
    [[1, 1], [2, 1], [2, 2], [4, 2], [4, 4]]

    Args:
        unit_discrepancy: [G], d_l of Eq. 2.
        phi: the longest interval.
    """
    divisors = _divisors(phi)
    intervals = [1] * len(unit_discrepancy)
    yield torch.tensor(intervals)
    units = enumerate(unit_discrepancy.tolist())
    costs = ((d * a * b, group, b) for group, d in units for a, b in pairwise(divisors))
    for _, group, interval in sorted(costs):
        intervals[group] = interval
        yield torch.tensor(intervals)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
