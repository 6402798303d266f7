"""Blocks that keep nothing for the backward pass but their inputs, and are computed again in it.

Memory for a step then grows with one block instead of all of them, and a step takes about a third longer. Lanes and the
attention of `models/unpadded.py` are those of the forward pass when a block is computed again.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedelta.engine.stand_ins import replaced
from fedelta.models.hub import Backbone
from fedelta.tuning.base import block_paths, untouched
from fedelta.tuning.lanes import Lanes


@contextmanager
def recomputing(
    backbone: Backbone, lanes: Lanes, again: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """A context in which all blocks but the last are computed again for the backward pass.

    Args:
        backbone: the model with the tuning method applied.
        lanes: of the tuned modules.
        again: gives the context in which a block is computed again.
    """
    layers = untouched(backbone.module)
    blocks = {layers[path][0]: layers[path][1] for path in block_paths(backbone)[:-1]}
    # With what tuning methods have put around them.
    around = {path: backbone.module.get_submodule(path) for path in blocks}
    with replaced(backbone.module, {path: Recomputed(block, lanes, again) for path, block in around.items()}):
        yield


class Recomputed(nn.Module):
    """A block that is computed again for the backward pass; see `recomputing`."""

    def __init__(self, block: nn.Module, lanes: Lanes, again: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.block, self.lanes, self.again = block, lanes, again

    # Any: an attribute of the block, such as the kind of its attention.
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # Any: what the model gives the block, and the block gives
        """The output of the block."""
        if not torch.is_grad_enabled():
            return self.block(*args, **kwargs)
        lengths = self.lanes.lengths
        return checkpoint(
            self.block, *args, use_reentrant=False,
            context_fn=lambda: (nullcontext(), self._as_before(lengths)), **kwargs,
        )  # fmt: skip

    @contextmanager
    def _as_before(self, lengths: Sequence[int] | None) -> Iterator[None]:
        with ExitStack() as stack:
            if lengths is not None:
                stack.enter_context(self.lanes.counting(lengths))
            stack.enter_context(self.again())
            yield
