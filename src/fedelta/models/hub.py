"""Models in the Hugging Face hub's form: a local directory, a hub name, or a backbone of this package.

`[model]` of a configuration is a `ModelSource`; `build` turns it into a `Backbone`: the module in evaluation
mode (dropout off: FedPEFT's setting, and the condition for lanes to be independent), where its parts are, and
how raw images, texts or recordings become its inputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.modalities.base import Modality, ModelFiles
from fedelta.models.anatomy import Anatomy, anatomy_of
from fedelta.models.known import is_plain
from fedelta.models.native import FAMILIES
from fedelta.models.source import ModelSource, kind_of, locate, read_config, unreadable
from fedelta.seeds import derive
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger("fedelta")


@dataclass(frozen=True)
class Backbone:
    """A model and what fedelta has to know of it.

    Args:
        module: takes keyword tensors, returns outputs [B, ...], of a classifier logits [B, C], or an object that has
            them as `.logits`.
        anatomy: where its parts are.
        modality: what its examples are, and how they become its inputs; None for a module whose inputs come ready.
        extra_inputs: constant keyword arguments of every call.
        batch_norm: what becomes of batch norms that are tuned (`ModelSource`).
    """

    module: nn.Module
    anatomy: Anatomy
    modality: Modality | None = None
    extra_inputs: dict[str, bool] = field(default_factory=dict)
    batch_norm: Literal["average", "local", "group"] = "average"

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Outputs [B, ...] for a batch of inputs, of a classifier logits [B, C]."""
        output = self.module(**inputs, **self.extra_inputs)
        return output if isinstance(output, Tensor) else output.logits

    @property
    def num_parameters(self) -> int:
        """Number of scalars of the module as it is now."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def build(
    source: ModelSource,
    class_names: tuple[str, ...],
    *,
    seed: int,
    device: str = "cpu",
    task: Task = Classification(),  # noqa: B008 a frozen value
) -> Backbone:
    """The model that `source` describes, with a head for `task`, in float32 and evaluation mode.

    Args:
        source: what to load.
        class_names: one per class; nothing where the task has no classes.
        seed: random weights (a new head, or everything when not pretrained) depend on it alone.
        device: "meta" makes a model without memory or weights, for counting.
        task: what is predicted.

    Raises:
        ModelError: unreadable, no model for the task, lacks weights, or does not take the image size.
    """
    config = read_config(source)
    config.num_labels = task.num_outputs(class_names)
    if task.has_classes:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}
    native = _native_size(config)
    size = source.image_size or native or 224  # 224: what nearly every image classifier was trained at
    if config.model_type in FAMILIES:
        config.image_size = size
    with torch.random.fork_rng(devices=[]), _quiet():
        # transformers initialises new weights from the global generator; the fork keeps that from leaking.
        torch.manual_seed(derive(seed, "model"))  # noqa: TID251
        module = _load(source, config, device, task)
    _set_norms(module, source)
    module.eval()
    anatomy = anatomy_of(module, config.model_type)
    _check_size(size, config)
    # A model of patches has position embeddings for its own image size; a convolutional one has none.
    interpolates = native is not None and size != native and getattr(config, "patch_size", None) is not None
    extra_inputs = {"interpolate_pos_encoding": True} if interpolates else {}
    if device == "meta":
        # For counting no file is asked for, least of all one on a hub.
        return Backbone(module, anatomy, None, extra_inputs, source.batch_norm)
    place = None if source.source is None else locate(source.source)
    kind, _ = kind_of(config, task)
    modality = kind.for_model(ModelFiles(config, place, size))
    return Backbone(module, anatomy, modality, extra_inputs, source.batch_norm)


def _native_size(config: PretrainedConfig) -> int | None:
    """Side of the square that the checkpoint was trained at, None when its configuration does not say."""
    size = getattr(config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def _set_norms(module: nn.Module, source: ModelSource) -> None:
    """Puts group norms in place of batch norms where that is asked for, with their weights and biases.

    16 channels a group, or fewer that divide a layer's channels: one of the best divisions in Wu and He 2018 (arXiv
    1803.08494), Table 3.
    """
    norms = [path for path, layer in module.named_modules() if is_plain(layer, nn.BatchNorm2d)]
    if source.batch_norm != "average" and not norms:
        raise ModelError(
            f"`model.batch_norm` is {source.batch_norm!r}, but {type(module).__name__} has no batch norm.",
            hint="leave it out.",
        )
    for path in norms if source.batch_norm == "group" else ():
        layer = module.get_submodule(path)
        channels = layer.get_parameter("weight").shape[0]
        new = nn.GroupNorm(channels // math.gcd(channels, 16), channels)
        new.weight, new.bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, new)


def _check_size(size: int, config: PretrainedConfig) -> None:
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and size % patch:
        nearest = max(patch, round(size / patch) * patch)
        raise ModelError(
            f"`model.image_size` is {size}, no multiple of the {patch} pixels of the model's patches.",
            hint=f"use {nearest}.",
        )


def _load(source: ModelSource, config: PretrainedConfig, device: str, task: Task) -> nn.Module:
    import transformers
    from safetensors import SafetensorError

    _, loader = kind_of(config, task)
    auto = getattr(transformers, loader.auto_class)
    if device == "meta" or source.source is None or not source.pretrained:
        # transformers 5.23 iterates over `architectures` and fails on the None of a fresh configuration.
        config.architectures = config.architectures or []
        try:
            with torch.device(device):
                module: nn.Module = auto.from_config(config).float()
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"`model.architecture` cannot be built: {error}") from error
        return module
    try:
        module, info = auto.from_pretrained(
            locate(source.source), config=config, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable(source.source, error) from error
    _check_complete(source.source, module, config.model_type, info)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report and progress bar of a load; what matters of it is checked here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_complete(source: str, module: nn.Module, family: str, info: dict[str, Any]) -> None:
    """Only the head (and a pooler, which many checkpoints lack) may be new; Any: keys as transformers gives them."""
    anatomy = anatomy_of(module, family)
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    missing = [*info["missing_keys"], *mismatched]
    foreign = sorted(k for k in missing if k.split(".")[0] not in anatomy.head and ".pooler." not in k)
    if foreign:
        raise ModelError(
            f"the checkpoint {source!r} lacks {len(foreign)} tensors of {type(module).__name__}, first {foreign[:3]}.",
            hint="it belongs to another architecture, or is damaged; compare its `config.json`.",
        )
