"""Section `[model]`: which model to use, and its properties that are known without reading weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fedelta.errors import ModelError
from fedelta.imports import collector_paused
from fedelta.modalities.base import Modality
from fedelta.modalities.image import Images
from fedelta.modalities.table import MODALITIES
from fedelta.models.bundles import bundled_path
from fedelta.models.files import check_configuration, unreadable
from fedelta.models.native import FAMILIES, PRESETS, register_networks, resolve
from fedelta.settings import Context, Settings
from fedelta.settings.paths import GIVE_AGAIN, Source, is_in_python
from fedelta.tasks.base import Loader, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Fields that the networks of a family read although its configuration class does not declare them.
_UNDECLARED = {"deberta-v2": ("norm_rel_ebd", "position_buckets", "share_att_key")}


Quantisation = Literal["none", "int8", "nf4"]


class ModelSource(Settings):
    """The model to fine-tune: section `[model]`.

    Args:
        source: `bundled:NAME`, a local directory in Hugging Face form, or a hub name; `python:NAME` for a model
            that was given as an object (`fedelta.federate`).
        architecture: `model_type` and sizes of a transformers configuration, or the short name of a published network
            (`resnet20`, `resnet26`, `wrn28-10`, `femnist-cnn`). Without `source`, weights are random. With it, the
            architecture replaces the source's configuration, so that counting needs no files.
        pretrained: False uses the architecture of `source` with random weights.
        image_size: side of the square input in pixels; by default that of the checkpoint. Position embeddings are
            interpolated.
        num_classes: number of classes; by default taken from the data.
        batch_norm: treatment of tuned batch norms. `average`: weight, bias and running statistics travel and are
            averaged. `local`: each client keeps them (FedBN). `group`: they are replaced by group norms.
        adapter: directory of a PEFT adapter to start from.
        dtype: precision of a language model's frozen weights: "float32", "bfloat16", or "checkpoint" for that of the
            checkpoint. Tuned tensors, sums and losses are float32 in any case.
        quantization: how the linear layers of a language model are stored, with LoRA on top: "int8" (torchao) or "nf4"
            (bitsandbytes, 4 bits).

    The checkpoint's head is kept if it has the classes of the data, in any order; otherwise a new head is initialised.
    If the checkpoint only numbers its classes, their order is assumed to be that of the data, with a warning.
    """

    source: Source | None = None
    architecture: dict[str, Any] | None = None
    pretrained: bool = True
    image_size: int | None = Field(default=None, ge=1)
    num_classes: int | None = Field(default=None, ge=2)
    batch_norm: Literal["average", "local", "group"] = "average"  # our choice: the papers average all or do not say
    adapter: Source | None = None
    # On a CPU bfloat16 weights change outputs by half a percent and save no time.
    dtype: Literal["float32", "bfloat16", "checkpoint"] = "float32"
    quantization: Quantisation = "none"

    def problems(self, context: Context) -> list[str]:
        """Messages about a missing source, and about directories that do not exist."""
        problems = []
        if self.source is None and self.architecture is None:
            problems.append('`model.source` is missing; for example "bundled:vit-micro"')
        if self.source is not None and not is_in_python(self.source):
            try:
                locate(self.source)
            except ModelError as error:
                problems.append(f"`model.source`: {error.message}")
        if (self.dtype, self.quantization) != ("float32", "none"):
            problems += self._storage_problems(context)
        if self.adapter is not None and not Path(self.adapter).is_dir():
            problems.append(f"`model.adapter` is {self.adapter!r}, which is not a directory")
        return problems

    def _storage_problems(self, context: Context) -> list[str]:
        """Messages about frozen weights that only language models with LoRA can have."""
        key = "model.dtype" if self.quantization == "none" else "model.quantization"
        if context.get("task.name") not in (None, "language"):
            return [f"`{key}` is for language models, but `task.name` is {context.get('task.name')!r}; leave it out"]
        if context.get("tuning.name") not in (None, "lora"):
            return [f"`{key}` needs tuning method 'lora', found {context.get('tuning.name')!r}"]
        if self.quantization != "none" and self.dtype != "float32":
            return [f"`model.quantization` computes in float32, but `model.dtype` is {self.dtype!r}; leave it out"]
        if self.quantization != "none" and (self.source is None or not self.pretrained):
            return ["`model.quantization` needs weights of a checkpoint: set `model.source`"]
        return []


def locate(source: str) -> str:
    """The directory that `source` names, or `source` itself if it is a hub name.

    Raises:
        ModelError: `source` is a path that does not exist, a file, or a model that was given as an object.
    """
    if is_in_python(source):
        raise ModelError(f"model {source!r} was given as an object in Python.", hint=GIVE_AGAIN)
    if source.startswith("bundled:"):
        return str(bundled_path(source.removeprefix("bundled:")))
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ModelError(f"model {source!r} is a file.", hint=f"use the directory it is in: {str(path.parent)!r}.")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(
            f"model directory {source!r} does not exist.",
            hint="use a directory that holds `config.json`, a hub name such as `google/vit-base-patch16-224`, "
            "or `bundled:vit-micro`.",
        )
    return source


def read_config(source: ModelSource) -> PretrainedConfig:
    """The transformers configuration of `source`; reads no weights, and no files if the source has an architecture.

    Raises:
        ModelError: missing or unreadable.
    """
    with collector_paused():
        from transformers import AutoConfig

    register_networks()
    if source.architecture is not None:
        return _described(source.architecture)
    if source.source is None:
        raise ModelError("`model.source` is missing.", hint='for example `source = "bundled:vit-micro"`.')
    place = locate(source.source)
    check_configuration(source.source, place)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # transformers raises many types of errors for damaged or foreign files
        raise unreadable(source.source, error) from error
    return _with_plain_attention(config)


def _with_plain_attention(config: PretrainedConfig) -> PretrainedConfig:
    """Removes a checkpoint's choice of attention kernel, which could be code downloaded from a hub."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None and part._attn_implementation not in (None, "eager", "sdpa"):
            part._attn_implementation = None
    return config


