"""The size of the images that a model takes, and how it is called for another than its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fedelta.errors import ModelError
from fedelta.modalities.base import vision_part

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def native_size(config: PretrainedConfig) -> int | None:
    """Side of the square that the checkpoint was trained at, None when its configuration does not say.

    Raises:
        ModelError: it is no square.
    """
    size = getattr(vision_part(config), "image_size", None)
    if not isinstance(size, list | tuple):
        return size
    if len(set(size)) > 1:
        raise ModelError(
            f"the model takes images of {size[0]} x {size[1]} pixels, expected a square.",
            hint="take a model for square images.",
        )
    return int(size[0])


def check_patches(size: int, config: PretrainedConfig) -> None:
    """Refuses a size that leaves a part of a patch.

    Raises:
        ModelError: no multiple of the patches' side.
    """
    patch = getattr(vision_part(config), "patch_size", None)
    if isinstance(patch, int) and size % patch:
        nearest = max(patch, round(size / patch) * patch)
        raise ModelError(
            f"`model.image_size` is {size}, no multiple of the {patch} pixels of the model's patches.",
            hint=f"use {nearest}.",
        )


@torch.no_grad()
def inputs_for(module: nn.Module, config: PretrainedConfig, size: int) -> dict[str, bool]:
    """Keyword arguments with which `module` takes images of `size`; none where that is its own.

    A model of patches has position embeddings for its own size and is asked to interpolate them; others have none, or
    interpolate without being asked. What a family does is found by showing it one image.

    Raises:
        ModelError: it cannot take them.
    """
    part, native = vision_part(config), native_size(config)
    is_asked = native not in (None, size) and getattr(part, "patch_size", None) is not None
    asked = {"interpolate_pos_encoding": True} if is_asked else {}
    image = torch.zeros(1, getattr(part, "num_channels", 3), size, size)
    failures: list[Exception] = []
    for arguments in [asked, {}] if asked else [{}]:
        try:
            output = module(pixel_values=image, **arguments)
            _ = output.logits
        except Exception as error:  # noqa: BLE001 whatever a foreign network makes of shapes that do not fit
            failures.append(error)
        else:
            return arguments
    name = type(module).__name__
    if native in (None, size):
        raise ModelError(f"{name} fails on an image of {size} x {size} pixels: {failures[0]}") from failures[0]
    raise ModelError(
        f"{name} takes images of {native} pixels alone, `model.image_size` is {size}.",
        hint="leave `model.image_size` out.",
    ) from failures[0]
