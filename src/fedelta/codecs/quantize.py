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

import math
import warnings
from collections.abc import Iterator
from math import prod
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedelta.codecs import halves
from fedelta.codecs.base import Packed
from fedelta.errors import PayloadError
from fedelta.seeds import stream
from fedelta.settings import Settings

_MOST_SCALES = 8192  # of a piece: with 64 numbers each two megabytes of float32; small pieces cost more calls
_LEAST_NORMAL = 2.0**-14  # of float16

Group = Literal["row"] | Annotated[int, Field(ge=8, le=65536)]


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
        flat = tensor.detach().to("cpu", torch.float32).reshape(-1)
        generator = stream(seed) if self.rounding == "stochastic" else None
        packed = torch.empty(self._length(tuple(tensor.shape)), dtype=torch.uint8)
        left, memory = packed, _Memory()
        for piece in _pieces(tuple(tensor.shape), self.group):
            matrix = piece.matrix(flat[piece.start : piece.start + piece.numel])
            scales, exponent = _scales(name, matrix, piece.axis, self.largest, memory)
            integers = _integers(
                matrix, scales, exponent, axis=piece.axis, largest=self.largest, generator=generator, memory=memory
            )
            left = halves.put(scales, exponent, left)
            length = self._num_bytes(piece.numel)
            target, left = left[:length].view(torch.int8), left[length:]
            _write(integers.view(-1)[: piece.numel], target)
        return packed.numpy().data

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        if (expected := self._length(shape)) != len(data):
            problem = f"{len(data)} bytes for a tensor {shape} in {self.name}, expected {expected}"
            raise PayloadError(f"`{name}`: {problem}.")
        result, memory = torch.empty(prod(shape)), _Memory()
        for piece in _pieces(shape, self.group):
            middle = halves.num_bytes(piece.num_scales)
            end = middle + self._num_bytes(piece.numel)
            scales = halves.from_bytes(name, data[:middle], self.largest)
            integers = _read(data[middle:end])
            if self.name == "int4":  # the integers times 16
                integers, scales = _apart(integers, piece.numel, memory), scales / 16
            _multiply(name, piece, integers, scales, result[piece.start : piece.start + piece.numel])
            data = data[end:]
        return result.view(shape)

    def _length(self, shape: tuple[int, ...]) -> int:
        """The length of a tensor's bytes: of one full piece, times their number, and of the rest."""
        numel = prod(shape)
        most = numel if self.group == "row" else _MOST_SCALES * self.group
        count, rest = divmod(numel, most) if numel else (0, 0)
        parts = [(count, next(_pieces(shape, self.group)))] if count else []
        parts += [(1, _Piece(0, rest, -(-rest // self.group), 0))] if rest and self.group != "row" else []
        return sum(num * (halves.num_bytes(piece.num_scales) + self._num_bytes(piece.numel)) for num, piece in parts)

    def _num_bytes(self, numel: int) -> int:
        return numel if self.name == "int8" else (numel + 1) // 2


class _Piece(NamedTuple):
    """A part of a tensor that is written at once.

    Args:
        start: place of its first number.
        numel: how many it has.
        num_scales: how many scales.
        axis: of its numbers as a matrix, along which they share a scale.
    """

    start: int
    numel: int
    num_scales: int
    axis: int

    def matrix(self, numbers: Tensor) -> Tensor:
        """Its numbers as a matrix, filled up with zeros."""
        if missing := -self.numel % self.num_scales:
            numbers = torch.cat([numbers, numbers.new_zeros(missing)])
        return numbers.view((self.num_scales, -1) if self.axis else (-1, self.num_scales))


def _pieces(shape: tuple[int, ...], group: Group) -> Iterator[_Piece]:
    numel = prod(shape)
    if group == "row":
        if numel:
            yield _Piece(0, numel, shape[0] if len(shape) > 1 else 1, axis=1)
        return
    for start in range(0, numel, _MOST_SCALES * group):
        size = min(_MOST_SCALES * group, numel - start)
        yield _Piece(start, size, -(-size // group), axis=0)


class _Memory:
    """Tensors that are used again for every piece: new memory would take longer than the arithmetic in it."""

    def __init__(self) -> None:
        self._known: dict[torch.dtype, Tensor] = {}

    def of(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with anything in it, valid until the next call for this type."""
        if dtype not in self._known or self._known[dtype].numel() < prod(shape):
            self._known[dtype] = torch.empty(prod(shape), dtype=dtype)
        return self._known[dtype][: prod(shape)].view(shape)


def _scales(name: str, matrix: Tensor, axis: int, largest: int, memory: _Memory) -> tuple[Tensor, int]:
    """The scales as float16, and their exponent.

    Raises:
        PayloadError: a number is NaN or infinite.
    """
    sizes = torch.abs(matrix, out=memory.of(tuple(matrix.shape), torch.float32))
    scales = sizes.amax(axis).div_(largest)
    highest = float(scales.amax())
    if not math.isfinite(highest):
        raise PayloadError(f"`{name}`: a tensor holds values that are NaN or infinite.")
    return halves.rounded(scales, highest, multiple=largest)


def _integers(
    matrix: Tensor,
    scales: Tensor,
    exponent: int,
    *,
    axis: int,
    largest: int,
    generator: Generator | None,
    memory: _Memory,
) -> Tensor:
    """The integer of each number, int8."""
    factors = halves.restored(scales, exponent).reciprocal_()
    # A scale that has become zero makes its group zero.
    factors = torch.where(scales > 0, factors, 0.0).unsqueeze(axis)
    shape = tuple(matrix.shape)
    quotients = torch.mul(matrix, factors, out=memory.of(shape, torch.float32))
    if generator is None:
        quotients.round_()
    else:
        quotients.add_(torch.rand(shape, generator=generator)).floor_()
    if generator is not None or bool((scales < _LEAST_NORMAL).any()):
        # A scale with few bits was rounded far, and a sum that was rounded may be one too large.
        quotients.clamp_(-largest, largest)
    return memory.of(shape, torch.int8).copy_(quotients)


def _multiply(name: str, piece: _Piece, integers: Tensor, scales: Tensor, result: Tensor) -> None:
    """Writes q s to `result`.

    Raises:
        PayloadError: a number is not zero although its scale is.
    """
    matrix = piece.matrix(integers)
    if not scales.all() and matrix.view(torch.uint8).amax(piece.axis)[scales == 0].any():
        raise PayloadError(f"`{name}`: a scale is zero, but not all of its integers are.")
    if matrix.numel() == result.numel():
        torch.mul(matrix, scales.unsqueeze(piece.axis), out=result.view(matrix.shape))
    else:
        result.copy_((matrix * scales.unsqueeze(piece.axis)).view(-1)[: result.numel()])


def _write(integers: Tensor, target: Tensor) -> None:
    """Writes integers to bytes: one in each, or two if there are half as many bytes."""
    size, half = len(integers), len(target)
    if half == size:
        target.copy_(integers)
        return
    torch.add(integers[: size - half], integers[half:], alpha=16, out=target[: size - half])
    target[size - half :].copy_(integers[size - half : half])  # the one in the middle, if their number is odd


def _apart(pairs: Tensor, numel: int, memory: _Memory) -> Tensor:
    """The integers in pairs, times 16."""
    half = len(pairs)
    both = memory.of((2 * half,), torch.int8)
    torch.bitwise_left_shift(pairs, 4, out=both[:half])
    # With 8 added the lower bits are not negative, and what is left of them falls away.
    torch.add(pairs, 8, out=both[half:]).bitwise_and_(-16)
    return both[:numel]


def _read(data: memoryview) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the bytes are read-only; nothing writes to them
        return torch.frombuffer(data, dtype=torch.int8)
