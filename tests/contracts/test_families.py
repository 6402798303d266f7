"""Families run with every tuning method that is made for their kind, and are refused by the others.

The whole table is docs/families.md; here are the families that are used most, and one of each layout.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.probe import probe, rows_for
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from benchmarks import small
from fedelta.catalog import TUNING_METHODS
from fedelta.errors import ModelError
from fedelta.models.anatomy import ANATOMIES, anatomy_of
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource, modality_of, read_config
from fedelta.seeds import stream
from fedelta.tasks.classification import Classification
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.adapter import Adapter
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora
from fedelta.tuning.prompt import Prompt

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
OTHER_SIZES = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "resnet": {"embedding_size": 4, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "bottleneck"},
    "fedelta_resnet": {"stem_width": 4, "widths": [4, 8], "blocks_per_stage": 1},
    "fedelta_leaf_cnn": {"channels": [2, 4], "hidden": 8, "num_channels": 3, "image_size": 32},
}
METHODS: dict[str, TuningMethod] = {name: kind() for name, kind in TUNING_METHODS.items()} | {
    "accumulator": Accumulator(num_heads=2, mlp_width=8, head_width=8),
    "exit-heads+adapter": Combined(methods=(ExitHeads(), Adapter(placement="parallel", shared=False))),
    "lora": Lora(r=2),
    "lora-all-conv": Lora(r=1, target_modules="all-conv"),
    "prompt+lora+bias": Combined(methods=(Prompt(num_virtual_tokens=2), Lora(r=2), Bias())),
}
FAMILIES = (
    "vit", "deit", "beit", "dinov2", "bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "resnet",
    "fedelta_resnet", "fedelta_leaf_cnn",
)  # fmt: skip
IMAGES = ("vit", "deit", "beit", "dinov2")
CONVOLUTIONAL = ("resnet", "fedelta_resnet", "fedelta_leaf_cnn")
ON_TOKENS = ("accumulator", "exit-heads", "exit-heads+adapter", "prompt", "adapter", "prompt+lora+bias")
PROBED = ("lora", "adapter", "bias", "prompt", "exit-heads")
# One family of each layout beside those above, and what works on it; the other methods are refused.
WORKS = {
    "gpt2": {"lora", "adapter", "bias"},
    "llama": {"lora", "adapter"},  # it has no bias
    "t5": {"lora"},  # an encoder and a decoder
    "albert": {"lora", "adapter", "bias"},  # one block that runs many times
    "deberta-v2": {"lora", "adapter", "bias"},  # in one lane
    "swin": {"lora", "adapter", "bias"},  # stages
    "clip": {"lora", "adapter", "bias", "prompt", "exit-heads"},
    "rembert": {"lora", "adapter", "bias", "prompt", "exit-heads"},  # blocks that give a tuple
}


def fits(name: str, family: str) -> bool:
    if name in ON_TOKENS:
        return bool(ANATOMIES[family].roles) and not (family == "beit" and "prompt" in name)
    if name == "parallel":
        return family in ("resnet", "fedelta_resnet")
    return name != "lora-all-conv" or family in (*IMAGES, *CONVOLUTIONAL)


def tiny(family: str) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """The family at a small size, without a tokenizer, and three inputs."""
    sizes = OTHER_SIZES.get(family, SIZES)
    is_image = family in (*IMAGES, *CONVOLUTIONAL)
    if is_image:
        sizes = {"image_size": 32, "patch_size": 16, **sizes} if ANATOMIES[family].roles else sizes
        inputs = {"pixel_values": torch.randn(3, 3, 32, 32, generator=stream(0))}
    else:
        tokens = torch.randint(5, 50, (3, 6), generator=stream(0))
        inputs = {"input_ids": tokens, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])}
    config = read_config(ModelSource(architecture={"model_type": family, **sizes}))
    config.num_labels, config.architectures = 3, []
    assert modality_of(config, Classification())[0].name == ("image" if is_image else "text")
    auto = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = auto.from_config(config).eval()
    return Backbone(module, anatomy_of(module, config.model_type)), inputs


@pytest.mark.parametrize("family", WORKS)
def test_a_family_of_each_layout_works_with_what_fits_it(family: str, tmp_path: Path):
    small.save(family, tmp_path)
    backbone = build(ModelSource(source=str(tmp_path), image_size=small.image_size(family)), small.CLASSES, seed=0)
    rows = rows_for(backbone)
    cells = {name: probe(backbone, name, rows) for name in PROBED}
    assert {name: cell.note for name, cell in cells.items() if cell.kind == "fault"} == {}
    assert {name for name, cell in cells.items() if cell.kind == "works"} == WORKS[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_on_a_family_or_is_refused(name: str, family: str):
    backbone, inputs = tiny(family)
    if not fits(name, family):
        with pytest.raises(ModelError):
            METHODS[name].apply(backbone, Lanes(1), stream(0))
        return
    method = METHODS[name]
    lanes = Lanes(method.max_lanes or 3)
    spec = method.apply(backbone, lanes, stream(0))
    rows = 3 // lanes.num
    with lanes.training([rows] * lanes.num, [stream(0, lane) for lane in range(lanes.num)]):
        logits = backbone.logits(inputs)
    assert logits.shape == (3, 3)
    trained = [backbone.module.get_parameter(item) for item in spec if spec.tensors[item].trained]
    gradients = torch.autograd.grad(logits.square().sum(), trained, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
