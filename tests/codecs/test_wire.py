"""Payloads: their size by hand, and that nothing but an intact one of the right kind is opened."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import assert_same_bits, spec_of
from xxhash import xxh3_64_intdigest

from fedelta.codecs.base import Codec
from fedelta.codecs.cast import Cast
from fedelta.codecs.quantize import Integers
from fedelta.codecs.wire import Decoder, decode, encode
from fedelta.errors import PayloadError
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.seeds import stream

SPEC = ParamSpec(
    {
        "a.weight": TensorSpec((3, 2), "a"),
        "a.bias": TensorSpec((3,), "a"),
        "b.weight": TensorSpec((5, 8), "b"),
    }
)
FIXED = 5 + 8 + 4  # magic and version, fingerprint, checksum
REFUSED = r"not a fedelta payload|version \d+ of the format|truncated or damaged"


def draw(spec: ParamSpec, seed: int = 0) -> Params:
    generator = stream(seed, "numbers")
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in spec.tensors.items()}


def with_checksum(message: bytes) -> bytes:
    return message + (xxh3_64_intdigest(message) % 2**32).to_bytes(4, "little")


def forged(**parts: bytes) -> bytes:
    """A payload of one tensor (2,) in float32, some parts of it replaced; its checksum is right."""
    spec = spec_of(w=(2,))
    layout = {
        "magic": b"FDLT\x03",
        "fingerprint": spec.fingerprint,
        "codec": b"\x07float32",
        "presence": b"\x01",
        "lengths": b"\x08",
        "body": bytes(8),
    }
    return with_checksum(b"".join((layout | parts).values()))


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_a_round_trip_gives_the_cast_of_every_tensor(name: str):
    codec, params = Cast(name=name), draw(SPEC)
    back, _ = decode(encode(params, SPEC, codec)[0], SPEC, codec)
    assert_same_bits(back, {key: value.to(codec.dtype).float() for key, value in params.items()})


def test_encoding_twice_gives_the_same_bytes_and_a_second_trip_changes_nothing():
    codec = Cast(name="float16")
    once, _ = encode(draw(SPEC), SPEC, codec)
    assert encode(draw(SPEC), SPEC, codec)[0] == once
    assert encode(decode(once, SPEC, codec)[0], SPEC, codec)[0] == once


@given(data=st.data())
def test_any_part_of_any_specification_comes_back_in_the_order_of_the_specification(data: st.DataObject):
    shapes = data.draw(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=20))
    spec = spec_of(**{f"t{index}": tuple(shape) for index, shape in enumerate(shapes)})
    chosen = data.draw(st.permutations(spec.names))[: data.draw(st.integers(0, len(spec)))]
    params = {name: tensor for name, tensor in draw(spec).items() if name in chosen}
    back, _ = decode(encode({name: params[name] for name in chosen}, spec, Cast())[0], spec, Cast())
    assert_same_bits(back, params)


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_the_length_of_a_payload_by_hand(name: str, size: int):
    # Tensors of 6, 3 and 40 numbers. Header: codec name with its length, presence of 3 tensors in 1 byte, then
    # lengths in LEB128: up to 127 bytes take one byte; 40 numbers in float32 are 160 bytes and take two.
    length_bytes = 1 + 1 + (2 if size == 4 else 1)
    header = 1 + len(name) + 1 + length_bytes
    payload, groups = encode(draw(SPEC), SPEC, Cast(name=name))
    assert len(payload) == FIXED + header + (6 + 3 + 40) * size
    assert groups == {"a": 9 * size, "b": 40 * size}


@pytest.mark.parametrize("codec", [Cast(), Cast(name="float16"), Integers()])
def test_a_decoder_of_many_payloads_reads_each_as_if_it_were_the_only_one(codec: Codec):
    spec = spec_of(a=(2, 3), b=(), c=(4,))
    drawn = [
        {tensor: torch.randn(spec.tensors[tensor].shape, generator=stream(number, tensor)) for tensor in names}
        for number, names in enumerate(("abc", "abc", "ac", "b", "abc"))
    ]
    payloads = [encode(params, spec, codec)[0] for params in drawn]
    decoder = Decoder(spec, codec)
    for payload in payloads:
        decoded, (params, groups) = decoder.decode(payload), decode(payload, spec, codec)
        assert_same_bits(decoded.params, params)
        assert decoded.groups == groups
        assert decoded.flat is not None
        assert torch.equal(decoded.flat, torch.cat([tensor.reshape(-1) for tensor in params.values()]))
        with pytest.raises(PayloadError, match="its checksum is wrong"):
            decoder.decode(payload[:-5] + bytes([payload[-5] ^ 1]) + payload[-4:])


def test_an_empty_payload_is_a_header_alone():
    payload, groups = encode({}, SPEC, Cast())
    assert len(payload) == FIXED + 8 + 1
    assert groups == {}
    assert decode(payload, SPEC, Cast()) == ({}, {})


@pytest.mark.parametrize(("count", "presence_bytes"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_presence_takes_one_bit_a_tensor(count: int, presence_bytes: int):
    spec = spec_of(**{f"t{index}": () for index in range(count)})
    payload, _ = encode(draw(spec), spec, Cast())
    assert len(payload) == FIXED + 8 + presence_bytes + count * (1 + 4)


@pytest.mark.parametrize(("numbers", "length_bytes"), [(31, 1), (32, 2), (4095, 2), (4096, 3)])
def test_a_length_takes_seven_bits_a_byte(numbers: int, length_bytes: int):
    # 31 * 4 = 124 < 2**7 <= 32 * 4; 4095 * 4 = 16380 < 2**14 = 16384 = 4096 * 4
    spec = spec_of(w=(numbers,))
    payload, _ = encode(draw(spec), spec, Cast())
    assert len(payload) == FIXED + 8 + 1 + length_bytes + 4 * numbers
    assert torch.equal(decode(payload, spec, Cast())[0]["w"], draw(spec)["w"])


def test_the_layout_of_a_payload_is_the_documented_one():
    # Written out, because another version of this package must read it.
    spec = spec_of(a=(1,), w=(2,))
    payload, _ = encode({"w": torch.tensor([1.0, -2.0])}, spec, Cast())
    message = b"FDLT\x03" + spec.fingerprint + b"\x07float32" + b"\x02" + b"\x08" + bytes.fromhex("0000803f000000c0")
    assert payload == with_checksum(message)


def test_a_forged_payload_with_nothing_replaced_is_opened():
    assert decode(forged(), spec_of(w=(2,)), Cast())[0]["w"].tolist() == [0.0, 0.0]


def test_a_value_the_codec_cannot_hold_is_refused_with_the_name_of_its_tensor():
    params = draw(SPEC)
    params["b.weight"][0, 0] = 1e5
    with pytest.raises(
        PayloadError, match=r"^`b.weight`: a tensor holds values that are not finite in float16"
    ) as caught:
        encode(params, SPEC, Cast(name="float16"))
    assert caught.value.hint is not None


def test_a_payload_cut_at_any_position_is_refused():
    payload, _ = encode(draw(SPEC), SPEC, Cast())
    for end in range(len(payload)):
        with pytest.raises(PayloadError, match=REFUSED):
            decode(payload[:end], SPEC, Cast())


def test_a_payload_with_any_byte_altered_is_refused():
    payload, _ = encode(draw(SPEC), SPEC, Cast())
    for position in range(len(payload)):
        altered = bytearray(payload)
        altered[position] ^= 0x40
        with pytest.raises(PayloadError, match=REFUSED):
            decode(bytes(altered), SPEC, Cast())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes):
    with pytest.raises(PayloadError, match=REFUSED):
        decode(data, SPEC, Cast())


@given(st.binary(max_size=60))
def test_arbitrary_bytes_behind_a_valid_header_are_refused_or_opened_but_never_crash(data: bytes):
    spec = spec_of(w=(2,), v=(1,))
    payload = with_checksum(b"FDLT\x03" + spec.fingerprint + b"\x07float32" + data)
    try:
        params, groups = decode(payload, spec, Cast())
    except PayloadError:
        return
    assert {name: tuple(value.shape) for name, value in params.items()}.items() <= {"w": (2,), "v": (1,)}.items()
    assert sum(groups.values()) == 4 * sum(value.numel() for value in params.values())


def test_bytes_that_are_no_payload_are_shown():
    with pytest.raises(
        PayloadError, match=r"^4 bytes are not a fedelta payload: they start with b'PK\\x03\\x04', expected"
    ):
        decode(b"PK\x03\x04", SPEC, Cast())


def test_another_version_is_refused():
    with pytest.raises(PayloadError, match=r"^the payload is written in version 1 of the format, expected version 3\."):
        decode(forged(magic=b"FDLT\x01"), spec_of(w=(2,)), Cast())


def test_a_payload_of_another_model_is_refused_with_both_fingerprints():
    other_spec = spec_of(w=(3,))
    with pytest.raises(PayloadError) as caught:
        decode(forged(), other_spec, Cast())
    fingerprint = spec_of(w=(2,)).fingerprint.hex()
    assert (
        caught.value.message
        == f"the payload is for other tensors: fingerprint {fingerprint}, expected {other_spec.fingerprint.hex()}."
    )
    assert caught.value.hint == "compare sections [model] and [tuning] of the server and the client."


def test_a_payload_of_another_codec_is_refused():
    payload, _ = encode(draw(SPEC), SPEC, Cast(name="float16"))
    with pytest.raises(PayloadError, match="written with codec 'float16', expected 'bfloat16'"):
        decode(payload, SPEC, Cast(name="bfloat16"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"presence": b"\x03"}, "marks more tensors as present than the 1 of the specification"),
        ({"body": bytes(9)}, "holds 9 bytes of tensors, expected 8"),
        ({"body": bytes(7)}, "holds 7 bytes of tensors, expected 8"),
        ({"lengths": b"\x09", "body": bytes(9)}, r"9 bytes for a tensor \(2,\) in float32, expected 8"),
        ({"presence": b"\x00", "lengths": b""}, "holds 8 bytes of tensors, expected 0"),
        ({"lengths": b"\x80" * 9, "body": b""}, "a length of more than 63 bits"),
        ({"lengths": b"\x80" * 4, "body": b""}, "ends within a length"),
        ({"lengths": b"\xff" * 8 + b"\x7f"}, "holds 8 bytes of tensors, expected 9223372036854775807"),
        ({"codec": b"\xff"}, "too early"),
        ({"codec": b"\x02\xff\xfe"}, "written with codec '��', expected 'float32'"),
    ],
)
def test_a_forgery_with_a_right_checksum_is_refused(parts: dict[str, bytes], message: str):
    with pytest.raises(PayloadError, match=message):
        decode(forged(**parts), spec_of(w=(2,)), Cast())
