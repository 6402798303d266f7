"""What is trained: one file per tuning method, and the table of all of them."""

from __future__ import annotations

from typing import get_args

from fedelta.tuning.bias import Bias
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora

AnyTuning = Full | Head | Bias | Lora
TUNING_METHODS = {kind.model_fields["name"].default: kind for kind in get_args(AnyTuning)}
