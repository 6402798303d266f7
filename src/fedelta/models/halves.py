"""A model whose weights are in half precision, in float32 for a while: for trials, which rounding would blur."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """A context in which weights in half precision are in float32; they come back to the last bit.

    It takes twice the memory of these weights. Nothing happens to a model in float32.
    """
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dtype in _HALVES]
    dtypes = [tensor.dtype for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)
