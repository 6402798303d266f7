"""Registers fedelta's networks with transformers, and gives short names to published networks.

fedelta's networks are transformers models: they are configured, loaded and saved like any other. In a configuration,
`model_type` may also be a short name from `PRESETS`, which stands for a family and the sizes of a published network.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fedelta.imports import collector_paused

if TYPE_CHECKING:
    from torch import nn

# Any, in this file: a field of a configuration is a number, a text or a list.
_RESNET = "fedelta_resnet"
_LEAF_CNN = "fedelta_leaf_cnn"
FAMILIES = (_RESNET, _LEAF_CNN)

# Short name to family, and to the fields that differ from the family's defaults.
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
    """Registers fedelta's families with the `Auto` classes of transformers; call it before loading such a model."""
    with collector_paused():
        from fedelta.models.light import import_lightly

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
    """The family and fields of the preset `name`, updated with `fields`; any other name is a family.

    >>> resolve("resnet20", {"blocks_per_stage": 5})
    ('fedelta_resnet', {'blocks_per_stage': 5})
    """
    family, preset = PRESETS.get(name, (name, {}))
    return family, preset | fields
