"""Predictions from run directories and adapters, for every kind of input."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.inference.adapters import CLASS_NAMES, adapter_of, backbone_of, our_logits, write
from tests.inference.conftest import IMAGE

from fedelta.data.stored import StoredColumn
from fedelta.errors import AdapterError, DataError, InputError, RunError
from fedelta.inference.adapter import SavedAdapter, write_adapter
from fedelta.inference.predict import Predictor
from fedelta.modalities.settings import Preparation
from fedelta.models.anatomy import ANATOMIES
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.tuning.adapter import Adapter as Bottleneck
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt


def make_run(directory: Path, base: Path, tuning: TuningMethod, **model: Any) -> Path:
    """The files of a finished run that a prediction needs; of the configuration, that it is there."""
    directory.mkdir()
    (directory / "config.toml").write_text("")
    source = ModelSource(source=str(base), **model)
    write(
        directory / "adapter",
        base.name,
        tuning,
        base,
        model=source,
        preparation=Preparation(max_length=3, value_range=(0, 65535)),
    )
    return directory


def random_images(num: int, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def pillow(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.fixture
def predictor(checkpoint, tmp_path) -> Predictor:
    return Predictor.open(make_run(tmp_path / "run", checkpoint("vit"), Lora(r=2)))


@pytest.mark.parametrize(
    "tuning",
    [Full(), Head(), Bias(), Lora(r=2), Bottleneck(), Prompt(), Combined(methods=(Lora(r=2), Bottleneck()))],
    ids=lambda tuning: tuning.name,
)
def test_a_run_answers_with_the_probabilities_of_its_model(tuning, checkpoint, tmp_path):
    base = checkpoint("vit")
    predictor = Predictor.open(str(make_run(tmp_path / "run", base, tuning)))
    images = random_images(3)
    backbone = backbone_of(base)
    expected = our_logits(adapter_of(tuning, base), backbone, backbone.modality.transform(images)).double().softmax(1)
    for row, prediction in zip(expected.tolist(), predictor.predict(list(images)), strict=True):
        assert list(prediction.probabilities) == list(CLASS_NAMES)
        assert list(prediction.probabilities.values()) == pytest.approx(row, abs=1e-6)
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.label == CLASS_NAMES[row.index(max(row))]
        assert prediction.probability == prediction.probabilities[prediction.label]


def test_files_pillow_images_and_tensors_of_the_same_pixels_agree(predictor, tmp_path):
    pixels = random_images(1)[0]
    pillow(pixels).save(tmp_path / "a.png")
    answers = predictor.predict([tmp_path / "a.png", str(tmp_path / "a.png"), pillow(pixels), pixels])
    assert len(set(map(repr, answers))) == 1


MODES = {
    "gray": lambda image: image.convert("L"),
    "black and white": lambda image: image.convert("1"),
    "palette": lambda image: image.quantize(16),
    "transparent": lambda image: image.convert("RGBA"),
    "16 bits": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256),
    "cmyk": lambda image: image.convert("CMYK"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_is_read_like_its_file(mode, predictor, tmp_path):
    image = MODES[mode](pillow(random_images(1)[0]))
    path = tmp_path / ("a.tiff" if image.mode == "CMYK" else "a.png")
    image.save(path)
    from_file, from_pillow = predictor.predict([path, image])
    assert from_file == from_pillow


def test_a_note_of_the_camera_is_followed(predictor, tmp_path):
    pixels = random_images(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    pillow(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        answers = predictor.predict([tmp_path / "a.png", opened, torch.rot90(pixels, -1, (1, 2))])
    assert len(set(map(repr, answers))) == 1


@pytest.mark.parametrize("size", [8, 16, 40])
def test_an_image_is_prepared_as_in_training(size, predictor, tmp_path):
    from datasets import Dataset

    buffer = io.BytesIO()
    pillow(random_images(1, size)[0]).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    column = StoredColumn.of(Dataset.from_dict({"image": [buffer.getvalue()]}), "image", origin="test")
    stored = predictor.backbone.modality.store(column, max_memory_mib=1)
    with torch.no_grad():
        expected = predictor.backbone.logits(stored.fetch(torch.tensor([0]))).double().softmax(1)
    (answer,) = predictor.predict([tmp_path / "a.png"])
    assert list(answer.probabilities.values()) == expected[0].tolist()


def test_many_examples_are_answered_in_order(predictor):
    images = list(random_images(70))
    together = predictor.predict(images)
    alone = [predictor.predict([image])[0] for image in images]
    assert [item.label for item in together] == [item.label for item in alone]
    assert [item.probability for item in together] == pytest.approx([item.probability for item in alone], abs=1e-5)
    assert predictor.predict([]) == []


def test_everything_that_is_no_image_is_named_at_once(predictor, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    pillow(random_images(1)[0]).save(tmp_path / "fine.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "fine.png").read_bytes()[:200])
    inputs = [
        tmp_path / "notes.txt", tmp_path / "fine.png", tmp_path / "cut.png", tmp_path / "absent.png", tmp_path,
        torch.zeros(3, 4, 4), 7,
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        predictor.predict(inputs)
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 problems in images:"
    for line, expected in zip(
        lines[1:],
        (
            "notes.txt': not an image in a known format", "cut.png': ", "absent.png': No such file or directory",
            "Is a directory", "input 5: a torch.float32 tensor of shape (3, 4, 4), expected uint8",
            "input 6: not an image but int", "hint: give image files",
        ),
        strict=True,
    ):  # fmt: skip
        assert expected in line


def test_one_example_instead_of_a_list_is_a_misuse(predictor):
    with pytest.raises(InputError, match="`inputs` is one str, expected a list of examples"):
        predictor.predict("photo.png")


def test_texts_are_cut_as_in_the_run(checkpoint, tmp_path):
    base = checkpoint("bert")
    predictor = Predictor.open(make_run(tmp_path / "run", base, Lora(r=2)))
    long, cut, other = predictor.predict(["the cat sits on the tree", "the cat sits", "not a bird"])
    assert long == cut != other
    backbone = backbone_of(base)
    inputs = backbone.modality.transform(backbone.modality.encode(["the cat sits", "not a bird"]))
    expected = our_logits(adapter_of(Lora(r=2), base), backbone, inputs).double().softmax(1)
    assert list(other.probabilities.values()) == pytest.approx(expected[1].tolist(), abs=1e-6)


def test_everything_that_is_no_text_is_named_at_once(checkpoint, tmp_path):
    write(tmp_path / "a", "bert", Head(), checkpoint("bert"))
    predictor = Predictor.from_adapter(tmp_path / "a")
    with pytest.raises(
        DataError, match=r"(?s)2 problems in texts:.*input 1: an empty text.*input 2: not a text but int"
    ):
        predictor.predict(["fine", " ", 3])


def test_an_adapter_is_enough_where_its_base_model_can_be_found(checkpoint, tmp_path):
    write(tmp_path / "a", "vit", Lora(r=2), checkpoint("vit"))
    run = make_run(tmp_path / "run", checkpoint("vit"), Lora(r=2))
    images = list(random_images(2))
    assert Predictor.from_adapter(tmp_path / "a").predict(images) == Predictor.open(run).predict(images)


def test_class_names_come_from_the_caller_the_adapter_or_the_base_model(checkpoint, tmp_path):
    base = checkpoint("vit")
    write(tmp_path / "named", "vit", Head(), base, ("x", "y", "z"))
    write(tmp_path / "unnamed", "vit", Lora(), base)
    (tmp_path / "unnamed/fedelta.json").unlink()
    assert Predictor.from_adapter(tmp_path / "named", class_names=["1", "2", "3"]).class_names == ("1", "2", "3")
    assert Predictor.from_adapter(tmp_path / "named").class_names == ("x", "y", "z")
    # The adapter knows which of its classes is which.
    assert Predictor.from_adapter(tmp_path / "named", class_names=["z", "x", "y"]).class_names == ("x", "y", "z")
    assert Predictor.from_adapter(tmp_path / "unnamed").class_names == CLASS_NAMES
    with pytest.raises(AdapterError, match=r"2 `class_names` were given \('no', 'yes'\), but the adapter has 3"):
        Predictor.from_adapter(tmp_path / "named", class_names=["no", "yes"])


def test_a_run_answers_when_the_adapter_that_it_started_from_is_gone(checkpoint, tmp_path):
    run = make_run(tmp_path / "run", checkpoint("vit"), Lora(r=2), adapter=str(tmp_path / "gone"))
    (run / "config.toml").write_text(f'[model]\nsource = "{checkpoint("vit")}"\nadapter = "{tmp_path / "gone"}"\n')
    assert Predictor.open(run).predict(list(random_images(1)))[0].label in CLASS_NAMES


def test_an_explicit_argument_wins_over_what_the_adapter_records(checkpoint, tmp_path):
    base = checkpoint("vit")
    recorded = ModelSource(source=str(base), image_size=32, pretrained=False)
    write(tmp_path / "a", "vit", Lora(r=2), base, model=recorded, seed=4)
    images = list(random_images(1))
    answers = Predictor.from_adapter(tmp_path / "a").predict(images)
    assert Predictor.from_adapter(tmp_path / "a", recorded, seed=4).predict(images) == answers
    assert Predictor.from_adapter(tmp_path / "a", seed=0).predict(images) != answers
    smaller = Predictor.from_adapter(tmp_path / "a", ModelSource(source=str(base)))
    assert smaller.backbone.modality.image_size == 16


def test_an_explicit_length_wins_over_that_of_the_run(checkpoint, tmp_path):
    write(tmp_path / "a", "bert", Head(), checkpoint("bert"), preparation=Preparation(max_length=3))
    lengths = [
        Predictor.from_adapter(tmp_path / "a", max_length=given).backbone.modality.max_length for given in (None, 5)
    ]
    assert lengths == [3, 5]


def test_a_base_model_of_an_architecture_alone_is_made_again(tmp_path):
    model = ModelSource(architecture={"model_type": "vit", **IMAGE})
    backbone, images = build(model, CLASS_NAMES, seed=6), random_images(2)
    params = {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.arange(3.0)}
    adapter = SavedAdapter(Head(), params, "", CLASS_NAMES, model=model, seed=6)
    write_adapter(tmp_path / "a", adapter, backbone.anatomy, {})
    expected = our_logits(adapter, backbone, backbone.modality.transform(images)).double().softmax(1)
    results = [
        list(item.probabilities.values()) for item in Predictor.from_adapter(tmp_path / "a").predict(list(images))
    ]
    assert results == expected.tolist()


def test_a_run_at_another_image_size_answers_at_that_size(checkpoint, tmp_path):
    base = checkpoint("vit")
    predictor = Predictor.open(make_run(tmp_path / "run", base, Lora(r=2), image_size=32))
    images = random_images(2, 32)
    backbone = build(ModelSource(source=str(base), image_size=32), CLASS_NAMES, seed=0)
    inputs = backbone.modality.transform(images)
    expected = our_logits(adapter_of(Lora(r=2), base), backbone, inputs).double().softmax(1)
    results = [list(item.probabilities.values()) for item in predictor.predict(list(images))]
    torch.testing.assert_close(torch.tensor(results, dtype=torch.float64), expected, rtol=0, atol=1e-6)


def test_random_base_weights_are_those_of_the_run(checkpoint, tmp_path):
    base = checkpoint("vit")
    model = ModelSource(source=str(base), pretrained=False)
    for seed in (4, 5):
        write(tmp_path / f"{seed}", "vit", Lora(r=2), base, model=model, seed=seed)
    images = list(random_images(2))
    same, other = (Predictor.from_adapter(tmp_path / f"{seed}").predict(images) for seed in (4, 5))
    assert same == Predictor.from_adapter(tmp_path / "5", seed=4).predict(images) != other


def test_what_is_no_finished_run_is_refused(checkpoint, tmp_path):
    with pytest.raises(RunError, match=r"run directory .* does not exist"):
        Predictor.open(tmp_path / "nowhere")
    run = make_run(tmp_path / "run", checkpoint("vit"), Head())
    (run / "adapter").rename(tmp_path / "taken away")
    with pytest.raises(RunError, match=r"has no `adapter/`: the run is not finished.*\n.*fedelta resume"):
        Predictor.open(run)


# `ModelSource()` is what a run with a backbone of the caller's own records.
@pytest.mark.parametrize("recorded", [None, ModelSource()], ids=["no model", "an empty model"])
def test_an_adapter_without_a_base_model_asks_for_one(recorded, checkpoint, tmp_path):
    result = adapter_of(Head(), checkpoint("vit"))
    nameless = SavedAdapter(result.tuning, result.params, "", CLASS_NAMES, model=recorded)
    write_adapter(tmp_path / "a", nameless, ANATOMIES["vit"], {})
    with pytest.raises(AdapterError, match="does not name its base model"):
        Predictor.from_adapter(tmp_path / "a")
    model = ModelSource(source=str(checkpoint("vit")))
    assert Predictor.from_adapter(tmp_path / "a", model).predict(list(random_images(1)))[0].label in CLASS_NAMES


def test_a_model_without_a_modality_takes_no_raw_examples():
    bare = Predictor(Backbone(torch.nn.Identity(), ANATOMIES["vit"]), CLASS_NAMES)
    with pytest.raises(DataError, match=r"the examples hold texts in column '0', expected tensors"):
        bare.predict(["a text"])
