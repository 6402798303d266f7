"""The networks of this package among those of transformers, and their short names.

A network of ours is a transformers model: it is configured, loaded and saved like any other, and `model_type` in a
configuration may be one of the short names in `PRESETS`, which stand for a family and the sizes of a published network.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from fedelta.imports import collector_paused
from fedelta.models.light import import_lightly

# Any, in this file: a field of a configuration is a number, a word or a list.
_RESNET = "fedelta_resnet"
_LEAF_CNN = "fedelta_leaf_cnn"
FAMILIES = (_RESNET, _LEAF_CNN)

# Short name to family and to the fields that differ from the family's defaults.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet20": (_RESNET, {}),
    "wrn28-10": (_RESNET, {"widths": [160, 320, 640], "blocks_per_stage": 4}),
    "resnet26": (
        _RESNET,
        {
            "image_size": 64,
            "stem_width": 32,
            "widths": [64, 128, 256],
            "blocks_per_stage": 4,
            "first_stride": 2,
            "shortcut": "mean",
            "stem_relu": False,
            "last_norm": True,
        },
    ),
    "femnist-cnn": (_LEAF_CNN, {}),
}


@cache
def register_networks() -> None:
    """Makes the families known to transformers' `Auto` classes; needed before any of them meets one of ours."""
    with collector_paused():
        import_lightly()
        from transformers import AutoConfig, AutoModelForImageClassification

        from fedelta.models.cnn import LeafCnn, LeafCnnConfig
        from fedelta.models.resnet import SmallResNet, SmallResNetConfig

    for config, network in ((SmallResNetConfig, SmallResNet), (LeafCnnConfig, LeafCnn)):
        AutoConfig.register(config.model_type, config)
        AutoModelForImageClassification.register(config, network)


def is_native(module: nn.Module) -> bool:
    """Whether `module` is a network of this package."""
    return getattr(getattr(module, "config", None), "model_type", None) in FAMILIES


def resolve(name: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The family behind `name`, and its fields with `fields` on top; another name is a family already.

    >>> resolve("resnet20", {"blocks_per_stage": 5})
    ('fedelta_resnet', {'blocks_per_stage': 5})
    """
    family, preset = PRESETS.get(name, (name, {}))
    return family, preset | fields
