"""The model of a server that has no training data, and the test set that it may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedelta.assembly.answering import answer_sums
from fedelta.assembly.model import TunedModel, tuned_model, work_of
from fedelta.assembly.site import build_engine, built, check_num_classes, details_of, fitted, read_raw
from fedelta.config import Config
from fedelta.data.augmentation import Augmentation
from fedelta.data.batches import Examples
from fedelta.data.clients import Clients
from fedelta.data.federate import evaluation_set
from fedelta.data.files import AT_THE_SITES
from fedelta.data.sources import DataSource, RawData
from fedelta.engine.lanes import LaneEngine
from fedelta.errors import ConfigError
from fedelta.params import Params
from fedelta.tasks.base import Evaluation
from fedelta.tasks.contract import evaluation_of
from fedelta.tasks.details import Details
from fedelta.tasks.known_classes import KnownClasses

NO_TEST_SET = (
    'give the server a test set (`data.test_source`), or let the sites measure: `deployment.evaluate = "sites"`.'
)


@dataclass(frozen=True)
class Bench:
    """Measures a model on the server's test set.

    Args:
        engine: runs the model; it trains nothing.
        test: examples to answer.
        class_names: in label order.
    """

    engine: LaneEngine
    test: Examples
    class_names: tuple[str, ...]

    def evaluate(self, params: Params) -> Evaluation:
        """The measures of `params`."""
        return self.engine.evaluator.evaluate(params, self.test)

    def evaluate_with_answers(self, params: Params) -> Evaluation:
        """The measures of `params`, with those of answers."""
        (sums,) = self.engine.evaluator.sums(params, self.test)  # a language model has no exits
        sums += answer_sums(self.engine, params, self.test)
        return evaluation_of(self.engine.task, [sums], has_exits=False)

    def details(self, params: Params) -> Details:
        """All that the task measures of a finished model."""
        return details_of(self.engine, [params], self.test, self.class_names)


def read_test(config: Config, class_names: Sequence[str] = ()) -> RawData:
    """Reads the test set that the server has; the training examples of `[data]` are read with it, but not used.

    Args:
        config: of the run.
        class_names: of the sites; used if the training data are there, so that the server's labels mean the same.

    Raises:
        ConfigError: the server has no test set.
        DataError: the test set is missing or unreadable, or has other classes.
    """
    source = config.data
    if problems := lacking_test(source):
        raise ConfigError(problems, hint=NO_TEST_SET)
    if source.source != AT_THE_SITES:
        return read_raw(config)
    # The only data here stand for the training data, too: columns are found in them.
    update = {"source": source.test_source, "train_split": source.test_split, "test_files": None}
    table = config.model_copy(update={"data": source.model_copy(update=update | {"max_train_examples": None})})
    return read_raw(table, KnownClasses(tuple(class_names), may_lack=True))


def lacking_test(source: DataSource) -> list[str]:
    """Why the server has no test set; empty if it has one. Reads nothing."""
    if source.evaluate_on == "validation":
        return ["`data.evaluate_on` is 'validation', but the clients' rows are not at the server"]
    if source.source == AT_THE_SITES and source.test_source is None:
        return ["`data.source` is 'sites', so the server has no examples to measure the model on"]
    return []


def server_model(
    config: Config,
    class_names: Sequence[str],
    raw: RawData | None = None,
    clients: Clients = Clients(),  # noqa: B008 a frozen value
) -> tuple[TunedModel, Examples | None]:
    """Returns the model and the test set of a server.

    Args:
        config: of the run.
        class_names: in label order.
        raw: what `read_test` returned; None for a server without a test set.
        clients: all clients, whose names the test set may have.

    Raises:
        InputError: the model is missing, or does not fit the task or the test set.
    """
    if raw is None:
        check_num_classes(config, len(class_names))
        backbone = built(config, tuple(class_names))
        if backbone.modality is not None:
            modality = backbone.modality
            backbone = replace(backbone, modality=modality.prepared(config.data.preparation.only(modality.settings)))
        return tuned_model(config, backbone, class_names), None
    backbone, modality = fitted(config, raw)
    by_name = {name: number for number, name in clients.names.items()}
    test = evaluation_set(raw, modality, by_name)
    sample = test.inputs.fetch(torch.arange(min(2, len(test))))
    return tuned_model(config, backbone, class_names, sample=sample), test


def server_bench(config: Config, model: TunedModel, test: Examples, class_names: Sequence[str]) -> Bench:
    """Returns what measures the model at the server.

    Raises:
        ConfigError: clients keep tensors that never travel, so that the server does not have a whole model.
    """
    if model.spec.kept:
        raise ConfigError(
            [f"the clients keep {len(model.spec.kept)} tensors, so that only they have whole models"],
            hint='let the sites measure: `deployment.evaluate = "sites"`.',
        )
    plain = config.model_copy(update={"augmentation": Augmentation()})  # test examples are never augmented
    return Bench(build_engine(plain, model, test, work_of(config)), test, tuple(class_names))
