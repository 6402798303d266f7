"""Optimizers on stacked lanes, and learning-rate schedules. Every lane has separate state and counts its own steps.

The trained scalars come as matrices [K, N] with a row for each lane: with several lanes as one matrix, in which all
tensors of a lane lie side by side; with one lane also as one matrix for each tensor, so that its gradient need not be
copied.

Shapes: K lanes, N scalars of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedelta.engine.products import Gradient, Product
from fedelta.settings import Context, Settings

Matrices = Sequence[Tensor]
OptimizerState = dict[str, list[Tensor]]
LearningRate = float | Sequence[float]  # one for all lanes, or one for each lane


class Optimizer(Protocol):
    """How gradients become steps, on stacked lanes."""

    @property
    def name(self) -> str:
        """Its name in configurations."""

    def state(self, values: Matrices) -> OptimizerState:
        """The initial state of lanes with these values: by name, for each matrix a tensor with a leading lane axis.

        A lane that a new client takes starts again from zeros.
        """

    def step(self, values: Matrices, grads: Matrices, state: OptimizerState, lr: LearningRate) -> None:
        """One step of every lane; may change all of `values` and `state` in place, and nothing of `grads`."""

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

    def state(self, values: Matrices) -> OptimizerState:
        """Zeroed optimizer state for the lanes of `values`."""
        return {"momentum": list(map(torch.zeros_like, values))} if self.momentum else {}

    def step(self, values: Matrices, grads: Sequence[Gradient], state: OptimizerState, lr: LearningRate) -> None:
        """Takes one step; changes `values` and `state` in place. With one lane, gradients may be products."""
        if len(values) > 1 or isinstance(grads[0], Product):
            self._step_by_tensor(values, grads, state, lr)
            return
        decayed_KN = grads[0].add(values[0], alpha=self.weight_decay) if self.weight_decay else grads[0]
        move_KN = self._with_momentum(decayed_KN, *state["momentum"]) if self.momentum else decayed_KN
        if isinstance(lr, Sequence):
            values[0].addcmul_(move_KN, move_KN.new_tensor(lr).unsqueeze(1), value=-1)
        else:
            values[0].add_(move_KN, alpha=-lr)

    def _step_by_tensor(
        self, values: Matrices, grads: Sequence[Gradient], state: OptimizerState, lr: LearningRate
    ) -> None:
        """A step of one lane."""
        rate = lr[0] if isinstance(lr, Sequence) else lr
        rows, row_grads, buffers = list[Tensor](), list[Tensor](), list[Tensor | None]()
        for place, (values_1N, grad) in enumerate(zip(values, grads, strict=True)):
            momentum_1N = state["momentum"][place] if self.momentum else None
            if isinstance(grad, Product):
                self._step_by_product(values_1N, grad, momentum_1N, rate)
            else:
                rows.append(values_1N)
                row_grads.append(grad)
                buffers.append(momentum_1N)
        # PyTorch's fused step reads every number once, which counts where a lane is larger than a cache.
        sgd(
            rows, row_grads, buffers, fused=True, lr=rate, momentum=self.momentum, nesterov=self.nesterov,
            weight_decay=self.weight_decay, dampening=0.0, maximize=False,
        )  # fmt: skip

    def _step_by_product(self, values_1N: Tensor, grad: Product, momentum_1N: Tensor | None, lr: float) -> None:
        values_OI, decay = values_1N.view(grad.left_NO.shape[1], -1), self.weight_decay
        if momentum_1N is None and not decay:
            grad.move(values_OI, -lr)
            return
        if momentum_1N is not None:
            momentum_OI = momentum_1N.view_as(values_OI)
            grad.add_to(momentum_OI, beta=self.momentum)
            if decay:
                momentum_OI.add_(values_OI, alpha=decay)
        if momentum_1N is None or self.nesterov:
            grad.add_to(values_OI, alpha=-lr, beta=1 - lr * decay)
        if momentum_1N is not None:
            values_OI.add_(momentum_OI, alpha=-lr * (self.momentum if self.nesterov else 1))

    def _with_momentum(self, grads_KN: Tensor, momentum_KN: Tensor) -> Tensor:
        """The step in units of the learning rate; changes `momentum_KN`."""
        torch.add(grads_KN, momentum_KN, alpha=self.momentum, out=momentum_KN)
        return grads_KN.add(momentum_KN, alpha=self.momentum) if self.nesterov else momentum_KN

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

    Args:
        beta1: share of the mean of the gradients that is kept in a step.
        beta2: share of the mean of their squares that is kept in a step.
        eps: added to the root of that mean, against a division by zero.
        weight_decay: share of a value that is taken off in a step, times the learning rate.
    """

    name: Literal["adamw"] = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)  # PyTorch's default
    beta2: float = Field(default=0.999, ge=0, lt=1)  # PyTorch's default
    eps: float = Field(default=1e-8, gt=0)  # PyTorch's default
    weight_decay: float = Field(default=0.01, ge=0)  # PyTorch's default

    def state(self, values: Matrices) -> OptimizerState:
        """Zeroed optimizer state for the lanes of `values`."""
        return {
            "first": list(map(torch.zeros_like, values)),
            "second": list(map(torch.zeros_like, values)),
            "steps": [matrix.new_zeros(len(matrix), dtype=torch.float32) for matrix in values],
        }

    def step(self, values: Matrices, grads: Matrices, state: OptimizerState, lr: LearningRate) -> None:
        """Takes one step of PyTorch's fused AdamW, which touches every number once."""
        for rate, (rows, row_grads, first, second, steps) in _by_rate(lr, values, grads, *state.values()):
            adamw(
                rows, row_grads, first, second, [], steps, fused=True, lr=rate, beta1=self.beta1, beta2=self.beta2,
                eps=self.eps, weight_decay=self.weight_decay, amsgrad=False, maximize=False,
            )  # fmt: skip

    def effective_steps(self, num_steps: int) -> float:
        """`num_steps`, because the length of an AdamW step hardly depends on the size of the gradient."""
        return float(num_steps)


