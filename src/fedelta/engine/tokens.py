"""A language model that computes its layers for the tokens of a batch alone, and its last block for few of them.

Padding is left out: the model is called with each token as a row of its own (models/unpadded.py). And the loss reads
the model only where the next token is trained on, so that the last block computes keys and values for every token, but
queries, output projection and MLP only for these: most tokens of a prompt need none.

Nothing of this is assumed of a model: `engine/proof.py` compares outputs and gradients with those of padded batches.

Shapes: B rows, T tokens of the longest, N tokens of all rows, P tokens before one that is trained on, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedelta.engine.pausing import Pausing, ReachedError
from fedelta.engine.stand_ins import replaced
from fedelta.models.hub import Backbone
from fedelta.models.token_losses import IGNORED, LossHead, next_tokens
from fedelta.models.unpadded import Layout, attending_within_rows
from fedelta.tuning.base import block_paths, untouched
from fedelta.tuning.lanes import Lanes


@dataclass(frozen=True)
class Unpadded:
    """Runs a language model on the tokens of a batch.

    Args:
        backbone: with the tuning method applied; one that returns the logits of its output embedding unchanged.
        lanes: of the tuned modules.
        last: what takes the place of the last block; None to compute all of it.
    """

    backbone: Backbone
    lanes: Lanes
    last: _FewTokens | None

    def sums(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses of each row, float32 of shape [B, 1].

        Raises:
            TypeError: the model cannot be called this way.
        """
        if (words := self.backbone.vocabulary) is None:
            raise TypeError("no language model")
        module, mask_BT = self.backbone.module, inputs["attention_mask"]
        is_token_BT = mask_BT.bool()
        targets_N = next_tokens(inputs["labels"])[is_token_BT]
        row_N, position_N = is_token_BT.nonzero().unbind(1)
        read = (targets_N != IGNORED).nonzero()[:, 0]
        tokens, few = self._per_lane(row_N, len(mask_BT)), self._per_lane(row_N[read], len(mask_BT))
        if self.last is not None:
            targets_N, row_N = targets_N[read], row_N[read]
        head = LossHead(module.get_submodule(words.path), targets_N.unsqueeze(1))
        layout = Layout.of(mask_BT)
        ids_N1 = inputs["input_ids"][is_token_BT].unsqueeze(1)
        with (
            self.lanes.counting(tokens), attending_within_rows(module), self._reading(read, tokens, few),
            replaced(module, {words.path: head}),
        ):  # fmt: skip
            module(input_ids=ids_N1, position_ids=position_N.unsqueeze(1), use_cache=False, layout=layout)
        if head.sums_B is None:
            raise TypeError("the model does not call its output embedding")
        return head.sums_B.new_zeros(len(mask_BT)).index_add(0, row_N, head.sums_B).unsqueeze(1)

    def _per_lane(self, row: Tensor, num_rows: int) -> list[int]:
        """The number of tokens of each lane in use, for the rows of tokens."""
        lengths = self.lanes.lengths or [num_rows]
        counts = torch.bincount(row, minlength=num_rows)
        return [int(part.sum()) for part in counts.split(list(lengths))]

    @contextmanager
    def _reading(self, read: Tensor, tokens: Sequence[int], few: Sequence[int]) -> Iterator[None]:
        if self.last is None:
            yield
            return
        with self.last.active(self.backbone.module, self.lanes, _Read(read, tokens, few)):
            yield


def ways_without_padding(backbone: Backbone, lanes: Lanes) -> list[Unpadded]:
    """Ways to leave out padding, the least work first; each has yet to be proved.

    Args:
        backbone: the model with the tuning method applied.
        lanes: of the tuned modules.
    """
    words = backbone.vocabulary
    if words is None or not words.gives_logits:
        return []
    last = _last_block(backbone)
    return [Unpadded(backbone, lanes, way) for way in ([last, None] if last is not None else [None])]


@dataclass(frozen=True)
class _Read:
    """Which tokens are read, int64 [P] among N, and how many tokens each lane has: of all, and of those."""

    places: Tensor
    tokens: Sequence[int]
    few: Sequence[int]


