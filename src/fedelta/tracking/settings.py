"""Section `[tracking]` of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedelta.settings import Settings
from fedelta.settings.paths import InFull, in_full

ToolName = Literal["tensorboard", "mlflow", "wandb"]


class Tracking(Settings):
    """Which tools get a copy of the records; none by default. It changes no result.

    Args:
        tools: any of `tensorboard`, `mlflow` and `wandb`; each has to be installed.
        project: what MLflow calls an experiment and Weights & Biases a project.
        directory: where the tools keep their files, for several runs to share; `tracking` in the run directory when
            not given.
    """

    tools: Annotated[tuple[ToolName, ...], Field(strict=False)] = ()
    project: str = Field(default="fedelta", min_length=1)
    directory: Annotated[str, Field(min_length=1), InFull(in_full)] | None = None
