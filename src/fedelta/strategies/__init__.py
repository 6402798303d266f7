"""How deltas are combined and what travels: one file per strategy."""

from __future__ import annotations

from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.fedluar import FedLuar
from fedelta.strategies.fednova import FedNova
from fedelta.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedelta.strategies.local import FedProx, Plain
from fedelta.strategies.scaffold import Scaffold

AnyStrategy = FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi | FedNova | Scaffold | FedLama | FedLamaAuto | FedLuar
AnyLocalRule = Plain | FedProx
