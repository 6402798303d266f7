"""Every family of language models in the table: q and v are trained by role, and stock PEFT reads the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.inference.adapters import our_logits
from tests.small_language import write_model
from transformers import AutoModelForCausalLM

from fedelta.inference.adapter import SavedAdapter, write_adapter
from fedelta.models.decoders import DECODERS
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.models.weights import quiet_transformers
from fedelta.seeds import stream
from fedelta.tasks.language import Language
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

# A layer of each fused projection learns what its roles would.
FUSED = {"phi3": "qkv_proj", "gpt2": "c_attn", "gpt_neox": "query_key_value"}


def backbone_of(base: Path) -> Backbone:
    return build(ModelSource(source=str(base)), (), seed=1, task=Language())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
@pytest.mark.parametrize("family", sorted(DECODERS))
def test_pairs_by_role_have_the_same_logits_in_stock_peft(family: str, tmp_path: Path):
    base = write_model(tmp_path / family, family)
    tuning = Lora(r=2, target_modules=["q", "v"])
    spec = tuning.apply(backbone_of(base), Lanes(1), stream(0))
    layers = {group.rpartition(".")[2] for group in spec.groups}
    assert layers == ({FUSED[family]} if family in FUSED else {"q_proj", "v_proj"})
    generator = torch.Generator().manual_seed(3)
    params = {name: 0.3 * torch.randn(item.shape, generator=generator) for name, item in spec.tensors.items()}
    backbone = backbone_of(base)
    adapter = SavedAdapter(tuning, params, str(base), (), task=Language())
    write_adapter(tmp_path / "adapter", adapter, backbone.anatomy, {"modality": "text"})
    with quiet_transformers():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()
        inputs = {"input_ids": torch.randint(3, 320, (2, 9), generator=generator)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            before = plain(**inputs).logits
            stock = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
            logits = stock(**inputs).logits
    assert not torch.allclose(logits, before, atol=0.01)
    torch.testing.assert_close(our_logits(adapter, backbone, inputs), logits, rtol=1e-4, atol=1e-4)
