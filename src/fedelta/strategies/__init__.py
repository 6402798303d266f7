"""How deltas are combined and what travels: one file per strategy, and the tables of all of them."""

from __future__ import annotations

from typing import get_args

from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.local import FedProx, Plain

AnyStrategy = FedAvg
AnyLocalRule = Plain | FedProx
STRATEGIES = {FedAvg.model_fields["name"].default: FedAvg}
LOCAL_RULES = {kind.model_fields["name"].default: kind for kind in get_args(AnyLocalRule)}
