"""Optimizers on stacked lanes, and learning-rate schedules. Every lane has separate state and counts its own steps.

Shapes: K lanes, P trained scalars. All trained tensors of a lane lie side by side in one row, so an update is a few
operations on one matrix, whatever the number of tensors.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from fedelta.settings import Context, Settings

OptimizerState = dict[str, Tensor]
LearningRate = float | Tensor  # one for all lanes, or one per lane [K, 1]


class Optimizer(Protocol):
    """How gradients become steps, on stacked lanes."""

    @property
    def name(self) -> str:
        """Its name in configurations."""

    def state(self, values_KP: Tensor) -> OptimizerState:
        """The initial state of lanes with the values `values_KP`; tensors with a leading lane axis K."""

    def step(self, values_KP: Tensor, grads_KP: Tensor, state: OptimizerState, lr: LearningRate) -> None:
        """One step of every lane; may change all of `values_KP`, `grads_KP` and `state` in place."""

    def effective_steps(self, num_steps: int) -> float:
        """The sum of the weights of all gradients in the result of `num_steps` steps, in units of the learning rate."""


class Schedule(Protocol):
    """How the learning rate changes from round to round."""

    @property
    def name(self) -> str:
        """Its name in configurations."""

    @property
    def warmup_rounds(self) -> int:
        """Rounds over which the rate rises to `client.lr`; 0 for none."""

    def factor(self, round: int, num_rounds: int) -> float:
        """Factor of `client.lr` in `round` (from 1)."""


class Sgd(Settings):
    """Stochastic gradient descent. Weight decay is added to the gradient, as in PyTorch.

    Args:
        momentum: share of the previous update that is kept; 0 is plain SGD.
        nesterov: adds the gradient to the momentum once more (look-ahead); needs `momentum` above 0.
        weight_decay: factor of the L2 term.
    """

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)  # FedPEFT
    nesterov: bool = False  # PyTorch's default
    weight_decay: float = Field(default=0.0, ge=0)  # PyTorch's default

    def problems(self, context: Context) -> list[str]:
        """Reports Nesterov momentum without momentum."""
        if self.nesterov and self.momentum == 0:
            return ["`client.optimizer.nesterov` needs `client.optimizer.momentum` above 0"]
        return []

    def state(self, values_KP: Tensor) -> OptimizerState:
        """Zeroed optimizer state for the lanes of `values_KP`."""
        return {"momentum": torch.zeros_like(values_KP)} if self.momentum else {}

    def step(self, values_KP: Tensor, grads_KP: Tensor, state: OptimizerState, lr: LearningRate) -> None:
        """Takes one step; changes `values_KP`, `grads_KP` and `state` in place."""
        if self.weight_decay:
            grads_KP.add_(values_KP, alpha=self.weight_decay)
        if self.momentum:
            momentum_KP = state["momentum"]
            torch.add(grads_KP, momentum_KP, alpha=self.momentum, out=momentum_KP)
            grads_KP = grads_KP.add_(momentum_KP, alpha=self.momentum) if self.nesterov else momentum_KP
        if isinstance(lr, Tensor):
            values_KP.addcmul_(grads_KP, lr, value=-1)
        else:
            values_KP.add_(grads_KP, alpha=-lr)

    def effective_steps(self, num_steps: int) -> float:
        """The sum of the weights of all gradients in the result of `num_steps` steps, in units of `lr`.

        Without momentum each weight is 1. With momentum m the gradient of step k of n has weight 1 + m + ... + m^(n-k).

        >>> Sgd(momentum=0.0).effective_steps(3), Sgd(momentum=0.5).effective_steps(3)  # 1.75 + 1.5 + 1
        (3.0, 4.25)

        Source: Wang et al. 2020 (FedNova, arXiv 2007.07481), ||a_i||_1 of section 4.1.
        """
        m = self.momentum
        with_momentum = (num_steps - m * (1 - m**num_steps) / (1 - m)) / (1 - m)
        return num_steps + m * with_momentum if self.nesterov else with_momentum


class AdamW(Settings):
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), Algorithm 2, with PyTorch's defaults.
    """

    name: Literal["adamw"] = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)

    def state(self, values_KP: Tensor) -> OptimizerState:
        """Zeroed optimizer state for the lanes of `values_KP`."""
        return {
            "first": torch.zeros_like(values_KP),
            "second": torch.zeros_like(values_KP),
            # float64: in the first steps 1 - beta2^t has only five correct digits in float32.
            "steps": values_KP.new_zeros(values_KP.shape[0], 1, dtype=torch.float64),
        }

    def step(self, values_KP: Tensor, grads_KP: Tensor, state: OptimizerState, lr: LearningRate) -> None:
        """Takes one step; changes `values_KP` and `state` in place."""
        first_KP, second_KP, steps_K1 = state["first"], state["second"], state["steps"].add_(1)
        values_KP.mul_(1 - lr * self.weight_decay)
        first_KP.lerp_(grads_KP, 1 - self.beta1)
        second_KP.mul_(self.beta2).addcmul_(grads_KP, grads_KP, value=1 - self.beta2)
        scale_K1 = (1 - self.beta2**steps_K1).sqrt().to(values_KP.dtype)
        lr_K1 = (lr / (1 - self.beta1**steps_K1)).to(values_KP.dtype)
        denominator_KP = second_KP.sqrt().div_(scale_K1).add_(self.eps)
        values_KP.sub_(first_KP.div(denominator_KP).mul_(lr_K1))

    def effective_steps(self, num_steps: int) -> float:
        """`num_steps`, because the length of an AdamW step hardly depends on the size of the gradient."""
        return float(num_steps)


