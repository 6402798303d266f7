"""Settings for training with early exits, and the loss of a step with exits.

    deepest, random:  L_e of one exit e
    sum:              sum_e L_e
    distill:          sum_e L_e + w_t sum_e D(b, e),   w_t = exp(-5 (1 - min(t, 300) / 300)^2) in round t

L_e is the task's loss at exit e. D(b, e) is the divergence of the outputs at exit e from those at the best exit b
(`Task.divergences`; for classification the Kullback-Leibler divergence). The best exit is the one with the lowest
running mean of its loss, which starts again for every client and round.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084) for one exit per batch; Lee et al. 2024 (ReeFL, arXiv
2405.14791) for `sum` and `distill`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from fedelta.data.by_client import numbers_in
from fedelta.data.clients import Clients
from fedelta.engine.work import lane_means
from fedelta.errors import ConfigError
from fedelta.seeds import stream
from fedelta.settings import Settings
from fedelta.settings.paths import FilePath
from fedelta.tasks.base import Task
from fedelta.tasks.contract import losses_of, weights_of

_DISTILLATION_ROUNDS = 300  # ReeFL: w_t grows until this round
_DECAY = 0.8  # ReeFL: weight of the old value in the running mean of an exit's loss


class ExitSettings(Settings):
    """How clients train a model with early exits: section `[exits]`.

    Args:
        train: which exits a client trains: `deepest`, its last one; `random`, one drawn for each batch; `sum`, all of
            them; `distill`, all of them, with the best one so far as the teacher of the others.
        tiers: depths in blocks, one of which each client gets. None: every client runs the whole model.
        assignment: `cycle` deals the tiers out in turn to the clients in ascending order, `shuffle` does so after a
            seeded shuffle of the clients. A tier that is listed twice is dealt out twice as often.
        tiers_file: a JSON file that maps each client, by name or number, to its depth; replaces `tiers`.
    """

    train: Literal["deepest", "random", "sum", "distill"] = "deepest"
    tiers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)] | None = None
    assignment: Literal["cycle", "shuffle"] = "cycle"  # the authors' code: client id modulo 12
    tiers_file: FilePath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ExitSettings:
        if self.tiers is not None and self.tiers_file is not None:
            raise ValueError("give `tiers` or `tiers_file`, not both")
        if self.tiers_file is not None and self.assignment != "cycle":
            raise ValueError(f"`assignment` is {self.assignment!r}, but the depths are in `tiers_file`; leave one out")
        return self

    @property
    def has_tiers(self) -> bool:
        """Whether clients differ in depth."""
        return self.tiers is not None or self.tiers_file is not None

    def answers(self, depth: int) -> range:
        """The exits that a client of `depth` blocks may train, counted from 1."""
        return range(depth if self.train == "deepest" else 1, depth + 1)

    def depths(self, clients: Clients, num_blocks: int, seed: int) -> dict[int, int]:
        """The depth in blocks of every client, by client id.

        Raises:
            ConfigError: the model has fewer blocks than a depth, or `numbers_in` refuses the file.
        """
        if self.tiers_file is not None:
            return numbers_in(self.tiers_file, "exits.tiers_file", "depth", clients, num_blocks)
        tiers = self.tiers or (num_blocks,)
        if max(tiers) > num_blocks:
            problem = f"`exits.tiers` has depth {max(tiers)}, but the model has {num_blocks} blocks"
            raise ConfigError([problem], hint=f"use depths from 1 to {num_blocks}.")
        order = list(clients.numbers)
        if self.assignment == "shuffle":
            shuffled = torch.randperm(len(order), generator=stream(seed, "tiers")).tolist()
            order = [order[index] for index in shuffled]
        return {client_id: tiers[position % len(tiers)] for position, client_id in enumerate(order)}


class ExitLoss:
    """The loss of one step over the exits that each lane trains.

    Shapes: E exits, A lanes, N samples of all lanes, X the task's axes of outputs or targets per sample.

    Args:
        settings: which exits are trained, and with which loss.
        round: number of the round, from 1; sets the weight w_t of distillation.
        task: gives the loss at an exit.
    """

    def __init__(self, settings: ExitSettings, round: int, task: Task) -> None:
        self._settings = settings
        self._task = task
        progress = min(round, _DISTILLATION_ROUNDS) / _DISTILLATION_ROUNDS
        self._weight = math.exp(-5 * (1 - progress) ** 2)

    def chosen(self, depth: int, draw: Callable[[int], int]) -> tuple[int, ...]:
        """The exits that a lane trains in this step, counted from 1; `draw(n)` is a random number from 0 to n - 1."""
        exits = tuple(self._settings.answers(depth))
        return (exits[draw(depth)],) if self._settings.train == "random" else exits

    def of(
        self,
        outputs_ENX: Tensor,
        targets_NX: Tensor,
        lengths_A: Sequence[int],
        chosen_EA: Tensor,
        running_EA: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss that each lane minimises [A], and its mean task loss over its exits [A], which is reported.

        Args:
            outputs_ENX: outputs at the exits that at least one lane trains, lane after lane.
            targets_NX: targets of the samples.
            lengths_A: number of samples of each lane.
            chosen_EA: 1 where a lane trains an exit, 0 elsewhere.
            running_EA: running mean of the loss at each exit, NaN before the first step; changed in place.
        """
        num_exits = len(outputs_ENX)
        targets = targets_NX.expand(num_exits, *targets_NX.shape).flatten(0, 1)
        losses_EN = losses_of(self._task, outputs_ENX.flatten(0, 1), targets).unflatten(0, (num_exits, -1))
        weights_N = weights_of(self._task, targets_NX)
        losses_EA = lane_means(losses_EN, lengths_A, weights_N)
        # Not `chosen_EA * losses_EA`: 0 times the infinite loss of an exit that is not trained would be NaN.
        total_A = torch.where(chosen_EA > 0, losses_EA, 0.0).sum(0)
        mean_A = total_A.detach() / chosen_EA.sum(0)
        if self._settings.train == "distill" and num_exits > 1:
            latest = losses_EA.detach()
            running_EA.copy_(torch.where(running_EA.isnan(), latest, _DECAY * running_EA + (1 - _DECAY) * latest))
            total_A = total_A + self._weight * self._divergence(outputs_ENX, lengths_A, running_EA.argmin(0))
        return total_A, mean_A

    def _divergence(self, outputs_ENX: Tensor, lengths_A: Sequence[int], best_A: Tensor) -> Tensor:
        """sum_e D(b, e) of each lane [A]; the teacher gets no gradient."""
        best_N = best_A.repeat_interleave(torch.tensor(lengths_A, device=best_A.device))
        teacher_NX = outputs_ENX.detach()[best_N, torch.arange(len(best_N), device=best_A.device)]
        teacher = teacher_NX.expand_as(outputs_ENX).flatten(0, 1)
        divergences_EN = self._task.divergences(outputs_ENX.flatten(0, 1), teacher).unflatten(0, outputs_ENX.shape[:2])
        return lane_means(divergences_EN.sum(0), lengths_A)


def draws(generator: Generator | None) -> Callable[[int], int]:
    """A function that draws a number from 0 to n - 1 from `generator`.

    Raises:
        ValueError: when a number is drawn and there is no generator.
    """

    def draw(below: int) -> int:
        if generator is None:
            raise ValueError("random exits need a generator in `Job.exits`, but the job has none")
        return int(torch.randint(below, (), generator=generator))

    return draw
