"""Predictions of a tuned model for single images, texts and recordings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedelta.data.clients import Name
from fedelta.errors import AdapterError, FormatError, InputError, RunError, listed
from fedelta.errors import refuse as refuse_data
from fedelta.federation.memory import Memories
from fedelta.inference.adapter import SavedAdapter, read_adapter
from fedelta.inference.adapter_settings import read_settings, refuse_other_settings
from fedelta.inference.anytime import (
    at_each_exit,
    at_exit,
    at_first_sure_exit,
    check_confidence,
    check_exit,
    exits_of,
)
from fedelta.inference.directory import SETTINGS
from fedelta.inference.folding import folded_pairs
from fedelta.inference.layout import is_pair
from fedelta.inference.translate import placed
from fedelta.modalities.dialogues import Dialogues
from fedelta.modalities.settings import AudioSettings
from fedelta.modalities.turns import Messages
from fedelta.models.generation import Sampling, Speaker
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
from fedelta.tasks.contract import answers_of
from fedelta.tuning.exits import exit_blocks
from fedelta.tuning.identity import identity, unlike
from fedelta.tuning.lanes import Lanes

if TYPE_CHECKING:
    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")

BATCH_SIZE = 32  # examples per pass through the model


@dataclass(frozen=True)
class Predictor:
    """A tuned model that is ready to predict; created by `open` or `from_adapter`.

    Args:
        backbone: tuned, one lane, in evaluation mode.
        class_names: in label order; empty if the task has no classes.
        task: what is predicted.
    """

    backbone: Backbone
    class_names: tuple[str, ...]
    task: Task = field(default_factory=Classification)

    @classmethod
    def open(cls, run: str | Path, client: Name | None = None) -> Predictor:
        """The model that a run has tuned.

        Args:
            run: a run directory.
            client: name or number of a client, if clients have their own models (`model.batch_norm = "local"`).

        Raises:
            RunError: `run` is not a run directory, the run is not finished, or it has one model per client and `client`
                does not select one.
            InputError: there is no such client.
            AdapterError, ModelError: the run's adapter or base model cannot be read, or has changed.
            CheckpointError: the adapter or the clients' names are not as the run wrote them.
        """
        path = Path(run)
        if not (path / rundir.CONFIG).is_file():
            raise RunError(
                f"{str(run)!r} is not a run directory: it has no `{rundir.CONFIG}`.",
                hint="use the directory that `fedelta run` printed, or `Predictor.from_adapter`.",
            )
        if not (path / rundir.ADAPTER).is_dir():
            raise RunError(
                f"{str(run)!r} has no `{rundir.ADAPTER}/`: the run is not finished.",
                hint=f"finish it with `fedelta resume {run}`.",
            )
        refuse_missing(rundir.RunDirectory(path).plugins, f"run {str(run)!r}")
        local_tensors = _local_tensors(path, client)
        _refuse_changed(path)
        predictor = cls.from_adapter(path / rundir.ADAPTER)
        put_params(predictor.backbone, local_tensors)
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
        """The base model with an adapter, written by fedelta or by stock PEFT.

        Args:
            directory: of the adapter.
            model: the base model; by default the one in the adapter.
            class_names: names for the classes, in label order; by default those of the adapter, else of the base model.
                The adapter's names in another order are ignored, because its label order is known.
            seed: of random base weights; by default that of the run.
            max_length: maximum number of tokens of a text; by default as in the run, else 128.
            audio: how recordings become inputs; by default as in the run.

        Raises:
            AdapterError: the adapter cannot be read, or does not fit the base model.
            ModelError: the base model cannot be read.
        """
        adapter, is_given = read_adapter(directory), model is not None
        model = model or _base_model(adapter)
        if model is None:
            raise AdapterError(
                f"adapter {str(directory)!r} does not name its base model.",
                hint='pass it: `Predictor.from_adapter(directory, ModelSource(source="..."))`.',
            )
        task = adapter.task or Classification()
        new_names = tuple(class_names or ()) if task.has_classes else ()
        names = adapter.class_names or (new_names or _class_names(model) if task.has_classes else ())
        _check_names(new_names, names)
        has_head = any(not is_pair(name) for name in adapter.params)
        backbone = build(model, names, seed=adapter.seed if seed is None else seed, task=task, logs_head=not has_head)
        if backbone.modality is not None:
            changes = {"max_length": max_length, "audio": audio}
            preparation = adapter.preparation.model_copy(
                update={key: value for key, value in changes.items() if value is not None}
            )
            backbone = replace(backbone, modality=backbone.modality.prepared(preparation))
        spec = install(adapter, backbone)
        other = unlike(adapter.identity, identity(backbone, spec.names, model))
        _refuse_other_base(directory, model, other, is_given=is_given)
        return cls(backbone, names if not new_names or order_of(names, new_names) else new_names, task)

    def predict(
        self, inputs: Sequence[Example], *, exit: int | None = None, confidence: float | None = None
    ) -> list[Answer]:
        """The model's answer for each example, in order; for a classification, its most probable class.

        A model with exits answers at the last one, unless `exit` or `confidence` is given.

        Args:
            inputs: for a text model, texts. For an image model, any mixture of paths of image files, Pillow images and
                uint8 tensors [C, H, W]. For a model tuned on recordings, any mixture of paths of sound files and pairs
                of a float tensor [samples] or [channels, samples], in -1..1, and its sample rate in Hz.
            exit: number of the exit that answers, from 1; nothing above it is computed.
            confidence: each example is answered by the first exit with at least this confidence (for a classification:
                the probability of one class), or else by the last; above 0, at most 1.

        Raises:
            DataError: examples cannot be read; lists all of them.
            ModelError: the model has no exits.
            InputError: there is no such exit, `confidence` is out of range, the task has no confidence, or the model is
                a language model.
        """
        if self.backbone.vocabulary is not None:
            raise InputError("a language model gives no labels, but texts.", hint="use `generate`.")
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

    def generate(
        self,
        prompts: Sequence[str | Messages],
        sampling: Sampling = Sampling(),  # noqa: B008 a frozen value
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        """The answer of a language model to each prompt, in order.

        Args:
            prompts: texts, each a turn of the user, or lists of messages with `role` and `content`.
            sampling: how answers are continued; by default without chance.
            on_text: called with each piece of an answer as it comes; prompts are then answered one after the other.

        Raises:
            InputError: the model is no language model.
            DataError: a prompt is empty, or leaves no room for an answer.
        """
        modality = self.backbone.modality
        if not isinstance(modality, Dialogues):
            raise InputError("this model gives no texts: it is no language model.", hint="use `predict`.")
        wrong = [f"prompt {number} is empty" for number, prompt in enumerate(prompts, start=1) if not _has_text(prompt)]
        refuse_data("the prompts", wrong)
        dialogues = [[{"role": "user", "content": text}] if isinstance(text, str) else text for text in prompts]
        ids = [modality.prompt(dialogue) for dialogue in dialogues]
        wrong = [
            f"prompt {number} has {len(prompt):,} tokens, and the model takes {modality.context:,}, its answer included"
            for number, prompt in enumerate(ids, start=1)
            if len(prompt) >= modality.context
        ]
        refuse_data("the prompts", wrong, hint="shorten them.")
        speaker = Speaker(self.backbone.module, modality.tokenizer, modality.pad, modality.context)
        # An answer that the context cuts short shall not depend on the prompts beside it.
        is_short = max(map(len, ids), default=0) + sampling.max_new_tokens > modality.context
        size = 1 if on_text is not None or is_short else BATCH_SIZE
        batches = (ids[start : start + size] for start in range(0, len(ids), size))
        return [answer for batch in batches for answer in speaker.answers(batch, sampling, on_text)]

    def answers(self, example: Example) -> Iterator[Answer]:
        """Yields the answer of each exit, lowest first; each block runs when its answer is requested.

        Args:
            example: as in the list for `predict`; read at the call.

        Raises:
            DataError: the example cannot be read.
            ModelError: the model has no exits.
        """
        exits_of(self.backbone)
        (batch,) = self._batches([example])
        return self._at_each_exit(batch)

    @torch.no_grad()
    def _at_each_exit(self, batch: dict[str, Tensor]) -> Iterator[Answer]:
        for number, outputs in at_each_exit(self.backbone, batch):
            yield from self._answers(outputs, number)

    @torch.no_grad()
    def _first_sure(self, inputs: Sequence[Example], confidence: float) -> list[Answer]:
        # One example at a time, because examples may stop at different exits.
        pairs = (at_first_sure_exit(self.backbone, batch, confidence, self.task) for batch in self._batches(inputs, 1))
        return [answer for number, outputs in pairs for answer in self._answers(outputs, number)]

    def _batches(self, inputs: Sequence[Example], size: int = BATCH_SIZE) -> Iterator[dict[str, Tensor]]:
        if isinstance(inputs, str | Path | Tensor):
            raise TypeError(f"`inputs` is one {type(inputs).__name__}, expected a list of examples")
        if self.backbone.modality is None:
            raise TypeError("this backbone has no modality that turns examples into its inputs")
        return self.backbone.modality.examples(inputs, size)

    def _answers(self, outputs: Tensor, number: int | None) -> list[Answer]:
        return answers_of(self.task, outputs, self.class_names, number)


def _has_text(prompt: str | Messages) -> bool:
    return bool(prompt.strip()) if isinstance(prompt, str) else any(message["content"].strip() for message in prompt)


def _local_tensors(run: Path, client: Name | None) -> Params:
    """The tensors that never leave a client; empty if no client is requested and clients keep no tensors."""
    model = read_settings(run / rundir.ADAPTER / SETTINGS).model
    if client is None and (model is None or model.batch_norm != "local"):
        return {}  # without reading the memories of the clients
    if (directory := rundir.RunDirectory(run)).is_deployed:
        raise rundir.at_their_sites(directory)
    memories, clients = Memories(), read_clients(run / rundir.PARTITION)
    memories.restore(run / rundir.CLIENTS, load(run / rundir.CHECKPOINT).memory_mark)
    number = None if client is None else clients.number_of(client)
    memory = None if number is None else memories.of(number)
    if memory is not None and memory.local_only:
        return memory.local_only
    owners = [clients.called(owner) for owner, _ in memories.local_only()]
    if number is None and not owners:
        return {}
    raise RunError(
        f"the run {str(run)!r} has one model per client, because clients keep their norms; select a client."
        if number is None
        else f"{clients.called(number)} has no model in the run {str(run)!r}: it keeps no tensors.",
        hint=f"clients with a model: {', '.join(owners) or 'none'}.",
    )


def _refuse_other_base(directory: str | Path, model: ModelSource, other: Sequence[str], *, is_given: bool) -> None:
    """Refuses a base model that differs in `other` from the adapter's; only warns if the caller passed the model."""
    if not other:
        return
    problem = f"{model.source!r} is not the base model that adapter {str(directory)!r} was made for"
    if not is_given:
        raise AdapterError(
            f"{problem}: its {', '.join(other)} differ.",
            hint="restore the base model, for example from a copy; if it has moved, use "
            "`Predictor.from_adapter(directory, ModelSource(source=...))`.",
        )
    logger.warning("%s: its %s differ.", problem, ", ".join(other))


