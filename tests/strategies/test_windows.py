"""Windows: what travels when, what stays with whom, and what becomes of both when clients are lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from tests.builders import adrift, assert_close, assert_same_bits, deltas_of, jobs_for, tiny_data, tiny_engine
from tests.strategies.hand import step
from tests.strategies.windowed import SPEC, START, training, walking
from torch import tensor

from fedelta.aggregation.base import Aggregation, Update
from fedelta.aggregation.means import Clipped, Uniform, Weighted
from fedelta.aggregation.robust import Median, Trimmed
from fedelta.codecs.cast import Cast
from fedelta.codecs.wire import decode
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import Standing, federate
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies import windows
from fedelta.strategies.base import CombinedUpdates, State
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.local import FedProx
from fedelta.strategies.windows import Place, Windows
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel


def with_intervals(*intervals: int, **state: object) -> State:
    """The state before round 1, with an interval for each of a, b and c."""
    return windows.start(SPEC) | {"interval_rounds": tensor(intervals)} | state


def still(round: int, client_id: int) -> Params:
    return {name: torch.zeros_like(value) for name, value in START.items()}


def jumping(round: int, client_id: int) -> Params:
    """Another move for every round, client and scalar; sums of them are exact in float32."""
    return {
        name: torch.randint(-64, 65, value.shape, generator=stream(0, "move", round, client_id, name)) / 16.0
        for name, value in START.items()
    }


def test_the_place_of_a_round_in_its_window():
    strategy = Windows(phi=3, num_rounds=7)
    assert [windows.place(strategy, round) for round in range(1, 8)] == [
        Place(1, 1, is_last=False), Place(1, 2, is_last=False), Place(1, 3, is_last=True),
        Place(2, 1, is_last=False), Place(2, 2, is_last=False), Place(2, 3, is_last=True),
        Place(3, 1, is_last=True),  # the end of the run is the end of its window
    ]  # fmt: skip


def test_what_is_sent_after_each_round_of_a_window_and_after_the_last_of_the_run():
    # Intervals 1, 2 and 4; windows of 4 in a run of 7: the third round of the second window is the last of all.
    strategy = FedLama(phi=4, num_rounds=7, clients_per_round=2)
    uploads = []
    for round in range(1, 8):
        plan = strategy.plan(with_intervals(1, 2, 4), round, range(2), SPEC, stream(0, "cohort", round))
        assert plan.upload[0] == plan.upload[1]
        uploads.append("".join(plan.upload[0]))
    assert uploads == ["a", "ab", "a", "abc", "a", "ab", "abc"]


def test_a_group_travels_in_as_many_rounds_as_is_counted():
    for num_rounds in range(1, 14):
        strategy = FedLama(phi=6, num_rounds=num_rounds, clients_per_round=2)
        state = with_intervals(2, 3, 6)
        plans = [
            strategy.plan(state, round, range(2), SPEC, stream(0, "cohort", round)).upload[0]
            for round in range(1, num_rounds + 1)
        ]
        counted = windows.num_syncs(strategy, state["interval_rounds"], num_rounds).tolist()
        assert counted == [sum(name in names for names in plans) for name in SPEC]


def test_a_cohort_stays_for_a_window_and_is_the_one_that_fedavg_draws_in_its_first_round():
    strategy = FedLama(phi=3, num_rounds=9, clients_per_round=4)
    running, runtime, _ = walking(strategy, still, num_clients=12)
    list(federate(running, Standing(START, strategy.init(START, SPEC))))
    cohorts = [plan.cohort for plan in runtime.plans]
    drawn = {
        round: FedAvg(clients_per_round=4).plan({}, round, range(12), SPEC, stream(0, "cohort", round)).cohort
        for round in (1, 4, 7)
    }
    assert cohorts == [drawn[1]] * 3 + [drawn[4]] * 3 + [drawn[7]] * 3
    assert len(set(cohorts)) == 3


def test_a_window_begins_with_everything_and_goes_on_with_what_was_sent_after_the_round_before():
    strategy = FedLamaAuto(phi=4, num_rounds=9, clients_per_round=2, tolerance=0.0)
    running, runtime, _ = walking(strategy, still)
    list(federate(running, Standing(START, with_intervals(1, 2, 4))))
    # No discrepancy: from the second window on every interval is 4.
    assert ["".join(plan.download[1]) for plan in runtime.plans] == ["abc", "a", "ab", "a", "abc", "", "", "", "abc"]
    for plan, payloads in zip(runtime.plans, runtime.downloads, strict=True):
        assert {client: tuple(decode(payload, SPEC, Cast())[0]) for client, payload in payloads.items()} == dict(
            plan.download
        )


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        # Two scalars at distance 4 and 0 between clients with 1 and 3 examples. Weighted: the mean is 3 away from
        # client 0 and 1 from client 1: 1/4 * 9 + 3/4 * 1 = 3.
        (Weighted(), 3.0),
        # In the middle, 2 from both: 4
        (Uniform(), 4.0),
        (Median(), 4.0),
        # Lengths 4 and 0, clipped to 2: the mean is (1 * 2 + 3 * 0) / 4 = 0.5, but distances are those of the clients'
        # own values: 1/4 * 3.5^2 + 3/4 * 0.5^2 = 3.25
        (Clipped(max_norm=2.0), 3.25),
    ],
)
def test_the_unit_discrepancy_by_hand(mean: Aggregation, expected: float):
    # Eq. 2: over 2 scalars and tau_l = 3 steps a round
    strategy = FedLama(phi=2, num_rounds=4, clients_per_round=2, tau=3, mean=mean)
    plan = strategy.plan(with_intervals(1, 1, 1), 1, range(2), SPEC, stream(0))
    sent = [
        Update(0, 1, {"a": tensor(0.0), "b": tensor([4.0, 0.0]), "c": torch.zeros(4)}),
        Update(1, 3, {"a": tensor(0.0), "b": tensor([0.0, 0.0]), "c": torch.zeros(4)}),
    ]
    _, state = step(strategy, with_intervals(1, 1, 1), START, plan, sent, SPEC)
    torch.testing.assert_close(state["unit_discrepancy"], tensor([0.0, expected / (2 * 3), 0.0]).double())


def test_the_uniform_mean_counts_every_client_once_in_the_server_too():
    sent = [Update(0, 1, {"a": tensor(4.0)}), Update(1, 3, {"a": tensor(0.0)})]
    results = []
    for mean in (Weighted(), Uniform()):
        strategy = FedLama(phi=2, num_rounds=4, clients_per_round=2, mean=mean)
        plan = strategy.plan(with_intervals(1, 2, 2), 1, range(2), SPEC, stream(0))
        new_params, _ = step(strategy, with_intervals(1, 2, 2), START, plan, sent, SPEC)
        results.append(new_params["a"].item())
    assert results == [1.0, 2.0]


def test_the_steps_behind_a_discrepancy_are_those_since_its_group_last_travelled():
    # Windows of 4 in a run of 7, intervals 1, 2 and 4: in round 7, the third of its window, a has drifted for 1 round
    # as always, b for 1 since round 6, c for 3 since round 4. Client 0 moves by 1 in every scalar, 1 of 2 clients:
    # the distance is 1/4 a scalar, so d = 1 / (4 tau_l).
    strategy = FedLama(phi=4, num_rounds=7, clients_per_round=2, tau=5, mean=Uniform())
    state = with_intervals(1, 2, 4)
    plan = strategy.plan(state, 7, range(2), SPEC, stream(0))
    sent = [Update(client, 1, {n: torch.full_like(v, 1.0 - client) for n, v in START.items()}) for client in (0, 1)]
    _, new_state = step(strategy, state, START, plan, sent, SPEC)
    expected = [1 / (4 * rounds * 5) for rounds in (1, 1, 3)]
    torch.testing.assert_close(new_state["unit_discrepancy"], tensor(expected).double())


WINDOWED = {
    "fedlama": FedLama(phi=2, num_rounds=4, clients_per_round=2),
    "share": FedLamaAuto(phi=2, num_rounds=4, clients_per_round=2, share=0.75),
    "tolerance": FedLamaAuto(phi=2, num_rounds=4, clients_per_round=2, tolerance=0.5),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_one_reply_does_not_measure_how_clients_differ(name: str):
    # In the first window client 1 is always lost: nothing is known, and the intervals stay as they are.
    strategy = WINDOWED[name]
    running, _, _ = walking(strategy, jumping, lost=lambda round, client_id: round <= 2 and client_id == 1)
    start = strategy.init(START, SPEC)
    one, two, three, four = federate(running, Standing(START, start))
    for outcome in (one, two, three):
        assert torch.equal(outcome.state["interval_rounds"], start["interval_rounds"])
    assert two.logged["unit_discrepancy"] == (0.0, 0.0, 0.0)
    assert two.state["num_measured"].tolist() == [0, 0, 0]
    assert four.state["num_measured"].gt(0).all()
    assert four.state["unit_discrepancy"].gt(0).all()


def test_a_group_that_one_client_sends_keeps_its_last_discrepancy():
    # Of a and c two values come, of b one: the other client does not hold it.
    strategy = FedLama(phi=1, num_rounds=9, clients_per_round=2, tau=1, mean=Uniform(), crossing="excluded")
    sent = [
        Update(0, 1, {"a": tensor(0.0), "b": torch.ones(2), "c": torch.zeros(4)}),
        Update(1, 1, {"a": tensor(0.2), "c": torch.full((4,), 8.0)}),
    ]
    state = with_intervals(1, 1, 1, unit_discrepancy=tensor([0.0, 0.5, 0.0]).double(), num_measured=tensor([0, 3, 0]))
    _, new_state = step(strategy, state, START, strategy.plan(state, 1, range(2), SPEC, stream(0)), sent, SPEC)
    # Half of the difference from the mean, squared: 0.01 and 16 a scalar.
    torch.testing.assert_close(new_state["unit_discrepancy"], tensor([0.01, 0.5, 16.0]).double())
    assert new_state["num_measured"].tolist() == [1, 3, 1]
    assert new_state["num_syncs"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mean", [Median(), Trimmed(fraction=0.2)])
def test_a_group_that_too_few_send_for_the_mean_keeps_its_last_discrepancy(mean: Aggregation):
    # Of b two values come, of which such a mean makes nothing.
    strategy = FedLama(phi=1, num_rounds=9, clients_per_round=3, tau=1, mean=mean)
    sent = [Update(client, 1, {n: torch.full_like(v, 1.0 * client) for n, v in START.items()}) for client in (0, 1, 2)]
    del sent[2].delta["b"]
    state = with_intervals(1, 1, 1, unit_discrepancy=tensor([0.0, 0.5, 0.0]).double(), num_measured=tensor([0, 3, 0]))
    plan = strategy.plan(state, 1, range(3), SPEC, stream(0))
    mean_of_others = {"a": tensor(1.0), "c": torch.ones(4)}
    combined = CombinedUpdates(mean_of_others, (0, 1, 2), tuple(sent))
    _, new_state = strategy.update(state, START, plan, combined, SPEC)
    # Of the distances 1, 0 and 1 of three clients that in the middle.
    torch.testing.assert_close(new_state["unit_discrepancy"], tensor([1.0, 0.5, 1.0]).double())
    assert new_state["num_measured"].tolist() == [1, 3, 1]


def test_a_group_of_unknown_discrepancy_keeps_its_interval_or_counts_as_the_largest():
    groups = {"a": tensor(0.0), "b": torch.zeros(2), "c": torch.zeros(4)}
    # Two clients send a and c, one of them b. c is calm: d = 0.01, of a 1. The discrepancy of b is unknown so far.
    sent = [Update(0, 1, groups), Update(1, 1, {"a": tensor(2.0), "c": torch.full((4,), 0.2)})]
    intervals = {}
    for strategy in (
        FedLama(phi=4, num_rounds=9, clients_per_round=2, tau=1, mean=Uniform(), crossing="excluded"),
        FedLamaAuto(phi=4, num_rounds=8, clients_per_round=2, tau=1, mean=Uniform(), share=0.5),
    ):
        state = with_intervals(1, 1, 1)
        plan = strategy.plan(state, 4, range(2), SPEC, stream(0))
        _, new_state = step(strategy, state, START, plan, sent, SPEC)
        intervals[strategy.name] = new_state["interval_rounds"].tolist()
    # FedLAMA chooses among a and c; of the budget c is enough. Without discrepancy b would come before both.
    assert intervals == {"fedlama": [1, 1, 4], "fedlama-auto": [1, 1, 2]}


# Lost clients.


def reference(
    strategy: Windows, finished: list[RoundOutcome], lost: Callable[[int, int], bool], intervals: list[list[int]]
) -> list[Params]:
    """Algorithm 1 with losses, written down anew: every client has the values that it would go on from.

    Gives the server's values after each round. A lost client, and any in a round that does not count, stays where it
    was; what is averaged is written into every client of the cohort.
    """
    server = {name: value.double() for name, value in START.items()}
    sent, local, cohort = [], {}, ()
    for outcome in finished:
        round, position = outcome.round, (outcome.round - 1) % strategy.phi + 1
        if position == 1 or outcome.cohort != cohort:
            cohort, local = outcome.cohort, {client: dict(server) for client in outcome.cohort}
        present = [client for client in cohort if not lost(round, client)]
        if len(present) >= strategy.min_replies:
            for client in present:
                move = jumping(round, client)
                local[client] = {name: value + move[name] for name, value in local[client].items()}
            for name, interval in zip(SPEC, intervals[round - 1], strict=True):
                if position % interval == 0 or position == strategy.phi or round == strategy.num_rounds:
                    total = sum(1 + 2 * client for client in present)
                    server[name] = sum((1 + 2 * client) / total * local[client][name] for client in present)
                    for client in cohort:
                        local[client][name] = server[name]
        sent.append(dict(server))
    return sent


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_replies", [1, 3])
def test_lost_clients_and_void_rounds_leave_every_client_where_the_algorithm_has_it(seed: int, min_replies: int):
    def lost(round: int, client_id: int) -> bool:
        return bool(torch.rand((), generator=stream(seed, "lost", round, client_id)) < 0.3)

    strategy = FedLamaAuto(phi=4, num_rounds=19, clients_per_round=3, share=0.6, min_replies=min_replies)
    running, runtime, engine = walking(strategy, jumping, num_clients=5, lost=lost)
    begin = strategy.init(START, SPEC) | {"interval_rounds": tensor([1, 2, 4])}
    finished = list(federate(running, Standing(START, begin)))
    assert min_replies == 1 or any(outcome.num_examples == 0 for outcome in finished)
    intervals = [[1, 2, 4], *(list(outcome.logged["interval_rounds"]) for outcome in finished[:-1])]
    expected = reference(strategy, finished, lost, intervals)
    for outcome, server in zip(finished, expected, strict=True):
        for name, value in server.items():
            torch.testing.assert_close(outcome.params[name].double(), value, atol=1e-4, rtol=1e-5)
    # Every anchor is the server's value, to the bit, whatever was lost before.
    servers = dict(zip(range(1, 20), [START, *(outcome.params for outcome in finished)], strict=False))
    for round, job in engine.jobs:
        assert_same_bits(job.anchor, servers[round])
    assert len(runtime.plans) == 19


def loses(*away: tuple[int, int]) -> Callable[[int, int], bool]:
    return lambda round, client_id: (round, client_id) in away


def downloads(runtime: object, client_id: int) -> list[str]:
    return ["".join(plan.download[client_id]) for plan in runtime.plans]


def drifting(lost: Callable[[int, int], bool], min_replies: int = 1, num_rounds: int = 8):
    """Two clients, windows of 4, intervals 1, 2 and 4 in the first of them."""
    strategy = FedLama(phi=4, num_rounds=num_rounds, clients_per_round=2, min_replies=min_replies)
    running, runtime, engine = walking(strategy, jumping, lost=lost)
    return list(federate(running, Standing(START, with_intervals(1, 2, 4)))), runtime, engine


def test_a_client_that_was_lost_inside_a_window_gets_what_was_sent_meanwhile():
    # Away in rounds 2 and 3: a was sent after 1, 2 and 3, b after 2, c not at all.
    _, runtime, engine = drifting(loses((2, 1), (3, 1)), num_rounds=4)
    assert downloads(runtime, 1) == ["abc", "a", "ab", "ab"]
    assert downloads(runtime, 0) == ["abc", "a", "ab", "a"]
    [job] = [job for round, job in engine.jobs if round == 4 and job.client_id == 1]
    # It goes on from where it was after round 1.
    assert_same_bits(job.local, {"c": jumping(1, 1)["c"]})


def test_a_client_that_joins_late_gets_everything_until_it_has_answered():
    _, runtime, engine = drifting(loses((1, 1), (2, 1)), num_rounds=4)
    assert downloads(runtime, 1) == ["abc", "abc", "abc", "a"]
    assert [job.local for round, job in engine.jobs if round == 3 and job.client_id == 1] == [{}]


def test_a_void_round_inside_a_window_changes_nothing_for_any_client():
    # Round 2 does not count: a, which was sent after round 1, goes down again; b was not averaged, and both clients go
    # on from where round 1 has left them.
    finished, runtime, engine = drifting(loses((2, 1)), min_replies=2, num_rounds=4)
    assert [outcome.num_examples for outcome in finished] == [4, 0, 4, 4]
    assert_same_bits(finished[1].params, finished[0].params)
    assert downloads(runtime, 0) == downloads(runtime, 1) == ["abc", "a", "a", "a"]
    for client_id in (0, 1):
        [job] = [job for round, job in engine.jobs if round == 3 and job.client_id == client_id]
        assert_same_bits(job.local, {name: jumping(1, client_id)[name] for name in "bc"})


def test_after_a_void_first_round_the_window_begins_with_the_second():
    finished, runtime, engine = drifting(loses((1, 1)), min_replies=2, num_rounds=4)
    assert [outcome.num_examples for outcome in finished] == [0, 4, 4, 4]
    assert downloads(runtime, 0) == downloads(runtime, 1) == ["abc", "abc", "ab", "a"]
    assert all(not job.local for round, job in engine.jobs if round == 2)


def test_a_window_whose_last_round_is_void_is_forgotten_as_far_as_it_was_not_sent():
    finished, runtime, engine = drifting(loses((4, 0)), min_replies=2)
    assert [outcome.round for outcome in finished if not outcome.num_examples] == [4]
    assert_same_bits(finished[3].params, finished[2].params)
    assert finished[3].params["c"].tolist() == [0.0] * 4
    # The next window begins with everything, from the server's values.
    assert downloads(runtime, 0)[4] == "abc"
    for round, job in engine.jobs:
        if round == 5:
            assert_same_bits(job.anchor, finished[3].params)
            assert job.local == {}
    # Without discrepancies of that round, intervals stay.
    assert finished[3].logged["interval_rounds"] == (1, 2, 4)


def test_a_client_that_is_lost_in_the_last_round_keeps_nothing_once_it_is_out_of_the_cohort():
    strategy = FedLama(phi=2, num_rounds=4, clients_per_round=2)
    running, runtime, _ = walking(strategy, jumping, num_clients=9, lost=lambda round, client_id: round == 2)
    state = strategy.init(START, SPEC) | {"interval_rounds": tensor([2, 2, 2])}
    held = [set(adrift(runtime.site)) for _ in federate(running, Standing(START, state))]
    first_cohort, second_cohort = runtime.plans[0].cohort, runtime.plans[2].cohort
    assert not set(first_cohort) & set(second_cohort)
    assert held[0] == held[1] == set(first_cohort)
    # The intervals stayed at 2: the lost round has decided nothing.
    assert held[2:] == [set(second_cohort), set()]


def test_at_the_end_of_every_window_all_clients_hold_the_same():
    strategy = FedLamaAuto(phi=3, num_rounds=9, clients_per_round=3, share=1 / 3)
    running, runtime, engine = walking(strategy, jumping, num_clients=3)
    finished = []
    for outcome in federate(running, Standing(START, strategy.init(START, SPEC))):
        finished.append(outcome)
        assert bool(adrift(runtime.site)) == (outcome.round % 3 != 0)
    for round, job in engine.jobs:
        assert bool(job.local) == (round % 3 != 1)
        if round > 1:
            assert_same_bits(job.anchor, finished[round - 2].params)


# Real clients.


def seldom(phi: int = 3, num_windows: int = 2, **fields: object) -> FedLamaAuto:
    """Every group has interval `phi` from the start."""
    return FedLamaAuto(phi=phi, share=1 / phi, num_rounds=phi * num_windows, clients_per_round=3, tau=2, **fields)


def test_intervals_of_phi_everywhere_are_fedavg_with_phi_times_tau_steps_to_the_last_bit():
    # Plain SGD, constant rate, every client takes part: a client goes on from its own bits, over the same batches, and
    # its delta is to the anchor of the window's start.
    strategy = seldom(phi=3)
    running, start, _ = training(strategy)
    windowed = list(federate(running, Standing(start, strategy.init(start, running.spec))))
    plain = FedAvg(num_rounds=2, clients_per_round=3)
    running, start, _ = training(plain, local_steps=6)
    averaged = list(federate(running, Standing(start, {})))
    assert_same_bits(windowed[1].params, start)
    assert_same_bits(windowed[2].params, averaged[0].params)
    assert_same_bits(windowed[5].params, averaged[1].params)
    assert [outcome.synced_fraction for outcome in windowed] == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("strategy", [FedLama(phi=2, num_rounds=4, clients_per_round=3, tau=2), seldom(2)])
def test_lanes_change_nothing_beyond_rounding(strategy: Windows):
    results = []
    for lanes in (1, 3):
        running, start, _ = training(strategy, lanes=lanes)
        *_, outcome = federate(running, Standing(start, strategy.init(start, running.spec)))
        results.append(outcome)
    assert_close(results[0].params, results[1].params, rtol=1e-4, atol=1e-5)
    assert results[0].logged["interval_rounds"] == results[1].logged["interval_rounds"]
    torch.testing.assert_close(
        results[0].state["unit_discrepancy"], results[1].state["unit_discrepancy"], rtol=1e-3, atol=0
    )


def test_with_rounded_payloads_a_client_that_does_not_move_sends_zeros_after_a_window_too():
    # The anchor is what float16 has made of the server's value; with any other the difference would come up.
    strategy = seldom(3)
    running, start, runtime = training(strategy, codec="float16", lr=1e-30)
    assert any(not torch.equal(value, value.half().float()) for value in start.values())
    for outcome in federate(running, Standing(start, strategy.init(start, running.spec))):
        assert_same_bits(outcome.params, start)
        for tensors in adrift(runtime.site).values():
            for name, value in start.items():
                decoded = value.half().float()
                assert torch.equal(tensors[f"anchor/{name}"], decoded)
                torch.testing.assert_close(tensors[f"local/{name}"], decoded, atol=1e-28, rtol=0)


def test_fedprox_pulls_to_what_was_last_downloaded_in_the_whole_window():
    # Plain SGD with lr 0.05 and mu = 20: a step is w - 0.05 (g + 20 (w - anchor)) = anchor - 0.05 g. So a client ends
    # its round where one plain step from w leads, seen from its anchor. Batches are all rows of a client.
    strategy = seldom(3, num_windows=1).model_copy(update={"tau": 1})
    running, start, runtime = training(strategy, rule=FedProx(mu=20.0), sizes=(4, 4, 4))
    client = ClientSettings(local_steps=1, batch_size=4, optimizer=Sgd(momentum=0.0))
    plain, _ = tiny_engine(Lora(r=2), tiny_data(num_rows=12), client=client)
    old_values = dict.fromkeys(range(3), start)
    for outcome in federate(running, Standing(start, strategy.init(start, running.spec))):
        if outcome.round == 3:
            break
        for client_id, tensors in adrift(runtime.site).items():
            new_values, anchor = ({name: tensors[f"{part}/{name}"] for name in start} for part in ("local", "anchor"))
            assert_same_bits(anchor, start)
            step = deltas_of(plain, [jobs_for((4, 4, 4), old_values[client_id])[client_id]])[client_id]
            assert_close({n: new_values[n] - anchor[n] for n in start}, step, rtol=1e-3, atol=1e-6)
            old_values[client_id] = new_values


def test_running_statistics_travel_and_drift_with_their_kernel():
    strategy = seldom(2)
    running, start, runtime = training(strategy, method=Parallel(), family="small-resnet", lanes=3)
    spec = running.spec
    assert spec.statistics
    results = []
    for outcome in federate(running, Standing(start, strategy.init(start, spec))):
        results.append(outcome)
        if outcome.round == 1:
            assert_same_bits(outcome.params, start)
            assert all(
                {f"local/{name}" for name in spec.statistics} <= set(tensors)
                for tensors in adrift(runtime.site).values()
            )
    moved = [name for name in spec.statistics if not torch.equal(results[1].params[name], start[name])]
    assert moved == list(spec.statistics)
    assert all(float(results[3].params[name].min()) > 0 for name in spec.statistics if name.endswith("var"))


@pytest.mark.parametrize("field", ["phi", "tau"])
def test_windows_and_rounds_have_a_length(field: str):
    with pytest.raises(ValidationError, match=field):
        FedLama(**{field: 0})
