"""Adapters that cross the border to stock PEFT, both ways: the logits must stay."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from tests.inference.adapters import (
    CLASS_NAMES,
    IMAGE_FAMILIES,
    adapter_of,
    backbone_of,
    inputs_of,
    our_logits,
    write,
)
from torch import Tensor

from fedelta.aggregation.flora import Flora
from fedelta.aggregation.low_rank import prepared
from fedelta.errors import AdapterError
from fedelta.inference.adapter import SavedAdapter, read_adapter, write_adapter
from fedelta.inference.opening import install
from fedelta.models.hub import build
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.tuning.adapter import Adapter as Bottleneck
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

TOLERANCE = {"rtol": 0, "atol": 1e-5}
# Logits of the small convolutional networks reach 100,000.
RELATIVE = {"rtol": 1e-5, "atol": 1e-5}

pytestmark = [
    # transformers 5.23 deprecates what peft 0.21.2 asks every model for.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor.s. have invalid shape"),  # that case's biases
]


def base_of(family: str, directory: Path, num_labels: int = 3) -> torch.nn.Module:
    """As a user of stock PEFT loads the base model."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    auto = AutoModelForImageClassification if family in IMAGE_FAMILIES else AutoModelForSequenceClassification
    return auto.from_pretrained(directory, num_labels=num_labels, ignore_mismatched_sizes=True).eval()


OURS = {
    "q and v": ("vit", Lora(r=4)),
    "all linear": ("vit", Lora(r=3, target_modules="all-linear")),
    "patterns": (
        "vit",
        Lora(
            r=3,
            target_modules="all-linear",
            rank_pattern={"mlp.fc1": 5, "layers.0.attention.q_proj": 2},
            alpha_pattern={"o_proj": 3.5, "vit.layers.1.mlp.fc2": 1.0},
        ),
    ),
    "rslora": ("vit", Lora(r=9, lora_alpha=5, use_rslora=True, alpha_pattern={"v_proj": 2.0})),
    "without head": ("vit", Lora(r=2, train_head=False)),
    "text without head": ("bert", Lora(r=2, train_head=False)),
    "dinov2": ("dinov2", Lora(r=2, target_modules=("k", "fc2"))),
    "bert": ("bert", Lora(r=2, target_modules=("q", "o", "fc1", "fc2"))),
    "roberta": ("roberta", Lora(r=2, target_modules=("q", "o", "fc1", "fc2"))),
    "distilbert": ("distilbert", Lora(r=2, target_modules=("q", "v", "fc1"))),
    "patch embedding": ("vit", Lora(r=2, target_modules="all-conv")),
    "convolutions": ("resnet", Lora(r=2, target_modules="all-conv")),
    "our network": ("fedelta_resnet", Lora(r=2, target_modules="all-conv", use_rslora=True)),
    # The stem's name, `conv1`, ends the paths of other layers.
    "a stem alone": ("fedelta_resnet", Lora(r=2, target_modules=("^conv1",))),
    "a stem with a pattern": (
        "fedelta_resnet",
        Lora(r=2, target_modules=("conv1",), rank_pattern={"^conv1": 3}, alpha_pattern={"^conv1": 2.0}),
    ),
}


@pytest.mark.parametrize("case", OURS)
def test_stock_peft_computes_the_logits_of_our_adapter(case, checkpoint, tmp_path):
    family, tuning = OURS[case]
    base, inputs = checkpoint(family), inputs_of(family)
    adapter = write(tmp_path / "adapter", family, tuning, base)
    expected = our_logits(adapter, backbone_of(base), inputs)
    plain = base_of(family, base)
    with torch.no_grad():
        untuned = plain(**inputs).logits
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stock = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        result = stock(**inputs).logits
    assert [str(item.message) for item in caught if "is_gradient_checkpointing" not in str(item.message)] == []
    torch.testing.assert_close(result, expected, **(RELATIVE if "resnet" in family else TOLERANCE))
    assert (result - untuned).abs().max() > 0.05


