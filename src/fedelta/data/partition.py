"""Partitioners that ignore labels: equal shares, unequal shares, and the clients in the data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedelta.data.division import ClientIds
from fedelta.data.flwr_rows import rows_of
from fedelta.errors import refuse
from fedelta.seeds import derive, stream
from fedelta.settings import Context, Settings

NumClients = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Iid(Settings):
    """Every client draws from the same distribution; sizes differ by at most one row.

    Args:
        num_clients: number of clients that the rows are divided among.
    """

    name: Literal["iid"] = "iid"
    goes_by_kind: ClassVar[bool] = False
    goes_by_client: ClassVar[bool] = False
    num_clients: NumClients

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        """See `Partitioner.divide`; every row belongs to a client."""
        refuse("`[partition]`", share_problems(len(labels), self.num_clients))
        # The same rows as `IidPartitioner` of flwr-datasets, whose import takes as long as a round of a small run.
        return _sorted(_shuffled(len(labels), seed).tensor_split(self.num_clients))


class Quantity(Settings):
    """Quantity skew: sizes drawn from Dirichlet(alpha), labels IID.

    Every client first gets `min_size` rows, the rest is divided in the drawn proportions.

    Args:
        num_clients: number of clients that the rows are divided among.
        alpha: concentration; the smaller it is, the more the sizes differ.
        min_size: smallest number of rows of a client.

    Source: Li et al. 2021 (arXiv 2102.02079), "q ~ Dir(beta)".
    """

    name: Literal["quantity"] = "quantity"
    goes_by_kind: ClassVar[bool] = False
    goes_by_client: ClassVar[bool] = False
    num_clients: NumClients
    alpha: Alpha
    min_size: int = Field(default=10, ge=1)  # as for `dirichlet`

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        """See `Partitioner.divide`; every row belongs to a client."""
        refuse("`[partition]`", share_problems(len(labels), self.num_clients, self.min_size))
        return _sorted(_shuffled(len(labels), seed).split(self._sizes(len(labels), seed)))

    def _sizes(self, num_rows: int, seed: int) -> list[int]:
        """Sizes that sum to `num_rows`, each at least `min_size`."""
        rng = np.random.default_rng(derive(seed, "partition"))
        shares = rng.dirichlet(np.full(self.num_clients, self.alpha))
        spare = num_rows - self.num_clients * self.min_size
        cuts = np.concatenate([[0.0], np.cumsum(shares)[:-1] * spare, [spare]]).astype(int)
        return [self.min_size + int(size) for size in np.diff(cuts)]


class Natural(Settings):
    """One client for each value of `data.client_column`, in ascending order of the values.

    In a deployment whose sites have data of their own, one for each client of a site.

    Args:
        num_clients: number of clients to draw at random; rows of the others are not used. None: all clients.
    """

    name: Literal["natural"] = "natural"
    goes_by_kind: ClassVar[bool] = False
    goes_by_client: ClassVar[bool] = True
    num_clients: NumClients | None = None

    def problems(self, context: Context) -> list[str]:
        """Reports data that do not name the client of each row."""
        if "data" not in context or context.get("data.client") is not None or context.get("data.may_name_clients"):
            return []
        problem = (
            "`partition.name` is 'natural', which needs `data.client_column`, or a field {client} in "
            "`data.file_pattern` for a folder of files"
        )
        return [problem]

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        """See `Partitioner.divide`."""
        from flwr_datasets.partitioner import NaturalIdPartitioner

        refuse("`[partition]`", self._unmet(client_ids))
        rows = rows_of(NaturalIdPartitioner("client"), {"client": list(client_ids or [])})
        order = torch.randperm(len(rows), generator=stream(seed, "partition", "clients"))
        return dict(enumerate(rows[client] for client in sorted(order[: self.num_clients].tolist())))

    def _unmet(self, client_ids: ClientIds | None) -> list[str]:
        if client_ids is None:
            return ['name is "natural", but `data.client_column` is not set: name the column of client ids']
        num_ids = len(set(client_ids))
        if self.num_clients is not None and self.num_clients > num_ids:
            return [f"num_clients is {self.num_clients}, expected at most {num_ids}, the number of client ids"]
        return []


def share_problems(num_rows: int, num_clients: int, min_size: int = 1) -> list[str]:
    """Messages if there are too few rows to give each client `min_size` rows."""
    if num_clients > num_rows:
        return [f"num_clients is {num_clients}, expected at most {num_rows}, the number of training rows"]
    if num_clients * min_size > num_rows:
        problem = (
            f"min_size is {min_size}, but {num_rows} training rows give {num_clients} clients "
            f"{num_rows // num_clients} rows each on average: lower min_size or num_clients"
        )
        return [problem]
    return []


def _shuffled(num_rows: int, seed: int) -> Tensor:
    return torch.randperm(num_rows, generator=stream(seed, "partition", "order"))


def _sorted(parts: tuple[Tensor, ...]) -> dict[int, Tensor]:
    return {client: of_client.sort().values for client, of_client in enumerate(parts)}
