"""What only a finished model is asked: measures of the whole evaluated set, and of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# A value that a part does not have, such as the recall of a class without examples, is None.
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Answered:
    """A batch of what a model gives for an evaluated set.

    Args:
        rows: places in the set, int64 of shape [B].
        outputs: of the model, batch first; of a model with exits at its last.
        targets: likewise.
    """

    rows: Tensor
    outputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Confusion:
    """How often which class was taken for which.

    Args:
        class_names: in label order.
        counts: a row for each true class, a column for each predicted one.
        num_examples: sum of all counts.
    """

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    num_examples: int

    def as_record(self) -> dict[str, object]:
        """For JSON."""
        return {
            "class_names": list(self.class_names),
            "counts": [list(row) for row in self.counts],
            "num_examples": self.num_examples,
        }


@dataclass(frozen=True)
class Details:
    """Measures of a finished model on the evaluated set.

    Args:
        measures: name to value, those of `Evaluation` among them; what is not defined on the set is left out.
        by_class: class to its measures and `num_examples`; nothing where the task has no classes.
        by_client: number of a client to the measures on its rows of the set and `num_examples`; nothing where the rows
            do not say whose they are.
        confusion: None where the task has no classes.
    """

    measures: Mapping[str, float]
    by_class: Mapping[str, Values] = field(default_factory=dict)
    by_client: Mapping[int, Values] = field(default_factory=dict)
    confusion: Confusion | None = None

    def as_record(self) -> dict[str, object]:
        """For JSON: `measures`, `by_class` and `by_client`."""
        return {
            "measures": dict(self.measures),
            "by_class": {name: dict(values) for name, values in self.by_class.items()},
            "by_client": {str(client): dict(values) for client, values in self.by_client.items()},
        }


def by_owner(rows: Tensor, clients: Tensor | None) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each client, in ascending order, and which of the answers are to its rows.

    Args:
        rows: places of the answers in the evaluated set, int64 of shape [N].
        clients: number of the client of each row of the set, -1 for none; None where that is not known.

    >>> import torch
    >>> [(client, places.tolist()) for client, places in by_owner(torch.tensor([2, 0, 1]), torch.tensor([5, -1, 5]))]
    [(5, [0, 1])]
    """
    if clients is None:
        return
    owner = clients[rows].numpy()
    order = np.argsort(owner, kind="stable")
    numbers, starts = np.unique(owner[order], return_index=True)
    for client, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        if client >= 0:
            yield client, places


def mean_details(parts: Sequence[Details]) -> Details:
    """The means over models that were asked about the same examples; confusions are added."""
    first = parts[0]
    if len(parts) == 1:
        return first
    confusions = [part.confusion for part in parts if part.confusion is not None]
    measures = _mean([part.measures for part in parts])
    return Details(
        {name: value for name, value in measures.items() if value is not None},
        {name: _mean([part.by_class[name] for part in parts]) for name in first.by_class},
        {client: _mean([part.by_client[client] for part in parts]) for client in first.by_client},
        _sum(confusions) if confusions else None,
    )


def _mean(parts: Sequence[Values]) -> dict[str, float | None]:
    """The mean of each value; None where some part has none."""
    means: dict[str, float | None] = {}
    for name in parts[0]:
        values = [part.get(name) for part in parts]
        known = [value for value in values if value is not None]
        if name == "num_examples":
            means[name] = values[0]
        else:
            means[name] = fmean(known) if len(known) == len(values) else None
    return means


def _sum(parts: Sequence[Confusion]) -> Confusion:
    counts = tuple(
        tuple(map(sum, zip(*rows, strict=True))) for rows in zip(*(part.counts for part in parts), strict=True)
    )
    return Confusion(parts[0].class_names, counts, sum(part.num_examples for part in parts))
