"""FFA-LoRA: A stays as it was drawn, and only B is trained and sent.

    sum_i p_i (B_i A) = (sum_i p_i B_i) A

so the mean of B is the mean of the products, exactly, with every mean and strategy and also if ranks differ: a client
of rank r has the first r rows of A. A is drawn from the seed of the run by everybody, and never travels. Noise for
privacy is added to B alone, where it is not multiplied with other noise.

Source: Sun et al. 2024 (Improving LoRA in Privacy-preserving Federated Learning, arXiv 2403.12313).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from fedelta.aggregation.low_rank import Factor, Factors


class Ffa(Factors):
    """Trains and sends B only."""

    name: Literal["ffa"] = "ffa"
    fixes: ClassVar[Factor | None] = "lora_A"
