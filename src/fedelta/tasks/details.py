"""Detailed measures of a finished model: over the whole evaluated set, by class and by client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Measure to value; None where it is undefined, such as the recall of a class without examples.
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Answered:
    """A batch of the evaluated set with the model's outputs.

    Args:
        rows: row numbers in the set, int64 of shape [B].
        outputs: of the model, batch first; of the last exit if it has exits.
        targets: of the same rows, batch first.
    """

    rows: Tensor
    outputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix.

    Args:
        class_names: in label order.
        counts: one row per true class, one column per predicted class.
        num_examples: sum of all counts.
        num_models: models that answered every example, over which counts are summed; several if clients have parts of
            their own.
    """

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    num_examples: int
    num_models: int = 1

    def as_record(self) -> dict[str, object]:
        """A dictionary that JSON can hold."""
        return {
            "class_names": list(self.class_names),
            "counts": [list(row) for row in self.counts],
            "num_examples": self.num_examples,
            "num_models": self.num_models,
        }


@dataclass(frozen=True)
class Details:
    """Measures of a finished model on the evaluated set.

    Args:
        measures: name to value, including those of `Evaluation`; measures that are undefined on the set are left out.
        by_class: class to its measures and `num_examples`; empty if the task has no classes.
        by_client: client number to the measures on its rows and `num_examples`; empty if the clients of the rows are
            unknown.
        confusion: None if the task has no classes.
        mistakes: a few wrong answers with their examples, for people; empty if they are not kept.
    """

    measures: Mapping[str, float]
    by_class: Mapping[str, Values] = field(default_factory=dict)
    by_client: Mapping[int, Values] = field(default_factory=dict)
    confusion: Confusion | None = None
    mistakes: Sequence[Mapping[str, object]] = ()

    def as_record(self) -> dict[str, object]:
        """A dictionary that JSON can hold: `measures`, `by_class` and `by_client`."""
        return {
            "measures": dict(self.measures),
            "by_class": {name: dict(values) for name, values in self.by_class.items()},
            "by_client": {str(client): dict(values) for client, values in self.by_client.items()},
        }


def by_client(rows: Tensor, clients: Tensor | None) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Client numbers in ascending order, each with the positions in `rows` that belong to it.

    Args:
        rows: row numbers in the evaluated set, int64 of shape [N].
        clients: client number of each row of the set, -1 for none; None if unknown.

    >>> import torch
    >>> [(client, places.tolist()) for client, places in by_client(torch.tensor([2, 0, 1]), torch.tensor([5, -1, 5]))]
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
    """The mean of each measure over models evaluated on the same examples; confusion matrices are summed."""
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
    """The mean of each value; None if it is undefined in any part."""
    means: dict[str, float | None] = {}
    for name in parts[0]:
        values = [part.get(name) for part in parts]
        defined = [value for value in values if value is not None]
        if name == "num_examples":
            means[name] = values[0]
        else:
            means[name] = fmean(defined) if len(defined) == len(values) else None
    return means


def _sum(parts: Sequence[Confusion]) -> Confusion:
    counts = tuple(
        tuple(map(sum, zip(*rows, strict=True))) for rows in zip(*(part.counts for part in parts), strict=True)
    )
    num_examples, num_models = sum(part.num_examples for part in parts), sum(part.num_models for part in parts)
    return Confusion(parts[0].class_names, counts, num_examples, num_models)
