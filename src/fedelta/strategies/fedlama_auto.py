"""FedLAMA with intervals of its own for every group, as long as a budget of traffic or of discrepancy allows.

FedLAMA knows two intervals, and its authors leave the best one for each layer open. Here a group may have every divisor
of phi. With d_l the discrepancy that a group gathers per step and scalar (Eq. 2), interval a costs dim_l / a of traffic
a round and leaves d_l dim_l a tau of discrepancy: going from a to the next divisor b costs

    d_l dim_l (b - a) / (dim_l / a - dim_l / b) = d_l a b

of discrepancy for each scalar that is saved. Beginning with 1 everywhere, the cheapest step of all groups is taken
again and again, until the budget is met. Discrepancy is convex in traffic, so that no other choice with as much traffic
has less of it. A budget of traffic is for the whole run: what one window has saved, the next ones may spend. A group of
which no discrepancy is known yet counts as the one that has most; while none is known, intervals stay as they are.

Source: our own, after Lee et al. 2023 (FedLAMA, arXiv 2110.10302), Algorithm 1 and Eq. 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from fedelta.errors import ConfigError
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context
from fedelta.strategies import windows
from fedelta.strategies.base import Combined, RoundPlan, State
from fedelta.strategies.windows import Windows, window_problems


class FedLamaAuto(Windows):
    """Intervals from a budget; give one of `share` and `tolerance`, or `byte_budget_mib` beside the sections.

    Args:
        share: traffic of the run as a share of FedAvg(tau)'s, from `least_share` to 1.
        tolerance: how much larger the discrepancy summed over the groups may be than that of FedAvg(tau); 1 is twice.
    """

    name: Literal["fedlama-auto"] = "fedlama-auto"
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
        """Traffic of a run in which every group travels as seldom as it can; 1 / `phi` where all windows are whole."""
        return -(-self.num_rounds // self.phi) / self.num_rounds

    @property
    def has_budget(self) -> bool:
        """Whether it says itself how much may be sent."""
        return self.share is not None or self.tolerance is not None

    def problems(self, context: Context) -> list[str]:
        """Those of every strategy in windows, and that there is no budget."""
        problems = window_problems(self, context)
        if not self.has_budget and "byte_budget_mib" in context and context.get("byte_budget_mib") is None:
            problems.append(
                "`strategy.name` is 'fedlama-auto', which chooses intervals by a budget: give `strategy.share`, "
                "`strategy.tolerance` or `byte_budget_mib`"
            )
        return problems

    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, exchange_bytes: Callable[[tuple[str, ...]], int]
    ) -> Self:
        """With the budget as its `share`, unless it has one of its own; see `Strategy.within`."""
        if self.has_budget:
            return self
        num_exchanges = min(self.clients_per_round, num_clients) * self.num_rounds
        headers, everything = (num_exchanges * exchange_bytes(names) for names in ((), spec.shared))
        least = headers + self.least_share * (everything - headers)
        if budget_bytes < least:
            problem = (
                f"`byte_budget_mib` is {budget_bytes / 2**20:g}, expected at least {least / 2**20:.3g}: every group "
                f"travels in every `phi`-th round and in the last"
            )
            raise ConfigError([problem], hint="raise it or `strategy.phi`, or run fewer rounds.")
        # Shares count trained scalars, and running statistics ride along: every scalar is taken to be as dear as the
        # dearest, so that the run cannot reach the budget before its end.
        dearest = max(
            (num_exchanges * exchange_bytes(spec.shared_of({group})) - headers) / size
            for group, size in spec.sizes.items()
        )
        share = (budget_bytes - headers) / (dearest * sum(spec.sizes.values()))
        return self.model_copy(update={"share": min(1.0, max(self.least_share, share))})

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The shortest interval, the same for all, that keeps to the budget: no discrepancy is known yet."""
        same = torch.tensor(_divisors(self.phi))
        shares = windows.num_syncs(self, same, self.num_rounds).double() / self.num_rounds
        return windows.start(spec, int(same[shares <= (self.share or 1)].min()))

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """See windows.py."""
        return windows.plan(self, state, round, client_ids, spec=spec, generator=generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The mean of what came up; after a window, new intervals."""
        params, state = windows.update(self, state, params, plan=plan, combined=combined, spec=spec)
        rounds_left = self.num_rounds - plan.round
        known = state["num_measured"] > 0
        if windows.place(self, plan.round).is_last and rounds_left and known.any():
            sizes = torch.tensor(list(spec.sizes.values()))
            choose = self._within_tolerance if self.share is None else self._within_share
            # Of what nobody knows the worst is assumed.
            unit = torch.where(known, state["unit_discrepancy"], state["unit_discrepancy"][known].max())
            state |= {"interval_rounds": choose(state | {"unit_discrepancy": unit}, sizes, rounds_left)}
        return params, state

    def _within_tolerance(self, state: State, sizes: Tensor, rounds_left: int) -> Tensor:
        """The last choice that keeps to `tolerance`."""
        amounts = state["unit_discrepancy"] * sizes
        most = (1 + (self.tolerance or 0)) * float(amounts @ torch.ones_like(amounts))
        choices = lengthened(state["unit_discrepancy"], self.phi)
        *_, found = takewhile(lambda intervals: float(amounts @ intervals.double()) <= most, choices)
        return found

    def _within_share(self, state: State, sizes: Tensor, rounds_left: int) -> Tensor:
        """The first choice with which the whole run keeps to `share`, should it stay the last choice."""
        everything, spent = self.num_rounds * int(sizes.sum()), int(state["num_syncs"] @ sizes)

        def share(intervals: Tensor) -> float:
            return (spent + int(windows.num_syncs(self, intervals, rounds_left) @ sizes)) / everything

        choices = lengthened(state["unit_discrepancy"], self.phi)
        return next(each for each in choices if share(each) <= (self.share or 1))


def lengthened(unit_discrepancy: Tensor, phi: int) -> Iterator[Tensor]:
    """Intervals [G], all 1 at first; then the cheapest step more each time, until all are `phi`.

    >>> [each.tolist() for each in lengthened(torch.tensor([1.0, 3.0]), 4)]
    [[1, 1], [2, 1], [2, 2], [4, 2], [4, 4]]

    Args:
        unit_discrepancy: [G], Eq. 2.
        phi: the longest interval.
    """
    divisors = _divisors(phi)
    intervals = [1] * len(unit_discrepancy)
    yield torch.tensor(intervals)
    units = enumerate(unit_discrepancy.tolist())
    costs = ((unit * a * b, group, b) for group, unit in units for a, b in pairwise(divisors))
    for _, group, interval in sorted(costs):
        intervals[group] = interval
        yield torch.tensor(intervals)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
