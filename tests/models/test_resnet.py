"""Residual networks: their shapes, their shortcuts, their beginnings, and checkpoints that load."""

from __future__ import annotations

import io
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone, build
from fedelta.models.native import PRESETS, is_native
from fedelta.models.resnet import BasicBlock, FreeShortcut
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes

SMALL = {"model_type": "resnet20", "stem_width": 4, "widths": [4, 8], "blocks_per_stage": 1}


def built(**fields: object) -> Backbone:
    return build(ModelSource(architecture={**SMALL, **fields}), ("a", "b", "c"), seed=0)


@pytest.mark.parametrize(
    ("network", "kernels", "kernel_parameters"),
    # FedLAMA's layers (papers.md, section 1.3): 23 and 29 kernels, the shortcuts' and the head's among them.
    [("resnet20", 23, 271_152), ("wrn28-10", 29, 36_518_832 - 64_000 + 6_400)],
)
def test_the_layers_of_fedlama_are_the_kernels(network: str, kernels: int, kernel_parameters: int):
    # WRN28-10 has 640 weights a class in its head: 64,000 at the paper's 100 classes, 6,400 at 10.
    source = ModelSource(architecture={"model_type": network})
    module = build(source, tuple("abcdefghij"), seed=0, device="meta").module
    sizes = [parameter.numel() for parameter in module.parameters() if parameter.dim() > 1]
    assert (len(sizes), sum(sizes)) == (kernels, kernel_parameters)


def test_option_a_has_no_parameters_in_its_shortcuts():
    # papers.md: 269,722 trainable parameters of the published CIFAR-10 weights.
    source = ModelSource(architecture={"model_type": "resnet20", "shortcut": "pad"})
    assert build(source, tuple("abcdefghij"), seed=0, device="meta").num_parameters == 269_722


def test_resnet26_has_25_convolutions_of_which_the_first_of_each_stage_has_stride_two():
    source = ModelSource(architecture={"model_type": "resnet26"})
    module = build(source, ("a", "b"), seed=0, device="meta").module
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 25
    assert [index for index, layer in enumerate(convolutions) if layer.stride == (2, 2)] == [1, 9, 17]


@torch.no_grad()
def test_a_block_is_two_convolutions_with_norms_and_a_sum():
    block = BasicBlock(2, 2, 1, nn.Identity()).eval()
    x = torch.randn(3, 2, 5, 5, generator=stream(0))
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(inner + x))


def test_shortcuts_without_parameters_by_hand():
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    # Every second pixel, one zero channel on each side; the mean of 2 x 2 = 4, zero channels behind.
    assert FreeShortcut(2, (1, 1), takes_mean=False)(x).flatten().tolist() == [0, 1, 0]
    assert FreeShortcut(2, (0, 2), takes_mean=True)(x).flatten().tolist() == [4, 0, 0]


@pytest.mark.parametrize("network", [name for name in PRESETS if name != "wrn28-10"])
def test_every_network_gives_a_row_an_image_and_a_column_a_class(network: str):
    backbone = build(ModelSource(architecture={"model_type": network}), ("a", "b", "c"), seed=0)
    assert is_native(backbone.module)
    config = backbone.module.config
    images = torch.randn(2, config.num_channels, config.image_size, config.image_size, generator=stream(0))
    logits = backbone.logits({"pixel_values": images})
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_kernels_start_he_normal_over_fan_out_and_norms_as_the_identity():
    module = build(ModelSource(architecture={"model_type": "resnet20"}), ("a", "b"), seed=0).module
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            tolerance = 4 / math.sqrt(2 * layer.weight.numel())  # four times the error of a standard deviation
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance)
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
            assert (layer.running_mean == 0).all()
            assert (layer.running_var == 1).all()


def test_every_tensor_of_a_checkpoint_arrives(tmp_path):
    original = built()
    generator = stream(1)
    with torch.no_grad():
        for tensor in original.module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    original.module.save_pretrained(tmp_path)
    loaded = build(ModelSource(source=str(tmp_path)), ("a", "b", "c"), seed=5)
    for name, tensor in original.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor), name


