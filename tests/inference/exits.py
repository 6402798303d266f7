"""A tiny model with exits that takes raw images."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.builders import tiny_backbone

from fedelta.inference.predict import Predictor
from fedelta.modalities.image import Images
from fedelta.seeds import stream
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.lanes import Lanes

NAMES = ("cat", "dog", "owl")
ACCUMULATOR = Accumulator(num_heads=2, mlp_width=24, head_width=12)
METHODS = {"accumulator": ACCUMULATOR, "exit-heads": ExitHeads()}


def predictor_of(method: TuningMethod, *, family: str = "vit", num_blocks: int = 3, lanes: int = 1) -> Predictor:
    """A predictor of random tensors: `num_blocks` blocks of width 16, images of 8 pixels."""
    modality = Images(8, (0.5,) * 3, (0.25,) * 3)
    backbone = replace(tiny_backbone(family, num_hidden_layers=num_blocks), modality=modality)
    shared = Lanes(lanes)
    method.apply(backbone, shared, stream(0, "tuning"))
    shared.active = 1
    return Predictor(backbone, NAMES)


def random_images(num: int) -> list[torch.Tensor]:
    return list(torch.randint(0, 256, (num, 3, 8, 8), dtype=torch.uint8, generator=stream(4)))
