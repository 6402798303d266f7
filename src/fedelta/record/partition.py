"""`partition.json`: numbers and names of the clients, and how many examples of each class they hold.

The server of a deployment does not know the classes of its clients' examples, but where the clients are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedelta.data.batches import FederatedData
from fedelta.data.clients import Clients
from fedelta.errors import DataError, RunError
from fedelta.record.files import Record, read_json


@dataclass(frozen=True)
class Partition:
    """The number of examples of each class that each client holds.

    Args:
        class_names: of the classes, or strata, in the order of the counts; empty if the task has none.
        counts: client id to the number of its examples of each class.
        held_out: ids of the held-out clients, which `counts` does not contain.
        clients: numbers and names of all clients.
        kind: singular and plural of the word for a class (`Task.stratum`).
        sites: name of each site of a deployment to its clients and their numbers of examples; empty for other runs.
    """

    class_names: tuple[str, ...]
    counts: Mapping[int, tuple[int, ...]]
    held_out: frozenset[int] = frozenset()
    clients: Clients = field(default_factory=Clients)
    kind: tuple[str, str] = ("class", "classes")
    sites: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def label(self, client_id: int) -> str:
        """The name of a client on pages: "3" or, with a name, "george (3)"."""
        name = self.clients.names.get(client_id)
        return str(client_id) if name is None else f"{name} ({client_id})"


def partition_record(data: FederatedData) -> Record:
    """The content of the file: examples of each class, or stratum, by client, and the clients' names."""
    strata = data.train.targets.strata
    names = () if strata is None else data.strata_names or data.class_names

    def counts(rows_of: Mapping[int, Tensor]) -> dict[str, list[int]]:
        return {
            str(client_id): [] if strata is None else torch.bincount(strata[rows], minlength=len(names)).tolist()
            for client_id, rows in sorted(rows_of.items())
        }

    record: Record = {"class_names": list(names), "clients": counts(data.partition)}
    if data.held_out:
        record["held_out"] = counts(data.held_out)
    return record | _names(data.clients)


def roster_record(sites: Record, clients: Clients) -> Record:
    """The content of the file of a deployment: which site has which clients, and how many examples each has.

    How many of them are of which class is known at the sites only.

    Args:
        sites: name of each site to what it said about itself; `clients` are number, key and number of examples of each.
        clients: of all sites, with their names, if they have any.
    """
    numbers = {str(number): list[int]() for number in clients.numbers}
    return {"class_names": [], "clients": numbers, "sites": sites, **_names(clients)}


def _names(clients: Clients) -> Record:
    return {"names": {str(number): clients.names[number] for number in clients.numbers}} if clients.names else {}


def read_partition(path: Path, kind: tuple[str, str] = ("class", "classes")) -> Partition | None:
    """The content of the file at `path`; None if it does not exist.

    Args:
        path: of the file.
        kind: singular and plural of the word for a class.

    Raises:
        RunError: the file has other content.
    """
    content = read_json(path) if path.exists() else None
    if not content:
        return None
    try:
        class_names = tuple(str(name) for name in content["class_names"])
        counts = {int(client): tuple(map(int, row)) for client, row in content["clients"].items()}
        held_out = frozenset(map(int, content.get("held_out", {})))
        names = {int(client): name for client, name in content.get("names", {}).items()}
        sites = {
            name: {int(number): int(size) for number, _, size in site["clients"]}
            for name, site in content.get("sites", {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{str(path)!r} does not hold class names and counts by client: {error!r}.") from error
    if not counts or any(len(row) != len(class_names) for row in counts.values()):
        raise RunError(f"{str(path)!r} does not hold one count per class for every client.")
    try:
        clients = Clients.of({*counts, *held_out}, names)
    except DataError as error:
        raise RunError(f"{str(path)!r} is not valid: {error.message}.") from error
    return Partition(class_names, dict(sorted(counts.items())), held_out, clients, kind, sites)


def read_clients(path: Path) -> Clients:
    """The clients of the run with this file; none if it does not exist.

    Raises:
        RunError: the file has other content.
    """
    partition = read_partition(path)
    return Clients() if partition is None else partition.clients
