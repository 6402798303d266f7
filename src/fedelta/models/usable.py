"""Refuses transformers networks that can be loaded but would give wrong results here."""

from __future__ import annotations

import inspect

from torch import nn

from fedelta.errors import ModelError
from fedelta.modalities.base import Modality
from fedelta.modalities.image import Images

# `model_type` to the reason, and to a hint at alternatives.
_REFUSED = {
    "reformer": (
        "draws new random hashes for its attention in every pass, from the global generator",
        "use another family for long texts, such as 'longformer' or 'modernbert'.",
    ),
    "shieldgemma2": ("needs an image and a text together", "use a model that takes images alone."),
    "siglip2": (
        "takes images as patches, together with the shape of each image",
        "use a SigLIP 2 checkpoint with a fixed image size: its `model_type` is 'siglip'.",
    ),
}


def check_family(family: str) -> None:
    """Refuses a family whose networks cannot be used here.

    Args:
        family: `model_type` of a configuration.

    Raises:
        ModelError: gives the reason.
    """
    if family in _REFUSED:
        reason, instead = _REFUSED[family]
        raise ModelError(f"family {family!r} cannot be used: it {reason}.", hint=instead)


def check_inputs(module: nn.Module, kind: type[Modality]) -> None:
    """Refuses a network whose inputs are not pixels or token ids.

    Raises:
        ModelError: names the argument that is missing, and the one that it has.
    """
    parameters = list(inspect.signature(module.forward).parameters)
    required = "pixel_values" if kind is Images else "input_ids"
    if required not in parameters:
        raise ModelError(
            f"{type(module).__name__} takes `{parameters[0]}`, but fedelta turns {kind.plural} into `{required}`.",
            hint=f"use a model whose `forward` takes `{required}`.",
        )


def disable_caches(module: nn.Module) -> None:
    """Stops LeViT's attention from caching its biases in evaluation mode.

    Cached biases would be from before a training step, or from another client. The flag has no other effect there.
    """
    for layer in module.modules():
        if "attention_bias_cache" in vars(layer):
            layer.training = True
