"""A client that sends a forged payload: it is refused, costs no memory, and changes nothing for the others."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import assert_same_bits
from tests.codecs.test_wire import with_checksum
from tests.strategies.windowed import SPEC, START, Recording, Walking, running

from fedelta.aggregation.means import Uniform
from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import encode, to_leb128
from fedelta.engine.work import ClientSettings
from fedelta.federation.base import Standing
from fedelta.federation.client import Site
from fedelta.federation.records import Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import Params, is_finite
from fedelta.strategies.base import RoundPlan
from fedelta.strategies.fedavg import FedAvg

CODECS: tuple[dict[str, object], ...] = (
    {"name": "float32"}, {"name": "float16"}, {"name": "bfloat16"}, {"name": "int8"}, {"name": "int4", "group": "row"},
    {"name": "sign"}, {"name": "top-k", "k": 1}, {"name": "random-k", "k": 1},
)  # fmt: skip
HOSTILE = 1  # the client
_FINGERPRINT = 5  # its place in a payload


@dataclass
class Forging(Recording):
    """Replaces the payload of one client."""

    forge: Callable[[bytes], bytes] = bytes

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> list[Reply]:
        replies = super().run(plan, payloads)
        return [
            replace(reply, payload=self.forge(reply.payload)) if reply.client_id == HOSTILE else reply
            for reply in replies
        ]


def moved(round: int, client_id: int) -> Params:
    return {name: torch.full(value.shape, 1.0 + client_id) for name, value in START.items()}


def outcome_of(channel: Channel, *, unheard: bool = False, forge: Callable[[bytes], bytes] = bytes) -> RoundOutcome:
    """The first round of three clients."""
    strategy = FedAvg(clients_per_round=3, num_rounds=1, mean=Uniform())
    engine = Walking(moved, ClientSettings(local_steps=1))
    partition = {client_id: torch.arange(client_id, client_id + 1) for client_id in range(3)}
    site = Site(engine, partition, channel, seed=0, num_rounds=1)
    runtime = Forging(site, unheard=lambda _, client_id: unheard and client_id == HOSTILE, forge=forge)
    return next(federate(running(strategy, runtime, site), Standing(START, {})))


def forgeries(channel: Channel) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """What may come instead of the payload, each with a right checksum but for the first ones."""
    kind = channel.up.name.encode()
    start = _FINGERPRINT + 8
    header = b"FDLT\x03" + SPEC.fingerprint
    huge = to_leb128(2**62) * len(SPEC)
    # A frame of Zstandard that announces 10 GiB, and holds an empty block.
    frame = bytes.fromhex("28b52ffd e0") + (10 * 2**30).to_bytes(8, "little") + b"\x01\x00\x00"
    compressed = header + bytes([len(kind) + 5]) + kind + b"+zstd" + b"\x07"
    other = Cast(name="float16" if kind != b"float16" else "bfloat16")
    yield "nothing", lambda _: b""
    yield "cut", lambda payload: payload[:-1]
    yield "no payload", lambda _: b"PK\x03\x04" + bytes(60)
    yield "shorter", lambda payload: with_checksum(payload[:-5])
    yield "longer", lambda payload: with_checksum(payload[:-4] + b"\x00")
    yield "other tensors", lambda payload: with_checksum(payload[:_FINGERPRINT] + bytes(8) + payload[start:-4])
    yield "other codec", lambda _: encode(START, SPEC, other)[0]
    yield "changes", lambda _: with_checksum(header + bytes([len(kind) + 8]) + kind + b"+changes" + b"\x00")
    yield "fewer tensors", lambda _: with_checksum(header + bytes([len(kind)]) + kind + b"\x00")
    yield "more tensors", lambda _: with_checksum(header + bytes([len(kind)]) + kind + b"\xff" + bytes(8))
    yield "huge lengths", lambda _: with_checksum(header + bytes([len(kind)]) + kind + b"\x07" + huge)
    yield "huge lengths, compressed", lambda _: with_checksum(compressed + huge + frame)
    yield "a huge frame", lambda _: with_checksum(compressed + b"\x08" * len(SPEC) + frame)
    # NaN as a number or as a scale, or places that are none.
    yield "all ones", lambda payload: with_checksum(_with_body(payload, kind, b"\xff"))


def _with_body(payload: bytes, kind: bytes, byte: bytes) -> bytes:
    """A payload whose tensors have one byte only, without its checksum."""
    start = _FINGERPRINT + 8 + 1 + len(kind) + 1 + len(SPEC)  # each length of a tensor here is a byte
    return payload[:start] + byte * (len(payload) - 4 - start)


CASES = [
    pytest.param(
        Channel(up=codec, entropy="zstd" if compresses else "none"), id=f"{codec['name']}{'+zstd' * compresses}"
    )
    for codec in CODECS
    for compresses in (False, True)
]


@pytest.mark.parametrize("channel", CASES)
def test_a_forged_reply_is_as_good_as_none(channel: Channel):
    without = outcome_of(channel, unheard=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, forge in forgeries(channel):
        outcome = outcome_of(channel, forge=forge)
        [rejection] = outcome.rejections
        assert (rejection.client_id, rejection.cause) == (HOSTILE, "refused"), name
        assert rejection.reason, name
        assert_same_bits(outcome.params, without.params)
    # Nothing is allocated on the word of a payload; in KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**14


@pytest.mark.parametrize("channel", CASES)
@settings(max_examples=30)
@given(start=st.integers(_FINGERPRINT + 8, 80), data=st.binary(min_size=1, max_size=12), length=st.integers(0, 12))
def test_a_reply_with_other_bytes_is_refused_or_holds_numbers(channel: Channel, start: int, data: bytes, length: int):
    outcome = outcome_of(
        channel, forge=lambda payload: with_checksum(payload[:start] + data + payload[start + length : -4])
    )
    assert {rejection.client_id for rejection in outcome.rejections} <= {HOSTILE}
    assert all(map(is_finite, outcome.params.values()))
