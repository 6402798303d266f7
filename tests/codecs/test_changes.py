"""Downloads as changes: every client, however long it was away, holds the bits that the server thinks it holds."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import spec_of

from fedelta.codecs.base import Codec
from fedelta.codecs.cast import Cast
from fedelta.codecs.changes import Mirror, Reader, first_download, whole_download
from fedelta.codecs.quantize import Integers
from fedelta.codecs.sparse import TopK
from fedelta.codecs.wire import decode, encode
from fedelta.errors import PayloadError
from fedelta.params import Params, ParamSpec, TensorSpec, select
from fedelta.seeds import stream

SPEC = spec_of(a=(40, 5), b=(70,), c=())
INT4 = Integers(name="int4")


def walked(round: int) -> Params:
    """x after some rounds."""
    steps = [
        {name: 0.1 * torch.randn(SPEC.tensors[name].shape, generator=stream(step, name)) for name in SPEC}
        for step in range(round)
    ]
    return {name: sum((step[name] for step in steps), torch.ones(SPEC.tensors[name].shape)) for name in SPEC}


def reread(mirror: Mirror) -> Mirror:
    """The mirror from a checkpoint."""
    tensors, facts = mirror.to_state()
    return Mirror.from_state(tensors, json.loads(json.dumps(facts)))


NAMES = st.sets(st.sampled_from(SPEC.names), min_size=1)
# Of a client in a round: what it gets, whether its reply counts, whether it has forgotten all that it had.
VISITS = st.dictionaries(
    st.integers(0, 3), st.tuples(NAMES, st.booleans(), st.sampled_from([True, False, False, False])), max_size=3
)


@settings(max_examples=60)
@given(
    codec=st.sampled_from([INT4, Integers(name="int4", rounding="stochastic"), Integers(), TopK(k=0.2)]),
    compress=st.booleans(),
    rounds=st.lists(st.tuples(VISITS, st.booleans()), min_size=3, max_size=9),
)
def test_clients_that_come_and_go_hold_the_servers_bits(codec: Codec, compress: bool, rounds: list):
    mirror, clients = Mirror(), {client_id: {} for client_id in range(4)}
    for number, (visits, resumes) in enumerate(rounds, start=1):
        values = walked(number)
        mirror = mirror.forgotten([client_id for client_id, (_, _, forgets) in visits.items() if forgets])
        travelling = {name for names, _, _ in visits.values() for name in names}
        mirror = mirror.advanced(number, select(values, [n for n in SPEC if n in travelling]), SPEC, codec, number)
        kept = {}
        for client_id, (asked, accepted, forgets) in visits.items():
            names = tuple(name for name in SPEC if name in asked)
            clients[client_id] = {} if forgets else clients[client_id]
            payload, groups = mirror.payload(
                select(values, names), mirror.since(client_id, names), SPEC, codec, compress=compress
            )
            received, found = decode(payload, SPEC, Reader(codec, clients[client_id]))
            assert groups == found
            assert list(received) == list(names)
            for name, tensor in received.items():
                assert torch.equal(tensor, mirror.tensors[name].value.float())
            if not compress:
                assert len(payload) <= len(whole_download(select(values, names), SPEC, codec, compress=False))
            if accepted:
                clients[client_id] = clients[client_id] | {name: tensor.half() for name, tensor in received.items()}
                kept[client_id] = names
        mirror = mirror.kept(kept)
        mirror = reread(mirror) if resumes else mirror


def test_what_a_download_leaves_out_comes_later():
    # x stays where it is: y comes closer by the codec's error in every round, down to the precision of float16.
    mirror, distances = Mirror(), []
    mirror = mirror.advanced(1, walked(0), SPEC, INT4, 0)
    for number in range(2, 8):
        mirror = mirror.advanced(number, walked(1), SPEC, INT4, 0)
        distances.append(float((mirror.tensors["a"].value.float() - walked(1)["a"]).norm()))
    assert distances[1] < 0.2 * distances[0]
    assert distances[-1] < 2.0**-11 * float(walked(1)["a"].norm())


def test_an_up_to_date_client_gets_a_change_and_a_new_one_the_whole_value():
    mirror = Mirror().advanced(1, walked(1), SPEC, INT4, 0).kept({0: SPEC.names})
    mirror = mirror.advanced(2, walked(2), SPEC, INT4, 0)
    values = walked(2)
    _, change = mirror.payload(values, mirror.since(0, SPEC.names), SPEC, INT4, compress=False)
    _, whole = mirror.payload(values, mirror.since(1, SPEC.names), SPEC, INT4, compress=False)
    # a: four groups; n, check, length, exponent, scales, integers; b: two groups. c: a change would be longer.
    assert change == {"a": 1 + 4 + 1 + (1 + 2 * 4 + 100), "b": 1 + 4 + 1 + (1 + 2 * 2 + 35), "c": 1 + 2}
    assert whole == {"a": 1 + 2 * 200, "b": 1 + 2 * 70, "c": 1 + 2}


def test_a_mirror_begins_with_a_value_that_travels_as_integers():
    mirror = Mirror().advanced(1, walked(1), SPEC, INT4, 0)
    payload, first = mirror.payload(walked(1), mirror.since(0, SPEC.names), SPEC, INT4, compress=False)
    # As above, with a byte for each integer; for c float16 is shorter.
    assert first == {"a": 1 + (1 + 2 * 4 + 200), "b": 1 + (1 + 2 * 2 + 70), "c": 1 + 2}
    for name, value in decode(payload, SPEC, Reader(INT4, {}))[0].items():
        assert torch.equal(value, mirror.tensors[name].value.float())
        # Half a step of 1/127 of the largest number, and of float16.
        assert (value - walked(1)[name]).abs().max() <= (0.5 / 127 + 2.0**-11) * walked(1)[name].abs().max()


def test_a_client_that_was_away_too_long_gets_the_whole_value_and_old_changes_are_dropped():
    mirror = Mirror().advanced(1, walked(1), SPEC, INT4, 0).kept({0: SPEC.names})
    # A change of a is 109 bytes and its length, the value 400: three changes are shorter, four are not.
    for number, known in ((2, 1), (3, 1), (4, 1), (5, 0)):
        mirror = mirror.advanced(number, walked(number), SPEC, INT4, 0)
        assert mirror.since(0, ["a"]) == (known,)
    assert [change.round for change in mirror.tensors["a"].changes] == [3, 4, 5]


def test_a_client_that_holds_something_else_refuses_a_change():
    mirror = Mirror().advanced(1, walked(1), SPEC, INT4, 0).kept({0: SPEC.names})
    first = mirror.tensors["a"].value
    mirror = mirror.advanced(2, walked(2), SPEC, INT4, 0)
    payload, _ = mirror.payload(select(walked(2), ["a"]), mirror.since(0, ["a"]), SPEC, INT4, compress=False)
    assert torch.equal(decode(payload, SPEC, Reader(INT4, {"a": first}))[0]["a"], mirror.tensors["a"].value.float())
    nudged = first.clone()
    nudged[3, 2] += 2.0**-10
    for held in ({}, {"a": nudged}, {"a": first[:39]}):
        with pytest.raises(PayloadError, match="`a`: the download changes a value that the client does not hold"):
            decode(payload, SPEC, Reader(INT4, held))


def test_running_statistics_travel_as_they_are():
    spec = ParamSpec({"w": TensorSpec((8,), "g"), "v": TensorSpec((2,), "g", trained=False)})
    values = {"w": torch.ones(8), "v": torch.tensor([1e30, 1 / 3])}
    mirror = Mirror().advanced(1, values, spec, INT4, 0)
    payload, _ = mirror.payload(values, mirror.since(0, spec.names), spec, INT4, compress=False)
    assert torch.equal(decode(payload, spec, Reader(INT4, {}))[0]["v"], values["v"])
    assert list(mirror.tensors) == ["w"]


def test_a_value_beyond_float16_is_refused_with_advice():
    with pytest.raises(PayloadError, match=r"`w`: a value is beyond float16") as caught:
        Mirror().advanced(1, {"w": torch.full((2,), 7e4)}, spec_of(w=(2,)), INT4, 0)
    assert caught.value.hint == "set `codec.changes = false`, or choose another `codec.down.name`."


@given(data=st.binary(max_size=60), is_chain=st.booleans())
def test_any_bytes_are_refused_or_give_a_tensor(data: bytes, is_chain: bool):
    held = torch.ones(9).half()
    chain = first_chain(held) if is_chain else b""
    try:
        value = Reader(Integers(), {"w": held}).unpack("w", memoryview(chain + data), (9,))
    except PayloadError:
        return
    assert value.shape == (9,)


def first_chain(held: torch.Tensor) -> bytes:
    """A byte that announces two changes, and the check of what the client holds."""
    spec = spec_of(w=(9,))
    mirror = Mirror().advanced(1, {"w": held.float()}, spec, Integers(), 0).kept({0: ("w",)})
    mirror = mirror.advanced(2, {"w": 2 * held.float()}, spec, Integers(), 0)
    return bytes([2]) + mirror.tensors["w"].changes[0].check


def test_a_payload_of_changes_is_none_of_values():
    values = walked(1)
    payload = first_download(values, SPEC, INT4, compress=False)
    with pytest.raises(PayloadError, match=r"written with codec 'int4\+changes', expected 'int4'"):
        decode(payload, SPEC, INT4)
    with pytest.raises(PayloadError, match=r"written with codec 'int4', expected 'int4\+changes'"):
        decode(encode(values, SPEC, INT4)[0], SPEC, Reader(INT4, {}))
    assert Reader(Cast(), {}).name == "float32+changes"
