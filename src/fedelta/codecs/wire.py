"""The format of a payload: encodes and decodes some of the tensors of a specification.

Both ends know the `ParamSpec`, so names and shapes do not travel; a fingerprint shows whether the ends agree.

    "FDLT" | version, 1 byte | fingerprint, 8 bytes | codec name, length byte + ASCII |
    presence, one bit per tensor in the order of the spec | length of each present tensor, LEB128 |
    bytes of the tensors | checksum of everything before it, 4 bytes little-endian: the lower half of its 64-bit XXH3

If the bytes of the tensors are compressed together (entropy.py), the codec name ends with "+zstd"; the lengths are
those before. Running statistics of norms are written in float32 by any codec that leaves much out: a variance that is
far off, or negative, would make the model useless.

A payload comes from an untrusted sender. Checksum, fingerprint, codec and all lengths are checked before a tensor is
allocated, and nothing in it is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_64

from fedelta.codecs.base import Codec, Packed, most_bytes
from fedelta.codecs.cast import Cast
from fedelta.codecs.entropy import SUFFIX, compressed, restored
from fedelta.codecs.quantize import Integers
from fedelta.errors import PayloadError, PluginError
from fedelta.params import Params, ParamSpec, side_by_side
from fedelta.plugins import called
from fedelta.seeds import derive

_MAGIC = b"FDLT"
_VERSION = 3
_CHECKSUM_BYTES = 4


def encode(
    params: Mapping[str, Tensor], spec: ParamSpec, codec: Codec, seed: int = 0, *, compress: bool = False
) -> tuple[bytes, dict[str, int]]:
    """The payload of `params`, and the bytes of its tensors by group.

    Of compressed tensors the bytes of a group are its share, in proportion to its bytes before.

    Args:
        params: some or all of the tensors of `spec`.
        spec: gives the order of the tensors.
        codec: writes each tensor.
        seed: names the stream of this payload, for a codec that draws.
        compress: whether to compress the tensors if that makes them shorter.

    Raises:
        PayloadError: a value is out of the codec's range; the message names the tensor.
    """
    present = [name for name in spec if name in params]
    bodies, lengths = _bodies(params, present, spec, codec, seed)
    frame = compressed(bodies, _width(codec)) if compress else None
    kind = codec.name if frame is None else codec.name + SUFFIX
    header = _header(spec.names, spec.fingerprint, kind, tuple(present), tuple(lengths))
    groups = _by_group(spec, present, lengths)
    if frame is not None:
        bodies, groups = [frame], _shares(groups, len(frame))
    # Without an intermediate copy: a payload may be as large as the model.
    return b"".join([header, *bodies, _checksum([header, *bodies])]), groups


def _bodies(
    params: Mapping[str, Tensor], names: list[str], spec: ParamSpec, codec: Codec, seed: int
) -> tuple[list[Packed], list[int]]:
    """The bytes of these tensors, in one piece or in several, and the bytes of each tensor."""
    if isinstance(codec, Cast) and (flat := side_by_side([params[name] for name in names])) is not None:
        # All numbers in one call. Where one is out of range, the calls below name its tensor.
        with suppress(PayloadError):
            return [codec.pack("", flat)], [params[name].numel() * codec.dtype.itemsize for name in names]
    packed: dict[str, Packed] = {}
    for part, of_part in _by_codec(spec, names, codec):
        packed |= _packed(part, {name: params[name] for name in of_part}, seed)
    bodies = [packed[name] for name in names]
    return bodies, list(map(len, bodies))


def _by_codec(spec: ParamSpec, names: list[str], codec: Codec) -> list[tuple[Codec, list[str]]]:
    """The codec of each of these tensors, and those that it writes."""
    exact = [name for name in names if codec.feeds_back and not spec.tensors[name].trained]
    if not exact:
        return [(codec, names)]
    others = set(exact)
    return [(codec, [name for name in names if name not in others]), (Cast(), exact)]


def _width(codec: Codec) -> int:
    """The bytes of a number, if all numbers have as many; otherwise 1."""
    return codec.dtype.itemsize if isinstance(codec, Cast) else 1


@lru_cache(maxsize=16)  # the payloads of a round have few different headers
def _header(
    names: tuple[str, ...], fingerprint: bytes, codec_name: str, present: tuple[str, ...], lengths: tuple[int, ...]
) -> bytes:
    bits = sum(1 << names.index(name) for name in present)
    codec_bytes = codec_name.encode("ascii")
    return b"".join(
        [
            _MAGIC,
            bytes([_VERSION]),
            fingerprint,
            bytes([len(codec_bytes)]),
            codec_bytes,
            bits.to_bytes(_presence_bytes(len(names)), "little"),
            *map(to_leb128, lengths),
        ]
    )


def decode(payload: bytes, spec: ParamSpec, codec: Codec) -> tuple[Params, dict[str, int]]:
    """The tensors of `payload`, float32, in the order of `spec`, and their bytes by group.

    Raises:
        PayloadError: the payload is truncated, damaged, or made for another specification or by another codec.
    """
    decoded = Decoder(spec, codec).decode(payload)
    return decoded.params, dict(decoded.groups)


def fingerprint_in(payload: bytes) -> bytes | None:
    """The fingerprint of the specification that a payload says it is made for; None if it is too short to say one."""
    start = len(_MAGIC) + 1
    return payload[start : start + 8] if len(payload) >= start + 8 else None


class Decoded(NamedTuple):
    """What is in a payload.

    Args:
        params: its tensors, float32, in the order of the specification.
        flat: the tensors one after the other, of which `params` are views; None if the codec gave them one by one.
        groups: their bytes by group.
    """

    params: Params
    flat: Tensor | None
    groups: Mapping[str, int]


class Decoder:
    """Decodes the payloads of a round: a header that is that of the payload before is not read again.

    Args:
        spec: gives the order of the tensors.
        codec: reads each tensor.
    """

    def __init__(self, spec: ParamSpec, codec: Codec) -> None:
        self._spec, self._codec = spec, codec
        self._layout: _Layout | None = None

    def decode(self, payload: bytes) -> Decoded:
        """The content of `payload`.

        Raises:
            PayloadError: the payload is truncated, damaged, or made for another specification or by another codec.
        """
        # Memory views, which do not copy the payload.
        message, checksum = memoryview(payload)[:-_CHECKSUM_BYTES], payload[-_CHECKSUM_BYTES:]
        _check_start(payload)
        if _checksum([message]) != checksum:
            raise PayloadError(f"a payload of {len(payload)} bytes is truncated or damaged: its checksum is wrong.")
        layout = self._layout
        if layout is None or not payload.startswith(layout.header) or not layout.fits(len(message)):
            layout = self._layout = _layout(message, self._spec, self._codec)
        body, spec, codec, groups = message[len(layout.header) :], self._spec, self._codec, layout.groups
        if layout.is_compressed:
            groups = _shares(groups, len(body))
            body = restored(body, sum(layout.lengths), _width(codec))
        if isinstance(codec, Cast) and layout.sizes is not None:
            flat = codec.unpack("the tensors", body, (sum(layout.sizes),))
            parts = zip(layout.names, torch.split_with_sizes(flat, layout.sizes), strict=True)
            params = {name: part.view(spec.tensors[name].shape) for name, part in parts}
            return Decoded(params, flat, groups)
        return Decoded(*_unpacked(layout, body, spec, codec), groups)


@dataclass(frozen=True)
class _Layout:
    """What the header of a message says.

    Args:
        header: its bytes.
        is_compressed: whether the tensors are.
        names: of the tensors.
        lengths: their bytes, before they were compressed.
        sizes: their numbers of elements, if every number is written alike, so that they can be read in one call.
        groups: bytes by group.
    """

    header: bytes
    is_compressed: bool
    names: list[str]
    lengths: list[int]
    sizes: list[int] | None
    groups: dict[str, int]

    def fits(self, num_bytes: int) -> bool:
        """Whether a message of `num_bytes`, without its checksum, can have this header."""
        return self.is_compressed or num_bytes == len(self.header) + sum(self.lengths)


def _unpacked(layout: _Layout, body: memoryview, spec: ParamSpec, codec: Codec) -> tuple[Params, Tensor | None]:
    """The tensors in `body`, and all of them one after the other if they are views of that."""
    reader = _Reader(body, 0)
    data = {name: reader.take(length) for name, length in zip(layout.names, layout.lengths, strict=True)}
    shapes = {name: spec.tensors[name].shape for name in data}
    (first, names), *others = _by_codec(spec, layout.names, codec)
    params, flat = _of_codec(first, {name: data[name] for name in names}, shapes)
    if not others:
        return params, flat
    for other, names in others:
        params |= _of_codec(other, {name: data[name] for name in names}, shapes)[0]
    return {name: params[name] for name in data}, None


def _layout(message: memoryview, spec: ParamSpec, codec: Codec) -> _Layout:
    reader = _Reader(message, len(_MAGIC) + 1)
    if (fingerprint := reader.take(8)) != spec.fingerprint:
        raise PayloadError(
            f"the payload is for other tensors: fingerprint {fingerprint.hex()}, expected {spec.fingerprint.hex()}.",
            hint="compare sections [model] and [tuning] of the server and the client.",
        )
    codec_name = str(reader.take(reader.take(1)[0]), "ascii", "replace")
    if is_compressed := codec_name == codec.name + SUFFIX:
        codec_name = codec.name
    if codec_name != codec.name:
        raise PayloadError(f"the payload was written with codec {codec_name!r}, expected {codec.name!r}.")
    bits = int.from_bytes(reader.take(_presence_bytes(len(spec))), "little")
    if bits >> len(spec):
        raise PayloadError(f"the payload marks more tensors as present than the {len(spec)} of the specification.")
    present = [name for index, name in enumerate(spec) if bits >> index & 1]
    lengths = [reader.leb128() for _ in present]
    if is_compressed:
        _check_lengths(spec, present, lengths)
    elif sum(lengths) != reader.num_left:
        raise PayloadError(f"the payload holds {reader.num_left} bytes of tensors, expected {sum(lengths)}.")
    header = bytes(message[: len(message) - reader.num_left])
    sizes: list[int] | None = [spec.tensors[name].numel for name in present]
    if not isinstance(codec, Cast) or lengths != [size * codec.dtype.itemsize for size in sizes or ()]:
        sizes = None
    return _Layout(header, is_compressed, present, lengths, sizes, _by_group(spec, present, lengths))


def _check_lengths(spec: ParamSpec, names: list[str], lengths: list[int]) -> None:
    """Raises if a tensor would have more bytes than it can need, before anything is decompressed."""
    for name, length in zip(names, lengths, strict=True):
        if length > (most := most_bytes(spec.tensors[name].numel)):
            raise PayloadError(
                f"`{name}`: the payload announces {length} bytes, more than the {most} that it can need."
            )


def _check_start(payload: bytes) -> None:
    if not payload.startswith(_MAGIC):
        raise PayloadError(
            f"{len(payload)} bytes are not a fedelta payload: they start with {payload[:4]!r}, expected {_MAGIC!r}."
        )
    if (version := payload[len(_MAGIC) : len(_MAGIC) + 1]) and version[0] != _VERSION:
        raise PayloadError(
            f"the payload is written in version {version[0]} of the format, expected version {_VERSION}.",
            hint="install the same version of fedelta at the server and at every client.",
        )


def _checksum(parts: Iterable[Packed]) -> bytes:
    hashed = xxh3_64()
    for part in parts:
        hashed.update(part)
    return (hashed.intdigest() & 0xFFFFFFFF).to_bytes(_CHECKSUM_BYTES, "little")


def _packed(codec: Codec, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Packed]:
    """The bytes of each tensor; `seed` names the stream of the payload."""
    if isinstance(codec, Integers):
        return codec.pack_all(tensors, lambda name: derive(seed, name))
    packed: dict[str, Packed] = {}
    for name, tensor in tensors.items():
        body: object = codec.pack(name, tensor, derive(seed, name))
        if not isinstance(body, bytes | memoryview):
            raise PluginError(f"{called(codec)}: `pack` returned {type(body).__name__} for `{name}`, expected bytes.")
        packed[name] = body
    return packed


def _of_codec(
    codec: Codec, data: Mapping[str, memoryview], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Params, Tensor | None]:
    """The tensor of each name, and all of them one after the other if they are views of that."""
    if isinstance(codec, Integers):
        return codec.unpack_all(data, shapes)
    params: Params = {}
    for name, body in data.items():
        tensor: object = codec.unpack(name, body, shapes[name])
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shapes[name] or tensor.dtype != torch.float32:
            result = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise PluginError(
                f"{called(codec)}: `unpack` returned {result} for `{name}`, expected float32 {shapes[name]}."
            )
        params[name] = tensor
    return params, None


def _by_group(spec: ParamSpec, names: list[str], lengths: list[int]) -> dict[str, int]:
    groups: dict[str, int] = {}
    for name, length in zip(names, lengths, strict=True):
        group = spec.tensors[name].group
        groups[group] = groups.get(group, 0) + length
    return groups


def _shares(groups: Mapping[str, int], num_bytes: int) -> dict[str, int]:
    """`num_bytes`, divided in proportion to the bytes of the groups; exactly, so that the shares add up.

    >>> _shares({"a": 1, "b": 1, "c": 2}, 7)
    {'a': 1, 'b': 2, 'c': 4}
    """
    total, before, shares = max(1, sum(groups.values())), 0, {}
    for group, size in groups.items():
        shares[group] = (before + size) * num_bytes // total - before * num_bytes // total
        before += size
    return shares


def _presence_bytes(num_tensors: int) -> int:
    return (num_tensors + 7) // 8


def to_leb128(number: int) -> bytes:
    """A number that is not negative in seven bits per byte, lowest first; the top bit is set in all bytes but the last.

    >>> to_leb128(300).hex()
    'ac02'
    """
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def from_leb128(data: memoryview) -> tuple[int, memoryview]:
    """The number at the start of `data`, and what is behind it.

    Raises:
        PayloadError: the data end too early, or the number has more than 63 bits.
    """
    number = 0
    for place, digit in enumerate(data[:9]):
        number |= (digit & 0x7F) << 7 * place
        if digit < 0x80:
            return number, data[place + 1 :]
    raise PayloadError(
        "the payload holds a length of more than 63 bits." if len(data) > 8 else "the payload ends within a length."
    )


class _Reader:
    """Reads a message from front to back.

    Raises:
        PayloadError: the message ends too early.
    """

    def __init__(self, message: memoryview, position: int) -> None:
        self._message = message
        self._position = position

    @property
    def num_left(self) -> int:
        """Number of unread bytes."""
        return len(self._message) - self._position

    def take(self, count: int) -> memoryview:
        if count > self.num_left:
            raise PayloadError(f"the payload ends after {len(self._message)} bytes, {count - self.num_left} too early.")
        self._position += count
        return self._message[self._position - count : self._position]

    def leb128(self) -> int:
        number, rest = from_leb128(self._message[self._position :])
        self._position = len(self._message) - len(rest)
        return number
