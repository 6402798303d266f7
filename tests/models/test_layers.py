"""Which layers compute what their class says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from fedelta.models.layers import is_plain, oddity


class Renamed(nn.Linear):
    """Another name, and nothing else."""


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Activated(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def overridden() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = torch.zeros_like  # as libraries do that move layers between devices
    return layer


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(2, 3), nn.Linear),
        (nn.Linear(2, 3, bias=False), nn.Linear),
        (Renamed(2, 3), nn.Linear),
        (nn.Conv2d(2, 2, 3), nn.Conv2d),
        (nn.GroupNorm(1, 2), nn.GroupNorm),
        (nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d),
    ],
)
def test_a_layer_of_a_class_that_changes_nothing_is_plain(layer: nn.Module, kind: type[nn.Module]):
    assert is_plain(layer, kind)
    assert not is_plain(layer, nn.Embedding)


@pytest.mark.parametrize(
    ("layer", "kind", "odd"),
    [
        (Doubled(2, 2), nn.Linear, "is a Doubled that overrides `forward`"),
        (Standardised(2, 2, 3), nn.Conv2d, "is a Standardised that overrides `_conv_forward`"),
        (Activated(1, 2), nn.GroupNorm, "is a Activated that overrides `forward`"),
        (overridden(), nn.Linear, "is a Linear that overrides `forward`"),
        (hooked(), nn.Linear, "has forward hooks"),
        (spectral_norm(nn.Linear(2, 2)), nn.Linear, "has forward hooks"),
        (parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), nn.Conv2d, "is parametrized"),
        (parametrizations.spectral_norm(nn.Linear(2, 2)), nn.Linear, "is parametrized"),
        (parametrizations.orthogonal(nn.Linear(2, 2)), nn.Linear, "is parametrized"),
    ],
)
def test_a_layer_that_does_more_than_its_class_says_why_it_is_not(layer: nn.Module, kind: type[nn.Module], odd: str):
    assert odd in str(oddity(layer, kind))
    assert not is_plain(layer, kind)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_weight_norm_is_seen_too():
    assert "has forward hooks" in str(oddity(weight_norm(nn.Linear(2, 2)), nn.Linear))
