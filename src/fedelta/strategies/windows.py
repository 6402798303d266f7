"""Rounds in windows, the common part of FedLAMA's strategies: one cohort per window, one interval per group.

A window is phi rounds. A group with interval a is uploaded in every a-th round of the window, and every group in the
last round of the window and of the run. (A budget may end a run earlier; some groups then have the value of an
earlier round.) Between uploads a client keeps training its local value (federation/client.py), with its last download
as the anchor. At the end of a window no client has unsent tensors, and the next cohort downloads everything.

A client whose reply was lost downloads, when it takes part again in the same window, everything that was averaged since
its last accepted reply; without an accepted reply in this window it downloads all tensors.

State, for G groups and a cohort of M clients:

    interval_rounds   [G]  int64    interval of each group from the next round on
    unit_discrepancy  [G]  float64  d_l of Eq. 2, from the last round in which two clients or more sent the group
    num_measured      [G]  int64    how often the discrepancy was measured; 0: it is unknown
    num_syncs         [G]  int64    how often the group was averaged
    last_sync         [G]  int64    the last round in which it was averaged; 0 for none
    window            []   int64    number of the current window, from 1; 0 before the first
    cohort            [M]  int64    ids of the clients of the window, ascending
    accepted          [M]  int64    the round of each client's last accepted reply in this window; 0 for none

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
from fedelta.strategies.base import CombinedUpdates, Noised, RoundPlan, State, drawn
from fedelta.strategies.cohort import ChosenMean, Rounds, cohort_problems


class Windows(Rounds):
    """The fields of strategies with windows.

    Args:
        tau: local steps per round, tau' in the paper.
        phi: rounds per window, and the longest interval.
        mean: combines the deltas of a round.
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

    @property
    def cohort_rounds(self) -> int:
        """`phi`: a cohort stays for a window."""
        return self.phi

    def problems(self, context: Context) -> list[str]:
        """Reports contradictions with other sections; see `window_problems`."""
        return window_problems(self, context)

    def departures(self, before: Context, now: Context, rounds_done: int) -> list[str]:
        """Says that a window was cut short by the end of the run; see `window_departures`."""
        return window_departures(self, before, now, rounds_done)


def window_departures(strategy: Windows, before: Context, now: Context, rounds_done: int) -> list[str]:
    """What the last round of a run did that it would not have done in a longer one; see `Settings.departures`."""
    planned = before.get("strategy.num_rounds")
    if planned != rounds_done or now.get("strategy.num_rounds") == planned or strategy.phi == 1:
        return []
    if rounds_done % strategy.phi:
        cut = (
            f"round {rounds_done} was the last, and its window (`strategy.phi` = {strategy.phi} rounds) ended early: "
            "every group travelled in it, and the discrepancies at the end of this window are of fewer steps"
        )
        return [cut]
    if now.get("privacy.unit") == "client":
        return [
            f"round {rounds_done} was the last: its discrepancies were not measured, so intervals stay for a window"
        ]
    return []


def window_problems(strategy: Windows, context: Context) -> list[str]:
    """Problems with the cohort, which needs two clients, and with a length of rounds in `[client]` other than `tau`."""
    problems = cohort_problems(strategy, context)
    if strategy.clients_per_round < 2:
        problems.append(
            f"`strategy.clients_per_round` is {strategy.clients_per_round}, expected at least 2: "
            f"{context.get('strategy.name')!r} compares the clients of a round"
        )
    epochs, steps = context.get("client.local_epochs"), context.get("client.local_steps")
    if epochs is not None or steps not in (None, strategy.tau):
        key, value = ("local_epochs", epochs) if steps is None else ("local_steps", steps)
        problems.append(
            f"`client.{key}` is {value}, but a round of {context.get('strategy.name')!r} is `strategy.tau` = "
            f"{strategy.tau} local steps; remove the key (`--set client.{key}=`)"
        )
    return problems


@dataclass(frozen=True)
class Place:
    """The place of a round in its window.

    Args:
        window: number of the window, from 1.
        position: position of the round in the window, from 1.
        is_last: whether the window ends with this round.
    """

    window: int
    position: int
    is_last: bool


