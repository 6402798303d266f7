"""Model and data that the caller gives as objects, as what a run is made of.

What has been read by name elsewhere is given: the sections `[model]`, `[data]` and `[partition]` then only say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedelta.assembly.metrics import Metrics
from fedelta.config import Config
from fedelta.data.batches import Examples, FederatedData
from fedelta.data.clients import Name
from fedelta.data.division import divide
from fedelta.data.folders import Splits
from fedelta.data.forms import as_data_set, holds_examples, is_hugging_face
from fedelta.data.given import (
    Collate,
    Table,
    TableInputs,
    checked,
    in_numbers,
    joined,
    refuse_other_columns,
    side_by_side,
)
from fedelta.data.hugging_face import ids_of, labelled_by_client
from fedelta.data.objects import Reading, by_client, in_order
from fedelta.data.partition import Natural
from fedelta.errors import DataError, ModelError, kind_of, refuse
from fedelta.modalities.dialogues import IGNORED
from fedelta.models.failures import model_errors
from fedelta.models.hub import Backbone
from fedelta.models.objects import (
    ByLoss,
    Loss,
    Processor,
    is_transformers,
    names_for,
    names_of_classes,
    of_module,
    of_transformers,
    parameters_of,
    takes_only_tensors,
    unwrapped,
    with_classes,
)
from fedelta.models.source import ModelSource, modality_of, read_config
from fedelta.settings.paths import IN_PYTHON
from fedelta.tasks.base import reads_dialogues
from fedelta.tasks.contract import targets_of
from fedelta.tasks.language import TokenCounts
from fedelta.tasks.own_loss import NoTargets, OwnLoss
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets, strata_of

_ORIGIN = "the data"
_MODELS = "a `torch.nn.Module`, a `Backbone`, a `ModelSource` or a name"
_MAIN_INPUTS = {"text": "input_ids"}  # of all other modalities: pixel_values
_READY = frozenset({"pixel_values", "input_ids"})


@dataclass(frozen=True, repr=False)
class Objects:
    """Model and data of a run, as objects.

    Args:
        model: any `nn.Module` whose `forward` gives logits, or that `loss` can call; a model of transformers; a
            `Backbone`; a `ModelSource`; or a name as in `model.source`. A module is copied.
        clients: client name to its data, or the data of all clients, which `[partition]` divides, or
            `data.client_column`. Data are tensors (inputs, labels), a dictionary of tensors, a
            `torch.utils.data.Dataset` or a `datasets.Dataset`; rows are on the first axis.
        test: data in the same form, of all clients or by client name.
        loss: gives the loss of each row of a batch [B], or their mean [], for a module and a batch as the data have it;
            replaces `[task]`.
        processor: tokenizer, image processor or feature extractor of a model of transformers, for data that hold texts,
            images or recordings; by default that of the checkpoint that the model was loaded from.
        class_names: in label order; by default those of the data, else of the model, else the numbers.
        head: paths of the parts of a module that are newly trained; by default its last linear layer.
        collate: makes a batch of a list of rows, for rows of different lengths.
        metrics: gives further numbers of all outputs and labels of the test set, for the summary of the finished run.
    """

    model: nn.Module | Backbone | ModelSource | str
    clients: object
    test: object
    loss: Loss | None = None
    processor: Processor | None = None
    class_names: Sequence[str] = ()
    head: Sequence[str] | None = None
    collate: Collate | None = None
    metrics: Metrics | None = None

    def __repr__(self) -> str:
        clients = by_client(self.clients)
        count = type(self.clients).__name__ if clients is None else f"{len(clients)} clients"
        return f"Objects({_name_of(self.model)}, {count})"

    @property
    def unwrapped(self) -> Objects:
        """The same with the module inside of what `torch.compile` or `DataParallel` has made of it."""
        return replace(self, model=unwrapped(self.model))

    def named_in(self, config: Config) -> Config:
        """The configuration with the sections that say what was given."""
        sections: dict[str, object] = {"data": config.data.model_copy(update={"source": f"{IN_PYTHON}data"})}
        if isinstance(self.model, ModelSource):
            sections["model"] = self.model
        elif isinstance(self.model, str):
            sections["model"] = ModelSource(source=self.model)
        else:
            sections["model"] = named_model(config, self.model)
        if by_client(self.clients) is not None:
            sections["partition"] = Natural()
        if self.loss is not None:
            sections["task"] = OwnLoss()
        return config.model_copy(update=sections)

    def parts(self, config: Config) -> tuple[Backbone | None, FederatedData | Splits]:
        """The backbone, None if it is built from `config.model`, and the data, or splits that are still to be read.

        Args:
            config: with the sections of `named_in`.

        Raises:
            InputError: model and data have forms that are unknown, or do not fit each other.
        """
        if not isinstance(self.model, nn.Module | Backbone | ModelSource | str):
            raise ModelError(f"`model` is {kind_of(self.model)}, expected {_MODELS}.")
        if self._reads_examples:
            return self._reading_backbone(config), self._splits(config)
        return _Ready(self, config).parts()

    @property
    def _reads_examples(self) -> bool:
        """Whether the data hold texts, images or recordings, of which the model's processor makes inputs."""
        clients = by_client(self.clients)
        first = self.clients if clients is None else next(iter(clients.values()), None)
        if self.loss is not None or self.collate is not None or not holds_examples(first):
            return False
        has_modality = isinstance(self.model, ModelSource | str) or is_transformers(self.model)
        if isinstance(self.model, Backbone):
            has_modality = self.model.modality is not None
        if is_hugging_face(first) and (first.format["type"] == "custom" or _READY & set(first.column_names)):
            return False
        return has_modality

    def _reading_backbone(self, config: Config) -> Backbone | None:
        if isinstance(self.model, Backbone):
            return self.model
        if not is_transformers(self.model):
            return None
        policy = config.model.batch_norm
        return of_transformers(
            self.model, config.task, processor=self.processor, reads_examples=True, batch_norm=policy
        )

    def _splits(self, config: Config) -> Splits:
        """Training and test set; rows of named clients have their names in a column."""
        column = config.data.client
        clients = by_client(self.clients)
        train, test = (
            labelled_by_client(_as_data_sets(rows, argument), column, argument)
            for rows, argument in ((self.clients, "clients"), (self.test, "test"))
        )
        name = column or "client"
        return Splits({config.data.train_split: train, config.data.test_split: test}, name if clients else None)


