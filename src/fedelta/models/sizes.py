"""The image size of a model, and the arguments with which it takes images of another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fedelta.errors import ModelError
from fedelta.modalities.base import vision_part

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def native_size(config: PretrainedConfig) -> int | None:
    """Side of the square images that a checkpoint was trained on; None if its configuration does not state it.

    Raises:
        ModelError: the images are not square.
    """
    size = getattr(vision_part(config), "image_size", None)
    if not isinstance(size, list | tuple):
        return size
    if len(set(size)) > 1:
        raise ModelError(
            f"the model takes images of {size[0]} x {size[1]} pixels, expected a square.",
            hint="use a model for square images.",
        )
    return int(size[0])


def check_patches(size: int, config: PretrainedConfig) -> None:
    """Refuses an image size that is not a multiple of the patch size.

    Raises:
        ModelError: names the nearest multiple.
    """
    patch = getattr(vision_part(config), "patch_size", None)
    if isinstance(patch, int) and size % patch:
        nearest = max(patch, round(size / patch) * patch)
        raise ModelError(
            f"`model.image_size` is {size}, which is not a multiple of the model's patch size, {patch}.",
            hint=f"use {nearest}.",
        )


@torch.no_grad()
def inputs_for(module: nn.Module, config: PretrainedConfig, size: int) -> dict[str, bool]:
    """Extra keyword arguments with which `module` takes images of `size`; empty if it needs none.

    A vision transformer has position embeddings for its original size and may have to be asked to interpolate them.
    Whether a family needs that is found by a trial on one image.

    Raises:
        ModelError: the model cannot take images of this size.
    """
    part, native = vision_part(config), native_size(config)
    has_other_size = native not in (None, size) and getattr(part, "patch_size", None) is not None
    interpolating = {"interpolate_pos_encoding": True} if has_other_size else {}
    image = torch.zeros(1, getattr(part, "num_channels", 3), size, size)
    failures: list[Exception] = []
    for arguments in [interpolating, {}] if interpolating else [{}]:
        try:
            output = module(pixel_values=image, **arguments)
            _ = output.logits
        except Exception as error:  # noqa: BLE001 a network may raise any error for shapes that do not fit
            failures.append(error)
        else:
            return arguments
    name = type(module).__name__
    if native in (None, size):
        raise ModelError(f"{name} fails on an image of {size} x {size} pixels: {failures[0]}") from failures[0]
    raise ModelError(
        f"{name} takes only images of {native} x {native} pixels, but `model.image_size` is {size}.",
        hint="remove `model.image_size`.",
    ) from failures[0]
