"""The round loop against a runtime that misbehaves in every way a client can."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.builders import assert_same_bits, evaluated, spec_of
from torch import Tensor, tensor

from fedelta.aggregation.base import Aggregation, Running
from fedelta.aggregation.means import Clipped, Normalised, Uniform, Weighted
from fedelta.aggregation.robust import Median, Trimmed
from fedelta.codecs.base import Codec
from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError, RoundError
from fedelta.federation.records import Claim, Fault, Rejection, Reply, RoundOutcome
from fedelta.federation.rounds import Federation, Standing, federate
from fedelta.params import Params, ParamSpec
from fedelta.record.files import to_json
from fedelta.record.runlog import round_record
from fedelta.strategies.base import RoundPlan
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama
from fedelta.tasks.base import Measure

SPEC = spec_of(a=(), b=(2,))
START = {"a": tensor(1.0), "b": tensor([0.0, 0.0])}
DELTA = {"a": tensor(2.0), "b": tensor([4.0, -4.0])}
# 5 magic, 8 fingerprint, 1 + 7 codec name, 1 presence, 1 + 1 lengths, 4 + 8 numbers, 4 checksum
PAYLOAD_BYTES = 5 + 8 + 8 + 1 + 2 + 12 + 4


@dataclass(frozen=True)
class Unchecked:
    """Writes float32 without looking at the values."""

    name: str = "float32"
    feeds_back: bool = False

    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        return tensor.numpy().tobytes()

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


@dataclass
class Scripted:
    """A runtime that gives what `answer` gives, and remembers what it was sent."""

    answer: Callable[[RoundPlan], Sequence[Reply]]
    sent: list[Mapping[int, bytes]] = field(default_factory=list)
    accepted: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Sequence[Reply]:
        self.sent.append(payloads)
        return self.answer(plan)

    def accept(self, client_ids: Iterable[int]) -> None:
        self.accepted.append(tuple(client_ids))

    def snapshot(self, folder: Path, round: int) -> str:
        raise NotImplementedError

    def restore(self, folder: Path, mark: str) -> None:
        raise NotImplementedError


def reply(
    client_id: int,
    delta: Params | None = None,
    *,
    num_examples: int = 10,
    codec: Codec | None = None,
    loss: float = 1.0,
) -> Reply:
    payload, _ = encode(DELTA if delta is None else delta, SPEC, codec or Cast())
    return Reply(client_id, num_examples, payload, {"train_loss": loss})


def good(plan: RoundPlan) -> list[Reply]:
    return [reply(client_id) for client_id in plan.cohort]


def federation(
    answer: Callable[[RoundPlan], Sequence[Reply]] = good, *, codec: Codec | None = None, **other: object
) -> Federation:
    strategy = FedAvg(
        **({"clients_per_round": 3, "num_rounds": 1} | {k: v for k, v in other.items() if k in FedAvg.model_fields})
    )
    fields = {key: value for key, value in other.items() if key not in FedAvg.model_fields}
    return Federation(
        strategy=strategy,
        runtime=Scripted(answer),
        channel=Channel.model_construct(down=codec or Cast(), up=codec or Cast()),
        spec=SPEC,
        clients=Clients.of(range(3)),
        seed=0,
        evaluate=lambda params: evaluated(float(params["a"])),
        effective_steps=float,
        **fields,
    )


def outcomes(running: Federation, start: Params = START) -> list[RoundOutcome]:
    return list(federate(running, Standing(start, running.strategy.init(start, SPEC))))


def test_a_round_by_hand():
    # Examples 10, 30 and 60, a: 1 + (10 * 2 + 30 * 6 + 60 * 0) / 100 = 3, b: (10 * 4 + 60 * 5) / 100 = 3.4 at most
    def answer(plan: RoundPlan) -> list[Reply]:
        return [
            reply(0, {"a": tensor(2.0), "b": tensor([4.0, 0.0])}, num_examples=10, loss=1.0),
            reply(1, {"a": tensor(6.0), "b": tensor([0.0, 0.0])}, num_examples=30, loss=2.0),
            reply(2, {"a": tensor(0.0), "b": tensor([5.0, 10.0])}, num_examples=60, loss=0.5),
        ]

    [outcome] = outcomes(federation(answer))
    torch.testing.assert_close(outcome.params, {"a": tensor(3.0), "b": tensor([3.4, 6.0])})
    assert (outcome.round, outcome.cohort, outcome.num_examples, outcome.rejections) == (1, (0, 1, 2), 100, ())
    # (10 * 1 + 30 * 2 + 60 * 0.5) / 100 = 1
    assert outcome.train_loss == pytest.approx(1.0)
    assert outcome.evaluation.measures["accuracy"] == 3.0


def test_every_payload_is_a_transfer_down_before_up_by_client():
    [outcome] = outcomes(federation(lambda plan: good(plan)[::-1]))
    assert [(transfer.direction, transfer.client_id) for transfer in outcome.transfers] == [
        ("down", 0), ("down", 1), ("down", 2), ("up", 0), ("up", 1), ("up", 2),
    ]  # fmt: skip
    assert {transfer.payload_bytes for transfer in outcome.transfers} == {PAYLOAD_BYTES}
    assert all(transfer.tensor_bytes == {"a": 4, "b": 8} for transfer in outcome.transfers)
    assert {transfer.round for transfer in outcome.transfers} == {1}


def test_every_client_is_sent_the_server_params():
    running = federation()
    outcomes(running)
    [sent] = running.runtime.sent
    for client_id in range(3):
        assert_same_bits(decode(sent[client_id], SPEC, Cast())[0], START)


def other_spec() -> bytes:
    spec = spec_of(a=(), b=(3,))
    return encode({"a": tensor(0.0), "b": torch.zeros(3)}, spec, Cast())[0]


NAN = {"a": tensor(torch.nan), "b": tensor([torch.inf, 0.0])}
FAULTS = {
    "nan": (
        reply(1, NAN, codec=Unchecked()),
        "2 of 2 tensors do not fit: `a` holds 1 values that are NaN or infinite; `b` holds 1 values that are NaN",
    ),
    "a tensor too few": (reply(1, {"a": tensor(1.0)}), "1 of 2 tensors do not fit: lacks `b`"),
    "other shapes": (
        replace(reply(1), payload=other_spec()),
        "the payload is for other tensors: fingerprint ",
    ),
    "garbage": (
        Reply(1, 10, b"\x00\x01garbage", {"train_loss": 1.0}),
        "9 bytes are not a fedelta payload: they start ",
    ),
    "truncated": (
        replace(reply(1), payload=reply(1).payload[:-3]),
        f"a payload of {PAYLOAD_BYTES - 3} bytes is truncated or damaged",
    ),
    "another codec": (
        reply(1, codec=Cast(name="float16")),
        "the payload was written with codec 'float16', expected 'float32'",
    ),
    "nothing": (Reply(1, 10, b"", {"train_loss": 1.0}), "0 bytes are not a fedelta payload"),
    "fault": (Reply(1, 0, b"", fault=Fault("out of memory")), "out of memory"),
    "no examples": (reply(1, num_examples=0), "the client claims 0 examples, expected at least 1"),
    "fewer than no examples": (reply(1, num_examples=-5), "the client claims -5 examples, expected at least 1"),
    "no loss": (replace(reply(1), metrics={}), "the client's metric `train_loss` is nan, expected a finite number"),
    "infinite loss": (reply(1, loss=math.inf), "the client's metric `train_loss` is inf, expected a finite number"),
}


class Unreadable(dict[str, float]):
    """Fails when it is looked at, as a proxy of something far away may."""

    def __repr__(self) -> str:
        raise OSError("gone")

    def get(self, key: str, default: object = None) -> float:
        raise KeyError(key)


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


DEEP = deep()
BADLY_TYPED = {
    **{
        f"{value!r:.12} examples": ({"num_examples": value}, f"the client claims {value!r} examples, expected a whole")
        for value in ("10", None, True, 10.0, math.nan, -math.inf, [10])
    },
    "-3 examples": ({"num_examples": -3}, "the client claims -3 examples, expected at least 1"),
    "a googol to the fourth": ({"num_examples": 10**400}, "the client claims a number beyond 64 bits of examples"),
    "more digits than Python prints": ({"num_examples": 10**9999}, "the client claims a number beyond 64 bits of"),
    **{
        f"metrics {value!r:.12}": ({"metrics": value}, f"the client's metrics are {value!r}, expected numbers by name")
        for value in (None, "low", [("train_loss", 1.0)], 3)
    },
    **{
        f"a loss of {type(value).__name__} {value!s:.9}": (
            {"metrics": {"train_loss": value}}, "the client's metric `train_loss` is "
        )
        for value in ("1.0", None, True, {"train_loss": 1.0}, tensor(1.0), math.nan, -math.inf, 10**400, 1e39)
    },
    **{
        f"a payload of type {type(value).__name__}": (
            {"payload": value}, f"the client's payload is of type `{type(value).__name__}`, expected bytes"
        )
        for value in ("FDLT", None, 7, bytearray(reply(1).payload), memoryview(reply(1).payload), [b"FDLT"])
    },
    "a fault in words": ({"fault": "out of memory"}, "the client's fault is 'out of memory', expected a `Fault`"),
    "a fault of no kind": ({"fault": Fault("gone", "lost")}, "the client's fault is Fault(reason='gone'"),
    "a fault without words": ({"fault": Fault(None)}, "the client's fault is Fault(reason=None"),
    **{
        f"a time of {value!r}": ({"simulated_seconds": value}, f"the client's simulated time is {value!r} s, expected")
        for value in ("3", math.nan, math.inf, -1.0)
    },
    "metrics that nest too deep to be shown": ({"metrics": DEEP}, "the client's metrics are a value of type `list`"),
    "a loss that nests too deep": ({"metrics": {"train_loss": DEEP}}, "the client's metric `train_loss` is a value of"),
    "a loss of more digits than Python prints": (
        {"metrics": {"train_loss": 10**9999}}, "the client's metric `train_loss` is a value of type `int`"
    ),
    "examples that cannot be shown": ({"num_examples": Unreadable()}, "the client claims a value of type `Unreadable`"),
    "metrics that cannot be read": ({"metrics": Unreadable()}, "the client's reply cannot be read: KeyError"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "reason"), BADLY_TYPED.values(), ids=BADLY_TYPED)
def test_a_badly_typed_reply_is_the_rejection_of_its_client_and_not_the_end(fields: dict[str, Any], reason: str):
    bad = replace(reply(1), **fields)
    [outcome] = outcomes(federation(lambda plan: [bad, reply(0), reply(2)]))
    assert_same_bits(outcome.params, {"a": tensor(3.0), "b": tensor([4.0, -4.0])})
    assert (outcome.num_examples, outcome.train_loss, outcome.simulated_seconds) == (20, 1.0, None)
    [rejection] = outcome.rejections
    assert (rejection.client_id, rejection.cause) == (1, "refused")
    assert rejection.reason.startswith(reason)
    # What can be written to the records, whatever came.
    line = to_json(round_record(outcome, 0, Measure("loss_nats", "loss")))
    assert json.loads(line)["rejections"][0]["reason"] == rejection.reason
    sent = bad.payload if isinstance(bad.payload, bytes | bytearray | memoryview) else b""
    assert sum(
        entry.payload_bytes for entry in outcome.transfers if entry.client_id == 1 and entry.direction == "up"
    ) == (len(sent))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((replace(reply(1), client_id=key), f"the client id {key!r}") for key in ("1", None, True, 1.0, b"1", (1,))),
        (replace(reply(1), client_id=10**9999), "the client id a value of type `int`"),
        (replace(reply(1), client_id=2**63), f"the client id {2**63}"),
        (None, "<class 'NoneType'>"),
        ({"client_id": 1}, "<class 'dict'>"),
        (b"FDLT", "<class 'bytes'>"),
    ],
)
def test_values_that_are_no_reply_of_a_client_are_named_where_a_reply_is_missing(value: object, shown: str):
    [outcome] = outcomes(federation(lambda plan: [value, reply(0), reply(2)]))
    [rejection] = outcome.rejections
    assert (rejection.client_id, rejection.cause) == (1, "no reply")
    assert rejection.reason.startswith("no reply; received instead: ")
    assert shown in rejection.reason
    assert outcome.num_examples == 20


def test_whole_numbers_of_numpy_are_whole_numbers():
    with_numpy = replace(
        reply(1), client_id=np.int64(1), num_examples=np.int32(20), metrics={"train_loss": np.float32(1.0)}
    )
    [outcome] = outcomes(federation(lambda plan: [reply(0), with_numpy, reply(2)]))
    assert (outcome.num_examples, outcome.rejections) == (40, ())
    assert json.loads(to_json(outcome.claimed)) == {"0": 10, "1": 20, "2": 10}


def test_a_time_of_numpy_can_be_written():
    [outcome] = outcomes(federation(lambda plan: [replace(reply(1), simulated_seconds=np.int8(3)), reply(0), reply(2)]))
    assert json.loads(to_json(round_record(outcome, 0, Measure("loss_nats", "loss"))))["simulated_seconds"] == 3.0


def test_a_long_reason_is_cut():
    bad = Reply(1, 0, b"", fault=Fault("x" * 10**6))
    [outcome] = outcomes(federation(lambda plan: [reply(0), bad, reply(2)]))
    assert outcome.rejections[0].reason == "x" * 500


@pytest.mark.parametrize(("bad", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_reply_that_cannot_be_used_is_recorded_counted_and_left_out_of_the_mean(bad: Reply, reason: str):
    [outcome] = outcomes(federation(lambda plan: [reply(0), bad, reply(2)]))
    # Clients 0 and 2 both send the same delta, so the mean is that delta.
    assert_same_bits(outcome.params, {"a": tensor(3.0), "b": tensor([4.0, -4.0])})
    assert outcome.num_examples == 20
    assert outcome.train_loss == 1.0
    [rejection] = outcome.rejections
    assert rejection.client_id == 1
    assert rejection.reason.startswith(reason)
    up = {transfer.client_id: transfer for transfer in outcome.transfers if transfer.direction == "up"}
    assert sorted(up) == ([0, 1, 2] if bad.payload else [0, 2])
    if bad.payload:
        assert up[1].payload_bytes == len(bad.payload)


def test_a_client_that_does_not_answer_is_recorded():
    [outcome] = outcomes(federation(lambda plan: [reply(0), reply(2)]))
    assert outcome.rejections == (Rejection(1, "no reply", "no reply"),)
    assert outcome.params["a"].item() == 3.0


def test_a_reply_from_outside_of_the_cohort_is_refused_and_its_bytes_count():
    stranger = reply(7, {"a": tensor(1e6), "b": tensor([1e6, 1e6])}, loss=1e6)
    [outcome] = outcomes(federation(lambda plan: [*good(plan), stranger]))
    assert outcome.rejections == (Rejection(7, "a reply from a client outside of the cohort"),)
    assert outcome.params["a"].item() == 3.0
    assert outcome.train_loss == 1.0
    assert outcome.transfers[-1].client_id == 7
    assert outcome.transfers[-1].payload_bytes == PAYLOAD_BYTES


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_of_two_replies_under_one_client_id_neither_counts_and_the_bytes_of_both_do(place: int):
    second = reply(1, {"a": tensor(1e6), "b": tensor([1e6, 1e6])}, loss=1e6)

    def answer(plan: RoundPlan) -> list[Reply]:
        replies = good(plan)
        replies.insert(place, second)
        return replies

    running = federation(answer)
    [outcome] = outcomes(running)
    reason = "2 replies with this client id, expected 1; none of them is used"
    assert outcome.rejections == (Rejection(1, reason),)
    assert outcome.params["a"].item() == 3.0
    assert outcome.train_loss == 1.0
    assert outcome.num_examples == 20
    assert running.runtime.accepted == [(0, 2)]
    assert [transfer.client_id for transfer in outcome.transfers if transfer.direction == "up"] == [0, 1, 1, 2]


def test_the_order_of_replies_does_not_matter_where_float32_would():
    def answer(order: Sequence[int]) -> Callable[[RoundPlan], list[Reply]]:
        deltas = [1e8, 1.0, -1e8]
        return lambda plan: [reply(client, {"a": tensor(deltas[client]), "b": torch.zeros(2)}) for client in order]

    results = [
        outcomes(federation(answer(order)), {"a": tensor(0.0), "b": torch.zeros(2)})[0]
        for order in ((0, 1, 2), (2, 0, 1))
    ]
    assert_same_bits(results[0].params, results[1].params)
    assert results[0].params["a"].item() == tensor(1 / 3).item()
    assert results[0].transfers == results[1].transfers


def test_too_few_replies_end_the_run_with_their_reasons_and_a_hint():
    faults = [reply(0), Reply(1, 0, b"", fault=Fault("out of memory")), Reply(2, 0, b"", fault=Fault("disk full"))]
    with pytest.raises(RoundError) as caught:
        outcomes(federation(lambda plan: faults, min_replies=2))
    assert caught.value.message == (
        "round 1: 1 of 3 replies are usable, `strategy.min_replies` is 2."
        "\n  - client 1: out of memory\n  - client 2: disk full"
    )
    assert caught.value.hint is not None
    assert "lower `client.lr`" in caught.value.hint


def test_a_round_with_too_many_missing_replies_does_not_count_and_no_client_is_accepted():
    running = federation(lambda plan: [reply(0)], min_replies=2)
    [outcome] = outcomes(running)
    assert_same_bits(outcome.params, START)
    assert outcome.num_examples == 0
    assert [entry.cause for entry in outcome.rejections] == ["void round", "no reply", "no reply"]
    assert running.runtime.accepted == [()]


def test_clients_are_informed_that_their_replies_are_in_the_mean():
    running = federation(lambda plan: [reply(0), Reply(1, 0, b"", fault=Fault("out of memory")), reply(2)])
    outcomes(running)
    assert running.runtime.accepted == [(0, 2)]


def test_a_lost_reply_from_outside_of_the_cohort_excuses_no_missing_reply():
    strange = [Reply(client, 0, b"", fault=Fault("gone", "vanished")) for client in (7, 8, 9)]
    wrong = [Reply(client, 0, b"", fault=Fault("disk full")) for client in range(3)]
    with pytest.raises(RoundError, match="0 of 3 replies are usable"):
        outcomes(federation(lambda plan: [*strange, *wrong]))


@pytest.mark.parametrize("mean", [Median(), Trimmed(fraction=0.2)])
def test_a_round_with_fewer_replies_than_its_mean_needs_does_not_count(mean: Aggregation):
    # With two of three replies, the median cannot tell which one is bad.
    running = federation(lambda plan: [reply(0), reply(2)], mean=mean)
    [outcome] = outcomes(running)
    assert_same_bits(outcome.params, START)
    assert (outcome.num_examples, outcome.synced_fraction) == (0, 0)
    assert running.runtime.accepted == [()]
    wrong = [reply(0), Reply(1, 0, b"", fault=Fault("disk full")), reply(2)]
    with pytest.raises(RoundError, match=rf"2 of 3 replies are usable, the mean '{mean.name}' needs 3\."):
        outcomes(federation(lambda plan: wrong, mean=mean))


def test_a_bad_client_moves_a_trimmed_mean_nowhere_when_another_is_lost():
    # Four of five replies, of which the fraction 0.2 is less than one client.
    def answer(plan: RoundPlan) -> list[Reply]:
        bad = reply(3, {"a": tensor(1e6), "b": tensor([1e6, -1e6])})
        return [reply(0), reply(1), reply(2), bad]

    running = replace(federation(answer, clients_per_round=5, mean=Trimmed(fraction=0.2)), clients=Clients.of(range(5)))
    [outcome] = outcomes(running)
    assert_same_bits(outcome.params, {"a": tensor(3.0), "b": tensor([4.0, -4.0])})


def test_exactly_enough_replies_are_enough():
    [outcome] = outcomes(federation(lambda plan: [reply(0), reply(1)], min_replies=2))
    assert outcome.num_examples == 20


def test_a_server_that_overflows_ends_the_run():
    # 3e38 + 3e38 is above the largest float32, 3.4e38.
    big = {"a": tensor(3e38), "b": torch.zeros(2)}
    with pytest.raises(RoundError) as caught:
        outcomes(federation(lambda plan: [reply(0, big)]), big)
    assert caught.value.message == "round 1: 1 of 2 tensors of the server are no longer finite, first ['a']."
    assert caught.value.hint == "lower `client.lr` or `strategy.server_lr`."


def test_an_evaluation_loss_that_is_no_number_ends_the_run():
    broken = replace(federation(), evaluate=lambda params: evaluated(0.1, math.nan))
    with pytest.raises(RoundError) as caught:
        outcomes(broken)
    # In a trial of a search it is that of the validation set.
    assert caught.value.message == "round 1: the evaluation's `loss_nats` is nan."
    assert caught.value.hint == "lower `client.lr` or `strategy.server_lr`."


def test_the_byte_budget_ends_the_run_with_the_round_that_reaches_it():
    a_round = 6 * PAYLOAD_BYTES
    for budget, expected in ((2 * a_round, 2), (2 * a_round + 1, 3), (1, 1), (None, 5)):
        finished = outcomes(federation(num_rounds=5, byte_budget=budget))
        assert [outcome.round for outcome in finished] == list(range(1, expected + 1))
        assert finished[-1].evaluation is not None


def test_bytes_of_earlier_rounds_count_towards_the_budget():
    running = federation(num_rounds=5, byte_budget=12 * PAYLOAD_BYTES)
    assert [o.round for o in federate(running, Standing(START, {}, rounds_done=1, bytes_sent=6 * PAYLOAD_BYTES))] == [2]


def test_rounds_between_evaluations_have_no_accuracy_and_the_last_always_has():
    finished = outcomes(federation(num_rounds=5, evaluate_every=2))
    assert [outcome.evaluation is not None for outcome in finished] == [False, True, False, True, True]


def test_a_continued_run_gives_the_rounds_that_an_uninterrupted_one_has():
    running = federation(num_rounds=4, clients_per_round=2)
    uninterrupted = outcomes(running)
    continued = list(federate(running, Standing(uninterrupted[1].params, uninterrupted[1].state, rounds_done=2)))
    assert [outcome.round for outcome in continued] == [3, 4]
    assert [outcome.cohort for outcome in continued] == [outcome.cohort for outcome in uninterrupted[2:]]
    assert_same_bits(continued[-1].params, uninterrupted[-1].params)


def test_a_finished_run_has_no_more_rounds():
    assert list(federate(federation(num_rounds=3), Standing(START, {}, rounds_done=3))) == []


def test_the_params_given_are_not_changed():
    start = {name: value.clone() for name, value in START.items()}
    outcomes(federation(num_rounds=2), start)
    assert_same_bits(start, START)


def test_the_server_keeps_its_precision_when_downloads_are_rounded():
    # 1 + 2**-20 is 1 in float16. The client answers with a delta of 2; the server becomes 3 + 2**-20, not 3.
    start = {"a": tensor(1 + 2.0**-20), "b": torch.zeros(2)}
    codec = Cast(name="float16")
    running = federation(lambda plan: [reply(0, codec=codec)], codec=codec)
    [outcome] = outcomes(running, start)
    assert decode(running.runtime.sent[0][0], SPEC, codec)[0]["a"].item() == 1.0
    assert outcome.params["a"].item() == 3 + 2.0**-20


# One update at a time.


@dataclass(frozen=True)
class Counting:
    """Writes float32, and counts the decoded tensors that are still held by somebody."""

    alive: list[weakref.ref[Tensor]]
    most: list[int]
    name: str = "float32"
    feeds_back: bool = False

    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        return tensor.numpy().tobytes()

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        decoded = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
        self.alive.append(weakref.ref(decoded))
        self.most.append(sum(ref() is not None for ref in self.alive))
        return decoded


@pytest.mark.parametrize(
    ("mean", "least", "most"),
    [*((mean, 1, 4) for mean in (Weighted(), Uniform(), Clipped(), Normalised())), (Median(), 20, 20)],
)
def test_a_mean_that_needs_sums_holds_one_decoded_update_and_a_median_all(mean: Aggregation, least: int, most: int):
    # Two tensors an update; the last one may not be collected before the next is decoded.
    codec = Counting([], [])
    strategy = FedAvg(clients_per_round=10, num_rounds=1).model_copy(update={"mean": mean})
    running = replace(
        federation(lambda plan: [reply(client_id, codec=codec) for client_id in plan.cohort], codec=codec),
        strategy=strategy, clients=Clients.of(range(10)),
    )  # fmt: skip
    outcomes(running)
    assert least <= max(codec.most) <= most


def test_replies_wait_as_bytes_until_all_have_come_in_memory_or_in_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.federation.replies._WAITING_BYTES", PAYLOAD_BYTES + 1)
    codec = Counting([], [])
    num_decoded: list[int] = []

    def backwards(plan: RoundPlan) -> Iterator[Reply]:
        for client_id in (2, 1, 0):
            yield reply(client_id, {"a": tensor(float(client_id)), "b": torch.zeros(2)}, codec=codec)
            num_decoded.append(len(codec.alive))

    [outcome] = outcomes(federation(backwards, codec=codec))
    # Two tensors of each are decoded afterwards, and the mean of 0, 1 and 2 is added to 1.
    assert (num_decoded, len(codec.alive)) == ([0, 0, 0], 6)
    assert outcome.params["a"].item() == 2.0


def test_where_no_client_replies_twice_a_reply_counts_as_soon_as_it_is_its_turn():
    codec = Counting([], [])
    num_accepted: list[int] = []

    def unordered(plan: RoundPlan) -> Iterator[Reply]:
        for client_id in (1, 0, 3, 2):
            yield reply(client_id, {"a": tensor(float(client_id)), "b": torch.zeros(2)}, codec=codec)
            num_accepted.append(len(codec.alive) // 2)

    four = replace(
        federation(unordered, codec=codec, clients_per_round=4), clients=Clients.of(range(4)), replies_once=True
    )
    [outcome] = outcomes(four)
    assert num_accepted == [0, 2, 2, 4]
    assert outcome.params["a"].item() == 1 + (0 + 1 + 2 + 3) / 4
    # The same, bit by bit, where all replies wait.
    [waited] = outcomes(replace(four, replies_once=False))
    assert torch.equal(outcome.params["a"], waited.params["a"])
    assert outcome.transfers == waited.transfers


def test_a_reply_in_its_turn_goes_through_no_file_however_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.federation.replies._WAITING_BYTES", 0)
    monkeypatch.setattr("fedelta.federation.replies.TemporaryFile", nullcontext)  # None: every use of it would fail
    [outcome] = outcomes(replace(federation(good), replies_once=True))
    assert outcome.rejections == ()


@pytest.mark.parametrize("order", [(0, 0, 1, 2), (1, 1, 0, 2), (0, 1, 2, 1)])
def test_a_runtime_that_breaks_its_promise_of_one_reply_is_refused(order: tuple[int, ...]):
    twice = replace(federation(lambda plan: [reply(client_id) for client_id in order]), replies_once=True)
    with pytest.raises(RoundError, match=r"round 1: the runtime gave two replies of client \d, expected one at most"):
        outcomes(twice)


def test_what_a_client_claims_counts_up_to_a_limit_and_is_recorded():
    # 10 * 2 and 40 * 6 by 50, instead of nearly 6: client 1 claims a billion.
    def answer(plan: RoundPlan) -> list[Reply]:
        return [
            reply(0, {"a": tensor(2.0), "b": torch.zeros(2)}, num_examples=10),
            reply(1, {"a": tensor(6.0), "b": torch.zeros(2)}, num_examples=10**9),
        ]

    two_clients = replace(
        federation(answer, max_examples=40, clients_per_round=2, num_rounds=2), clients=Clients.of(range(2))
    )
    round_one, round_two = outcomes(two_clients)
    assert round_one.params["a"].item() == pytest.approx(1 + (10 * 2 + 40 * 6) / 50)
    assert round_one.num_examples == 50
    assert round_one.claims == (Claim(1, 10**9, None, 40),)
    # It claims the same again.
    assert round_two.claims == (Claim(1, 10**9, 10**9, 40),)


def test_a_number_of_examples_that_changes_between_rounds_is_recorded_also_after_a_resume():
    def answer(plan: RoundPlan) -> list[Reply]:
        return [reply(client_id, num_examples=10 + (client_id == 1) * plan.round) for client_id in plan.cohort]

    finished = outcomes(federation(answer, num_rounds=3))
    assert [outcome.claims for outcome in finished] == [(), (Claim(1, 12, 11, 12),), (Claim(1, 13, 12, 13),)]
    resumed = federate(federation(answer, num_rounds=3), Standing(START, {}, 2, claimed=finished[1].claimed))
    assert [outcome.claims for outcome in resumed] == [finished[2].claims]


def test_what_is_claimed_in_a_round_that_does_not_count_is_not_remembered():
    finished = outcomes(federation(lambda plan: [reply(0, num_examples=99)], min_replies=2))
    assert finished[0].claimed == {}


@dataclass(frozen=True)
class Hidden:
    """The weighted mean of updates that only their sum may be known of."""

    inner: Aggregation
    name: str = "hidden"
    reads: str = "sum"
    only_sums: bool = True
    min_values: int = 1

    @property
    def of_statistics(self) -> Hidden:
        return self

    def start(self, spec: ParamSpec) -> Running:
        return self.inner.start(spec)


def test_a_strategy_that_looks_at_each_update_is_refused_where_only_sums_may_be_known():
    windowed = FedLama(clients_per_round=3, num_rounds=1)
    assert replace(federation(), strategy=windowed).aggregation == windowed.mean
    with pytest.raises(ConfigError) as caught:
        replace(federation(), strategy=windowed.model_copy(update={"mean": Hidden(Weighted())}))
    [problem] = caught.value.problems
    assert problem.startswith(
        "`strategy.name` is 'fedlama', which reads the update of each client, but the aggregation"
    )
    assert problem.endswith("'hidden' gives only their sum")
    assert caught.value.hint is not None
    # FedAvg sees nothing but the sum.
    hidden = FedAvg(clients_per_round=3, num_rounds=1).model_copy(update={"mean": Hidden(Weighted())})
    assert outcomes(replace(federation(), strategy=hidden))[0].params["a"].item() == 3.0


@dataclass
class Forgetful:
    """A runtime whose client 1 has forgotten what it kept, until it was sent everything."""

    reached_again: bool = True
    plans: list[RoundPlan] = field(default_factory=list)
    sent: list[Mapping[int, bytes]] = field(default_factory=list)
    accepted: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        self.plans.append(plan)
        self.sent.append(payloads)
        for client_id in payloads:
            if client_id != 1 or (len(self.sent) == 2 and self.reached_again):
                yield reply(client_id, {"a": tensor(1.0)})
            elif len(self.sent) == 1:
                yield Reply(1, 0, b"", fault=Fault("nothing is there", "forgot"))
            else:
                yield Reply(1, 0, b"", fault=Fault("its site is gone", "away", reached=False))

    def accept(self, client_ids: Iterable[int]) -> None:
        self.accepted.append(tuple(client_ids))

    def snapshot(self, folder: Path, round: int) -> str:
        raise NotImplementedError

    def restore(self, folder: Path, mark: str) -> None:
        raise NotImplementedError


class OnlyA(FedAvg):
    """FedAvg in whose rounds only `a` travels."""

    def plan(self, *arguments: Any) -> RoundPlan:
        return RoundPlan(1, dict.fromkeys(range(3), ("a",)), dict.fromkeys(range(3), ("a",)), num_clients=3)


def forgetful(reached_again: bool) -> tuple[Forgetful, RoundOutcome]:
    runtime = Forgetful(reached_again)
    running = replace(federation(), runtime=runtime, strategy=OnlyA(clients_per_round=3, num_rounds=1))
    [outcome] = outcomes(running)
    return runtime, outcome


def test_a_client_that_forgot_what_it_kept_gets_everything_and_is_asked_once_more_in_the_same_round():
    runtime, outcome = forgetful(reached_again=True)
    assert runtime.accepted == [(0, 1, 2)]
    assert list(runtime.sent[1]) == [1]
    assert runtime.plans[1].download == {0: ("a",), 1: ("a", "b"), 2: ("a",)}
    assert (runtime.plans[1].upload, runtime.plans[1].cohort) == (runtime.plans[0].upload, (0, 1, 2))
    lengths = [len(runtime.sent[0][0]), len(runtime.sent[0][1]), len(runtime.sent[1][1]), len(runtime.sent[0][2])]
    assert [t.payload_bytes for t in outcome.transfers if t.direction == "down"] == lengths
    assert outcome.rejections == ()


def test_a_client_that_is_lost_when_it_is_asked_again_has_had_its_first_download():
    runtime, outcome = forgetful(reached_again=False)
    assert runtime.accepted == [(0, 2)]
    assert [t.client_id for t in outcome.transfers if t.direction == "down"] == [0, 1, 2]
    assert outcome.rejections == (Rejection(1, "its site is gone", "away"),)


def test_a_server_that_cannot_measure_leaves_the_measures_out():
    assert [outcome.evaluation for outcome in outcomes(replace(federation(num_rounds=2), evaluate=None))] == [None] * 2
