"""Krum, Multi-Krum and the geometric median: worked out by hand, and attacked."""

from collections.abc import Sequence

import pytest
import torch

from fedelta.aggregation.base import Aggregation, Update, combine
from fedelta.aggregation.geometric_median import GeometricMedian
from fedelta.aggregation.krum import Krum, MultiKrum, scores, squared_distances
from fedelta.aggregation.robust import Median, Trimmed
from fedelta.config import parse_config
from fedelta.errors import ConfigError
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.seeds import stream

SPEC = ParamSpec({"w": TensorSpec((), "w"), "v": TensorSpec((2,), "v")})
ROBUST = (Krum(), MultiKrum(), GeometricMedian(), Median(), Trimmed())


def mean_of(mean: Aggregation, values: Sequence[float]) -> float:
    updates = [Update(client, 10 * client + 1, {"w": torch.tensor(value)}) for client, value in enumerate(values)]
    return float(combine(mean, updates, SPEC, stream(0))["w"])


def test_krum_takes_the_update_with_the_closest_neighbours():
    # f = 1 of 6: the sum over the 3 closest others.
    values = (0.0, 1.0, 2.0, 3.0, 4.0, 90.0)
    # 0: 1 + 4 + 9 = 14, 1: 1 + 1 + 4 = 6, 2: 1 + 1 + 4 = 6, 3: 1 + 1 + 4 = 6, 4: 1 + 4 + 9 = 14, 90: 7,396 and more
    points = [{"w": torch.tensor(value)} for value in values]
    assert scores(squared_distances(points), 1).tolist()[:5] == [14.0, 6.0, 6.0, 6.0, 14.0]
    assert mean_of(Krum(), values) == 3.0  # of 1, 2 and 3 the one that is closest to all others, the 90 included
    assert mean_of(MultiKrum(num_chosen=3), values) == 2.0  # (1 + 2 + 3) / 3
    assert mean_of(MultiKrum(), values) == 2.0  # all but the 90


def test_equal_updates_are_neighbours_of_each_other_and_not_of_themselves():
    # |x|^2 + |y|^2 - 2 x y in float32 would be negative or zero for large values that differ.
    values = (1e4, 1e4, 1e4 + 1, 1e4 + 2, -5.0)
    assert scores(squared_distances([{"w": torch.tensor(value)} for value in values]), 1).tolist()[:3] == [
        0.0 + 1,
        0.0 + 1,
        1 + 1,
    ]
    assert mean_of(Krum(), values) == 1e4


def test_the_geometric_median_of_a_line_is_its_median_and_of_a_cross_its_middle():
    assert mean_of(GeometricMedian(), (1.0, 2.0, 40.0)) == pytest.approx(2.0, abs=1e-4)
    corners = [(0.0, 1.0), (0.0, -1.0), (5.0, 0.0), (-7.0, 0.0)]  # where the diagonals cross
    updates = [Update(client, 1, {"v": torch.tensor(corner)}) for client, corner in enumerate(corners)]
    assert combine(GeometricMedian(), updates, SPEC, stream(0))["v"].tolist() == pytest.approx([0.0, 0.0], abs=1e-3)


def attacked(kind: str, deltas: list[Params]) -> list[Params]:
    factor = {"sign flip": -1.0, "scaling": 1e3, "sign flip and scaling": -1e12}[kind]
    return [{name: factor * tensor for name, tensor in deltas[0].items()}, *deltas[1:]]


@pytest.mark.parametrize("mean", ROBUST, ids=lambda mean: mean.name)
@pytest.mark.parametrize("kind", ["sign flip", "scaling", "sign flip and scaling"])
def test_a_bad_client_of_seven_does_not_turn_the_mean_around(mean: Aggregation, kind: str):
    direction = torch.tensor([3.0, -4.0])
    deltas = [{"v": direction + 0.3 * torch.randn(2, generator=stream(3, client))} for client in range(7)]
    updates = [Update(client, 1, delta) for client, delta in enumerate(attacked(kind, deltas))]
    found = combine(mean, updates, SPEC, stream(0))["v"]
    assert float((found - direction).norm()) < 0.6  # of 5, the length of the direction


@pytest.mark.parametrize("mean", [Krum(num_bad=0), MultiKrum(num_bad=0), GeometricMedian(num_bad=0)])
def test_tensors_of_other_senders_are_a_problem_for_themselves(mean: Aggregation):
    updates = [
        Update(client, 1, {"w": torch.tensor(1.0)} | ({"v": torch.tensor([2.0, 2.0])} if client else {}))
        for client in range(4)
    ]
    found = combine(mean, updates, SPEC, stream(0))
    assert found["w"].item() == 1.0
    assert found["v"].tolist() == [2.0, 2.0]


def test_how_many_replies_a_number_of_bad_clients_needs():
    assert [Krum(num_bad=bad).min_values for bad in (0, 1, 2)] == [3, 5, 7]
    assert MultiKrum(num_bad=1, num_chosen=8).min_values == 9
    assert [GeometricMedian(num_bad=bad).min_values for bad in (1, 2)] == [3, 5]
    assert [Median(num_bad=bad).min_values for bad in (1, 3)] == [3, 7]
    assert Trimmed(fraction=0.1, num_bad=2).min_values == 20


@pytest.mark.parametrize("name", ["krum", "multi-krum", "geometric-median", "median", "trimmed"])
def test_a_cohort_that_is_too_small_for_the_bad_clients_is_refused(name: str):
    table = {
        "model": {"source": "bundled:vit-micro"},
        "data": {"source": "digits"},
        "partition": {"name": "iid", "num_clients": 9},
        "strategy": {"name": "fedavg", "clients_per_round": 6, "mean": {"name": name, "num_bad": 3}},
    }
    with pytest.raises(ConfigError, match=rf"'{name}', which needs at least \d+ replies to leave 3 bad ones out"):
        parse_config(table)


@pytest.mark.parametrize("num_chosen", [6, 7])
def test_more_chosen_than_there_are_good_clients_are_refused(num_chosen: int):
    mean = {"name": "multi-krum", "num_chosen": num_chosen}
    table = {
        "model": {"source": "bundled:vit-micro"},
        "data": {"source": "digits"},
        "partition": {"name": "iid", "num_clients": 9},
        "strategy": {"name": "fedavg", "clients_per_round": 6, "mean": mean},
    }
    with pytest.raises(ConfigError, match=rf"`strategy.mean.num_chosen` is {num_chosen}, expected at most 5"):
        parse_config(table)
    parse_config(table | {"strategy": {**table["strategy"], "mean": mean | {"num_chosen": 5}}})
