"""Local rules, which correct the gradient of every local step on stacked lanes.

Shapes: K lanes, P trained scalars.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from fedelta.settings import Settings


class Plain(Settings):
    """Leaves the gradient unchanged (FedAvg)."""

    name: Literal["plain"] = "plain"

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        """Does nothing."""


class FedProx(Settings):
    """Pulls each client towards its anchor w^t: the loss becomes F(w) + (mu / 2) ||w - w^t||^2.

    Args:
        mu: strength of the pull; 0 is FedAvg.

    Source: Li et al. 2020 (FedProx, arXiv 1812.06127), Eq. 2.
    """

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, ge=0)  # our choice; the best values of the paper are between 0.001 and 1

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        """Adds mu (w - w^t), the gradient of the proximal term."""
        grads_KP.add_(values_KP - anchors_KP, alpha=self.mu)
