"""The client's part of a round: opening, training, answering."""

from __future__ import annotations

import torch
from tests.builders import assert_close, assert_same_bits, deltas_of, jobs_for, start_of, tiny_data, tiny_engine

from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.engine.work import ClientSettings
from fedelta.federation.client import Site
from fedelta.federation.records import Reply
from fedelta.params import Params
from fedelta.strategies.base import RoundPlan
from fedelta.tuning.head import Head

SIZES = (5, 2, 9)


def site_of(codec: Cast | None = None, **client: object) -> tuple[Site, Params]:
    settings = ClientSettings(**({"batch_size": 4, "lr": 0.05} | client))
    engine, _ = tiny_engine(Head(), tiny_data(), lanes=2, client=settings)
    partition = {job.client_id: job.rows for job in jobs_for(SIZES, {})}
    return Site(
        engine, partition, Channel() if codec is None else Channel(down=codec, up=codec), seed=0, num_rounds=4
    ), start_of(engine)


def plan_of(site: Site, upload: tuple[str, ...] | None = None, round: int = 1) -> RoundPlan:
    names = site.engine.spec.names
    return RoundPlan(round, dict.fromkeys(range(3), names), dict.fromkeys(range(3), upload or names), 3)


def served(site: Site, plan: RoundPlan, payload: bytes) -> dict[int, Reply]:
    return {reply.client_id: reply for reply in site.run(plan, dict.fromkeys(range(3), payload))}


def test_a_reply_holds_the_delta_the_examples_and_the_loss():
    site, start = site_of()
    replies = served(site, plan_of(site), encode(start, site.engine.spec, Cast())[0])
    assert {client: reply.num_examples for client, reply in replies.items()} == dict(enumerate(SIZES))
    for reply in replies.values():
        assert reply.fault is None
        assert reply.metrics["train_loss"] > 0
        assert list(decode(reply.payload, site.engine.spec, Cast())[0]) == list(site.engine.spec)


def test_only_what_the_plan_asks_for_comes_up():
    site, start = site_of()
    replies = served(site, plan_of(site, upload=("classifier.bias",)), encode(start, site.engine.spec, Cast())[0])
    assert [list(decode(reply.payload, site.engine.spec, Cast())[0]) for reply in replies.values()] == [
        ["classifier.bias"]
    ] * 3


def test_the_anchor_is_the_decoded_value_when_the_download_is_rounded():
    # A client that does not move must send zeros. Had it kept the server's own value as its anchor, it would send
    # what the rounding to float16 took away.
    codec = Cast(name="float16")
    site, start = site_of(codec, lr=1e-30)
    payload, _ = encode(start, site.engine.spec, codec)
    assert any(not torch.equal(tensor, tensor.half().float()) for tensor in start.values())
    for reply in served(site, plan_of(site), payload).values():
        delta, _ = decode(reply.payload, site.engine.spec, codec)
        assert all(tensor.abs().max() == 0 for tensor in delta.values())


def test_batches_change_with_the_round_and_are_the_same_when_it_is_repeated():
    site, start = site_of()
    payload, _ = encode(start, site.engine.spec, Cast())
    round_one = served(site, plan_of(site, round=1), payload)
    repeated = served(site, plan_of(site, round=1), payload)
    round_two = served(site, plan_of(site, round=2), payload)
    assert [round_one[client].payload for client in range(3)] == [repeated[client].payload for client in range(3)]
    assert round_one[2].payload != round_two[2].payload


def test_a_client_does_the_same_alone_and_in_a_cohort():
    site, start = site_of()
    payload, _ = encode(start, site.engine.spec, Cast())
    together = served(site, plan_of(site), payload)
    for client_id in range(3):
        [alone] = site.run(plan_of(site), {client_id: payload})
        assert_close(
            decode(alone.payload, site.engine.spec, Cast())[0],
            decode(together[client_id].payload, site.engine.spec, Cast())[0],
            rtol=1e-4,
            atol=1e-6,
        )


def test_the_order_of_the_downloads_does_not_matter():
    site, start = site_of()
    payload, _ = encode(start, site.engine.spec, Cast())
    forward = served(site, plan_of(site), payload)
    backward = {reply.client_id: reply for reply in site.run(plan_of(site), dict.fromkeys((2, 0, 1), payload))}
    assert forward == backward


def test_clients_may_get_different_downloads():
    site, start = site_of()
    shifted = {name: tensor + 1 for name, tensor in start.items()}
    payloads = {0: encode(start, site.engine.spec, Cast())[0], 1: encode(shifted, site.engine.spec, Cast())[0]}
    replies = {reply.client_id: reply for reply in site.run(plan_of(site), payloads)}
    expected = deltas_of(site.engine, jobs_for(SIZES, shifted)[1:2])[1]
    # One epoch of two rows is one step whatever their order, so the seed of the batches does not matter.
    assert_close(decode(replies[1].payload, site.engine.spec, Cast())[0], expected, rtol=1e-4, atol=1e-6)


def test_a_download_that_cannot_be_opened_is_a_fault_of_that_client_alone():
    site, start = site_of()
    payload, _ = encode(start, site.engine.spec, Cast())
    replies = {reply.client_id: reply for reply in site.run(plan_of(site), {0: payload, 1: payload[:-1], 2: payload})}
    assert replies[1].fault is not None
    assert replies[1].fault.reason.startswith("the client cannot use its download: a payload of")
    assert replies[1].payload == b""
    assert (replies[0].fault, replies[2].fault) == (None, None)


def test_a_delta_that_is_not_finite_is_a_fault_with_its_tensor():
    site, start = site_of(lr=1e38, local_epochs=4)
    replies = served(site, plan_of(site), encode(start, site.engine.spec, Cast())[0])
    assert replies[0].payload == b""
    assert replies[0].fault is not None
    assert "holds values that are not finite in float32" in replies[0].fault.reason
    assert replies[0].fault.reason.startswith("`")


def test_the_schedule_of_the_run_is_the_clients():
    # A step schedule with a factor of 1/2 after round 1, one step without momentum: half the delta in round 2.
    schedule = {"name": "step", "after_rounds": [1], "factor_per_step": 0.5}
    site, start = site_of(schedule=schedule, optimizer={"name": "sgd", "momentum": 0.0}, batch_size=32)
    payload, _ = encode(start, site.engine.spec, Cast())
    deltas = [
        decode(served(site, plan_of(site, round=round), payload)[0].payload, site.engine.spec, Cast())[0]
        for round in (1, 2)
    ]
    assert_close({name: tensor / 2 for name, tensor in deltas[0].items()}, deltas[1], rtol=1e-3, atol=1e-7)


def test_equal_params_come_back_equal_from_the_wire():
    site, start = site_of()
    assert_same_bits(decode(encode(start, site.engine.spec, Cast())[0], site.engine.spec, Cast())[0], start)
