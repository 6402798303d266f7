"""Whether a site's data, task and model fit each other, before it joins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedelta.assembly.deployed import Share, offer
from fedelta.assembly.site import read_raw
from fedelta.config import Config
from fedelta.data.sources import RawData, read
from fedelta.deployment.site.merging import merged
from fedelta.deployment.site.protection import account_of
from fedelta.deployment.site.settings import SiteSettings
from fedelta.errors import listed
from fedelta.models.source import ModelSource, read_config
from fedelta.plugins import load_plugin
from fedelta.privacy.shown import shown_epsilon
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.known_classes import OTHERS, KnownClasses

_NUM_SHOWN = 8


def check_site(settings: SiteSettings, recipe: str | None = None) -> Iterator[str]:
    """Reads the data of a site as a run would, and yields lines about them for the user.

    Args:
        settings: of the site.
        recipe: in TOML; None if it is not known yet. With it, the site's part in that run is checked too.

    Raises:
        InputError: data or model are missing, or do not fit the task or the recipe.
    """
    for plugin in settings.plugins:
        yield f"plug-in {Path(plugin).name}: {', '.join(load_plugin(plugin))}"
    config = None if recipe is None else merged(recipe, settings)
    known = KnownClasses((), may_lack=True) if settings.allow_missing_classes else None
    raw = _read(settings, config, known)
    yield f"data: {len(raw.train)} training rows and {len(raw.test)} test rows of {raw.modality.plural}"
    if raw.class_names:
        names = [name for name in raw.class_names if name != OTHERS]
        yield f"{_task(settings, config).output[1]}: {len(names)}: {listed(names, _NUM_SHOWN)}"
    yield _clients(settings, config, raw)
    yield from _privacy(settings)
    if settings.model.source is not None:
        family = read_config(ModelSource(source=settings.model.source)).model_type
        yield f"model: {settings.model.source}, of the family {family}"


def _privacy(settings: SiteSettings) -> Iterator[str]:
    """Lines about what the site insists on, and what it has released."""
    insists, spent = settings.privacy, account_of(settings).spent()
    if insists.unit is not None:
        most = "" if insists.max_epsilon is None else f", and at most epsilon {insists.max_epsilon:g} in all runs"
        yield f"privacy: only runs that protect {insists.unit!r} or more{most}"
    for client, epsilon in sorted(spent.items(), key=lambda pair: -pair[1])[:_NUM_SHOWN]:
        strength = f"epsilon {shown_epsilon(epsilon)} is spent for client {client!r}, at delta {insists.max_delta:g}"
        yield f"privacy: {strength}"
    if len(spent) > _NUM_SHOWN:
        yield f"privacy: and less for {len(spent) - _NUM_SHOWN} more clients"


def _read(settings: SiteSettings, config: Config | None, known: KnownClasses | None) -> RawData:
    if config is not None:
        return read_raw(config, known)
    return read(settings.data, seed=0, task=_task(settings, None), known=known)


def _task(settings: SiteSettings, config: Config | None) -> Task:
    """The task of the recipe, or what the site assumes."""
    return (settings.task or Classification()) if config is None else config.task


def _clients(settings: SiteSettings, config: Config | None, raw: RawData) -> str:
    """The line about the site's clients."""
    if config is not None:
        examples = offer(config, raw, Share(settings.name, settings.clients)).num_examples
        least, most = min(examples.values()), max(examples.values())
        span = f"{least}" if least == most else f"{least} to {most}"
        return f"clients: {len(examples)}: {listed(list(examples), _NUM_SHOWN)}, with {span} examples"
    if settings.clients is not None:
        return f"clients: {len(settings.clients)} of the recipe's partition: {listed(settings.clients, _NUM_SHOWN)}"
    if (ids := raw.train_ids) is not None:
        names = list(dict.fromkeys(ids.names))
        return f"clients: {len(names)}, named by the data: {listed(names, _NUM_SHOWN)}"
    return f"clients: 1, called {settings.name!r}, which has all of the data"
