"""A few test examples that the finished model answered wrongly, for the page of a run.

They are the run's own test rows. A deployment has none: no example of a site may leave it, and the server keeps none.
"""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.modalities.base import Modality
from fedelta.modalities.image import Images
from fedelta.modalities.text import Texts
from fedelta.modalities.words import Words
from fedelta.record.files import Record
from fedelta.tasks.base import Task
from fedelta.tasks.details import Answered

MAX_MISTAKES = 12
MAX_PIXELS, MAX_CHARACTERS = 96, 160
_TRUTHS = ("label", "labels", "tags")  # keys of the true answer in `Task.records`, beside `predicted`


class Mistakes:
    """Collects the wrong answers that the model was surest of; of tasks without probabilities the first ones.

    Args:
        test: the examples.
        task: says what is wrong.
        class_names: in label order.
        modality: of the model; None: examples are not shown.
    """

    def __init__(self, test: Examples, task: Task, class_names: Sequence[str], modality: Modality | None) -> None:
        self._test, self._task, self._class_names, self._modality = test, task, class_names, modality
        self._surest: list[tuple[float, int, Record]] = []

    def __call__(self, batch: Answered) -> None:
        """Looks at the answers of a batch."""
        answers = self._task.records(batch.outputs, batch.targets, self._class_names)
        for row, record in zip(batch.rows.tolist(), answers, strict=True):
            truth = next((str(record[key]) for key in _TRUTHS if key in record), None)
            answer = record.get("predicted")
            if truth is None or answer is None or truth == answer:
                continue
            sureness = float(record.get(f"probability of {answer}", 0.0))
            entry: Record = {"row": self._number(row), "true": _short(truth), "answer": _short(str(answer))}
            entry |= {"probability": sureness} if sureness else {}
            heapq.heappush(self._surest, (sureness, -row, entry))
            if len(self._surest) > MAX_MISTAKES:
                heapq.heappop(self._surest)

    def records(self) -> list[Record]:
        """At most `MAX_MISTAKES`, the surest first, each with a small image or the beginning of a text if it is one."""
        return [entry | self._example(-row) for _, row, entry in sorted(self._surest, key=lambda item: item[:2])[::-1]]

    def _number(self, row: int) -> int:
        return row if self._test.numbers is None else int(self._test.numbers[row])

    def _example(self, row: int) -> Record:
        inputs = self._test.inputs.fetch(torch.tensor([row]))
        if isinstance(self._modality, Images) and "pixel_values" in inputs:
            return {"image": _png(inputs["pixel_values"][0], self._modality)}
        if not isinstance(self._modality, Texts | Words) or "input_ids" not in inputs:
            return {}
        texts = self._modality.texts if isinstance(self._modality, Words) else self._modality
        ids = inputs["input_ids"][0].tolist()
        return {"text": _short(str(texts.tokenizer.decode(ids, skip_special_tokens=True)).strip())}


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def _png(values: Tensor, images: Images) -> str:
    """An image of the model's inputs [C, H, W] as the base64 of a small PNG."""
    from PIL import Image

    mean, std = (values.new_tensor(numbers).view(-1, 1, 1) for numbers in (images.mean, images.std))
    pixels = ((values * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3])
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
