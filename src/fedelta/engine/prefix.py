"""The frozen-prefix cache: the output of the modules below the first tuned one is computed once per sample.

Without augmentation and dropout a frozen module gives the same output for a sample in every epoch and round.
For head tuning the prefix is the whole backbone; for LoRA in the upper blocks it is the embeddings and the blocks
below; a model with tuned embeddings has none. To run on cached features, small stand-ins replace the modules of the
prefix, and the model's own code does the rest. A prefix is used only if it gives the logits of the whole model.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from fedelta.engine.stand_ins import replaced
from fedelta.modalities.base import Inputs
from fedelta.modalities.words import WORD_STARTS
from fedelta.models.failures import model_errors
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.tuning.lanes import Lanes

# Rows that go through the prefix together. Fixed, because another size may change the last bits, and a resumed run
# must compute the same features as an uninterrupted one. On a CPU a row of 32 takes 5% less time than one of 64 (ViT of
# width 192), whose tensors do not stay in its caches.
_CHUNK = {"cpu": 32, "cuda": 64}


class Prefix(Protocol):
    """The frozen lower part of a model: computes features, and runs the rest of the model on them."""

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of the prefix that the rest of the model needs, batch first."""

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        """The logits of the rest of the model on `features`."""


def find_prefix(backbone: Backbone, spec: ParamSpec, lanes: Lanes, sample: dict[str, Tensor]) -> Prefix | None:
    """The longest frozen prefix that gives the same logits as the whole model; None if there is none.

    Args:
        backbone: the model with the tuning method applied.
        spec: what is tuned.
        lanes: the lanes of the tuned modules.
        sample: inputs of a few rows, on which logits are compared.
    """
    if WORD_STARTS in sample:
        return None  # features of words: rows differ in their number, and cannot be kept in one tensor
    candidates: list[Prefix] = []
    prefix_name = getattr(backbone.module, "base_model_prefix", "")
    if only_head(backbone, spec):
        if len(backbone.anatomy.head) == 1:
            candidates.append(_AtHead(backbone, backbone.anatomy.head[0]))
        if prefix_name:
            candidates.append(_BelowHead(backbone, prefix_name))
    elif (
        (block := _first_tuned_block(backbone, spec)) is not None
        and backbone.anatomy.embeddings
        # The features are hidden states only; without the mask the blocks would attend to padding.
        and "attention_mask" not in sample
    ):
        candidates.append(_BelowBlock(backbone, block))
    return next((prefix for prefix in candidates if _agrees(prefix, backbone, lanes, sample)), None)


def only_head(backbone: Backbone, spec: ParamSpec) -> bool:
    """Whether every tuned tensor belongs to the head."""
    return all(backbone.anatomy.in_head(name) for name in spec)


