"""From rows to federated data: inputs for a model, and the rows of each client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedelta.data.batches import FederatedData, Inputs, LabelledData
from fedelta.data.columns import Modality
from fedelta.data.division import divide
from fedelta.data.partition import PartitionSettings
from fedelta.data.recordings import audio_inputs
from fedelta.data.sources import RawData
from fedelta.data.stores import image_inputs, text_inputs
from fedelta.data.validation import RowsOf, hold_back
from fedelta.errors import DataError
from fedelta.models.audio import AudioTransform, audio_transform
from fedelta.models.transforms import ImageTransform, TextTransform

if TYPE_CHECKING:
    from datasets import Dataset

Transform = ImageTransform | TextTransform | AudioTransform

PLURALS: dict[Modality, str] = {"image": "images", "text": "texts", "audio": "recordings"}


def modality(transform: Transform | None) -> Modality:
    """What a model with this transform takes; images, where it has none."""
    if isinstance(transform, TextTransform):
        return "text"
    return "audio" if isinstance(transform, AudioTransform) else "image"


def adapted(transform: Transform, raw: RawData) -> Transform:
    """The transform of a model, with what section `[data]` says of it.

    Raises:
        DataError: the model takes another kind of input; recordings are for models that take images.
    """
    if raw.modality == "audio" and isinstance(transform, ImageTransform):
        return audio_transform(transform, raw.source.audio)
    if raw.modality != modality(transform):
        raise DataError(
            f"column {raw.columns.input!r} holds {PLURALS[raw.modality]}, but the model takes "
            f"{PLURALS[modality(transform)]}",
            hint="choose another `model.source` (recordings go to image classifiers), or set `data.image_column`, "
            "`data.text_column` or `data.audio_column`",
        )
    if isinstance(transform, TextTransform):
        return replace(transform, max_length=raw.source.max_length)
    if isinstance(transform, AudioTransform):
        return replace(transform, settings=raw.source.audio)
    return transform


def federate(
    raw: RawData,
    settings: PartitionSettings,
    transform: Transform,
    *,
    seed: int,
    held_out: Callable[[Sequence[int]], Collection[int]] = lambda _: (),
) -> FederatedData:
    """The data of all clients, ready for a model.

    Args:
        raw: what `read` returned.
        settings: section `[partition]`.
        transform: of the model; used as `adapted` to the data.
        seed: of the run.
        held_out: all client ids to those that no round asks; they give up no row for validation either.

    Raises:
        DataError: the data cannot be divided like that, an input is unreadable, the model takes another kind of input,
            or no client can give up a row for validation.
    """
    transform = adapted(transform, raw)
    client = raw.columns.client
    # Before the inputs: an impossible division is found at once, decoding takes a while.
    client_ids = None if client is None else raw.train[client][:]
    rows = divide(settings, raw.train_labels, client_ids, seed=seed, row_numbers=raw.train_row_numbers)
    unseen_ids = held_out(sorted(rows))
    unseen = {client: rows.pop(client) for client in sorted(unseen_ids)}
    origin = f"the training set of data source {raw.source.source!r}"
    train = _inputs(raw, raw.train, transform, raw.train_row_numbers, origin=origin)
    if raw.source.evaluate_on == "validation":
        rows, held = hold_back(rows, raw.source.validation_fraction, seed=seed)
        evaluated = LabelledData(RowsOf(train, held), raw.train_labels[held])
    else:
        origin = f"the test set of data source {(raw.source.test_source or raw.source.source)!r}"
        test = _inputs(raw, raw.test, transform, raw.test_row_numbers, origin=origin)
        evaluated = LabelledData(test, raw.test_labels)
    return FederatedData(
        train=LabelledData(train, raw.train_labels),
        test=evaluated,
        class_names=raw.class_names,
        partition=rows,
        unseen=unseen,
    )


def _inputs(raw: RawData, dataset: Dataset, transform: Transform, row_numbers: Tensor, *, origin: str) -> Inputs:
    column, limit = raw.columns.input, raw.source.max_memory_mib
    if isinstance(transform, TextTransform):
        return text_inputs(dataset, column, transform, origin=origin, row_numbers=row_numbers)
    if isinstance(transform, AudioTransform):
        return audio_inputs(dataset, column, transform, origin=origin, max_memory_mib=limit, row_numbers=row_numbers)
    return image_inputs(dataset, column, transform, origin=origin, max_memory_mib=limit, row_numbers=row_numbers)
