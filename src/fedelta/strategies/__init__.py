"""How deltas are combined and what travels: one file per strategy."""

from __future__ import annotations

from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.local import FedProx, Plain

AnyStrategy = FedAvg
AnyLocalRule = Plain | FedProx
