"""Early exits in a federation: how deep each client runs, and at which exits it learns.

A client of depth d runs, receives, trains and sends what belongs to the first d blocks and nothing above; each tensor
is averaged over the clients that hold it.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084), its three regimes; Lee et al. 2024 (ReeFL, arXiv 2405.14791)
for `sum`, `distill` and the mean over holders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fedelta.strategies.base import RoundPlan


@dataclass(frozen=True)
class Tiers:
    """Who holds what.

    Args:
        depths: client id to the number of blocks that it runs.
        owned: depth to the names of the tensors of such a client.
    """

    depths: Mapping[int, int]
    owned: Mapping[int, frozenset[str]]

    def only(self, client_ids: Iterable[int]) -> Tiers:
        """The same without anybody else."""
        return replace(self, depths={client_id: self.depths[client_id] for client_id in client_ids})

    def owns(self, client_id: int, name: str) -> bool:
        """Whether the client holds a tensor; what a strategy sends beside `x`, `PREFIX/x`, goes with `x`."""
        return name.rpartition("/")[2] in self.owned[self.depths[client_id]]

    def restrict(self, plan: RoundPlan) -> RoundPlan:
        """`plan`, in which each client is sent and asked for what it holds, and says how many hold each tensor."""

        def own(names: Mapping[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
            found: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = {}
            for client_id, each in names.items():
                key = (self.depths[client_id], each)
                if key not in found:
                    found[key] = tuple(name for name in each if self.owns(client_id, name))
            return {client_id: found[self.depths[client_id], each] for client_id, each in names.items()}

        return replace(plan, download=own(plan.download), upload=own(plan.upload), num_holders=self._num_holders(plan))

    def _num_holders(self, plan: RoundPlan) -> dict[str, int]:
        """How many of all clients hold each tensor of the plan."""
        names = dict.fromkeys(name for download in plan.download.values() for name in download)
        names |= dict.fromkeys(name for upload in plan.upload.values() for name in upload)
        num_clients = Counter(self.depths.values())
        return {
            name: sum(num for depth, num in num_clients.items() if name.rpartition("/")[2] in self.owned[depth])
            for name in names
        }