def _refuse_changed(run: Path) -> None:
    """Refuses an adapter or files that are not as the run wrote them.

    A run of an older version, or without its checkpoint, cannot be checked.
    """
    try:
        checkpoint = load(run / rundir.CHECKPOINT) if (run / rundir.CHECKPOINT).is_file() else None
    except FormatError:
        checkpoint = None
    if checkpoint is not None:
        refuse(f"run {str(run)!r}", changed_files(run, checkpoint.origin))
        trained, _ = folded_pairs(checkpoint.params)
        refuse_other_adapter(run / rundir.ADAPTER, trained, read_adapter(run / rundir.ADAPTER).params)
        refuse_other_settings(run / rundir.ADAPTER / SETTINGS, checkpoint.origin)


def install(adapter: SavedAdapter, backbone: Backbone) -> ParamSpec:
    """Puts the adapter into `backbone`, which is edited in place and gets one lane; returns the tuned tensors' spec.

    Raises:
        AdapterError: the adapter does not fit.
    """
    adapter = placed(adapter, backbone)
    spec = adapter.tuning.apply(backbone, Lanes(1), stream(0))
    put_params(backbone, adapter.params)
    return spec


@torch.no_grad()
def put_params(backbone: Backbone, params: Params) -> None:
    """Puts `params` into the lanes of `backbone`."""
    for name, tensor in params.items():
        # Broadcasts over the lane axis, which full fine-tuning lacks.
        backbone.module.get_parameter(name).copy_(tensor)


def _base_model(adapter: SavedAdapter) -> ModelSource | None:
    """The base model that the adapter names; None if it does not name one."""
    recorded = adapter.model
    # A run with a backbone made by the caller records a section without source and architecture.
    if recorded is not None and (recorded.source is not None or recorded.architecture is not None):
        return recorded
    return ModelSource(source=adapter.base) if adapter.base else None


def _class_names(model: ModelSource) -> tuple[str, ...]:
    """The class names in the base model's configuration, in label order."""
    return class_names_of(read_config(model))


def _check_names(new_names: Sequence[str], names: Sequence[str]) -> None:
    if new_names and len(new_names) != len(names):
        raise AdapterError(
            f"{len(new_names)} `class_names` were given ({listed(new_names)}), but the adapter has {len(names)} "
            f"({listed(names)}).",
            hint="give one name per class, in label order, or none.",
        )