@pytest.mark.parametrize(
    ("family", "tuning", "rows"),
    [
        ("vit", Lora(r=3), 5),
        ("vit", Lora(r=3, use_rslora=True), 400),  # more than the layer has
        ("resnet", Lora(r=2, target_modules="all-conv"), 4),
    ],
)
def test_stock_peft_computes_what_is_carried_beside_the_pairs(family, tuning, rows, checkpoint, tmp_path):
    base, inputs, backbone = checkpoint(family), inputs_of(family), backbone_of(checkpoint(family))
    spec = prepared(Flora(), backbone.module, tuning.apply(backbone, Lanes(1), stream(0)))
    params = {}
    for name, tensor in spec.tensors.items():
        params[name] = 0.1 * torch.randn(tensor.shape, generator=stream(1, name))
        if name.endswith("carried_A"):
            params[name][rows:] = 0
        backbone.module.get_parameter(name).data[0] = params[name]
    with torch.no_grad():
        expected = backbone.logits(inputs)
    card = {"modality": "image", "extra_inputs": backbone.extra_inputs}
    adapter = SavedAdapter(tuning, params, base=str(base), class_names=CLASS_NAMES)
    write_adapter(tmp_path / "adapter", adapter, backbone.anatomy, card)
    stock = peft.PeftModel.from_pretrained(base_of(family, base), tmp_path / "adapter").eval()
    with torch.no_grad():
        result = stock(**inputs).logits
    torch.testing.assert_close(result, expected, **(RELATIVE if "resnet" in family else TOLERANCE))


def test_stock_peft_gives_a_base_model_of_other_classes_our_head(checkpoint, tmp_path):
    base, inputs, names = checkpoint("vit"), inputs_of("vit"), ("one", "two", "three", "four", "five")
    adapter = write(tmp_path / "adapter", "vit", Lora(r=2), base, names)
    stock = peft.PeftModel.from_pretrained(base_of("vit", base, num_labels=5), tmp_path / "adapter").eval()
    with torch.no_grad():
        result = stock(**inputs).logits
    torch.testing.assert_close(result, our_logits(adapter, backbone_of(base, names), inputs), **TOLERANCE)


def test_stock_peft_computes_our_logits_at_another_image_size(checkpoint, tmp_path):
    base = checkpoint("vit")
    source = ModelSource(source=str(base), image_size=32)
    backbone = build(source, CLASS_NAMES, seed=1)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    adapter = adapter_of(Lora(r=2), base)
    card = {"modality": "image", "extra_inputs": backbone.extra_inputs}
    write_adapter(tmp_path / "adapter", adapter, backbone.anatomy, card)
    stock = peft.PeftModel.from_pretrained(base_of("vit", base), tmp_path / "adapter").eval()
    with torch.no_grad():
        result = stock(**inputs, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(result, our_logits(adapter, backbone, inputs), **TOLERANCE)
    assert "`model(pixel_values, interpolate_pos_encoding=True)`" in (tmp_path / "adapter/README.md").read_text()


@pytest.mark.parametrize("family", ["vit", "roberta", "distilbert"])
def test_our_keys_are_those_that_stock_peft_writes(family, checkpoint, tmp_path):
    write(tmp_path / "ours", family, Lora(r=2), checkpoint(family))
    stock = peft.PeftModel.from_pretrained(base_of(family, checkpoint(family)), tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    ours, theirs = (
        safetensors.torch.load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "stock")
    )
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "tuning",
    [Full(), Head(), Bias(), Bottleneck(), Prompt(), Combined(methods=(Lora(r=2), Bias()))],
    ids=lambda tuning: tuning.name,
)
def test_stock_peft_refuses_what_it_does_not_know(tuning, checkpoint, tmp_path):
    write(tmp_path / "adapter", "vit", tuning, checkpoint("vit"))
    with pytest.raises(KeyError, match=f"FEDELTA_{tuning.name.upper()}"):
        peft.PeftModel.from_pretrained(base_of("vit", checkpoint("vit")), tmp_path / "adapter")
    assert "Stock PEFT cannot load this directory" in (tmp_path / "adapter/README.md").read_text()


