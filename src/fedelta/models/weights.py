"""Loads the network of a configuration with a checkpoint's weights.

Weights are read only from safetensors, and code in a checkpoint is never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.anatomy import anatomy_of
from fedelta.models.files import check_weights, unreadable
from fedelta.models.heads import HeadClasses, class_axes, discard_head, match_head
from fedelta.models.quantised import quantiser
from fedelta.models.source import ModelSource, locate, modality_of
from fedelta.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Tensors of the base model that many checkpoints lack because their pre-training did not use them.
_SPARE = re.compile(r"\.pooler\.|(^|\.)(mask_token|position_ids)$")


_DTYPES: dict[str, torch.dtype | str] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "checkpoint": "auto"}


@dataclass(frozen=True)
class Loaded:
    """A loaded network.

    Args:
        module: in float32.
        lost_head: why the checkpoint's head is not used, if it has one; else None.
    """

    module: nn.Module
    lost_head: str | None = None


def load_network(source: ModelSource, config: PretrainedConfig, device: str, task: Task, head: HeadClasses) -> Loaded:
    """The network of `config` for `task`: randomly initialised, or with the weights of the checkpoint in `source`.

    Args:
        source: what to load.
        config: configuration of the source, with the classes of the data.
        device: "meta" for a model without memory or weights.
        task: what is predicted.
        head: class names of the checkpoint and of the data.

    Raises:
        ModelError: the checkpoint cannot be read, lacks weights, or needs custom code.
    """
    import transformers

    _, loader = modality_of(config, task)
    auto = getattr(transformers, loader.auto_class)
    # transformers 5.23 iterates over `architectures` and fails on the None of a fresh configuration.
    config.architectures = config.architectures or []

    if device == "meta" or source.source is None or not source.pretrained:
        try:
            with torch.device(device):
                return Loaded(auto.from_config(config, trust_remote_code=False).float())
        except Exception as error:
            raise ModelError(f"`model.architecture` cannot be built: {error}") from error
    place = locate(source.source)
    check_weights(source.source, place)
    _refuse_quantised(source.source, config)
    quantization = quantiser(source.quantization)
    try:
        module, info = auto.from_pretrained(
            place, config=config, dtype=_DTYPES[source.dtype], ignore_mismatched_sizes=True, output_loading_info=True,
            trust_remote_code=False, use_safetensors=True, quantization_config=quantization,
        )  # fmt: skip
    except Exception as error:  # transformers raises many types of errors for damaged or foreign files
        raise unreadable(source.source, error) from error
    mismatched = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    absent = {*info["missing_keys"], *mismatched}
    is_same = not absent and head.checkpoint == head.data
    if loader.dialogue is not None:
        _check_words(source.source, module, absent)
        return Loaded(module)
    axes = {} if is_same or not task.has_classes else class_axes(module)
    _check_complete(source.source, module, absent - axes.keys())
    if not axes.keys().isdisjoint(mismatched):
        return Loaded(module, discard_head(head))
    if is_same or not axes or not axes.keys().isdisjoint(absent):
        return Loaded(module)
    return Loaded(module, match_head(module, head, axes))


def _refuse_quantised(source: str, config: PretrainedConfig) -> None:
    """Refuses a checkpoint whose weights are quantised."""
    quantised = config.to_dict().get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ModelError(
            f"the weights of {source!r} are quantised ({method}), expected floating-point numbers.",
            hint='use the checkpoint that it was made from, with `model.quantization` "int8" or "nf4".',
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context manager without transformers' load report and progress bar; fedelta checks the result itself."""
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


def _check_words(source: str, module: PreTrainedModel, absent: set[str]) -> None:
    """Refuses a checkpoint that lacks a tensor of a language model, such as one of a classifier.

    Tied output embeddings are not in a checkpoint, and transformers does not report them as missing.
    """
    if missing := sorted(name for name in absent if not _SPARE.search(name)):
        raise ModelError(
            f"the checkpoint {source!r} lacks {len(missing)} tensors of {type(module).__name__}, first {missing[:3]}.",
            hint="it was saved without its output embedding, as of a classifier, or belongs to another architecture; "
            "use the checkpoint of the language model.",
        )


def _check_complete(source: str, module: PreTrainedModel, absent: set[str]) -> None:
    """Refuses a checkpoint that lacks tensors of the base model, apart from those that pre-training often omits."""
    base = module.base_model_prefix
    if base in dict(module.named_children()):
        missing = [name for name in absent if name.startswith(f"{base}.")]
    else:
        # Without a child of that name, the parts of the base model are children beside the head.
        head = anatomy_of(module, module.config.model_type).head
        missing = [name for name in absent if name.partition(".")[0] not in head]
    missing = sorted(name for name in missing if not _SPARE.search(name))
    if missing:
        raise ModelError(
            f"the checkpoint {source!r} lacks {len(missing)} tensors of {type(module).__name__}, first {missing[:3]}.",
            hint="it belongs to another architecture or is damaged; check its `config.json`.",
        )
