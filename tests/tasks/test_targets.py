from __future__ import annotations

import torch
from tests.builders import Kindless
from torch import tensor

from fedelta.tasks.labels import Labels
from fedelta.tasks.targets import strata_of


def test_the_strata_of_labels_are_the_classes():
    assert strata_of(Labels(tensor([2, 0, 2]))).tolist() == [2, 0, 2]


def test_targets_without_strata_have_one_stratum():
    assert strata_of(Kindless(torch.randn(4))).tolist() == [0, 0, 0, 0]
