"""Uploads in every codec whose bytes are changed and sealed again: a round counts without them, or with numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.windowed import SPEC, START, Walking, running
from xxhash import xxh3_64_intdigest

from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import to_leb128
from fedelta.engine.work import ClientSettings
from fedelta.federation.base import Standing
from fedelta.federation.client import Site
from fedelta.federation.records import Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import is_finite
from fedelta.strategies.base import RoundPlan
from fedelta.strategies.fedavg import FedAvg

CODECS = ["float32", "float16", "bfloat16", "int8", "int4", "sign", "top-k", "random-k"]
CHANNELS = [Channel(name=name, entropy=entropy) for name in CODECS for entropy in ("none", "zstd")]
HEADER = 4 + 1 + 8  # "FDLT", version, fingerprint


@dataclass
class Tampering:
    """Changes what client 1 has sent, and gives it a checksum that fits."""

    site: Site
    change: Callable[[bytes], bytes]

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> list[Reply]:
        assert isinstance(self.site.engine, Walking)
        self.site.engine.round = plan.round
        return [self._changed(reply) if reply.client_id == 1 else reply for reply in self.site.run(plan, payloads)]

    def _changed(self, reply: Reply) -> Reply:
        content = self.change(reply.payload[:-4])
        return replace(reply, payload=content + (xxh3_64_intdigest(content) % 2**32).to_bytes(4, "little"))

    def accept(self, client_ids: Iterable[int]) -> None:
        self.site.accept(client_ids)


def after_a_round(channel: Channel, change: Callable[[bytes], bytes]) -> RoundOutcome:
    engine = Walking(lambda round, client_id: {name: value + 0.5 for name, value in START.items()}, ClientSettings())
    site = Site(engine, {0: torch.arange(3), 1: torch.arange(3, 6)}, channel, seed=0, num_rounds=1)
    strategy = FedAvg(clients_per_round=2, num_rounds=1)
    [outcome] = federate(running(strategy, Tampering(site, change), site), Standing(START, strategy.init(START, SPEC)))
    return outcome


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: f"{channel.up.name}-{channel.entropy}")
@settings(max_examples=30)
@given(start=st.integers(HEADER, 80), data=st.binary(min_size=1, max_size=12), length=st.integers(0, 12))
def test_a_payload_with_other_bytes_is_refused_or_holds_numbers(channel: Channel, start: int, data: bytes, length: int):
    outcome = after_a_round(channel, lambda payload: payload[:start] + data + payload[start + length :])
    assert {rejection.client_id for rejection in outcome.rejections} <= {1}
    assert all(map(is_finite, outcome.params.values()))


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: f"{channel.up.name}-{channel.entropy}")
def test_lengths_that_lie_are_refused_and_the_round_counts(channel: Channel):
    # Behind the codec's name and one byte of presence are the lengths; the first is now 2^50.
    def change(payload: bytes) -> bytes:
        place = HEADER + 1 + payload[HEADER] + 1
        return payload[:place] + to_leb128(2**50) + payload[place + 1 :]

    outcome = after_a_round(channel, change)
    assert [(rejection.client_id, rejection.cause) for rejection in outcome.rejections] == [(1, "refused")]
    honest = after_a_round(channel, lambda payload: payload)
    assert not honest.rejections
