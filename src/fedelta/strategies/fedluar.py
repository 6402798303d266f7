"""FedLUAR: in every round a few layers are not uploaded, and the server repeats their last update.

After a round with mean update Delta_l of group l and server params x_l before it, the score of the group is

    s_l = ||Delta_l|| / ||x_l||

For the next round `num_recycled` groups are drawn without replacement, with probabilities proportional to 1 / s_l: an
old update is a good guess for a group that hardly moves. Clients do not upload these groups, and the server adds
Delta_l once more. Downloads are complete, because the server changes all groups in every round and cohorts change; so
at most half of the traffic can be saved.

A recycled group keeps Delta_l and gets a new score, because x_l has changed. In round 1 nothing is recycled. The
running statistics of a recycled group do not change. A group that no client of the cohort holds (federation/tiers.py)
does not change at all.

Source: Kim, Kang and Lee 2025 (FedLUAR, arXiv 2503.11146), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator

from fedelta.aggregation.means import Weighted
from fedelta.errors import ConfigError
from fedelta.params import Params, ParamSpec, add, norm, select
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, uniform
from fedelta.strategies.cohort import ChosenMean, Rounds, filled

_PREFIX = "update/"
_MIN_SCORE = 1e-12  # keeps 1 / s_l finite, and s_l for a group of zeros


class FedLuar(Rounds):
    """Repeats the last updates of a few groups instead of uploading new ones.

    Args:
        num_recycled: number of groups that are recycled in each round; at least one group must be uploaded.
        mean: combines the deltas of a round.
    """

    name: Literal["fedluar"] = "fedluar"
    num_recycled: int = Field(default=1, ge=0)
    mean: ChosenMean = Weighted()
    logged: ClassVar[tuple[str, ...]] = ("score",)
    layerwise: ClassVar[bool] = True
    private: ClassVar[bool] = True

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The state before round 1: updates of zero, and the score -1 for "unknown".

        Raises:
            ConfigError: no group would be left to upload.
        """
        if self.num_recycled >= (num_groups := len(spec.sizes)):
            one_group = f"only one group is tuned, {next(iter(spec.sizes))!r}"
            reason = one_group if num_groups == 1 else f"only {num_groups} groups are tuned"
            raise ConfigError(
                [f"`strategy.num_recycled` is {self.num_recycled}, expected at most {num_groups - 1}: {reason}"],
                hint="at least one group must be uploaded in every round: set it to "
                f"{'0' if num_groups == 1 else f'{num_groups - 1} or less'}, or tune more groups.",
            )
        return filled(params, spec, "update") | {"score": torch.full((len(spec.sizes),), -1.0, dtype=torch.float64)}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; downloads are complete, uploads lack the groups that are drawn."""
        plan = uniform(self.clients_per_round, round, client_ids, spec, generator, sampling=self.sampling)
        # Clamped: a group that has not moved at all gets the largest weight and not an infinite one.
        weights = torch.where(state["score"] < 0, 0.0, 1 / state["score"].clamp(min=_MIN_SCORE))
        num_drawn = min(self.num_recycled, int((weights > 0).sum()))
        if not num_drawn:
            return plan
        drawn = set(weights.multinomial(num_drawn, generator=generator).tolist())
        uploaded = spec.shared_of({group for index, group in enumerate(spec.sizes) if index not in drawn})
        return replace(plan, upload=dict.fromkeys(plan.upload, uploaded), due=uploaded)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """Adds the mean deltas of uploaded groups and the last updates of recycled ones."""
        last_updates = {
            name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)
        }
        recycled = _recycled(plan, last_updates, is_private=combined.noised is not None)
        applied = {name: update for name, update in last_updates.items() if name in recycled} | combined.mean
        scores = state["score"].clone()
        for index, group in enumerate(spec.sizes):
            if names := [name for name in spec.groups[group] if name in applied]:
                scores[index] = norm(select(applied, names)) / max(norm(select(params, names)), _MIN_SCORE)
        updates = {f"{_PREFIX}{name}": tensor for name, tensor in applied.items()}
        return add(params, applied), state | updates | {"score": scores}


def _recycled(plan: RoundPlan, names: Collection[str], *, is_private: bool) -> set[str]:
    """Those of `names` that are not due although a client of the cohort, whom a private run ignores, holds them."""
    if is_private:
        return set(names).difference(plan.due or ())
    if plan.num_holders is None:
        return set(names).difference(*plan.upload.values())
    held = set().union(*plan.download.values())
    return held.intersection(names).difference(*plan.upload.values())
