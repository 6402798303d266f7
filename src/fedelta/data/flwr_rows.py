"""Runs partitioners of `flwr_datasets` on a table that has only the columns they read.

They are seeded from the stream (seed, "partition"), and differ from what flwr-datasets does alone in three points:

- Dirichlet with a minimum size does not give up after ten draws (see `Dirichlet`).
- IID and quantity skew divide the rows in a seeded random order; there they are cut in the order of the file.
- What cannot be done is refused before the attempt, with all reasons at once.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def rows_of(partitioner: Partitioner, columns: Mapping[str, list[object]]) -> dict[int, Tensor]:
    """The rows of each client, int64, ascending.

    Args:
        partitioner: without a data set.
        columns: by name; all of the same length.
    """
    from datasets import Dataset

    num_rows = len(next(iter(columns.values())))
    partitioner.dataset = Dataset.from_dict({**columns, "place": range(num_rows)})
    # The natural partitioner draws a progress bar that cannot be switched off; the pathological one
    # warns of unused labels, for which `Pathological` has a message.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = _places(partitioner)
    return {client: torch.from_numpy(np.sort(of_client)) for client, of_client in enumerate(places)}


def _places(partitioner: Partitioner) -> list[NDArray[np.int64]]:
    """The rows of each client, in any order, from the partitioner's internal table if it can be trusted.

    Loading a partition takes two milliseconds per client. The table is private to flwr-datasets, so it is used only if
    it has an entry for each client and agrees with the loaded partition of the largest one.
    """
    num_clients = partitioner.num_partitions
    # The natural partitioner fills its table when the first partition is loaded.
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
