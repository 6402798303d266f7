"""What is trained: one file per tuning method, and the table of all of them."""

from __future__ import annotations

from fedelta.tuning.bias import Bias
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora

TUNING_METHODS = {"full": Full, "head": Head, "bias": Bias, "lora": Lora}