def _described(architecture: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration that a table `[model.architecture]` describes."""
    from huggingface_hub.errors import StrictDataclassError

    with collector_paused():
        from transformers import AutoConfig
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    fields = dict(architecture)
    name = str(fields.pop("model_type", None))
    family, fields = resolve(name, fields)
    if family not in (*FAMILIES, *CONFIG_MAPPING_NAMES):
        nearest = get_close_matches(name, [*PRESETS, *CONFIG_MAPPING_NAMES], n=1)
        raise ModelError(
            f"`model.architecture.model_type` is {name!r}, which is not a known family"
            + "".join(f"; did you mean {family!r}?" for family in nearest),
            hint=f"expected {', '.join(PRESETS)}, or a family of transformers.",
        )
    known_fields = AutoConfig.for_model(family).to_dict().keys() | _UNDECLARED.get(family, ())
    _check_architecture(fields, sorted(known_fields))
    try:
        config: PretrainedConfig = AutoConfig.for_model(family, **fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"`model.architecture` cannot be used: {error}") from error
    return config


def modality_of(config: PretrainedConfig, task: Task) -> tuple[type[Modality], Loader]:
    """The modality that models of this family take for `task`, and the class that loads them.

    Raises:
        ModelError: transformers has no such model of this family.
    """
    from transformers.models.auto import modeling_auto

    for modality in MODALITIES.values():
        loader = task.loader(modality.name)
        is_ours = config.model_type in FAMILIES and modality is Images
        if loader is not None and (is_ours or config.model_type in getattr(modeling_auto, loader.families)):
            return modality, loader
    raise ModelError(
        f"transformers has no model of the family {config.model_type!r} for task {task.name!r} on images or texts."
    )


def directory_of(source: ModelSource) -> Path | None:
    """Directory of the model's files on this machine; None for a model that has only an architecture."""
    from transformers.utils.hub import cached_file

    if source.source is None or is_in_python(source.source):
        return None
    place = locate(source.source)
    return Path(place) if Path(place).is_dir() else Path(str(cached_file(place, "config.json"))).parent


def checkpoint_bytes(source: ModelSource) -> int:
    """Size of the weight files that every client needs once; 0 for random weights, which follow from the seed."""
    directory = directory_of(source) if source.pretrained else None
    return 0 if directory is None else sum(file.stat().st_size for file in directory.glob("model*.safetensors"))


def _check_architecture(fields: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuses unknown fields, as in every other section; transformers would keep and ignore them."""
    problems = []
    for name in fields:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            problems.append(
                f"`model.architecture.{name}` is unknown" + "".join(f"; did you mean `{n}`?" for n in nearest)
            )
    if problems:
        raise ModelError(", ".join(problems))
