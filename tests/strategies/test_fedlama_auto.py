"""FedLAMA under a budget: the best choice by brute force, and budgets that whole runs keep to."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.builders import spec_of
from tests.small import CONVOLUTIONAL, SMALL, write_small
from tests.strategies.hand import step
from tests.strategies.windowed import SPEC, START, walking
from torch import Tensor, tensor

from fedelta.aggregation.base import Update
from fedelta.config import load_config
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment
from fedelta.federation.rounds import Standing, federate
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.strategies.base import State
from fedelta.strategies.fedlama_auto import FedLamaAuto, interval_choices


def drawn(round: int, client_id: int) -> Params:
    """Layers that disagree to very different degrees, another time in every round."""
    return {
        name: scale * torch.randn(value.shape, generator=stream(0, "move", round, client_id, name))
        for (name, value), scale in zip(START.items(), (3.0, 1.0, 0.1), strict=True)
    }


def amounts(unit: Tensor, sizes: Tensor, intervals: Tensor) -> tuple[float, float]:
    """Traffic a round, sum dim / a, and discrepancy, sum d dim a."""
    return float((sizes / intervals).sum()), float((unit * sizes * intervals).sum())


def test_steps_are_taken_from_the_cheapest_on():
    # d a b for each step from a to b: of the first group 1 * 1 * 2 and 1 * 2 * 4; of the second 3 * 2 and 3 * 8;
    # of the third 0.5 * 2 and 0.5 * 8. In order 1 (third), 2 (first), 4 (third), 6 (second), 8 (first), 24 (second).
    choices = [intervals.tolist() for intervals in interval_choices(tensor([1.0, 3.0, 0.5]), 4)]
    assert choices == [[1, 1, 1], [1, 1, 2], [2, 1, 2], [2, 1, 4], [2, 2, 4], [4, 2, 4], [4, 4, 4]]


def test_intervals_are_divisors_of_phi():
    choices = torch.stack([*interval_choices(tensor([1.0, 2.0]), 12)])
    assert set(choices.flatten().tolist()) == {1, 2, 3, 4, 6, 12}
    assert [intervals.tolist() for intervals in interval_choices(tensor([1.0, 2.0]), 1)] == [[1, 1]]
    assert [intervals.tolist() for intervals in interval_choices(tensor([5.0]), 7)] == [[1], [7]]


def test_equal_groups_go_in_the_order_of_the_model_and_step_by_step():
    assert [intervals.tolist() for intervals in interval_choices(torch.zeros(2), 4)] == [
        [1, 1],
        [2, 1],
        [4, 1],
        [4, 2],
        [4, 4],
    ]


@pytest.mark.parametrize("phi", [4, 6, 7])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_with_as_much_traffic_has_less_discrepancy(phi: int, seed: int):
    generator = stream(seed, "groups")
    unit = torch.rand(4, generator=generator, dtype=torch.float64) ** 2
    sizes = torch.randint(1, 100, (4,), generator=generator)
    divisors = [divisor for divisor in range(1, phi + 1) if phi % divisor == 0]
    every = [amounts(unit, sizes, tensor(choice)) for choice in itertools.product(divisors, repeat=4)]
    for intervals in interval_choices(unit, phi):
        traffic, discrepancy = amounts(unit, sizes, intervals)
        assert (
            discrepancy
            <= min(
                choice_discrepancy for choice_traffic, choice_discrepancy in every if choice_traffic <= traffic + 1e-9
            )
            + 1e-9
        )


def test_the_next_intervals_by_hand_with_a_share():
    # a, b and c have 1, 2 and 4 scalars; 7 in all, windows of 4 in a run of 12, share 1/2: 42 of 84.
    # It begins with interval 2: 2 * 7 = 14 in the first window. 28 are left for 8 rounds.
    # d is 8 times as large for a as for c, b in between. Steps: c 1-2 costs 2, b 4, c 2-4 8, a 16, b 2-4 16, a 64.
    # Over 8 rounds: 56 at first; c at 2: 8 + 16 + 16 = 40; b at 2: 32; c at 4: 8 + 8 + 8 = 24, the first within 28.
    strategy = FedLamaAuto(phi=4, num_rounds=12, share=0.5, clients_per_round=2, tau=1)
    state = strategy.init(START, SPEC)
    assert state["interval_rounds"].tolist() == [2, 2, 2]
    intervals = ended(strategy, state | {"num_syncs": tensor([1, 1, 1])}, unit=(8.0, 2.0, 1.0))
    assert intervals["num_syncs"].tolist() == [2, 2, 2]
    assert intervals["interval_rounds"].tolist() == [1, 2, 4]


def test_the_next_intervals_by_hand_with_a_tolerance():
    # d dim is 8, 4 and 4, in all 16; tolerance 1.1 allows 33.6. c at 2: 20; b at 2: 24; c at 4: 32; a at 2: 40, more.
    strategy = FedLamaAuto(phi=4, num_rounds=12, tolerance=1.1, clients_per_round=2, tau=1)
    assert strategy.init(START, SPEC)["interval_rounds"].tolist() == [1, 1, 1]
    assert ended(strategy, strategy.init(START, SPEC), unit=(8.0, 2.0, 1.0))["interval_rounds"].tolist() == [1, 2, 4]
    strict = FedLamaAuto(phi=4, num_rounds=12, tolerance=0.0, clients_per_round=2, tau=1)
    assert ended(strict, strict.init(START, SPEC), unit=(8.0, 2.0, 1.0))["interval_rounds"].tolist() == [1, 1, 1]
    # A group without any discrepancy costs nothing.
    assert ended(strict, strict.init(START, SPEC), unit=(8.0, 0.0, 1.0))["interval_rounds"].tolist() == [1, 4, 1]


def ended(strategy: FedLamaAuto, state: State, unit: tuple[float, float, float]) -> State:
    """The state after the first window, whose last round finds discrepancies in proportion to `unit`."""
    plan = strategy.plan(state, 4, range(2), SPEC, stream(0))
    # One of two equal clients moves by 2 s in every scalar: the squared distance is s^2 a scalar.
    moved = {
        name: torch.full_like(value, 2 * distance**0.5)
        for (name, value), distance in zip(START.items(), unit, strict=True)
    }
    sent = [Update(0, 1, moved), Update(1, 1, START)]
    _, state = step(strategy, state, START, plan, sent, SPEC)
    shares = state["unit_discrepancy"] / state["unit_discrepancy"].sum()
    torch.testing.assert_close(shares, tensor(unit).double() / sum(unit), atol=1e-6, rtol=0)
    return state


@pytest.mark.parametrize("phi", [2, 6, 8])
@pytest.mark.parametrize("num_rounds", [1, 5, 24, 29])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.8, 1.0])
def test_a_run_keeps_to_its_share_whatever_its_length(phi: int, num_rounds: int, share: float):
    # The least: every group in every phi-th round and in the last.
    least = -(-num_rounds // phi) / num_rounds
    share = max(share, least)
    strategy = FedLamaAuto(phi=phi, num_rounds=num_rounds, share=share, clients_per_round=2)
    running, _, _ = walking(strategy, drawn)
    finished = list(federate(running, Standing(START, strategy.init(START, SPEC))))
    share_sent = sum(outcome.synced_fraction for outcome in finished) / num_rounds
    assert share_sent <= share + 1e-12
    assert finished[-1].synced_fraction == 1.0
    # And it is spent, where there is a choice: the last window could not have had the next choice.
    if num_rounds % phi == 0 and num_rounds > 2 * phi:
        assert share_sent > 0.7 * share


def test_what_a_window_has_saved_is_spent_in_the_next():
    # Share 1/2 begins with interval 2 everywhere. A run whose first window was half lost has more for the second.
    strategy = FedLamaAuto(phi=2, num_rounds=8, share=0.75, clients_per_round=2, min_replies=2)
    logged = []
    for lost in (lambda round, client_id: False, lambda round, client_id: round in (2, 3)):
        running, _, _ = walking(strategy, drawn, lost=lost)
        finished = list(federate(running, Standing(START, strategy.init(START, SPEC))))
        logged.append(sum(outcome.synced_fraction for outcome in finished[4:]))
    assert logged[1] > logged[0]


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 2.0, 100.0])
def test_a_run_keeps_to_its_tolerance(tolerance: float):
    strategy = FedLamaAuto(phi=8, num_rounds=24, tolerance=tolerance, clients_per_round=2)
    running, _, _ = walking(strategy, drawn)
    finished = list(federate(running, Standing(START, strategy.init(START, SPEC))))
    sizes = tensor(list(SPEC.sizes.values())).double()
    for outcome in finished[7:16:8]:
        unit, intervals = (tensor(outcome.logged[name]).double() for name in ("unit_discrepancy", "interval_rounds"))
        allowed = (1 + tolerance) * float(unit @ sizes)
        assert float((unit * sizes) @ intervals) <= allowed * (1 + 1e-12)
        if tolerance == 0.0:
            assert set(intervals.tolist()) == {1.0}
        if tolerance == 100.0:
            assert set(intervals.tolist()) == {8.0}


def spec_of_size(num_groups: int) -> ParamSpec:
    return spec_of(**{f"layer{index}": (index + 1,) for index in range(num_groups)})


@pytest.mark.parametrize(
    ("share", "interval"), [(1.0, 1), (0.9, 2), (0.5, 2), (0.4, 4), (0.25, 4), (0.2, 8), (0.125, 8)]
)
def test_it_begins_with_one_interval_for_all_that_keeps_to_the_share(share: float, interval: int):
    spec = spec_of_size(5)
    state = FedLamaAuto(share=share, num_rounds=80).init({}, spec)
    assert state["interval_rounds"].tolist() == [interval] * 5


def test_a_first_interval_leaves_enough_for_a_short_last_window():
    # 10 rounds, windows of 8, share 1/4: 2.5 full rounds. Interval 4 would take 2 in the first window, and the last
    # round needs 1: 3 in all. Interval 8 takes 2.
    assert FedLamaAuto(share=0.25, num_rounds=10).init({}, SPEC)["interval_rounds"].tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.5, "tolerance": 1.0}, "give `share` or `tolerance`, not both"),
        ({"share": 0.1, "phi": 4, "num_rounds": 40}, "`share` is 0.1, expected at least 0.25: every group travels"),
        # 9 rounds in windows of 8: after 8 and after 9
        ({"share": 0.125, "num_rounds": 9}, "`share` is 0.125, expected at least 0.2222: every group travels in every"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"tolerance": -1.0}, "greater than or equal to 0"),
    ],
)
def test_impossible_budgets_are_refused(fields: dict[str, float], message: str):
    with pytest.raises(ValidationError) as caught:
        FedLamaAuto(**fields)
    assert message in str(caught.value)


# Budgets in bytes.

AUTO = ("client.local_epochs=", "strategy.name=fedlama-auto", "strategy.tau=1", "strategy.phi=4")


BUDGETS: list[tuple[str, tuple[str, ...], float]] = [
    (SMALL, (), 0.1),
    (SMALL, ("codec.name=float32", "tuning.name=bias"), 0.13),
    (CONVOLUTIONAL, ("tuning.name=full",), 1.0),
    (CONVOLUTIONAL, (), 0.25),
]


# Rounds that fill windows of four, and two more: each with two of the budgets, and with all of them among the slow.
@pytest.mark.parametrize(
    ("text", "overrides", "mib", "num_rounds"),
    [
        pytest.param(*budget, num_rounds, marks=[] if (index + turn) % 2 == 0 else pytest.mark.slow)
        for index, budget in enumerate(BUDGETS)
        for turn, num_rounds in enumerate((12, 14))
    ],
)
def test_a_run_stays_within_its_bytes_and_ends_with_everything_averaged(
    tmp_path: Path, text: str, overrides: tuple[str, ...], mib: float, num_rounds: int
):
    overrides = (*AUTO, f"strategy.num_rounds={num_rounds}", f"byte_budget_mib={mib}", *overrides)
    experiment = Experiment.from_toml(write_small(tmp_path, text=text), (*overrides, f"evaluate_every={num_rounds}"))
    strategy = experiment.assembly.strategy
    assert strategy.least_share <= strategy.share < 1
    outcomes = []
    result = experiment.run(tmp_path / "run", on_round=lambda outcome, _: outcomes.append(outcome))
    assert len(outcomes) == num_rounds
    assert outcomes[-1].synced_fraction == 1.0
    assert result.ledger.total_bytes <= mib * 2**20
    assert result.summary["relative_cost"] <= strategy.share
    # The configuration of the run stays what was read; what it was made into is told beside it.
    assert load_config(result.path / "config.toml") == experiment.config
    assert json.loads((result.path / "model.json").read_text())["strategy"]["share"] == strategy.share


def least_mib(folder: Path, *overrides: str) -> float:
    """Bytes of a run in which everything travels as seldom as it can."""
    quiet = (*AUTO, "strategy.num_rounds=6", "evaluate_every=6", *overrides)
    experiment = Experiment.from_toml(write_small(folder), (*quiet, f"strategy.share={2 / 6}"))
    return experiment.run(folder / "least").ledger.total_bytes / 2**20


def test_the_least_budget_is_what_such_a_run_really_takes(tmp_path: Path):
    least = least_mib(tmp_path)
    overrides = (*AUTO, "strategy.num_rounds=6", "evaluate_every=6")
    enough = Experiment.from_toml(write_small(tmp_path), (*overrides, f"byte_budget_mib={1.0001 * least}"))
    assert enough.run(tmp_path / "enough").summary["rounds"] == 6
    with pytest.raises(ConfigError) as caught:
        Experiment.from_toml(write_small(tmp_path), (*overrides, f"byte_budget_mib={0.999 * least}")).assembly  # noqa: B018
    assert f"`byte_budget_mib` is {0.999 * least:g}, expected at least {least:.3g}" in str(caught.value)
    assert "raise the budget or `strategy.phi`, or run fewer rounds" in str(caught.value)


def test_more_bytes_than_fedavg_needs_are_a_share_of_one(tmp_path: Path):
    overrides = (*AUTO, "byte_budget_mib=1000.0")
    assert Experiment.from_toml(write_small(tmp_path), overrides).assembly.strategy.share == 1.0


def test_a_share_or_a_tolerance_of_ones_own_stays(tmp_path: Path):
    for budget in ("share=0.5", "tolerance=2.0"):
        overrides = (*AUTO, "strategy.num_rounds=8", "byte_budget_mib=0.0001", f"strategy.{budget}")
        strategy = Experiment.from_toml(write_small(tmp_path), overrides).assembly.strategy
        assert (strategy.share, strategy.tolerance) == ((0.5, None) if "share" in budget else (None, 2.0))


def test_without_any_budget_it_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(write_small(tmp_path), AUTO)
    expected = "chooses intervals by a budget: give `strategy.share`, `strategy.tolerance` or `byte_budget_mib`"
    assert expected in str(caught.value)
