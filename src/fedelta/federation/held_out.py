"""Clients that no round asks: who they are, and how they fine-tune the finished model afterwards.

Section `[personalization]`; the fine-tuning itself is in personalize.py.
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
    """Which clients no round asks, and how they fine-tune afterwards: section `[personalization]`.

    Args:
        held_out_clients: so many clients of the partition are drawn.
        held_out: these clients, instead of a draw, by name or by number (`Clients.find`).
        local_epochs: passes over a client's training part.
        lrs: learning rates to select from, without a schedule.
        batch_size: samples of a step; None for that of `[client]`.
        train_fraction: share of a client's rows that it may train on; it is evaluated on the others.
        selection_fraction: share of the training part by which the learning rate is selected.
        tune: what is trained, each on its own: `all`, `adapters` (neither accumulator nor head) or the accumulator's
            `token`; None for all of these that the tuning method has.
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
            raise ValueError(f"each value once, found {list(values)}")
        return values

    @field_validator("lrs", "tune")
    @classmethod
    def _some(cls, values: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if values is not None and not values:
            raise ValueError("at least one value, found none")
        return values

    @model_validator(mode="after")
    def _one_choice(self) -> Personalization:
        if self.held_out and self.held_out_clients:
            raise ValueError("give `held_out_clients` or `held_out`, not both")
        return self

    @property
    def num_held_out(self) -> int:
        """Number of clients that no round asks."""
        return self.held_out_clients or len(self.held_out)

    def problems(self, context: Context) -> list[str]:
        """Why clients of this federation cannot be held out."""
        if not self.num_held_out:
            return []
        problems = []
        if (num_clients := context.get("partition.num_clients")) is not None:
            # What natural clients are called, only the data know.
            is_natural = context.get("partition.name") == "natural"
            among = Clients.of(range(num_clients))
            problems = self.too_many(num_clients) if is_natural else self.problems_among(among)
            wanted, left = context.get("strategy.clients_per_round"), num_clients - self.num_held_out
            if not problems and wanted is not None and left < wanted <= num_clients:
                problems.append(
                    f"`strategy.clients_per_round` is {wanted}, but `[personalization]` holds out "
                    f"{self.num_held_out} of {num_clients} clients, which leaves {left}"
                )
        if context.get("model.batch_norm") == "local":
            problems.append(
                "`[personalization]` holds out clients, but with `model.batch_norm` = 'local' every client keeps norms "
                "of its own from round to round, which a client that no round asks does not have"
            )
        return problems

    def problems_among(self, clients: Clients) -> list[str]:
        """Why these clients, all there are, cannot be held out from."""
        meant = {key: clients.find(key) for key in self.held_out}
        if unknown := [key for key, number in meant.items() if number is None]:
            return [f"`personalization.held_out` has {_listed(unknown)}, but there are {clients.described}"]
        if len(set(meant.values())) < len(meant):
            return [f"`personalization.held_out` is {_listed(self.held_out)}, which names a client twice"]
        return self.too_many(len(clients.numbers))

    def too_many(self, num_clients: int) -> list[str]:
        """What is said where nobody is left of so many clients."""
        if self.num_held_out < num_clients:
            return []
        key = "held_out_clients" if self.held_out_clients else "held_out"
        found = f"`personalization.{key}` holds out {self.num_held_out} of {num_clients} clients"
        return [f"{found}; at least one has to train"]

    def unseen(self, clients: Clients, seed: int) -> frozenset[int]:
        """The ids of those of `clients`, all there are, that no round asks.

        Raises:
            ConfigError: see `problems_among`.
        """
        if problems := self.problems_among(clients):
            raise ConfigError(problems)
        order = torch.randperm(len(clients.numbers), generator=stream(seed, _STREAM, "held out")).tolist()
        drawn = {clients.numbers[place] for place in order[: self.held_out_clients]}
        return frozenset(drawn.union(number for key in self.held_out if (number := clients.find(key)) is not None))

    def training(self, client: ClientSettings) -> ClientSettings:
        """How a client fine-tunes, for which `client` says how it trains in a round."""
        update = {
            "local_epochs": self.local_epochs,
            "local_steps": None,
            "batch_size": self.batch_size or client.batch_size,
        }
        return client.model_copy(update=update)

    def sizes(self, num_examples: int) -> tuple[int, int, int]:
        """Rows to train on, those of them to select by, and rows to evaluate on; whole numbers nearest to the shares.

        With one learning rate there is nothing to select.

        >>> Personalization().sizes(10)  # 0.7 * 10, and 0.25 * 7 is 1.75
        (7, 2, 3)
        """
        num_train = math.floor(self.train_fraction * num_examples + 0.5)
        num_select = math.floor(self.selection_fraction * num_train + 0.5) if len(self.lrs) > 1 else 0
        return num_train, num_select, num_examples - num_train

    def can_split(self, num_examples: int) -> bool:
        """Whether no part of such a client is empty."""
        num_train, num_select, num_eval = self.sizes(num_examples)
        return num_eval > 0 and num_train > num_select and (num_select > 0 or len(self.lrs) == 1)

    def check_sizes(self, unseen: Mapping[int, Tensor], clients: Clients) -> None:
        """Refuses clients that are too small to split, all of them at once.

        Raises:
            DataError: names each with its number of examples.
        """
        if all(self.can_split(len(rows)) for rows in unseen.values()):
            return
        least = 1
        while not self.can_split(least):  # each part grows with the client: what is enough for one is for any larger
            least += 1
        parts = "to train on, to select the learning rate by" if len(self.lrs) > 1 else "to train on"
        problems = [
            f"{clients.called(client_id)} has {len(rows)} examples, expected at least {least}: some {parts} and to "
            "evaluate on"
            for client_id, rows in sorted(unseen.items())
            if not self.can_split(len(rows))
        ]
        refuse(
            "the clients that `[personalization]` holds out",
            problems,
            hint="hold out others (`personalization.held_out`), or bring `personalization.train_fraction` and "
            "`personalization.selection_fraction` nearer to a half.",
        )

    def scopes(self, found: Mapping[Scope, frozenset[str]], tuning: str) -> dict[Scope, frozenset[str]]:
        """What is trained: scope to the names of its tensors.

        Args:
            found: the scopes that the tuning method has.
            tuning: its name.

        Raises:
            ConfigError: `tune` names others.
        """
        if self.tune is None:
            # Where there is nothing but adapters, a second scope would repeat the first.
            return {scope: names for scope, names in found.items() if scope == "all" or names != found["all"]}
        if lacking := [scope for scope in self.tune if scope not in found]:
            raise ConfigError(
                [f"`personalization.tune` has {_listed(lacking)}, of which tuning method {tuning!r} trains nothing"],
                hint=f"it has {_listed(list(found))}; 'token' needs an accumulator, 'adapters' more than a head.",
            )
        return {scope: found[scope] for scope in self.tune}


def _listed(items: Sequence[object]) -> str:
    return ", ".join(repr(item) for item in items)
