"""Lost clients: how many, which bytes, and what becomes of a round that too few came back from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.builders import assert_same_bits, evaluated
from tests.federation.test_rounds import START, reply
from tests.small import write_small
from tests.strategies.hand import SPEC

from fedelta.codecs.channel import Channel
from fedelta.data.clients import Clients
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError, RoundError
from fedelta.experiment import Experiment
from fedelta.federation.records import Fault, Reply, RoundOutcome
from fedelta.federation.rounds import Federation, Standing, federate
from fedelta.runtimes.stability import Stability, Unstable
from fedelta.strategies.base import RoundPlan
from fedelta.strategies.fedavg import FedAvg


@dataclass
class Good:
    """A runtime whose clients all answer; it notes which clients it was told to run."""

    answer: Callable[[int], Reply] = reply
    reached: list[tuple[int, ...]] = field(default_factory=list)
    accepted: tuple[int, ...] = ()

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> list[Reply]:
        self.reached.append(tuple(sorted(payloads)))
        return [self.answer(client_id) for client_id in payloads]

    def accept(self, client_ids: Iterable[int]) -> None:
        self.accepted = tuple(client_ids)


def unstable(seed: int = 0, runtime: Good | None = None, sizes: int = 10, **settings: float) -> Unstable:
    client = ClientSettings(local_epochs=2, batch_size=4)
    return Unstable(runtime or Good(), Stability(**settings), client, dict.fromkeys(range(200), sizes), seed)


def outcomes(runtime: Unstable, num_rounds: int = 1, cohort: int = 4, min_replies: int = 1) -> list[RoundOutcome]:
    running = Federation(
        strategy=FedAvg(clients_per_round=cohort, num_rounds=num_rounds, min_replies=min_replies), runtime=runtime,
        channel=Channel(), spec=SPEC, clients=Clients.of(range(cohort)), seed=0,
        evaluate=lambda params: evaluated(0.5, 1.0),
        effective_steps=float,
    )  # fmt: skip
    return list(federate(running, Standing(START, {})))


def test_stable_clients_are_passed_through():
    [outcome] = outcomes(unstable())
    assert outcome.rejections == ()
    assert outcome.simulated_seconds is None
    assert len(outcome.transfers) == 8


@pytest.mark.parametrize("key", ["dropout_fraction", "vanish_fraction"])
def test_as_many_are_lost_as_was_asked_for(key: str):
    # 200 clients in 20 rounds with probability 0.3: 1,200 of 4,000, deviation sqrt(4000 * 0.3 * 0.7) = 29; 116 is 4.
    finished = outcomes(unstable(**{key: 0.3}), num_rounds=20, cohort=200)
    lost = sum(len(outcome.rejections) for outcome in finished)
    assert abs(lost - 1200) < 116
    # Others in every round
    assert len({tuple(rejection.client_id for rejection in outcome.rejections) for outcome in finished}) == 20


def test_a_client_that_drops_out_costs_nothing_and_one_that_vanishes_its_download():
    for key, cause, downloads in (("dropout_fraction", "dropped out", 0), ("vanish_fraction", "vanished", 1)):
        runtime = Good()
        [outcome] = outcomes(unstable(runtime=runtime, **{key: 0.5}), cohort=100)
        lost = {rejection.client_id for rejection in outcome.rejections}
        assert {rejection.cause for rejection in outcome.rejections} == {cause}
        assert 20 < len(lost) < 80
        assert runtime.reached == [tuple(sorted(set(range(100)) - lost))]
        sent = [(transfer.direction, transfer.client_id) for transfer in outcome.transfers]
        for client_id in range(100):
            assert sent.count(("down", client_id)) == (downloads if client_id in lost else 1)
            assert sent.count(("up", client_id)) == (client_id not in lost)


def test_who_is_lost_depends_on_the_seed_alone():
    def lost(seed: int, **fields: float) -> list[int]:
        [outcome] = outcomes(unstable(seed, dropout_fraction=0.4, **fields), cohort=60)
        return [rejection.client_id for rejection in outcome.rejections if rejection.cause == "dropped out"]

    assert lost(1) == lost(1) == lost(1, vanish_fraction=0.5) == lost(1, examples_per_second=3.0)
    assert lost(1) != lost(2)


def test_the_time_of_a_client_by_hand():
    # Two epochs of 10 examples at 4 a second, and twice 1,000 bytes at 8,000 bits a second
    runtime = unstable(examples_per_second=4.0, speed_spread=0.0, megabits_per_second=0.008)
    assert runtime.seconds(0, payload_bytes=1000) == pytest.approx(20 / 4 + 2)


def test_speeds_spread_as_asked_and_stay_with_their_client():
    runtime = unstable(examples_per_second=10.0, speed_spread=0.5)
    logarithms = torch.tensor([math.log(20 / runtime.seconds(client_id, 0)) for client_id in range(200)])
    # Mean ln 10 and deviation 0.5 of 200: 0.035 and 0.025 are the errors of the two estimates.
    assert logarithms.mean().item() == pytest.approx(math.log(10), abs=0.14)
    assert logarithms.std().item() == pytest.approx(0.5, abs=0.1)
    assert runtime.seconds(7, 0) == runtime.seconds(7, 0)


def test_a_round_lasts_as_long_as_its_slowest_client_and_no_longer_than_the_deadline():
    times = sorted(unstable(examples_per_second=10.0).seconds(client_id, 0) for client_id in range(6))
    [patient] = outcomes(unstable(examples_per_second=10.0), cohort=6)
    assert patient.simulated_seconds == times[-1]
    assert patient.rejections == ()
    deadline = (times[3] + times[4]) / 2
    [hasty] = outcomes(unstable(examples_per_second=10.0, deadline_seconds=deadline), cohort=6)
    assert hasty.simulated_seconds == deadline
    assert [rejection.cause for rejection in hasty.rejections] == ["too late"] * 2
    assert hasty.rejections[0].reason.startswith("would have taken ")
    assert hasty.rejections[0].reason.endswith(f" s, the deadline is {deadline:g} s")
    assert [transfer.direction for transfer in hasty.transfers] == ["down"] * 6 + ["up"] * 4


def test_a_round_waits_for_clients_that_vanished_until_its_deadline():
    settings = {"vanish_fraction": 0.5, "examples_per_second": 1e6, "deadline_seconds": 60.0}
    [outcome] = outcomes(unstable(**settings), cohort=40)
    assert outcome.rejections
    assert outcome.simulated_seconds == 60.0


def test_a_round_that_too_many_were_lost_from_does_not_count_and_the_run_goes_on():
    finished = outcomes(unstable(vanish_fraction=0.2), num_rounds=12, cohort=3, min_replies=3)
    void = [outcome for outcome in finished if outcome.num_examples == 0]
    assert 0 < len(void) < 12
    params_before = dict(
        zip((outcome.round for outcome in finished), [START, *(outcome.params for outcome in finished)], strict=False)
    )
    for outcome in void:
        assert_same_bits(outcome.params, params_before[outcome.round])
        assert (outcome.train_loss, outcome.delta_norm) == (None, None)
        assert {rejection.client_id for rejection in outcome.rejections} == {0, 1, 2}
        assert {rejection.cause for rejection in outcome.rejections} <= {"vanished", "void round"}
        # What came up has travelled all the same.
        on_time = [rejection.client_id for rejection in outcome.rejections if rejection.cause == "void round"]
        assert [transfer.client_id for transfer in outcome.transfers if transfer.direction == "up"] == on_time


def test_clients_that_are_wrong_still_end_the_run_although_others_were_lost():
    def broken(client_id: int) -> Reply:
        return Reply(client_id, 10, b"", fault=Fault("loss is not finite"))

    with pytest.raises(RoundError, match=r"0 of 40 replies are usable, `strategy.min_replies` is 39"):
        outcomes(unstable(runtime=Good(broken), dropout_fraction=0.1), cohort=40, min_replies=39)


def test_a_deadline_without_a_speed_is_refused():
    with pytest.raises(ValidationError, match="needs `examples_per_second` or `megabits_per_second`, or both"):
        Stability(deadline_seconds=3.0)


@pytest.mark.parametrize("key", ["dropout_fraction", "vanish_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_impossible_fractions_are_refused(key: str, value: float):
    with pytest.raises(ValidationError, match=key):
        Stability(**{key: value})


def test_a_deadline_that_no_client_meets_is_refused_before_training(tmp_path: Path):
    overrides = ["stability.examples_per_second=1.0", "stability.speed_spread=0.0", "stability.deadline_seconds=0.5"]
    with pytest.raises(ConfigError) as caught:
        Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "run")
    message = str(caught.value)
    assert "`stability.deadline_seconds` is 0.5, which 0 of 6 clients can meet" in message
    assert "the fastest client needs" in message
    assert "hint: raise the deadline, or let clients do less" in message
    assert not (tmp_path / "run").exists()
