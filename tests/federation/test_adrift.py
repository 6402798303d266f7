"""What stays with clients between two rounds of a window: where it goes on, and when it is dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from tests.builders import (
    adrift,
    assert_close,
    assert_same_bits,
    deltas_of,
    jobs_for,
    tiny_data,
    tiny_engine,
    weighted_mean,
)
from tests.strategies.windowed import SPEC, START, Recording, running, training, walking
from torch import Tensor, tensor

from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.data.augmentation import Augmentation
from fedelta.data.batches import Examples
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.federation.client import Site
from fedelta.federation.records import Fault, Reply
from fedelta.federation.rounds import Standing, federate
from fedelta.modalities.base import Inputs
from fedelta.params import Params, ParamSpec, add, select
from fedelta.strategies import windows
from fedelta.strategies.base import RoundPlan, State
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora

HEAD = ("classifier.weight", "classifier.bias")
# One batch is all that a client has: what it does in a step does not depend on the order of its batches.
SIZES = (4, 4, 4)
LORA = "vit.layers.0.attention.q_proj.lora_A"


def often_and_seldom(spec: ParamSpec, often: int, seldom: int) -> State:
    """The head has the first interval, every other group the second."""
    intervals = [often if group == "classifier" else seldom for group in spec.sizes]
    return windows.start(spec) | {"interval_rounds": tensor(intervals)}


def lora_of(params: Params) -> Params:
    return {name: value for name, value in params.items() if name not in HEAD}


def local_of(kept: Params) -> Params:
    return {name.removeprefix("local/"): value for name, value in kept.items() if name.startswith("local/")}


def anchor_of(kept: Params) -> Params:
    return {name.removeprefix("anchor/"): value for name, value in kept.items() if name.startswith("anchor/")}


def one_step(values: Params, client_id: int) -> Params:
    """How far the client moves in one step from `values`, in an engine that knows nothing of windows."""
    client = ClientSettings(local_steps=1, batch_size=4, optimizer=Sgd(momentum=0.0))
    engine, _ = tiny_engine(Lora(r=2), tiny_data(num_rows=sum(SIZES)), client=client)
    return deltas_of(engine, [jobs_for(SIZES, values)[client_id]])[client_id]


def of_steps(phi: int, num_rounds: int) -> FedLama:
    return FedLama(phi=phi, num_rounds=num_rounds, clients_per_round=3, tau=1)


# Going on.


def test_a_tensor_that_did_not_travel_goes_on_from_where_its_client_left_it():
    # Two rounds of one step. The head is averaged after both, LoRA's tensors only after the second: client i takes its
    # second step from the server's head and its own tensors, and sends what both steps have done to these.
    strategy = of_steps(phi=2, num_rounds=2)
    federation, start, runtime = training(strategy, sizes=SIZES)
    first_steps, second_steps = [], []
    rounds = federate(federation, Standing(start, often_and_seldom(federation.spec, 1, 2)))
    round_one = next(rounds)
    for client_id in range(3):
        first_steps.append(one_step(start, client_id))
        moved = lora_of(add(start, first_steps[-1]))
        kept = adrift(runtime.site)[client_id]
        assert_close(local_of(kept), moved, rtol=1e-4, atol=1e-6)
        assert_same_bits(anchor_of(kept), lora_of(start))
        held = {name: moved.get(name, round_one.params[name]) for name in start}
        second_steps.append(one_step(held, client_id))
    round_two = next(rounds)
    heads = add(round_one.params, weighted_mean((1, select(step, HEAD)) for step in second_steps))
    loras = add(
        start, weighted_mean((1, lora_of(step)) for step in (*first_steps, *second_steps)), scale=2
    )  # 6 steps, 3 clients
    assert_close(round_two.params, {n: heads[n] if n in HEAD else loras[n] for n in start}, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("phi", [2, 3])
def test_one_client_that_sends_a_part_in_each_round_is_one_that_trains_on_undisturbed(phi: int):
    # Its own mean comes down as it went up, but for the rounding of anchor + delta.
    strategy = FedLama(phi=phi, num_rounds=2 * phi, clients_per_round=1, tau=2)
    federation, start, runtime = training(strategy, sizes=(10,))
    parts = list(federate(federation, Standing(start, often_and_seldom(federation.spec, 1, phi))))
    assert set(runtime.plans[0].upload[0]) == set(HEAD)
    plain = FedAvg(num_rounds=2, clients_per_round=1)
    federation, start, _ = training(plain, sizes=(10,), local_steps=2 * phi)
    undivided = list(federate(federation, Standing(start, {})))
    for window in (1, 2):
        assert_close(parts[window * phi - 1].params, undivided[window - 1].params, rtol=1e-4, atol=1e-6)


def test_crops_and_flips_go_on_with_the_batches():
    # All groups travel every third time, as in test_windows.py, with epochs that end in the middle of a round.
    augmentation = Augmentation(crop_padding=2, flip=True)
    strategy = FedLamaAuto(phi=3, share=1 / 3, num_rounds=6, clients_per_round=3, tau=2)
    federation, start, _ = training(strategy, augmentation=augmentation)
    parts = list(federate(federation, Standing(start, strategy.init(start, federation.spec))))
    plain = FedAvg(num_rounds=2, clients_per_round=3)
    federation, start, _ = training(plain, augmentation=augmentation, local_steps=6)
    undivided = list(federate(federation, Standing(start, {})))
    assert_same_bits(parts[2].params, undivided[0].params)
    assert_same_bits(parts[5].params, undivided[1].params)


def test_at_every_boundary_the_cohort_begins_with_the_same_bits_although_clients_were_lost():
    strategy = FedLama(phi=3, num_rounds=9, clients_per_round=3, tau=1)
    federation, start, runtime = training(strategy, sizes=SIZES, lost=lambda round, client_id: round == 3 + client_id)
    outcomes = list(federate(federation, Standing(start, often_and_seldom(federation.spec, 1, 3))))
    for round in (4, 7):
        [payload] = set(runtime.downloads[round - 1].values())
        assert_same_bits(decode(payload, federation.spec, Cast())[0], outcomes[round - 2].params)
    assert [len(outcome.rejections) for outcome in outcomes] == [0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert adrift(runtime.site) == {}


# Lost replies.


@pytest.mark.parametrize("how", ["lost", "unheard"])
def test_a_client_keeps_nothing_of_a_round_whose_reply_was_lost(how: str):
    # Client 1 is lost in round 2, before or after it has trained: in round 3 it goes on from what it had after round 1,
    # with the head that was averaged without it.
    federation, start, runtime = training(of_steps(phi=4, num_rounds=4), sizes=SIZES)
    setattr(runtime, how, lambda round, client_id: (round, client_id) == (2, 1))
    kept: list[dict[int, Params]] = []
    outcomes = []
    for outcome in federate(federation, Standing(start, often_and_seldom(federation.spec, 1, 4))):
        outcomes.append(outcome)
        kept.append({client_id: dict(tensors) for client_id, tensors in adrift(runtime.site).items()})
    assert_same_bits(kept[1][1], kept[0][1])
    assert not torch.equal(kept[1][0][f"local/{LORA}"], kept[0][0][f"local/{LORA}"])
    assert set(runtime.plans[2].download[1]) == set(HEAD)
    held = {name: local_of(kept[0][1]).get(name, outcomes[1].params[name]) for name in start}
    expected = lora_of(add(held, one_step(held, client_id=1)))
    assert_close(local_of(kept[2][1]), expected, rtol=1e-4, atol=1e-6)
    assert_same_bits(anchor_of(kept[2][1]), lora_of(start))
    assert kept[3] == {}


@pytest.mark.parametrize("how", ["lost", "unheard"])
def test_a_client_that_joins_late_begins_with_all_of_the_server(how: str):
    federation, start, runtime = training(of_steps(phi=4, num_rounds=4), sizes=SIZES)
    setattr(runtime, how, lambda round, client_id: round < 3 and client_id == 1)
    rounds = federate(federation, Standing(start, often_and_seldom(federation.spec, 1, 4)))
    _, second = next(rounds), next(rounds)
    assert set(adrift(runtime.site)) == {0, 2}
    next(rounds)
    kept = adrift(runtime.site)[1]
    sent, _ = decode(runtime.downloads[2][1], federation.spec, Cast())
    assert_same_bits(sent, second.params)
    assert_close(
        local_of(kept), lora_of(add(second.params, one_step(second.params, client_id=1))), rtol=1e-4, atol=1e-6
    )
    assert_same_bits(anchor_of(kept), lora_of(start))
    # Of the others, too, LoRA's tensors have the anchor of the window's start.
    assert_same_bits(anchor_of(adrift(runtime.site)[0]), anchor_of(kept))


def moves(round: int, client_id: int) -> Params:
    return {name: torch.full_like(value, round + client_id / 2) for name, value in START.items()}


def test_a_client_that_is_lost_across_a_boundary_does_not_carry_anything_over():
    # The cohort is the same in both windows, so that client 1 still has what it trained in the first when it is asked
    # in round 6, after rounds 4 and 5 without it.
    strategy = FedLama(phi=4, num_rounds=8, clients_per_round=2)
    federation, runtime, engine = walking(strategy, moves, lost=lambda round, client_id: client_id and round in (4, 5))
    state = windows.start(SPEC) | {"interval_rounds": tensor([1, 2, 4])}
    outcomes = list(federate(federation, Standing(START, state)))
    assert runtime.plans[5].download[1] == SPEC.names
    [job] = [job for round, job in engine.jobs if (round, job.client_id) == (6, 1)]
    assert job.local == {}
    assert_same_bits(job.anchor, outcomes[4].params)


def test_tensors_that_would_be_sent_later_are_a_fault_at_once_where_they_are_not_finite():
    # In round 2 of 4 only `a` comes up, which is fine; `c` has left the numbers in client 1.
    def breaking(round: int, client_id: int) -> Params:
        return moves(round, client_id) | ({"c": torch.full((4,), torch.nan)} if (round, client_id) == (2, 1) else {})

    strategy = FedLama(phi=4, num_rounds=4, clients_per_round=2)
    federation, runtime, _ = walking(strategy, breaking)
    rounds = federate(federation, Standing(START, windows.start(SPEC) | {"interval_rounds": tensor([1, 4, 4])}))
    next(rounds)
    kept = dict(adrift(runtime.site)[1])
    [rejection] = next(rounds).rejections
    assert (rejection.client_id, rejection.reason) == (
        1,
        "tensors that the client keeps for a later upload are NaN or infinite",
    )
    assert_same_bits(adrift(runtime.site)[1], kept)
    # It goes on from there.
    assert [outcome.rejections for outcome in rounds] == [(), ()]


# One site, plans by hand.


def site_of() -> tuple[Site, Params]:
    _, start, runtime = training(of_steps(phi=4, num_rounds=9), sizes=SIZES)
    return runtime.site, start


def served(
    site: Site, values: Params, round: int, *, down: Sequence[str], up: Sequence[str] = HEAD,
    cohort: Sequence[int] = (0, 1), reached: Sequence[int] | None = None,
) -> dict[int, Reply]:  # fmt: skip
    """The replies of those of the cohort who are reached."""
    plan = RoundPlan(round, dict.fromkeys(cohort, tuple(down)), dict.fromkeys(cohort, tuple(up)), num_clients=3)
    payload, _ = encode(select(values, down), site.wire, site.channel.down)
    return {reply.client_id: reply for reply in site.run(plan, dict.fromkeys(reached or cohort, payload))}


def test_only_what_an_accepted_reply_has_left_is_kept():
    site, start = site_of()
    served(site, start, 1, down=site.engine.spec.names)
    assert adrift(site) == {}
    site.accept([0])
    assert set(adrift(site)) == {0}
    assert set(adrift(site)[0]) == {f"{part}/{name}" for part in ("local", "anchor") for name in lora_of(start)}
    # What was not accepted then is not accepted with a later round.
    site.accept([1])
    assert set(adrift(site)) == {0}


def test_what_a_round_has_left_that_was_never_decided_is_forgotten_with_the_next():
    site, start = site_of()
    served(site, start, 1, down=site.engine.spec.names)
    served(site, start, 2, down=site.engine.spec.names, reached=[0])
    site.accept([0, 1])
    assert set(adrift(site)) == {0}


def test_nothing_is_kept_of_what_was_sent():
    site, start = site_of()
    served(site, start, 1, down=site.engine.spec.names)
    site.accept([0, 1])
    served(site, start, 2, down=HEAD, up=site.engine.spec.names)
    assert set(adrift(site)) == {0, 1}
    site.accept([0])
    assert set(adrift(site)) == {1}


def test_a_client_that_leaves_the_cohort_drops_its_tensors_and_one_that_is_only_out_of_reach_does_not():
    site, start = site_of()
    served(site, start, 1, down=site.engine.spec.names)
    site.accept([0, 1])
    served(site, start, 2, down=HEAD, reached=[0])
    assert set(adrift(site)) == {0, 1}
    served(site, start, 3, down=HEAD, cohort=[0, 2], reached=[0])
    assert set(adrift(site)) == {0}


def test_a_download_without_a_tensor_that_the_client_has_not_kept_is_a_fault_of_that_client_alone():
    site, start = site_of()
    served(site, start, 1, down=site.engine.spec.names)
    site.accept([0])
    replies = served(site, start, 2, down=HEAD)
    assert replies[0].fault is None
    assert replies[1].payload == b""
    problem = "tensors are neither in the download nor kept from an earlier round, first"
    assert replies[1].fault == Fault(f"the client cannot use its download: 8 of 10 {problem} `{LORA}`")
    [only] = served(site, start, 3, down=site.engine.spec.names[1:], cohort=[2]).values()
    assert only.fault == Fault(f"the client cannot use its download: 1 of 10 {problem} `{LORA}`")


def test_a_download_takes_the_place_of_what_was_kept():
    site, start = site_of()
    names = site.engine.spec.names
    served(site, start, 1, down=names)
    site.accept([0, 1])
    drifted = served(site, start, 2, down=HEAD, up=names)
    replaced = served(site, start, 2, down=names, up=names)
    fresh, _ = site_of()
    expected = served(fresh, start, 2, down=names, up=names)
    for client_id in (0, 1):
        assert replaced[client_id].payload == expected[client_id].payload != drifted[client_id].payload


def test_a_download_that_is_refused_leaves_what_was_kept():
    site, start = site_of()
    served(site, start, 1, down=site.engine.spec.names)
    site.accept([0, 1])
    kept = dict(adrift(site)[0])
    plan = RoundPlan(2, {0: HEAD}, {0: HEAD}, num_clients=3)
    [reply] = site.run(plan, {0: b"garbage"})
    site.accept([])
    assert reply.fault is not None
    assert reply.fault.reason.startswith("the client cannot use its download: ")
    assert_same_bits(adrift(site)[0], kept)


# Batches.


@dataclass
class Noting:
    """Inputs that note which rows were fetched, in order."""

    inputs: Inputs
    fetched: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        self.fetched.append(rows.tolist())
        return self.inputs.fetch(rows)


ROWS = torch.arange(3, 13)


def batches_of(
    tau: int, num_rounds: int, *, seed: int = 0, lost: Callable[[int, int], bool] = lambda round, client_id: False
) -> list[list[int]]:
    """The batches of one client with ten rows, four at most in a batch, in a whole run."""
    data = tiny_data()
    noting = Noting(data.inputs)
    client = ClientSettings(local_steps=tau, batch_size=4)
    engine, _ = tiny_engine(Head(), Examples(noting, data.targets), client=client)
    noting.fetched.clear()  # rows on which the engine has proved what it assumes
    strategy = FedLama(phi=2, num_rounds=num_rounds, clients_per_round=1, tau=tau)
    site = Site(engine, {0: ROWS}, Channel(), seed, num_rounds)
    params = engine.bank.read(0)
    list(federate(running(strategy, Recording(site, lost), site), Standing(params, strategy.init(params, engine.spec))))
    return noting.fetched


def test_batches_go_on_from_round_to_round_in_an_endless_order_that_has_each_row_once_an_epoch():
    # Three batches, of 4, 4 and 2 rows, are an epoch; rounds of two steps end in the middle of one.
    fetched = batches_of(tau=2, num_rounds=6)
    assert [len(batch) for batch in fetched] == [4, 4, 2] * 4
    epochs = [[row for batch in fetched[at : at + 3] for row in batch] for at in range(0, 12, 3)]
    assert all(sorted(epoch) == ROWS.tolist() for epoch in epochs)
    assert all(epoch != next_epoch for epoch, next_epoch in pairwise(epochs))


def test_the_order_of_batches_is_that_of_the_seed_and_not_of_the_rounds():
    fetched = batches_of(tau=2, num_rounds=6)
    assert (
        fetched
        == batches_of(tau=2, num_rounds=6)
        == batches_of(tau=4, num_rounds=3)
        == batches_of(tau=12, num_rounds=1)
    )
    assert fetched != batches_of(tau=2, num_rounds=6, seed=1)


def test_the_batches_of_a_round_are_the_same_after_one_that_was_missed():
    fetched = batches_of(tau=2, num_rounds=6)
    missed = batches_of(tau=2, num_rounds=6, lost=lambda round, client_id: round == 2)
    assert missed == fetched[:2] + fetched[4:]
