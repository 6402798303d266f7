"""Lets a language model answer some test prompts, and measures its answers against the responses of the data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeGuard

import torch
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.engine.lanes import LaneEngine
from fedelta.modalities.dialogues import IGNORED, Dialogues
from fedelta.modalities.stores import evenly_spaced
from fedelta.models.generation import Sampling, Speaker
from fedelta.models.hub import Backbone
from fedelta.params import Params
from fedelta.tasks.base import Sums, Task
from fedelta.tasks.details import Details
from fedelta.tasks.language import Language, compared

_TOGETHER = 16  # prompts that are continued in one batch; fixed, so that the last bits are


@dataclass(frozen=True)
class Compared:
    """How good answers are.

    Args:
        total: sums over all answers, from which `Task.values` computes measures; empty without answers.
        of_clients: number of a client to the sums over its own.
    """

    total: Sums = Sums()  # noqa: RUF009 a frozen value
    of_clients: Mapping[int, Sums] = field(default_factory=dict)


def has_answers(task: Task) -> TypeGuard[Language]:
    """Whether the task asks for answers to test prompts."""
    return isinstance(task, Language) and task.num_answers > 0


def compared_answers(backbone: Backbone, task: Task, test: Examples, rows: Tensor | None = None) -> Compared:
    """Lets the model that is in lane 0 answer prompts, and compares its answers with the data; nothing for other tasks.

    Args:
        backbone: the model, with one lane in use.
        task: of the run.
        test: dialogues; prompts spread over them are answered, greedily.
        rows: rows of `test`, int64, of which the prompts are; None for all.
    """
    modality = backbone.modality
    if not has_answers(task) or not isinstance(modality, Dialogues):
        return Compared()
    rows = torch.arange(len(test)) if rows is None else rows
    rows = rows[evenly_spaced(len(rows), task.num_answers)]
    speaker = Speaker(backbone.module, modality.tokenizer, modality.pad, modality.context)
    sampling = Sampling(max_new_tokens=task.max_new_tokens)
    total, of_clients = Sums(), defaultdict[int, Sums](Sums)
    for batch in rows.split(_TOGETHER):
        questions = [(row, *question) for row in batch if (question := _question(test, row)) is not None]
        answers = speaker.answers([prompt for _, prompt, _ in questions], sampling) if questions else []
        for (row, _, response), answer in zip(questions, answers, strict=True):
            sums = compared([answer], [_text(modality, response)])
            total += sums
            if test.clients is not None:
                of_clients[int(test.clients[row])] += sums
    return Compared(total, of_clients)


def answer_sums(engine: LaneEngine, params: Params, test: Examples, rows: Tensor | None = None) -> Sums:
    """The sums over the answers of a model, to be added to those of an evaluation; see `compared_answers`."""
    engine.evaluator.load(params)
    return compared_answers(engine.backbone, engine.task, test, rows).total


def with_answers(details: Details, backbone: Backbone, task: Task, test: Examples) -> Details:
    """Returns `details` with exact match and ROUGE-L, overall and by client; unchanged for any other task.

    Args:
        details: of the model that is in lane 0.
        backbone: as for `compared_answers`.
        task: of the run.
        test: dialogues.
    """
    answers = compared_answers(backbone, task, test)
    by_client = {
        client: {**values, **_means(answers.of_clients.get(client, Sums()))}
        for client, values in details.by_client.items()
    }
    return replace(details, measures={**details.measures, **_means(answers.total)}, by_client=by_client)


def _means(sums: Sums) -> dict[str, float]:
    return {name: sums.mean(name) for name in sums.totals}


def _question(test: Examples, row: Tensor) -> tuple[list[int], list[int]] | None:
    """The tokens before the last answer of a row, and those of the answer; None for a text without a prompt."""
    inputs = test.inputs.fetch(row.view(1))
    ids, labels = inputs["input_ids"][0], inputs["labels"][0]
    is_target = labels != IGNORED
    begins = (is_target & ~torch.cat([is_target.new_zeros(1), is_target[:-1]])).nonzero()
    begin = int(begins[-1])
    if begin == 0:
        return None
    end = begin + int(is_target[begin:].sum())
    return ids[:begin].tolist(), ids[begin:end].tolist()


def _text(modality: Dialogues, ids: list[int]) -> str:
    return str(modality.tokenizer.decode(ids, skip_special_tokens=True))
