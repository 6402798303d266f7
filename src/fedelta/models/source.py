"""Which model is meant: section `[model]`, and what can be known of it before any weight is read."""

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
from fedelta.models.files import check_configuration, unreadable
from fedelta.models.native import FAMILIES, PRESETS, register_networks, resolve
from fedelta.settings import Context, Settings
from fedelta.settings.paths import Source
from fedelta.tasks.base import Loader, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BUNDLED = Path(__file__).parent / "bundled"

# Fields that the networks of a family read and its configuration class does not declare.
_UNDECLARED = {"deberta-v2": ("norm_rel_ebd", "position_buckets", "share_att_key")}


class ModelSource(Settings):
    """Which model is tuned: section `[model]`.

    Args:
        source: `bundled:NAME`, a local directory in the hub's form, or a hub name.
        architecture: `model_type` and sizes of a transformers configuration, or a short name for a published network
            (`resnet20`, `resnet26`, `wrn28-10`, `femnist-cnn`). Without a source weights are random. With one it
            stands for the source's own configuration, so that counting needs no files at all.
        pretrained: False takes the architecture of `source` with random weights.
        image_size: side of the square input in pixels; the checkpoint's own by default. Position embeddings
            are interpolated.
        num_classes: number of classes; found from the data by default.
        batch_norm: what becomes of batch norms that are tuned. `average`: weight, bias and running statistics travel
            and are averaged. `local`: each client keeps its own (FedBN). `group`: group norm takes their place.
        adapter: a directory with a PEFT adapter to start from.

    A checkpoint's own head is kept where it knows the classes of the data, by name and in whatever order, and drawn
    anew where it has not. Names are numbers where nobody gave any: then their order is assumed, with a warning.
    """

    source: Source | None = None
    architecture: dict[str, Any] | None = None  # Any: whatever the configuration class of the family takes
    pretrained: bool = True
    image_size: int | None = Field(default=None, ge=1)
    num_classes: int | None = Field(default=None, ge=2)
    batch_norm: Literal["average", "local", "group"] = "average"  # our choice: the papers average all or do not say
    adapter: Source | None = None

    def problems(self, context: Context) -> list[str]:
        """Directories that should be there and are not."""
        problems = []
        if self.source is None and self.architecture is None:
            problems.append('`model.source` is missing; for example "bundled:vit-micro"')
        if self.source is not None:
            try:
                locate(self.source)
            except ModelError as error:
                problems.append(f"`model.source`: {error.message}")
        if self.adapter is not None and not Path(self.adapter).is_dir():
            problems.append(f"`model.adapter` is {self.adapter!r}, which is no directory")
        return problems


def bundled_path(name: str) -> Path:
    """Directory of the backbone `name` that comes with this package, in the hub's form.

    Raises:
        ModelError: there is no such backbone; the message names those there are.
    """
    path = _BUNDLED / name
    if not (path / "config.json").is_file():
        raise ModelError(f"no bundled backbone {name!r}; there is {', '.join(bundled_names())}.")
    return path


def bundled_names() -> list[str]:
    """Names of the backbones that come with this package."""
    return sorted(entry.parent.name for entry in _BUNDLED.glob("*/config.json"))


def locate(source: str) -> str:
    """What transformers can load: the directory behind `source`, or `source` itself when it is a hub name.

    Raises:
        ModelError: it looks like a directory and is not there, or is a file.
    """
    if source.startswith("bundled:"):
        return str(bundled_path(source.removeprefix("bundled:")))
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ModelError(f"model {source!r} is a file.", hint=f"give the directory it is in: {str(path.parent)!r}.")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(
            f"model directory {source!r} does not exist.",
            hint="give a directory that holds `config.json`, a hub name such as `google/vit-base-patch16-224`, "
            "or `bundled:vit-micro`.",
        )
    return source


def read_config(source: ModelSource) -> PretrainedConfig:
    """The transformers configuration of `source`; reads no weights, and no files where an architecture is given.

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
    except Exception as error:  # transformers raises nearly anything for a damaged or foreign file
        raise unreadable(source.source, error) from error
    return _with_plain_attention(config)


def _with_plain_attention(config: PretrainedConfig) -> PretrainedConfig:
    """Without what a checkpoint says of how attention is computed: that may be code that is fetched from a hub."""
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
            f"`model.architecture.model_type` is {name!r}, which is no family that is known"
            + "".join(f"; did you mean {each!r}?" for each in nearest),
            hint=f"expected {', '.join(PRESETS)}, or a family of transformers.",
        )
    known = AutoConfig.for_model(family).to_dict().keys() | _UNDECLARED.get(family, ())
    _check_architecture(fields, sorted(known))
    try:
        config: PretrainedConfig = AutoConfig.for_model(family, **fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"`model.architecture` cannot be used: {error}") from error
    return config


def kind_of(config: PretrainedConfig, task: Task) -> tuple[type[Modality], Loader]:
    """What models of this configuration take that are made for `task`, images or texts, and what loads them.

    Raises:
        ModelError: transformers has no such model of that family.
    """
    from transformers.models.auto import modeling_auto

    for modality in MODALITIES.values():
        loader = task.loader(modality.name)
        is_ours = config.model_type in FAMILIES and modality is Images
        if loader is not None and (is_ours or config.model_type in getattr(modeling_auto, loader.families)):
            return modality, loader
    raise ModelError(
        f"family {config.model_type!r} has no model in transformers for task {task.name!r} that takes images or texts."
    )


def directory_of(source: ModelSource) -> Path | None:
    """Where the files of the model are on this machine; None for one that is only described."""
    from transformers.utils.hub import cached_file

    if source.source is None:
        return None
    place = locate(source.source)
    return Path(place) if Path(place).is_dir() else Path(str(cached_file(place, "config.json"))).parent


def checkpoint_bytes(source: ModelSource) -> int:
    """Size of the weight files that every client needs once; 0 for random weights, which a seed describes."""
    directory = directory_of(source) if source.pretrained else None
    return 0 if directory is None else sum(file.stat().st_size for file in directory.glob("model*.safetensors"))


def _check_architecture(fields: Mapping[str, object], known: Sequence[str]) -> None:
    """Transformers keeps an unknown field without using it; here it is an error, as in every other section."""
    problems = []
    for name in fields:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            problems.append(
                f"`model.architecture.{name}` is unknown" + "".join(f"; did you mean `{n}`?" for n in nearest)
            )
    if problems:
        raise ModelError(", ".join(problems))