def place(strategy: Windows, round: int) -> Place:
    """The place of `round` in its window; the last window of a run may be shorter than phi."""
    windows_before, rounds_before = divmod(round - 1, strategy.phi)
    is_last = rounds_before + 1 == strategy.phi or round == strategy.num_rounds
    return Place(windows_before + 1, rounds_before + 1, is_last)


def num_syncs(strategy: Windows, intervals: Tensor, num_rounds: int) -> Tensor:
    """How often groups are averaged from the start of a window to the end of the run.

    >>> num_syncs(Windows(phi=4), torch.tensor([1, 2, 4]), 4 + 3)  # after 7 rounds; after 2, 4, 6 and 7; after 4 and 7
    tensor([7, 4, 2])

    Args:
        strategy: gives phi.
        intervals: intervals in rounds, divisors of phi.
        num_rounds: number of remaining rounds.
    """
    full_windows, last_rounds = divmod(num_rounds, strategy.phi)
    return full_windows * (strategy.phi // intervals) + (last_rounds + intervals - 1) // intervals


def start(spec: ParamSpec, interval: int = 1) -> State:
    """The state before round 1, with the same `interval` for every group."""
    num_groups = len(spec.sizes)
    no_clients = torch.zeros(0, dtype=torch.int64)
    return {
        "interval_rounds": torch.full((num_groups,), interval),
        "unit_discrepancy": torch.zeros(num_groups, dtype=torch.float64),
        "num_measured": torch.zeros(num_groups, dtype=torch.int64),
        "num_syncs": torch.zeros(num_groups, dtype=torch.int64),
        "last_sync": torch.zeros(num_groups, dtype=torch.int64),
        "window": torch.tensor(0),
        "cohort": no_clients,
        "accepted": no_clients,
    }


def plan(
    strategy: Windows, state: State, round: int, client_ids: Sequence[int], *, spec: ParamSpec, generator: Generator
) -> RoundPlan:
    """The window's cohort; each client downloads what was averaged since its last reply and uploads what is due."""
    in_window = place(strategy, round)
    if int(state["window"]) == in_window.window:
        accepted = dict(zip(state["cohort"].tolist(), state["accepted"].tolist(), strict=True))
    else:
        cohort = drawn(strategy.clients_per_round, in_window.window, client_ids, generator, strategy.sampling)
        accepted = dict.fromkeys(cohort, 0)
    download = {
        client_id: _names_of(spec, state["last_sync"] >= last_round) if last_round else spec.shared
        for client_id, last_round in accepted.items()
    }
    due = _due(strategy, state, spec, round)
    # Only the last round of a window counts for the next intervals.
    asks_squares = strategy.phi > 1 and in_window.is_last and round < strategy.num_rounds
    return RoundPlan(
        round,
        download,
        dict.fromkeys(accepted, due),
        num_clients=len(client_ids),
        due=due,
        asks_squares=asks_squares,
    )


def update(
    strategy: Windows, state: State, params: Params, *, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
) -> tuple[Params, State]:
    """Adds the mean deltas to the params, and measures the unit discrepancy of the averaged groups.

    d_l = sum_i p_i ||u_l - x_l^i||^2 / (tau_l dim(u_l))                              (Eq. 2)

    All clients have the same anchor of a group, so u_l - x_l^i is the mean delta minus delta^i. The weights p_i are
    those of `mean.of_statistics`: n_i / n for the weighted mean, 1 / m for the uniform mean of m clients. A group that
    fewer than two clients sent keeps its previous value, because the distance of one client from itself is zero; so
    does a group that too few clients sent for its mean. With client-level privacy every group that is due is averaged,
    and measured in the last round of a window; see `_noisy_distances`.
    """
    mean, noised = combined.mean, combined.noised
    groups, sizes = list(spec.sizes), torch.tensor(list(spec.sizes.values()))
    sent = mean if noised is not None else {name for update in combined.updates for name in update.delta}
    sent_groups = {spec.tensors[name].group for name in sent}
    synced = torch.tensor([group in sent_groups for group in groups])
    in_window = place(strategy, plan.round)
    # tau_l: steps since the last upload. In a shorter last window that is less than the interval.
    rounds_since = in_window.position % state["interval_rounds"]
    steps = strategy.tau * torch.where(rounds_since == 0, state["interval_rounds"], rounds_since)
    if noised is None:
        distances, measured = _squared_distances(strategy.mean, combined, spec), _sent_by_several(combined, spec)
    else:
        distances = _noisy_distances(mean, noised, spec)
        measured = torch.tensor([group in noised.squares for group in groups])
    discrepancy, measured = distances / (steps * sizes), synced & measured
    return add(params, mean), state | {
        "unit_discrepancy": torch.where(measured, discrepancy, state["unit_discrepancy"]),
        "num_measured": state["num_measured"] + measured,
        "num_syncs": state["num_syncs"] + synced,
        "last_sync": torch.where(synced, plan.round, state["last_sync"]),
        "window": torch.tensor(in_window.window),
        "cohort": torch.tensor(plan.cohort, dtype=torch.int64),
        "accepted": _last_accepted(state, plan, combined, in_window.window),
    }


def _last_accepted(state: State, plan: RoundPlan, combined: CombinedUpdates, window: int) -> Tensor:
    """[M], the round of each client's last accepted reply in `window`, this round included; 0 for none."""
    same_window = int(state["window"]) == window
    previous = dict(zip(state["cohort"].tolist(), state["accepted"].tolist(), strict=True)) if same_window else {}
    accepted = set(combined.client_ids)
    rounds = [plan.round if client_id in accepted else previous.get(client_id, 0) for client_id in plan.cohort]
    return torch.tensor(rounds, dtype=torch.int64)


def _due(strategy: Windows, state: State, spec: ParamSpec, round: int) -> tuple[str, ...]:
    """Names of the tensors that are uploaded in `round`."""
    in_window = place(strategy, round)
    return spec.shared if in_window.is_last else _names_of(spec, in_window.position % state["interval_rounds"] == 0)


def _names_of(spec: ParamSpec, chosen: Tensor) -> tuple[str, ...]:
    """Names of the travelling tensors of the groups for which `chosen` [G] is true."""
    return spec.shared_of({group for group, is_chosen in zip(spec.sizes, chosen.tolist(), strict=True) if is_chosen})


def _squared_distances(aggregation: Aggregation, combined: CombinedUpdates, spec: ParamSpec) -> Tensor:
    """sum_i p_i ||u_l - x_l^i||^2 of each group [G], float64; zero for groups that were not sent."""
    running = aggregation.of_statistics.start(spec)
    center = combined.mean if combined.center is None else combined.center
    for update in combined.updates:
        distances = {
            name: (center[name] - delta).double().square().sum()
            for name, delta in update.delta.items()
            if name in center
        }
        running.add(replace(update, delta=distances))
    totals = dict.fromkeys(spec.sizes, 0.0)
    for name, distance in running.finish(stream(0)).items():
        totals[spec.tensors[name].group] += float(distance)
    return torch.tensor(list(totals.values()), dtype=torch.float64)


def _noisy_distances(mean: Params, noised: Noised, spec: ParamSpec) -> Tensor:
    """An estimate of sum_i p_i ||u_l - x_l^i||^2 of each group [G] from what is private, float64, at least zero.

    sum_i p_i ||delta_i - mean||^2 = sum_i p_i ||delta_i||^2 - ||mean||^2. The noise in the mean adds its variance, once
    for every element, to the expectation of ||mean||^2.
    """
    totals = dict.fromkeys(spec.sizes, 0.0) | dict(noised.squares)
    for name, tensor in mean.items():
        group = spec.tensors[name].group
        totals[group] -= float(tensor.square().sum()) - tensor.numel() * noised.variances[name]
    return torch.tensor([totals[group] for group in spec.sizes], dtype=torch.float64).clamp(min=0)


def _sent_by_several(combined: CombinedUpdates, spec: ParamSpec) -> Tensor:
    """[G], whether every uploaded tensor of a group was sent by at least two clients, and by enough for its mean."""
    senders = Counter(name for update in combined.updates for name in update.delta)
    fewest = {
        group: min((senders[name] if name in combined.mean else 0 for name in names if name in senders), default=0)
        for group, names in spec.groups.items()
    }
    return torch.tensor([fewest[group] >= 2 for group in spec.sizes])
