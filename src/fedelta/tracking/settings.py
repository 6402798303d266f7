"""Section `[tracking]` of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedelta.settings import Settings
from fedelta.settings.paths import InFull, in_full

ToolName = Literal["tensorboard", "mlflow", "wandb"]


class Tracking(Settings):
    """The tools that get a copy of the records; none by default. Results do not depend on them.

    Args:
        tools: any of `tensorboard`, `mlflow` and `wandb`, which have to be installed.
        project: name of the experiment in MLflow and of the project in Weights & Biases.
        directory: where the tools keep their files, which several runs may share; by default `tracking` in the run
            directory.
    """

    tools: Annotated[tuple[ToolName, ...], Field(strict=False)] = ()
    project: str = Field(default="fedelta", min_length=1)
    directory: Annotated[str, Field(min_length=1), InFull(in_full)] | None = None
