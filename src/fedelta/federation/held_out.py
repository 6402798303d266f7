"""Section `[personalization]`: which clients are held out of all rounds, and how they fine-tune the finished model.

The fine-tuning is in fine_tuning.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from fedelta.catalog import Scope
from fedelta.data.clients import Clients, Name
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, refuse
from fedelta.seeds import stream
from fedelta.settings import Context, Settings

Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
_STREAM = "personalization"


class Personalization(Settings):
    """Which clients are held out of all rounds, and how they fine-tune afterwards: section `[personalization]`.

    Args:
        held_out_clients: number of clients that are drawn at random.
        held_out: the clients to hold out instead of a draw, by name or number (`Clients.find`).
        local_epochs: passes over a client's training part.
        lrs: learning rates to select from; they have no schedule.
        batch_size: samples per step; None for that of `[client]`.
        train_fraction: share of a client's rows that it trains on; the other rows are for evaluation.
        selection_fraction: share of the training part on which the learning rate is selected.
        tune: scopes that are trained, one after the other from the same start: `all`, `adapters` (without accumulator
            and head) or `token` (of the accumulator); None for every scope that the tuning method has.
    """

    held_out_clients: int = Field(default=0, ge=0)
    held_out: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    local_epochs: int = Field(default=1, ge=1)  # the authors' code
    lrs: Annotated[tuple[Rate, ...], Field(strict=False)] = (0.001, 0.01, 0.1)  # our choice
    batch_size: int | None = Field(default=None, ge=1)
    train_fraction: Share = 0.7  # the authors' code
    selection_fraction: Share = 0.25  # our choice: the authors select on the evaluation part
    tune: Annotated[tuple[Scope, ...], Field(strict=False)] | None = None

    @field_validator("held_out", "lrs", "tune")
    @classmethod
    def _each_once(cls, values: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"expected each value once, found {list(values)}")
        return values

    @field_validator("lrs", "tune")
    @classmethod
    def _some(cls, values: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if values is not None and not values:
            raise ValueError("expected at least one value, found none")
        return values

    @model_validator(mode="after")
    def _one_choice(self) -> Personalization:
        if self.held_out and self.held_out_clients:
            raise ValueError("give `held_out_clients` or `held_out`, not both")
        return self

    @property
    def num_held_out(self) -> int:
        """Number of clients that are held out."""
        return self.held_out_clients or len(self.held_out)

    def problems(self, context: Context) -> list[str]:
        """Reports why these clients cannot be held out of the federation."""
        if not self.num_held_out:
            return []
        problems = []
        if (num_clients := context.get("partition.num_clients")) is not None:
            # The names of natural clients are known only after the data are read.
            is_natural = context.get("partition.name") == "natural"
            clients = Clients.of(range(num_clients))
            problems = self.too_many(num_clients) if is_natural else self.problems_among(clients)
            clients_per_round, num_left = context.get("strategy.clients_per_round"), num_clients - self.num_held_out
            if not problems and clients_per_round is not None and num_left < clients_per_round <= num_clients:
                problems.append(
                    f"`strategy.clients_per_round` is {clients_per_round}, but `[personalization]` holds out "
                    f"{self.num_held_out} of {num_clients} clients, which leaves {num_left}"
                )
        if context.get("model.batch_norm") == "local":
            problems.append(
                "`[personalization]` holds out clients, but with `model.batch_norm` = 'local' every client keeps its "
                "own norms from round to round, which a held-out client does not have"
            )
        return problems

    def problems_among(self, clients: Clients) -> list[str]:
        """Problems with the choice of held-out clients among `clients`, which are all clients of the federation."""
        numbers = {key: clients.find(key) for key in self.held_out}
        if unknown_keys := [key for key, number in numbers.items() if number is None]:
            return [f"`personalization.held_out` has {_listed(unknown_keys)}, but there are {clients.described}"]
        if len(set(numbers.values())) < len(numbers):
            return [f"`personalization.held_out` is {_listed(self.held_out)}, which names a client twice"]
        return self.too_many(len(clients.numbers))

    def too_many(self, num_clients: int) -> list[str]:
        """A problem, if none of `num_clients` clients would be left to train."""
        if self.num_held_out < num_clients:
            return []
        key = "held_out_clients" if self.held_out_clients else "held_out"
        return [
            f"`personalization.{key}` holds out {self.num_held_out} of {num_clients} clients; at least one has to train"
        ]

    def held_out_ids(self, clients: Clients, seed: int) -> frozenset[int]:
        """The ids of the held-out clients among `clients`, which are all clients of the federation.

        Raises:
            ConfigError: see `problems_among`.
        """
        if problems := self.problems_among(clients):
            raise ConfigError(problems)
        order = torch.randperm(len(clients.numbers), generator=stream(seed, _STREAM, "held out")).tolist()
        drawn = {clients.numbers[index] for index in order[: self.held_out_clients]}
        return frozenset(drawn.union(number for key in self.held_out if (number := clients.find(key)) is not None))

    def training(self, client: ClientSettings) -> ClientSettings:
        """The settings of fine-tuning: those of `[client]`, with the epochs and batch size of this section."""
        update = {
            "local_epochs": self.local_epochs,
            "local_steps": None,
            "batch_size": self.batch_size or client.batch_size,
        }
        return client.model_copy(update=update)

    def sizes(self, num_examples: int) -> tuple[int, int, int]:
        """Numbers of rows to train on, of those among them to select on, and of rows to evaluate on.

        Each is its share rounded to the nearest whole number. With one learning rate no rows are for selection.

        >>> Personalization().sizes(10)  # 0.7 * 10, and 0.25 * 7 is 1.75
        (7, 2, 3)
        """
        num_train = math.floor(self.train_fraction * num_examples + 0.5)
        num_select = math.floor(self.selection_fraction * num_train + 0.5) if len(self.lrs) > 1 else 0
        return num_train, num_select, num_examples - num_train

    def can_split(self, num_examples: int) -> bool:
        """Whether every part of a client with `num_examples` has at least one row."""
        num_train, num_select, num_eval = self.sizes(num_examples)
        return num_eval > 0 and num_train > num_select and (num_select > 0 or len(self.lrs) == 1)

    def check_sizes(self, held_out: Mapping[int, Tensor], clients: Clients) -> None:
        """Refuses held-out clients with too few examples to split.

        Args:
            held_out: client id to its rows.
            clients: all clients of the federation, for their names.

        Raises:
            DataError: lists each such client with its number of examples.
        """
        if all(self.can_split(len(rows)) for rows in held_out.values()):
            return
        min_examples = 1
        while not self.can_split(min_examples):  # terminates: every part grows with the number of examples
            min_examples += 1
        parts = "to train on, to select the learning rate on" if len(self.lrs) > 1 else "to train on"
        problems = [
            f"{clients.called(client_id)} has {len(rows)} examples, expected at least {min_examples}: some {parts} and "
            "to evaluate on"
            for client_id, rows in sorted(held_out.items())
            if not self.can_split(len(rows))
        ]
        refuse(
            "the clients that `[personalization]` holds out",
            problems,
            hint="hold out other clients (`personalization.held_out`), or set `personalization.train_fraction` and "
            "`personalization.selection_fraction` closer to 0.5.",
        )

    def scopes(self, available: Mapping[Scope, frozenset[str]], tuning: str) -> dict[Scope, frozenset[str]]:
        """The scopes to train: scope to the names of its tensors.

        Args:
            available: the scopes of the tuning method.
            tuning: name of the tuning method.

        Raises:
            ConfigError: `tune` names a scope that the tuning method does not have.
        """
        if self.tune is None:
            # A method of adapters only has two scopes with the same tensors; one of them is enough.
            return {scope: names for scope, names in available.items() if scope == "all" or names != available["all"]}
        if lacking := [scope for scope in self.tune if scope not in available]:
            raise ConfigError(
                [f"`personalization.tune` has {_listed(lacking)}, of which tuning method {tuning!r} trains nothing"],
                hint=f"it has {_listed(list(available))}; 'token' needs an accumulator, 'adapters' more than a head.",
            )
        return {scope: available[scope] for scope in self.tune}


def _listed(items: Sequence[object]) -> str:
    return ", ".join(repr(item) for item in items)