THEIRS = {
    "q and v": ("vit", {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}),
    "all linear with patterns": (
        "vit",
        {
            "r": 3,
            "lora_alpha": 5,
            "target_modules": "all-linear",
            "modules_to_save": ["classifier"],
            "rank_pattern": {"mlp.fc1": 2, r"layers\.1\.attention\.q_proj": 5},
            "alpha_pattern": {r"layers\.\d\.attention\.o_proj": 7, "^vit.layers.0.mlp.fc1": 2, "mlp.fc1": 9},
        },
    ),
    "rslora": ("vit", {"r": 6, "use_rslora": True, "target_modules": ["q_proj"], "modules_to_save": ["classifier"]}),
    "without head": ("vit", {"r": 2, "target_modules": ["k_proj", "fc2"]}),
    "a regular expression": ("vit", {"r": 2, "target_modules": r".*\.1\.(attention|mlp)\.(.*_proj|fc\d)"}),
    "one layer": (
        "vit", {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "dropout and gaussian": (
        "vit", {"r": 2, "target_modules": ["q_proj"], "lora_dropout": 0.3, "init_lora_weights": "gaussian"},
    ),
    "bert": (
        "bert",
        {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "dense"], "exclude_modules": ["pooler.dense"]},
    ),
    "bert with pooler": ("bert", {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["dense"]}),
    "roberta": ("roberta", {"task_type": "SEQ_CLS", "r": 3, "target_modules": ["query", "dense"]}),
    "a part of the head": ("roberta", {"r": 3, "target_modules": ["query"], "modules_to_save": ["out_proj"]}),
    "distilbert": ("distilbert", {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["q_lin", "lin1"]}),
    "convolutions": (
        "resnet", {"r": 2, "target_modules": ["convolution"], "modules_to_save": ["classifier"], "lora_alpha": 3}
    ),
    "linear and convolutional": ("vit", {"r": 2, "target_modules": ["projection", "fc1"]}),
    "our network": (
        "fedelta_resnet",
        {"r": 2, "target_modules": ["conv1"], "rank_pattern": {"^conv1": 3}, "modules_to_save": ["linear"]},
    ),
}  # fmt: skip


def stock_adapter(directory: Path, family: str, base: Path, fields: dict[str, object]) -> Tensor:
    """Writes an adapter with random tensors as stock PEFT does; returns its logits."""
    model = peft.get_peft_model(base_of(family, base), peft.LoraConfig(**fields))
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    model.eval().save_pretrained(directory)
    with torch.no_grad():
        return model(**inputs_of(family)).logits


@pytest.mark.parametrize("case", THEIRS)
def test_we_compute_the_logits_of_an_adapter_made_by_stock_peft(case, checkpoint, tmp_path):
    family, fields = THEIRS[case]
    base = checkpoint(family)
    expected = stock_adapter(tmp_path / "adapter", family, base, fields)
    backbone = backbone_of(base)
    adapter = read_adapter(tmp_path / "adapter", backbone.anatomy)
    result = our_logits(adapter, backbone, inputs_of(family))
    torch.testing.assert_close(result, expected, **(RELATIVE if "resnet" in family else TOLERANCE))
    assert (result - base_of(family, base)(**inputs_of(family)).logits).abs().max() > 0.05
    assert adapter.base == str(base)
    assert adapter.class_names is None


@pytest.mark.parametrize("case", ["without head", "a part of the head", "all linear with patterns"])
def test_an_adapter_made_by_stock_peft_can_be_given_on(case, checkpoint, tmp_path):
    family, fields = THEIRS[case]
    base = checkpoint(family)
    stock_adapter(tmp_path / "adapter", family, base, fields)
    adapter, backbone = read_adapter(tmp_path / "adapter"), backbone_of(base)
    expected = our_logits(adapter, backbone, inputs_of(family))
    # As after a run: all tensors of the specification, the head that the file lacked included.
    whole = {
        name: backbone.module.get_parameter(name)[0]
        for name in adapter.tuning.apply(backbone_of(base), Lanes(1), stream(0))
    }
    write_adapter(tmp_path / "ours", SavedAdapter(adapter.tuning, whole, str(base), CLASS_NAMES), backbone.anatomy, {})
    stock = peft.PeftModel.from_pretrained(base_of(family, base), tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs_of(family)).logits, expected, **TOLERANCE)


