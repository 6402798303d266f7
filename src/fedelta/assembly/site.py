"""What stays where the data are: the rows of the clients, the engine that trains them, and what they keep."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import torch

from fedelta.assembly.model import TunedModel, work_of
from fedelta.config import Config
from fedelta.data.batches import Examples, FederatedData
from fedelta.data.federate import adapted, federate
from fedelta.data.sources import RawData, read
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, ModelError
from fedelta.federation.client import Site
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone, build
from fedelta.params import Params, select
from fedelta.tasks.base import Evaluation, mean_of

logger = logging.getLogger("fedelta")


def read_data(
    config: Config, backbone: Backbone | None = None, data: FederatedData | None = None
) -> tuple[Backbone, FederatedData]:
    """The backbone and the data of the clients, with those that no round asks apart.

    One needs the other: a head has as many classes as the data, and inputs are made for a model.

    Args:
        config: of the run.
        backbone: a model of the caller's own instead of `config.model`.
        data: data of the caller's own instead of `config.data` and `config.partition`.

    Raises:
        InputError: data or model are missing, unreadable or do not fit each other.
    """
    personal = config.personalization
    if data is not None:
        backbone = backbone or build(config.model, data.class_names, seed=config.seed)
        data = data.without(personal.unseen(sorted(data.partition), config.seed))
    else:
        raw = read(config.data, seed=config.seed)
        _check_num_classes(config, len(raw.class_names))
        _check_modality(config, raw)
        backbone = backbone or build(config.model, raw.class_names, seed=config.seed)
        if backbone.modality is None:
            raise ModelError("a backbone without a modality cannot read raw data; give `data` too.")
        modality = adapted(backbone.modality, raw)
        backbone = replace(backbone, modality=modality)
        unseen = partial(personal.unseen, seed=config.seed)
        data = federate(raw, config.partition, modality, seed=config.seed, held_out=unseen)
    personal.check_sizes(data.unseen)
    _check_owners(config, data)
    return backbone, data


def build_engine(config: Config, model: TunedModel, data: FederatedData, client: ClientSettings) -> LaneEngine:
    """The engine on the training data.

    Args:
        config: of the run.
        model: what it trains; its tensors become the engine's.
        data: of the clients.
        client: what each does.
    """
    engine = LaneEngine(
        model.backbone,
        model.spec,
        model.lanes,
        data.train,
        client=client,
        rule=config.local_rule,
        cache_bytes=config.runtime.cache_mib * 2**20,
        compute_dtype=config.runtime.compute_dtype,
        augmentation=config.augmentation,
        exits=config.exits,
    )
    for note in engine.notes:
        logger.warning(note)
    return engine


def build_site(config: Config, model: TunedModel, data: FederatedData, tiers: Tiers | None = None) -> Site:
    """A site that serves the clients of `data`; it needs no server to be built.

    Args:
        config: of the run.
        model: what they train.
        data: of the clients.
        tiers: how deep each of them runs (`tiers_of`).
    """
    return Site(
        build_engine(config, model, data, work_of(config)),
        data.partition,
        config.codec,
        config.seed,
        config.strategy.num_rounds,
        start=select(model.params, model.spec.kept),
        memory=config.strategy.memory,
        tiers=tiers,
    )


def num_lanes(config: Config) -> int:
    """Lanes for the cohorts of the run."""
    return config.runtime.num_lanes(
        clients_per_round=config.strategy.clients_per_round, batch_size=config.client.batch_size
    )


def evaluate(site: Site, params: Params, test: Examples) -> Evaluation:
    """Accuracy and loss of `params` on `test`.

    Where clients keep tensors of their own there is no one model: then the mean over the clients that have trained,
    each with its own tensors, on the whole of `test`.
    """
    models = [params | own for _, own in sorted(site.kept.items())] or [params]
    found = [site.engine.evaluate(model, test) for model in models]
    return mean_of(found)


def _check_num_classes(config: Config, num_classes: int) -> None:
    wanted = config.model.num_classes
    if wanted is not None and wanted != num_classes:
        raise ConfigError(
            [f"`model.num_classes` is {wanted}, but the training data have {num_classes} classes"],
            hint="leave it out: it is found from the data.",
        )


def _check_modality(config: Config, raw: RawData) -> None:
    if config.augmentation.is_on and not raw.modality.is_augmented:
        inputs = raw.modality.plural
        raise ConfigError(
            [f"`[augmentation]` crops and flips images, but column {raw.columns.input!r} holds {inputs}"],
            hint="leave the section out.",
        )


def _check_owners(config: Config, data: FederatedData) -> None:
    if not config.augmentation.is_on:
        return
    rows = torch.cat([*data.partition.values(), *data.unseen.values()])
    if len(rows.unique()) < len(rows):
        raise ConfigError(
            ["`[augmentation]` changes a row in the way of the client that has it, but some rows have two clients"],
            hint="give each client its own copy of the row.",
        )
