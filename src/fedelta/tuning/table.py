"""The table of tuning methods. A new one is a line here; configurations, tests and adapters take it from there."""

from __future__ import annotations

from typing import get_args

from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.bias import Bias
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel
from fedelta.tuning.prompt import Prompt

# In the order in which methods that are combined go in: what stands around others comes before them.
SingleTuning = Full | Accumulator | ExitHeads | Head | Prompt | Adapter | Parallel | Lora | Bias
SINGLE = {kind.model_fields["name"].default: kind for kind in get_args(SingleTuning)}