def test_half_precision_becomes_float32(checkpoint, tmp_path):
    stock_adapter(tmp_path, "vit", checkpoint("vit"), {"r": 2, "target_modules": ["q_proj"]})
    path = tmp_path / "adapter_model.safetensors"
    halves = {key: tensor.bfloat16() for key, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(halves, path)
    params = read_adapter(tmp_path).params
    assert {tensor.dtype for tensor in params.values()} == {torch.float32}
    key = "base_model.model.vit.layers.0.attention.q_proj.lora_B.weight"
    assert torch.equal(params["vit.layers.0.attention.q_proj.lora_B"], halves[key].float())


REFUSED = {
    "dora": ({"use_dora": True}, "`use_dora` is True, expected it to be off"),
    "lora bias": ({"lora_bias": True}, "`lora_bias` is True"),
    "bias": ({"bias": "lora_only"}, "`bias` is 'lora_only', expected 'none'"),
    "pissa": ({"init_lora_weights": "pissa"}, "`init_lora_weights` is 'pissa', which changes the base model"),
    "embedding": ({"target_modules": ["word_embeddings"]}, "lora_embedding_A` belongs to a variant of LoRA"),
    "layer norm saved": (
        {"modules_to_save": ["classifier", "LayerNorm"]}, "outside the head ['classifier']",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_lora_without_an_equivalent_here_is_refused(case, checkpoint, tmp_path):
    fields, message = REFUSED[case]
    base = checkpoint("bert")
    stock_adapter(tmp_path, "bert", base, {"r": 2, "target_modules": ["query"], **fields})
    with pytest.raises(AdapterError, match=re.escape(message)) as caught:
        read_adapter(tmp_path, backbone_of(base).anatomy)
    assert caught.value.hint is not None


def test_a_layer_of_one_dimension_is_refused(checkpoint, tmp_path):
    stock_adapter(tmp_path, "vit", checkpoint("vit"), {"r": 2, "target_modules": ["q_proj"]})
    change_weights(tmp_path, lambda key, tensor: tensor[..., None] if "lora" in key else tensor)
    with pytest.raises(AdapterError, match=r"lora_A` has shape \(2, 16, 1\), expected two axes or four"):
        read_adapter(tmp_path)


def test_a_second_factor_that_is_no_1x1_convolution_is_refused(checkpoint, tmp_path):
    stock_adapter(tmp_path, "resnet", checkpoint("resnet"), {"r": 2, "target_modules": ["embedder.convolution"]})
    change_weights(tmp_path, lambda key, tensor: tensor.expand(-1, -1, 3, 3) if "lora_B" in key else tensor)
    message = r"lora_B` has shape \(4, 2, 3, 3\), expected \(out, 2, 1, 1\) as `lora_A` has rank 2"
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path)


def change_weights(directory: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = {key: change(key, tensor).contiguous() for key, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(tensors, path)


def test_stock_prompt_tuning_is_refused(checkpoint, tmp_path):
    # It is another method than ours: prompts stand in front and get position embeddings.
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    peft.get_peft_model(base_of("bert", checkpoint("bert")), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="`peft_type` is 'PROMPT_TUNING', expected 'LORA' or one of") as caught:
        read_adapter(tmp_path)
    assert caught.value.hint.endswith("cannot be taken over; choose LoRA for a new one.")


def test_pairs_in_the_head_are_refused_before_training(checkpoint, tmp_path):
    base = checkpoint("vit")
    stock_adapter(tmp_path, "vit", base, {"r": 2, "target_modules": "all-linear"})
    with pytest.raises(AdapterError, match="`classifier` is in the head, which is tuned as a whole"):
        install(read_adapter(tmp_path), backbone_of(base))


def test_adalora_is_refused(checkpoint, tmp_path):
    config = peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10)
    peft.get_peft_model(base_of("vit", checkpoint("vit")), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="`peft_type` is 'ADALORA', expected 'LORA' or one of"):
        read_adapter(tmp_path)


def test_no_key_of_our_configuration_is_unknown_to_stock_peft(checkpoint, tmp_path):
    write(tmp_path, "vit", Lora(), checkpoint("vit"))
    ours = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(ours) <= set(peft.LoraConfig().to_dict())
