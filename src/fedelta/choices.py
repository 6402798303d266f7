"""What a configuration can say, for `fedelta list`: the names to choose from, and every key of every section.

The names alone are listed without an import of torch or transformers.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, get_args

from fedelta.catalog import ALL, COMBINATIONS, SCOPES
from fedelta.errors import InputError
from fedelta.models.anatomy import ANATOMIES
from fedelta.models.bundles import bundled_names
from fedelta.models.native import PRESETS
from fedelta.runtimes.settings import RUNTIMES
from fedelta.settings.registry import Registry
from fedelta.tracking.settings import ToolName

if TYPE_CHECKING:
    from fedelta.settings.reference import Section

# As `data.files.NAMES`, whose module imports numpy.
_EMBEDDED = ("digits", "digit-scenes", "small-notes", "small-world")


def choices() -> dict[str, list[str]]:
    """Key of the configuration to its possible names; names from plug-ins are followed by their origin."""
    named = {key: _labelled(registry) for registry in ALL if registry is not COMBINATIONS for key in registry.places}
    return {
        "model.source": [*(f"bundled:{name}" for name in bundled_names()), "a directory", "a hub name"],
        "model.architecture.model_type": [*PRESETS, "any family of transformers"],
        "model families with roles": [name for name, anatomy in ANATOMIES.items() if anatomy.roles],
        "data.source": [*_EMBEDDED, "a folder of images or recordings", "Parquet, CSV or JSON files", "a hub name"],
        **named,
        "tuning.name": [*named["tuning.name"], "several joined by +"],
        "personalization.tune": [*SCOPES],
        "runtime.name": [*RUNTIMES],
        "tracking.tools": [*get_args(ToolName)],
    }


def _labelled(registry: Registry) -> list[str]:
    providers = {name: registry.provider_of(name) for name in registry}
    return [name if provider is None else f"{name} ({provider.label})" for name, provider in providers.items()]


def sections() -> list[Section]:
    """Every section of a configuration, each method by itself, with type, default and meaning of every key."""
    from fedelta.config import Config
    from fedelta.settings.reference import reference

    return reference(Config)


def sections_called(name: str) -> list[Section]:
    """The sections that `name` means: a section, one method of it, or one key in all sections that have it.

    Args:
        name: such as `client`, `strategy.fedlama` or `tuning.r`.

    Raises:
        InputError: nothing is called so; the hint has the nearest name.
    """
    known = sections()
    chosen = [section for section in known if _is_meant(section, name)]
    if not chosen:
        keys = [(section, [key for key in section.keys if key.path == name]) for section in known]
        chosen = [replace(section, keys=tuple(found)) for section, found in keys if found]
    if not chosen:
        raise _unknown(name, known)
    return chosen


def _is_meant(section: Section, name: str) -> bool:
    titles = [f"{section.path}.{method}" for method in section.names] or [section.path]
    return any(f"{title}.".startswith(f"{name}.") for title in titles)


def _unknown(name: str, known: list[Section]) -> InputError:
    paths = dict.fromkeys(section.path for section in known if section.path)
    methods = {f"{section.path}.{method}": None for section in known for method in section.names}
    names = [*paths, *methods, *(key.path for section in known for key in section.keys)]
    last = name.rpartition(".")[2]
    nearest = [*(other for other in names if other.endswith(f".{last}")), *get_close_matches(name, names, n=1)]
    hint = f"did you mean `fedelta list {nearest[0]}`?" if nearest else f"sections: {', '.join(paths)}."
    return InputError(f"a configuration has no section or key {name!r}.", hint=hint)
