"""The configuration of a run at a site: what the server's recipe says, over what only the site decides.

The recipe decides what is trained and how. The site decides what is read: data, weights, plug-ins, and how its machine
is used. So a recipe that arrives can name no path here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping

from fedelta.config import Config, parse_config
from fedelta.deployment.site.settings import Protection, SiteSettings
from fedelta.errors import ConfigError, InputError
from fedelta.settings.base import Table, as_settings
from fedelta.tasks.base import Task

# Keys of `[data]` that say how rows become examples and measures, not which rows are read: the site may set them, and
# where it does not, they are the recipe's, so that all sites do the same.
_HOW = ("audio", "evaluate_on", "max_length", "resize", "test_fraction", "validation_fraction", "value_range")
# Of all data together; for data of the site's own they would say something else.
_LIMITS = ("max_test_examples", "max_train_examples")
# Sections that only the server needs.
_SERVERS = ("tracking", "stability", "compare")
# What a site that insists on a unit accepts: "local" covers all data of a client, and trusts nobody.
_ACCEPTED = {"example": ("example", "local"), "client": ("client", "local"), "local": ("local",)}
_UNKNOWN_NUMBER = 2**31  # of clients in the whole federation, which a site with data of its own cannot know


def merged(text: str, site: SiteSettings) -> Config:
    """The configuration of a run at this site.

    Args:
        text: the recipe, in TOML, as the server resolved it.
        site: settings of the site.

    Raises:
        ConfigError: the recipe has keys or values that this version of fedelta does not know, or asks for a model that
            the site does not have.
        InputError: the recipe's task is not the site's, or it protects less than the site insists on.
    """
    recipe = _table(text)
    table = {key: value for key, value in recipe.items() if key not in _SERVERS}
    table["data"] = _data_table(recipe.get("data"), site)
    if "model" in recipe:
        table["model"] = _with_weights(recipe["model"], site)
    table["runtime"] = _table_in(recipe, "runtime", {"compute_dtype"}) | site.runtime.model_dump(
        mode="json", exclude={"threads"}
    )
    if exits := _table_in(recipe, "exits"):
        table["exits"] = {key: value for key, value in exits.items() if key != "tiers_file"}  # depths arrive as numbers
    if not site.is_partition:
        table["partition"] = {"name": "iid", "num_clients": _UNKNOWN_NUMBER}
        table.pop("personalization", None)
    config = parse_config(table, origin="the recipe of the server")
    if site.task is not None and (other := _differences(site.task, config.task)):
        raise InputError(
            f"the recipe has another task than section `[task]` of the site's settings: {'; '.join(other)}.",
            hint="change `[task]` in one of them; what the site's settings leave out is the recipe's.",
        )
    refuse_weaker(config, site.privacy)
    return config


def _differences(expected: Task, task: Task) -> list[str]:
    """The settings of a task that a site names, and that a recipe has otherwise."""
    said, named = as_settings(task).model_dump(mode="json"), as_settings(expected)
    values = named.model_dump(mode="json", include={"name"} | named.model_fields_set)
    return [
        f"`task.{key}` is {said.get(key)!r}, expected {value!r}"
        for key, value in values.items()
        if said.get(key) != value
    ]


def refuse_weaker(config: Config, insistence: Protection) -> None:
    """Raises if a recipe protects less than the site insists on.

    Raises:
        InputError: says what the site expects.
    """
    privacy, unit = config.privacy, insistence.unit
    if unit is None:
        return
    if privacy.unit not in _ACCEPTED[unit]:
        accepted = " or ".join(map(repr, _ACCEPTED[unit]))
        problem = f"the recipe has `privacy.unit` = {privacy.unit!r}, this site takes part only with {accepted}"
    elif privacy.is_reproduction:
        problem = f"the recipe has `privacy.mechanism` = {privacy.mechanism!r}, which guarantees nothing"
    elif privacy.randomness == "seeded":
        problem = "the recipe has `privacy.randomness` = 'seeded': whoever has the recipe can take the noise out again"
    else:
        return
    raise InputError(f"{problem}.", hint="correct section `[privacy]` of the recipe.")


def _table(text: str) -> Table:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"is not TOML: {error}"], origin="the recipe of the server") from error


def _table_in(recipe: Mapping[str, object], section: str, keys: set[str] | None = None) -> Table:
    """A section of the recipe, or some of its keys; empty if it is no table."""
    table = recipe.get(section)
    table = table if isinstance(table, dict) else {}
    return {key: value for key, value in table.items() if keys is None or key in keys}


def _data_table(recipe: object, site: SiteSettings) -> Table:
    """The site's section `[data]`; keys that it does not set come from the recipe, if they say only how."""
    table = recipe if isinstance(recipe, dict) else {}
    keys = {*_HOW, *(_LIMITS if site.is_partition else ())} - site.data.model_fields_set
    how = {key: value for key, value in table.items() if key in keys}
    return site.data.model_dump(mode="json", exclude_none=True) | how


def _with_weights(recipe: object, site: SiteSettings) -> object:
    """Section `[model]` with the site's own place of the weights; without an adapter, whose values are downloaded."""
    if not isinstance(recipe, dict):
        return recipe  # refused when it is parsed
    table = {key: value for key, value in recipe.items() if key != "adapter"}
    source = table.get("source")
    if source is None or (isinstance(source, str) and source.startswith("bundled:")):
        return table
    if site.model.source is None:
        raise ConfigError(
            [f"`model.source` is {source!r}, which this site does not have"],
            origin="the recipe of the server",
            hint="put the weights of this model on the site, and their place in its settings: `[model] source`.",
        )
    return table | {"source": site.model.source}
