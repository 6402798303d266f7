"""What is trained: one file per tuning method, and the table of all of them."""

from __future__ import annotations

from fedelta.tuning.combined import Combined
from fedelta.tuning.table import SINGLE, SingleTuning

AnyTuning = SingleTuning | Combined
TUNING_METHODS = {**SINGLE, "combined": Combined}
