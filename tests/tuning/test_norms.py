"""Norms with lanes: statistics by hand, padding, and the three policies."""

from __future__ import annotations

import pytest
import torch
from tests.builders import ARCHITECTURES, tiny_backbone, tiny_inputs
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.norms import LaneBatchNorm, LaneGroupNorm
from fedelta.tuning.parallel import Parallel


def norm(lanes: Lanes, channels: int = 1) -> LaneBatchNorm:
    return LaneBatchNorm(lanes, nn.BatchNorm2d(channels, eps=1e-12))


def images(*values: float) -> Tensor:
    """One channel, one pixel."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


@torch.no_grad()
def test_each_lane_has_the_statistics_of_its_own_samples():
    # Lane 0: (1, 3): mean 2, variance 1 (2 unbiased). Lane 1: (10, 30): mean 20, variance 100 (200 unbiased).
    lanes = Lanes(2)
    layer = norm(lanes)
    with lanes.training([2, 2], [stream(0), stream(1)]):
        y = layer(images(1, 3, 10, 30))
    assert y.flatten().tolist() == pytest.approx([-1, 1, -1, 1])
    # A tenth of the way from mean 0 and variance 1.
    assert layer.running_mean.flatten().tolist() == pytest.approx([0.2, 2.0])
    assert layer.running_var.flatten().tolist() == pytest.approx([0.9 + 0.2, 0.9 + 20])


@torch.no_grad()
def test_lanes_of_unequal_length_have_the_statistics_of_their_own_samples():
    lanes = Lanes(2)
    layer = norm(lanes)
    with lanes.training([2, 3], [stream(0), stream(1)]):
        y = layer(images(1, 3, 10, 20, 30))
    assert y.flatten()[:2].tolist() == pytest.approx([-1, 1])
    assert layer.running_mean.flatten().tolist() == pytest.approx([0.2, 2.0])
    assert layer.running_var.flatten().tolist() == pytest.approx([0.9 + 0.2, 0.9 + 10])


@torch.no_grad()
def test_lanes_that_are_not_in_use_keep_their_statistics():
    lanes = Lanes(3)
    layer = norm(lanes)
    with lanes.training([2], [stream(0)]):
        layer(images(1, 3))
    assert layer.running_mean.flatten().tolist() == pytest.approx([0.2, 0, 0])


@torch.no_grad()
def test_outside_of_training_the_running_statistics_are_used_and_stay():
    lanes = Lanes(2)
    layer = norm(lanes)
    layer.running_mean.copy_(torch.tensor([[2.0], [20.0]]))
    layer.running_var.copy_(torch.tensor([[4.0], [100.0]]))
    assert layer(images(4, 40)).flatten().tolist() == pytest.approx([1, 2])
    assert layer.running_mean.flatten().tolist() == [2, 20]


@torch.no_grad()
def test_a_variance_that_was_rounded_below_zero_gives_finite_outputs():
    lanes = Lanes(1)
    layer = LaneBatchNorm(lanes, nn.BatchNorm2d(1))
    layer.running_var.fill_(-0.001)
    assert layer(images(1)).isfinite().all()


@pytest.mark.parametrize("lanes", [1, 2])
@torch.no_grad()
def test_a_single_value_a_channel_is_its_own_mean(lanes: int):
    shared = Lanes(lanes)
    layer = LaneBatchNorm(shared, nn.BatchNorm2d(1))
    with shared.training([1] * lanes, [stream(0)] * lanes):
        y = layer(images(*[5.0] * lanes))
    assert y.abs().max() == 0
    assert layer.running_mean.flatten().tolist() == pytest.approx([0.5] * lanes)
    assert layer.running_var.flatten().tolist() == [1] * lanes


def test_one_lane_trains_as_torchs_own_batch_norm_does():
    lanes, reference = Lanes(1), nn.BatchNorm2d(3).train()
    norm = LaneBatchNorm(lanes, nn.BatchNorm2d(3))
    x = torch.randn(5, 3, 4, 2, generator=stream(0))
    with lanes.training([5], [stream(0)]):
        torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.running_var[0], reference.running_var)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x))


@torch.no_grad()
def test_group_norm_has_an_affine_transform_a_lane():
    plain = nn.GroupNorm(2, 4)
    layer = LaneGroupNorm(Lanes(2), plain)
    layer.weight[1], layer.bias[1] = 3.0, 1.0
    x = torch.randn(4, 4, 3, 3, generator=stream(0))
    y = layer(x)
    torch.testing.assert_close(y[:2], plain(x[:2]))
    torch.testing.assert_close(y[2:], 3 * plain(x[2:]) + 1, rtol=1e-5, atol=1e-5)


def built(policy: str) -> Backbone:
    source = ModelSource(architecture=ARCHITECTURES["small-resnet"], batch_norm=policy)
    return build(source, ("a", "b", "c"), seed=0)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 5), (4, 4, 5, 2), (4, 4, 5, 2, 1)])
def test_group_norm_takes_rows_of_any_number_of_axes(shape: tuple[int, ...]):
    lanes, plain, x = Lanes(2), nn.GroupNorm(2, 4), torch.randn(shape, generator=stream(0))
    layer = LaneGroupNorm(lanes, plain)
    layer.weight[1] = torch.arange(4.0)
    second = nn.GroupNorm(2, 4)
    second.weight.copy_(torch.arange(4.0))
    torch.testing.assert_close(layer(x), torch.cat([plain(x[:2]), second(x[2:])]))


def test_a_group_norm_without_weight_and_bias_stays():
    module = nn.Sequential(nn.GroupNorm(2, 4, affine=False), nn.Linear(4, 2))
    spec = Full().apply(Backbone(module, Anatomy(("1",))), Lanes(1), stream(0))
    assert list(spec) == ["1.weight", "1.bias"]


@pytest.mark.parametrize("method", [Full(), Parallel()], ids=["full", "parallel"])
def test_what_travels_under_each_policy(method: Full | Parallel):
    average, local, group = (method.apply(built(p), Lanes(1), stream(0)) for p in ("average", "local", "group"))
    assert average.kept == ()
    assert set(average.shared) == set(average)
    # Seven norms, four tensors each.
    assert len(local.kept) == 28
    assert local.names == average.names
    assert {name.rpartition(".")[2] for name in local.kept} == {"weight", "bias", "running_mean", "running_var"}
    assert group.kept == ()
    assert not [name for name in group if "running" in name]
    assert average.num_parameters == local.num_parameters == group.num_parameters


def test_specifications_with_other_traffic_have_other_fingerprints():
    average, local = (Parallel().apply(built(p), Lanes(1), stream(0)) for p in ("average", "local"))
    assert average.fingerprint != local.fingerprint


def test_group_norm_takes_over_weights_and_has_sixteen_channels_a_group():
    source = ModelSource(architecture={"model_type": "resnet20", "widths": [24, 32, 64]}, batch_norm="group")
    module = build(source, ("a", "b"), seed=0).module
    norms = {layer.num_channels: layer.num_groups for layer in module.modules() if isinstance(layer, nn.GroupNorm)}
    # 24 channels: 8 is the largest part of 16 that divides them.
    assert norms == {16: 1, 24: 3, 32: 2, 64: 4}
    assert not [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_group_norm_keeps_what_a_checkpoint_has_learned():
    plain, grouped = tiny_backbone("small-resnet"), tiny_backbone("small-resnet")
    from fedelta.models.hub import _set_norms

    _set_norms(grouped.module, ModelSource(batch_norm="group"))
    assert torch.equal(grouped.module.bn1.weight, plain.module.bn1.weight)
    assert torch.equal(grouped.module.bn1.bias, plain.module.bn1.bias)


def test_a_merged_model_has_plain_norms_with_the_statistics_of_lane_zero():
    backbone, lanes = tiny_backbone("small-resnet"), Lanes(2)
    Parallel().apply(backbone, lanes, stream(0))
    with lanes.training([3, 3], [stream(0), stream(1)]):
        backbone.logits(tiny_inputs("small-resnet", 6).tensors)
    expected = backbone.module.bn1.running_mean[0].clone()
    Parallel().merge(backbone)
    assert type(backbone.module.bn1) is nn.BatchNorm2d
    assert not backbone.module.bn1.training
    assert torch.equal(backbone.module.bn1.running_mean, expected)


@pytest.mark.parametrize("policy", ["local", "group"])
def test_a_policy_for_a_model_without_batch_norm_is_refused(policy: str):
    source = ModelSource(architecture=ARCHITECTURES["vit"], batch_norm=policy)
    with pytest.raises(ModelError, match=f"`model.batch_norm` is '{policy}', but ViTFor.* has no batch norm"):
        build(source, ("a", "b"), seed=0)


@pytest.mark.parametrize("fields", [{"affine": False}, {"track_running_stats": False}])
def test_a_batch_norm_with_a_part_missing_is_refused(fields: dict[str, bool]):
    module = nn.Sequential()
    module.norm, module.head = nn.BatchNorm2d(3, **fields), nn.Linear(3, 2)
    with pytest.raises(ModelError, match="the batch norm `norm` lacks weight and bias or running statistics"):
        Full().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))