def test_a_checkpoint_of_an_old_pytorch_has_no_counters_and_keeps_its_statistics(tmp_path):
    # Without `num_batches_tracked` transformers takes a norm for new; its tensors must still be the file's.
    original = built()
    tensors = {name: torch.full_like(tensor, 0.25) for name, tensor in original.module.state_dict().items()}
    without_counters = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    save_file(without_counters, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = build(ModelSource(source=str(tmp_path), architecture=SMALL), ("a", "b", "c"), seed=5)
    for name in without_counters:
        assert (loaded.module.state_dict()[name] == 0.25).all(), name


def test_an_architecture_stands_for_the_configuration_of_its_source(tmp_path):
    # Counting needs no file: not the directory's either.
    source = ModelSource(source=str(tmp_path), architecture=SMALL)
    assert build(source, ("a", "b", "c"), seed=0, device="meta").num_parameters == built().num_parameters


def test_a_source_of_another_architecture_is_refused(tmp_path):
    built().module.save_pretrained(tmp_path)
    source = ModelSource(source=str(tmp_path), architecture={**SMALL, "widths": [4, 16]})
    with pytest.raises(ModelError, match=r"lacks .* tensors of SmallResNet, first") as caught:
        build(source, ("a", "b", "c"), seed=0)
    assert "another architecture" in caught.value.hint


def test_an_unknown_field_and_an_unknown_shortcut_are_refused():
    with pytest.raises(ModelError, match=r"`model.architecture.witdhs` is unknown; did you mean `widths`"):
        built(witdhs=[4, 8])
    with pytest.raises(ModelError, match="`shortcut` is 'padd', expected one of projection, pad, mean"):
        built(shortcut="padd")


@pytest.mark.parametrize("network", ["resnet20", "resnet26", "femnist-cnn"])
@pytest.mark.parametrize("size", [28, 48, 61])
def test_images_of_any_size_go_through(network: str, size: int):
    backbone = build(ModelSource(architecture={"model_type": network}, image_size=size), ("a", "b", "c"), seed=0)
    assert backbone.extra_inputs == {}
    images = torch.zeros(1, backbone.module.config.num_channels, size, size)
    assert backbone.logits({"pixel_values": images}).shape == (1, 3)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (SMALL | {"widths": []}, "widths, blocks and strides of a residual network must be at least 1"),
        (SMALL | {"blocks_per_stage": 0}, "widths, blocks and strides of a residual network must be at least 1"),
        (SMALL | {"first_stride": 0}, "widths, blocks and strides of a residual network must be at least 1"),
        (SMALL | {"blocks_per_stage": "x"}, "`model.architecture` cannot be"),
        ({"model_type": "femnist-cnn", "channels": [8]}, "`model.architecture` cannot be built"),
        ({"model_type": "femnist-cnn", "image_size": 3}, "`image_size` is 3, expected at least 4"),
        ({"model_type": "resnet02"}, "`model.architecture.model_type` is 'resnet02', which is not a known family"),
        ({"model_type": "resnet_20"}, "did you mean 'resnet20'?"),
    ],
)
def test_an_impossible_architecture_is_refused(architecture: dict[str, object], message: str):
    with pytest.raises(ModelError) as caught:
        build(ModelSource(architecture=architecture), ("a", "b"), seed=0)
    assert message in caught.value.message


def test_head_tuning_takes_the_linear_layer():
    assert Head().apply(built(), Lanes(2), stream(0)).names == ("linear.weight", "linear.bias")


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# CIFAR-100 has none of these classes, but relatives of them. Fine label to the names that a relative may get.
RELATIVES = {58: {"automobile", "truck"}, 13: {"automobile", "truck"}, 97: {"dog", "cat", "deer", "horse"}}


@pytest.mark.shared
def test_the_published_cifar10_weights_load_and_classify(shared_dir):
    import numpy as np
    import pyarrow.parquet
    from PIL import Image

    directory = shared_dir / "weights" / "resnet20-cifar10"
    source = ModelSource(source=str(directory), architecture={"model_type": "resnet20", "shortcut": "pad"})
    backbone = build(source, CIFAR10, seed=0)
    assert backbone.num_parameters == 269_722
    file = load_file(directory / "model.safetensors")
    assert all(torch.equal(backbone.module.state_dict()[name], tensor) for name, tensor in file.items())
    table = pyarrow.parquet.read_table(shared_dir / "data" / "cifar100" / "test.parquet").to_pydict()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for label, names in RELATIVES.items():
        cells = [cell for cell, fine in zip(table["img"], table["fine_label"], strict=True) if fine == label]
        pictures = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            actual = backbone.logits({"pixel_values": (images - mean) / std}).argmax(1)
        hits = sum(CIFAR10[index] in names for index in actual.tolist())
        # By chance 20 % for vehicles and 40 % for animals; a network with wrong statistics says one word for all.
        assert hits / len(cells) > 0.8, (label, hits, len(cells))
