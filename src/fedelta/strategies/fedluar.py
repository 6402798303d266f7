"""FedLUAR: in every round a few layers do not come up, and the server repeats their last update.

After a round with mean update D_l of group l, that group has the score

    s_l = ||D_l|| / ||w_l||

and `num_recycled` groups are drawn for the next round, without replacement and with probabilities in proportion to
1 / s_l: a group that hardly moves can be guessed. They do not come up, and D_l is added once more. Everything goes
down, as the server moves all groups in every round and cohorts change: at most half of the traffic can be saved.

A drawn group keeps its D_l and gets a new score, as its w_l has moved. In round 1 nothing is drawn. Running statistics
of a drawn group stay as they are. A group that no client of the cohort holds (federation/tiers.py) stays as it is, and
keeps D_l and its score.

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
from fedelta.strategies.base import Combined, RoundPlan, State, uniform
from fedelta.strategies.cohort import ChosenMean, Rounds, filled

_PREFIX = "update/"
_LEAST_SCORE = 1e-12  # keeps 1 / s finite


class FedLuar(Rounds):
    """Recycles the updates of a few groups.

    Args:
        num_recycled: groups that do not come up in a round; at least one must.
        mean: how the deltas of a round become one.
    """

    name: Literal["fedluar"] = "fedluar"
    num_recycled: int = Field(default=1, ge=0)
    mean: ChosenMean = Weighted()
    logged: ClassVar[tuple[str, ...]] = ("score",)
    layerwise: ClassVar[bool] = True

    def init(self, params: Params, spec: ParamSpec) -> State:
        """No update yet, and no score: -1.

        Raises:
            ConfigError: nothing would come up.
        """
        if self.num_recycled >= (num_groups := len(spec.sizes)):
            only = f"only one group is tuned, {next(iter(spec.sizes))!r}"
            tuned = only if num_groups == 1 else f"only {num_groups} groups are tuned"
            raise ConfigError(
                [f"`strategy.num_recycled` is {self.num_recycled}, expected at most {num_groups - 1}: {tuned}"],
                hint="at least one group has to come up in every round: set it to "
                f"{'0' if num_groups == 1 else f'{num_groups - 1} or less'}, or tune more groups.",
            )
        return filled(params, spec, "update") | {"score": torch.full((len(spec.sizes),), -1.0, dtype=torch.float64)}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; everything goes down, and all but the groups that are drawn comes up."""
        plan = uniform(self.clients_per_round, round, client_ids, spec, generator)
        # Groups that have not moved at all are the first to be drawn.
        weights = torch.where(state["score"] < 0, 0.0, 1 / state["score"].clamp(min=_LEAST_SCORE))
        num_drawn = min(self.num_recycled, int((weights > 0).sum()))
        if not num_drawn:
            return plan
        drawn = set(weights.multinomial(num_drawn, generator=generator).tolist())
        rest = spec.shared_of({group for index, group in enumerate(spec.sizes) if index not in drawn})
        return replace(plan, upload=dict.fromkeys(plan.upload, rest))

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The mean of what came up, and the last update of what did not."""
        last = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
        repeated = _not_asked_for(plan, last)
        applied = {name: last[name] for name in last if name in repeated} | combined.mean
        scores = state["score"].clone()
        for index, group in enumerate(spec.sizes):
            if own := [name for name in spec.groups[group] if name in applied]:
                scores[index] = norm(select(applied, own)) / max(norm(select(params, own)), _LEAST_SCORE)
        updated = {f"{_PREFIX}{name}": tensor for name, tensor in applied.items()}
        return add(params, applied), state | updated | {"score": scores}


def _not_asked_for(plan: RoundPlan, names: Collection[str]) -> set[str]:
    """Those of `names` that do not come up because they were drawn, and not because nobody of the cohort holds them."""
    if plan.num_holders is None:
        return set(names).difference(*plan.upload.values())
    held = set().union(*plan.download.values())
    return held.intersection(names).difference(*plan.upload.values())