class CachedInputs:
    """Inputs that give the prefix's features instead of the original tensors.

    Args:
        inputs: the original inputs.
        prefix: computes the features.
        device: where the prefix runs and the features are stored.
        context: gives the context in which the prefix runs.

    Attributes:
        num_bytes: memory for the features of all rows; it is allocated by the first `prepare`.
    """

    def __init__(
        self,
        inputs: Inputs,
        prefix: Prefix,
        device: torch.device,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._inputs = inputs
        self._prefix = prefix
        self._device = device
        self._context = context
        self._features: dict[str, Tensor] = {}
        self._ready = shared_empty((len(inputs),), torch.bool)
        self._first_row = self._compute(torch.zeros(1, dtype=torch.int64))
        self.num_bytes = len(inputs) * sum(row.numel() * row.element_size() for row in self._first_row.values())

    def __len__(self) -> int:
        return len(self._inputs)

    def allocate(self) -> None:
        """Allocates the features if that has not been done; on the CPU all processes forked after it share them."""
        for name, row in self._first_row.items() if not self._features else ():
            shape = (len(self), *row.shape[1:])
            is_on_cpu = self._device.type == "cpu"
            self._features[name] = shared_empty(shape, row.dtype) if is_on_cpu else row.new_empty(shape)

    def missing(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The rows whose features are not stored yet, each once, in the chunks in which they are computed.

        Args:
            parts: rows that have no chunk in common, such as those of each client.
        """
        if not parts or bool(self._ready[torch.cat(list(parts))].all()):
            return []
        listed, chunks = self._ready.clone(), []
        for rows in parts:
            chunks += [chunk for chunk in rows[~listed[rows]].split(_CHUNK[self._device.type]) if len(chunk)]
            listed[rows] = True
        return chunks

    def prepare(self, rows: Tensor) -> None:
        """Computes and stores the features of `rows` that are not stored yet, in chunks of a fixed size."""
        self.allocate()
        for chunk in self.missing([rows]):
            for name, tensor in self._compute(chunk).items():
                self._features[name][chunk.to(self._device)] = tensor
            self._ready[chunk] = True

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The features of `rows`, which must have been prepared."""
        rows = rows.to(self._device, non_blocking=True)
        return {name: tensor[rows] for name, tensor in self._features.items()}

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        """The logits of the rest of the model on fetched features."""
        return self._prefix.logits(features)

    def _compute(self, rows: Tensor) -> dict[str, Tensor]:
        inputs = {name: tensor.to(self._device) for name, tensor in self._inputs.fetch(rows).items()}
        with torch.no_grad(), self._context(), model_errors("the frozen part of the model", inputs):
            return self._prefix.features(inputs)


def shared_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros on the CPU, in memory that this process shares with those that it forks.

    Pages are taken when they are first written, and go back to the system with the last process that has them.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(*shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(*shape)


@dataclass(frozen=True)
class _AtHead:
    """Everything before a head that reads one vector per sample; works for every model."""

    backbone: Backbone
    head: str

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = _input_of(self.backbone, self.head, inputs)
        if hidden.dim() != 2:
            # All tokens, of which the head may need only the first; `_BelowHead` stores that one alone.
            raise TypeError(f"`{self.head}` reads a tensor with {hidden.dim()} axes, expected 2 (batch, features)")
        return {"hidden": hidden}

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.backbone.module.get_submodule(self.head)(features["hidden"])
        return logits


@dataclass(frozen=True)
class _BelowHead:
    """The whole base model; the features are its first output token and its pooled output."""

    backbone: Backbone
    base_name: str

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        base = self.backbone.module.get_submodule(self.base_name)
        output = base(**inputs, **self.backbone.extra_inputs)
        features = {"first_token": output.last_hidden_state[:, :1]}
        if output.get("pooler_output") is not None:
            features["pooled"] = output.pooler_output
        return features

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        from fedelta.models.stand_in import base_output  # imports transformers, which `engine/` must not

        self._base.output = base_output(features["first_token"], features.get("pooled"))
        with replaced(self.backbone.module, {self.base_name: self._base}):
            return _logits_without_inputs(self.backbone, features["first_token"])

    @cached_property
    def _base(self) -> _FixedOutput:
        return _FixedOutput()


@dataclass(frozen=True)
class _BelowBlock:
    """The embeddings and the blocks below `block`; the features are the input of that block."""

    backbone: Backbone
    block: int

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"hidden": _input_of(self.backbone, f"{self.backbone.anatomy.blocks}.{self.block}", inputs)}

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        self._embeddings.output = features["hidden"]
        with replaced(self.backbone.module, {self.backbone.anatomy.embeddings: self._embeddings, **self._blocks}):
            return _logits_without_inputs(self.backbone, features["hidden"])

    @cached_property
    def _embeddings(self) -> _FixedOutput:
        return _FixedOutput()

    @cached_property
    def _blocks(self) -> dict[str, nn.Module]:
        return {f"{self.backbone.anatomy.blocks}.{index}": _PassThrough() for index in range(self.block)}


def _input_of(backbone: Backbone, path: str, inputs: dict[str, Tensor]) -> Tensor:
    """The input of the submodule at `path`; the model stops there."""
    handle = backbone.module.get_submodule(path).register_forward_pre_hook(_stop)
    try:
        backbone.logits(inputs)
    except _ReachedError as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError(f"the model did not run `{path}`")


class _ReachedError(Exception):
    """Stops the model at a submodule and carries the input of that submodule."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("first tuned module reached")
        self.hidden = hidden


def _stop(_module: nn.Module, args: tuple[Tensor, ...]) -> NoReturn:
    raise _ReachedError(args[0])


class _FixedOutput(nn.Module):
    """A module that returns its attribute `output` for any input."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None  # Any: a tensor, or an output object of transformers
        # Models read the dtype of their patch projection before they call the embeddings.
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Identity()
        self.patch_embeddings.projection.weight = torch.empty(0)

    def forward(self, *args: object, **kwargs: object) -> Any:
        return self.output


class _PassThrough(nn.Module):
    """A module that returns its first argument."""

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden


def _logits_without_inputs(backbone: Backbone, like: Tensor) -> Tensor:
    """The logits of a model whose stand-ins ignore its inputs; only batch size, dtype and device of `like` matter."""
    name = str(getattr(backbone.module, "main_input_name", "pixel_values"))
    return backbone.logits({name: like[:, :1]})


def _first_tuned_block(backbone: Backbone, spec: ParamSpec) -> int | None:
    """The index of the lowest block with a tuned tensor; None if a tensor outside of blocks and head is tuned."""
    anatomy = backbone.anatomy
    lowest: int | None = None
    for name in spec:
        if anatomy.in_head(name):
            continue
        if not anatomy.blocks or not name.startswith(f"{anatomy.blocks}."):
            return None
        index = int(name.removeprefix(f"{anatomy.blocks}.").partition(".")[0])
        lowest = index if lowest is None else min(lowest, index)
    return lowest


def _agrees(prefix: Prefix, backbone: Backbone, lanes: Lanes, sample: dict[str, Tensor]) -> bool:
    """Whether `prefix` gives the logits of the whole model for `sample`, to float32 rounding."""
    active, lanes.active = lanes.active, 1
    try:
        with torch.no_grad():
            expected = backbone.logits(sample)
            logits = prefix.logits(prefix.features(sample))
    except (AttributeError, KeyError, TypeError, IndexError, RuntimeError, ValueError):
        # The model's code reads more than the stand-ins have, so it cannot run on features.
        return False
    finally:
        lanes.active = active
    return expected.shape == logits.shape and torch.allclose(expected, logits, rtol=1e-4, atol=1e-5)
