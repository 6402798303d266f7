"""Clients of different depth: which tensors each client holds.

A client of depth d receives, runs, trains and sends only what belongs to the first d blocks. Each tensor is averaged
over the clients that hold it.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084) for tiers; Lee et al. 2024 (ReeFL, arXiv 2405.14791) for the
mean over holders. The Accumulator's code averages over all clients instead, with the old value for those without the
tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fedelta.strategies.base import RoundPlan


@dataclass(frozen=True)
class Tiers:
    """The depth of each client, and the tensors of each depth.

    Args:
        depths: client id to the number of blocks that it runs.
        owned: depth to the names of the tensors that a client of this depth holds.
    """

    depths: Mapping[int, int]
    owned: Mapping[int, frozenset[str]]

    def only(self, client_ids: Iterable[int]) -> Tiers:
        """A copy with these clients only."""
        return replace(self, depths={client_id: self.depths[client_id] for client_id in client_ids})

    def owns(self, client_id: int, name: str) -> bool:
        """Whether the client holds a tensor; `PREFIX/x`, which a strategy sends beside `x`, goes with `x`."""
        return name.rpartition("/")[2] in self.owned[self.depths[client_id]]

    def restrict(self, plan: RoundPlan) -> RoundPlan:
        """`plan` limited to the tensors that each client holds, with the number of holders of each tensor."""
        return replace(
            plan,
            download=self.held(plan.download),
            upload=self.held(plan.upload),
            num_holders=self._num_holders(plan),
        )

    def held(self, names_of: Mapping[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
        """Client id to those of its names that it holds."""
        # Computed once for all clients of one depth that were sent the same names: a cohort may be large.
        held: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = {}
        for client_id, names in names_of.items():
            key = (self.depths[client_id], names)
            if key not in held:
                held[key] = tuple(name for name in names if self.owns(client_id, name))
        return {client_id: held[self.depths[client_id], names] for client_id, names in names_of.items()}

    def _num_holders(self, plan: RoundPlan) -> dict[str, int]:
        """Tensor name to the number of all clients that hold it, for each tensor of the plan."""
        names = dict.fromkeys(name for download in plan.download.values() for name in download)
        names |= dict.fromkeys(name for upload in plan.upload.values() for name in upload)
        names |= dict.fromkeys(plan.due or ())
        num_clients = Counter(self.depths.values())
        return {
            name: sum(num for depth, num in num_clients.items() if name.rpartition("/")[2] in self.owned[depth])
            for name in names
        }
