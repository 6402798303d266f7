"""Images and texts by row: what is kept, and what a model gets."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedelta.data.stored import StoredColumn
from fedelta.errors import DataError
from fedelta.modalities.image import Images
from fedelta.modalities.stores import Encoded, Stored, evenly_spaced
from fedelta.modalities.text import StoredTexts, Texts
from fedelta.modalities.value_range import ValueRange

TO_8 = Images.from_preprocessor({}, 8, 3)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def store_rows(values: list[object], feature: object | None = None, max_memory_mib: int = 1):
    features = None if feature is None else Features({"image": feature})
    dataset = Dataset.from_dict({"image": values}, features=features)
    return TO_8.store(column(dataset, "image"), max_memory_mib)


def column(dataset: Dataset, name: str, numbers: torch.Tensor | None = None) -> StoredColumn:
    return StoredColumn.of(dataset, name, origin="the test", numbers=numbers)


def test_spread_rows_are_the_first_and_the_last_and_those_between():
    assert evenly_spaced(3, 32).tolist() == [0, 1, 2]
    assert (evenly_spaced(1000, 32)[0], evenly_spaced(1000, 32)[-1], len(evenly_spaced(1000, 32).unique())) == (
        0,
        999,
        32,
    )
    # In float32 16,777,219 is 16,777,220, a row too far.
    assert evenly_spaced(16_777_220, 2).tolist() == [0, 16_777_219]


def test_images_of_one_small_size_are_kept_as_they_are():
    inputs = store_rows([png(pixels) for pixels in pictures((4, 6), (4, 6))], Value("binary"))
    assert isinstance(inputs, Stored)
    assert inputs.raw.shape == (2, 3, 4, 6)
    assert inputs.fetch(torch.tensor([1, 0, 1]))["pixel_values"].shape == (3, 3, 8, 8)


@pytest.mark.parametrize("sizes", [[(4, 4), (5, 4)], [(16, 16), (16, 16)], [(4, 16), (4, 16)]])
def test_images_of_many_sizes_or_too_large_are_resized_when_read(sizes):
    inputs = store_rows([png(pixels) for pixels in pictures(*sizes)], Value("binary"))
    assert inputs.raw.shape == (2, 3, 8, 8)


def test_rows_come_in_the_order_asked_for():
    flat = [np.full((8, 8), 51 * row, dtype=np.uint8) for row in range(4)]
    inputs = store_rows([png(pixels) for pixels in flat], Value("binary"))
    # (51 * row / 255 - 0.5) / 0.5 = 0.4 * row - 1
    pixels = inputs.fetch(torch.tensor([3, 0, 2]))["pixel_values"]
    torch.testing.assert_close(pixels[:, 0, 0, 0], torch.tensor([0.2, -1.0, -0.2]))


@pytest.mark.parametrize(
    "feature",
    [
        Array2D((8, 8), "uint8"),
        List(List(Value("int64"))),
        List(Value("int32"), length=8),
    ],
)
def test_arrays_are_images(feature):
    pixels = np.arange(64).reshape(8, 8)
    if feature == List(Value("int32"), length=8):
        feature = List(feature, length=8)
    assert torch.equal(store_rows([pixels], feature).raw, torch.from_numpy(pixels)[None, None].byte())


@pytest.mark.parametrize("sizes", [[(4, 6), (4, 6)], [(16, 12), (5, 7)]])
@pytest.mark.parametrize("feature", [Value("binary"), ImageFeature()])
def test_without_memory_images_are_decoded_at_every_fetch_to_the_same_values(sizes, feature):
    values = [png(pixels) for pixels in pictures(*sizes)]
    lazy, eager = store_rows(values, feature, max_memory_mib=0), store_rows(values, feature)
    assert isinstance(lazy, Encoded)
    assert len(lazy) == len(eager) == 2
    rows = torch.tensor([1, 0])
    assert torch.equal(lazy.fetch(rows)["pixel_values"], eager.fetch(rows)["pixel_values"])


def test_rows_of_a_selection_are_numbered_within_it():
    dataset = Dataset.from_dict({"image": [png(np.full((8, 8), v, dtype=np.uint8)) for v in (10, 20, 30)]})
    inputs = TO_8.store(column(dataset.select([2, 0]), "image"), 1)
    assert inputs.raw[:, 0, 0, 0].tolist() == [30, 10]


def test_every_row_without_an_image_is_named():
    good = png(np.zeros((8, 8), dtype=np.uint8))
    values = [
        {"bytes": b"text", "path": "a.png"},
        {"bytes": good, "path": "b.png"},
        {"bytes": b"", "path": None},
    ]
    with pytest.raises(
        DataError, match=r"(?s)2 problems in the test.*row 0 \(a.png\).*row 2: .*hint: repair"
    ) as raised:
        store_rows(values)
    assert "b.png" not in str(raised.value)


def test_damaged_images_and_other_values_are_named_together():
    good = png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    cut_off = {"bytes": good[: len(good) // 2], "path": "cut.png"}
    values = [cut_off, {"bytes": b"text", "path": "a.png"}, {"bytes": good, "path": "b.png"}]
    with pytest.raises(
        DataError, match=r"(?s)2 problems in the test.*row 0 \(cut.png\): damaged.*row 1 \(a.png\): not an image"
    ):
        store_rows(values)


def test_rows_are_called_by_the_numbers_given():
    content = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    dataset = Dataset.from_dict({"image": [content, content[: len(content) // 2]], "text": ["a", ""]})
    numbers = torch.tensor([40, 70])
    with pytest.raises(DataError, match=r"(?s)row 70: damaged image.*rows are counted from 0"):
        TO_8.store(column(dataset, "image", numbers), 1)
    lazy = TO_8.store(column(dataset, "image", numbers), 0)
    with pytest.raises(DataError, match="row 70: damaged image"):
        lazy.fetch(torch.tensor([1]))
    with pytest.raises(DataError, match="1 rows of column 'text' hold no text: rows 70"):
        texts().store(column(dataset, "text", numbers), 1)
    nothing = Dataset.from_dict({"image": [b"text", content]})
    with pytest.raises(DataError, match="row 40: not an image in a known format"):
        TO_8.store(column(nothing, "image", numbers), 0)


def test_ten_bad_rows_are_named_and_the_others_counted():
    with pytest.raises(DataError, match=r"(?s)14 problems.*row 9: .*and 4 more"):
        store_rows([b"text"] * 14, Value("binary"))


def test_a_damaged_image_is_refused_when_it_is_read_or_fetched():
    content = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    values = [content, content[: len(content) // 2]]
    with pytest.raises(DataError, match="row 1: damaged image"):
        store_rows(values, Value("binary"))
    lazy = store_rows(values, Value("binary"), max_memory_mib=0)
    with pytest.raises(DataError, match=r"row 1: damaged image"):
        lazy.fetch(torch.tensor([0, 1]))


def texts() -> Texts:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return Texts(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]"), max_length=4)


def test_texts_are_tokenised_once_and_padded_per_batch():
    dataset = Dataset.from_dict({"text": ["a", "b a", "a b a b a b"]})
    inputs = texts().store(column(dataset, "text"), 1)
    assert isinstance(inputs, StoredTexts)
    assert len(inputs) == 3
    batch = inputs.fetch(torch.tensor([1, 0]))
    assert batch["input_ids"].tolist() == [[3, 2], [2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert inputs.fetch(torch.tensor([2, 0, 1]))["input_ids"].tolist() == [
        [2, 3, 2, 3],
        [2, 0, 0, 0],
        [3, 2, 0, 0],
    ]


def test_rows_without_text_are_refused():
    dataset = Dataset.from_dict({"text": ["a", None, ""]})
    with pytest.raises(DataError, match="2 rows of column 'text' hold no text: rows 1, 2"):
        texts().store(column(dataset, "text"), 1)


def test_the_range_of_the_training_data_counts_for_every_image():
    ramp = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
    train = column(Dataset.from_dict({"image": [png(ramp), png(ramp // 2)]}), "image")
    fitted = TO_8.fitted(train)
    assert fitted.value_range == ValueRange(0, 4095)
    assert fitted.fitted(column(Dataset.from_dict({"image": [png(ramp * 2)]}), "image")) is fitted
    for max_memory_mib in (0, 1):
        pixels = fitted.store(train, max_memory_mib).fetch(torch.arange(2))["pixel_values"]
        assert [round(float(image.max()), 1) for image in pixels] == [1.0, 0.0]
    assert torch.equal(pixels[:1], next(fitted.examples([Image.fromarray(ramp)], 1))["pixel_values"])
    with pytest.raises(DataError, match="values 0 to 4095, far outside the training data's 0 to 255"):
        TO_8.examples([Image.fromarray(ramp)], 1)


def test_images_of_nearly_one_value_cause_a_warning(caplog):
    values = [png(np.full((8, 8), 7, dtype=np.uint8)), png(np.arange(64, dtype=np.uint8).reshape(8, 8))]
    for max_memory_mib in (0, 1):
        caplog.clear()
        store_rows(values, Value("binary"), max_memory_mib)
        assert "the test: in 1 of 2 images checked, pixels are nearly all equal (row 0)" in caplog.text
    caplog.clear()
    TO_8.examples([Image.new("L", (8, 8))], 1)
    assert "the pixels of an image are nearly all equal: check its range of values" in caplog.text


def test_files_of_more_than_one_image_cause_a_warning(caplog):
    first, second = (Image.fromarray(array) for array in pictures((8, 8), (8, 8)))
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=[second])
    assert torch.equal(
        store_rows([file.getvalue()], Value("binary")).raw[0],
        torch.from_numpy(np.asarray(first).copy()).permute(2, 0, 1),
    )
    assert "the test has files with more than one image; only the first of each is used" in caplog.text
