"""Dividing training rows among clients.

Each partitioner is a settings object (partition.py), seeded from the stream (seed, "partition"). The rows are those
that `flwr_datasets.partitioner` gives, but for three points:

- Dirichlet with a minimum size does not give up after ten draws. Of ten draws the one that falls short by the
  fewest rows is taken, and its small clients are topped up (see `Dirichlet`).
- IID and quantity skew divide the rows in a seeded random order; there they are cut in the order of the file.
- What cannot be done is refused before the attempt, with all reasons at once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedelta.data.partition import Dirichlet, Iid, Natural, PartitionSettings, Pathological, Quantity
from fedelta.data.top_up import top_up
from fedelta.errors import DataError, refuse
from fedelta.seeds import derive, stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

logger = logging.getLogger("fedelta")

# flwr-datasets draws as often before it gives up.
_NUM_DRAWS = 10


def divide(
    settings: PartitionSettings,
    labels: Tensor,
    client_ids: Sequence[int | str] | None,
    *,
    seed: int,
) -> dict[int, Tensor]:
    """The rows of each client.

    Args:
        settings: how to divide.
        labels: int64 of shape [N], the label of each row.
        client_ids: the natural client of each row, N values; only `Natural` reads it.
        seed: of the run.

    Returns:
        Client id (0, 1, ..., ascending) to its rows (int64, ascending). No client is empty, no row belongs to
        two clients, and every row to one (but see `Pathological` and `Natural`).

    Raises:
        DataError: the data cannot be divided like that; names every reason.
    """
    refuse("`[partition]`", _problems(settings, labels, client_ids))
    if isinstance(settings, Natural):
        return _natural(settings, client_ids or [], seed)
    if isinstance(settings, Dirichlet):
        return _dirichlet(settings, labels, seed)
    if isinstance(settings, Pathological):
        return _pathological(settings, labels, seed)
    return _shuffled(settings, len(labels), seed)


def _problems(settings: PartitionSettings, labels: Tensor, client_ids: Sequence[int | str] | None) -> list[str]:
    if isinstance(settings, Natural):
        return _natural_problems(settings, client_ids)
    num_rows, num_clients, problems = len(labels), settings.num_clients, []
    if num_clients > num_rows:
        problems.append(f"num_clients is {num_clients}, expected at most {num_rows}, the number of training rows")
    elif isinstance(settings, Dirichlet | Quantity) and num_clients * settings.min_size > num_rows:
        problems.append(
            f"min_size is {settings.min_size}, but {num_rows} training rows give {num_clients} clients "
            f"{num_rows // num_clients} rows each on average: lower min_size or num_clients"
        )
    num_labels = len(labels.unique())
    if isinstance(settings, Pathological) and settings.labels_per_client > num_labels:
        problems.append(
            f"labels_per_client is {settings.labels_per_client}, expected at most {num_labels}, "
            "the number of labels among the training rows"
        )
    return problems


def _natural_problems(settings: Natural, client_ids: Sequence[int | str] | None) -> list[str]:
    if client_ids is None:
        return ['name is "natural", but `data.client_column` is not set: name the column of client ids']
    found = len(set(client_ids))
    if settings.num_clients is not None and settings.num_clients > found:
        return [f"num_clients is {settings.num_clients}, expected at most {found}, the number of client ids"]
    return []


def _natural(settings: Natural, client_ids: Sequence[int | str], seed: int) -> dict[int, Tensor]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    rows = _rows(NaturalIdPartitioner("client"), {"client": list(client_ids)})
    order = torch.randperm(len(rows), generator=stream(seed, "partition", "clients"))
    return dict(enumerate(rows[client] for client in sorted(order[: settings.num_clients].tolist())))


def _pathological(settings: Pathological, labels: Tensor, seed: int) -> dict[int, Tensor]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    drawn = PathologicalPartitioner(
        settings.num_clients,
        "label",
        settings.labels_per_client,
        class_assignment_mode="first-deterministic",
        seed=derive(seed, "partition"),
    )
    try:
        rows = _rows(drawn, {"label": labels.tolist()})
    except ValueError as error:
        # The only rule left that data can break: one row of a label for each client that drew it.
        rarest = int(labels.unique(return_counts=True)[1].min())
        raise DataError(
            f"`[partition]`: a label was drawn by more of the {settings.num_clients} clients than it has training "
            f"rows; the rarest label has {rarest}",
            hint="lower `partition.num_clients` or `partition.labels_per_client`",
        ) from error
    unused = len(labels) - sum(len(of_client) for of_client in rows.values())
    if unused:
        logger.warning(
            "%d of %d training rows have labels that no client drew and are not used: "
            "raise `partition.num_clients` or `partition.labels_per_client`",
            unused,
            len(labels),
        )
    return rows


def _shuffled(settings: Iid | Quantity, num_rows: int, seed: int) -> dict[int, Tensor]:
    order = torch.randperm(num_rows, generator=stream(seed, "partition", "order"))
    if isinstance(settings, Iid):
        # As `IidPartitioner` of flwr-datasets cuts a table; importing that takes as long as a small run's round.
        parts = order.tensor_split(settings.num_clients)
    else:
        parts = order.split(_quantities(settings, num_rows, seed))
    return {client: of_client.sort().values for client, of_client in enumerate(parts)}


def _quantities(settings: Quantity, num_rows: int, seed: int) -> list[int]:
    """Sizes that sum to `num_rows`, each at least `min_size`."""
    rng = np.random.default_rng(derive(seed, "partition"))
    shares = rng.dirichlet(np.full(settings.num_clients, settings.alpha))
    spare = num_rows - settings.num_clients * settings.min_size
    cuts = np.concatenate([[0.0], np.cumsum(shares)[:-1] * spare, [spare]]).astype(int)
    return [settings.min_size + int(size) for size in np.diff(cuts)]


def _dirichlet(settings: Dirichlet, labels: Tensor, seed: int) -> dict[int, Tensor]:
    best: dict[int, Tensor] = {}
    fewest = len(labels) + 1
    for number in range(_NUM_DRAWS):
        rows = draw(settings, labels, derive(seed, "partition", number))
        lacking = sum(max(0, settings.min_size - len(of_client)) for of_client in rows.values())
        if rows and lacking < fewest:
            best, fewest = rows, lacking
        if fewest == 0:
            return best
    if not best:
        raise DataError(
            f"`[partition]`: at alpha {settings.alpha}, balancing leaves labels that no client may take",
            hint="raise `partition.alpha`, or set `partition.self_balancing` to false",
        )
    return top_up(best, labels, settings.min_size)


def draw(settings: Dirichlet, labels: Tensor, seed: int) -> dict[int, Tensor]:
    """One draw without a minimum size; empty where balancing leaves no client that could take a label.

    The rows are those of `DirichletPartitioner` of flwr-datasets: importing that takes longer than a thousand draws.
    """
    rng, label_of = np.random.default_rng(seed), labels.numpy()
    alphas = np.full(settings.num_clients, settings.alpha)
    owner, sizes = np.empty(len(labels), dtype=np.int64), np.zeros(settings.num_clients, dtype=np.int64)
    for label in np.unique(label_of):
        rows = np.flatnonzero(label_of == label)
        shares = rng.dirichlet(alphas)
        if settings.self_balancing:
            shares[sizes > len(labels) / settings.num_clients] = 0.0
            total = np.cumsum(shares)[-1]  # in order: the sum in pairs of `np.sum` has other last digits
            if not total:
                return {}
            shares /= total
        cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(int)
        counts = np.diff(cuts, prepend=0, append=len(rows))
        owner[rows] = np.repeat(np.arange(settings.num_clients), counts)
        sizes += counts
    return {client: torch.from_numpy(np.flatnonzero(owner == client)) for client in range(settings.num_clients)}


def _rows(partitioner: Partitioner, columns: Mapping[str, list[object]]) -> dict[int, Tensor]:
    """Runs a partitioner of flwr-datasets on a table of nothing but `columns` and the row numbers."""
    from datasets import Dataset

    num_rows = len(next(iter(columns.values())))
    partitioner.dataset = Dataset.from_dict({**columns, "place": range(num_rows)})
    # The natural partitioner draws a progress bar that cannot be switched off; the pathological one
    # warns of unused labels, which `_pathological` says in our words.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = _places(partitioner)
    return {client: torch.from_numpy(np.sort(of_client)) for client, of_client in enumerate(places)}


def _places(partitioner: Partitioner) -> list[NDArray[np.int64]]:
    """The places of each client, in any order, from what the partitioner has noted where that can be trusted.

    Loading a partition writes a table, two milliseconds for each client. The note is private to flwr-datasets:
    it counts only if it has an entry for each client, and its largest entry is what loading that client gives.
    """
    num_clients = partitioner.num_partitions
    # The natural partitioner makes its note when the first partition is loaded.
    first = _load(partitioner, 0)
    noted = vars(partitioner).get("_partition_id_to_indices")
    if isinstance(noted, dict) and noted.keys() == set(range(num_clients)):
        places = [np.asarray(noted[client], dtype=np.int64) for client in range(num_clients)]
        largest = max(range(num_clients), key=lambda client: len(places[client]))
        if np.array_equal(places[largest], _load(partitioner, largest)):
            return places
    return [first, *(_load(partitioner, client) for client in range(1, num_clients))]


def _load(partitioner: Partitioner, client: int) -> NDArray[np.int64]:
    places = partitioner.load_partition(client).with_format("numpy")["place"][:]
    return np.asarray(places, dtype=np.int64)
