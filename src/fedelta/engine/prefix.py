"""The frozen-prefix cache: what lies below the first tuned module is computed once per sample and kept.

Without augmentation and dropout a frozen module gives the same output for a sample in every epoch and round.
For head tuning the prefix is the whole backbone; for LoRA in the upper blocks it is the blocks below; for
tuned embeddings there is none. While the model runs on cached features, small stand-ins take the place of the
prefix, so the rest of the model is the model's own code. A prefix is used only after its logits were compared
with those of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from fedelta.modalities.base import Inputs
from fedelta.models.failures import model_errors
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.tuning.base import replace
from fedelta.tuning.lanes import Lanes

# Rows that go through the prefix together. Fixed, because another grouping may give other last bits, and a
# resumed run must find the same features as the undisturbed one.
_CHUNK = 64


class Prefix(Protocol):
    """A way to stop the model at its first tuned module, and to go on from there."""

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the rest of the model needs, batch first."""

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        """The rest of the model on cached features."""


def find_prefix(backbone: Backbone, spec: ParamSpec, lanes: Lanes, sample: dict[str, Tensor]) -> Prefix | None:
    """The longest prefix that is frozen and gives the model's own logits; None when there is none.

    Args:
        backbone: with the tuning method applied.
        spec: what is tuned.
        lanes: of the model.
        sample: inputs of a few rows, to compare logits on.
    """
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
        and "attention_mask" not in sample
    ):
        candidates.append(_BelowBlock(backbone, block))
    return next((prefix for prefix in candidates if _agrees(prefix, backbone, lanes, sample)), None)


def only_head(backbone: Backbone, spec: ParamSpec) -> bool:
    """Whether nothing but the head is tuned."""
    return all(name.partition(".")[0] in backbone.anatomy.head for name in spec)


class CachedInputs:
    """Inputs that hold the prefix's features of every row they were asked to prepare.

    Args:
        inputs: the rows.
        prefix: computes the features.
        device: where the prefix runs; features are kept there.

    Attributes:
        num_bytes: memory that the features of all rows take; none is taken before the first `prepare`.
    """

    def __init__(self, inputs: Inputs, prefix: Prefix, device: torch.device) -> None:
        self._inputs = inputs
        self._prefix = prefix
        self._device = device
        self._features: dict[str, Tensor] = {}
        self._ready = torch.zeros(len(inputs), dtype=torch.bool)
        first = self._compute(torch.zeros(1, dtype=torch.int64))
        self.num_bytes = len(inputs) * sum(tensor.numel() * tensor.element_size() for tensor in first.values())

    def __len__(self) -> int:
        return len(self._inputs)

    def prepare(self, rows: Tensor) -> None:
        """Computes the features of those of `rows` that are not there yet, in fixed chunks."""
        for chunk in rows[~self._ready[rows]].split(_CHUNK):
            if len(chunk) == 0:
                continue
            for name, tensor in self._compute(chunk).items():
                if name not in self._features:
                    self._features[name] = tensor.new_empty(len(self), *tensor.shape[1:])
                self._features[name][chunk.to(self._device)] = tensor
            self._ready[chunk] = True

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The features of prepared rows."""
        return {name: tensor[rows.to(self._device)] for name, tensor in self._features.items()}

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        """The rest of the model on fetched features."""
        return self._prefix.logits(features)

    def _compute(self, rows: Tensor) -> dict[str, Tensor]:
        inputs = {name: tensor.to(self._device) for name, tensor in self._inputs.fetch(rows).items()}
        with torch.no_grad(), model_errors("the frozen part of the model", inputs):
            return self._prefix.features(inputs)


@dataclass(frozen=True)
class _AtHead:
    """Everything before a head that reads one vector a sample, whatever the model around it is."""

    backbone: Backbone
    head: str

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = _input_of(self.backbone, self.head, inputs)
        if hidden.dim() != 2:
            raise TypeError(f"`{self.head}` reads {hidden.dim()} axes: all tokens, of which it may need only the first")
        return {"hidden": hidden}

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.backbone.module.get_submodule(self.head)(features["hidden"])
        return logits


@dataclass(frozen=True)
class _BelowHead:
    """The whole base model; the features are its first token and its pooled output."""

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
        from fedelta.models.stand_in import base_output  # the one place that knows transformers' output type

        self._base.output = base_output(features["first_token"], features.get("pooled"))
        with _stand_ins(self.backbone.module, {self.base_name: self._base}):
            return _logits_without_inputs(self.backbone, features["first_token"])

    @cached_property
    def _base(self) -> _Given:
        return _Given()


@dataclass(frozen=True)
class _BelowBlock:
    """Embeddings and the blocks below `block`; the features are that block's input."""

    backbone: Backbone
    block: int

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"hidden": _input_of(self.backbone, f"{self.backbone.anatomy.blocks}.{self.block}", inputs)}

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        self._embeddings.output = features["hidden"]
        with _stand_ins(self.backbone.module, {self.backbone.anatomy.embeddings: self._embeddings, **self._blocks}):
            return _logits_without_inputs(self.backbone, features["hidden"])

    @cached_property
    def _embeddings(self) -> _Given:
        return _Given()

    @cached_property
    def _blocks(self) -> dict[str, nn.Module]:
        return {f"{self.backbone.anatomy.blocks}.{index}": _Same() for index in range(self.block)}


