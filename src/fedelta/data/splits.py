"""Draws rows of a data set with equal shares of each stratum (for classification: of each class)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from fedelta.tasks.targets import Targets, strata_of

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """Rows of a data set.

    Args:
        dataset: N rows.
        targets: of these rows.
        numbers: int64 of shape [N], the number of each row in the split that it was read from, from 0.
    """

    dataset: Dataset
    targets: Targets
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, places: Tensor) -> Rows:
        """The rows at `places` (int64), in that order."""
        return Rows(self.dataset.select(places.tolist()), self.targets.select(places), self.numbers[places])


def hold_out(rows: Rows, fraction: float, generator: Generator) -> tuple[Rows, Rows]:
    """Training and test rows; `fraction` of the rows, rounded up, become test rows, but never all of them."""
    num_rows = len(rows)
    count = min(math.ceil(fraction * num_rows), num_rows - 1)
    held_out = stratified(strata_of(rows.targets), count, generator)
    is_train = torch.ones(num_rows, dtype=torch.bool)
    is_train[held_out] = False
    return rows.select(is_train.nonzero().flatten()), rows.select(held_out)


def limit(rows: Rows, max_examples: int | None, generator: Generator) -> Rows:
    """At most `max_examples` rows, drawn at random; None: no limit."""
    if max_examples is None or max_examples >= len(rows):
        return rows
    return rows.select(stratified(strata_of(rows.targets), max_examples, generator))


def stratified(strata: Tensor, count: int, generator: Generator) -> Tensor:
    """`count` positions in `strata`, ascending, drawn so that each stratum keeps its share.

    A stratum with n of the N rows gets the integer part of count * n / N; what remains goes to the strata with the
    largest remainders, ties to the smaller number.

    >>> strata = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> strata[stratified(strata, 3, torch.Generator().manual_seed(0))]
    tensor([0, 0, 1])
    """
    kinds, sizes = strata.unique(return_counts=True)
    shares = [divmod(count * size, len(strata)) for size in sizes.tolist()]
    left_over = count - sum(whole for whole, _ in shares)
    largest_first = sorted(range(len(shares)), key=lambda index: (-shares[index][1], index))
    drawn = []
    for index, kind in enumerate(kinds.tolist()):
        places = (strata == kind).nonzero().flatten()
        order = torch.randperm(len(places), generator=generator)
        number = shares[index][0] + (index in largest_first[:left_over])
        drawn.append(places[order[:number]])
    return torch.cat(drawn).sort().values
