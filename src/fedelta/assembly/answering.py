"""Lets a language model answer some test prompts, and measures its answers against the responses of the data."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.modalities.dialogues import IGNORED, Dialogues
from fedelta.modalities.stores import evenly_spaced
from fedelta.models.generation import Sampling, Speaker
from fedelta.models.hub import Backbone
from fedelta.tasks.base import Sums, Task
from fedelta.tasks.details import Details
from fedelta.tasks.language import Language, compared

_TOGETHER = 16  # prompts that are continued in one batch; fixed, so that the last bits are


def with_answers(details: Details, backbone: Backbone, task: Task, test: Examples) -> Details:
    """Returns `details` with exact match and ROUGE-L, overall and by client; unchanged for any other task.

    Args:
        details: of the model that is in lane 0.
        backbone: that model, with one lane in use.
        task: of the run.
        test: dialogues; prompts spread over them are answered, greedily.
    """
    modality = backbone.modality
    if not isinstance(task, Language) or not isinstance(modality, Dialogues) or not task.num_answers:
        return details
    rows = evenly_spaced(len(test), task.num_answers)
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
    if not total.totals:
        return details
    by_client = {
        client: {**values, **_means(of_clients[client])} if client in of_clients else values
        for client, values in details.by_client.items()
    }
    return replace(details, measures={**details.measures, **_means(total)}, by_client=by_client)


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
