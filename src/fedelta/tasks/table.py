"""All tasks, by name."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter

from fedelta.tasks.classification import Classification

AnyTask = Classification
TASKS = {"classification": Classification}


def task_of(config: Mapping[str, object]) -> AnyTask:
    """The task of a resolved configuration, as TOML has it; classification where it names none.

    Raises:
        ValueError: its section `[task]` cannot be right.
    """
    section = config.get("task", {})
    if not isinstance(section, Mapping):
        raise ValueError(f"`task` is {section!r}, expected a section")
    return TypeAdapter(AnyTask).validate_python({"name": "classification", **section})