def _as_data_sets(rows: object, argument: str) -> object:
    """Data that hold examples, alone or by client, as Hugging Face data sets."""
    clients = by_client(rows)
    if clients is None:
        return as_data_set(rows, f"`{argument}`")
    return {name: as_data_set(part, f"`{argument}[{name!r}]`") for name, part in clients.items()}


def named_model(config: Config, model: nn.Module | Backbone) -> ModelSource:
    """Section `[model]` of a run whose model is an object."""
    update = {"source": f"{IN_PYTHON}{_name_of(model)}", "architecture": None, "pretrained": True, "num_classes": None}
    return config.model.model_copy(update=update)


def _name_of(model: object) -> str:
    if isinstance(model, str | ModelSource):
        return str(model if isinstance(model, str) else model.source)
    return type(model.module if isinstance(model, Backbone) else model).__name__


@dataclass(frozen=True)
class _Ready:
    """Objects whose data are ready inputs.

    Args:
        objects: what the caller gave.
        config: of the run.
    """

    objects: Objects
    config: Config

    def parts(self) -> tuple[Backbone | None, FederatedData]:
        """The backbone, None if it is built from `config.model`, and the data."""
        train, rows, names = self._clients()
        test, owners = self._test(train, {str(name): client for client, name in names.items()})
        label = None if self.objects.loss is not None else self._label(train)
        in_texts: tuple[str, ...] = ()
        if self.config.task.has_classes or self.objects.loss is not None:
            (train, test), in_texts = in_numbers((train, test), label or train.label, self.objects.class_names)
        if train.is_frame and not isinstance(self.objects.model, ModelSource | str):
            beside = (label or train.label, self.config.data.client)
            train, test = (side_by_side(table, beside=beside) for table in (train, test))
        columns, backbone = self._model(train, label)
        made = TableInputs if self.objects.loss is not None else checked  # a loss of one's own may mask what is missing
        inputs = [made(table, columns) for table in (train, test)]
        class_names = in_texts or self._class_names(train, backbone, inputs[0])
        read = self._targets((train, test), label, class_names)
        if rows is None:
            rows, names = self._divided(train, read.train)
        train_set, test_set = (
            Examples(values, targets) for values, targets in zip(inputs, (read.train, _present(read.test)), strict=True)
        )
        data = FederatedData(
            train_set,
            replace(test_set, clients=owners),
            read.class_names,
            rows,
            strata_names=read.strata_names,
            names=names,
        )
        return None if backbone is None else with_classes(backbone, read.class_names), data

    @property
    def _reading(self) -> Reading:
        return Reading(self.objects.collate, self.config.data.max_memory_mib)

    def _clients(self) -> tuple[Table, dict[int, Tensor] | None, dict[int, Name]]:
        """All training rows; those of each client, None if they are still to be divided; and the clients' names."""
        clients = by_client(self.objects.clients)
        if clients is None:
            return self._reading.table(self.objects.clients, "the training data"), None, {}
        if not clients:
            raise DataError("`clients` is an empty dictionary, expected client name to data.")
        names = dict(enumerate(in_order(clients)))
        whose = [f"the data of client {name!r}" for name in names.values()]
        tables = [self._reading.table(clients[name], what) for name, what in zip(names.values(), whose, strict=True)]
        rows = torch.arange(sum(map(len, tables))).split(list(map(len, tables)))
        return joined(tables, whose), dict(enumerate(rows)), names

    def _test(self, train: Table, client_of: Mapping[str, int]) -> tuple[Table, Tensor | None]:
        """The test rows, and the client of each if they are given by client."""
        tests = by_client(self.objects.test)
        if tests is None:
            test = self._reading.table(self.objects.test, "the test data")
            refuse_other_columns([train, test], ["the training data", "the test data"])
            return test, None
        names = in_order(tests)
        whose = [f"the test data of client {name!r}" for name in names]
        tables = [self._reading.table(tests[name], what) for name, what in zip(names, whose, strict=True)]
        refuse_other_columns([train, *tables], ["the training data", *whose])
        owners = [
            torch.full((len(table),), client_of.get(str(name), -1)) for name, table in zip(names, tables, strict=True)
        ]
        return joined(tables, whose), torch.cat(owners)

    def _label(self, train: Table) -> str:
        """The column of labels."""
        label = self.config.data.label_column or train.label
        if label is None or label not in train.names:
            raise DataError(
                f"the training data have no column of labels: their columns are {list(train.names)}.",
                hint="call it `labels`, set `data.label_column`, or give a loss function of your own: `loss=`.",
            )
        if len(train.names) == 1:
            raise DataError(f"the training data hold only labels, in column {label!r}.", hint="give inputs as well.")
        return label

    def _model(self, train: Table, label: str | None) -> tuple[dict[str, str], Backbone | None]:
        """Each input of the model with its column, and the backbone; None if it is built from the configuration."""
        model, config = self.objects.model, self.config
        if self.objects.loss is not None:
            names = {name: name for name in train.inputs if name != config.data.client}
            read = ByLoss(self.objects.loss, train.is_positional)
            module = model.module if isinstance(model, Backbone) else model
            if not isinstance(module, nn.Module):
                raise ModelError("a loss function of your own needs a module.", hint="give the model as an object.")
            return names, of_module(module, read, head=self.objects.head, batch_norm=config.model.batch_norm)
        is_kept = reads_dialogues(config.task)
        names = {name: name for name in train.inputs if name != config.data.client and (is_kept or name != label)}
        if isinstance(model, ModelSource | str):
            kind, _ = modality_of(read_config(config.model), config.task)
            return ({_MAIN_INPUTS.get(kind.name, "pixel_values"): "0"} if train.is_positional else names), None
        module = model.module if isinstance(model, Backbone) else model
        if is_hugging_face(self._first):  # as in the Trainer of transformers: what the model does not take is left out
            parameters, takes_any, _ = parameters_of(module)
            takes_any = takes_any and not is_transformers(module)  # which pass them on to where they may be unknown
            names = {name: name for name in names if takes_any or name in parameters}
        inputs = names_for(module, [*names], is_positional=train.is_positional)
        columns = dict(zip(inputs, names, strict=True))
        backbone = self._backbone(model)
        few = TableInputs(train, columns).fetch(torch.arange(min(2, len(train))))
        if takes_only_tensors(backbone.module, few):
            columns = dict(zip("0", columns.values(), strict=True))
        return columns, backbone

    def _backbone(self, model: nn.Module | Backbone) -> Backbone:
        config = self.config
        if isinstance(model, Backbone):
            return model
        if is_transformers(model):
            policy = config.model.batch_norm
            return of_transformers(model, config.task, processor=self.objects.processor, batch_norm=policy)
        return of_module(model, head=self.objects.head, batch_norm=config.model.batch_norm)

    @property
    def _first(self) -> object:
        clients = by_client(self.objects.clients)
        return self.objects.clients if clients is None else next(iter(clients.values()))

    def _class_names(self, train: Table, backbone: Backbone | None, inputs: TableInputs) -> tuple[str, ...]:
        """In label order; empty if they follow from the labels, or the task has no classes."""
        names = tuple(map(str, self.objects.class_names))
        if not self.config.task.has_classes or backbone is None:
            return names or train.class_names
        batch = inputs.fetch(torch.arange(min(2, len(train))))
        device = next(backbone.module.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad(), model_errors(type(backbone.module).__name__, batch):
            outputs = backbone.logits(batch)
        if outputs.dim() != 2:
            raise ModelError(
                f"{type(backbone.module).__name__} gives outputs {tuple(outputs.shape)} for {len(outputs)} rows, "
                "expected logits (rows, classes).",
                hint="give a loss function of your own for other outputs: `loss=`.",
            )
        return (
            names or train.class_names or names_of_classes(backbone.module) or tuple(map(str, range(outputs.shape[1])))
        )

    def _targets(self, tables: Sequence[Table], label: str | None, class_names: Sequence[str]) -> ReadTargets:
        """The targets of training and test set."""
        if label is None:
            train, test = (NoTargets(len(table)) for table in tables)
            return ReadTargets(train, test, (), ())
        if reads_dialogues(self.config.task):
            counts = [TokenCounts((table.column(label)[:, 1:] != IGNORED).sum(1).float()) for table in tables]
            return ReadTargets(counts[0], counts[1], (), ())
        columns = [
            _target_column(label, what, table.column(label), class_names)
            for what, table in zip(("training set", "test set"), tables, strict=True)
        ]
        read = targets_of(self.config.task, columns[0], columns[1])
        refuse(_ORIGIN, read.problems)
        return read

    def _divided(self, train: Table, targets: Targets) -> tuple[dict[int, Tensor], dict[int, Name]]:
        """The rows of each client, by `[partition]`, and the clients' names."""
        config, column = self.config, self.config.data.client
        goes_by_client = config.partition.goes_by_client
        if column is None and goes_by_client:
            raise DataError(
                "`clients` is one data set, and nothing says which row belongs to which client.",
                hint="give client name to data, `partition=fedelta.Iid(num_clients=10)` or another partitioner, or "
                "`data.client_column`.",
            )
        if targets.strata is None and config.partition.goes_by_kind:
            problem = f"name is {config.partition.name!r}, which divides by classes, but the task has none"
            refuse("`[partition]`", [problem], hint="use 'iid', 'quantity' or 'natural'")
        ids = ids_of(self.objects.clients, train, column) if column is not None and goes_by_client else None
        rows = divide(config.partition, strata_of(targets), ids, seed=config.seed)
        return rows, {} if ids is None else {client: ids[int(of_client[0])] for client, of_client in rows.items()}


def _present(targets: Targets | None) -> Targets:
    if targets is None:
        raise DataError("the task read no targets of the test data.")
    return targets


def _target_column(label: str, what: str, values: Tensor, class_names: Sequence[str]) -> TargetColumn:
    """Labels as a column: a number a row, or a list of them."""
    rows = values[:, 0] if values.dim() == 2 and values.shape[1] == 1 else values
    has_several = rows.dim() == 2
    names = tuple(class_names) or None
    parts = names if has_several and names is not None and len(names) == rows.shape[1] else ()
    return TargetColumn(label, what, rows.tolist(), None if has_several else names, parts or ())
