"""Adapters with random tensors for the small checkpoints of conftest.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedelta.inference.adapter import SavedAdapter, write_adapter
from fedelta.inference.opening import install
from fedelta.models.hub import Backbone, build
from fedelta.models.native import is_native
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.settings.base import as_settings
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes

CLASS_NAMES = ("cat", "dog", "owl")
IMAGE_FAMILIES = ("vit", "dinov2", "resnet", "fedelta_resnet")
WORDS = ("a", "bird", "cat", "dog", "not", "on", "sits", "the", "tree")


def inputs_of(family: str) -> dict[str, Tensor]:
    """Four examples for a model of `family`."""
    generator = torch.Generator().manual_seed(5)
    if family in IMAGE_FAMILIES:
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)}
    return {
        "input_ids": torch.randint(2, 11, (4, 7), generator=generator),
        "attention_mask": torch.ones(4, 7, dtype=torch.int64),
    }


def backbone_of(base: Path, class_names: tuple[str, ...] = CLASS_NAMES, task: Task | None = None) -> Backbone:
    """The checkpoint `base`, not yet tuned."""
    return build(ModelSource(source=str(base)), class_names, seed=1, task=task or Classification())


def adapter_of(
    tuning: TuningMethod, base: Path, class_names: tuple[str, ...] = CLASS_NAMES, task: Task | None = None
) -> SavedAdapter:
    """An adapter whose tensors change the logits a lot."""
    spec = tuning.apply(backbone_of(base, class_names, task), Lanes(1), stream(0))
    generator = torch.Generator().manual_seed(3)
    params = {name: 0.5 * torch.randn(item.shape, generator=generator) for name, item in spec.tensors.items()}
    params |= {name: tensor.abs() + 0.5 for name, tensor in params.items() if name.endswith("running_var")}
    return SavedAdapter(tuning, params, str(base), class_names, task=task)


def write(
    directory: Path,
    family: str,
    tuning: TuningMethod,
    base: Path,
    names: tuple[str, ...] = CLASS_NAMES,
    modality: str | None = None,
    task: Task | None = None,
    **recorded: Any,  # `model`, `seed` and `preparation` of `SavedAdapter`
) -> SavedAdapter:
    """Writes `adapter_of` to `directory` and returns it."""
    adapter = replace(adapter_of(tuning, base, names, task), **recorded)
    backbone = backbone_of(base, names, task)
    modality = modality or ("image" if family in IMAGE_FAMILIES else "text")
    card = {"rounds": 3, "modality": modality, "is_native": is_native(backbone.module)}
    if adapter.task is not None:
        card["config"] = {"task": as_settings(adapter.task).model_dump(mode="json")}
    write_adapter(directory, adapter, backbone.anatomy, card)
    return adapter


@torch.no_grad()
def our_logits(adapter: SavedAdapter, backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of `backbone` with `adapter` in it; edits the backbone."""
    install(adapter, backbone)
    return backbone.logits(inputs)


def write_tokenizer(directory: Path) -> None:
    """A tokenizer that knows WORDS."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.save_pretrained(directory)
