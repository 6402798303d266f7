"""Networks of transformers that can be built and loaded, and that cannot be right here."""

from __future__ import annotations

import inspect

from torch import nn

from fedelta.errors import ModelError
from fedelta.modalities.base import Modality
from fedelta.modalities.image import Images

# `model_type` to the reason, and what to take instead.
_REFUSED = {
    "reformer": (
        "draws the hashes of its attention anew in every pass, from a generator that all share",
        "take a model of another family for long texts, such as 'longformer' or 'modernbert'.",
    ),
    "shieldgemma2": ("answers to an image and a text together", "take a model that reads images alone."),
    "siglip2": (
        "takes images cut into patches, with the shape of each image beside them",
        "take a SigLIP 2 checkpoint of a fixed size: its `model_type` is 'siglip'.",
    ),
}


def check_family(family: str) -> None:
    """Refuses a family whose networks cannot be used here.

    Args:
        family: `model_type` of a configuration.

    Raises:
        ModelError: with the reason.
    """
    if family in _REFUSED:
        reason, instead = _REFUSED[family]
        raise ModelError(f"family {family!r} cannot be used: it {reason}.", hint=instead)


def check_inputs(module: nn.Module, kind: type[Modality]) -> None:
    """Refuses a network that takes something else than pixels or token ids.

    Raises:
        ModelError: it does; says what it takes.
    """
    taken = list(inspect.signature(module.forward).parameters)
    wanted = "pixel_values" if kind is Images else "input_ids"
    if wanted not in taken:
        raise ModelError(
            f"{type(module).__name__} takes no `{wanted}` but `{taken[0]}`, which {kind.plural} do not become here.",
            hint=f"take a model whose `forward` takes `{wanted}`.",
        )


def without_caches(module: nn.Module) -> None:
    """Keeps the attention of LeViT from remembering the biases that it computes in evaluation mode.

    What it remembers would be that of before a step, or of another client. The flag changes nothing else in there.
    """
    for layer in module.modules():
        if "attention_bias_cache" in vars(layer):
            layer.training = True
