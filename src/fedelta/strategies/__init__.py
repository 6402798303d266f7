"""How deltas are combined and what travels: one file per strategy, and the tables of all of them."""

from __future__ import annotations

from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.local import FedProx, Plain

STRATEGIES = {"fedavg": FedAvg}
LOCAL_RULES = {"plain": Plain, "fedprox": FedProx}
