"""Combines the pairs of a round by a method that needs both factors of each client (low_rank.py).

The mean has combined every tensor for itself before; `Joining` replaces what it gave for pairs. The pairs of all clients of
the round are in memory, which are small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedelta.aggregation.base import Aggregation, Update
from fedelta.aggregation.carrying import carried_on
from fedelta.aggregation.low_rank import CARRIED, FACTORS, Joined, LowRank, Pair, as_matrix, paths_of
from fedelta.aggregation.means import Uniform
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream


class Joining:
    """Takes the updates of a round.

    Args:
        method: combines the pairs; its `joins` is True.
        mean: says what clients weigh: `Uniform` all the same, any other their numbers of examples.
        spec: what is tuned.
        params: of the server before the round, which the updates are relative to.
        ordered: see `LowRank.join`.
    """

    def __init__(
        self, method: LowRank, mean: Aggregation, spec: ParamSpec, params: Params, *, ordered: bool = False
    ) -> None:
        self._method, self._is_uniform, self._params, self._ordered = method, isinstance(mean, Uniform), params, ordered
        self._paths = paths_of(spec)
        self._pairs: dict[str, list[Pair]] = {path: [] for path in self._paths}

    def add(self, update: Update) -> None:
        """Takes an update, without changing it."""
        weight = 1.0 if self._is_uniform else float(update.num_examples)
        for path in self._paths:
            names = [f"{path}.{factor}" for factor in FACTORS]
            if all(name in update.delta for name in names):
                factors = (as_matrix(self._params[name].double() + update.delta[name].double()) for name in names)
                self._pairs[path].append(Pair(weight, *factors))

    def finish(self, seed: int, round: int) -> tuple[Params, Params]:
        """The changes of the pairs in float64, and the new values of what is carried beside them.

        Args:
            seed: of the run.
            round: number of the round.
        """
        changes: Params = {}
        carried: Params = {}
        for path, pairs in self._pairs.items():
            if not pairs:
                continue
            total = sum(pair.share for pair in pairs)
            shares = [pair._replace(share=pair.share / total) for pair in pairs]
            joined = self._method.join(shares, stream(seed, "pairs", round, path), ordered=self._ordered)
            if joined is not None:
                changes |= self._changes(path, joined)
                carried |= self._carried(path, joined)
        return changes, carried

    def _changes(self, path: str, joined: Joined) -> Params:
        names = [f"{path}.{factor}" for factor in FACTORS]
        return {
            name: matrix.reshape(self._params[name].shape) - self._params[name].double()
            for name, matrix in zip(names, (joined.a_RI, joined.b_OR), strict=True)
        }

    def _carried(self, path: str, joined: Joined) -> Params:
        if joined.carried is None:
            return {}
        names = [f"{path}.{factor}" for factor in CARRIED]
        before = (as_matrix(self._params[name]) for name in names)
        after = carried_on(*before, *joined.carried)
        return {
            name: matrix.reshape(self._params[name].shape).to(self._params[name])
            for name, matrix in zip(names, after, strict=True)
        }
