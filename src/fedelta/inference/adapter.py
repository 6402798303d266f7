"""Adapter directories: what a run gives away, and what it can start from.

adapter_model.safetensors   the tuned tensors, by the keys of Hugging Face PEFT
adapter_config.json         what stock PEFT has to know; for the tuning methods that it lacks, our own `peft_type`
README.md                   the model card
fedelta.json                class names, tuning section and base model (a file of its own: stock PEFT warns about
                            keys that it does not know)
preprocessor_config.json    how images were prepared, for transformers' `AutoImageProcessor`

For LoRA, stock PEFT loads the directory onto the base model and computes the same logits.
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
from fedelta.inference.card import render
from fedelta.inference.directory import (
    CARD,
    CONFIG,
    OWN,
    PROCESSOR,
    WEIGHTS,
    read_object,
    read_tensors,
    refuse_foreign,
    refuse_other_tensors,
    replace_directory,
)
from fedelta.inference.fit import misfits
from fedelta.inference.layout import from_layout, is_pair, to_layout
from fedelta.inference.own import Own, read_own
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
class Adapter:
    """Tuned tensors and where they belong.

    Args:
        tuning: the settings that make places for `params` in a model. Those of an adapter that was read name every
            layer by its full path.
        params: by our names, paths in the edited module such as `vit.layers.0.attention.q_proj.lora_A`; no lane
            axis, float32. LoRA made elsewhere may lack the head or a part of it: the model's own then stays
            (`LaneBank.load` keeps what it is not given).
        base: name or path of the base model, "" when it has none or is unknown.
        class_names: in label order, nothing where the task has no classes; None when an adapter made elsewhere does not
            say.
        model: the base model in full: its image size, its architecture, whether its weights are random. None when
            an adapter made elsewhere does not say. `model.adapter` is not kept: `params` contain it.
        seed: of the run: random base weights depend on it.
        preparation: how examples became inputs in the run, beside what the model says.
        task: what is predicted; None when an adapter made elsewhere does not say.
        identity: which base model it was made for (`tuning/identity.py`); nothing where the adapter does not say.
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


def write_adapter(directory: Path, adapter: Adapter, anatomy: Anatomy, card: Mapping[str, object]) -> None:
    """Writes `adapter` to `directory`, which appears as a whole or not at all and replaces a previous adapter.

    Args:
        directory: new, empty, or an adapter; missing parents are made.
        adapter: what to write.
        anatomy: of the model.
        card: what the model card tells of the run, units in the key names. Three keys have a meaning: `modality`
            (its name; PEFT gets its task type from it), `extra_inputs` (`Backbone.extra_inputs`: how
            the model has to be called) and `config` (the configuration as nested dictionaries).

    Raises:
        AdapterError: `directory` holds something else than an adapter.
        OSError: the disk is full or the place cannot be written; a previous adapter is still there.
    """
    target = directory.resolve()
    refuse_foreign(directory, target)
    tensors, config = to_layout(adapter.tuning, adapter.params, anatomy)
    # PEFT's wrapper for text classifiers takes a head for granted, so without one the plain wrapper is named.
    loader = (adapter.task or Classification()).loader(str(card.get("modality")))
    has_head = config.get("modules_to_save") is not None
    config |= {
        "base_model_name_or_path": adapter.base or None,
        "task_type": loader.peft_task if loader is not None and has_head else None,
        "inference_mode": True,
    }
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    # A model whose norms were exchanged cannot be had by its name alone.
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
        OWN: _own(adapter, weights, described).to_json(),
    }
    if adapter.preparation.processor is not None:
        contents[PROCESSOR] = to_json(adapter.preparation.processor, indent=2) + "\n"
    replace_directory(target, contents)


def _own(adapter: Adapter, weights: bytes, config: str) -> Own:
    return Own(
        fedelta_version=__version__,
        tuning=as_settings(adapter.tuning).model_dump(mode="json"),
        task=adapter.task,
        class_names=adapter.class_names,
        model=None if adapter.model is None else adapter.model.model_copy(update={"adapter": None}),
        seed=adapter.seed,
        **dict(adapter.preparation),
        identity=dict(adapter.identity),
        plugins=tuple(used_by([adapter.tuning, adapter.task])),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        config_sha256=hashlib.sha256(config.encode()).hexdigest(),
    )


def read_adapter(directory: str | Path, anatomy: Anatomy | None = None) -> Adapter:
    """The adapter in `directory`: one of ours, or LoRA made by stock PEFT.

    Args:
        directory: in PEFT's layout; never unpickled.
        anatomy: of the model that it is meant for; tensors that were saved whole must then be in its head.

    Raises:
        AdapterError: missing, damaged, not finite, or of a kind that has no equivalent here; says which and why.
    """
    path = Path(directory)
    where = f"adapter {str(directory)!r}"
    if not path.is_dir():
        raise AdapterError(
            f"{where} {'is a file' if path.exists() else 'does not exist'}, expected a directory.",
            hint=f"an adapter directory holds `{CONFIG}` and `{WEIGHTS}`.",
        )
    config = read_object(path / CONFIG)
    own = read_own(path / OWN)
    tuning, params = from_layout(read_tensors(path), config, own.tuning, where)
    if infinite := [name for name, tensor in params.items() if not torch.isfinite(tensor).all()]:
        raise AdapterError(f"{where} holds NaN or infinity in {len(infinite)} tensors: {listed(infinite, 3)}.")
    refuse_other_tensors(path, own.weights_sha256)
    if anatomy is not None:
        _refuse_whole_modules(where, tuning, params, anatomy)
    base = str(config.get("base_model_name_or_path") or "")
    return Adapter(tuning, params, base, own.class_names, own.model, own.seed, own.preparation, own.task, own.identity)


def check_fits(adapter: Adapter, backbone: Backbone) -> None:
    """Refuses an adapter whose tensors have no place in `backbone`.

    Args:
        adapter: what to check.
        backbone: before any tuning method is applied; it stays as it is.

    Raises:
        AdapterError: names or shapes differ; names the adapter's base model and the first differences.
    """
    problems = misfits(adapter.tuning, adapter.params, backbone)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems[:4])
        more = f"\n  - and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise AdapterError(
            f"the adapter was made for {adapter.base or 'an unnamed model'!r} and does not fit this "
            f"{type(backbone.module).__name__}:{lines}{more}",
            hint="give the same base model and number of classes. If only the names of modules differ, it was made "
            "with a release of transformers that lays the model out in another way: fold it into its base model there "
            "with PEFT's `merge_and_unload()`, save that, and give it as `model.source`.",
        )


def check_task(adapter: Adapter, task: Task) -> None:
    """Refuses an adapter that answers another question.

    Args:
        adapter: what to check; one that does not say passes.
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
    """LoRA trains pairs and the head; another module that was saved whole has no place."""
    outside = [name for name in params if not is_pair(name) and name.partition(".")[0] not in anatomy.head]
    if tuning.name == "lora" and outside:
        raise AdapterError(
            f"{where} holds modules that were trained whole and are not in the head {list(anatomy.head)}: "
            f"{listed(outside, 3)}.",
            hint="keep `modules_to_save` to the classification head.",
        )
