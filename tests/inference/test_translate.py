"""LoRA by the names that layers had in transformers 4, against folding it into a checkpoint with these names.

transformers writes checkpoints by their first names, so that a small one of today is one of then.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fedelta.errors import AdapterError
from fedelta.inference.adapter import read_adapter
from fedelta.inference.opening import install
from fedelta.inference.translate import placed
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.models.source import ModelSource, read_config

CLASSES = ("a", "b", "c")
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = {"image_size": 16, "patch_size": 8}
# Architecture, and one layer by its name in transformers 4.
FAMILIES: dict[str, tuple[dict[str, object], str]] = {
    "vit": (BLOCKS | IMAGE, "vit.encoder.layer.1.attention.attention.query"),
    "deit": (BLOCKS | IMAGE, "deit.encoder.layer.0.attention.output.dense"),
    "beit": (BLOCKS | IMAGE, "beit.encoder.layer.0.intermediate.dense"),
    # Its gate and its input are one layer there and two here.
    "dinov2": (
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "use_swiglu_ffn": True} | IMAGE,
        "dinov2.encoder.layer.0.mlp.weights_in",
    ),
    "swin": (
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "patch_size": 4, "window_size": 4},
        "swin.encoder.layers.0.blocks.0.attention.self.query",
    ),
    "segformer": (
        {
            "depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "sr_ratios": [2, 1],
            "num_encoder_blocks": 2, "strides": [4, 2], "patch_sizes": [7, 3], "mlp_ratios": [2, 2],
            "decoder_hidden_size": 8,
        },
        "segformer.encoder.block.1.0.attention.self.value",
    ),
}  # fmt: skip


def written(family: str, path: Path) -> dict[str, Tensor]:
    """A checkpoint of `family` at `path`, drawn; its tensors by the names in the file."""
    from transformers import AutoModelForImageClassification

    architecture, _ = FAMILIES[family]
    config = read_config(ModelSource(architecture={"model_type": family} | architecture))
    config.num_labels, config.id2label, config.architectures = len(CLASSES), dict(enumerate(CLASSES)), []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = AutoModelForImageClassification.from_config(config)
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    module.save_pretrained(path)
    return safetensors.torch.load_file(path / "model.safetensors")


def backbone_at(path: Path) -> Backbone:
    from transformers import AutoModelForImageClassification

    return Backbone(AutoModelForImageClassification.from_pretrained(path).eval(), Anatomy(("classifier",)))


def write_lora(path: Path, pairs: dict[str, tuple[Tensor, Tensor]], **config: object) -> None:
    """An adapter as stock PEFT writes it."""
    path.mkdir()
    tensors = {}
    for layer, (a, b) in pairs.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = b
    safetensors.torch.save_file(tensors, path / "adapter_model.safetensors")
    facts = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": list(pairs)} | config
    (path / "adapter_config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_of_transformers_4_gives_the_logits_of_folding_it_there(family: str, tmp_path: Path):
    tensors = written(family, tmp_path / "base")
    backbone = backbone_at(tmp_path / "base")
    last = FAMILIES[family][1]
    assert last not in dict(backbone.module.named_modules())
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith((f"{last}.weight", "query.weight"))]
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for layer in layers:
        rows, columns = tensors[f"{layer}.weight"].shape
        # Ranks and factors differ: 3 / 1 for the one layer, 8 / 2 for the others.
        rank, alpha = (1, 3.0) if layer == last else (2, 8.0)
        a, b = (torch.randn(shape, generator=generator) for shape in ((rank, columns), (rows, rank)))
        pairs[layer] = (a, b)
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] + alpha / rank * b @ a
    escaped = last.replace(".", r"\.")
    write_lora(tmp_path / "lora", pairs, rank_pattern={escaped: 1}, alpha_pattern={escaped: 3})
    size = getattr(backbone.module.config, "image_size", 32)
    inputs = {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}
    with torch.no_grad():
        before = backbone.logits(inputs)
        install(read_adapter(tmp_path / "lora"), backbone)
        result = backbone.logits(inputs)
        safetensors.torch.save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
        expected = backbone_at(tmp_path / "base").logits(inputs)
    assert (expected - before).abs().max() > 0.05
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_settings_name_the_layers_of_today(tmp_path: Path):
    written("vit", tmp_path / "base")
    layer = "vit.encoder.layer.1.attention.attention.query"
    write_lora(tmp_path / "lora", {layer: (torch.ones(2, 16), torch.ones(16, 2))})
    adapter = placed(read_adapter(tmp_path / "lora"), backbone_at(tmp_path / "base"))
    assert adapter.tuning.target_modules == ("vit.layers.1.attention.q_proj",)
    assert list(adapter.params) == [f"vit.layers.1.attention.q_proj.lora_{factor}" for factor in "AB"]


def test_a_layer_that_no_version_had_is_refused_by_its_own_name(tmp_path: Path):
    written("vit", tmp_path / "base")
    write_lora(tmp_path / "lora", {"vit.blocks.0.attn.qkv": (torch.ones(2, 16), torch.ones(48, 2))})
    with pytest.raises(AdapterError, match=r"the model has no module `vit\.blocks\.0\.attn\.qkv`"):
        placed(read_adapter(tmp_path / "lora"), backbone_at(tmp_path / "base"))
