"""A recipe: everything that decides the bits of a pre-trained backbone, read from one TOML file."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Setting = int | float | bool | str | list[int] | list[float] | list[str]


class Section(BaseModel):
    """A frozen part of a recipe; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(Section):
    """A network, by its `model_type` and the fields of its configuration."""

    model_type: Literal["vit", "fedelta_resnet"]
    settings: dict[str, Setting]


class Source(Section):
    """One kind of made images: how many classes, and what share of every batch."""

    formula: Literal["strokes", "fractals", "shapes"]
    num_classes: int = Field(ge=1)
    share: float = Field(gt=0, le=1)


class Camera(Section):
    """What happens to the ink on its way into the network; see `images.camera.photograph`."""

    resolutions: list[int]
    low_resolution_fraction: float = Field(ge=0, le=1)
    invert_fraction: float = Field(ge=0, le=1)
    colour_fraction: float = Field(ge=0, le=1)
    noise: float = Field(ge=0)


class Images(Section):
    """The made images: side in pixels, sources, camera."""

    side: int = Field(ge=8)
    sources: list[Source] = Field(min_length=1)
    camera: Camera

    @property
    def num_classes(self) -> int:
        """Classes of all sources together."""
        return sum(source.num_classes for source in self.sources)


class Training(Section):
    """The optimizer and its schedule: linear warm-up, then cosine to zero."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    warmup_steps: int = Field(ge=0)
    lr: float = Field(gt=0)
    muon_lr: float = Field(ge=0)
    weight_decay: float = Field(ge=0)
    max_gradient_norm: float = Field(gt=0)
    cosine_scale: float = Field(gt=0)
    threads: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    held_out_batches: int = Field(ge=1)


class Recipe(Section):
    """A whole recipe."""

    name: str
    seed: int
    network: Network
    images: Images
    training: Training


def read_recipe(path: Path) -> Recipe:
    """The validated recipe of a TOML file; every problem is reported at once."""
    return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
