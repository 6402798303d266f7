"""Drawing rows of a labelled data set with the same share of each class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """Rows of a data set.

    Args:
        dataset: N rows.
        labels: int64 of shape [N].
        numbers: int64 of shape [N], the number of each row where it was read, from 0.
    """

    dataset: Dataset
    labels: Tensor
    numbers: Tensor

    def select(self, places: Tensor) -> Rows:
        """The rows at `places` (int64), in that order."""
        return Rows(self.dataset.select(places.tolist()), self.labels[places], self.numbers[places])


def hold_out(rows: Rows, fraction: float, generator: Generator) -> tuple[Rows, Rows]:
    """Training and test rows; `fraction` of them, rounded up, become test rows, and at least one stays."""
    count = min(math.ceil(fraction * len(rows.labels)), len(rows.labels) - 1)
    held_out = stratified(rows.labels, count, generator)
    kept = torch.ones(len(rows.labels), dtype=torch.bool)
    kept[held_out] = False
    return rows.select(kept.nonzero().flatten()), rows.select(held_out)


def limit(rows: Rows, max_examples: int | None, generator: Generator) -> Rows:
    """At most `max_examples` rows, drawn; None is no limit."""
    if max_examples is None or max_examples >= len(rows.labels):
        return rows
    return rows.select(stratified(rows.labels, max_examples, generator))


def stratified(labels: Tensor, count: int, generator: Generator) -> Tensor:
    """`count` places of `labels`, ascending, drawn so that each class keeps its share.

    A class of n of the N labels gets the whole part of count * n / N places; the places left over go to the
    classes with the largest remainder, the smaller label first.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified(labels, 3, torch.Generator().manual_seed(0))]
    tensor([0, 0, 1])
    """
    classes, sizes = labels.unique(return_counts=True)
    shares = [divmod(count * size, len(labels)) for size in sizes.tolist()]
    left_over = count - sum(whole for whole, _ in shares)
    largest_first = sorted(range(len(shares)), key=lambda index: (-shares[index][1], index))
    drawn = []
    for index, label in enumerate(classes.tolist()):
        places = (labels == label).nonzero().flatten()
        order = torch.randperm(len(places), generator=generator)
        number = shares[index][0] + (index in largest_first[:left_over])
        drawn.append(places[order[:number]])
    return torch.cat(drawn).sort().values
