"""Residual networks for small images: ResNet20, WRN28-10 and ResNet26, in the hub's form.

    stem conv 3x3, norm -> three stages of basic blocks -> (norm, ReLU) -> mean over the map -> linear
    block: ReLU( norm(conv 3x3(ReLU(norm(conv 3x3(x))))) + shortcut(x) )

| short name (native.py) | blocks | widths | shortcut | trainable parameters | source |
|---|---|---|---|---|---|
| `resnet20` | 3 x 3 | 16, 32, 64 | projection | 272,762 at 10 classes | FedLAMA's code |
| `wrn28-10` | 3 x 4 | 160, 320, 640 | projection | 36,539,124 at 100 classes | FedLAMA's code |
| `resnet26` | 3 x 4 | 64, 128, 256 | mean | 5,817,258 at 10 classes | Rebuffi et al. |

He et al. 2016 (arXiv 1512.03385, section 4.2, option A) use shortcuts without parameters: `shortcut = "pad"`.
WRN28-10 follows FedLAMA's code, with norms after convolutions; Zagoruyko and Komodakis 2016 put them before.
Dropout is left out: models stay in evaluation mode (hub.py). Convolutions are initialised He-normal and norms as the
identity; FedLAMA's code uses Glorot-uniform, and zero for the last norm of a block.

Source: He et al. 2016; Zagoruyko and Komodakis 2016 (arXiv 1605.07146); Rebuffi et al. 2018 (arXiv 1803.10082)
for `resnet26`: first block of every stage at stride 2, no ReLU after the stem, a last norm before the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import ImageClassifierOutput

from fedelta.errors import ModelError
from fedelta.models.cnn import start_as_pytorch

_SHORTCUTS = ("projection", "pad", "mean")


class SmallResNetConfig(PretrainedConfig):
    """Sizes of a residual network.

    Args:
        num_channels: channels of the images.
        stem_width: output channels of the first convolution.
        image_size: side in pixels of the images that it is meant for; other sizes work too.
        widths: channels of the stages.
        blocks_per_stage: basic blocks of two convolutions.
        first_stride: stride of the first stage; every later stage has stride 2.
        shortcut: where the shape changes, `projection` is a 1x1 convolution with a norm (in the first block of
            every stage, needed or not), `pad` takes every second pixel and pads channels on both sides with zeros,
            `mean` takes the mean of 2x2 pixels and appends zero channels. The last two have no parameters.
        stem_relu: whether a ReLU follows the stem.
        last_norm: whether a norm and a ReLU follow the last stage.
    """

    model_type = "fedelta_resnet"

    num_channels: int = 3
    image_size: int = 32
    stem_width: int = 16
    widths: list[int] | tuple[int, ...] = (16, 32, 64)
    blocks_per_stage: int = 3
    first_stride: int = 1
    shortcut: str = "projection"
    stem_relu: bool = True
    last_norm: bool = False


class SmallResNet(PreTrainedModel):
    """A residual classifier; parameter names are those of the usual CIFAR checkpoints (`layer1.0.conv1.weight`)."""

    config_class = SmallResNetConfig
    main_input_name = "pixel_values"
    # Checkpoints older than PyTorch 0.4.1 lack it, and a fixed momentum does not use it.
    _keys_to_ignore_on_load_missing = [r"num_batches_tracked$"]  # noqa: RUF012  # as the base class has it

    def __init__(self, config: SmallResNetConfig) -> None:
        super().__init__(config)
        if config.shortcut not in _SHORTCUTS:
            raise ModelError(f"`shortcut` is {config.shortcut!r}, expected one of {', '.join(_SHORTCUTS)}.")
        sizes = (config.stem_width, *config.widths, config.blocks_per_stage, config.first_stride)
        if not config.widths or min(sizes) < 1:
            raise ModelError(f"widths, blocks and strides of a residual network must be at least 1, found {sizes}.")
        self.conv1 = _conv3x3(config.num_channels, config.stem_width)
        self.bn1 = nn.BatchNorm2d(config.stem_width)
        channels, stride = config.stem_width, config.first_stride
        for index, width in enumerate(config.widths, 1):
            blocks = []
            for position in range(config.blocks_per_stage):
                shortcut = _shortcut(config.shortcut, channels, width, stride, is_first=position == 0)
                blocks.append(BasicBlock(channels, width, stride, shortcut))
                channels, stride = width, 1
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
            stride = 2
        if config.last_norm:
            self.last_bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, int(config.num_labels or 0))
        self.post_init()  # type: ignore[no-untyped-call]  # transformers

    def features(self, pixel_values: Tensor) -> Tensor:
        """The input of the head, [B, D], for images [B, C, H, W]."""
        config = self.config
        x = self.bn1(self.conv1(pixel_values.contiguous(memory_format=torch.channels_last)))
        if config.stem_relu:
            x = x.relu()
        for index in range(1, len(config.widths) + 1):
            x = self.get_submodule(f"layer{index}")(x)
        if config.last_norm:
            x = self.last_bn(x).relu()
        features: Tensor = x.mean((2, 3))
        return features

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Logits [B, C] in the hub's output object, for images [B, 3, H, W]."""
        return ImageClassifierOutput(logits=self.linear(self.features(pixel_values)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He-normal over fan-out (He et al. 2015); the linear layer and the norms as in PyTorch."""
        if isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            start_as_pytorch(module)
        elif isinstance(module, nn.BatchNorm2d):
            for name, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                initialization.constant_(getattr(module, name), start)
            initialization.zeros_(module.get_buffer("num_batches_tracked"))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut: [B, I, H, W] to [B, O, H / stride, W / stride].

    A projection has stride 1 and reads an already subsampled map, because the gradient of a strided 1x1 convolution of
    fewer than 16 channels writes out of bounds (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.stride = stride if isinstance(shortcut, nn.Sequential) else 1
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """See the module's docstring."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)) + self.shortcut(x[:, :, :: self.stride, :: self.stride])
        result: Tensor = y.relu()
        return result


class FreeShortcut(nn.Module):
    """A shortcut without parameters: fewer pixels, more channels.

    Args:
        stride: reduction of height and width.
        pad: numbers of zero channels to put before and after.
        takes_mean: whether to take the mean of stride x stride pixels; else the first of them.
    """

    def __init__(self, stride: int, pad: tuple[int, int], *, takes_mean: bool) -> None:
        super().__init__()
        self.stride = stride
        self.pad = pad
        self.takes_mean = takes_mean

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] to [B, I + pad, H / stride, W / stride]."""
        x = _mean_of(x, self.stride) if self.takes_mean else x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, *self.pad))


def _shortcut(kind: str, in_channels: int, out_channels: int, stride: int, *, is_first: bool) -> nn.Module:
    if kind == "projection" and is_first:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    missing = out_channels - in_channels
    if kind == "mean":
        return FreeShortcut(stride, (0, missing), takes_mean=True)
    return FreeShortcut(stride, (missing // 2, missing - missing // 2), takes_mean=False)


def _mean_of(x: Tensor, stride: int) -> Tensor:
    """Mean of stride x stride pixels, or fewer at an edge, so that the size is that of a convolution of this stride."""
    return functional.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
