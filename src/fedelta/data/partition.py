"""Which partitioner divides the training rows among clients: the `[partition]` section.

Settings only; what they do is in division.py. Where the task has classes, the labels here are these; where it has none,
they are the kinds of rows that it knows (`Targets.strata`), such as ranges of numbers. `goes_by_kind` tells which
partitioners cannot do without.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedelta.settings import Context, Settings

NumClients = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Iid(Settings):
    """Every client draws from the same distribution; sizes differ by at most one row."""

    name: Literal["iid"] = "iid"
    goes_by_kind: ClassVar[bool] = False
    num_clients: NumClients


class Dirichlet(Settings):
    """Label skew: each label's rows are divided in proportions drawn from Dirichlet(alpha).

    A draw in which a client has fewer than `min_size` rows is repeated, ten times at most. At small alpha
    with many clients no draw succeeds (64 clients on 1,437 digits at alpha 0.1: six to twelve clients in
    every draw have fewer than 3 rows). Then the draw that lacks the fewest rows is kept, and its
    small clients get rows of the labels they already hold from the largest clients that have them to spare,
    of any label where nobody has. Every other client keeps what it drew.

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
    num_clients: NumClients
    alpha: Alpha
    min_size: int = Field(default=10, ge=1)  # `min_require_size` of NIID-Bench (Li et al. 2021), also flwr-datasets'
    self_balancing: bool = False  # flwr-datasets


class Pathological(Settings):
    """Label skew: every client holds exactly `labels_per_client` labels.

    The first label of client i is label i modulo the number of labels, the others are drawn; the rows of a
    label are divided equally among its clients. Rows of a label that no client drew are not used, with a
    warning; that can only happen with fewer clients than labels.

    Source: McMahan et al. 2017 for the idea; Li et al. 2021 (arXiv 2102.02079), "#C = k", for the drawing.
    """

    name: Literal["pathological"] = "pathological"
    goes_by_kind: ClassVar[bool] = True
    num_clients: NumClients
    labels_per_client: int = Field(default=2, ge=1)  # McMahan et al. 2017: two digits per client


class Natural(Settings):
    """One client for each value of `data.client_column`, in ascending order of the values.

    Args:
        num_clients: so many of them take part, drawn at random; the rows of the others are not used. None: all.
    """

    name: Literal["natural"] = "natural"
    goes_by_kind: ClassVar[bool] = False
    num_clients: NumClients | None = None

    def problems(self, context: Context) -> list[str]:
        """That nothing says whose a row is."""
        if "data" not in context or context.get("data.client") is not None or context.get("data.may_name_clients"):
            return []
        problem = (
            "`partition.name` is 'natural', which needs `data.client_column`, or a field {client} in "
            "`data.file_pattern` for a folder of files"
        )
        return [problem]


class Quantity(Settings):
    """Quantity skew: sizes drawn from Dirichlet(alpha), labels IID.

    Every client first gets `min_size` rows, the rest is divided in the drawn proportions.

    Source: Li et al. 2021 (arXiv 2102.02079), "q ~ Dir(beta)".
    """

    name: Literal["quantity"] = "quantity"
    goes_by_kind: ClassVar[bool] = False
    num_clients: NumClients
    alpha: Alpha
    min_size: int = Field(default=10, ge=1)  # as for `dirichlet`


PartitionSettings = Iid | Dirichlet | Pathological | Natural | Quantity
