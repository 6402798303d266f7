"""The network of a configuration, with a checkpoint's tensors in it.

Weights are read from safetensors alone, and no code that a checkpoint brings along is run.
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
from fedelta.models.heads import Head, class_axes, lose_head, match_head
from fedelta.models.source import ModelSource, kind_of, locate
from fedelta.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Tensors inside the base model that many checkpoints lack because their pre-training has no use for them.
_SPARE = re.compile(r"\.pooler\.|(^|\.)(mask_token|position_ids)$")


@dataclass(frozen=True)
class Loaded:
    """A network and where its head comes from.

    Args:
        module: in float32.
        lost_head: why the checkpoint's own head is not in it, though it has one; None else.
    """

    module: nn.Module
    lost_head: str | None = None


def load(source: ModelSource, config: PretrainedConfig, device: str, task: Task, head: Head) -> Loaded:
    """The network of `config` for `task`: new and random, or with the tensors of the checkpoint of `source`.

    Args:
        source: what to load.
        config: of it, with the classes of the data.
        device: "meta" for a model without memory or weights.
        task: what is predicted.
        head: class names of the checkpoint and of the data.

    Raises:
        ModelError: unreadable, lacks weights, or wants code of its own.
    """
    import transformers

    _, loader = kind_of(config, task)
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
    try:
        module, info = auto.from_pretrained(
            place, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True,
            trust_remote_code=False, use_safetensors=True,
        )  # fmt: skip
    except Exception as error:  # transformers raises nearly anything for a damaged or foreign file
        raise unreadable(source.source, error) from error
    mismatched = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    absent = {*info["missing_keys"], *mismatched}
    is_known = not absent and head.theirs == head.ours
    axes = {} if is_known or not task.has_classes else class_axes(module)
    _check_complete(source.source, module, absent - axes.keys())
    if not axes.keys().isdisjoint(mismatched):
        return Loaded(module, lose_head(head))
    if is_known or not axes or not axes.keys().isdisjoint(absent):
        return Loaded(module)
    return Loaded(module, match_head(module, head, axes))


@contextmanager
def quiet() -> Iterator[None]:
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


def _check_complete(source: str, module: PreTrainedModel, absent: set[str]) -> None:
    """Only what lies outside the base model may be new, and what pre-training often leaves out inside of it."""
    base = module.base_model_prefix
    if base in dict(module.named_children()):
        foreign = [name for name in absent if name.startswith(f"{base}.")]
    else:
        # Without a base model of that name the parts of the model are its own children, and the head is one of them.
        head = anatomy_of(module, module.config.model_type).head
        foreign = [name for name in absent if name.partition(".")[0] not in head]
    foreign = sorted(name for name in foreign if not _SPARE.search(name))
    if foreign:
        raise ModelError(
            f"the checkpoint {source!r} lacks {len(foreign)} tensors of {type(module).__name__}, first {foreign[:3]}.",
            hint="it belongs to another architecture, or is damaged; compare its `config.json`.",
        )
