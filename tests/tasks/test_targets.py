from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, tensor

from fedelta.tasks.labels import Labels
from fedelta.tasks.targets import strata_of


@dataclass(frozen=True)
class Kindless:
    """Targets that know no kinds of rows."""

    values: Tensor
    strata: None = None

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        return self.values[rows]

    def select(self, rows: Tensor) -> Kindless:
        return Kindless(self.values[rows])


def test_the_kinds_of_labelled_rows_are_their_classes():
    assert strata_of(Labels(tensor([2, 0, 2]))).tolist() == [2, 0, 2]


def test_rows_without_kinds_are_all_of_one():
    assert strata_of(Kindless(torch.randn(4))).tolist() == [0, 0, 0, 0]
