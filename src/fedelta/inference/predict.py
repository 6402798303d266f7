"""Predictions of a tuned model for single images, texts and recordings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedelta.data.clients import Name
from fedelta.errors import InputError, RunError
from fedelta.errors import refuse as refuse_data
from fedelta.inference.anytime import (
    at_each_exit,
    at_exit,
    at_first_sure_exit,
    check_confidence,
    check_exit,
    exits_of,
)
from fedelta.inference.objects import Transform, ready_batches
from fedelta.inference.opening import Opening, local_tensors, put_params, refuse_changed
from fedelta.modalities.dialogues import Dialogues
from fedelta.modalities.settings import AudioSettings
from fedelta.modalities.turns import Messages
from fedelta.models.failures import model_errors
from fedelta.models.generation import Sampling, Speaker
from fedelta.models.hub import Backbone
from fedelta.models.objects import Processor
from fedelta.models.source import ModelSource
from fedelta.plugins import refuse_missing
from fedelta.record import rundir
from fedelta.record.missing import advice
from fedelta.tasks.base import Answer, Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.contract import answers_of
from fedelta.tasks.own_loss import OwnLoss
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.exits import exit_blocks

BATCH_SIZE = 32  # examples per pass through the model


@dataclass(frozen=True, repr=False)
class Predictor:
    """A tuned model that is ready to predict; created by `open` or `from_adapter`.

    Args:
        backbone: tuned, one lane, in evaluation mode.
        class_names: in label order; empty if the task has no classes.
        task: what is predicted.
        transform: makes the inputs of one example, without a batch axis; None if examples are such inputs, or if the
            model's own modality makes them.
        tuning: what `module` folds in; None if that has been done.
    """

    backbone: Backbone
    class_names: tuple[str, ...]
    task: Task = field(default_factory=Classification)
    transform: Transform | None = None
    tuning: TuningMethod | None = None

    def __repr__(self) -> str:
        return f"Predictor({type(self.backbone.module).__name__}, {self.task.name!r}, {len(self.class_names)} classes)"

    @classmethod
    def open(
        cls,
        run: str | Path,
        client: Name | None = None,
        *,
        model: nn.Module | None = None,
        processor: Processor | None = None,
        transform: Transform | None = None,
    ) -> Predictor:
        """The model that a run has tuned.

        Args:
            run: a run directory.
            client: name or number of a client, if clients have their own models (`model.batch_norm = "local"`).
            model: as for `from_adapter`, for a run whose model was given as an object.
            processor: likewise.
            transform: likewise.

        Raises:
            RunError: `run` is not a run directory, the run is not finished, or it has one model per client and `client`
                does not select one.
            InputError: there is no such client.
            AdapterError, ModelError: the run's adapter or base model cannot be read, or has changed.
            CheckpointError: the adapter or the clients' names are not as the run wrote them.
        """
        path = Path(run)
        if not (path / rundir.CONFIG).is_file():
            if not path.is_dir():
                rundir.RunDirectory.open(path)
            from_adapter = (
                " An adapter alone is read by `Predictor.from_adapter`." * (path / "adapter_config.json").is_file()
            )
            raise RunError(
                f"{str(run)!r} is not a run directory: it has no `{rundir.CONFIG}`.",
                hint=f"{advice(path)}{from_adapter}",
            )
        if not (path / rundir.ADAPTER).is_dir():
            raise RunError(
                f"{str(run)!r} has no `{rundir.ADAPTER}/`: the run is not finished.",
                hint=f"finish it with `fedelta resume {run}`.",
            )
        refuse_missing(rundir.RunDirectory(path).plugins, f"run {str(run)!r}")
        kept = local_tensors(path, client)
        refuse_changed(path)
        predictor = cls.from_adapter(path / rundir.ADAPTER, model, processor=processor, transform=transform)
        put_params(predictor.backbone, kept)
        return predictor

    @classmethod
    def from_adapter(
        cls,
        directory: str | Path,
        model: ModelSource | nn.Module | str | None = None,
        class_names: Sequence[str] | None = None,
        *,
        processor: Processor | None = None,
        transform: Transform | None = None,
        seed: int | None = None,
        max_length: int | None = None,
        audio: AudioSettings | None = None,
    ) -> Predictor:
        """The base model with an adapter, written by fedelta or by stock PEFT.

        Args:
            directory: of the adapter.
            model: the base model, or its directory or name; by default the one in the adapter.
            class_names: names for the classes, in label order; by default those of the adapter, else of the base model.
                The adapter's names in another order are ignored, because its label order is known.
            processor: tokenizer or image processor of a model of transformers that is given as a module.
            transform: makes the inputs of one example, in the form that rows of the data had without the label, for a
                model that is given as a module; None if examples are such inputs.
            seed: of random base weights; by default that of the run.
            max_length: maximum number of tokens of a text; by default as in the run, else 128.
            audio: how recordings become inputs; by default as in the run.

        Raises:
            AdapterError: the adapter cannot be read, or does not fit the base model.
            ModelError: the base model cannot be read.
        """
        opening = Opening(class_names, seed, {"max_length": max_length, "audio": audio}, processor, transform is None)
        backbone, names, task, tuning = opening.of_adapter(Path(directory), model)
        return cls(backbone, names, task, transform, tuning)

    def module(self) -> nn.Module:
        """Returns a copy of the tuned module, with what was tuned folded in where that is possible."""
        backbone = copy.deepcopy(self.backbone)
        if self.tuning is not None:
            self.tuning.merge(backbone)
        return backbone.module

    def predict(
        self, inputs: Sequence[Any], *, exit: int | None = None, confidence: float | None = None
    ) -> list[Answer]:
        """The model's answer for each example, in order; for a classification, its most probable class.

        A model with exits answers at the last one, unless `exit` or `confidence` is given.

        Args:
            inputs: for a text model, texts. For an image model, any mixture of paths of image files, Pillow images and
                uint8 tensors [C, H, W]. For a model tuned on recordings, any mixture of paths of sound files and pairs
                of a float tensor [samples] or [channels, samples], in -1..1, and its sample rate in Hz. For a model
                that was given as an object: what `transform` takes, or inputs in the form of the data's rows (Any).
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
            hint = "use `generate` or, on the command line, `fedelta predict RUN --prompt TEXT`."
            raise InputError("a language model gives no labels, but texts.", hint=hint)
        if isinstance(self.task, OwnLoss):
            raise InputError(
                "a model with a loss function of your own has no answers that are known.",
                hint="call the tuned module: `result.module()`, or `Predictor.open(run, model=model).module()`.",
            )
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
                    self._logits(batch) if exit is None else at_exit(self.backbone, batch, exit), number
                )
            ]

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        with model_errors(type(self.backbone.module).__name__, batch):
            return self.backbone.logits(batch)

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
            InputError: the model is no language model, or `prompts` is one text.
            DataError: a prompt is empty, or leaves no room for an answer.
        """
        modality = self.backbone.modality
        if not isinstance(modality, Dialogues):
            raise InputError("this model gives no texts: it is no language model.", hint="use `predict`.")
        if isinstance(prompts, str):
            raise InputError("`prompts` is one text, expected a list of prompts.")
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
        return [
            answer
            for number, batch in enumerate(batches)
            for answer in speaker.answers(batch, sampling.of_batch(number), on_text)
        ]

    def answers(self, example: Any) -> Iterator[Answer]:
        """Yields the answer of each exit, lowest first; each block runs when its answer is requested.

        Args:
            example: as in the list for `predict` (Any); read at the call.

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
    def _first_sure(self, inputs: Sequence[Any], confidence: float) -> list[Answer]:
        # One example at a time, because examples may stop at different exits.
        pairs = (at_first_sure_exit(self.backbone, batch, confidence, self.task) for batch in self._batches(inputs, 1))
        return [answer for number, outputs in pairs for answer in self._answers(outputs, number)]

    def _batches(self, inputs: Sequence[Any], size: int = BATCH_SIZE) -> Iterator[dict[str, Tensor]]:
        if isinstance(inputs, str | Path | Tensor | np.ndarray):
            raise InputError(
                f"`inputs` is one {type(inputs).__name__}, expected a list of examples.",
                hint="`[example]`, or `list(inputs)` if its first axis is that of examples.",
            )
        if self.transform is not None or self.backbone.modality is None:
            return ready_batches(self.backbone, inputs, self.transform, size)
        return self.backbone.modality.examples(inputs, size)

    def _answers(self, outputs: Tensor, number: int | None) -> list[Answer]:
        return answers_of(self.task, outputs, self.class_names, number)


def _has_text(prompt: str | Messages) -> bool:
    return bool(prompt.strip()) if isinstance(prompt, str) else any(message["content"].strip() for message in prompt)
