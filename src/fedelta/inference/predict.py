"""Predictions of a tuned model for single images, texts and recordings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedelta.data.clients import Name
from fedelta.errors import AdapterError, FormatError, RunError, listed
from fedelta.federation.memory import Memories
from fedelta.inference.adapter import Adapter, read_adapter
from fedelta.inference.anytime import (
    at_each_exit,
    at_exit,
    at_first_sure_exit,
    check_confidence,
    check_exit,
    exits_of,
)
from fedelta.inference.directory import OWN
from fedelta.inference.layout import is_pair
from fedelta.inference.own import read_own, refuse_other_own
from fedelta.inference.translate import placed
from fedelta.modalities.settings import AudioSettings
from fedelta.models.heads import class_names_of
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource, read_config
from fedelta.params import Params, ParamSpec
from fedelta.plugins import refuse_missing
from fedelta.record import rundir
from fedelta.record.checkpoint import load
from fedelta.record.origin import changed_files, refuse, refuse_other_adapter
from fedelta.record.partition import read_clients
from fedelta.seeds import stream
from fedelta.tasks.base import Answer, Task
from fedelta.tasks.class_names import order_of
from fedelta.tasks.classification import Classification
from fedelta.tuning.exits import exit_blocks
from fedelta.tuning.identity import identity, unlike
from fedelta.tuning.lanes import Lanes

if TYPE_CHECKING:
    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")

BATCH_SIZE = 32  # examples of one pass through the model


@dataclass(frozen=True)
class Predictor:
    """A tuned model that is ready to answer; made by `open` or `from_adapter`.

    Args:
        backbone: tuned, one lane, in evaluation mode.
        class_names: one per class, in label order; nothing where the task has no classes.
        task: what is predicted.
    """

    backbone: Backbone
    class_names: tuple[str, ...]
    task: Task = field(default_factory=Classification)

    @classmethod
    def open(cls, run: str | Path, client: Name | None = None) -> Predictor:
        """The result of the run in the directory `run`.

        Args:
            run: a run directory.
            client: whose model, by name or number, where clients keep tensors of their own (`model.batch_norm =
                "local"`).

        Raises:
            RunError: no run directory, the run is not finished, or it has another model for each client and
                `client` is none of them.
            InputError: there is no such client.
            AdapterError, ModelError: the run's adapter or base model is unreadable, or has changed.
            CheckpointError: the adapter is not what the run came to, or names are not those of its clients.
        """
        path = Path(run)
        if not (path / rundir.CONFIG).is_file():
            raise RunError(
                f"{str(run)!r} is no run directory: it has no `{rundir.CONFIG}`.",
                hint="give the directory that `fedelta run` printed, or use `Predictor.from_adapter`.",
            )
        if not (path / rundir.ADAPTER).is_dir():
            raise RunError(
                f"{str(run)!r} has no `{rundir.ADAPTER}/`: the run is not finished.",
                hint=f"finish it with `fedelta resume {run}`.",
            )
        refuse_missing(rundir.RunDirectory(path).plugins, f"run {str(run)!r}")
        own = _own_tensors(path, client)
        _refuse_changed(path)
        predictor = cls.from_adapter(path / rundir.ADAPTER)
        fill(predictor.backbone, own)
        return predictor

    @classmethod
    def from_adapter(
        cls,
        directory: str | Path,
        model: ModelSource | None = None,
        class_names: Sequence[str] | None = None,
        *,
        seed: int | None = None,
        max_length: int | None = None,
        audio: AudioSettings | None = None,
    ) -> Predictor:
        """The base model with an adapter in it, ours or made by stock PEFT.

        Args:
            directory: of the adapter.
            model: the base model; by default the one that the adapter records, or only names.
            class_names: what to call the classes, in label order; by default as the adapter does, else as the base
                model does. The adapter's own names in another order change nothing: it knows which is which.
            seed: of random base weights; by default that of the run.
            max_length: most tokens of a text; by default as in the run, else 128.
            audio: how recordings become images for the base model; by default as in the run, which was about images
                where it does not say.

        Raises:
            AdapterError: unreadable, or does not fit the base model.
            ModelError: the base model is unreadable.
        """
        adapter, is_given = read_adapter(directory), model is not None
        model = model or _base_model(adapter)
        if model is None:
            raise AdapterError(
                f"adapter {str(directory)!r} does not name its base model.",
                hint='give it: `Predictor.from_adapter(directory, ModelSource(source="..."))`.',
            )
        task = adapter.task or Classification()
        given = tuple(class_names or ()) if task.has_classes else ()
        names = adapter.class_names or given or _class_names(model) if task.has_classes else ()
        _check_names(given, names)
        has_head = any(not is_pair(name) for name in adapter.params)
        backbone = build(model, names, seed=adapter.seed if seed is None else seed, task=task, logs_head=not has_head)
        if backbone.modality is not None:
            said = {"max_length": max_length, "audio": audio}
            preparation = adapter.preparation.model_copy(
                update={key: value for key, value in said.items() if value is not None}
            )
            backbone = replace(backbone, modality=backbone.modality.prepared(preparation))
        spec = install(adapter, backbone)
        other = unlike(adapter.identity, identity(backbone, spec.names, model))
        _refuse_other_base(directory, model, other, is_given=is_given)
        return cls(backbone, names if not given or order_of(names, given) else given, task)

    def predict(
        self, inputs: Sequence[Example], *, exit: int | None = None, confidence: float | None = None
    ) -> list[Answer]:
        """What the model says about each example, in order: of a classification its most probable class.

        A model with exits answers at the last, unless `exit` or `confidence` says otherwise.

        Args:
            inputs: texts for a text model. For an image model, in any mixture: paths of image files, Pillow images,
                uint8 tensors of shape [C, H, W]. For a model that was tuned on recordings, in any mixture: paths of
                sound files, pairs of a float tensor [samples] or [channels, samples], in -1..1, and its sample rate
                in Hz.
            exit: which one answers, from 1; nothing above it is computed.
            confidence: each example gets its answer from the first exit that is so sure of it, of a classification that
                gives one class this probability, or else from the last; above 0, at most 1.

        Raises:
            DataError: examples that cannot be read, all of them in one message.
            ModelError: the model has no exits.
            InputError: it has no exit of this number, or `confidence` is no probability, or the task has none.
        """
        if exit is not None and confidence is not None:
            raise TypeError("`exit` and `confidence` exclude each other, found both")
        if exit is not None:
            check_exit(self.backbone, exit)
        if confidence is not None:
            exits_of(self.backbone)
            check_confidence(confidence)
            return self._first_sure(inputs, confidence)
        number = exit or len(exit_blocks(self.backbone.module)) or None
        with torch.no_grad():
            return [
                answer
                for batch in self._batches(inputs)
                for answer in self._answers(
                    self.backbone.logits(batch) if exit is None else at_exit(self.backbone, batch, exit), number
                )
            ]

    def answers(self, example: Example) -> Iterator[Answer]:
        """An answer from each exit, the first at once and each a better one: a block runs when it is asked for.

        Args:
            example: what `predict` takes a list of. It is read at the call.

        Raises:
            DataError: it cannot be read.
            ModelError: the model has no exits.
        """
        exits_of(self.backbone)
        (batch,) = self._batches([example])
        return self._each(batch)

    @torch.no_grad()
    def _each(self, batch: dict[str, Tensor]) -> Iterator[Answer]:
        for number, outputs in at_each_exit(self.backbone, batch):
            yield from self._answers(outputs, number)

    @torch.no_grad()
    def _first_sure(self, inputs: Sequence[Example], confidence: float) -> list[Answer]:
        # One at a time: examples that stop at different exits have no batch in common.
        found = (at_first_sure_exit(self.backbone, batch, confidence, self.task) for batch in self._batches(inputs, 1))
        return [answer for number, outputs in found for answer in self._answers(outputs, number)]

    def _batches(self, inputs: Sequence[Example], size: int = BATCH_SIZE) -> Iterator[dict[str, Tensor]]:
        if isinstance(inputs, str | Path | Tensor):
            raise TypeError(f"`inputs` is one {type(inputs).__name__}, expected a list of examples")
        if self.backbone.modality is None:
            raise TypeError("this backbone has no modality that turns examples into its inputs")
        return self.backbone.modality.examples(inputs, size)

    def _answers(self, outputs: Tensor, number: int | None) -> list[Answer]:
        return self.task.answers(outputs, self.class_names, number)


def _own_tensors(run: Path, client: Name | None) -> Params:
    """What a client of a run keeps for itself; nothing where clients keep nothing and none is asked for."""
    model = read_own(run / rundir.ADAPTER / OWN).model
    if client is None and (model is None or model.batch_norm != "local"):
        return {}  # without a look into what each client keeps
    memories, clients = Memories(), read_clients(run / rundir.PARTITION)
    memories.restore(run / rundir.CLIENTS, load(run / rundir.CHECKPOINT).memory_mark)
    number = None if client is None else clients.number_of(client)
    memory = None if number is None else memories.of(number)
    if memory is not None and memory.local_only:
        return memory.local_only
    kept = [clients.called(each) for each, _ in memories.local_only()]
    if number is None and not kept:
        return {}
    raise RunError(
        f"the run {str(run)!r} has no one model: its clients keep their own norms."
        if number is None
        else f"{clients.called(number)} keeps no tensors of its own in the run {str(run)!r}.",
        hint=f"with a model of their own: {', '.join(kept) or 'none'}.",
    )


def _refuse_other_base(directory: str | Path, model: ModelSource, other: Sequence[str], *, is_given: bool) -> None:
    """Refuses a base model of which `other` is not as the adapter was made for; says so where it was given."""
    if not other:
        return
    told = f"adapter {str(directory)!r} was made for another base model than {model.source!r} is now"
    if not is_given:
        raise AdapterError(
            f"{told}: its {', '.join(other)} differ.",
            hint="bring back the base model, from a copy for example, and give it as "
            "`Predictor.from_adapter(directory, ModelSource(source=...))` where it has moved.",
        )
    logger.warning("%s: its %s differ.", told, ", ".join(other))


def _refuse_changed(run: Path) -> None:
    """Refuses an adapter that is not what the run came to, and files that are not as the run wrote them.

    A run of an older version cannot be checked, nor one whose checkpoint was left behind when its adapter was copied.
    """
    try:
        checkpoint = load(run / rundir.CHECKPOINT) if (run / rundir.CHECKPOINT).is_file() else None
    except FormatError:
        checkpoint = None
    if checkpoint is not None:
        refuse(f"run {str(run)!r}", changed_files(run, checkpoint.origin))
        refuse_other_adapter(run / rundir.ADAPTER, checkpoint.params, read_adapter(run / rundir.ADAPTER).params)
        refuse_other_own(run / rundir.ADAPTER / OWN, checkpoint.origin)


def install(adapter: Adapter, backbone: Backbone) -> ParamSpec:
    """Puts the adapter's tensors into `backbone`, which is edited in place and has one lane; returns what they are.

    Raises:
        AdapterError: it does not fit.
    """
    adapter = placed(adapter, backbone)
    spec = adapter.tuning.apply(backbone, Lanes(1), stream(0))
    fill(backbone, adapter.params)
    return spec


@torch.no_grad()
def fill(backbone: Backbone, params: Params) -> None:
    """Puts `params` into the lanes of `backbone`."""
    for name, tensor in params.items():
        # Broadcasts over the lane axis, which full fine-tuning does not have.
        backbone.module.get_parameter(name).copy_(tensor)


def _base_model(adapter: Adapter) -> ModelSource | None:
    """What the adapter says of its base model; None when that is not enough to make it."""
    recorded = adapter.model
    # A run with a backbone of the caller's own records a section that names nothing.
    if recorded is not None and (recorded.source is not None or recorded.architecture is not None):
        return recorded
    return ModelSource(source=adapter.base) if adapter.base else None


def _class_names(model: ModelSource) -> tuple[str, ...]:
    """The class names in the base model's own configuration, in label order."""
    return class_names_of(read_config(model))


def _check_names(given: Sequence[str], names: Sequence[str]) -> None:
    if given and len(given) != len(names):
        raise AdapterError(
            f"`class_names` are {len(given)} ({listed(given)}), the adapter has {len(names)} ({listed(names)}).",
            hint="give a name for each of them, in label order, or none.",
        )
