"""The number of arithmetic threads, on which the last bits of sums depend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def arithmetic_threads(number: int) -> Iterator[None]:
    """A context in which torch computes with `number` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def computed_with(number: int | None, items: Iterable[T]) -> Iterator[T]:
    """`items`, each computed with `number` threads (None: all); between two of them there are as many as before."""
    iterator = iter(items)
    while True:
        with arithmetic_threads(number or torch.get_num_threads()):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
