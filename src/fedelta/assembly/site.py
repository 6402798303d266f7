"""What stays where the data are: the rows of the clients, the engine that trains them, and what they keep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedelta.assembly.model import TunedModel, work_of
from fedelta.config import Config
from fedelta.data.augmentation import check_images
from fedelta.data.batches import Examples, FederatedData
from fedelta.data.federate import adapted, federate
from fedelta.data.sources import RawData, read
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, InputError, ModelError
from fedelta.federation.client import Site
from fedelta.federation.tiers import Tiers
from fedelta.modalities.settings import Preparation
from fedelta.models.hub import Backbone, build
from fedelta.params import Params, select
from fedelta.tasks.base import Evaluation, mean_of
from fedelta.tasks.details import Answered, Details, mean_details

logger = logging.getLogger("fedelta")

Watch = Callable[[Answered], None]
_OF_IMAGES = frozenset({"resize", "processor", "value_range"})


def read_data(
    config: Config,
    backbone: Backbone | None = None,
    data: FederatedData | None = None,
    *,
    preparation: Preparation = Preparation(),  # noqa: B008 a frozen value
    at_a_glance: bool = False,
) -> tuple[Backbone, FederatedData]:
    """The backbone and the data of the clients, with those that no round asks apart.

    One needs the other: a head has as many classes as the data, and inputs are made for a model.

    Args:
        config: of the run.
        backbone: a model of the caller's own instead of `config.model`.
        data: data of the caller's own instead of `config.data` and `config.partition`.
        preparation: how examples became inputs where the model was tuned; of images it counts instead of
            `config.data.resize` and of what the training data tell.
        at_a_glance: examples are read when they are asked for, and not all at once.

    Raises:
        InputError: data or model are missing, unreadable or do not fit each other.
    """
    personal = config.personalization
    if data is not None:
        backbone = backbone or _built(config, data.class_names)
        data = data.without(personal.held_out_ids(data.clients.only(data.partition), config.seed))
    else:
        raw = replace(read(config.data, seed=config.seed, task=config.task), at_a_glance=at_a_glance)
        _check_num_classes(config, len(raw.class_names))
        _check_modality(config, raw)
        backbone = backbone or _built(config, raw.class_names)
        if backbone.modality is None:
            raise ModelError("a backbone without a modality cannot read raw data; give `data` too.")
        if preparation.resize is not None:
            raw = replace(raw, source=raw.source.model_copy(update={"resize": preparation.resize}))
        modality = adapted(backbone.modality.prepared(preparation.only(_OF_IMAGES)), raw)
        for note in modality.notes:
            logger.info(note)
        backbone = replace(backbone, modality=modality)
        held_out = partial(personal.held_out_ids, seed=config.seed)
        data = federate(raw, config.partition, modality, seed=config.seed, held_out=held_out)
    personal.check_sizes(data.held_out, data.clients)
    _check_augmentation(config, data)
    return backbone, data


def few_rows(data: FederatedData) -> dict[str, Tensor]:
    """Inputs of two training rows, for what is proved of a model before it is trained."""
    return data.train.inputs.fetch(torch.arange(min(2, len(data.train))))


def _built(config: Config, class_names: tuple[str, ...]) -> Backbone:
    logs_head = config.model.adapter is None
    return build(config.model, class_names, seed=config.seed, task=config.task, logs_head=logs_head)


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
        task=config.task,
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
        steering=config.strategy.steering,
        tiers=tiers,
    )


def num_lanes(config: Config) -> int:
    """Lanes for the cohorts of the run."""
    return config.runtime.num_lanes(
        clients_per_round=config.strategy.clients_per_round, batch_size=config.client.batch_size
    )


def evaluate(site: Site, params: Params, test: Examples) -> Evaluation:
    """The measures of `params` on `test`.

    Where clients keep tensors of their own there is no one model: then the mean over the clients that have trained,
    each with its own tensors, on the whole of `test`.
    """
    return mean_of([site.engine.evaluate(model, test) for model in _models(site, params)])


def details(
    site: Site, params: Params, test: Examples, class_names: Sequence[str], watch: Watch | None = None
) -> Details:
    """What the task has to say of a finished model, on `test` as `evaluate` does.

    Args:
        site: has the model, and what clients keep.
        params: of the server.
        test: what is answered.
        class_names: in label order.
        watch: sees every batch of answers, where there is one model for all clients.

    Raises:
        InputError: there is more than one, and `watch` is given.
    """
    models, engine = _models(site, params), site.engine
    if watch is not None and len(models) > 1:
        raise InputError("there is no one model whose answers could be told: clients keep norms of their own.")
    parts = []
    for model in models:
        answered = engine.answers(model, test)
        parts.append(engine.task.details(_watched(answered, watch), class_names, test.clients))
    return mean_details(parts)


def _models(site: Site, params: Params) -> list[Params]:
    """That of the server, or those of the clients that have trained, where they keep tensors of their own."""
    if not site.engine.spec.kept:
        return [params]  # without a look into what each client keeps
    return [params | tensors for _, tensors in site.memories.local_only()] or [params]


def _watched(answered: Iterable[Answered], watch: Watch | None) -> Iterator[Answered]:
    for batch in answered:
        if watch is not None:
            watch(batch)
        yield batch


def _check_num_classes(config: Config, num_classes: int) -> None:
    wanted = config.model.num_classes
    if wanted is not None and not config.task.has_classes:
        raise ConfigError(
            [f"`model.num_classes` is {wanted}, but task {config.task.name!r} has no classes"], hint="leave it out."
        )
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


def _check_augmentation(config: Config, data: FederatedData) -> None:
    if not config.augmentation.is_on:
        return
    check_images(data.train.inputs.fetch(torch.arange(1)), config.augmentation)
    rows = torch.cat([*data.partition.values(), *data.held_out.values()])
    if len(rows.unique()) < len(rows):
        raise ConfigError(
            ["`[augmentation]` changes a row in the way of the client that has it, but some rows have two clients"],
            hint="give each client its own copy of the row.",
        )
