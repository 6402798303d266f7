"""Classifiers from directories in the hub's form, which transformers itself writes here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.builders import ARCHITECTURES, assert_same_bits
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from fedelta.errors import ModelError
from fedelta.modalities.image import Images
from fedelta.modalities.text import Texts
from fedelta.models.anatomy import ANATOMIES
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource, checkpoint_bytes, locate, modality_of, read_config
from fedelta.seeds import stream
from fedelta.tasks.classification import Classification

CLASSES = ("cat", "dog", "cow")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def drawn(module: nn.Module) -> nn.Module:
    """`module` with every tensor drawn, so that no two layers are alike."""
    generator = stream(0, "hub")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    config = ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=5)
    drawn(ViTForImageClassification(config)).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    return path


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    config = BertConfig(**SIZES, vocab_size=8, max_position_embeddings=12, num_labels=5)
    drawn(BertForSequenceClassification(config)).save_pretrained(path)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def copy_of_vit(vit_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(vit_dir, tmp_path / "copy")


def load(path: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES, **source: object) -> Backbone:
    return build(ModelSource(source=str(path), **source), classes, seed=seed)


def backbone_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("classifier.")}


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def refusal(path: Path, **source: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path, **source)
    return caught.value


def test_a_checkpoint_gets_a_new_head_and_keeps_all_else(vit_dir: Path):
    network, reference = load(vit_dir).module, ViTForImageClassification.from_pretrained(vit_dir)
    assert_same_bits(backbone_tensors(network), backbone_tensors(reference))
    assert network.classifier.weight.shape == (3, 16)
    assert network.config.id2label == {0: "cat", 1: "dog", 2: "cow"}
    assert not network.training


def test_the_head_of_the_checkpoint_stays_when_the_number_of_classes_is_its_own(vit_dir: Path):
    network = load(vit_dir, classes=("a", "b", "c", "d", "e")).module
    assert_same_bits(network.state_dict(), ViTForImageClassification.from_pretrained(vit_dir).state_dict())


def test_a_checkpoint_without_a_head_gets_one(vit_dir: Path, tmp_path: Path):
    ViTForImageClassification.from_pretrained(vit_dir).vit.save_pretrained(tmp_path)
    network = load(tmp_path).module
    assert_same_bits(backbone_tensors(network), backbone_tensors(load(vit_dir).module))
    assert network.classifier.weight.shape == (3, 16)


def test_a_new_head_depends_on_the_seed_alone_and_the_global_generator_stays(vit_dir: Path):
    before = torch.get_rng_state()
    first = load(vit_dir, seed=1).module.classifier.weight
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, load(vit_dir, seed=1).module.classifier.weight)
    assert not torch.equal(first, load(vit_dir, seed=2).module.classifier.weight)


def test_without_pretraining_everything_is_drawn_from_the_seed(vit_dir: Path):
    before = torch.get_rng_state()
    first = load(vit_dir, pretrained=False).module
    assert torch.equal(before, torch.get_rng_state())
    assert_same_bits(first.state_dict(), load(vit_dir, pretrained=False).module.state_dict())
    query = "vit.layers.0.attention.q_proj.weight"
    assert not torch.equal(first.get_parameter(query), load(vit_dir).module.get_parameter(query))
    assert not torch.equal(
        first.get_parameter(query), load(vit_dir, pretrained=False, seed=1).module.get_parameter(query)
    )


def test_a_half_precision_checkpoint_is_loaded_in_float32(vit_dir: Path, tmp_path: Path):
    ViTForImageClassification.from_pretrained(vit_dir).half().save_pretrained(tmp_path)
    network = load(tmp_path).module
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    expected = {name: tensor.half().float() for name, tensor in backbone_tensors(load(vit_dir).module).items()}
    assert_same_bits(backbone_tensors(network), expected)


def test_images_of_the_size_of_the_checkpoint_need_nothing_special(vit_dir: Path):
    backbone = load(vit_dir)
    assert backbone.modality.image_size == 8
    assert backbone.extra_inputs == {}
    assert backbone.modality.mean == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("size", [4, 12, 20])
def test_another_image_size_interpolates_positions_as_transformers_does(vit_dir: Path, size: int):
    backbone = load(vit_dir, classes=("a", "b", "c", "d", "e"), image_size=size)
    assert backbone.modality.image_size == size
    pixels = torch.randn(2, 3, size, size, generator=stream(0))
    reference = ViTForImageClassification.from_pretrained(vit_dir).eval()
    with torch.no_grad():
        expected = reference(pixel_values=pixels, interpolate_pos_encoding=True).logits
        assert torch.equal(backbone.logits({"pixel_values": pixels}), expected)


def test_a_text_model_reads_texts_with_its_own_tokenizer(bert_dir: Path):
    backbone = load(bert_dir, classes=("a", "b", "c", "d", "e"))
    inputs = dict(backbone.modality.tokenizer("good film", return_tensors="pt"))
    assert inputs["input_ids"].tolist() == [[2, 4]]
    reference = BertForSequenceClassification.from_pretrained(bert_dir).eval()
    with torch.no_grad():
        assert torch.equal(backbone.logits(inputs), reference(**inputs).logits)


def test_modality_is_known_without_weights(vit_dir: Path, bert_dir: Path):
    assert modality_of(read_config(ModelSource(source=str(vit_dir))), Classification())[0] is Images
    assert modality_of(read_config(ModelSource(source=str(bert_dir))), Classification())[0] is Texts
    assert modality_of(read_config(ModelSource(architecture={"model_type": "roberta"})), Classification())[0] is Texts


def test_an_architecture_alone_makes_a_random_model():
    source = ModelSource(architecture=ARCHITECTURES["deit"])
    first, second, other = (build(source, CLASSES, seed=seed) for seed in (0, 0, 1))
    assert first.anatomy == ANATOMIES["deit"]
    assert first.modality.image_size == 8
    assert_same_bits(first.module.state_dict(), second.module.state_dict())
    assert not torch.equal(first.module.classifier.weight, other.module.classifier.weight)
    assert first.logits({"pixel_values": torch.zeros(2, 3, 8, 8)}).shape == (2, 3)


def test_a_model_on_meta_has_shapes_and_no_memory(bert_dir: Path):
    backbone = build(ModelSource(source=str(bert_dir)), CLASSES, seed=0, device="meta")
    assert backbone.modality is None
    assert {parameter.device.type for parameter in backbone.module.parameters()} == {"meta"}
    assert backbone.num_parameters == load(bert_dir).num_parameters


def test_a_family_that_is_not_in_the_table_is_known_by_its_head():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    backbone = build(ModelSource(architecture={"model_type": "resnet"} | sizes), CLASSES, seed=0)
    assert backbone.anatomy.head == ("classifier",)
    assert (backbone.anatomy.blocks, dict(backbone.anatomy.roles)) == ("", {})
    assert backbone.modality.image_size == 224


def test_the_bytes_of_a_checkpoint_are_those_of_its_weight_files(vit_dir: Path):
    source = str(vit_dir)
    assert checkpoint_bytes(ModelSource(source=source)) == (vit_dir / "model.safetensors").stat().st_size
    assert checkpoint_bytes(ModelSource(source=source, pretrained=False)) == 0
    assert checkpoint_bytes(ModelSource(architecture=ARCHITECTURES["vit"])) == 0


def test_a_name_on_the_hub_is_left_as_it_is(vit_dir: Path):
    assert locate("google/vit-base-patch16-224") == "google/vit-base-patch16-224"
    assert locate("bert-base-uncased") == "bert-base-uncased"
    assert locate(str(vit_dir)) == str(vit_dir)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere", "~/nowhere", "a/b/nowhere", "../nowhere"])
def test_a_directory_that_is_not_there_is_refused(source: str):
    with pytest.raises(ModelError) as caught:
        locate(source)
    assert caught.value.message == f"model directory {source!r} does not exist."
    assert "hub name such as `google/vit-base-patch16-224`" in str(caught.value.hint)


def test_a_bundled_name_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="there is no bundled backbone 'vit-giant', expected one of "):
        locate("bundled:vit-giant")


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path):
    error = refusal(tmp_path)
    assert error.message.startswith(f"model {str(tmp_path)!r} cannot be loaded: ")
    assert error.hint == (
        "expected a directory with `config.json` and `model.safetensors`, a reachable hub name, or `bundled:vit-micro`."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a valid JSON file"),
        ("{}", "has no `model_type`"),
        ("3", "a JSON int"),
        ('{"model_type": "x"}', "`x`"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(copy_of_vit: Path, content: str, reason: str):
    (copy_of_vit / "config.json").write_text(content)
    assert reason in refusal(copy_of_vit).message


def test_a_directory_without_weights_is_refused(copy_of_vit: Path):
    (copy_of_vit / "model.safetensors").unlink()
    assert "no file named model.safetensors" in refusal(copy_of_vit).message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(copy_of_vit: Path, keep: int):
    weights = copy_of_vit / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    error = refusal(copy_of_vit)
    assert error.message.startswith(f"model {str(copy_of_vit)!r} cannot be loaded: ")
    assert error.hint is not None


def test_weights_of_another_family_are_refused(copy_of_vit: Path, bert_dir: Path):
    shutil.copy(bert_dir / "config.json", copy_of_vit / "config.json")
    error = refusal(copy_of_vit)
    assert re.match(
        rf"the checkpoint '{copy_of_vit}' lacks \d+ tensors of BertForSequenceClassification, first \['bert.",
        error.message,
    )
    assert error.hint == "it belongs to another architecture or is damaged; check its `config.json`."


def test_a_configuration_with_more_blocks_than_the_weights_is_refused(copy_of_vit: Path):
    # A block has 6 linear layers and 2 layer norms with weight and bias: 16 tensors.
    edit_config(copy_of_vit, num_hidden_layers=3)
    assert " lacks 16 tensors of ViTForImageClassification, first ['vit.layers.2." in refusal(copy_of_vit).message


def test_a_configuration_of_another_width_is_refused(copy_of_vit: Path):
    edit_config(copy_of_vit, intermediate_size=32)
    # Per block: fc1 weight and bias, fc2 weight.
    assert " lacks 6 tensors of ViTForImageClassification" in refusal(copy_of_vit).message


@pytest.mark.parametrize("content", ["{", "3"])
def test_a_preprocessor_file_that_is_no_json_is_refused(copy_of_vit: Path, content: str):
    (copy_of_vit / "preprocessor_config.json").write_text(content)
    assert f"{copy_of_vit}/preprocessor_config.json does not hold a JSON object: " in refusal(copy_of_vit).message


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_damaged_tokenizer_file_is_refused(bert_dir: Path, tmp_path: Path, content: str):
    shutil.copytree(bert_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(content)
    error = refusal(tmp_path)
    assert error.message.startswith(f"no tokenizer can be loaded from {str(tmp_path)!r}: ")
    assert ("a tokenizer file lacks the key 'added_tokens'" in error.message) == (content == "{}")
    assert error.hint is None or error.hint.startswith("expected `tokenizer.json`")


def test_a_text_model_without_a_tokenizer_is_refused(bert_dir: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bert_dir / name, tmp_path / name)
    assert refusal(tmp_path).message.startswith(
        f"no tokenizer can be loaded from {str(tmp_path)!r}: its vocabulary is empty"
    )
    with pytest.raises(ModelError, match=r"a text model needs a tokenizer: set `model\.source`"):
        build(ModelSource(architecture=ARCHITECTURES["bert"]), CLASSES, seed=0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vocab_size": 4}, "its largest token id is 4, but the model has only 4 embeddings, with ids from 0."),
        ({"pad_token_id": 3}, "its padding token id is 0, that of the model 3."),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(bert_dir: Path, tmp_path: Path, changes: dict[str, int], problem: str):
    config = BertConfig(**SIZES, **{"vocab_size": 8, "max_position_embeddings": 12, "num_labels": 5} | changes)
    drawn(BertForSequenceClassification(config)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert_dir / name, tmp_path / name)
    error = refusal(tmp_path)
    assert error.message == f"the tokenizer in {str(tmp_path)!r} does not belong to the model: {problem}"
    assert error.hint == "use the `tokenizer.json` and `tokenizer_config.json` that were published with the weights."


def test_a_tokenizer_with_far_fewer_tokens_than_the_model_is_pointed_out(
    bert_dir: Path, caplog: pytest.LogCaptureFixture
):
    load(bert_dir)
    assert "has 5 tokens, the model 8: check that it belongs to the model" in caplog.text


def test_a_family_without_a_classifier_is_refused():
    with pytest.raises(
        ModelError, match="transformers has no model of the family 'vits' for task 'classification' on images"
    ):
        modality_of(read_config(ModelSource(architecture={"model_type": "vits"})), Classification())


def test_an_architecture_of_no_known_family_is_refused():
    with pytest.raises(ModelError, match="is 'vitt', which is not a known family; did you mean 'vit'"):
        read_config(ModelSource(architecture={"model_type": "vitt"}))


def test_neither_source_nor_architecture_is_refused():
    with pytest.raises(ModelError, match=r"`model.source` is missing.\nhint: for example"):
        read_config(ModelSource())
