"""Named tensors (`Params`), their specification (`ParamSpec`), and sums of them.

`Params` is an ordered dictionary of name to tensor that holds only what is tuned. `ParamSpec` has, in the same order,
the shape and the *group* of each tensor; the tensors of a group (a layer) travel together. A *delta* is `Params` too:
local minus anchor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fedelta.errors import SpecError

Params = dict[str, Tensor]
# Where the values of a tensor come from: "client": clients change it. "seed": every client has made the same one, which
# never changes and never travels. "server": clients only receive it.
Source = Literal["client", "seed", "server"]

# Elements per block: a quarter of a megabyte as float64, which fits into a processor's cache. torch uses one thread up
# to this number; for more it would wake other threads for very little work.
_BLOCK = 2**15
_SMALLEST, _LARGEST = 1e-12, 1e18  # norms between them are computed in float32


@dataclass(frozen=True)
class TensorSpec:
    """One tuned tensor.

    Args:
        shape: shape without the lane axis.
        group: name of the group with which it travels.
        trained: whether optimizers change it. False for a running statistic of the client's data, such as the mean of a
            batch norm, which also changes and travels.
        shared: whether clients send it. False for a tensor that stays on its client from round to round, and for one
        that
            clients do not change.
        source: where its values come from.
    """

    shape: tuple[int, ...]
    group: str
    trained: bool = True
    shared: bool = True
    source: Source = "client"

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParamSpec:
    """What is tuned, by name and in order; the same on the server and on every client.

    Args:
        tensors: name to specification, in the order in which tensors travel.
    """

    tensors: Mapping[str, TensorSpec]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __len__(self) -> int:
        return len(self.tensors)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names in order."""
        return tuple(self.tensors)

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Names of the tensors that travel, in order."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.shared)

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Names of the tensors that stay on each client, in order."""
        return tuple(name for name, tensor in self.tensors.items() if not tensor.shared and tensor.source == "client")

    @cached_property
    def given(self) -> tuple[str, ...]:
        """Names of the tensors that every client has from the seed, in order."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.source == "seed")

    @cached_property
    def received(self) -> tuple[str, ...]:
        """Names of the tensors that clients receive and do not change, in order."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.source == "server")

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Names of the tensors that travel but are not trained, in order."""
        return tuple(name for name in self.shared if not self.tensors[name].trained)

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Group to the names of its tensors; groups and names are in order."""
        groups: dict[str, list[str]] = {}
        for name, tensor in self.tensors.items():
            groups.setdefault(tensor.group, []).append(name)
        return {group: tuple(names) for group, names in groups.items()}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Group to the number of its trained scalars that travel, in order; groups without any are left out."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.trained and tensor.shared:
                sizes[tensor.group] = sizes.get(tensor.group, 0) + tensor.numel
        return sizes

    def shared_of(self, groups: Collection[str]) -> tuple[str, ...]:
        """Names of the tensors of `groups` that travel, in order."""
        return tuple(name for name in self.shared if self.tensors[name].group in groups)

    @cached_property
    def num_parameters(self) -> int:
        """Number of trained scalars, without statistics."""
        return sum(tensor.numel for tensor in self.tensors.values() if tensor.trained)

    @cached_property
    def fingerprint(self) -> bytes:
        """Eight bytes, a hash of the names, the order, the shapes and which tensors travel."""
        described = repr([(name, tensor.shape, tensor.shared) for name, tensor in self.tensors.items()])
        return hashlib.sha256(described.encode()).digest()[:8]

    def check(self, params: Mapping[str, Tensor], names: Iterable[str] | None = None) -> None:
        """Checks that `params` are exactly the tensors of `names` (default: all), of the right shape and finite.

        Raises:
            SpecError: they are not; one message for all problems.
        """
        expected = self.names if names is None else tuple(names)
        problems = [f"lacks `{name}`" for name in expected if name not in params]
        problems += [f"holds `{name}`, which is not expected" for name in params if name not in expected]
        for name in expected:
            if name in params:
                problems += self._problems_of(name, params[name])
        if problems:
            shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
            raise SpecError(f"{len(problems)} of {len(expected)} tensors do not fit: {shown}")

    def _problems_of(self, name: str, tensor: Tensor) -> list[str]:
        expected = self.tensors[name].shape
        if tuple(tensor.shape) != expected:
            return [f"`{name}` has shape {tuple(tensor.shape)}, expected {expected}"]
        if not is_finite(tensor):
            return [f"`{name}` holds {int((~torch.isfinite(tensor)).sum())} values that are NaN or infinite"]
        return []


def select(params: Mapping[str, Tensor], names: Iterable[str]) -> Params:
    """The tensors of `names`, in the order of `names`, not copied."""
    return {name: params[name] for name in names}


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    >>> is_finite(torch.tensor([1.0, -2.0])), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    if tensor.numel() == 0:
        return True
    # Without the mask of `torch.isfinite`, which is as large as the tensor. One NaN makes both results NaN.
    low, high = tensor.aminmax()
    return math.isfinite(float(low)) and math.isfinite(float(high))


def add(params: Mapping[str, Tensor], delta: Mapping[str, Tensor], scale: float = 1.0) -> Params:
    """`params + scale * delta`, computed in float64; a tensor that `delta` lacks is not copied."""
    total = dict(params)
    for name, change in delta.items():
        total[name] = torch.empty(params[name].shape, dtype=params[name].dtype, device=params[name].device)
        for target, start, step in zip(*map(_blocks, (total[name], params[name], change)), strict=True):
            target.copy_(start.double() + scale * step.double())
    return total


_MOST_WAITING = 4
_MOST_WAITING_BYTES = 2**25


class WeightedSum:
    """A running sum of weighted tensors, by name, in float64.

    Tensors that lie side by side are kept until a few can be added in one pass over the sum, which is the largest.
    They must not be written to.

    The order of the calls affects the last bits, so callers add in ascending client id.

    >>> total = WeightedSum()
    >>> for weight, value in ((1, 2.0), (3, 6.0)):
    ...     total.add(weight, {"w": torch.tensor(value)})
    >>> total.mean()["w"].item()  # (1 * 2 + 3 * 6) / 4
    5.0
    """

    def __init__(self) -> None:
        self._totals: Params = {}
        self._flat: Tensor | None = None  # the totals of the first call, if its tensors lay side by side
        self._names_of_flat: tuple[str, ...] = ()
        self._waiting: list[tuple[float, Tensor]] = []  # what is to be added to `_flat`, with its weight
        self.weights: dict[str, float] = {}

    def add(self, weight: float, tensors: Mapping[str, Tensor]) -> None:
        """Adds `weight` (> 0) times each of `tensors`; names may differ from call to call."""
        names, flat = tuple(tensors), side_by_side(tensors.values())
        if flat is not None and not self._totals:
            self._start(tensors, flat)
        if flat is not None and self._flat is not None and names == self._names_of_flat:
            self._waiting.append((weight, flat))
            if len(self._waiting) == _MOST_WAITING or len(self._waiting) * flat.nbytes > _MOST_WAITING_BYTES:
                self._add_waiting()
            for name in names:
                self.weights[name] += weight
            return
        self._add_waiting()
        for name, tensor in tensors.items():
            if name not in self._totals:
                # float64, because over 100 clients a float32 running sum can lose two decimal digits.
                self._totals[name] = torch.zeros_like(tensor, dtype=torch.float64)
                self.weights[name] = 0.0
            for total, part in zip(_blocks(self._totals[name]), _blocks(tensor), strict=True):
                total.add_(part.double(), alpha=weight)
            self.weights[name] += weight

    def _add_waiting(self) -> None:
        if self._flat is None:
            return
        for total, *parts in zip(*map(_blocks, (self._flat, *(flat for _, flat in self._waiting))), strict=True):
            for (weight, _), part in zip(self._waiting, parts, strict=True):
                total.add_(part.double(), alpha=weight)
        self._waiting = []

    def _start(self, tensors: Mapping[str, Tensor], flat: Tensor) -> None:
        self._flat, self._names_of_flat = torch.zeros_like(flat, dtype=torch.float64), tuple(tensors)
        totals = self._flat.split([tensor.numel() for tensor in tensors.values()])
        for (name, tensor), total in zip(tensors.items(), totals, strict=True):
            self._totals[name], self.weights[name] = total.view(tensor.shape), 0.0

    def mean(self) -> Params:
        """The sums divided by their weights, in the order in which names were first added; call it only once."""
        self._add_waiting()
        return {name: self._totals[name].div_(weight) for name, weight in self.weights.items()}


def side_by_side(tensors: Collection[Tensor]) -> Tensor | None:
    """All tensors as one [n], not copied, if they lie one after the other in one piece of memory; None otherwise."""
    first = next(iter(tensors), None)
    if first is None:
        return None
    start = place = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != place or tensor.dtype != first.dtype or not tensor.is_contiguous():
            return None
        place += tensor.nbytes
    memory = first.untyped_storage()  # the tensors of two pieces may also lie side by side
    if place > memory.data_ptr() + memory.nbytes():
        return None
    return first.as_strided(((place - start) // first.element_size(),), (1,))


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor's numbers, in row-major order."""
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, sorted by name, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()


def norm(tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean norm of all tensors together.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})
    5.0
    """
    squares = (float(part.double().square().sum()) for tensor in tensors.values() for part in _blocks(tensor))
    return math.sqrt(sum(squares))


def rough_norm(tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean norm to about six digits, for records: in a quarter of the time of `norm`.

    >>> rough_norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})
    5.0
    """
    parts = [part for tensor in tensors.values() for part in _blocks(tensor)]
    total = math.hypot(*(float(part) for part in torch._foreach_norm(parts))) if parts else 0.0
    # Squares of other numbers are beyond the range of float32.
    return total if _SMALLEST < total < _LARGEST else norm(tensors)


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of at most `_BLOCK` elements that together are the tensor; a small tensor is one view."""
    return (tensor,) if tensor.numel() <= _BLOCK else tensor.reshape(-1).split(_BLOCK)
