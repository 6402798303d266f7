"""Adapter directories: the result of a run, from which another run can start.

adapter_model.safetensors   the tuned tensors, with the keys of Hugging Face PEFT
adapter_config.json         configuration for stock PEFT; fedelta's own `peft_type` for methods that PEFT lacks
README.md                   the model card
fedelta.json                class names, tuning section and base model; a separate file, because stock PEFT warns about
                            unknown keys
preprocessor_config.json    how images were prepared, for `AutoImageProcessor` of transformers
chat_template.jinja         how dialogues were written, for tokenizers of transformers

Stock PEFT loads a LoRA directory onto the base model and computes the same logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from fedelta import __version__
from fedelta.errors import AdapterError, listed
from fedelta.inference.adapter_settings import AdapterSettings, read_settings
from fedelta.inference.card import render
from fedelta.inference.directory import (
    CARD,
    CONFIG,
    PROCESSOR,
    SETTINGS,
    TEMPLATE,
    WEIGHTS,
    read_object,
    read_tensors,
    refuse_foreign,
    refuse_other_tensors,
    replace_directory,
)
from fedelta.inference.fit import misfits
from fedelta.inference.folding import folded
from fedelta.inference.layout import from_layout, is_pair, to_layout
from fedelta.modalities.settings import Preparation
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.models.source import ModelSource
from fedelta.params import Params
from fedelta.plugins import used_by
from fedelta.record.files import to_json
from fedelta.settings.base import as_settings
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tuning.base import TuningMethod


@dataclass(frozen=True)
class SavedAdapter:
    """Tuned tensors, with everything needed to put them into a model.

    Args:
        tuning: the settings with which `params` were tuned; if the adapter was read, every layer is named by its path.
        params: by path in the edited module, such as `vit.layers.0.attention.q_proj.lora_A`; no lane axis, float32.
            LoRA from another tool may lack the head or parts of it; the model's head then stays (`LaneBank.load`).
        base: name or path of the base model; "" if it has none or is unknown.
        class_names: in label order; empty if the task has no classes; None if an adapter from another tool does not
            name them.
        model: the full settings of the base model; None if unknown. Without `model.adapter`, which `params` contain.
        seed: of the run; random base weights depend on it.
        preparation: how examples became inputs in the run, where that differs from the model's default.
        task: what is predicted; None if unknown.
        identity: fingerprint of the base model (`tuning/identity.py`); empty if unknown.
        head: paths of the head of a model that was given as an object; None for others, and if unknown.
    """

    tuning: TuningMethod
    params: Params
    base: str
    class_names: tuple[str, ...] | None
    model: ModelSource | None = None
    seed: int = 0
    preparation: Preparation = field(default_factory=Preparation)
    task: Task | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    head: tuple[str, ...] | None = None


def write_adapter(directory: Path, adapter: SavedAdapter, anatomy: Anatomy, card: Mapping[str, object]) -> None:
    """Writes `adapter` to `directory` atomically, replacing a previous adapter.

    Args:
        directory: new, empty, or an adapter; missing parents are created.
        adapter: what to write.
        anatomy: of the model.
        card: figures of the run for the model card, units in the key names. Three keys have a special meaning:
            `modality` (its name; determines PEFT's task type), `extra_inputs` (`Backbone.extra_inputs`: how the model
            has to be called) and `config` (the configuration as nested dictionaries).

    Raises:
        AdapterError: `directory` holds other files.
        OSError: the disk is full or not writable; a previous adapter is still there.
    """
    target = directory.resolve()
    refuse_foreign(directory, target)
    tensors, config = to_layout(*folded(adapter.tuning, adapter.params, anatomy), anatomy)
    # PEFT's wrapper for text classifiers requires a head; without one the plain wrapper is named.
    loader = (adapter.task or Classification()).loader(str(card.get("modality")))
    has_head = config.get("modules_to_save") is not None or (loader is not None and loader.dialogue is not None)
    config |= {
        "base_model_name_or_path": adapter.base or None,
        "task_type": loader.peft_task if loader is not None and has_head else None,
        "inference_mode": True,
    }
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    # A model whose norms were replaced cannot be loaded by its name alone.
    has_weights = bool(adapter.base) and (
        adapter.model is None or (adapter.model.pretrained and adapter.model.batch_norm != "group")
    )
    described = to_json(dict(sorted(config.items())), indent=2) + "\n"
    contents: dict[str, str | bytes] = {
        WEIGHTS: weights,
        CONFIG: described,
        CARD: render(
            as_settings(adapter.tuning).model_dump(mode="json")["name"],
            adapter.base,
            adapter.class_names,
            card,
            has_weights=has_weights,
            preparation=adapter.preparation,
        ),
        SETTINGS: _settings(adapter, weights, described).to_json(),
    }
    if adapter.preparation.processor is not None:
        contents[PROCESSOR] = to_json(adapter.preparation.processor, indent=2) + "\n"
    if adapter.preparation.template is not None:
        contents[TEMPLATE] = adapter.preparation.template
    replace_directory(target, contents)


def _settings(adapter: SavedAdapter, weights: bytes, config: str) -> AdapterSettings:
    return AdapterSettings(
        fedelta_version=__version__,
        tuning=as_settings(adapter.tuning).model_dump(mode="json"),
        task=adapter.task,
        class_names=adapter.class_names,
        model=None if adapter.model is None else adapter.model.model_copy(update={"adapter": None}),
        seed=adapter.seed,
        **dict(adapter.preparation),
        identity=dict(adapter.identity),
        head=adapter.head,
        plugins=tuple(used_by([adapter.tuning, adapter.task])),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        config_sha256=hashlib.sha256(config.encode()).hexdigest(),
    )


def read_adapter(directory: str | Path, anatomy: Anatomy | None = None) -> SavedAdapter:
    """Reads the adapter in `directory`: written by fedelta, or LoRA from stock PEFT.

    Args:
        directory: in PEFT's layout; pickles are not read.
        anatomy: of the model that it is for, if known; modules that were saved whole must then be in its head.

    Raises:
        AdapterError: the adapter is missing, damaged, not finite, or of an unsupported kind.
    """
    path = Path(directory)
    where = f"adapter {str(directory)!r}"
    if not path.is_dir():
        raise AdapterError(
            f"{where} {'is a file' if path.exists() else 'does not exist'}, expected a directory.",
            hint=f"an adapter directory holds `{CONFIG}` and `{WEIGHTS}`.",
        )
    config = read_object(path / CONFIG)
    settings = read_settings(path / SETTINGS)
    tuning, params = from_layout(read_tensors(path), config, settings.tuning, where)
    if infinite := [name for name, tensor in params.items() if not torch.isfinite(tensor).all()]:
        raise AdapterError(f"{where} holds NaN or infinity in {len(infinite)} tensors: {listed(infinite, 3)}.")
    refuse_other_tensors(path, settings.weights_sha256)
    if anatomy is not None:
        _refuse_whole_modules(where, tuning, params, anatomy)
    base = str(config.get("base_model_name_or_path") or "")
    return SavedAdapter(
        tuning,
        params,
        base,
        settings.class_names,
        settings.model,
        settings.seed,
        settings.preparation,
        settings.task,
        settings.identity,
        settings.head,
    )


def check_fits(adapter: SavedAdapter, backbone: Backbone) -> None:
    """Refuses an adapter whose tensors do not fit `backbone`.

    Args:
        adapter: what to check.
        backbone: before any tuning method is applied; not modified.

    Raises:
        AdapterError: names or shapes differ; shows the adapter's base model and the first differences.
    """
    problems = misfits(adapter.tuning, adapter.params, backbone)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems[:4])
        more = f"\n  - and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise AdapterError(
            f"the adapter was made for {adapter.base or 'an unnamed model'!r} and does not fit this "
            f"{type(backbone.module).__name__}:{lines}{more}",
            hint="use the same base model and number of classes. If only the names of modules differ, it comes from "
            "another release of transformers: in that release, merge it into its base model with PEFT's "
            "`merge_and_unload()`, save the result, and set `model.source` to it.",
        )


def check_task(adapter: SavedAdapter, task: Task) -> None:
    """Refuses an adapter for another task.

    Args:
        adapter: what to check; passes if its task is unknown.
        task: of the configuration.

    Raises:
        AdapterError: the adapter was trained for another task.
    """
    if adapter.task is not None and adapter.task != task:
        raise AdapterError(
            f"the adapter was trained for another task: expected {_in_words(adapter.task)}, found {_in_words(task)}.",
            hint="set section `[task]` to that of the adapter.",
        )


def _in_words(task: Task) -> str:
    return ", ".join(f"`task.{key}` = {value!r}" for key, value in as_settings(task).model_dump(mode="json").items())


def _refuse_whole_modules(where: str, tuning: TuningMethod, params: Params, anatomy: Anatomy) -> None:
    """Refuses LoRA adapters with wholly saved modules outside the head."""
    outside = [name for name in params if not is_pair(name) and not anatomy.in_head(name)]
    if tuning.name == "lora" and outside:
        raise AdapterError(
            f"{where} holds wholly trained modules outside the head {list(anatomy.head)}: {listed(outside, 3)}.",
            hint="limit `modules_to_save` to the classification head.",
        )