def _input_of(backbone: Backbone, path: str, inputs: dict[str, Tensor]) -> Tensor:
    """Runs the model up to the submodule at `path` and returns what goes into it."""
    handle = backbone.module.get_submodule(path).register_forward_pre_hook(_stop)
    try:
        backbone.logits(inputs)
    except _ReachedError as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError(f"`{path}` never ran")


class _ReachedError(Exception):
    """Carries the input of the first tuned module out of the model."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("first tuned module reached")
        self.hidden = hidden


def _stop(_module: nn.Module, args: tuple[Tensor, ...]) -> NoReturn:
    raise _ReachedError(args[0])


class _Given(nn.Module):
    """Gives its `output`, whatever it gets; Any: a tensor or the model family's output object."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None
        # Models ask their patch projection for its dtype before they call it.
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Identity()
        self.patch_embeddings.projection.weight = torch.empty(0)

    def forward(self, *args: object, **kwargs: object) -> Any:
        return self.output


class _Same(nn.Module):
    """Gives its first argument."""

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden


@contextmanager
def _stand_ins(module: nn.Module, stand_ins: dict[str, nn.Module]) -> Iterator[None]:
    """Puts `stand_ins` in place of the submodules at their paths, for the time of the context."""
    originals = {path: module.get_submodule(path) for path in stand_ins}
    try:
        for path, stand_in in stand_ins.items():
            replace(module, path, stand_in)
        yield
    finally:
        for path, original in originals.items():
            replace(module, path, original)


def _logits_without_inputs(backbone: Backbone, like: Tensor) -> Tensor:
    """Runs a model whose inputs nobody reads: only batch size, dtype and device of `like` matter."""
    name = str(getattr(backbone.module, "main_input_name", "pixel_values"))
    return backbone.logits({name: like[:, :1]})


def _first_tuned_block(backbone: Backbone, spec: ParamSpec) -> int | None:
    """Index of the lowest block that holds a tuned tensor; None when something outside blocks and head is tuned."""
    anatomy = backbone.anatomy
    first: int | None = None
    for name in spec:
        if name.partition(".")[0] in anatomy.head:
            continue
        if not anatomy.blocks or not name.startswith(f"{anatomy.blocks}."):
            return None
        index = int(name.removeprefix(f"{anatomy.blocks}.").partition(".")[0])
        first = index if first is None else min(first, index)
    return first


def _agrees(prefix: Prefix, backbone: Backbone, lanes: Lanes, sample: dict[str, Tensor]) -> bool:
    active, lanes.active = lanes.active, 1
    try:
        with torch.no_grad():
            whole = backbone.logits(sample)
            resumed = prefix.logits(prefix.features(sample))
    except (AttributeError, KeyError, TypeError, IndexError, RuntimeError, ValueError):
        # A family whose code reads more than the stand-ins give: it simply has no prefix.
        return False
    finally:
        lanes.active = active
    return whole.shape == resumed.shape and torch.allclose(whole, resumed, rtol=1e-4, atol=1e-5)
