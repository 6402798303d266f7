"""FedLUAR by hand: scores, draws, and updates that are repeated."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.builders import assert_close, assert_same_bits, spec_of
from tests.small import write_small
from tests.strategies.hand import step
from tests.strategies.windowed import SPEC, START, training, walking
from torch import Tensor, tensor

from fedelta.aggregation.base import Update
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment
from fedelta.federation.rounds import Standing, federate
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, State
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedluar import FedLuar
from fedelta.tuning.parallel import Parallel

PLAN = RoundPlan(1, download={}, upload={}, num_clients=2)


def server() -> Params:
    """Lengths 2, 5 and 4."""
    return {"a": tensor(2.0), "b": tensor([3.0, -4.0]), "c": tensor([2.0, 2.0, 2.0, 2.0])}


def mean_of(a: float, b: tuple[float, float], c: tuple[float, float, float, float]) -> list[Update]:
    return [Update(0, 1, {"a": tensor(a), "b": tensor(b), "c": tensor(c)})]


def scored(*scores: float) -> State:
    strategy = FedLuar()
    return strategy.init(server(), SPEC) | {"score": tensor(scores, dtype=torch.float64)}


def drawn(strategy: FedLuar, state: State, seed: int) -> set[str]:
    plan = strategy.plan(state, 2, range(20), SPEC, stream(seed, "cohort", 2))
    [names] = set(plan.upload.values())
    assert all(down == SPEC.shared for down in plan.download.values())
    return set(SPEC.shared) - set(names)


def test_scores_by_hand():
    # s = ||D|| / ||w||, both before w has moved: 1 / 2, sqrt(0.6^2 + 0.8^2) / 5 = 0.2, sqrt(4 * 3^2) / 4 = 1.5
    sent = mean_of(-1.0, (0.6, 0.8), (3.0, -3.0, 3.0, 3.0))
    new_params, state = step(FedLuar(), FedLuar().init(server(), SPEC), server(), PLAN, sent, SPEC)
    torch.testing.assert_close(state["score"], tensor([0.5, 0.2, 1.5]).double())
    assert new_params["a"].item() == 1.0
    assert {name: state[f"update/{name}"].tolist() for name in "ac"} == {"a": -1.0, "c": [3.0, -3.0, 3.0, 3.0]}


def test_what_did_not_come_up_moves_as_it_did_last_and_its_score_follows():
    # Round 1: a moves by -1 from 2, c by 3. Round 2: a does not come up and moves by -1 again, from 1 to 0.
    # Its score is 1 / 2, then 1 / 1; b has moved to (4, -4): 1 / sqrt(32).
    strategy = FedLuar()
    once, state = step(
        strategy, strategy.init(server(), SPEC), server(), PLAN, mean_of(-1.0, (1.0, 0.0), (3.0, 3.0, 3.0, 3.0)), SPEC
    )
    assert {name: value.tolist() for name, value in once.items()} == {"a": 1.0, "b": [4.0, -4.0], "c": [5.0] * 4}
    sent = [Update(0, 1, {"b": tensor([0.0, 1.0]), "c": torch.zeros(4)})]
    twice, state = step(strategy, state, once, PLAN, sent, SPEC)
    assert {name: value.tolist() for name, value in twice.items()} == {"a": 0.0, "b": [4.0, -3.0], "c": [5.0] * 4}
    torch.testing.assert_close(state["score"], tensor([1.0, 32**-0.5, 0.0], dtype=torch.float64))
    # And once more, from 0 on; c's last update is the zeros that came up.
    thrice, _ = step(strategy, state, twice, PLAN, [Update(0, 1, {"b": torch.zeros(2)})], SPEC)
    assert {name: value.tolist() for name, value in thrice.items()} == {"a": -1.0, "b": [4.0, -3.0], "c": [5.0] * 4}


def test_a_group_that_no_client_of_the_cohort_holds_keeps_its_value_update_and_score():
    # Round 1 as above. In round 2 c was drawn: it moves on by 3. No client has b, which does not change; a moves by 0.5
    # from 1. In round 3 a client should send b, and is lost.
    strategy = FedLuar()
    once, state = step(
        strategy, strategy.init(server(), SPEC), server(), PLAN, mean_of(-1.0, (1.0, 0.0), (3.0, 3.0, 3.0, 3.0)), SPEC
    )
    unheld = RoundPlan(
        2, {0: ("a", "c"), 1: ("a", "c")}, {0: ("a",), 1: ("a",)}, 3, num_holders=dict.fromkeys("abc", 2)
    )
    unheard = RoundPlan(3, {0: ("a", "c"), 1: ("a", "b", "c")}, {0: ("a",), 1: ("a", "b")}, 3, dict.fromkeys("abc", 2))
    for plan in (unheld, unheard):
        new_params, later = step(strategy, state, once, plan, [Update(0, 1, {"a": tensor(0.5)})], SPEC)
        assert {name: value.tolist() for name, value in new_params.items()} == {
            "a": 1.5,
            "b": [4.0, -4.0],
            "c": [8.0] * 4,
        }
        assert torch.equal(later["update/b"], state["update/b"])
        assert later["score"].tolist() == [0.5, state["score"][1].item(), 3 / 5]


def test_nothing_is_drawn_in_round_1():
    state = FedLuar(num_recycled=2).init(server(), SPEC)
    assert all(drawn(FedLuar(num_recycled=2), state, seed) == set() for seed in range(20))


def test_groups_are_drawn_in_proportion_to_one_over_their_score():
    # 1 / s = 1, 2 and 5 of 8. In 2,000 draws: 250, 500 and 1,250; a deviation is sqrt(2000 p (1 - p)) <= 22.
    state, counts = scored(1.0, 0.5, 0.2), dict.fromkeys("abc", 0)
    for seed in range(2000):
        [group] = drawn(FedLuar(num_recycled=1), state, seed)
        counts[group] += 1
    for group, expected in zip("abc", (250, 500, 1250), strict=True):
        assert abs(counts[group] - expected) < 4 * 22


def test_two_are_drawn_without_putting_the_first_back():
    # Pairs without a: b then c, or c then b: 2/8 * 5/6 + 5/8 * 2/3 = 0.625. Without b: 1/8 * 5/7 + 5/8 * 1/3 = 0.298.
    # Without c: 1/8 * 2/7 + 2/8 * 1/6 = 0.077. In 2,000 draws 4 deviations are 4 * sqrt(2000 * 0.625 * 0.375) = 87.
    state, counts = scored(1.0, 0.5, 0.2), {}
    for seed in range(2000):
        pair = "".join(sorted(drawn(FedLuar(num_recycled=2), state, seed)))
        counts[pair] = counts.get(pair, 0) + 1
    assert set(counts) == {"ab", "ac", "bc"}
    for pair, expected in (("bc", 0.625), ("ac", 0.298), ("ab", 0.077)):
        assert abs(counts[pair] - 2000 * expected) < 87


def test_a_group_that_does_not_move_is_drawn_first_and_all_may_be_still():
    assert {frozenset(drawn(FedLuar(), scored(1.0, 0.0, 1.0), seed)) for seed in range(50)} == {frozenset("b")}
    assert all(len(drawn(FedLuar(num_recycled=2), scored(0.0, 0.0, 0.0), seed)) == 2 for seed in range(50))


def test_a_group_at_zero_has_a_score_and_is_hardly_ever_drawn():
    # ||w|| = 0: nothing is known of how far it has to go.
    zero = server() | {"b": torch.zeros(2)}
    strategy = FedLuar()
    _, state = step(
        strategy, strategy.init(zero, SPEC), zero, PLAN, mean_of(1.0, (1.0, 0.0), (1.0, 1.0, 1.0, 1.0)), SPEC
    )
    assert torch.isfinite(state["score"]).all()
    assert all(drawn(strategy, state, seed) <= {"a", "c"} for seed in range(50))


def test_the_cohort_is_that_of_fedavg():
    plans = [
        strategy.plan(state, 2, range(20), SPEC, stream(0, "cohort", 2))
        for strategy, state in ((FedLuar(num_recycled=1), scored(1.0, 1.0, 1.0)), (FedAvg(), {}))
    ]
    assert plans[0].cohort == plans[1].cohort


def steady(round: int, client_id: int) -> Params:
    return {name: torch.full_like(value, 1.0 + client_id) for name, value in START.items()}


def test_where_all_updates_are_alike_repeating_them_is_exact():
    results = []
    for strategy in (
        FedLuar(num_recycled=2, num_rounds=5, clients_per_round=2),
        FedAvg(num_rounds=5, clients_per_round=2),
    ):
        running, runtime, _ = walking(strategy, steady)
        results.append(list(federate(running, Standing(START, strategy.init(START, SPEC)))))
        if strategy.name == "fedluar":
            uploads = [len(plan.upload[0]) for plan in runtime.plans]
            assert uploads == [3, 1, 1, 1, 1]
    assert_same_bits(results[0][-1].params, results[1][-1].params)


def test_without_recycling_it_is_fedavg_to_the_last_bit():
    results = []
    for strategy in (
        FedLuar(num_recycled=0, num_rounds=3, clients_per_round=2),
        FedAvg(num_rounds=3, clients_per_round=2),
    ):
        running, start, _ = training(strategy, local_steps=2)
        results.append(list(federate(running, Standing(start, strategy.init(start, running.spec)))))
    for luar, plain in zip(*results, strict=True):
        assert_same_bits(luar.params, plain.params)
        assert luar.transfers == plain.transfers


def test_what_is_drawn_is_not_in_the_uplink_and_moves_by_its_last_update():
    strategy = FedLuar(num_recycled=2, num_rounds=4, clients_per_round=3)
    running, start, runtime = training(strategy, local_steps=2)
    spec, params_of_round, outcomes = running.spec, [start], []
    for outcome in federate(running, Standing(start, strategy.init(start, spec))):
        outcomes.append(outcome)
        params_of_round.append(outcome.params)
    for index in range(1, 4):
        uploaded = set(runtime.plans[index].upload[0])
        recycled = {group for group, names in spec.groups.items() if not uploaded & set(names)}
        assert len(recycled) == 2
        for transfer in outcomes[index].transfers:
            expected = set(spec.groups) - (recycled if transfer.direction == "up" else set())
            assert set(transfer.tensor_bytes) == expected
        names = [name for group in recycled for name in spec.groups[group]]
        moved = [
            {n: new_params[n] - old_params[n] for n in names} for old_params, new_params in pairwise(params_of_round)
        ]
        assert_close(moved[index], moved[index - 1], rtol=1e-3, atol=1e-6)
        assert outcomes[index].synced_fraction == pytest.approx(
            1 - sum(spec.sizes[group] for group in recycled) / sum(spec.sizes.values())
        )
        assert len(outcomes[index].logged["score"]) == len(spec.sizes)


def test_a_client_starts_every_round_from_the_server_whatever_it_has_not_sent():
    strategy = FedLuar(num_recycled=2, num_rounds=4, clients_per_round=2)
    running, _, engine = walking(strategy, steady)
    finished = list(federate(running, Standing(START, strategy.init(START, SPEC))))
    servers: list[dict[str, Tensor]] = [START, *(outcome.params for outcome in finished)]
    for round, job in engine.jobs:
        assert job.local == {}
        assert_same_bits(job.anchor, servers[round - 1])


def test_a_void_round_changes_nothing_and_draws_nothing_before_the_first_that_counts():
    strategy = FedLuar(num_recycled=2, num_rounds=3, clients_per_round=2, min_replies=2)
    running, runtime, _ = walking(strategy, steady, lost=lambda round, client_id: round == 1)
    finished = list(federate(running, Standing(START, strategy.init(START, SPEC))))
    assert_same_bits(finished[0].params, START)
    assert [len(plan.upload[0]) for plan in runtime.plans] == [3, 3, 1]


def test_running_statistics_of_a_drawn_group_stay():
    strategy = FedLuar(num_recycled=2, num_rounds=3, clients_per_round=3)
    running, start, runtime = training(strategy, method=Parallel(), family="small-resnet", local_steps=2)
    spec, previous = running.spec, start
    for outcome in federate(running, Standing(start, strategy.init(start, spec))):
        uploaded = set(runtime.plans[-1].upload[0])
        still = {name for name in spec.statistics if torch.equal(outcome.params[name], previous[name])}
        assert still == set(spec.statistics) - uploaded
        previous = outcome.params


@pytest.mark.parametrize(
    ("layers", "num_recycled", "problem", "advice"),
    [
        ("abc", 3, "is 3, expected at most 2: only 3 groups are tuned", "set it to 2 or less, or tune more groups."),
        ("ab", 7, "is 7, expected at most 1: only 2 groups are tuned", "set it to 1 or less, or tune more groups."),
        ("b", 1, "is 1, expected at most 0: only one group is tuned, 'b'", "set it to 0, or tune more groups."),
    ],
)
def test_at_least_one_group_has_to_come_up(layers: str, num_recycled: int, problem: str, advice: str):
    spec = spec_of(**{name: SPEC.tensors[name].shape for name in layers})
    with pytest.raises(ConfigError) as caught:
        FedLuar(num_recycled=num_recycled).init(server(), spec)
    assert f"`strategy.num_recycled` {problem}" in str(caught.value)
    assert f"hint: at least one group must be uploaded in every round: {advice}" in str(caught.value)
    # As many as it says are fine.
    FedLuar(num_recycled=len(layers) - 1).init(server(), spec)


@pytest.mark.parametrize(
    ("tuning", "num_recycled", "problem"),
    [("lora", 5, "only 5 groups are tuned"), ("head", 1, "only one group is tuned, 'classifier'")],
)
def test_too_few_groups_are_refused_before_the_run_begins(tmp_path: Path, tuning: str, num_recycled: int, problem: str):
    # LoRA is on q and v of two blocks, and there is the head.
    settings = ("strategy.name=fedluar", f"strategy.num_recycled={num_recycled}", f"tuning.name={tuning}")
    overrides = (*settings, *(("tuning.r=",) if tuning == "head" else ()))
    with pytest.raises(ConfigError, match=problem):
        Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