class Constant(Settings):
    """The same learning rate in every round, after warm-up."""

    name: Literal["constant"] = "constant"
    warmup_rounds: int = Field(default=0, ge=0)

    def factor(self, round: int, num_rounds: int) -> float:
        """The factor of `client.lr` in `round` (from 1)."""
        return _warmup(round, self.warmup_rounds)


class Cosine(Settings):
    """The learning rate falls along half a cosine from 1 to `final_fraction` over the rounds after warm-up.

    Source: Loshchilov and Hutter 2017 (SGDR, arXiv 1608.03983), Eq. 5 without restarts.
    """

    name: Literal["cosine"] = "cosine"
    warmup_rounds: int = Field(default=0, ge=0)
    final_fraction: float = Field(default=0.0, ge=0, le=1)

    def factor(self, round: int, num_rounds: int) -> float:
        """The factor of `client.lr` in `round` (from 1).

        >>> [round(Cosine().factor(r, 4), 3) for r in (1, 2, 3, 4)]
        [1.0, 0.854, 0.5, 0.146]
        """
        if round <= self.warmup_rounds:
            return _warmup(round, self.warmup_rounds)
        progress = (round - 1 - self.warmup_rounds) / max(1, num_rounds - self.warmup_rounds)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


class Step(Settings):
    """The learning rate is multiplied by `factor_per_step` after each of the rounds in `after_rounds`."""

    name: Literal["step"] = "step"
    warmup_rounds: int = Field(default=0, ge=0)
    after_rounds: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    factor_per_step: float = Field(default=0.1, gt=0)  # FedLAMA's code: a tenth at two points

    def factor(self, round: int, num_rounds: int) -> float:
        """The factor of `client.lr` in `round` (from 1)."""
        passed = sum(round > boundary for boundary in self.after_rounds)
        return _warmup(round, self.warmup_rounds) * self.factor_per_step**passed


def _warmup(round: int, warmup_rounds: int) -> float:
    """A factor that rises linearly and is 1 from the last warm-up round on."""
    return min(1.0, round / warmup_rounds) if warmup_rounds else 1.0
