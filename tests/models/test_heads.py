"""A checkpoint's own head and the classes of the data: kept, put into their order, or drawn anew, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.models.small_texts import config_of, drawn, save
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from fedelta.errors import ModelError
from fedelta.evaluation import evaluate_adapter
from fedelta.models.heads import class_axes
from fedelta.models.hub import Backbone, build
from fedelta.models.native import register_networks
from fedelta.models.source import ModelSource
from fedelta.tasks.regression import Regression

THEIRS = ("cat", "dog", "owl")
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
IMAGES: dict[str, dict[str, object]] = {
    "vit": BLOCKS | {"image_size": 16, "patch_size": 8},
    "clip": {"vision_config": BLOCKS | {"image_size": 16, "patch_size": 8}, "text_config": BLOCKS | {"vocab_size": 9}},
    "resnet": {"embedding_size": 8, "layer_type": "basic"} | STAGES,  # its head is a list of layers
    "fedelta_resnet": {"stem_width": 4, "widths": [4, 8], "blocks_per_stage": 1, "image_size": 16},
    "swiftformer": {
        "embed_dims": [8, 16], "depths": [1, 1], "downsamples": [True, True], "image_size": 64, "mlp_ratio": 2,
    },  # two heads side by side
}  # fmt: skip
TEXTS = ("bert", "roberta", "distilbert", "gpt2", "bart")  # the second and last have two layers in their head
FAMILIES = (*IMAGES, *TEXTS)


def save_with(family: str, path: Path, names: tuple[str, ...] = THEIRS) -> Path:
    """A checkpoint whose head knows `names`."""
    register_networks()
    is_text = family in TEXTS
    config = config_of(family) if is_text else AutoConfig.for_model(family, **IMAGES[family])
    config.architectures, config.num_labels = [], len(names)
    config.id2label = dict(enumerate(names))
    module = drawn(AutoModelForSequenceClassification if is_text else AutoModelForImageClassification, config)
    if is_text:
        return save(module, path)
    module.save_pretrained(path)
    return path


def load(path: Path, names: tuple[str, ...], *, seed: int = 0) -> Backbone:
    return build(ModelSource(source=str(path)), names, seed=seed)


@torch.no_grad()
def logits(backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return backbone.logits(backbone.modality.export_inputs(2, 6, generator))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    root, paths = tmp_path_factory.mktemp("heads"), {}

    def get(family: str) -> Path:
        if family not in paths:
            paths[family] = save_with(family, root / family)
        return paths[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_names_in_another_order_give_the_same_answers(family: str, checkpoint, caplog):
    path = checkpoint(family)
    expected = logits(load(path, THEIRS))
    assert not [record for record in caplog.records if "head" in record.message]
    turned = load(path, ("owl", "cat", "dog"))
    torch.testing.assert_close(logits(turned), expected[:, [2, 0, 1]])
    assert turned.lost_head is None
    assert turned.module.config.id2label == {0: "owl", 1: "cat", 2: "dog"}
    assert (
        "the checkpoint's head has the classes in another order ('cat', 'dog', 'owl'); its rows are reordered to "
        "match the data ('owl', 'cat', 'dog')."
    ) in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_other_names_get_a_new_head_that_depends_on_the_seed_alone(family: str, checkpoint, caplog):
    path = checkpoint(family)
    tensors = load(path, THEIRS).module.state_dict()
    first, again, other = (load(path, ("cat", "dog", "cow"), seed=seed) for seed in (1, 1, 2))
    new = set(class_axes(first.module))
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name])
        assert torch.equal(tensor, tensors[name]) or name in new
    weights = [name for name in new if name.endswith("weight")]
    assert weights
    assert not any(torch.equal(first.module.get_parameter(name), other.module.get_parameter(name)) for name in weights)
    assert not any(torch.equal(first.module.get_parameter(name), tensors[name]) for name in weights)
    assert first.lost_head in caplog.text
    assert first.lost_head == (
        "the checkpoint's head has other classes ('cat', 'dog', 'owl') than the data ('cat', 'dog', 'cow')"
    )


@pytest.mark.parametrize(
    ("old", "data_names"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("b", "a", "c")),
        (("cat", "dog", "owl"), ("0", "1", "2")),
        (("0", "1", "2"), ("cat", "dog", "owl")),
    ],
)
def test_classes_that_are_only_numbered_keep_their_order_with_a_warning(old, data_names, tmp_path: Path, caplog):
    path = save_with("vit", tmp_path, old)
    expected = logits(load(path, old))
    assert torch.equal(logits(load(path, data_names)), expected)
    assert (
        "since numbers cannot be matched by name. If that is wrong, correct `id2label` in its `config.json`."
        in caplog.text
    )


@pytest.mark.parametrize(
    ("old", "data_names", "order"),
    [
        (("Positive", "NEGATIVE"), ("negative", "positive"), [1, 0]),
        (("very good", "bad"), ("bad", "very_good"), [1, 0]),
        (("LABEL_1", "LABEL_0"), ("LABEL_0", "LABEL_1"), [1, 0]),
    ],
)
def test_case_spaces_and_hyphens_do_not_distinguish_class_names(old, data_names, order, tmp_path: Path):
    path = save_with("vit", tmp_path, old)
    torch.testing.assert_close(logits(load(path, data_names)), logits(load(path, old))[:, order])


def test_two_classes_that_differ_in_case_alone_stay_two(tmp_path: Path):
    path = save_with("vit", tmp_path, ("us", "US"))
    torch.testing.assert_close(logits(load(path, ("US", "us"))), logits(load(path, ("us", "US")))[:, [1, 0]])
    assert load(path, ("Us", "uS")).lost_head is not None


def test_a_head_of_another_size_is_replaced_with_a_warning(checkpoint, caplog):
    backbone = load(checkpoint("vit"), ("cat", "dog"))
    assert backbone.module.classifier.weight.shape == (2, 16)
    assert backbone.lost_head == (
        "the checkpoint's head has other classes ('cat', 'dog', 'owl') than the data ('cat', 'dog')"
    )
    assert [record.message for record in caplog.records] == [f"{backbone.lost_head}: a new head is initialised."]


def test_a_head_of_another_size_with_numbered_classes_is_replaced_without_a_warning(tmp_path: Path, caplog):
    backbone = load(save_with("vit", tmp_path, ("LABEL_0", "LABEL_1", "LABEL_2")), ("cat", "dog"))
    assert backbone.module.classifier.weight.shape == (2, 16)
    assert backbone.lost_head == "the checkpoint's head has 3 classes, the data have 2"
    assert not caplog.records


TWELVE = [f"kind {letter}" for letter in "abcdefghijkl"]


@pytest.mark.parametrize("old", ["LABEL_{}", "{}"])
@pytest.mark.parametrize("data_names", ["{}", "LABEL_{}", "label {}", "class_{}"])
@pytest.mark.parametrize("first", [0, 1])
def test_names_with_numbers_are_matched_by_these_and_not_by_their_letters(old, data_names, first, tmp_path: Path):
    path = save_with("vit", tmp_path, tuple(old.format(label) for label in range(12)))
    expected = logits(load(path, tuple(old.format(label) for label in range(12))))
    names = sorted(data_names.format(label + first) for label in range(12))  # where "10" comes before "2"
    order = [int(name.removeprefix(data_names.format(""))) - first for name in names]
    torch.testing.assert_close(logits(load(path, tuple(names))), expected[:, order])


@pytest.mark.parametrize("data_names", ["{}", "LABEL_{}"])
def test_numbers_in_the_data_are_matched_with_names_of_the_checkpoint(data_names, tmp_path: Path, caplog):
    path = save_with("vit", tmp_path, tuple(TWELVE))
    expected = logits(load(path, tuple(TWELVE)))
    names = sorted(data_names.format(label) for label in range(12))
    order = [int(name.removeprefix(data_names.format(""))) for name in names]
    torch.testing.assert_close(logits(load(path, tuple(names))), expected[:, order])
    assert "'kind a', 'kind b', 'kind k', 'kind l', 'kind c' and 7 more" in caplog.text


def test_a_configuration_without_names_or_numbers_leaves_a_head_of_any_size(tmp_path: Path, caplog):
    path = save_with("vit", tmp_path)
    expected = logits(load(path, THEIRS))
    config = json.loads((path / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (path / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    assert torch.equal(logits(load(path, THEIRS)), expected)
    assert "its classes ('LABEL_0', 'LABEL_1', 'LABEL_2') are assumed to be those of the data" in caplog.text


def test_nothing_is_said_of_a_head_of_zeros_which_is_yet_to_be_tuned(caplog):
    backbone = build(ModelSource(source="bundled:vit-micro"), tuple("abcdefghij"), seed=0)
    assert not backbone.module.get_parameter("classifier.weight").any()
    assert backbone.lost_head is None
    assert "head" not in caplog.text


def test_the_head_of_a_regression_stays(tmp_path: Path, caplog):
    path = save_with("vit", tmp_path, ("score",))
    backbone = build(ModelSource(source=str(path)), (), seed=0, task=Regression())
    old = AutoModelForImageClassification.from_pretrained(path).classifier
    assert torch.equal(backbone.module.classifier.weight, old.weight)
    assert not caplog.records


def test_rows_of_classes_are_found_wherever_the_head_keeps_them(checkpoint):
    axes = {family: class_axes(load(checkpoint(family), THEIRS).module) for family in ("roberta", "swiftformer")}
    assert axes["roberta"] == {"classifier.out_proj.weight": 0, "classifier.out_proj.bias": 0}
    assert set(axes["swiftformer"]) == {
        f"{head}.{name}" for head in ("head", "dist_head") for name in ("weight", "bias")
    }


def test_a_network_from_elsewhere_cannot_be_matched_with_classes():
    with pytest.raises(ModelError, match="cannot match the head of Linear with the classes"):
        class_axes(torch.nn.Linear(2, 3))


@pytest.mark.parametrize("names", [["cat", "dog", "cow"], ["cat", "dog"], ["cat", "dog", "owl", "cow"]])
def test_a_head_for_other_classes_is_not_evaluated(names: list[str], checkpoint, tmp_path: Path):
    text = "".join(f'{{"text": "one two", "label": "{name}"}}\n' for name in names * 4)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "run.toml").write_text(
        f"""
seed = 0
[model]
source = {json.dumps(str(checkpoint("bert")))}
[data]
source = {json.dumps(str(tmp_path / "rows.jsonl"))}
test_fraction = 0.5
[partition]
name = "iid"
num_clients = 2
[strategy]
name = "fedavg"
clients_per_round = 2
[tuning]
name = "head"
"""
    )
    with pytest.raises(ModelError, match=r"has other classes .*: there is nothing to evaluate"):
        evaluate_adapter(tmp_path / "run.toml")
