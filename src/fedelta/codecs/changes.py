"""Downloads as changes, with error feedback at the server.

The server keeps, for each tensor x, the value y that a client holds which has decoded every download (the *mirror*). In
a round in which x travels to somebody,

    change = pack(x - y),    y' = float16(y + unpack(change))

on both sides, in float32 before the rounding, so that both have the same bits. What the codec and the rounding leave
out is x - y', and part of the next change: the residual needs no place of its own. A client trains from y', its anchor.
A mirror begins with y = float16(int8(x)), int8 in groups of 64 (quantize.py): close enough to train from, and half as
long as float16.

A client that holds y of an earlier round gets all changes since, in their order; one that holds nothing, or for which
that would be longer, gets y' itself: as those integers in the round in which y begins, else in float16. So the server
knows of each client and tensor only the round in which the client got what it holds: that of its last *accepted* reply,
because a client keeps a download only then. Of the changes it keeps those that together are shorter than y'. A tensor
in bytes:

    0 | y in float16, 2 bytes a number
    255 | y as int8, where it begins
    n, 1 byte, from 1 | check, 4 bytes | n times: length of the change, LEB128 | change

The check is the lower half of the 64-bit XXH3 of the bytes of y before the first change: a client that holds something
else refuses the download. Running statistics of norms are not mirrored; they travel in float32 (wire.py).

Source: error feedback as in Karimireddy et al. 2019 (arXiv 1901.09847); a mirror at both ends as in Tang et al. 2019
(DoubleSqueeze, arXiv 1905.05957) and Gorbunov et al. 2020 (EF21-like shifts), with chains for clients that were away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_64

from fedelta.codecs.base import Codec, Packed
from fedelta.codecs.cast import Cast
from fedelta.codecs.quantize import Integers
from fedelta.codecs.wire import encode, from_leb128, to_leb128
from fedelta.errors import PayloadError
from fedelta.params import Params, ParamSpec, bytes_of, is_finite
from fedelta.seeds import derive

SUFFIX = "+changes"  # of a codec's name in the header of a payload
_CHECK_BYTES = 4
_MOST_CHANGES = 254
_WHOLE = 0
_BEGUN = 255
_FIRST_CODEC = Integers(name="int8")


class _Change(NamedTuple):
    """A change of a tensor: the round in which it was made, the check of y before, and its bytes."""

    round: int
    check: bytes
    data: bytes


@dataclass(frozen=True)
class _Tensor:
    """What the server keeps of a tensor.

    Args:
        value: y, float16.
        start: the round of y before the first of `changes`.
        changes: the last ones, ascending.
        first: y as int8 in the round in which it begins, if that is shorter than float16.
    """

    value: Tensor
    start: int
    changes: tuple[_Change, ...] = ()
    first: bytes = b""

    @property
    def round(self) -> int:
        """The round of `value`."""
        return self.changes[-1].round if self.changes else self.start

    def changed(self, change: _Change, value: Tensor) -> _Tensor:
        """The tensor after one more change; the first ones are dropped where `value` is not longer."""
        start, changes = self.start, (*self.changes, change)
        while len(changes) > _MOST_CHANGES or sum(len(change.data) + 3 for change in changes) > 2 * value.numel():
            start, changes = changes[0].round, changes[1:]
        return _Tensor(value, start, changes)

    def body(self, round: int) -> bytes:
        """The bytes for a client that holds y of `round`; 0 for none."""
        missing = tuple(change for change in self.changes if change.round > round)
        if round and missing:
            return _chain(missing)
        return bytes([_BEGUN]) + self.first if self.first else bytes([_WHOLE]) + bytes_of(self.value)


@dataclass(frozen=True)
class Mirror:
    """What up-to-date clients hold, and what the others need to be so.

    Args:
        tensors: name of a tensor to what is kept of it.
        held: client id to name of a tensor to the round of the y that it holds.
    """

    tensors: Mapping[str, _Tensor] = field(default_factory=dict)
    held: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def advanced(self, round: int, values: Params, spec: ParamSpec, codec: Codec, seed: int) -> Mirror:
        """The mirror after the changes of a round.

        Args:
            round: its number; tensors that have already changed in it stay as they are.
            values: x of the tensors that travel.
            spec: their specification.
            codec: of downloads.
            seed: names the stream of this round.

        Raises:
            PayloadError: a value is beyond float16, or out of the codec's range.
        """
        tensors = dict(self.tensors)
        for name, value in values.items():
            before = tensors.get(name)
            if not spec.tensors[name].trained or (before is not None and before.round == round):
                continue
            if before is None:
                tensors[name] = _begun(name, value, round)
            else:
                tensors[name] = _changed(name, before, value, codec, round=round, seed=derive(seed, name))
        return replace(self, tensors=tensors)

    def since(self, client_id: int, names: Iterable[str]) -> tuple[int, ...]:
        """For each tensor the round of what the client holds, 0 for nothing that helps; equal for equal downloads."""
        held = self.held.get(client_id, {})
        return tuple(self._since(name, held.get(name, 0)) for name in names)

    def _since(self, name: str, round: int) -> int:
        tensor = self.tensors.get(name)
        return round if tensor is not None and tensor.start <= round < tensor.round else 0

    def payload(
        self, values: Params, rounds: Iterable[int], spec: ParamSpec, codec: Codec, *, compress: bool
    ) -> tuple[bytes, dict[str, int]]:
        """The payload for clients that hold these rounds, and the bytes of its tensors by group.

        Args:
            values: x of the tensors that travel, which are in the mirror.
            rounds: as `since` gives them.
            spec: of the tensors.
            codec: of downloads.
            compress: see `encode`.
        """
        bodies = {
            name: self.tensors[name].body(round)
            for name, round in zip(values, rounds, strict=True)
            if spec.tensors[name].trained
        }
        return encode(values, spec, _Prepared(f"{codec.name}{SUFFIX}", bodies), compress=compress)

    def kept(self, names_of: Mapping[int, Iterable[str]]) -> Mirror:
        """The mirror once these clients keep the current y of these tensors."""
        held = dict(self.held)
        for client_id, names in names_of.items():
            current = {name: self.tensors[name].round for name in names if name in self.tensors}
            held[client_id] = {**held.get(client_id, {}), **current}
        return replace(self, held=held)

    def forgotten(self, client_ids: Iterable[int]) -> Mirror:
        """The mirror once these clients hold nothing."""
        gone = set(client_ids)
        return replace(self, held={client: rounds for client, rounds in self.held.items() if client not in gone})

    def to_state(self) -> tuple[Params, dict[str, Any]]:
        """Tensors and JSON values, from which `from_state` makes the same mirror."""
        values = {name: tensor.value for name, tensor in self.tensors.items()}
        chains = {
            f"{name}/changes": torch.frombuffer(
                bytearray(b"".join(change.data for change in tensor.changes)), dtype=torch.uint8
            )
            for name, tensor in self.tensors.items()
            if any(change.data for change in tensor.changes)
        }
        rounds = {
            name: [tensor.start, [[change.round, change.check.hex(), len(change.data)] for change in tensor.changes]]
            for name, tensor in self.tensors.items()
        }
        names = list(self.tensors)
        held = [[client, [rounds.get(name, 0) for name in names]] for client, rounds in self.held.items()]
        return values | chains, {"tensors": rounds, "held": held}

    @classmethod
    def from_state(cls, tensors: Params, facts: Mapping[str, Any]) -> Mirror:
        """The inverse of `to_state`."""
        mirrored = {}
        for name, (start, entries) in facts["tensors"].items():
            left = bytes(bytes_of(tensors[f"{name}/changes"])) if f"{name}/changes" in tensors else b""
            changes = []
            for round, check, length in entries:
                changes.append(_Change(round, bytes.fromhex(check), left[:length]))
                left = left[length:]
            mirrored[name] = _Tensor(tensors[name], start, tuple(changes))
        held = {
            client: {name: round for name, round in zip(mirrored, rounds, strict=True) if round}
            for client, rounds in facts["held"]
        }
        return cls(mirrored, held)


@dataclass(frozen=True)
class Reader:
    """A codec that decodes downloads for a client.

    Args:
        codec: of the changes.
        held: name of a tensor to the y that the client holds, float16.
    """

    codec: Codec
    held: Params
    feeds_back: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """See `Codec.name`."""
        return f"{self.codec.name}{SUFFIX}"

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        """Never called: the server writes downloads from its mirror."""
        raise NotImplementedError

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        if not data:
            raise PayloadError(f"`{name}`: no byte of a change.")
        if data[0] == _WHOLE:
            return Cast(name="float16").unpack(name, data[1:], shape)
        if data[0] == _BEGUN:
            return _as_half(name, _FIRST_CODEC.unpack(name, data[1:], shape)).float()
        held = self.held.get(name)
        if held is None or tuple(held.shape) != shape or _check(held) != data[1 : 1 + _CHECK_BYTES]:
            raise PayloadError(f"`{name}`: the download changes a value that the client does not hold.")
        rest, value = data[1 + _CHECK_BYTES :], held
        for _ in range(data[0]):
            length, rest = from_leb128(rest)
            value = _applied(name, value, self.codec, rest[:length])
            rest = rest[length:]
        if len(rest):
            raise PayloadError(f"`{name}`: {len(rest)} bytes behind the last change.")
        return value.float()


@dataclass(frozen=True)
class _Prepared:
    """A codec whose bytes are there already."""

    name: str
    bodies: Mapping[str, bytes]
    feeds_back: ClassVar[bool] = True

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        return self.bodies[name]

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


def first_download(values: Params, spec: ParamSpec, codec: Codec, *, compress: bool) -> bytes:
    """The payload of a client that holds nothing, if `values` have never travelled."""
    mirror = Mirror().advanced(1, values, spec, codec, 0)
    return mirror.payload(values, [0] * len(values), spec, codec, compress=compress)[0]


def whole_download(values: Params, spec: ParamSpec, codec: Codec, *, compress: bool) -> bytes:
    """The payload of a client that holds nothing, if `values` have travelled in earlier rounds."""
    begun = Mirror().advanced(1, values, spec, codec, 0)
    mirror = Mirror({name: replace(tensor, first=b"") for name, tensor in begun.tensors.items()})
    return mirror.payload(values, [0] * len(values), spec, codec, compress=compress)[0]


def _begun(name: str, value: Tensor, round: int) -> _Tensor:
    value = value.detach().cpu()
    first = bytes(_FIRST_CODEC.pack(name, value.float(), 0))
    if len(first) >= 2 * value.numel():
        return _Tensor(_as_half(name, value), round)
    decoded = _FIRST_CODEC.unpack(name, memoryview(first), tuple(value.shape))
    return _Tensor(_as_half(name, decoded), round, first=first)


def _changed(name: str, before: _Tensor, value: Tensor, codec: Codec, *, round: int, seed: int) -> _Tensor:
    data = bytes(codec.pack(name, value.detach().cpu() - before.value.float(), seed))
    change = _Change(round, _check(before.value), data)
    return before.changed(change, _applied(name, before.value, codec, memoryview(data)))


def _applied(name: str, value: Tensor, codec: Codec, change: memoryview) -> Tensor:
    """The mirrored value after a change; the same at both ends."""
    return _as_half(name, value.float() + codec.unpack(name, change, tuple(value.shape)))


def _as_half(name: str, value: Tensor) -> Tensor:
    halves = value.half()
    if not is_finite(halves):
        raise PayloadError(
            f"`{name}`: a value is beyond float16, in which downloads are mirrored.",
            hint="set `codec.changes = false`, or choose another `codec.down.name`.",
        )
    return halves


def _check(value: Tensor) -> bytes:
    return (xxh3_64(bytes_of(value)).intdigest() & 0xFFFFFFFF).to_bytes(_CHECK_BYTES, "little")


def _chain(changes: tuple[_Change, ...]) -> bytes:
    """The bytes of changes, at least one."""
    return (
        bytes([len(changes)])
        + changes[0].check
        + b"".join(to_leb128(len(change.data)) + change.data for change in changes)
    )
