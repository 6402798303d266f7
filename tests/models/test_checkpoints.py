"""Checkpoints with another head, or none, and directories that are none: what is new, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from tests.builders import assert_same_bits
from tests.models.small_texts import config_of, drawn, save
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource

CLASSES = ("a", "b", "c")
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = {"image_size": 16, "patch_size": 8}
IMAGES: dict[str, dict[str, object]] = {
    "vit": BLOCKS | IMAGE,
    "deit": BLOCKS | IMAGE,
    "dinov2": {key: value for key, value in (BLOCKS | IMAGE).items() if key != "intermediate_size"},
    "beit": BLOCKS | IMAGE,
    "clip": {"vision_config": BLOCKS | IMAGE, "text_config": BLOCKS | {"vocab_size": 9}},
    "siglip": {"vision_config": BLOCKS | IMAGE, "text_config": BLOCKS | {"vocab_size": 9}},
    "segformer": {
        "depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "sr_ratios": [2, 1],
        "num_encoder_blocks": 2, "strides": [4, 2], "patch_sizes": [7, 3], "mlp_ratios": [2, 2],
        "decoder_hidden_size": 8,
    },
}  # fmt: skip
# Family and class that the checkpoint was made with: `Model` has no head, the others have one of another kind.
CHECKPOINTS = [
    ("bert", "BertModel"),
    ("bert", "BertForPreTraining"),
    ("bert", "BertForMaskedLM"),
    ("roberta", "RobertaForMaskedLM"),
    ("electra", "ElectraForPreTraining"),
    ("albert", "AlbertForMaskedLM"),
    ("distilbert", "DistilBertForMaskedLM"),
    ("deberta-v2", "DebertaV2Model"),
    ("deberta-v2", "DebertaV2ForMaskedLM"),
    ("modernbert", "ModernBertModel"),
    ("modernbert", "ModernBertForMaskedLM"),
    ("eurobert", "EuroBertForMaskedLM"),
    ("bart", "BartForConditionalGeneration"),
    ("t5", "T5ForConditionalGeneration"),
    ("llama", "LlamaForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("vit", "ViTModel"),
    ("vit", "ViTForMaskedImageModeling"),
    ("deit", "DeiTForImageClassificationWithTeacher"),
    ("dinov2", "Dinov2Model"),
    ("beit", "BeitForMaskedImageModeling"),
    ("clip", "CLIPModel"),
    ("siglip", "SiglipModel"),
    ("segformer", "SegformerForSemanticSegmentation"),
]


def save_as(family: str, name: str, path: Path) -> nn.Module:
    """A checkpoint of the class `name`, which is returned."""
    if family in IMAGES:
        config = transformers.AutoConfig.for_model(family, **IMAGES[family])
    else:
        config = config_of(family)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module: nn.Module = getattr(transformers, name)(config)
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if family in IMAGES:
        module.save_pretrained(path)
    else:
        save(module, path)
    return module


def load(path: Path, **source: object) -> Backbone:
    return build(ModelSource(source=str(path), **source), CLASSES, seed=0)


@pytest.mark.parametrize(("family", "name"), CHECKPOINTS)
def test_the_base_model_of_a_checkpoint_is_kept_and_only_the_head_is_new(family: str, name: str, tmp_path: Path):
    reference = save_as(family, name, tmp_path)
    module = load(tmp_path).module
    prefix = f"{module.base_model_prefix}."
    known = {key.removeprefix(prefix): tensor for key, tensor in reference.state_dict().items()}
    base = {key.removeprefix(prefix): tensor for key, tensor in module.state_dict().items()}
    shared = {key: tensor for key, tensor in base.items() if key in known and known[key].shape == tensor.shape}
    new = [key for key in base if key not in known]
    assert len(shared) >= 8
    assert_same_bits(shared, {key: known[key] for key in shared})
    assert all(".".join(key.split(".")[:-1]) not in {".".join(old.split(".")[:-1]) for old in known} for key in new)


def test_a_distilled_checkpoint_keeps_both_of_its_heads(tmp_path: Path):
    reference = save_as("deit", "DeiTForImageClassificationWithTeacher", tmp_path).eval()
    _edit(tmp_path, id2label={0: "c", 1: "a"}, num_labels=2)
    backbone = build(ModelSource(source=str(tmp_path)), ("a", "c"), seed=0)
    assert backbone.anatomy.head == ("cls_classifier", "distillation_classifier")
    images = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        torch.testing.assert_close(backbone.logits(images), reference(**images).logits[:, [1, 0]])


def test_a_tensor_that_is_missing_inside_the_base_model_is_an_error(tmp_path: Path):
    save_as("deberta-v2", "DebertaV2ForMaskedLM", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["deberta.encoder.layer.0.attention.self.query_proj.weight"]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks 1 tensors of DebertaV2ForSequenceClassification, first \['deberta\.enc"
    ):
        load(tmp_path)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_composed_configuration_has_the_size_of_images(family: str, tmp_path: Path):
    save_as(family, {"clip": "CLIPModel", "siglip": "SiglipModel"}[family], tmp_path)
    backbone = load(tmp_path)
    assert (backbone.modality.image_size, backbone.extra_inputs) == (16, {})
    larger = load(tmp_path, image_size=32)
    assert (larger.modality.image_size, larger.extra_inputs) == (32, {"interpolate_pos_encoding": True})
    assert larger.logits({"pixel_values": torch.zeros(2, 3, 32, 32)}).shape == (2, 3)
    with pytest.raises(
        ModelError, match=r"`model\.image_size` is 20, which is not a multiple of the model's patch size, 8"
    ):
        load(tmp_path, image_size=20)


def test_a_family_of_one_image_size_is_named_in_the_error():
    architecture = {
        "model_type": "pvt", "image_size": 32, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 1, 1],
    }  # fmt: skip
    path_free = ModelSource(architecture=architecture)
    assert build(path_free, CLASSES, seed=0).modality.image_size == 32
    config = ModelSource(architecture=architecture, image_size=64)
    with pytest.raises(
        ModelError, match=r"PvtForImageClassification takes only images of 32 x 32 pixels, but `model.image_size`"
    ):
        build(config, CLASSES, seed=0)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "reformer"}, "family 'reformer' cannot be used: it draws new random hashes for its attention"),
        ({"model_type": "siglip2"}, "family 'siglip2' cannot be used: it takes images as patches"),
        (
            {"model_type": "imagegpt", "n_embd": 16, "n_layer": 1, "n_head": 2},
            "ImageGPTForImageClassification takes `input_ids`, but fedelta turns images into `pixel_values`.",
        ),
        ({"model_type": "vit", "image_size": [16, 32]}, "takes images of 16 x 32 pixels, expected a square"),
    ],
)
def test_unusable_models_are_refused_with_the_reason(architecture: dict[str, object], message: str):
    with pytest.raises(ModelError) as caught:
        build(ModelSource(architecture=architecture), CLASSES, seed=0)
    assert message in caught.value.message


def test_levit_computes_the_biases_of_its_attention_for_every_pass():
    architecture = {
        "model_type": "levit", "image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2],
        "key_dim": [4, 4, 4], "depths": [1, 1, 1],
    }  # fmt: skip
    backbone = build(ModelSource(architecture=architecture), CLASSES, seed=0)
    images = {"pixel_values": torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
    (name, *_) = (name for name, _ in backbone.module.named_parameters() if "attention_biases" in name)
    with torch.no_grad():
        before = backbone.logits(images)
        backbone.module.get_parameter(name).add_(torch.arange(16.0)[: backbone.module.get_parameter(name).shape[1]])
        assert not torch.equal(backbone.logits(images), before)


EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\nclass Evil: pass\n"


def _edit(path: Path, name: str = "config.json", **changes: object) -> None:
    content = json.loads((path / name).read_text()) | changes
    (path / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _with_code(path: Path, **changes: object) -> None:
    (path / "evil.py").write_text(EVIL)
    _edit(path, auto_map={"AutoConfig": "evil.Evil", "AutoModelForImageClassification": "evil.Evil"}, **changes)


def _pickled(path: Path) -> None:
    torch.save({}, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def _pickled_beside_other_tensors(path: Path) -> None:
    torch.save({}, path / "pytorch_model.bin")
    (path / "model.safetensors").rename(path / "optimizer.safetensors")


PICKLED = "has no `model.safetensors`, only `pytorch_model.bin`: a pickle, which can run code and is never read."
FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: _with_code(path, model_type="evil"), "it contains custom code, which fedelta never runs"),
    "timm": (
        lambda path: (path / "config.json").write_text('{"architecture": "resnet50", "num_classes": 2}'),
        "is a timm model ('resnet50'), which fedelta does not support.\nhint: use a model from transformers",
    ),
    "timm by transformers": (
        lambda path: _edit(path, model_type="timm_wrapper", architecture="vit_tiny"), "is a timm model ('vit_tiny')",
    ),
    "pickle": (_pickled, PICKLED),
    "pickle beside other tensors": (_pickled_beside_other_tensors, PICKLED),
    "adapter": (
        lambda path: (path / "adapter_config.json").write_text("{}"),
        "is an adapter: it holds `adapter_config.json`.\nhint: set `model.adapter` to it",
    ),
    "parent": (
        lambda path: shutil.move(path / "config.json", (path / "checkpoint-5").mkdir() or path / "checkpoint-5"),
        "it has no `config.json`, but its subfolder 'checkpoint-5' has one.",
    ),
    "unknown activation": (lambda path: _edit(path, hidden_act="exec"), "cannot be loaded: KeyError 'exec'"),
    "word for a number": (lambda path: _edit(path, hidden_size="wide"), "Field 'hidden_size' expected int"),
    "list of names": (lambda path: _edit(path, id2label=["a", "b"]), "cannot be loaded: "),
    "deep": (lambda path: (path / "config.json").write_text("[" * 100_000), "is not a valid JSON file"),
}  # fmt: skip


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    save_as("vit", "ViTForImageClassification", path)
    return path


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_directory_that_is_not_a_transformers_checkpoint_is_refused(kind: str, vit_dir: Path, tmp_path: Path):
    path = shutil.copytree(vit_dir, tmp_path / "resnet50")  # a name by which transformers would guess the family
    change, message = FOREIGN[kind]
    change(path)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(path) in caught.value.message
    assert not (path / "ran").exists()


def test_code_beside_a_family_of_transformers_is_not_run(vit_dir: Path, tmp_path: Path):
    path = shutil.copytree(vit_dir, tmp_path / "copy")
    _with_code(path, attn_implementation="kernels-community/evil")
    assert type(load(path).module).__module__.startswith("transformers.")
    assert not (path / "ran").exists()


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path):
    save(drawn(transformers.AutoModelForSequenceClassification, config_of("bert")), tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    _edit(tmp_path, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_file_is_not_a_model(vit_dir: Path):
    with pytest.raises(ModelError, match=r"config.json' is a file.\nhint: use the directory it is in"):
        load(vit_dir / "config.json")
