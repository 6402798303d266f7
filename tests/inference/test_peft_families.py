"""Families that no table describes: adapters that cross the border to stock PEFT, both ways."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from tests.inference.adapters import adapter_of, backbone_of, our_logits

from benchmarks import small
from fedelta.inference.adapter import read_adapter, write_adapter
from fedelta.tuning.lora import Lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# What PEFT takes in each of them by its own table; whether the weight of these layers is [I, O].
FAMILIES = {"gpt2": (["c_attn"], True), "llama": (["q_proj", "v_proj"], False), "falcon": (["query_key_value"], False)}


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    small.save(request.param, tmp_path / request.param)
    return tmp_path / request.param


def stock_of(base: Path) -> torch.nn.Module:
    return transformers.AutoModelForSequenceClassification.from_pretrained(base).eval()


def inputs() -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 100, (3, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@torch.no_grad()
def test_stock_peft_computes_our_logits_and_we_compute_its(base: Path, tmp_path: Path):
    targets, is_transposed = FAMILIES[base.name]
    ours = adapter_of(Lora(r=2), base)
    anatomy = backbone_of(base).anatomy
    write_adapter(tmp_path / "ours", ours, anatomy, {"modality": "text"})
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["fan_in_fan_out"] is is_transposed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stock = peft.PeftModel.from_pretrained(stock_of(base), tmp_path / "ours").eval()
    assert not [item for item in caught if "fan_in_fan_out" in str(item.message)]
    torch.testing.assert_close(stock(**inputs()).logits, our_logits(ours, backbone_of(base), inputs()))

    config = peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=targets, fan_in_fan_out=is_transposed)
    theirs = peft.get_peft_model(stock_of(base), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    theirs.save_pretrained(tmp_path / "theirs")
    read = read_adapter(tmp_path / "theirs", anatomy)
    expected = theirs(**inputs()).logits
    torch.testing.assert_close(our_logits(read, backbone_of(base), inputs()), expected)
    assert (expected - stock_of(base)(**inputs()).logits).abs().max() > 0.01
