"""Codecs that write each number as a small integer times a scale.

If m is the largest magnitude in a group of numbers and b the largest integer (127 or 7), then

    s = float16(m / b),    q = round(x / s),    x' = q s

with a common exponent for the scales (halves.py). The error is at most half of s, and a little more where s has few
bits. With `rounding = "stochastic"` q is the integer below x / s or the one above, with probabilities that make x' x in
expectation: q = floor(x / s + u), u uniform in [0, 1), from the tensor's stream.

With `group = "row"` a group is a row, an index of the first axis; a tensor with one axis is one row. With a number g
the tensor, as one sequence of n numbers in row-major order, has G = ceil(n / g) groups, and the numbers with the places
j, j + G, j + 2 G, ... are group j. That a group is strided and not contiguous makes all arithmetic several times faster
and the error of real deltas 1 % larger (docs/codecs.md). A g that does not divide n gives groups that differ by one
number. Long tensors are written in pieces of 8,192 groups.

    of each piece: the scales (halves.py) | the integers, a byte each, or a byte for two of them

A byte holds the integer with place i in its lower four bits and that with place i + h in the upper four, h being half
of the integers in the piece; it is q_i + 16 q_(i + h) modulo 256.

Source: Alistarh et al. 2017 (QSGD, arXiv 1610.02132) for stochastic rounding; Seide et al. 2014 (1-bit SGD) for error
feedback; symmetric rounding by group is common practice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Generator, Tensor

from fedelta.codecs import halves
from fedelta.codecs.base import Packed
from fedelta.errors import PayloadError
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.settings import Settings

_MOST_SCALES = 8192  # of a piece: with 64 numbers each two megabytes of float32; small pieces cost more calls
_AT_ONCE = 131_072  # numbers of tensors of one shape in the same calls
_LEAST_NORMAL = 2.0**-14  # of float16

Group = Literal["row"] | Annotated[int, Field(ge=8, le=65536)]
Numbers = NDArray[np.float32]
# numpy, because its calls cost less than torch's, and its arithmetic with bytes is as fast as memory.
Bytes = NDArray[np.uint8]


class Integers(Settings):
    """Whole numbers of 8 or 4 bits, and scales.

    Args:
        name: `int8` for -127 to 127, `int4` for -7 to 7.
        group: how many numbers share a scale; "row": those of a row.
        rounding: to the nearest integer, or at random to the one below or above.
    """

    name: Literal["int8", "int4"] = "int8"
    # 64: 4.25 bits a number; groups of 32 make the error of int4 3 % smaller and its payload 6 % larger.
    group: Group = 64
    rounding: Literal["nearest", "stochastic"] = "nearest"
    feeds_back: ClassVar[bool] = True

    @property
    def largest(self) -> int:
        """b, the largest integer; the least is -b: the range is symmetric."""
        return 127 if self.name == "int8" else 7

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        """See `Codec.pack`."""
        return self.pack_all({name: tensor}, lambda _: seed)[name]

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        return self.unpack_all({name: data}, {name: shape})[0][name]

    def pack_all(self, tensors: Mapping[str, Tensor], seed_of: Callable[[str], int]) -> dict[str, Packed]:
        """What `pack` gives for each tensor and the seed of its name; tensors of one shape in the same calls."""
        memory, packed = _Memory(), dict[str, Packed]()
        for names, shape in _alike({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
            flat = [tensors[name].detach().to("cpu", torch.float32).reshape(-1).numpy() for name in names]
            numbers = np.stack(flat) if len(flat) > 1 else flat[0][None]
            draws = [stream(seed_of(name)) for name in names] if self.rounding == "stochastic" else []
            rows, place = np.empty((len(names), self._length(shape)), np.uint8), 0
            for piece in _pieces(shape, self.group):
                middle, end = place + halves.num_bytes(piece.num_scales), place + self._num_bytes(piece)
                of_piece = numbers[:, piece.start : piece.start + piece.numel]
                scales, exponents = _scales(names, of_piece, piece, self.largest, memory)
                halves.put(scales, exponents, rows[:, place:middle])
                quotients = _quotients(of_piece, scales, exponents, piece, memory)
                if draws:
                    quotients += np.stack([_uniform(piece.numel, generator) for generator in draws])
                    np.floor(quotients, out=quotients)
                else:
                    np.rint(quotients, out=quotients)
                if draws or bool((scales < _LEAST_NORMAL).any()):
                    # A scale with few bits was rounded far, and a sum that was rounded may be one too large.
                    np.clip(quotients, -self.largest, self.largest, out=quotients)
                _write(quotients, rows[:, middle:end].view(np.int8), memory)
                place = end
            packed |= {name: row.data for name, row in zip(names, rows, strict=True)}
        return packed

    def unpack_all(
        self, data: Mapping[str, memoryview], shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[Params, Tensor]:
        """What `unpack` gives for each tensor, and all of them one after the other, of which they are views."""
        for name, body in data.items():
            if (expected := self._length(shapes[name])) != len(body):
                problem = f"{len(body)} bytes for a tensor {shapes[name]} in {self.name}, expected {expected}"
                raise PayloadError(f"`{name}`: {problem}.")
        sizes, memory = [prod(shapes[name]) for name in data], _Memory()
        flat = torch.empty(sum(sizes))
        parts = dict(zip(data, flat.split(sizes), strict=True))
        for names, shape in _alike({name: shapes[name] for name in data}):
            if len(names) == 1:
                rows = np.frombuffer(data[names[0]], np.uint8)[None]
                self._read(names, rows, parts[names[0]].numpy()[None], shape, memory)
                continue
            rows = np.frombuffer(b"".join(data[name] for name in names), np.uint8).reshape(len(names), -1)
            numbers = np.empty((len(names), prod(shape)), np.float32)
            self._read(names, rows, numbers, shape, memory)
            for name, row in zip(names, numbers, strict=True):
                parts[name].numpy()[:] = row
        return {name: part.view(shapes[name]) for name, part in parts.items()}, flat

    def _read(
        self, names: Sequence[str], rows: Bytes, numbers: Numbers, shape: tuple[int, ...], memory: _Memory
    ) -> None:
        """Writes the numbers [T, n] of tensors of one shape, from the bytes of each."""
        place = 0
        for piece in _pieces(shape, self.group):
            middle, end = place + halves.num_bytes(piece.num_scales), place + self._num_bytes(piece)
            scales = halves.from_rows(names, rows[:, place:middle], self.largest).numpy()
            integers, part = rows[:, middle:end].view(np.int8), numbers[:, piece.start : piece.start + piece.numel]
            if self.name == "int8":
                part[:] = integers
            else:  # the integers times 16
                _put_apart(integers, part, memory)
            if not scales.all():
                _check_zeros(names, part, scales, piece)
            factors = scales if self.name == "int8" else scales / 16
            for matrix, of_matrix in piece.matrices(part, factors):
                np.multiply(matrix, of_matrix, out=matrix)
            place = end

    def _length(self, shape: tuple[int, ...]) -> int:
        """The length of a tensor's bytes: of one full piece, times their number, and of the rest."""
        numel = prod(shape)
        if not numel:
            return 0
        first = next(_pieces(shape, self.group))
        count, rest = divmod(numel, first.numel)
        last = _Piece(0, rest, -(-rest // self.group), 1) if rest and self.group != "row" else None
        return count * self._num_bytes(first) + (0 if last is None else self._num_bytes(last))

    def _num_bytes(self, piece: _Piece) -> int:
        return halves.num_bytes(piece.num_scales) + (piece.numel if self.name == "int8" else (piece.numel + 1) // 2)


class _Piece(NamedTuple):
    """A part of a tensor that is written at once.

    Args:
        start: place of its first number.
        numel: how many it has.
        num_scales: how many scales.
        axis: of its numbers as matrices [T, rows, columns], along which they share a scale: 1 or 2.
    """

    start: int
    numel: int
    num_scales: int
    axis: int

    def matrices(self, numbers: Numbers, scales: NDArray[Any]) -> Iterator[tuple[Numbers, NDArray[Any]]]:
        """Its numbers [T, n] as matrices: the full rows, and the last one if it is short; each with its scales.

        Args:
            numbers: of T tensors.
            scales: [T, G]; they come with the axis along which they are shared.
        """
        width = self.num_scales if self.axis == 1 else self.numel // self.num_scales
        end = self.numel - self.numel % width
        yield numbers[:, :end].reshape(len(numbers), -1, width), np.expand_dims(scales, self.axis)
        if end < self.numel:
            yield numbers[:, None, end:], scales[:, None, : self.numel - end]


def _pieces(shape: tuple[int, ...], group: Group) -> Iterator[_Piece]:
    numel = prod(shape)
    if group == "row":
        if numel:
            yield _Piece(0, numel, shape[0] if len(shape) > 1 else 1, axis=2)
        return
    for start in range(0, numel, _MOST_SCALES * group):
        size = min(_MOST_SCALES * group, numel - start)
        yield _Piece(start, size, -(-size // group), axis=1)


def _alike(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Names of tensors of one shape, with at most `_AT_ONCE` numbers together or of one tensor, and their shape."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    for shape, names in by_shape.items():
        most = max(1, _AT_ONCE // max(1, prod(shape)))
        for start in range(0, len(names), most):
            yield names[start : start + most], shape


class _Memory:
    """Arrays that are used again and again: new memory would take longer than the arithmetic in it."""

    def __init__(self) -> None:
        self._known: dict[type[np.generic], NDArray[Any]] = {}

    def of(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """An array with anything in it, valid until the next call for this type."""
        if dtype not in self._known or self._known[dtype].size < prod(shape):
            self._known[dtype] = np.empty(prod(shape), dtype)
        return self._known[dtype][: prod(shape)].reshape(shape)


def _scales(
    names: Sequence[str], numbers: Numbers, piece: _Piece, largest: int, memory: _Memory
) -> tuple[Tensor, halves.Exponents]:
    """The scales of the numbers [T, n] of a piece as float16, and their exponents.

    Raises:
        PayloadError: a number is NaN or infinite.
    """
    scales = np.zeros((len(names), piece.num_scales), np.float32)
    for matrix, of_matrix in piece.matrices(numbers, scales):
        sizes = np.abs(matrix, out=memory.of(matrix.shape, np.float32)).max(piece.axis, keepdims=True)
        np.maximum(of_matrix, sizes, out=of_matrix)
    scales /= largest
    highest = scales.max(1)
    if not np.isfinite(highest).all():
        name = names[int(np.flatnonzero(~np.isfinite(highest))[0])]
        raise PayloadError(f"`{name}`: a tensor holds values that are NaN or infinite.")
    return halves.rounded(torch.from_numpy(scales), torch.from_numpy(highest), multiple=largest)


def _quotients(
    numbers: Numbers, scales: Tensor, exponents: halves.Exponents, piece: _Piece, memory: _Memory
) -> Numbers:
    """The quotients x / s of the numbers [T, n] of a piece."""
    factors = torch.where(scales > 0, halves.restored(scales, exponents).reciprocal_(), 0.0).numpy()
    quotients = memory.of(numbers.shape, np.float32)
    parts = zip(piece.matrices(numbers, factors), piece.matrices(quotients, factors), strict=True)
    for (matrix, of_matrix), (target, _) in parts:
        np.multiply(matrix, of_matrix, out=target)
    return quotients


def _uniform(num: int, generator: Generator) -> Numbers:
    numbers: Numbers = torch.rand(num, generator=generator).numpy()
    return numbers


def _write(integers: Numbers, target: NDArray[np.int8], memory: _Memory) -> None:
    """Writes integers [T, n] to bytes: one in each, or two if there are half as many bytes."""
    half, num = target.shape[1], integers.shape[1]
    np.copyto(target, integers[:, :half], casting="unsafe")
    if half < num:
        upper = memory.of((len(integers), num - half), np.int8)
        np.copyto(upper, integers[:, half:], casting="unsafe")
        np.multiply(upper, 16, out=upper)
        target[:, : num - half] += upper  # the last one is alone if their number is odd


def _put_apart(pairs: NDArray[np.int8], numbers: Numbers, memory: _Memory) -> None:
    """Writes the integers in pairs [T, ceil(n / 2)], times 16, to `numbers` [T, n]."""
    half = pairs.shape[1]
    integers = memory.of(pairs.shape, np.int8)
    numbers[:, :half] = np.multiply(pairs, 16, out=integers)
    # With 8 added the lower bits are not negative, and what is left of them falls away.
    np.bitwise_and(np.add(pairs, 8, out=integers), -16, out=integers)
    numbers[:, half:] = integers[:, : numbers.shape[1] - half]


def _check_zeros(names: Sequence[str], integers: Numbers, scales: Numbers, piece: _Piece) -> None:
    """Raises a `PayloadError` if an integer [T, n] is not zero although its scale is."""
    for matrix, of_matrix in piece.matrices(integers, scales):
        if (wrong := (matrix.any(piece.axis, keepdims=True) & (of_matrix == 0)).any((1, 2))).any():
            name = names[int(np.flatnonzero(wrong)[0])]
            raise PayloadError(f"`{name}`: a scale is zero, but not all of its integers are.")
