"""Adapter directories: round trips, the model card, refusals, and survival of failures."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import pytest
import safetensors.torch
import torch
import yaml
from tests.inference.adapters import (
    CLASS_NAMES,
    adapter_of,
    backbone_of,
    inputs_of,
    our_logits,
    write,
)  # fmt: skip

from fedelta.catalog import TUNING_METHODS
from fedelta.errors import AdapterError
from fedelta.inference import directory as files
from fedelta.inference.adapter import SavedAdapter, check_fits, check_task, read_adapter, write_adapter
from fedelta.modalities.settings import Preparation
from fedelta.models.anatomy import ANATOMIES
from fedelta.models.hub import Backbone
from fedelta.models.source import ModelSource
from fedelta.params import ParamSpec
from fedelta.settings import Settings
from fedelta.settings.registry import Provider
from fedelta.tasks.classification import Classification
from fedelta.tasks.regression import Regression
from fedelta.tuning.adapter import Adapter as Bottleneck
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel
from fedelta.tuning.prompt import Prompt

VIT = ANATOMIES["vit"]
TUNINGS = [
    Full(),
    Head(),
    Bias(),
    Lora(r=3, rank_pattern={"v_proj": 2}, alpha_pattern={"layers.1.attention.q_proj": 1.5}, use_rslora=True),
    Bottleneck(shared=False, reduction_factor=4, non_linearity="relu"),
    Prompt(num_virtual_tokens=3, depth="shallow", dropout=0.5),
    Combined(methods=(Lora(r=2, target_modules=("fc1",)), Bias(), Prompt(num_virtual_tokens=2))),
]
CONVOLUTIONAL = [
    Full(),
    Bias(),
    Parallel(),
    Lora(r=2, target_modules="all-conv"),
    Combined(methods=(Parallel(), Lora(r=2, target_modules="all-conv"))),
]


@pytest.fixture
def adapter() -> SavedAdapter:
    """A small adapter without a model: one pair and a head."""
    path = "vit.layers.0.attention.q_proj"
    params = {
        f"{path}.lora_A": torch.arange(6.0).view(2, 3),
        f"{path}.lora_B": torch.ones(4, 2),
        "classifier.weight": torch.ones(2, 4),
    }
    return SavedAdapter(Lora(r=2), params, "some/base", ("no", "yes"))


@pytest.mark.parametrize("family", ["vit", "bert", "distilbert"])
@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda tuning: tuning.name)
def test_an_adapter_comes_back_bit_for_bit(tuning, family, checkpoint, tmp_path):
    if family != "vit" and isinstance(tuning, Lora):
        tuning = Lora(r=2, target_modules=("q", "fc1"))
    base = checkpoint(family)
    written = write(tmp_path / "adapter", family, tuning, base)
    result = read_adapter(tmp_path / "adapter", backbone_of(base).anatomy)
    assert sorted(result.params) == sorted(written.params)
    assert all(torch.equal(result.params[name], tensor) for name, tensor in written.params.items())
    assert (result.tuning.name, result.base, result.class_names) == (tuning.name, str(base), CLASS_NAMES)
    inputs = inputs_of(family)
    assert torch.equal(our_logits(result, backbone_of(base), inputs), our_logits(written, backbone_of(base), inputs))


@pytest.mark.parametrize("family", ["resnet", "fedelta_resnet"])
@pytest.mark.parametrize("tuning", CONVOLUTIONAL, ids=lambda tuning: tuning.name)
def test_an_adapter_of_a_convolutional_network_comes_back_bit_for_bit(tuning, family, checkpoint, tmp_path):
    base = checkpoint(family)
    written = write(tmp_path / "adapter", family, tuning, base)
    result = read_adapter(tmp_path / "adapter", backbone_of(base).anatomy)
    assert sorted(result.params) == sorted(written.params)
    assert all(torch.equal(result.params[name], tensor) for name, tensor in written.params.items())
    inputs = inputs_of(family)
    assert torch.equal(our_logits(result, backbone_of(base), inputs), our_logits(written, backbone_of(base), inputs))


@pytest.mark.parametrize("tuning", [Parallel(), Lora(r=2, target_modules="all-conv")], ids=lambda tuning: tuning.name)
def test_an_adapter_for_another_network_is_refused(tuning, checkpoint):
    adapter = adapter_of(tuning, checkpoint("fedelta_resnet"))
    for family in ("resnet", "vit"):
        with pytest.raises(AdapterError, match=r"was made for .*fedelta_resnet' and does not fit this"):
            check_fits(adapter, backbone_of(checkpoint(family)))


def test_settings_of_lora_that_was_read_name_each_layer(checkpoint, tmp_path):
    write(tmp_path / "adapter", "vit", TUNINGS[3], checkpoint("vit"))
    tuning = read_adapter(tmp_path / "adapter").tuning
    paths = [f"vit.layers.{index}.attention" for index in (0, 1)]
    assert tuning == Lora(
        r=3,
        lora_alpha=16.0,
        target_modules=tuple(f"{path}.{role}" for path in paths for role in ("q_proj", "v_proj")),
        rank_pattern={f"{path}.v_proj": 2 for path in paths},
        alpha_pattern={"vit.layers.1.attention.q_proj": 1.5},
        use_rslora=True,
        train_head=True,
    )


def test_what_was_written_is_independent_of_the_tensors_it_was_made_from(adapter, tmp_path):
    row = torch.arange(20.0)
    views = {name: row[: tensor.numel()].view(tensor.shape) for name, tensor in adapter.params.items()}
    write_adapter(tmp_path / "a", SavedAdapter(adapter.tuning, views, "base", None), VIT, {})
    assert all(torch.equal(tensor, views[name]) for name, tensor in read_adapter(tmp_path / "a").params.items())


def test_the_same_adapter_gives_the_same_bytes(adapter, tmp_path):
    for name in ("one", "two"):
        write_adapter(tmp_path / name, adapter, VIT, {"rounds": 3})
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "fedelta.json"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_the_card_describes_the_run_and_how_to_load(adapter, tmp_path):
    card = {
        "rounds": 30, "num_clients": 64, "final_accuracy": 0.91257, "uplink_bytes": 3 * 2**20, "wall_seconds": 61.25,
        "best_accuracy": None, "modality": "image", "extra_inputs": {},
        "config": {"partition": {"name": "dirichlet", "alpha": 0.1}, "data": {"source": "/home/me/scans"}},
        "final_loss_nats": 0.3104, "primary_measure": "accuracy",
        "measures": {"macro_f1": 0.5, "loss_nats": 0.25}, "by_class": {"no": {}}, "by_client": {},
    }  # fmt: skip
    bundled = SavedAdapter(adapter.tuning, adapter.params, "bundled:vit-micro", ("no", "yes"))
    write_adapter(tmp_path / "a", bundled, VIT, card)
    _, header, body = (tmp_path / "a/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "apache-2.0",  # of the base model
        "library_name": "peft",
        "metrics": ["f1"],
        "pipeline_tag": "image-classification",
        "tags": ["federated-learning", "fedelta", "lora"],
        "model-index": [{
            "name": "lora adapter",
            "results": [{
                "task": {"type": "image-classification"}, "dataset": {"name": "scans", "type": "scans"},
                "metrics": [{"type": "f1", "value": 0.5, "name": "macro F1"}],
            }],
        }],
    }  # fmt: skip
    assert "/home/me" not in body
    for row in (
        "| rounds | 30 |", "| clients | 64 |", "| final accuracy | 91.3 % |", "| uplink | 3.00 MiB |",
        "| wall | 1 min 1 s |", "| partition | name dirichlet, alpha 0.1 |", "2 classes: no, yes",
        "| final loss | 0.310 nats per example |", "| measures | macro F1 50.0 %, loss 0.250 nats per example |",
        'source = Path("path/of/this/directory"), str(bundled_path("vit-micro"))', "id2label=dict(enumerate(names))",
    ):  # fmt: skip
        assert row in body.replace("\N{NARROW NO-BREAK SPACE}", " ")
    for absent in ("best accuracy", "primary measure", "by class", "by client"):
        assert absent not in body
    assert "interpolated" not in body


def test_the_card_of_a_private_run_says_what_is_promised_and_not_how_many_took_part(adapter, tmp_path):
    card = {
        "rounds": 30, "privacy_unit": "client", "epsilon": 3.2531, "epsilon_rdp": 4.9999, "delta": 1e-3,
        "noise_multiplier": 1.0,
        "privacy": "Any one client could be added or removed: epsilon 3.254.", "stopped": "The budget is spent.",
        "uplink_bytes": 3 * 2**20, "full_model_bytes": 2**30, "relative_cost": 1.0, "wall_seconds": 61.25,
        "peak_memory_bytes": 2**30, "too_few_sites": "3 of 30 rounds had fewer than 2 sites: kiel was away.",
    }  # fmt: skip
    write_adapter(tmp_path / "a", adapter, VIT, card)
    text = (tmp_path / "a/README.md").read_text()
    for expected in (
        "| privacy unit | client |", "| epsilon | 3.254 |", "| epsilon rdp | 5 |",  # rounded up
        "| delta | 0.001 |", "| noise multiplier | 1 |",
        "## Differential privacy\n\nAny one client could be added or removed: epsilon 3.254.\nThe budget is spent.\n",
        "\nCovered: the parameters of every round", "\nNot covered: the run directory",
        f"\nAccounted for by dp-accounting {version('dp-accounting')}.\n",
    ):  # fmt: skip
        assert expected in text
    for absent in ("uplink", "full model", "relative cost", "wall", "peak memory", "3 of 30 rounds"):
        assert absent not in text
    # Where clients protect themselves, who takes part is no secret.
    write_adapter(tmp_path / "b", adapter, VIT, card | {"privacy_unit": "example"})
    assert "| uplink | 3.00" in (tmp_path / "b/README.md").read_text()


def test_the_card_of_a_run_whose_noise_guarantees_nothing_covers_nothing(adapter, tmp_path):
    card = {"privacy_unit": "example", "epsilon": None, "epsilon_note": "No guarantee.", "privacy": "No guarantee."}
    write_adapter(tmp_path / "a", adapter, VIT, card)
    text = (tmp_path / "a/README.md").read_text()
    assert "## Differential privacy\n\nNo guarantee.\n" in text
    assert "Covered" not in text
    assert "Accounted for" not in text
    assert "| epsilon" not in text


MODELS = {
    "a size": ModelSource(source="some/base", image_size=32, num_classes=2),
    "random weights": ModelSource(source="some/base", pretrained=False),
    "an architecture": ModelSource(architecture={"model_type": "vit", "hidden_size": 16, "id2label": {"0": "x"}}),
    "nothing": None,
}


@pytest.mark.parametrize("case", MODELS)
def test_what_makes_the_base_model_comes_back(case, adapter, tmp_path):
    written = replace(adapter, model=MODELS[case], seed=7, preparation=Preparation(max_length=9))
    write_adapter(tmp_path / "a", written, VIT, {})
    result = read_adapter(tmp_path / "a")
    assert (result.model, result.seed, result.preparation) == (MODELS[case], 7, Preparation(max_length=9))


def test_the_adapter_that_a_run_started_from_is_not_kept(adapter, tmp_path):
    source = ModelSource(source="some/base", adapter="/home/me/first")
    write_adapter(tmp_path / "a", replace(adapter, model=source), VIT, {})
    assert read_adapter(tmp_path / "a").model == ModelSource(source="some/base")
    assert "/home/me" not in (tmp_path / "a/fedelta.json").read_text()


def test_an_adapter_made_elsewhere_says_nothing_of_its_run(adapter, tmp_path):
    write_adapter(
        tmp_path / "a", replace(adapter, model=MODELS["a size"], seed=7, preparation=Preparation(max_length=9)), VIT, {}
    )
    (tmp_path / "a/fedelta.json").unlink()
    result = read_adapter(tmp_path / "a")
    assert (result.class_names, result.model, result.seed, result.preparation) == (None, None, 0, Preparation())


def test_a_bundled_base_keeps_its_name(adapter, tmp_path):
    name = "bundled:vit-micro"
    write_adapter(tmp_path / "a", replace(adapter, base=name, model=ModelSource(source=name)), VIT, {})
    assert json.loads((tmp_path / "a/fedelta.json").read_text())["model"]["source"] == name
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["base_model_name_or_path"] == name


def test_a_base_without_a_name_has_none_in_any_file(adapter, tmp_path):
    write_adapter(tmp_path / "a", replace(adapter, base="", model=MODELS["an architecture"]), VIT, {})
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert read_adapter(tmp_path / "a").base == ""
    card = (tmp_path / "a/README.md").read_text()
    assert "base_model" not in card
    assert "# lora adapter\n" in card
    assert "PeftModel" not in card


def test_the_card_does_not_load_trained_weights_where_the_run_had_random_ones(adapter, tmp_path):
    write_adapter(tmp_path / "a", replace(adapter, model=MODELS["random weights"]), VIT, {})
    card = (tmp_path / "a/README.md").read_text()
    assert "so stock\nPEFT cannot load the same weights" in card
    assert "from_pretrained" not in card
    assert "Predictor.from_adapter" in card


class Part(Settings):
    """A tuning method with fields, as a contributor adds one."""

    name: Literal["part"] = "part"
    blocks: tuple[int, ...] = (0,)
    scale: float = 1.0

    @property
    def max_lanes(self) -> None:
        """No bound."""

    def apply(self, backbone: Backbone, lanes: Lanes, generator: torch.Generator) -> ParamSpec:
        """As head tuning."""
        return Head().apply(backbone, lanes, generator)

    def merge(self, backbone: Backbone) -> None:
        """As head tuning."""
        Head().merge(backbone)


def write_part(directory: Path) -> None:
    write_adapter(
        directory, SavedAdapter(Part(blocks=(1, 3)), {"classifier.weight": torch.ones(2, 4)}, "b", None), VIT, {}
    )


def test_a_new_tuning_method_comes_back_with_its_fields(tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING_METHODS.added, "part", (Part, Provider("a test")))
    write_part(tmp_path / "a")
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["peft_type"] == "FEDELTA_PART"
    assert read_adapter(tmp_path / "a").tuning == Part(blocks=(1, 3))


def test_a_tuning_section_that_does_not_fit_is_refused_with_every_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING_METHODS.added, "part", (Part, Provider("a test")))
    write_part(tmp_path / "a")
    change_own(tmp_path / "a", tuning={"name": "head", "blocks": ["x"], "depth": 2})
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "a")
    for problem in (
        "`tuning` in `fedelta.json` does not fit the tuning method 'part'",
        "`name` is 'head'",
        "`blocks.0` is 'x'",
        "`depth` is 2: Extra inputs",
    ):
        assert problem in caught.value.message
    (tmp_path / "a/fedelta.json").unlink()
    with pytest.raises(AdapterError, match="lacks the settings of the tuning method 'part', expected `tuning`"):
        read_adapter(tmp_path / "a")


def test_every_tuning_method_has_a_type_of_its_own_in_the_file(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    assert all(f"'FEDELTA_{name.upper()}'" in caught.value.message for name in TUNING_METHODS if name != "lora")


def test_the_card_shows_a_few_of_many_classes(adapter, tmp_path):
    names = tuple(f"class-{index}" for index in range(100))
    write_adapter(tmp_path / "a", SavedAdapter(adapter.tuning, adapter.params, "base", names), VIT, {})
    card = (tmp_path / "a/README.md").read_text()
    assert "100 classes: class-0, " in card
    assert ", class-19 and 80 more (in `fedelta.json`)\n" in card


@pytest.mark.parametrize(
    ("modality", "with_head", "task_type"), [("text", True, "SEQ_CLS"), ("text", False, None), ("image", True, None)]
)
def test_peft_gets_a_task_type_for_texts_with_a_head(modality, with_head, task_type, adapter, tmp_path):
    params = {name: tensor for name, tensor in adapter.params.items() if with_head or "lora" in name}
    write_adapter(tmp_path / "a", SavedAdapter(Lora(r=2), params, "base", None), VIT, {"modality": modality})
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["task_type"] == task_type
    assert config["modules_to_save"] == (["classifier"] if with_head else None)
    assert read_adapter(tmp_path / "a").tuning.train_head is with_head


# --- refusals ---------------------------------------------------------------------------------------------------


def change_config(path: Path, **fields: object) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | fields))


def change_own(path: Path, **fields: object) -> None:
    own = json.loads((path / "fedelta.json").read_text())
    (path / "fedelta.json").write_text(json.dumps(own | fields))


def change_tensors(path: Path, **tensors: torch.Tensor | None) -> None:
    file = path / "adapter_model.safetensors"
    changed = safetensors.torch.load_file(file) | tensors
    safetensors.torch.save_file({key: tensor for key, tensor in changed.items() if tensor is not None}, file)
    change_own(path, weights_sha256="")  # as one who forges an adapter would


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


HEAD = "base_model.model.classifier.weight"
A = "base_model.model.vit.layers.0.attention.q_proj.lora_A.weight"
B = "base_model.model.vit.layers.0.attention.q_proj.lora_B.weight"
DAMAGES = {
    "no directory": (lambda path: path.rename(path.with_name("b")), "does not exist, expected a directory"),
    "no configuration": (lambda path: (path / "adapter_config.json").unlink(), "lacks `adapter_config.json`"),
    "cut configuration": (lambda path: (path / "adapter_config.json").write_text("{"), "is not readable as JSON"),
    "a list": (lambda path: (path / "adapter_config.json").write_text("[]"), "holds a JSON list, expected an object"),
    "no type": (lambda path: change_config(path, peft_type=None), "`peft_type` is None, expected 'LORA' or one of"),
    "no tensors": (lambda path: (path / "adapter_model.safetensors").unlink(), "lacks `adapter_model.safetensors`"),
    "cut tensors": (lambda path: os.truncate(path / "adapter_model.safetensors", 300), "is damaged"),
    "empty file": (lambda path: (path / "adapter_model.safetensors").write_bytes(b""), "is damaged"),
    "no tensor": (lambda path: change_tensors(path, **dict.fromkeys((A, B, HEAD))), "holds no tensors"),
    "one bit": (lambda path: flip_last_bit(path / "adapter_model.safetensors"), "its digest differs"),
    "NaN": (lambda path: change_tensors(path, **{A: torch.full((2, 3), torch.nan)}), "NaN or infinity in 1 tensors"),
    "integers": (lambda path: change_tensors(path, **{A: torch.ones(2, 3).char()}), "not floating-point numbers"),
    "half a pair": (lambda path: change_tensors(path, **{B: None}), "q_proj.lora_A` lacks its `lora_B`"),
    "the other half": (lambda path: change_tensors(path, **{A: None}), "q_proj.lora_B` lacks its `lora_A`"),
    "no pair": (lambda path: change_tensors(path, **{A: None, B: None}), "it holds no LoRA pair"),
    "two ranks": (lambda path: change_tensors(path, **{A: torch.ones(1, 3)}), "expected (out, 1) as `lora_A`"),
    "rank": (
        lambda path: change_tensors(path, **{A: torch.ones(5, 3), B: torch.ones(4, 5)}), "has rank 5, expected 1 to 3",
    ),
    "alpha": (lambda path: change_config(path, lora_alpha=0), "alpha is 0, expected a number above 0"),
    "alpha text": (lambda path: change_config(path, lora_alpha="8"), "alpha is '8', expected a number above 0"),
    "pattern": (lambda path: change_config(path, alpha_pattern={"(": 2}), "key '(' is not a regular expression"),
    # Each way to cut 28 letters into words is tried before it is clear that none ends in a digit.
    "slow pattern": (lambda path: change_config(path, alpha_pattern={r"(\w|.)*\d": 2}), "takes too long to match"),
    "long pattern": (lambda path: change_config(path, alpha_pattern={"q" * 1001: 2}), "a key of 1,001 characters"),
    "deep": (lambda path: (path / "adapter_config.json").write_text("[" * 100_000), "is not readable as JSON"),
    "patterns": (lambda path: change_config(path, alpha_pattern=[1]), "`alpha_pattern` is [1], expected an object"),
    "later switch": (lambda path: change_config(path, use_new=True), "`use_new` is True, expected it to be off"),
    "later options": (lambda path: change_config(path, new={"k": 1}), "`new` is {'k': 1}, expected it to be off"),
    "class names": (lambda path: change_own(path, class_names=[1]), "`class_names.0` is 1: Input should be a valid"),
    "cut own file": (lambda path: (path / "fedelta.json").write_text("{"), "fedelta.json' cannot be used"),
    "own file a list": (lambda path: (path / "fedelta.json").write_text("[]"), "fedelta.json' cannot be used"),
    "model": (lambda path: change_own(path, model={"sauce": "x"}), "`model.sauce` is 'x': Extra inputs"),
    "seed": (lambda path: change_own(path, seed=-1), "`seed` is -1: Input should be greater"),
    "later own file": (lambda path: change_own(path, dtype="half"), "`dtype` is 'half': Extra inputs"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(damage, adapter, tmp_path):
    write_adapter(tmp_path / "a", adapter, VIT, {})
    inflict, message = DAMAGES[damage]
    inflict(tmp_path / "a")
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "a", VIT)
    assert message in str(caught.value)
    assert str(tmp_path / "a") in str(caught.value)


def test_all_problems_of_an_adapter_are_in_one_message(adapter, tmp_path):
    write_adapter(tmp_path / "a", adapter, VIT, {})
    change_config(tmp_path / "a", use_dora=True, bias="all")
    change_tensors(tmp_path / "a", **{B: None})
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "a")
    assert str(caught.value).count("\n  - ") == 3


def test_parameters_of_a_later_peft_that_are_off_do_no_harm(adapter, tmp_path):
    write_adapter(tmp_path / "a", adapter, VIT, {})
    change_config(tmp_path / "a", use_new=False, new_size=16, new_name="x", new_config=None, new_list=[])
    assert read_adapter(tmp_path / "a").tuning == read_adapter(tmp_path / "a", VIT).tuning


def test_a_pickle_is_refused_and_never_opened(adapter, tmp_path):
    write_adapter(tmp_path / "a", adapter, VIT, {})
    (tmp_path / "a/adapter_model.safetensors").rename(tmp_path / "a/adapter_model.bin")
    with pytest.raises(AdapterError, match="a pickle, which can run code and is never read") as caught:
        read_adapter(tmp_path / "a")
    assert "`save_pretrained`" in str(caught.value.hint)


# --- fitting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", [*TUNINGS, Lora(target_modules="all-linear", r=2)], ids=lambda tuning: tuning.name)
def test_an_adapter_fits_its_own_model_which_stays_as_it_is(tuning, checkpoint):
    backbone = backbone_of(checkpoint("vit"))
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    check_fits(adapter_of(tuning, checkpoint("vit")), backbone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.module.state_dict().items())
    assert list(backbone.module.state_dict()) == list(before)


# A head alone could belong to any model of the same width: names and shapes are all there is to check.
@pytest.mark.parametrize("tuning", [Full(), Bias(), Lora()], ids=lambda tuning: tuning.name)
def test_an_adapter_of_another_family_is_refused(tuning, checkpoint):
    base = checkpoint("vit")
    with pytest.raises(AdapterError, match="does not fit this BertForSequenceClassification") as caught:
        check_fits(adapter_of(tuning, base), backbone_of(checkpoint("bert")))
    assert f"was made for {str(base)!r}" in caught.value.message
    assert "the model has no " in caught.value.message
    assert "`vit." in caught.value.message


@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda tuning: tuning.name)
def test_an_adapter_for_other_classes_is_refused(tuning, checkpoint):
    base = checkpoint("vit")
    message = r"`classifier.weight` has shape \(3, 16\), the model's is \(2, 16\)"
    with pytest.raises(AdapterError, match=message):
        check_fits(adapter_of(tuning, base), backbone_of(base, ("no", "yes")))


def test_what_does_not_fit_is_named(checkpoint):
    base = checkpoint("vit")
    fine = adapter_of(Lora(r=2), base)
    path = "vit.layers.0.attention.q_proj"
    cases = {
        f"`{path}.lora_A` has shape (2, 9), the model's is (2, 16)": {f"{path}.lora_A": torch.ones(2, 9)},
        "the model has no module `vit.layers.7.mlp.fc1`": {"vit.layers.7.mlp.fc1.lora_A": torch.ones(2, 16)},
        "`vit.layernorm` is a LayerNorm, expected a linear layer": {"vit.layernorm.lora_A": torch.ones(2, 16)},
        "`vit.layernorm.weight` is a wholly saved module outside the head ['classifier']": {
            "vit.layernorm.weight": torch.ones(16)
        },
        "the model has no `classifier.scale` that 'lora' tunes": {"classifier.scale": torch.ones(16)},
    }
    for message, changes in cases.items():
        with pytest.raises(AdapterError) as caught:
            check_fits(SavedAdapter(fine.tuning, fine.params | changes, str(base), None), backbone_of(base))
        assert message in str(caught.value)


@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda tuning: tuning.name)
def test_an_adapter_that_lacks_a_tensor_is_refused(tuning, checkpoint):
    base = checkpoint("vit")
    whole = adapter_of(tuning, base)
    name = "vit.layers.1.attention.q_proj.lora_B" if isinstance(tuning, Lora) else "classifier.bias"
    rest = {key: tensor for key, tensor in whole.params.items() if key != name}
    with pytest.raises(AdapterError, match=f"the adapter lacks `{name}`"):
        check_fits(SavedAdapter(tuning, rest, str(base), None), backbone_of(base))


def test_an_adapter_of_another_task_is_refused_and_one_that_does_not_say_is_not():
    adapter = SavedAdapter(Head(), {}, "some/base", (), task=Regression(offset=0.0, scale=2.0))
    check_task(adapter, Regression(offset=0.0, scale=2.0))
    check_task(SavedAdapter(Head(), {}, "some/base", None), Regression())
    with pytest.raises(AdapterError) as caught:
        check_task(adapter, Classification())
    assert caught.value.message.startswith(
        "the adapter was trained for another task: expected `task.name` = 'regression', `task.offset` = 0.0, "
        "`task.scale` = 2.0, found `task.name` = 'classification', "
    )
    assert caught.value.hint == "set section `[task]` to that of the adapter."


@pytest.mark.parametrize("task", [Classification(), Regression(offset=-1.5), None])
def test_the_task_of_an_adapter_is_read_back(adapter, tmp_path, task):
    write_adapter(tmp_path, replace(adapter, task=task), VIT, {})
    assert read_adapter(tmp_path).task == task


def test_a_card_of_a_regression_loads_one_output_and_names_no_pipeline(adapter, tmp_path):
    card = {"modality": "image", "config": {"task": {"name": "regression"}}, "final_rmse": 0.5}
    write_adapter(tmp_path, replace(adapter, task=Regression(), class_names=()), VIT, card)
    text = (tmp_path / "README.md").read_text()
    assert "num_labels=1," in text
    assert "pipeline_tag" not in text
    assert "| final root mean squared error | 0.500 |" in text


# --- writing ----------------------------------------------------------------------------------------------------


def test_a_previous_adapter_is_replaced_and_nothing_else_is_left(adapter, tmp_path):
    write_adapter(tmp_path / "deep/a", adapter, VIT, {})
    other = SavedAdapter(adapter.tuning, adapter.params, "other", None)
    write_adapter(tmp_path / "deep/a", other, VIT, {})
    assert read_adapter(tmp_path / "deep/a").base == "other"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


@pytest.mark.parametrize("failing", ["write", "first rename", "second rename"])
def test_a_previous_adapter_survives_a_failure(failing, adapter, tmp_path, monkeypatch):
    write_adapter(tmp_path / "a", adapter, VIT, {})
    calls, rename, write_file = [], Path.rename, files.write_atomic

    def fail_when(due: bool) -> None:
        if due:
            raise OSError(28, "No space left on device")

    def failing_rename(self: Path, target: Path) -> Path:
        calls.append(target)
        fail_when((failing, len(calls)) in {("first rename", 1), ("second rename", 2)})
        return rename(self, target)

    def failing_write(path: Path, content: str | bytes) -> None:
        fail_when(failing == "write" and path.name == "adapter_config.json")
        write_file(path, content)

    monkeypatch.setattr(Path, "rename", failing_rename)
    monkeypatch.setattr(files, "write_atomic", failing_write)
    with pytest.raises(OSError, match="No space left"):
        write_adapter(tmp_path / "a", SavedAdapter(adapter.tuning, adapter.params, "other", None), VIT, {})
    monkeypatch.undo()
    assert read_adapter(tmp_path / "a").base == "some/base"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_adapter_that_a_kill_left_aside_comes_back(adapter, tmp_path):
    write_adapter(tmp_path / "a", adapter, VIT, {})
    (tmp_path / "a").rename(tmp_path / ".a.previous")  # as between the two renames
    (tmp_path / ".a.partial").mkdir()
    write_adapter(tmp_path / "a", adapter, VIT, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_with_other_files_is_not_replaced(adapter, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(AdapterError, match=r"is not an adapter directory: it holds 'thesis.tex'"):
        write_adapter(tmp_path, adapter, VIT, {})
    with pytest.raises(AdapterError, match=r"is not an adapter directory"):
        write_adapter(tmp_path / "thesis.tex", adapter, VIT, {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("train_head", [True, False])
def test_a_card_says_that_the_head_is_not_in_the_directory(adapter, tmp_path, train_head):
    card = {"config": {"tuning": {"name": "lora", "train_head": train_head}}}
    write_adapter(tmp_path / "a", adapter, VIT, card)
    is_noted = "The head was not trained and is not in this directory:" in (tmp_path / "a" / "README.md").read_text()
    assert is_noted is not train_head
