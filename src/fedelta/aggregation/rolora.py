"""RoLoRA: clients train and send B in one round, A in the next.

    odd turns:   sum_i p_i (B_i A) = (sum_i p_i B_i) A
    even turns:  sum_i p_i (B A_i) = B (sum_i p_i A_i)

so the mean of the factor that travels is the mean of the products, exactly, and uploads have half the size; both
factors are learned in the end. Downloads have both, because cohorts change. B comes first: it starts as zero, and A has
no gradient before it has moved. For a strategy with windows (FedLAMA) a turn is a window, so that a factor that is not
sent yet is never at rest.

Source: Chen et al. 2024 (Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA, arXiv 2502.01755).
"""

from __future__ import annotations

from typing import Literal

from fedelta.aggregation.low_rank import Factor, Factors


class RoLora(Factors):
    """Trains and sends B and A in turn."""

    name: Literal["rolora"] = "rolora"

    def resting(self, turn: int) -> Factor | None:
        """A in odd turns, B in even ones."""
        return "lora_A" if turn % 2 else "lora_B"
