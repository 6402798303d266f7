"""Clients of different rank: which part of LoRA's pairs each client trains and sends (`tuning.rank_by_client`).

The server has pairs of rank R = `tuning.r`, and a client of rank r the first r rows of A and columns of B; a layer
whose rank is lower than r has that for all. The factor of a pair is the server's, s = alpha / R or alpha / sqrt(R), for
every client, so that B_i A_i of all clients can be added up and cut without being scaled: in PEFT's terms a client has
the alpha r / R, or alpha sqrt(r / R) with `use_rslora`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from fedelta.data.clients import Clients
from fedelta.errors import ConfigError, listed
from fedelta.seeds import stream
from fedelta.settings import Settings
from fedelta.settings.paths import FilePath

Rank = Annotated[int, Field(ge=1)]


class RankByClient(Settings):
    """The rank of each client: `tuning.rank_by_client`.

    Args:
        ranks: one of which each client gets; a rank that is listed twice is given twice as often.
        assignment: `drawn`, each client one of them at random; `cycle`, dealt out in turn in ascending order of
            clients; `tier`, by depth (`[exits]`): the lowest depth gets the first rank, and so on.
        file: a JSON file that maps each client, by name or number, to its rank; replaces `ranks`.
    """

    ranks: Annotated[tuple[Rank, ...], Field(strict=False, min_length=1)] | None = None
    assignment: Literal["drawn", "cycle", "tier"] = "drawn"
    file: FilePath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> RankByClient:
        if (self.ranks is None) == (self.file is None):
            raise ValueError("give `ranks` or `file`, one of the two")
        return self

    @property
    def possible(self) -> frozenset[int]:
        """The ranks that clients can have.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.ranks is not None:
            return frozenset(self.ranks)
        return frozenset(rank for rank in self._read().values() if type(rank) is int and rank >= 1)

    def of(self, clients: Clients, most: int, seed: int, depths: Mapping[int, int] | None) -> dict[int, int]:
        """The rank of every client, by client id; empty if it is `most` for all.

        Args:
            clients: all that take part in rounds.
            most: the rank of the server.
            seed: of the run.
            depths: the depth of each client; None if all run the whole model.

        Raises:
            ConfigError: a rank exceeds `most`; the file lacks a client, or names an unknown one; or there are not as
            many
                ranks as depths.
        """
        ranks = self._in_file(clients, most) if self.file is not None else self._assigned(clients, seed, depths)
        if (largest := max(ranks.values())) > most:
            problem = f"`tuning.rank_by_client` has rank {largest}, more than `tuning.r` = {most}, that of the server"
            raise ConfigError([problem], hint="set `tuning.r` to the largest rank of a client.")
        return {} if all(rank == most for rank in ranks.values()) else ranks

    def _assigned(self, clients: Clients, seed: int, depths: Mapping[int, int] | None) -> dict[int, int]:
        ranks, numbers = self.ranks or (), clients.numbers
        if self.assignment == "tier":
            return self._by_depth(clients, depths)
        if self.assignment == "cycle":
            return {number: ranks[place % len(ranks)] for place, number in enumerate(numbers)}
        return {
            number: ranks[int(torch.randint(len(ranks), (), generator=stream(seed, "rank", number)))]
            for number in numbers
        }

    def _by_depth(self, clients: Clients, depths: Mapping[int, int] | None) -> dict[int, int]:
        ranks, tiers = self.ranks or (), sorted(set((depths or {}).values()))
        if len(tiers) != len(ranks):
            problem = (
                f"`tuning.rank_by_client.assignment` is 'tier' and there are {len(ranks)} ranks, but clients have "
                f"{len(tiers)} different depths" + (f": {listed(tiers)}" if tiers else "")
            )
            raise ConfigError([problem], hint="give as many `ranks` as there are depths in `exits.tiers`.")
        by_depth = dict(zip(tiers, ranks, strict=True))
        return {number: by_depth[(depths or {})[number]] for number in clients.numbers}

    def _in_file(self, clients: Clients, most: int) -> dict[int, int]:
        example = [str(clients.names.get(number, number)) for number in clients.numbers[:2]]
        expected = f"a JSON object that maps clients to ranks, such as {json.dumps(dict.fromkeys(example, most))}"
        where, content = f"`tuning.rank_by_client.file` {self.file or ''!r}", self._read()
        ranks = {clients.find_text(key): rank for key, rank in content.items()}
        problems = []
        if unknown := [key for key in content if clients.find_text(key) is None]:
            problems.append(f"{where} names {listed(unknown)}, but there are {clients.described}")
        if len(ranks) < len(content) - len(unknown) + bool(unknown):
            problems.append(f"{where} names a client twice, by name and by number")
        wrong = [
            f"{clients.called(number)} has {'rank ' + repr(ranks[number]) if number in ranks else 'no rank'}"
            for number in clients.numbers
            if type(ranks.get(number)) is not int or not 1 <= ranks[number] <= most
        ]
        if wrong:
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            problems.append(f"{where}: {', '.join(wrong[:4])}{more}; expected 1 to {most} for every client")
        if problems:
            raise ConfigError(problems, hint=f"write {expected}.")
        return {number: ranks[number] for number in clients.numbers}

    def _read(self) -> dict[str, Any]:  # Any: JSON
        """The content of the file, whose values are not checked."""
        path = self.file or ""
        try:
            content = json.loads(
                Path(path).expanduser().read_text(encoding="utf-8-sig"), object_pairs_hook=_without_twins
            )
            if not isinstance(content, dict):
                raise ValueError(f"it is a {type(content).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                [f"`tuning.rank_by_client.file` {path!r} cannot be read: {error}"],
                hint='expected a JSON object that maps clients to ranks, such as {"hamburg": 4, "kiel": 8}.',
            ) from error
        return content


def _without_twins(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these entries; a client that is there twice is refused."""
    content = dict(entries)
    if len(content) != len(entries):
        twins = sorted({key for key, _ in entries if sum(key == other for other, _ in entries) > 1})
        raise ValueError(f"{listed(twins)} stands there more than once")
    return content
