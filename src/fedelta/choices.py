"""The names that a configuration can use, for `fedelta list`; imports neither torch nor transformers."""

from __future__ import annotations

from typing import get_args

from fedelta.catalog import ALL, COMBINATIONS, SCOPES
from fedelta.models.anatomy import ANATOMIES
from fedelta.models.bundles import bundled_names
from fedelta.models.native import PRESETS
from fedelta.runtimes.settings import RUNTIMES
from fedelta.settings.registry import Registry
from fedelta.tracking.settings import ToolName


def choices() -> dict[str, list[str]]:
    """Key of the configuration to its possible names; names from plug-ins are followed by their origin."""
    named = {key: _labelled(registry) for registry in ALL if registry is not COMBINATIONS for key in registry.places}
    return {
        "model.source": [*(f"bundled:{name}" for name in bundled_names()), "a directory", "a hub name"],
        "model.architecture.model_type": [*PRESETS, "any family of transformers"],
        "model families with roles": [name for name, anatomy in ANATOMIES.items() if anatomy.roles],
        "data.source": ["digits", "a folder of images or recordings", "Parquet, CSV or JSON files", "a hub name"],
        **named,
        "tuning.name": [*named["tuning.name"], "several joined by +"],
        "personalization.tune": [*SCOPES],
        "runtime.name": [*RUNTIMES],
        "tracking.tools": [*get_args(ToolName)],
    }


def _labelled(registry: Registry) -> list[str]:
    providers = {name: registry.provider_of(name) for name in registry}
    return [name if provider is None else f"{name} ({provider.label})" for name, provider in providers.items()]
