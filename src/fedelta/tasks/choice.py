"""The task in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import TypeAdapter

from fedelta.catalog import TASKS
from fedelta.settings.registry import Chosen
from fedelta.tasks.base import Task

# The annotation of a field that holds a task.
ChosenTask = Annotated[Task, Chosen(TASKS)]


def task_of(config: Mapping[str, object]) -> Task:
    """The task of a resolved configuration in TOML form; classification if it has no section `[task]`.

    Raises:
        ValueError: section `[task]` is invalid.
    """
    section = config.get("task", {})
    if not isinstance(section, Mapping):
        raise ValueError(f"`task` is {section!r}, expected a section")
    adapter: TypeAdapter[Task] = TypeAdapter(ChosenTask)
    return adapter.validate_python({"name": "classification", **section})
