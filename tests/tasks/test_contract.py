"""What a task gives is checked, and made the same in every process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from fedelta.errors import PluginError
from fedelta.tasks.base import Sums
from fedelta.tasks.classification import Classification
from fedelta.tasks.contract import sums_of, weights_of


class InTensors(Classification):
    """Gives tensors and NumPy's numbers as sums."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        return Sums({"accuracy": (outputs.double().sum(), np.int64(len(targets)))})  # type: ignore[dict-item]


class Weighty(Classification):
    """Gives one weight for all rows."""

    def weights(self, targets: Tensor) -> Tensor | None:
        return torch.ones(1)


def test_a_plug_in_with_too_few_weights_is_named():
    with pytest.raises(
        PluginError, match=r"`weights` returned a tensor \(1,\), expected None, or a weight for each of 2"
    ):
        weights_of(Weighty(), torch.zeros(2))


def test_sums_become_numbers_that_can_cross_to_another_process():
    sums = sums_of(InTensors(), torch.full((2, 2), 0.1), torch.zeros(2))
    assert json.loads(json.dumps(dict(sums.totals))) == {"accuracy": [float(torch.full((4,), 0.1).double().sum()), 2]}
