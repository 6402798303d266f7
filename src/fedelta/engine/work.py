"""Settings of local training (`[client]`), and one client's training as values: `Job` goes in, `Trained` comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from fedelta.catalog import OPTIMIZERS, SCHEDULES
from fedelta.engine.optimizers import Constant, Optimizer, Schedule, Sgd
from fedelta.params import Params
from fedelta.plugins import wrong_result
from fedelta.settings import Context, Settings
from fedelta.settings.registry import Chosen


class ClientSettings(Settings):
    """How a client trains in a round: section `[client]`.

    Args:
        local_epochs: passes over the client's data; 1 if neither this nor `local_steps` is given.
        local_steps: optimizer steps, instead of epochs. Batches follow one endless order, pass after pass over the
            client's data; a round starts where the previous round ends, whether the client took part in it or not.
        batch_size: samples per step.
        lr: learning rate; the schedule multiplies it by a factor for each round.
        optimizer: `sgd` or `adamw`; its state starts at zero for every client and round.
        schedule: `constant`, `linear`, `cosine` or `step` over the rounds.
    """

    local_epochs: int | None = Field(default=None, ge=1)
    local_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)  # FedLAMA; FedPEFT has 64, which few small clients can fill
    lr: float = Field(default=0.01, gt=0)  # FedPEFT's choice for bias and prompt tuning; set it for your method
    optimizer: Annotated[Optimizer, Chosen(OPTIMIZERS)] = Sgd()
    schedule: Annotated[Schedule, Chosen(SCHEDULES)] = Constant()

    @model_validator(mode="after")
    def _one_measure_of_work(self) -> ClientSettings:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give `local_epochs` or `local_steps`, not both")
        return self

    def problems(self, context: Context) -> list[str]:
        """Reports a warm-up that is longer than the run."""
        num_rounds, warmup = context.get("strategy.num_rounds"), self.schedule.warmup_rounds
        if num_rounds is None or warmup <= num_rounds:
            return []
        return [f"`client.schedule.warmup_rounds` is {warmup}, more than `strategy.num_rounds` = {num_rounds}"]

    def departures(self, before: Context, now: Context, rounds_done: int) -> list[str]:
        """Says that the learning rate of earlier rounds followed another curve; see `Settings.departures`."""
        planned, longer = before.get("strategy.num_rounds"), now.get("strategy.num_rounds")
        if all(self.lr_in(round, planned) == self.lr_in(round, longer) for round in range(1, rounds_done + 1)):
            return []
        curve = (
            f"`client.schedule` is a curve over all rounds: up to round {rounds_done} the learning rate came to "
            f"{self.lr_in(rounds_done, planned):.3g} as for {planned} rounds, from round {rounds_done + 1} on it is "
            f"that of {longer} rounds, {self.lr_in(rounds_done + 1, longer):.3g} and on"
        )
        return [curve]

    def in_steps(self, local_steps: int | None) -> ClientSettings:
        """These settings with `local_steps` per round, if the strategy sets it (`Strategy.local_steps`)."""
        return self if local_steps is None else self.model_copy(update={"local_steps": local_steps})

    def num_steps(self, num_examples: int) -> int:
        """Number of optimizer steps of a client with `num_examples` in one round."""
        return self.local_steps or (self.local_epochs or 1) * self.epoch_steps(num_examples)

    def epoch_steps(self, num_examples: int) -> int:
        """Number of optimizer steps of one pass over `num_examples`; the last batch may be smaller."""
        return -(-num_examples // self.batch_size)

    def sampling_rate(self, num_examples: int) -> float:
        """The probability of each of `num_examples` to be in a batch, if batches are Poisson samples (DP-SGD).

        >>> ClientSettings(batch_size=8).sampling_rate(32), ClientSettings(batch_size=8).sampling_rate(5)
        (0.25, 1.0)
        """
        return min(1.0, self.batch_size / num_examples)

    def num_processed(self, num_examples: int) -> int:
        """Number of examples that a client with `num_examples` processes in round 1; repeated examples count again.

        >>> ClientSettings(local_steps=4, batch_size=2).num_processed(5)  # 2 + 2 + 1, and 2 of the next epoch
        7
        """
        epochs, steps_left = divmod(self.num_steps(num_examples), self.epoch_steps(num_examples))
        return epochs * num_examples + steps_left * self.batch_size

    def effective_steps(self, num_examples: int) -> float:
        """The sum of the weights of a client's gradients in its delta, in units of the learning rate.

        See `Optimizer.effective_steps`.
        """
        return self.optimizer.effective_steps(self.num_steps(num_examples))

    def lr_in(self, round: int, num_rounds: int) -> float:
        """Learning rate of `round` (from 1) in a run of `num_rounds`."""
        factor: object = self.schedule.factor(round, num_rounds)
        if not isinstance(factor, int | float) or not math.isfinite(factor):
            raise wrong_result(self.schedule, "factor", repr(factor), "a finite number")
        return self.lr * factor


@dataclass(frozen=True)
class Job:
    """The training of one client in one round.

    Args:
        client_id: number of the client.
        rows: the client's rows of the training data, int64.
        anchor: the tensors as last downloaded.
        order: generators for the order of batches, one per epoch; with DP-SGD the first one draws all samples.
        noise: generator for dropout.
        augmentation: generators for crops and flips, one per epoch; None without augmentation.
        skip: number of batches of the first epoch that belong to an earlier round.
        local: tensors that start from another value than their anchor.
        kept: names of the tensors whose trained values are returned, in addition to the delta.
        offset: added to the gradient in every step, by name (`Steering.offset`).
        depth: number of blocks that run; None for all. `anchor` may lack the tensors of the blocks above.
        exits: generator for the choice of exits; None if no exit is drawn.
        lr: learning rate that replaces the round's; None to use the round's.
        moving: names of the tensors that are trained, while the others stay at their anchors; None for all.
        noise_of_step: gives the noise of DP-SGD for a step, counted from 0, and what it is added to; None without
            it.
    """

    client_id: int
    rows: Tensor
    anchor: Params
    order: Iterator[Generator]
    noise: Generator
    augmentation: Iterator[Generator] | None = None
    skip: int = 0
    local: Params = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    offset: Params = field(default_factory=dict)
    depth: int | None = None
    exits: Generator | None = None
    lr: float | None = None
    moving: frozenset[str] | None = None
    noise_of_step: Callable[[int, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Trained:
    """The result of a job.

    Args:
        client_id: number of the client.
        delta: local minus anchor, by name.
        kept: trained values of the tensors in `Job.kept`.
        train_loss: mean of the task's loss over the steps; None with gradients of single examples.
        lr: learning rate of the job.
    """

    client_id: int
    delta: Params
    kept: Params
    train_loss: float | None
    lr: float


def lane_means(values: Tensor, lengths: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """The mean over the samples of each lane: [..., N] to [..., A].

    Args:
        values: of all samples, lane after lane.
        lengths: number of samples of each lane.
        weights: of each sample in the mean of its lane, [N]; None if all are alike. The mean of a lane whose weights
            are all 0 is 0, whatever its values, and has no gradient.

    >>> lane_means(torch.tensor([1.0, 3.0, 7.0]), [2, 1])
    tensor([2., 7.])
    >>> lane_means(torch.tensor([1.0, 3.0, 7.0]), [2, 1], torch.tensor([3.0, 1.0, 0.0]))
    tensor([1.5000, 0.0000])
    """
    if weights is not None:
        # Not the product alone: 0 times a value that is not finite would be NaN.
        weighted = torch.where(weights > 0, values * weights, 0.0).split(list(lengths), dim=-1)
        totals = torch.stack([part.sum() for part in weights.split(list(lengths))])
        return torch.stack([part.sum(-1) for part in weighted], dim=-1) / totals.masked_fill(totals == 0, 1.0)
    if min(lengths) == max(lengths):
        by_lane: Tensor = values.unflatten(-1, (len(lengths), -1))
        return by_lane.mean(-1)
    return torch.stack([part.mean(-1) for part in values.split(list(lengths), dim=-1)], dim=-1)
