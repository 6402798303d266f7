"""Builds the site's side: the clients' rows, the engine that trains them, and their memories."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedelta.assembly.answering import answer_sums, has_answers, with_answers
from fedelta.assembly.model import TunedModel, work_of
from fedelta.config import Config
from fedelta.data.augmentation import check_images
from fedelta.data.batches import Examples, FederatedData
from fedelta.data.federate import adapted, federate
from fedelta.data.folders import Splits
from fedelta.data.sources import RawData, read
from fedelta.engine.dp_sgd import DpSgd
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.precision import slow_bfloat16
from fedelta.engine.threads import arithmetic_threads
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, InputError, ModelError
from fedelta.federation.base import Thorough
from fedelta.federation.client import Site
from fedelta.federation.measuring import sums_of
from fedelta.federation.pairs import pairs_of
from fedelta.federation.tiers import Tiers
from fedelta.modalities.base import Modality
from fedelta.modalities.settings import Preparation
from fedelta.models.hub import Backbone, build
from fedelta.models.objects import names_of_classes, with_classes
from fedelta.params import Params, select
from fedelta.plugins import returned
from fedelta.privacy.settings import Privacy
from fedelta.runtimes.processes import Processes
from fedelta.tasks.base import Evaluation, Task, mean_of
from fedelta.tasks.class_names import order_of
from fedelta.tasks.contract import evaluation_of
from fedelta.tasks.details import Answered, Details, mean_details
from fedelta.tasks.known_classes import KnownClasses

logger = logging.getLogger("fedelta")

Watch = Callable[[Answered], None]
_OF_IMAGES = frozenset({"resize", "processor", "value_range"})
USUAL_RANGES = ((0.0, 1.0), (0.0, 255.0))
"""Ranges of values of images that say how they are stored, and nothing about a single one."""


def read_data(
    config: Config,
    backbone: Backbone | None = None,
    data: FederatedData | Splits | None = None,
    *,
    preparation: Preparation = Preparation(),  # noqa: B008 a frozen value
    at_a_glance: bool = False,
) -> tuple[Backbone, FederatedData]:
    """Returns the backbone and the data of all clients.

    Each needs the other: the head has one output for each class of the data, and inputs are made for the model.

    Args:
        config: of the run.
        backbone: the caller's model instead of `config.model`.
        data: the caller's data instead of `config.data` and `config.partition`, or splits that `config.data` describes.
        preparation: how examples became inputs when the model was tuned; for images it overrides `config.data.resize`
            and what would be found from the training data.
        at_a_glance: read examples only when they are fetched.

    Raises:
        InputError: data or model are missing, unreadable or do not fit each other.
    """
    personal = config.personalization
    if isinstance(data, FederatedData):
        backbone = backbone or built(config, data.class_names)
        data = data.without(personal.held_out_ids(data.clients.only(data.partition), config.seed))
    else:
        raw = _in_label_order(config, backbone, read_raw(config, at_a_glance=at_a_glance, loaded=data), data)
        if preparation.resize is not None:
            raw = replace(raw, source=raw.source.model_copy(update={"resize": preparation.resize}))
        backbone, modality = fitted(config, raw, backbone, preparation)
        held_out = partial(personal.held_out_ids, seed=config.seed)
        data = federate(raw, config.partition, modality, seed=config.seed, held_out=held_out)
    personal.check_sizes(data.held_out, data.clients)
    check_augmentation(config, data)
    return backbone, data


def _in_label_order(config: Config, backbone: Backbone | None, raw: RawData, loaded: Splits | None) -> RawData:
    """The data, with their classes in the order in which a model that was given as an object has them."""
    if backbone is None:
        return raw
    names = names_of_classes(backbone.module)
    if names != raw.class_names and order_of(raw.class_names, names) is not None:
        raw = replace(read_raw(config, KnownClasses(names), loaded=loaded), at_a_glance=raw.at_a_glance)
    with_classes(backbone, raw.class_names)
    return raw


def read_raw(
    config: Config, known: KnownClasses | None = None, *, at_a_glance: bool = False, loaded: Splits | None = None
) -> RawData:
    """Returns rows and targets of `config.data`, before a model is known.

    Args:
        config: of the run.
        known: the classes, if they are known before.
        at_a_glance: read examples only when they are fetched.
        loaded: the splits, if they are not to be read from `config.data.source`.

    Raises:
        InputError: the data are missing, unreadable, or do not fit the configuration.
    """
    raw = read(config.data, seed=config.seed, task=config.task, known=known, loaded=loaded)
    raw = replace(raw, at_a_glance=at_a_glance)
    check_num_classes(config, len(raw.class_names))
    _check_modality(config, raw)
    return raw


def fitted(
    config: Config,
    raw: RawData,
    backbone: Backbone | None = None,
    preparation: Preparation = Preparation(),  # noqa: B008 a frozen value
) -> tuple[Backbone, Modality]:
    """Returns the base model for the classes of the data, and its modality, fitted to them; see `read_data`."""
    backbone = backbone or built(config, raw.class_names)
    if backbone.modality is None:
        raise ModelError("a backbone without a modality cannot read raw data.", hint="give `data` as well.")
    modality = adapted(backbone.modality.prepared(preparation.only(_OF_IMAGES)), raw)
    if preparation.value_range is None:
        _refuse_measured_range(config, modality)
    for note in modality.notes:
        logger.info(note)
    return replace(backbone, modality=modality), modality


def _refuse_measured_range(config: Config, modality: Modality) -> None:
    """Raises if a private run would publish the smallest and the largest value of its training images."""
    measured = modality.preparation.value_range
    if config.privacy.is_on and config.data.value_range is None and measured not in (None, *USUAL_RANGES):
        # Without the values: the message may go to a server.
        problem = (
            f"`privacy.unit` is {config.privacy.unit!r}, but the images have more than 8 bits, and which of their "
            f"values are black and white would be measured on the training data and published with the adapter"
        )
        raise ConfigError([problem], hint="set `data.value_range` to what the devices give, such as [0, 4095].")


def few_rows(data: FederatedData) -> dict[str, Tensor]:
    """Inputs of two training rows, for the checks of a model before training."""
    return data.train.inputs.fetch(torch.arange(min(2, len(data.train))))


def built(config: Config, class_names: tuple[str, ...]) -> Backbone:
    """Returns the base model with an output for each class."""
    logs_head = config.model.adapter is None
    return build(config.model, class_names, seed=config.seed, task=config.task, logs_head=logs_head)


def build_engine(
    config: Config, model: TunedModel, train: Examples, client: ClientSettings, dp: DpSgd | None = None
) -> LaneEngine:
    """Returns an engine for the training data; logs its notes.

    Args:
        config: of the run.
        model: to be trained; the engine takes over its tensors.
        train: rows of all clients.
        client: settings of local training.
        dp: makes the gradients private; None for none, as where nothing leaves the client.
    """
    engine = LaneEngine(
        model.backbone,
        model.spec,
        model.lanes,
        train,
        client=client,
        rule=config.local_rule,
        cache_bytes=config.runtime.cache_mib * 2**20,
        compute_dtype=config.runtime.compute_dtype,
        recomputes=config.runtime.gradient_checkpointing,
        augmentation=config.augmentation,
        exits=config.exits,
        task=config.task,
        dp=dp,
    )
    half = config.runtime.compute_dtype == "bfloat16" and slow_bfloat16(model.backbone.module)
    for note in [*engine.notes, *([half] if half else [])]:
        logger.warning(note)
    return engine


def build_site(config: Config, model: TunedModel, data: FederatedData, tiers: Tiers | None = None) -> Site:
    """Returns a site for the clients of `data`; needs no server.

    Args:
        config: of the run.
        model: to be trained.
        data: of the clients.
        tiers: depth of each client (`tiers_of`).

    Raises:
        ConfigError: an example is to be protected that clients have several times.
    """
    _refuse_repeated_rows(config, data)
    return Site(
        build_engine(config, model, data.train, work_of(config), dp_of(config.privacy)),
        data.partition,
        config.codec,
        config.seed,
        config.strategy.num_rounds,
        start=select(model.params, model.spec.kept),
        given=select(model.params, model.spec.given),
        steering=config.strategy.steering,
        tiers=tiers,
        pairs=pairs_of(config.aggregation, config.tuning, model.spec, config.strategy.cohort_rounds),
    )


def _refuse_repeated_rows(config: Config, data: FederatedData) -> None:
    """Raises if an example would be counted once, although it is there several times."""
    rows = torch.cat([*data.partition.values()])
    if config.privacy.unit == "example" and (repeated := len(rows) - len(rows.unique())):
        raise ConfigError(
            [f"`privacy.unit` is 'example', but {repeated} rows of the clients are there before: each row counts once"],
            hint="give every row to one client, once.",
        )


def dp_of(privacy: Privacy) -> DpSgd | None:
    """How local training is made private; None unless it is the examples of clients that are protected."""
    if privacy.unit != "example":
        return None
    return DpSgd(privacy.clipping_norm, privacy.clipping, privacy.mechanism)


def evaluate(
    site: Site, params: Params, processes: Processes | None = None, *, with_answers: bool = False
) -> Evaluation:
    """Returns the measures of `params` on the site's test data.

    If clients keep tensors that never travel, each client has a different model; then it is the mean over the clients
    that have trained, each measured on all test data.

    Args:
        site: has the engine, the test data and the clients' memories.
        params: of the server.
        processes: may measure in worker processes, with the same result; None: this process does.
        with_answers: whether a language model answers prompts, too; this process lets it.
    """
    models, engine = _models(site, params), site.engine
    sums = sums_of(site, models) if processes is None else processes.sums_of(models)
    if with_answers and site.test is not None:
        with _threads_of(site):
            answers = [answer_sums(engine, model, site.test) for model in models]
        sums = [[*at_exits[:-1], at_exits[-1] + more] for at_exits, more in zip(sums, answers, strict=True)]
    return mean_of([evaluation_of(engine.task, of_model, has_exits=engine.has_exits) for of_model in sums])


def thorough(task: Task, evaluate: Callable[[Params], Evaluation | None]) -> Thorough | None:
    """Returns the evaluation in which a language model answers prompts, too; None if no round asks for it.

    Args:
        task: of the run.
        evaluate: measures params, with answers.
    """
    every = task.answers_every if has_answers(task) else 0
    return Thorough(evaluate, every) if every else None


def details(
    site: Site, params: Params, test: Examples, class_names: Sequence[str], watch: Watch | None = None
) -> Details:
    """Returns all that the task measures of a finished model; averages over clients as `evaluate` does.

    Args:
        site: has the engine and the clients' memories.
        params: of the server.
        test: examples to answer.
        class_names: in label order.
        watch: called with each batch of answers; only if all clients have the same model.

    Raises:
        InputError: `watch` is given, but clients have different models.
    """
    models = _models(site, params)
    if watch is not None and len(models) > 1:
        raise InputError(
            "there is no one model whose answers could be written: each client keeps tensors of its own.",
            hint="leave `--predictions` out, or use `fedelta predict --client`.",
        )
    with _threads_of(site):  # the bits of the last round's evaluation
        return details_of(site.engine, models, test, class_names, watch)


def _threads_of(site: Site) -> AbstractContextManager[None]:
    return arithmetic_threads(site.threads or torch.get_num_threads())


def details_of(
    engine: LaneEngine, models: Sequence[Params], test: Examples, class_names: Sequence[str], watch: Watch | None = None
) -> Details:
    """Returns all that the task measures of `models`, averaged; the arguments are as for `details`."""
    parts = []
    for model in models:
        answered = engine.evaluator.answers(model, test)
        details = engine.task.details(_watched(answered, watch), class_names, test.clients)
        details = returned(engine.task, "details", details, Details)
        parts.append(with_answers(details, engine.backbone, engine.task, test))
    return mean_details(parts)


def _models(site: Site, params: Params) -> list[Params]:
    """The server's params, or one for each client that has trained if clients keep tensors that never travel."""
    if not site.engine.spec.kept:
        return [params]  # saves reading the clients' memories
    return [params | tensors for _, tensors in site.memories.local_only()] or [params]


