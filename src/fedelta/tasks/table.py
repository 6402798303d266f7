"""All tasks, by name."""

from __future__ import annotations

from fedelta.tasks.classification import Classification

AnyTask = Classification
TASKS = {"classification": Classification}
