"""Early exits in a federation: how deep each client runs, and at which exits it learns.

A client of depth d runs, receives, trains and sends what belongs to the first d blocks and nothing above; each tensor
is averaged over the clients that hold it.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084), its three regimes; Lee et al. 2024 (ReeFL, arXiv 2405.14791)
for `sum`, `distill` and the mean over holders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from fedelta.errors import ConfigError
from fedelta.seeds import stream
from fedelta.settings import Settings
from fedelta.strategies.base import RoundPlan


class ExitSettings(Settings):
    """What clients do with exits: section `[exits]`.

    Args:
        train: `deepest` is the client's last exit, `random` one of its exits for each batch, `sum` all of them,
            `distill` all of them, each also learning from the one with the lowest loss so far.
        tiers: depths in blocks; each client has one of them. None: every client runs the whole model.
        assignment: `cycle` gives the clients, in ascending order, one tier after the other and begins again, `shuffle`
            the same after a seeded shuffle. A tier that stands twice is given twice as often.
        tiers_file: a JSON object of client id to depth, instead of `tiers`.
    """

    train: Literal["deepest", "random", "sum", "distill"] = "deepest"
    tiers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)] | None = None
    assignment: Literal["cycle", "shuffle"] = "cycle"  # the authors' code: client id modulo 12
    tiers_file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ExitSettings:
        if self.tiers is not None and self.tiers_file is not None:
            raise ValueError("give `tiers` or `tiers_file`, not both")
        return self

    @property
    def has_tiers(self) -> bool:
        """Whether clients differ in depth."""
        return self.tiers is not None or self.tiers_file is not None

    def answers(self, depth: int) -> range:
        """The exits at which a client of `depth` learns, from 1."""
        return range(depth if self.train == "deepest" else 1, depth + 1)

    def depths(self, client_ids: Sequence[int], num_blocks: int, seed: int) -> dict[int, int]:
        """Client id to depth.

        Raises:
            ConfigError: a depth that the model does not have, or a file that does not name every client.
        """
        if self.tiers_file is not None:
            return _read_depths(self.tiers_file, client_ids, num_blocks)
        tiers = self.tiers or (num_blocks,)
        if max(tiers) > num_blocks:
            problem = f"`exits.tiers` has depth {max(tiers)}, but the model has {num_blocks} blocks"
            raise ConfigError([problem], hint=f"use depths from 1 to {num_blocks}.")
        order = list(client_ids)
        if self.assignment == "shuffle":
            shuffled = torch.randperm(len(order), generator=stream(seed, "tiers")).tolist()
            order = [order[index] for index in shuffled]
        return {client_id: tiers[place % len(tiers)] for place, client_id in enumerate(order)}


def _read_depths(path: str, client_ids: Sequence[int], num_blocks: int) -> dict[int, int]:
    expected = f'a JSON object of client id to depth, such as {{"0": 4, "1": {num_blocks}}}'
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        depths = {int(client_id): depth for client_id, depth in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            [f"`exits.tiers_file` {path!r} cannot be used: {error}"], hint=f"expected {expected}."
        ) from error
    problems = [
        f"client {client_id} has depth {depths.get(client_id)!r}"
        for client_id in client_ids
        if type(depths.get(client_id)) is not int or not 1 <= depths[client_id] <= num_blocks
    ]
    if problems:
        shown = ", ".join(problems[:4]) + (f" and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ConfigError(
            [f"`exits.tiers_file` {path!r}: {shown}; expected 1 to {num_blocks} for every client"],
            hint=f"write {expected}.",
        )
    return {client_id: depths[client_id] for client_id in client_ids}


@dataclass(frozen=True)
class Tiers:
    """Who holds what.

    Args:
        depths: client id to the number of blocks that it runs.
        owned: depth to the names of the tensors of such a client.
    """

    depths: Mapping[int, int]
    owned: Mapping[int, frozenset[str]]

    def only(self, client_ids: Iterable[int]) -> Tiers:
        """The same without anybody else."""
        return replace(self, depths={client_id: self.depths[client_id] for client_id in client_ids})

    def owns(self, client_id: int, name: str) -> bool:
        """Whether the client holds a tensor; what a strategy sends beside `x`, `PREFIX/x`, goes with `x`."""
        return name.rpartition("/")[2] in self.owned[self.depths[client_id]]

    def restrict(self, plan: RoundPlan) -> RoundPlan:
        """`plan`, in which each client is sent and asked for what it holds, and says how many hold each tensor."""

        def own(names: Mapping[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
            found: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = {}
            for client_id, each in names.items():
                key = (self.depths[client_id], each)
                if key not in found:
                    found[key] = tuple(name for name in each if self.owns(client_id, name))
            return {client_id: found[self.depths[client_id], each] for client_id, each in names.items()}

        return replace(plan, download=own(plan.download), upload=own(plan.upload), num_holders=self._num_holders)

    def _num_holders(self, name: str) -> int:
        return sum(self.owns(client_id, name) for client_id in self.depths)