@dataclass(frozen=True)
class _FewTokens:
    """The last block, computed for few tokens.

    Args:
        block_path, attention_path, q_path, o_path: current paths. Without `q_path`, queries are computed for all
            tokens, because one layer gives them together with the keys.
    """

    block_path: str
    attention_path: str
    q_path: str | None
    o_path: str

    @contextmanager
    def active(self, module: nn.Module, lanes: Lanes, read: _Read) -> Iterator[None]:
        """A context in which the block gives its output for the tokens that are read alone: [P, 1, D]."""
        pausing = Pausing(_Counting(module.get_submodule(self.attention_path), lanes, read.tokens))
        o = _Selected(module.get_submodule(self.o_path), lanes, read)
        inside: dict[str, nn.Module] = {self.o_path: o}
        if self.q_path is not None:
            inside[self.q_path] = _Selected(module.get_submodule(self.q_path), lanes, read, keeps_places=True)
        block = _Block(module.get_submodule(self.block_path), pausing, lanes, read)
        # The innermost first: their paths lead through the originals of the others.
        with replaced(module, {**inside, self.attention_path: pausing, self.block_path: block}):
            yield


def _last_block(backbone: Backbone) -> _FewTokens | None:
    """What may take the place of the last block; None if its parts are unknown."""
    roles, blocks, layers = backbone.anatomy.roles, block_paths(backbone), untouched(backbone.module)
    place = roles.get("q", "").rpartition(".")[0]
    if not blocks or not place or not roles.get("o", "").startswith(f"{place}."):
        return None
    paths = {part: f"{blocks[-1]}.{roles[part]}" for part in ("q", "k", "o")}
    if layers[blocks[-1]][0] != blocks[-1] or any(path not in layers for path in paths.values()):
        return None
    # With what tuning methods have put around them.
    q = None if paths["q"] == paths["k"] else paths["q"]
    return _FewTokens(blocks[-1], f"{blocks[-1]}.{place}", q, paths["o"])


class _Block(nn.Module):
    """A block whose attention reads all tokens, and whose other layers those that are read.

    The block is run up to its attention with all tokens, and then anew.
    """

    def __init__(self, block: nn.Module, pausing: Pausing, lanes: Lanes, read: _Read) -> None:
        super().__init__()
        self.block, self.pausing, self.lanes, self.read = block, pausing, lanes, read

    # Any: an attribute of the block.
    def __getattr__(self, name: str) -> Any:
        """What models read of their blocks, such as the kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """[N, 1, D] to [P, 1, D]."""
        try:
            self.block(hidden, *args, **kwargs)
            raise TypeError("the block does not call its attention")
        except ReachedError as reached:
            self.pausing.arguments = reached.arguments
        try:
            with self.lanes.counting(self.read.few):
                return self.block(hidden.index_select(0, self.read.places), *args, **kwargs)
        finally:
            self.pausing.arguments = None


class _Counting(nn.Module):
    """An attention that is called with all tokens, while its block is called with few."""

    def __init__(self, attention: nn.Module, lanes: Lanes, tokens: Sequence[int]) -> None:
        super().__init__()
        self.attention, self.lanes, self.tokens = attention, lanes, tokens

    def forward(self, *args: object, **kwargs: object) -> object:
        with self.lanes.counting(self.tokens):
            return self.attention(*args, **kwargs)


class _Selected(nn.Module):
    """A layer that is computed for the tokens that are read alone: [N, ...] to [P, ...].

    With `keeps_places` the others get zeros: [N, ...] to [N, ...].
    """

    def __init__(self, layer: nn.Module, lanes: Lanes, read: _Read, *, keeps_places: bool = False) -> None:
        super().__init__()
        self.layer, self.lanes, self.read, self.keeps_places = layer, lanes, read, keeps_places

    def forward(self, x: Tensor) -> Tensor:
        with self.lanes.counting(self.read.few):
            y: Tensor = self.layer(x.index_select(0, self.read.places))
        return y.new_zeros(len(x), *y.shape[1:]).index_copy(0, self.read.places, y) if self.keeps_places else y
