"""Combines the pairs of a round by a method that needs both factors of each client (low_rank.py).

The mean has combined every tensor for itself before; `Joining` replaces what it gave for pairs. The pairs of all
clients of the round are in memory, which are small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Generator, Tensor

from fedelta.aggregation.base import Aggregation, Update
from fedelta.aggregation.carrying import carried_on, in_fewest
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
        params: of the server before the round.
        anchors: the same as clients have decoded them, which the updates are relative to.
        ordered: see `LowRank.join`.
    """

    def __init__(
        self,
        method: LowRank,
        mean: Aggregation,
        spec: ParamSpec,
        params: Params,
        anchors: Params,
        *,
        ordered: bool = False,
    ) -> None:
        self._method, self._is_uniform, self._ordered = method, isinstance(mean, Uniform), ordered
        self._params, self._anchors = params, anchors
        self._paths = paths_of(spec)
        self._pairs: dict[str, list[Pair]] = {path: [] for path in self._paths}

    def add(self, update: Update) -> None:
        """Takes an update, without changing it."""
        weight = 1.0 if self._is_uniform else float(update.num_examples)
        for path in self._paths:
            names = [f"{path}.{factor}" for factor in FACTORS]
            if all(name in update.delta for name in names):
                factors = (as_matrix(self._anchors[name].double() + update.delta[name].double()) for name in names)
                self._pairs[path].append(Pair(weight, *factors))

    def finish(self, seed: int, round: int) -> tuple[Params, Params]:
        """The changes of the pairs in float64, and the new values of what is carried beside them.

        Args:
            seed: of the run.
            round: number of the round.
        """
        changes: Params = {}
        carried = self._carried()
        for path, pairs in self._pairs.items():
            joined = self._joined(pairs, stream(seed, "pairs", round, path))
            if joined is not None:
                changes |= self._changes(path, joined)
                if joined.carried is not None:
                    carried[path] = carried_on(carried[path], joined.carried)
        return changes, self._stored(in_fewest(carried)) if carried else {}

    def _joined(self, pairs: Sequence[Pair], generator: Generator) -> Joined | None:
        if not pairs:
            return None
        total = sum(pair.share for pair in pairs)
        shares = [pair._replace(share=pair.share / total) for pair in pairs]
        return self._method.join(shares, generator, ordered=self._ordered)

    def _changes(self, path: str, joined: Joined) -> Params:
        names = [f"{path}.{factor}" for factor in FACTORS]
        return {
            name: matrix.reshape(self._params[name].shape) - self._params[name].double()
            for name, matrix in zip(names, (joined.a_RI, joined.b_OR), strict=True)
        }

    def _carried(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Path to what is carried beside its pair; empty if nothing is."""
        if not self._method.carries:
            return {}
        c, d = CARRIED
        return {
            path: (as_matrix(self._params[f"{path}.{c}"]), as_matrix(self._params[f"{path}.{d}"]))
            for path in self._paths
        }

    def _stored(self, carried: Mapping[str, tuple[Tensor, Tensor]]) -> Params:
        return {
            name: matrix.reshape(self._params[name].shape).to(self._params[name])
            for path, pair in carried.items()
            for name, matrix in zip((f"{path}.{factor}" for factor in CARRIED), pair, strict=True)
        }
