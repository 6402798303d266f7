"""Compressed payloads: exact, counted as they travel, and no larger than their header allows."""

from __future__ import annotations

import resource

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import assert_same_bits, spec_of
from tests.codecs.test_wire import with_checksum

from fedelta.codecs import entropy
from fedelta.codecs.base import Codec
from fedelta.codecs.cast import Cast
from fedelta.codecs.quantize import Integers
from fedelta.codecs.sparse import TopK
from fedelta.codecs.wire import decode, encode
from fedelta.errors import PayloadError
from fedelta.seeds import stream

SPEC = spec_of(a=(40, 50), b=(300,))
PARAMS = {name: 1e-3 * torch.randn(SPEC.tensors[name].shape, generator=stream(0, name)) for name in SPEC}


@pytest.mark.parametrize("codec", [Cast(), Cast(name="float16"), Cast(name="bfloat16"), Integers(name="int4"), TopK()])
def test_compression_loses_nothing_and_the_groups_add_up(codec: Codec):
    plain, _ = encode(PARAMS, SPEC, codec)
    short, groups = encode(PARAMS, SPEC, codec, compress=True)
    assert_same_bits(decode(short, SPEC, codec)[0], decode(plain, SPEC, codec)[0])
    assert decode(short, SPEC, codec)[1] == groups
    header = len(short) - sum(groups.values())
    assert 0 < header < 60
    assert len(short) <= len(plain)


def test_exponents_of_numbers_side_by_side_compress_better():
    content = Cast(name="bfloat16").pack("w", 1e-3 * torch.randn(20_000, generator=stream(1)))
    together, apart = entropy.compressed([content], 1), entropy.compressed([content], 2)
    assert together is not None
    assert apart is not None
    assert len(apart) < 0.98 * len(together) < 0.8 * len(content)
    assert bytes(entropy.restored(memoryview(apart), len(content), 2)) == bytes(content)


def test_what_would_be_longer_stays_as_it_is():
    noise = torch.randint(256, (1000,), generator=stream(0), dtype=torch.uint8).numpy().tobytes()
    assert entropy.compressed([noise], 1) is None
    assert b"+zstd" not in encode({"b": torch.zeros(300)}, spec_of(a=(1,), b=(300,)), TopK(k=1), compress=True)[0]


def forged(frame: bytes, lengths: bytes = b"\x88\x27") -> bytes:
    """A payload of 5,000 bytes (by default) for one tensor of 1,250 numbers in float32."""
    head = b"FDLT\x03" + spec_of(w=(1250,)).fingerprint + b"\x0cfloat32+zstd" + b"\x01" + lengths
    return with_checksum(head + frame)


def frame_of(content: bytes, **settings: bool) -> bytes:
    return zstandard.ZstdCompressor(**settings).compress(content)


def test_a_forgery_with_nothing_wrong_is_opened():
    assert not decode(forged(frame_of(bytes(5000))), spec_of(w=(1250,)), Cast())[0]["w"].any()


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (forged(frame_of(bytes(5001))), "announce 5001 bytes"),
        (forged(frame_of(bytes(2**28))), f"announce {2**28} bytes"),  # a bomb: 8 KiB for 256 MiB
        (forged(frame_of(bytes(5000), write_content_size=False)), "announce 18446744073709551615 bytes"),
        (forged(frame_of(bytes(5000)) + b"more"), "no compressed tensors"),
        (forged(frame_of(bytes(5000))[:-3]), "no compressed tensors"),
        (forged(b""), "no compressed tensors"),
        (forged(b"nothing like it"), "no compressed tensors"),
        (forged(frame_of(bytes(5000)), b"\xff\xff\xff\xff\x0f"), "`w`: the payload announces 4294967295 bytes, more"),
    ],
)  # fmt: skip
def test_a_frame_that_lies_is_refused_before_its_content_is_allocated(payload: bytes, problem: str):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PayloadError, match=problem):
        decode(payload, spec_of(w=(1250,)), Cast())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**14  # KiB


@given(data=st.binary(max_size=60))
def test_any_bytes_as_a_frame_are_refused_or_opened(data: bytes):
    for frame in (data, b"\x28\xb5\x2f\xfd" + data):
        with pytest.raises(PayloadError):
            decode(forged(frame), spec_of(w=(1250,)), Cast())
