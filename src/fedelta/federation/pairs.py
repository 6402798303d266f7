"""What low-rank aggregation changes about a round: which factors travel, and which clients leave alone.

A strategy plans as if factors were ordinary tensors. `Pairs.adapted` then takes a factor at rest out of the uploads,
and adds what the server alone changes to the downloads of the layers that go down. Both ends know the method, so that
nothing else has to be said to a client.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from fedelta.aggregation.base import Aggregation
from fedelta.aggregation.joining import Joining
from fedelta.aggregation.low_rank import FACTORS, Apart, LowRank, paths_of
from fedelta.codecs.base import Codec
from fedelta.codecs.wire import decode, encode
from fedelta.params import Params, ParamSpec, select
from fedelta.strategies.base import RoundPlan
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.lora import Lora

NO_RANKS: Mapping[int, int] = MappingProxyType({})


def pairs_of(method: LowRank, tuning: TuningMethod, spec: ParamSpec, turn_rounds: int) -> Pairs | None:
    """The pairs of a run; None if they are as all other tensors: averaged one by one, and whole in every payload."""
    parts = tuning.methods if isinstance(tuning, Combined) else (tuning,)
    has_ranks = any(isinstance(part, Lora) and part.rank_by_client is not None for part in parts)
    return None if isinstance(method, Apart) and not has_ranks else Pairs(method, spec, turn_rounds)


@dataclass(frozen=True)
class Pairs:
    """The low-rank pairs of a model, and how they are combined.

    Args:
        method: section `[aggregation]`.
        spec: what is tuned, as `sourced` gives it.
        turn_rounds: number of rounds in a turn: `Strategy.cohort_rounds`.
        ranks: client id to its rank, at the server; empty if all clients have that of the server, and at a site, whose
            clients see it in their downloads.
    """

    method: LowRank
    spec: ParamSpec
    turn_rounds: int = 1
    ranks: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The layers that have a pair."""
        return paths_of(self.spec)

    def resting(self, round: int) -> frozenset[str]:
        """Names of the tensors that no client trains or sends in `round`."""
        factor = self.method.resting((round - 1) // self.turn_rounds + 1)
        return frozenset() if factor is None else frozenset(f"{path}.{factor}" for path in self.paths)

    def adapted(self, plan: RoundPlan) -> RoundPlan:
        """`plan`, without uploads of factors at rest, and with downloads of what is carried beside the pairs."""
        resting = self.resting(plan.round)
        if not resting and not self.spec.received:
            return plan
        upload = _each(plan.upload, lambda names: _without(names, resting))
        due = None if plan.due is None else _without(plan.due, resting)
        return replace(plan, upload=upload, due=due, download=_each(plan.download, self.with_carried))

    def staying(self, names: Collection[str], upload: Collection[str], round: int) -> tuple[str, ...]:
        """Those of a client's tensors that it must keep after `round`, because it does not send them.

        A factor at rest and what is carried are in the next download if their layer is sent.
        """
        quiet = self.resting(round).union(self.spec.received)
        sent = {name.rpartition(".")[0] for name in upload if name.rpartition(".")[2] in FACTORS}
        given = frozenset(self.spec.given)
        return tuple(
            name
            for name in names
            if name not in upload and name not in given and not (name in quiet and name.rpartition(".")[0] in sent)
        )

    def joining(self, mean: Aggregation, params: Params, anchors: Params) -> Joining | None:
        """What combines the pairs of a round; None if each factor is averaged for itself.

        Args:
            mean: of the strategy.
            params: of the server.
            anchors: the pairs of the server, as clients have decoded them.
        """
        if not self.method.joins:
            return None
        return Joining(self.method, mean, self.spec, params, anchors, ordered=bool(self.ranks))

    def as_decoded(self, params: Params, codec: Codec) -> Params:
        """Server params, with pairs as a client decodes them: what it sends is relative to these."""
        names = [f"{path}.{factor}" for path in self.paths for factor in FACTORS]
        pairs = select(params, (name for name in names if name in self.spec.shared))
        return params | decode(encode(pairs, self.spec, codec)[0], self.spec, codec)[0]

    def padded(self, delta: Params, anchors: Params) -> Params:
        """A decoded upload of a lower rank, with full shapes: what the client lacks ends at zero."""
        padded: Params = {}
        for name, tensor in delta.items():
            padded[name] = tensor
            if name in self.spec and tuple(tensor.shape) != self.spec.tensors[name].shape:
                axis = 0 if name.endswith("_A") else 1
                padded[name] = anchors[name].neg()
                padded[name].narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
        return padded

    def with_carried(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """`names` with what is carried beside their pairs, in the order of the specification."""
        if not self.spec.received:
            return names
        paths = {name.rpartition(".")[0] for name in names}
        carried = [name for name in self.spec.received if name.rpartition(".")[0] in paths]
        places = {name: place for place, name in enumerate(self.spec)}
        return tuple(sorted((*names, *carried), key=lambda name: places.get(name, len(places))))


def _each(
    names_of: Mapping[int, tuple[str, ...]], change: Callable[[tuple[str, ...]], tuple[str, ...]]
) -> dict[int, tuple[str, ...]]:
    """`change` of the names of every client, computed once for clients that have the same."""
    changed = {names: change(names) for names in set(names_of.values())}
    return {client_id: changed[names] for client_id, names in names_of.items()}


def _without(names: tuple[str, ...], resting: Collection[str]) -> tuple[str, ...]:
    """`names` without those at rest; `PREFIX/x`, which a strategy sends beside `x`, goes with `x`."""
    return tuple(name for name in names if name.rpartition("/")[2] not in resting)
