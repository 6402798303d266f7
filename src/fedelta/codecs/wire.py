"""The format of a payload: encodes and decodes some of the tensors of a specification.

Both ends know the `ParamSpec`, so names and shapes do not travel; a fingerprint shows whether the ends agree.

    "FDLT" | version, 1 byte | fingerprint, 8 bytes | codec name, length byte + ASCII |
    presence, one bit per tensor in the order of the spec | length of each present tensor, LEB128 |
    bytes of the tensors | checksum of everything before it, 4 bytes little-endian: the lower half of its 64-bit XXH3

A payload comes from an untrusted sender. Checksum, fingerprint, codec and all lengths are checked before a tensor is
allocated, and nothing in it is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from xxhash import xxh3_64

from fedelta.codecs.base import Codec, Packed
from fedelta.errors import PayloadError, PluginError
from fedelta.params import Params, ParamSpec
from fedelta.plugins import called

_MAGIC = b"FDLT"
_VERSION = 2
_CHECKSUM_BYTES = 4


def encode(params: Mapping[str, Tensor], spec: ParamSpec, codec: Codec) -> tuple[bytes, dict[str, int]]:
    """The payload of `params`, and the bytes of its tensors by group.

    Args:
        params: some or all of the tensors of `spec`.
        spec: gives the order of the tensors.
        codec: writes each tensor.

    Raises:
        PayloadError: a value is out of the codec's range; the message names the tensor.
    """
    present = [name for name in spec if name in params]
    bodies = [_packed(codec, name, params[name]) for name in present]
    lengths = [len(body) for body in bodies]
    bits = sum(1 << index for index, name in enumerate(spec) if name in params)
    codec_name = codec.name.encode("ascii")
    header = b"".join(
        [
            _MAGIC,
            bytes([_VERSION]),
            spec.fingerprint,
            bytes([len(codec_name)]),
            codec_name,
            bits.to_bytes(_presence_bytes(spec), "little"),
            *map(_leb128, lengths),
        ]
    )
    # Without an intermediate copy: a payload may be as large as the model.
    payload = b"".join([header, *bodies, _checksum([header, *bodies])])
    return payload, _by_group(spec, present, lengths)


def decode(payload: bytes, spec: ParamSpec, codec: Codec) -> tuple[Params, dict[str, int]]:
    """The tensors of `payload`, float32, in the order of `spec`, and their bytes by group.

    Raises:
        PayloadError: the payload is truncated, damaged, or made for another specification or by another codec.
    """
    # Memory views, which do not copy the payload.
    message, checksum = memoryview(payload)[:-_CHECKSUM_BYTES], payload[-_CHECKSUM_BYTES:]
    _check_start(payload)
    if _checksum([message]) != checksum:
        raise PayloadError(f"a payload of {len(payload)} bytes is truncated or damaged: its checksum is wrong.")
    reader = _Reader(message, len(_MAGIC) + 1)
    if (fingerprint := reader.take(8)) != spec.fingerprint:
        raise PayloadError(
            f"the payload is for other tensors: fingerprint {fingerprint.hex()}, expected {spec.fingerprint.hex()}.",
            hint="compare sections [model] and [tuning] of the server and the client.",
        )
    codec_name = str(reader.take(reader.take(1)[0]), "ascii", "replace")
    if codec_name != codec.name:
        raise PayloadError(f"the payload was written with codec {codec_name!r}, expected {codec.name!r}.")
    bits = int.from_bytes(reader.take(_presence_bytes(spec)), "little")
    if bits >> len(spec):
        raise PayloadError(f"the payload marks more tensors as present than the {len(spec)} of the specification.")
    present = [name for index, name in enumerate(spec) if bits >> index & 1]
    lengths = [reader.leb128() for _ in present]
    if sum(lengths) != reader.num_left:
        raise PayloadError(f"the payload holds {reader.num_left} bytes of tensors, expected {sum(lengths)}.")
    params = {
        name: _unpacked(codec, name, reader.take(length), spec.tensors[name].shape)
        for name, length in zip(present, lengths, strict=True)
    }
    return params, _by_group(spec, present, lengths)


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


def _packed(codec: Codec, name: str, tensor: Tensor) -> Packed:
    body: object = codec.pack(name, tensor)
    if not isinstance(body, bytes | memoryview):
        raise PluginError(f"{called(codec)}: `pack` returned {type(body).__name__} for `{name}`, expected bytes.")
    return body


def _unpacked(codec: Codec, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
    tensor: object = codec.unpack(name, data, shape)
    if isinstance(tensor, Tensor) and tuple(tensor.shape) == tuple(shape) and tensor.dtype == torch.float32:
        return tensor
    result = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
    raise PluginError(f"{called(codec)}: `unpack` returned {result} for `{name}`, expected float32 {shape}.")


def _by_group(spec: ParamSpec, names: list[str], lengths: list[int]) -> dict[str, int]:
    groups: dict[str, int] = {}
    for name, length in zip(names, lengths, strict=True):
        group = spec.tensors[name].group
        groups[group] = groups.get(group, 0) + length
    return groups


def _presence_bytes(spec: ParamSpec) -> int:
    return (len(spec) + 7) // 8


def _leb128(number: int) -> bytes:
    """A number in seven bits per byte, lowest first; the top bit is set in all bytes but the last."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


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
        number = 0
        for shift in range(0, 63, 7):
            digit = self.take(1)[0]
            number |= (digit & 0x7F) << shift
            if digit < 0x80:
                return number
        raise PayloadError("the payload holds a length of more than 63 bits.")
