"""The code in a model card runs as it stands, and stock PEFT and fedelta say the same of an example."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tests.cards import executed
from tests.inference.adapters import CLASS_NAMES, adapter_of, backbone_of, inputs_of, our_logits, write, write_tokenizer

from fedelta.inference.adapter import write_adapter
from fedelta.inference.origin import Origin, origin_of
from fedelta.modalities.settings import Preparation
from fedelta.tasks.multi_label import MultiLabel
from fedelta.tasks.regression import Regression
from fedelta.tasks.tokens import Tokens
from fedelta.tuning.bias import Bias
from fedelta.tuning.lora import Lora

pytestmark = [
    # transformers 5.23 deprecates what peft 0.21.2 asks every model for.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
FOUR = ("one", "two", "three", "four")


@pytest.fixture
def base(request, checkpoint, tmp_path) -> Path:
    """A checkpoint in half precision, as most are stored: loaded as it is, the logits would be others."""
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    source, place = checkpoint(request.param), tmp_path / "base"
    is_text = request.param == "bert"
    auto = AutoModelForSequenceClassification if is_text else AutoModelForImageClassification
    auto.from_pretrained(source, config=AutoConfig.from_pretrained(source)).half().save_pretrained(place)
    if is_text:
        write_tokenizer(place)
    return place


@pytest.mark.parametrize("base", ["bert"], indirect=True)
def test_a_text_is_classified(base, tmp_path):
    preparation = Preparation(max_length=16)
    adapter = write(tmp_path / "adapter", "bert", Lora(r=2), base, FOUR, preparation=preparation)
    (said, stock), (ours, _) = executed(tmp_path / "adapter", tmp_path, base)
    assert said in FOUR
    assert f"label='{said}'" in ours
    assert stock["model"].config.id2label == dict(enumerate(FOUR))
    inputs = inputs_of("bert")
    expected = our_logits(adapter, backbone_of(base, FOUR), inputs)
    with torch.no_grad():
        torch.testing.assert_close(stock["model"](**inputs).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("base", ["bert"], indirect=True)
def test_the_labels_of_a_text_are_named(base, tmp_path):
    write(tmp_path / "adapter", "bert", Lora(r=2), base, task=MultiLabel(threshold=0.3))
    (said, stock), (ours, _) = executed(tmp_path / "adapter", tmp_path, base)
    chances = stock["logits"].sigmoid()[0].tolist()
    expected = [name for name, chance in zip(CLASS_NAMES, chances, strict=True) if chance > 0.3]
    assert said == str(expected)
    assert f"labels={tuple(expected)}" in ours


@pytest.mark.parametrize("base", ["bert"], indirect=True)
def test_a_number_is_in_the_unit_of_the_targets(base, tmp_path):
    write(tmp_path / "adapter", "bert", Lora(r=2), base, (), task=Regression(offset=100.0, scale=7.0))
    (said, stock), (ours, _) = executed(tmp_path / "adapter", tmp_path, base)
    number = 100 + 7 * stock["logits"].item()
    assert float(said.split("[")[1].split("]")[0]) == pytest.approx(number, abs=1e-3)
    assert float(ours.split("value=")[1].split(",")[0]) == pytest.approx(number, abs=1e-3)


@pytest.mark.parametrize("base", ["bert"], indirect=True)
def test_words_get_tags(base, tmp_path):
    tags = ("O", "B-X", "I-X")
    task = Tokens(tags=tags)
    preparation = Preparation(max_length=16)
    write(tmp_path / "adapter", "bert", Lora(r=2), base, tags, modality="words", task=task, preparation=preparation)
    (said, stock), (ours, _) = executed(tmp_path / "adapter", tmp_path, base)
    # The tokenizer knows every word as one token and adds none.
    assert said == str([tags[number] for number in stock["logits"][0].argmax(1)])
    assert all(tag in ours for tag in eval(said))


@pytest.mark.parametrize("base", ["vit"], indirect=True)
def test_an_image_is_classified(base, tmp_path):
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    Image.new("RGB", (40, 30), (200, 60, 20)).save(tmp_path / "image.png")
    (base / "preprocessor_config.json").write_text(json.dumps(processor))
    preparation = Preparation(processor=processor, resize="checkpoint")
    write(tmp_path / "adapter", "vit", Lora(r=2), base, FOUR, preparation=preparation)
    (said, _), (ours, _) = executed(tmp_path / "adapter", tmp_path, base)
    assert said in FOUR
    assert f"label='{said}'" in ours


@pytest.mark.parametrize("base", ["fedelta_resnet"], indirect=True)
def test_a_network_of_ours_is_made_known_to_transformers(base, tmp_path):
    adapter = write(tmp_path / "adapter", "fedelta_resnet", Lora(r=2, target_modules="all-conv"), base, FOUR)
    Image.new("RGB", (16, 16), (9, 9, 99)).save(tmp_path / "image.png")
    (_, stock), (ours, _) = executed(tmp_path / "adapter", tmp_path, base)
    inputs = inputs_of("fedelta_resnet")
    expected = our_logits(adapter, backbone_of(base, FOUR), inputs)
    with torch.no_grad():
        torch.testing.assert_close(stock["model"](**inputs).logits, expected, rtol=1e-5, atol=1e-5)
    assert "label=" in ours


@pytest.mark.parametrize("base", ["vit"], indirect=True)
def test_a_method_that_peft_does_not_know_has_only_our_code(base, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    write(tmp_path / "adapter", "vit", Bias(), base)
    ((ours, _),) = executed(tmp_path / "adapter", tmp_path, base)
    assert "label=" in ours


# --- where the base model comes from ----------------------------------------------------------------------------


def write_base(directory: Path, name: str | None = None, header: str = "") -> str:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({} if name is None else {"_name_or_path": name}))
    (directory / "README.md").write_text(f"---\n{header}\n---\n# A model\n")
    return str(directory)


def rewrite(directory: Path, checkpoint: Path, base: str) -> None:
    """Writes an adapter of `checkpoint`, as if that had been called `base`."""
    backbone, adapter = backbone_of(checkpoint), adapter_of(Lora(r=2), checkpoint)
    write_adapter(directory, replace(adapter, base=base), backbone.anatomy, {"modality": "text"})


def test_a_snapshot_of_the_hub_has_its_name_and_license(tmp_path):
    place = tmp_path / "hub/models--some-lab--tiny-vit/snapshots/0a1b2c"
    assert origin_of(write_base(place, header="license: mit")) == Origin(hub="some-lab/tiny-vit", license="mit")


def test_what_a_directory_was_loaded_from_is_only_its_parent(tmp_path):
    origin = origin_of(write_base(tmp_path / "mine", "some-lab/tiny-vit"))
    assert (origin.name, origin.hub, origin.folder, origin.parent) == ("mine", "", "mine", "some-lab/tiny-vit")


@pytest.mark.parametrize("name", ["/home/ann/vit", "", "a/b/c", None])
def test_a_path_of_another_machine_is_no_parent(tmp_path, name):
    assert origin_of(write_base(tmp_path / "mine", name)).parent == ""


@pytest.mark.parametrize("header", ["license: [mit]", ": : :", "license:", "- a list"])
def test_a_card_that_holds_no_license_tells_none(tmp_path, header):
    assert origin_of(write_base(tmp_path / "mine", header=header)).license == ""


def test_a_name_of_the_hub_is_a_base_model_that_the_hub_accepts(checkpoint, tmp_path):
    rewrite(tmp_path / "adapter", checkpoint("bert"), "some-lab/tiny-bert")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.base_model == "some-lab/tiny-bert"
    assert card.data.pipeline_tag == "text-classification"
    assert 'source = Path("path/of/this/directory"), "some-lab/tiny-bert"' in card.text


def test_a_directory_of_this_machine_is_named_by_its_last_part_only(checkpoint, tmp_path):
    base = write_base(tmp_path / "mine", "some-lab/tiny-bert")
    rewrite(tmp_path / "adapter", checkpoint("bert"), base)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.base_model is None
    assert str(tmp_path) not in card.content
    assert "Its base model is a directory, `mine`" in card.text
    assert "says that it was loaded from `some-lab/tiny-bert`" in card.text
