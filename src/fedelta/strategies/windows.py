"""Rounds in windows: one cohort for a window, and every group travels at an interval of its own within it.

A group with interval a is sent after every a-th round of its window, everything after the last round of a window and of
the run. (A run that a byte budget ends earlier may leave groups at the value of their last round.) What is not sent
stays with its client, which trains on from there (federation/client.py), and its anchor is what the client last
downloaded. At the end of a window nothing is left with anybody: the next one begins with a new cohort, which gets
everything.

A client that is lost gets, when it is asked again in the same window, what was sent since its last accepted reply, and
one that has sent none yet gets everything.

State, for G groups and a cohort of M clients:

    interval_rounds   [G]  int64    rounds between two mean values of a group, from the next round on
    unit_discrepancy  [G]  float64  Eq. 2 below, when two clients or more last sent the group
    num_measured      [G]  int64    how often it was found so far; 0: nobody knows it yet
    num_syncs         [G]  int64    how often the group came up so far
    last_sync         [G]  int64    round in which it last did; 0 for none
    window            []   int64    number of the window of `cohort`, from 1; 0 before the first
    cohort            [M]  int64    its clients
    accepted          [M]  int64    round of each one's last accepted reply in this window; 0 for none

Source: Lee et al. 2023 (FedLAMA, arXiv 2110.10302), Algorithm 1 and Eq. 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedelta.aggregation.base import Aggregation, Reads
from fedelta.aggregation.means import Weighted
from fedelta.params import Params, ParamSpec, add
from fedelta.seeds import stream
from fedelta.settings import Context
from fedelta.strategies.base import Combined, RoundPlan, State, uniform
from fedelta.strategies.cohort import ChosenMean, Rounds, cohort_problems


class Windows(Rounds):
    """Fields of the strategies in windows, without behaviour.

    Args:
        tau: local steps of a round, tau' of the paper.
        phi: rounds of a window, and the longest interval.
        mean: how the deltas of a round become one.
    """

    tau: int = Field(default=6, ge=1)  # the paper's CIFAR experiments
    phi: int = Field(default=2, ge=1)  # the paper has 2, 4 and 8
    mean: ChosenMean = Weighted()
    logged: ClassVar[tuple[str, ...]] = ("interval_rounds", "unit_discrepancy")
    reads: ClassVar[Reads] = "each"  # Eq. 2 compares each client's value with the mean
    layerwise: ClassVar[bool] = True

    @property
    def local_steps(self) -> int:
        """`tau`."""
        return self.tau

    def problems(self, context: Context) -> list[str]:
        """See `window_problems`."""
        return window_problems(self, context)


def window_problems(strategy: Windows, context: Context) -> list[str]:
    """Those of every strategy, a cohort of one client, and what `[client]` says of a round, which is `tau` here."""
    problems = cohort_problems(strategy, context)
    if strategy.clients_per_round < 2:
        problems.append(
            f"`strategy.clients_per_round` is {strategy.clients_per_round}, expected at least 2: "
            f"{context.get('strategy.name')!r} goes by how much the clients of a round differ"
        )
    epochs, steps = context.get("client.local_epochs"), context.get("client.local_steps")
    if epochs is not None or steps not in (None, strategy.tau):
        key, value = ("local_epochs", epochs) if steps is None else ("local_steps", steps)
        problems.append(
            f"`client.{key}` is {value}, but a round of {context.get('strategy.name')!r} is `strategy.tau` = "
            f"{strategy.tau} local steps; leave it out (`--set client.{key}=`)"
        )
    return problems


@dataclass(frozen=True)
class Place:
    """Where a round is.

    Args:
        window: number of its window, from 1.
        position: of the round in the window, from 1.
        is_last: whether the window ends with it.
    """

    window: int
    position: int
    is_last: bool


def place(strategy: Windows, round: int) -> Place:
    """Where `round` is. The last window may be shorter: everything is sent at the end of the run."""
    before, position = divmod(round - 1, strategy.phi)
    is_last = position + 1 == strategy.phi or round == strategy.num_rounds
    return Place(before + 1, position + 1, is_last)


def num_syncs(strategy: Windows, intervals: Tensor, num_rounds: int) -> Tensor:
    """How often groups are sent from the start of a window to the end of the run.

    >>> num_syncs(Windows(phi=4), torch.tensor([1, 2, 4]), 4 + 3)  # after 7 rounds; after 2, 4, 6 and 7; after 4 and 7
    tensor([7, 4, 2])

    Args:
        strategy: has the window.
        intervals: of each group in rounds, divisors of phi.
        num_rounds: that are left.
    """
    whole, rest = divmod(num_rounds, strategy.phi)
    return whole * (strategy.phi // intervals) + (rest + intervals - 1) // intervals


def start(spec: ParamSpec, interval: int = 1) -> State:
    """The state before round 1; every group has the same `interval`."""
    num_groups = len(spec.sizes)
    none = torch.zeros(0, dtype=torch.int64)
    return {
        "interval_rounds": torch.full((num_groups,), interval),
        "unit_discrepancy": torch.zeros(num_groups, dtype=torch.float64),
        "num_measured": torch.zeros(num_groups, dtype=torch.int64),
        "num_syncs": torch.zeros(num_groups, dtype=torch.int64),
        "last_sync": torch.zeros(num_groups, dtype=torch.int64),
        "window": torch.tensor(0),
        "cohort": none,
        "accepted": none,
    }


def plan(
    strategy: Windows, state: State, round: int, client_ids: Sequence[int], *, spec: ParamSpec, generator: Generator
) -> RoundPlan:
    """The cohort of the window, what each of its clients lacks, and the groups whose interval ends with this round."""
    window = place(strategy, round).window
    if int(state["window"]) == window:
        accepted = dict(zip(state["cohort"].tolist(), state["accepted"].tolist(), strict=True))
    else:
        accepted = dict.fromkeys(uniform(strategy.clients_per_round, round, client_ids, spec, generator).cohort, 0)
    download = {
        client_id: _of_groups(spec, state["last_sync"] >= last) if last else spec.shared
        for client_id, last in accepted.items()
    }
    upload = dict.fromkeys(accepted, _sent(strategy, state, spec, round))
    return RoundPlan(round, download, upload, num_clients=len(client_ids))


def update(
    strategy: Windows, state: State, params: Params, *, plan: RoundPlan, combined: Combined, spec: ParamSpec
) -> tuple[Params, State]:
    """Means of what came up, and its unit discrepancy.

    d_l = sum_i p_i ||u_l - x_l^i||^2 / (tau_l dim(u_l))                              (Eq. 2)

    All anchors of a group are equal, so that u - x^i is mean delta - delta^i. The sum over clients is
    `mean.of_statistics`: with weights n_i / n for the weighted mean, without for the uniform one. One client alone is
    its own mean, which says nothing of how clients differ: a group that fewer than two sent keeps what it had, as does
    one that too few sent for the mean.
    """
    mean = combined.mean
    groups, sizes = list(spec.sizes), torch.tensor(list(spec.sizes.values()))
    sent = {spec.tensors[name].group for update in combined.updates for name in update.delta}
    came_up = torch.tensor([group in sent for group in groups])
    now = place(strategy, plan.round)
    accepted = set(combined.client_ids)
    before = dict(zip(state["cohort"].tolist(), state["accepted"].tolist(), strict=True))
    if int(state["window"]) != now.window:
        before = {}
    last = [plan.round if client_id in accepted else before.get(client_id, 0) for client_id in plan.cohort]
    rest = now.position % state["interval_rounds"]
    steps = strategy.tau * torch.where(rest == 0, state["interval_rounds"], rest)
    found = _squared_distances(strategy.mean, combined, spec) / (steps * sizes)
    measured = came_up & _sent_by_several(combined, spec)
    return add(params, mean), state | {
        "unit_discrepancy": torch.where(measured, found, state["unit_discrepancy"]),
        "num_measured": state["num_measured"] + measured,
        "num_syncs": state["num_syncs"] + came_up,
        "last_sync": torch.where(came_up, plan.round, state["last_sync"]),
        "window": torch.tensor(now.window),
        "cohort": torch.tensor(plan.cohort, dtype=torch.int64),
        "accepted": torch.tensor(last, dtype=torch.int64),
    }


def _sent(strategy: Windows, state: State, spec: ParamSpec, round: int) -> tuple[str, ...]:
    """Names of what is sent after `round`."""
    at = place(strategy, round)
    return spec.shared if at.is_last else _of_groups(spec, at.position % state["interval_rounds"] == 0)


def _of_groups(spec: ParamSpec, chosen: Tensor) -> tuple[str, ...]:
    """Names of the tensors that travel of the groups where `chosen` [G] is true."""
    return spec.shared_of({group for group, each in zip(spec.sizes, chosen.tolist(), strict=True) if each})


def _squared_distances(aggregation: Aggregation, combined: Combined, spec: ParamSpec) -> Tensor:
    """sum_i p_i ||u_l - x_l^i||^2 by group, float64; zero for groups that did not come up."""
    running = aggregation.of_statistics.start(spec)
    for update in combined.updates:
        distances = {
            name: (combined.mean[name] - delta).double().square().sum()
            for name, delta in update.delta.items()
            if name in combined.mean
        }
        running.add(replace(update, delta=distances))
    totals = dict.fromkeys(spec.sizes, 0.0)
    for name, distance in running.finish(stream(0)).items():
        totals[spec.tensors[name].group] += float(distance)
    return torch.tensor(list(totals.values()), dtype=torch.float64)


def _sent_by_several(combined: Combined, spec: ParamSpec) -> Tensor:
    """[G], whether each tensor of a group that came up was sent by two clients or more, and by enough for its mean."""
    senders = Counter(name for update in combined.updates for name in update.delta)
    fewest = {
        group: min((senders[name] if name in combined.mean else 0 for name in names if name in senders), default=0)
        for group, names in spec.groups.items()
    }
    return torch.tensor([fewest[group] >= 2 for group in spec.sizes])
