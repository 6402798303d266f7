"""What a client does in a round, one client's work as a value, and its result.

A `Job` goes into the engine (lanes.py), a `Trained` comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from fedelta.catalog import OPTIMIZERS, SCHEDULES
from fedelta.engine.optimizers import Constant, Optimizer, Schedule, Sgd
from fedelta.params import Params
from fedelta.settings import Context, Settings
from fedelta.settings.registry import Chosen


class ClientSettings(Settings):
    """What a client does in a round: section `[client]`.

    Args:
        local_epochs: passes over the client's data; 1 when neither this nor `local_steps` is given.
        local_steps: optimizer steps instead of epochs. The batches of a client go on where its last round would have
            stopped, had it taken part in all: one endless order, a pass over its data after the other.
        batch_size: samples of a step.
        lr: learning rate, multiplied by the schedule's factor for the round.
        optimizer: `sgd` or `adamw`; its state starts at zero for every client and round.
        schedule: `constant`, `cosine` or `step` over the rounds.
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
        """A warm-up that is longer than the run."""
        num_rounds, warmup = context.get("strategy.num_rounds"), self.schedule.warmup_rounds
        if num_rounds is None or warmup <= num_rounds:
            return []
        return [f"`client.schedule.warmup_rounds` is {warmup}, more than `strategy.num_rounds` = {num_rounds}"]

    def in_steps(self, local_steps: int | None) -> ClientSettings:
        """The same with rounds of so many steps, where a strategy says it (`Strategy.local_steps`)."""
        return self if local_steps is None else self.model_copy(update={"local_steps": local_steps})

    def num_steps(self, num_examples: int) -> int:
        """Optimizer steps of a client with `num_examples` in one round."""
        return self.local_steps or (self.local_epochs or 1) * self.epoch_steps(num_examples)

    def epoch_steps(self, num_examples: int) -> int:
        """Optimizer steps of one pass over `num_examples`."""
        return -(-num_examples // self.batch_size)

    def num_processed(self, num_examples: int) -> int:
        """Examples that such a client trains on in round 1, each as often as it is seen.

        >>> ClientSettings(local_steps=4, batch_size=2).num_processed(5)  # 2 + 2 + 1, and 2 of the next epoch
        7
        """
        epochs, rest = divmod(self.num_steps(num_examples), self.epoch_steps(num_examples))
        return epochs * num_examples + rest * self.batch_size

    def effective_steps(self, num_examples: int) -> float:
        """How often the learning rate the gradients of such a client go into its delta."""
        return self.optimizer.effective_steps(self.num_steps(num_examples))

    def lr_in(self, round: int, num_rounds: int) -> float:
        """Learning rate of `round` (from 1) in a run of `num_rounds`."""
        return self.lr * self.schedule.factor(round, num_rounds)


@dataclass(frozen=True)
class Job:
    """One client's training in one round.

    Args:
        client_id: who.
        rows: its rows of the training data, int64.
        anchor: the tensors as they were last downloaded.
        order: generators for the order of its batches, one for each epoch.
        noise: for dropout.
        augmentation: generators for crops and flips likewise; None where nothing is augmented.
        skip: batches of the first epoch that an earlier round had.
        local: the tensors that it starts from instead of their anchors.
        kept: names of the tensors whose values are asked for, beside the delta.
        offset: added to the gradient in every step, by name (`Steering.offset`).
        depth: blocks that it runs; None for all. What is above may be absent from `anchor`.
        exits: for the choice of exits.
        lr: its learning rate, instead of the round's.
        moving: names of the tensors that it trains; the others stay at their anchors. None: all of them.
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


@dataclass(frozen=True)
class Trained:
    """The result of a job.

    Args:
        client_id: who.
        delta: local minus anchor.
        kept: the values of the tensors of `Job.kept`.
        train_loss: mean over its steps of what the task minimises.
        lr: learning rate that it trained with.
    """

    client_id: int
    delta: Params
    kept: Params
    train_loss: float
    lr: float


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Batches of unequal size as [A, B], and weights that average each over its own rows and ignore padding."""
    lengths_A1 = torch.tensor([[len(batch)] for batch in rows])
    longest = int(lengths_A1.max())
    weights_AB = (torch.arange(longest) < lengths_A1) / lengths_A1
    # Padding repeats the lane's own first row: a row of another client could carry its NaN over.
    filled = [
        batch if len(batch) == longest else torch.cat([batch, batch[:1].expand(longest - len(batch))]) for batch in rows
    ]
    return torch.stack(filled), weights_AB
