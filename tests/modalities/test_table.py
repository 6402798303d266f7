"""What holds for every modality in the table."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.modalities.test_text import tokenizer
from tests.sounds import encoded, tone

from fedelta.data.stored import StoredColumn
from fedelta.errors import DataError, ModelError
from fedelta.modalities.audio import Recordings
from fedelta.modalities.base import Modality, ModelFiles
from fedelta.modalities.image import Images
from fedelta.modalities.settings import AudioSettings, Preparation
from fedelta.modalities.table import MODALITIES
from fedelta.modalities.text import Texts
from fedelta.modalities.words import WORD_STARTS, Words
from fedelta.seeds import stream

OF_A_MODEL: dict[str, Modality] = {
    "image": Images(8, (0.5,) * 3, (0.25,) * 3),
    "text": Texts(tokenizer(), max_length=6),
    "audio": Recordings(AudioSettings(sample_rate=8000, num_mel_bins=24, num_frames=32), 8),
    "words": Words(Texts(tokenizer(), max_length=6)),
}


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


# As a column of a data set holds them, and as a user gives them to `Predictor.predict`.
STORED = {
    "image": [png(10), png(200)],
    "text": ["a b b", "b"],
    "audio": [encoded(tone(300)), encoded(tone(900))],
    "words": [["a", "b", "b"], ["b"]],
}


def user_examples(name: str, folder) -> list[object]:
    if name in {"text", "words"}:
        return list(STORED[name])
    paths = [folder / f"{index}" for index in range(2)]
    for path, content in zip(paths, STORED[name], strict=True):
        path.write_bytes(content)
    return paths


def column(name: str) -> StoredColumn:
    return StoredColumn.of(Dataset.from_dict({"it": STORED[name]}), "it", origin="the test")


def test_every_modality_is_tested_here():
    assert OF_A_MODEL.keys() == STORED.keys() == MODALITIES.keys()
    assert all(isinstance(OF_A_MODEL[name], kind) for name, kind in MODALITIES.items())


@pytest.mark.parametrize("name", MODALITIES)
def test_an_example_becomes_the_same_inputs_in_training_and_in_prediction(name, tmp_path):
    modality = OF_A_MODEL[name]
    stored = modality.store(column(name), max_memory_mib=1).fetch(torch.arange(2))
    (single,) = modality.examples(user_examples(name, tmp_path), batch_size=2)
    assert stored.keys() == single.keys()
    assert all(torch.equal(stored[key], single[key]) for key in stored)


@pytest.mark.parametrize("name", MODALITIES)
def test_examples_come_in_batches_in_order(name, tmp_path):
    modality, examples = OF_A_MODEL[name], user_examples(name, tmp_path)
    one_by_one = list(modality.examples(examples, batch_size=1))
    for example, batch in zip(examples, one_by_one, strict=True):
        (alone,) = modality.examples([example], batch_size=1)
        assert all(len(batch[key]) == 1 and torch.equal(batch[key], alone[key]) for key in alone)
    assert not all(torch.equal(one_by_one[0][key], one_by_one[1][key]) for key in one_by_one[0])


@pytest.mark.parametrize("name", MODALITIES)
def test_values_that_are_not_examples_are_named_at_the_call(name):
    modality = OF_A_MODEL[name]
    with pytest.raises(
        DataError, match=rf"1 problem in {modality.plural}:\n  - input 0: not an? {modality.singular} but int"
    ):
        modality.examples([3], batch_size=2)


@pytest.mark.parametrize("name", MODALITIES)
def test_inputs_for_export_are_those_of_examples(name, tmp_path):
    modality = OF_A_MODEL[name]
    inputs = modality.export_inputs(3, 5, stream(0))
    (single,) = modality.examples(user_examples(name, tmp_path), batch_size=2)
    # An exported model answers for every token, and is not told where words start.
    assert list(inputs) == [key for key in single if key != WORD_STARTS]
    for key, tensor in inputs.items():
        fixed = [axis for axis in range(tensor.dim()) if axis not in modality.dynamic_axes]
        assert len(tensor) == 3
        assert [tensor.shape[axis] for axis in fixed] == [single[key].shape[axis] for axis in fixed]


@pytest.mark.parametrize("name", MODALITIES)
def test_no_example_is_larger_than_the_costliest(name, tmp_path):
    costliest = OF_A_MODEL[name].costliest()
    (single,) = OF_A_MODEL[name].examples(user_examples(name, tmp_path)[:1], batch_size=1)
    assert {key: len(tensor) for key, tensor in costliest.items()} == dict.fromkeys(single, 1)
    assert all(costliest[key].numel() >= single[key].numel() for key in single)


@pytest.mark.parametrize("name", MODALITIES)
def test_the_preparation_recreates_the_modality(name):
    modality = OF_A_MODEL[name]
    assert modality.prepared(modality.preparation) == modality
    assert modality.prepared(Preparation()) == modality
    assert modality.settings <= {key for key, _ in modality.preparation}


def test_images_become_recordings_where_these_are_described():
    images, audio = OF_A_MODEL["image"], AudioSettings(num_frames=7)
    assert images.prepared(Preparation(max_length=3, audio=audio)) == Recordings(audio, 8, 3)
    texts = OF_A_MODEL["text"]
    assert texts.prepared(Preparation(max_length=3, audio=audio)) == Texts(texts.tokenizer, max_length=3)


def test_a_model_of_images_may_be_made_for_recordings():
    files = ModelFiles(config=object(), place=None, image_size=16)
    assert Recordings.for_model(files) == Recordings(AudioSettings(), 16, 3)
    assert Images.for_model(files) == Images.from_preprocessor({}, 16, 3)
    with pytest.raises(ModelError, match=r"a text model needs a tokenizer: set `model.source`"):
        Texts.for_model(files)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image", {"kind": "image", "scale": 1 / 255, "image_size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3,
                   "num_channels": 3, "resize": "stretch", "value_range": None, "processor": {
                       "image_processor_type": "ViTImageProcessor", "do_convert_rgb": True, "do_resize": True,
                       "size": {"height": 8, "width": 8}, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
                       "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}}),
        ("text", {"kind": "text", "max_length": 6, "tokenizer": ""}),
    ],
)  # fmt: skip
def test_the_description_says_how_inputs_are_made(name, expected):
    assert OF_A_MODEL[name].description == expected


def test_the_description_of_recordings_holds_their_settings():
    description = OF_A_MODEL["audio"].description
    assert (description["kind"], description["image_size"], description["num_channels"]) == ("audio", 8, 3)
    assert AudioSettings(**description["spectrogram"]) == OF_A_MODEL["audio"].audio
