"""The supported trackers: their packages, and the functions that open a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from fedelta.errors import ConfigError
from fedelta.tracking.base import TrackedRun, Tracker
from fedelta.tracking.mlflow import open_mlflow
from fedelta.tracking.settings import Tracking
from fedelta.tracking.tensorboard import open_tensorboard
from fedelta.tracking.wandb import open_wandb


@dataclass(frozen=True)
class Tool:
    """A supported tracker.

    Args:
        open: starts or continues a run.
        modules: module to the distribution that has to be installed for it.
    """

    open: Callable[[TrackedRun], Tracker]
    modules: dict[str, str]


TOOLS = {
    "tensorboard": Tool(open_tensorboard, {"tensorboard": "tensorboard"}),
    "mlflow": Tool(open_mlflow, {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}),
    "wandb": Tool(open_wandb, {"wandb": "wandb"}),
}


def require(tracking: Tracking) -> None:
    """Raises if a tool is not installed; imports none of them.

    Raises:
        ConfigError: tools are missing; gives the command that installs them.
    """
    missing = {
        tool: {module: where for module, where in TOOLS[tool].modules.items() if find_spec(module) is None}
        for tool in dict.fromkeys(tracking.tools)
    }
    problems = [
        f"`tracking.tools` has {tool!r}, but Python finds no {' and no '.join(f'`{module}`' for module in modules)}"
        for tool, modules in missing.items()
        if modules
    ]
    if problems:
        packages = sorted({where for modules in missing.values() for where in modules.values()})
        raise ConfigError(problems, hint=f"pip install {' '.join(packages)}")