def _watched(answered: Iterable[Answered], watch: Watch | None) -> Iterator[Answered]:
    for batch in answered:
        if watch is not None:
            watch(batch)
        yield batch


def check_num_classes(config: Config, num_classes: int) -> None:
    """Raises if `model.num_classes` is not the number of classes of the data."""
    configured = config.model.num_classes
    if configured is not None and not config.task.has_classes:
        raise ConfigError(
            [f"`model.num_classes` is {configured}, but task {config.task.name!r} has no classes"], hint="leave it out."
        )
    if configured is not None and configured != num_classes:
        raise ConfigError(
            [f"`model.num_classes` is {configured}, but the training data have {num_classes} classes"],
            hint="leave it out: it is found from the data.",
        )


def _check_modality(config: Config, raw: RawData) -> None:
    if config.augmentation.is_on and not raw.modality.is_augmented:
        inputs = raw.modality.plural
        raise ConfigError(
            [f"`[augmentation]` crops and flips images, but column {raw.columns.input!r} holds {inputs}"],
            hint="leave the section out.",
        )


def check_augmentation(config: Config, data: FederatedData) -> None:
    """Raises if the images cannot be augmented as the configuration says."""
    if not config.augmentation.is_on:
        return
    check_images(data.train.inputs.fetch(torch.arange(1)), config.augmentation)
    rows = torch.cat([*data.partition.values(), *data.held_out.values()])
    if len(rows.unique()) < len(rows):
        raise ConfigError(
            ["`[augmentation]` draws a row's changes from its client's stream, but some rows have two clients"],
            hint="give each client a copy of the row.",
        )
