"""Partitioners that give clients different shares of the labels."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedelta.data.division import ClientIds
from fedelta.data.flwr_rows import rows_of
from fedelta.data.partition import Alpha, NumClients, share_problems
from fedelta.data.top_up import top_up
from fedelta.errors import DataError, refuse
from fedelta.seeds import derive
from fedelta.settings import Settings

logger = logging.getLogger("fedelta")

# As many as in flwr-datasets.
_NUM_DRAWS = 10


class Dirichlet(Settings):
    """Label skew: each label's rows are divided in proportions drawn from Dirichlet(alpha).

    A draw in which a client has fewer than `min_size` rows is repeated, ten times at most. At small alpha
    with many clients no draw succeeds (64 clients on 1,437 digits at alpha 0.1: six to twelve clients in
    every draw have fewer than 3 rows). Then the draw that lacks the fewest rows is kept, and its
    small clients get rows of the labels they already hold from the largest clients that have them to spare,
    or of any label if no client has such rows. All other clients keep their draw.

    Args:
        num_clients: number of clients.
        alpha: concentration, > 0; small means few labels per client, large means IID.
        min_size: fewest rows of a client.
        self_balancing: give no further rows to a client that has more than the average.

    Source: Yurochkin et al. 2019 (arXiv 1905.12022) for the draw; Li et al. 2021 (arXiv 2102.02079) for the
    minimum size and the balancing. The topping up is ours.
    """

    name: Literal["dirichlet"] = "dirichlet"
    goes_by_kind: ClassVar[bool] = True
    goes_by_client: ClassVar[bool] = False
    num_clients: NumClients
    alpha: Alpha
    min_size: int = Field(default=10, ge=1)  # `min_require_size` of NIID-Bench (Li et al. 2021), also flwr-datasets'
    self_balancing: bool = False  # flwr-datasets

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        """See `Partitioner.divide`; every row belongs to a client."""
        refuse("`[partition]`", share_problems(len(labels), self.num_clients, self.min_size))
        best: dict[int, Tensor] = {}
        fewest = len(labels) + 1
        for attempt in range(_NUM_DRAWS):
            rows = self.draw(labels, derive(seed, "partition", attempt))
            lacking = sum(max(0, self.min_size - len(of_client)) for of_client in rows.values())
            if rows and lacking < fewest:
                best, fewest = rows, lacking
            if fewest == 0:
                return best
        if not best:
            raise DataError(
                f"`[partition]`: at alpha {self.alpha}, balancing leaves labels that no client may take",
                hint="raise `partition.alpha`, or set `partition.self_balancing` to false",
            )
        return top_up(best, labels, self.min_size)

    def draw(self, labels: Tensor, seed: int) -> dict[int, Tensor]:
        """One draw without a minimum size; empty if balancing leaves no client to take a label.

        The rows are those of `DirichletPartitioner` of flwr-datasets, whose import takes longer than a thousand draws.
        """
        rng, label_of = np.random.default_rng(seed), labels.numpy()
        owner, sizes = np.empty(len(labels), dtype=np.int64), np.zeros(self.num_clients, dtype=np.int64)
        for label in np.unique(label_of):
            rows = np.flatnonzero(label_of == label)
            shares = rng.dirichlet(np.full(self.num_clients, self.alpha))
            if self.self_balancing:
                shares[sizes > len(labels) / self.num_clients] = 0.0
                total = np.cumsum(shares)[-1]  # summed in order, because `np.sum` adds in pairs and rounds differently
                if not total:
                    return {}
                shares /= total
            cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(int)
            counts = np.diff(cuts, prepend=0, append=len(rows))
            owner[rows] = np.repeat(np.arange(self.num_clients), counts)
            sizes += counts
        return {client: torch.from_numpy(np.flatnonzero(owner == client)) for client in range(self.num_clients)}


class Pathological(Settings):
    """Label skew: every client holds exactly `labels_per_client` labels.

    The first label of client i is label i modulo the number of labels, the others are drawn; the rows of a
    label are divided equally among its clients. Rows of a label that no client drew are not used, with a
    warning; that can only happen with fewer clients than labels.

    Args:
        num_clients: number of clients that the rows are divided among.
        labels_per_client: number of labels that each client has.

    Source: McMahan et al. 2017 for the idea; Li et al. 2021 (arXiv 2102.02079), "#C = k", for the drawing.
    """

    name: Literal["pathological"] = "pathological"
    goes_by_kind: ClassVar[bool] = True
    goes_by_client: ClassVar[bool] = False
    num_clients: NumClients
    labels_per_client: int = Field(default=2, ge=1)  # McMahan et al. 2017: two digits per client

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        """See `Partitioner.divide`."""
        refuse("`[partition]`", share_problems(len(labels), self.num_clients) + self._unmet(labels))
        rows = self._drawn(labels, seed)
        unused = len(labels) - sum(len(of_client) for of_client in rows.values())
        if unused:
            logger.warning(
                "%d of %d training rows have labels that no client drew and are not used: "
                "raise `partition.num_clients` or `partition.labels_per_client`",
                unused,
                len(labels),
            )
        return rows

    def _drawn(self, labels: Tensor, seed: int) -> dict[int, Tensor]:
        from flwr_datasets.partitioner import PathologicalPartitioner

        drawn = PathologicalPartitioner(
            self.num_clients,
            "label",
            self.labels_per_client,
            class_assignment_mode="first-deterministic",
            seed=derive(seed, "partition"),
        )
        try:
            return rows_of(drawn, {"label": labels.tolist()})
        except ValueError as error:
            # The only remaining reason: a label has fewer rows than clients that drew it.
            rarest = int(labels.unique(return_counts=True)[1].min())
            raise DataError(
                f"`[partition]`: a label was drawn by more of the {self.num_clients} clients than it has training "
                f"rows; the rarest label has {rarest}",
                hint="lower `partition.num_clients` or `partition.labels_per_client`",
            ) from error

    def _unmet(self, labels: Tensor) -> list[str]:
        num_labels = len(labels.unique())
        if self.labels_per_client <= num_labels:
            return []
        problem = (
            f"labels_per_client is {self.labels_per_client}, expected at most {num_labels}, "
            "the number of labels among the training rows"
        )
        return [problem]
