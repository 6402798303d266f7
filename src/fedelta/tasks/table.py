"""All tasks, by name.

A new one has a file of its own beside classification.py and a line in both places here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, TypeAdapter

from fedelta.tasks.classification import Classification
from fedelta.tasks.regression import Regression

AnyTask = Annotated[Classification | Regression, Field(discriminator="name")]
TASKS: dict[str, type[Classification | Regression]] = {"classification": Classification, "regression": Regression}


def task_of(config: Mapping[str, object]) -> AnyTask:
    """The task of a resolved configuration, as TOML has it; classification where it names none.

    Raises:
        ValueError: its section `[task]` cannot be right.
    """
    section = config.get("task", {})
    if not isinstance(section, Mapping):
        raise ValueError(f"`task` is {section!r}, expected a section")
    adapter: TypeAdapter[AnyTask] = TypeAdapter(AnyTask)
    return adapter.validate_python({"name": "classification", **section})
