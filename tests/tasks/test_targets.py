from __future__ import annotations

import torch
from tests.builders import Kindless
from torch import tensor

from fedelta.tasks.labels import Labels
from fedelta.tasks.targets import strata_of


def test_the_kinds_of_labelled_rows_are_their_classes():
    assert strata_of(Labels(tensor([2, 0, 2]))).tolist() == [2, 0, 2]


def test_rows_without_kinds_are_all_of_one():
    assert strata_of(Kindless(torch.randn(4))).tolist() == [0, 0, 0, 0]