class Constant(Settings):
    """The same learning rate in every round, after warm-up.

    Args:
        warmup_rounds: rounds in which the learning rate rises in equal steps to `client.lr`; 0 for none.
    """

    name: Literal["constant"] = "constant"
    warmup_rounds: int = Field(default=0, ge=0)

    def factor(self, round: int, num_rounds: int) -> float:
        """The factor of `client.lr` in `round` (from 1)."""
        return _warmup(round, self.warmup_rounds)


class Cosine(Settings):
    """The learning rate falls along half a cosine from 1 to `final_fraction` over the rounds after warm-up.

    Source: Loshchilov and Hutter 2017 (SGDR, arXiv 1608.03983), Eq. 5 without restarts.

    Args:
        warmup_rounds: rounds in which the learning rate rises in equal steps to `client.lr`; 0 for none.
        final_fraction: share of `client.lr` that the curve approaches at its end.
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


class Linear(Settings):
    """The learning rate falls in a straight line from 1 towards 0 over the rounds after warm-up.

    Args:
        warmup_rounds: rounds in which the learning rate rises in equal steps to `client.lr`; 0 for none.
    """

    name: Literal["linear"] = "linear"
    warmup_rounds: int = Field(default=0, ge=0)

    def factor(self, round: int, num_rounds: int) -> float:
        """The factor of `client.lr` in `round` (from 1).

        >>> [Linear().factor(r, 4) for r in (1, 2, 3, 4)]
        [1.0, 0.75, 0.5, 0.25]
        """
        if round <= self.warmup_rounds:
            return _warmup(round, self.warmup_rounds)
        return 1 - (round - 1 - self.warmup_rounds) / max(1, num_rounds - self.warmup_rounds)


class Step(Settings):
    """The learning rate is multiplied by `factor_per_step` after each of the rounds in `after_rounds`.

    Args:
        warmup_rounds: rounds in which the learning rate rises in equal steps to `client.lr`; 0 for none.
        after_rounds: rounds, from 1, after which the learning rate is multiplied.
        factor_per_step: what it is multiplied by.
    """

    name: Literal["step"] = "step"
    warmup_rounds: int = Field(default=0, ge=0)
    after_rounds: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    factor_per_step: float = Field(default=0.1, gt=0)  # FedLAMA's code: a tenth at two points

    def factor(self, round: int, num_rounds: int) -> float:
        """The factor of `client.lr` in `round` (from 1)."""
        passed = sum(round > boundary for boundary in self.after_rounds)
        return _warmup(round, self.warmup_rounds) * self.factor_per_step**passed


def _by_rate(lr: LearningRate, *lists: Matrices) -> Iterator[tuple[float, list[list[Tensor]]]]:
    """The rows of all lanes with the rate that they share, or lane by lane with the rate of each."""
    if isinstance(lr, Sequence):
        for lane, rate in enumerate(lr):
            yield rate, [[matrix[lane] for matrix in matrices] for matrices in lists]
    else:
        yield lr, [[row for matrix in matrices for row in matrix] for matrices in lists]


def _warmup(round: int, warmup_rounds: int) -> float:
    """A factor that rises linearly and is 1 from the last warm-up round on."""
    return min(1.0, round / warmup_rounds) if warmup_rounds else 1.0
