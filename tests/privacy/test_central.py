"""The server's mechanism: what it adds up, what it divides by, and its noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from scipy.stats import chi2
from tests.builders import assert_same_bits, spec_of
from tests.privacy.silent import Silent
from torch import tensor

from fedelta.aggregation.base import Update
from fedelta.errors import ConfigError
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.privacy.accounting import joint
from fedelta.privacy.central import Central, Released
from fedelta.privacy.randomness import Randomness, Secret, Seeded
from fedelta.privacy.settings import Privacy
from fedelta.strategies.base import RoundPlan

SPEC = spec_of(a=(), b=(2,))
DUE = SPEC.names
SECRET = Secret(bytes(range(32)))


def central(
    randomness: Randomness | None = None,
    *,
    expected: float = 4,
    num_clients: int = 8,
    z: float = 1.0,
    **privacy: object,
) -> Central:
    settings = Privacy(unit="client", noise_multiplier=z, **privacy)
    return Central(settings, z, expected, num_clients, randomness or Silent())


def plan_of(
    client_ids: Sequence[int] = (), *, due: tuple[str, ...] = DUE, round: int = 1, asks_squares: bool = False,
    num_holders: Mapping[str, int] | None = None,
) -> RoundPlan:  # fmt: skip
    names_of = dict.fromkeys(client_ids, due)
    return RoundPlan(round, names_of, names_of, 8, num_holders, due, asks_squares)


def released(
    mechanism: Central, deltas: Sequence[Params], plan: RoundPlan | None = None, *, spec: ParamSpec = SPEC,
    clipping_norm: float | None = None,
) -> Released:  # fmt: skip
    noising = mechanism.start(plan or plan_of(range(len(deltas))), spec, clipping_norm)
    for client_id, delta in enumerate(deltas):
        noising.add(Update(client_id, 10, delta))
    return noising.finish()


def delta(a: float, *b: float) -> Params:
    return {"a": tensor(a), "b": tensor(b)}


def test_clipped_deltas_are_added_and_divided_by_the_number_that_was_expected():
    # Of the norm 5, clipped to 1: (0.6, 0, 0.8); as it is: (0, 0.5, 0). Two came where four were expected.
    result = released(central(), [delta(3.0, 0.0, 4.0), delta(0.0, 0.5, 0.0)])
    torch.testing.assert_close(result.mean["a"], tensor(0.15).double())
    torch.testing.assert_close(result.mean["b"], tensor([0.125, 0.2]).double())


def test_a_huge_number_of_examples_and_a_huge_norm_change_no_more_than_the_clipping_norm():
    noising = central().start(plan_of((0,)), SPEC, None)
    noising.add(Update(0, 2**62, delta(1e30, 1e30, -1e30)))
    mean = noising.finish().mean
    assert 4 * torch.cat([part.flatten() for part in mean.values()]).norm() <= 1.0


def test_an_empty_cohort_and_clients_that_are_lost_give_the_same():
    assert_same_bits(
        released(central(Seeded(3)), [], plan_of()).mean, released(central(Seeded(3)), [], plan_of((0, 5))).mean
    )


def test_what_few_clients_hold_is_divided_by_how_many_of_them_are_expected():
    # 2 of 8 clients hold b: 4 * 2 / 8 = 1 of them is expected in a cohort; nobody at all holds c.
    spec, names = spec_of(a=(), b=(2,), c=()), ("a", "b", "c")
    plan = plan_of((0, 1), due=names, num_holders={"a": 8, "b": 2, "c": 0})
    result = released(central(clipping_norm=10.0), [delta(2.0, 1.0, 2.0), {"a": tensor(2.0)}], plan, spec=spec)
    assert {name: part.tolist() for name, part in result.mean.items()} == {"a": 1.0, "b": [1.0, 2.0]}
    assert result.noised.variances == {"a": (10 / 4) ** 2, "b": 10.0**2}


def test_clipping_per_group_limits_each_group_that_is_due_to_its_share():
    # Two groups: 1 / sqrt(2) each. With one group due it may have all of C.
    result = released(central(clipping="per-group"), [delta(3.0, 0.3, 0.4)])
    torch.testing.assert_close(result.mean["a"], tensor(0.25 / math.sqrt(2)).double())
    torch.testing.assert_close(result.mean["b"], tensor([0.075, 0.1]).double(), rtol=1e-6, atol=0)
    alone = released(central(clipping="per-group"), [{"a": tensor(3.0)}], plan_of((0,), due=("a",)))
    torch.testing.assert_close(alone.mean["a"], tensor(0.25).double())


@pytest.mark.parametrize("randomness", [Seeded(11), SECRET], ids=["seeded", "secret"])
@pytest.mark.parametrize("clipping", ["flat", "per-group", "adaptive"])
def test_noise_has_the_stated_deviation_on_every_tensor_that_is_due_sent_or_not(randomness: Randomness, clipping: str):
    spec = spec_of(sent=(20, 50), never=(1000,), rare=(40, 25))
    mechanism = central(randomness, z=0.7, clipping_norm=3.0, clipping=clipping, expected=40, num_clients=80)
    plan = plan_of((0,), due=spec.names, num_holders={"sent": 80, "never": 80, "rare": 20})
    zero = {"sent": torch.zeros(20, 50)}
    result = released(mechanism, [zero], plan, spec=spec)
    # 0.7 * 3 in the sum; of the sensitivity 1/2 of the count, with its noise of 40 / 20, the rest of 0.7^-2 is left.
    deviation = 3.0 * ((0.7**-2 - (2 * 2.0) ** -2) ** -0.5 if clipping == "adaptive" else 0.7)
    for name, expected in (("sent", 40), ("never", 40), ("rare", 10)):
        standard = result.mean[name] * expected / deviation
        assert chi2.ppf(1e-5, 1000) < float(standard.square().sum()) < chi2.ppf(1 - 1e-5, 1000)
        assert abs(float(standard.mean())) < 4.5 / math.sqrt(1000)
        assert result.noised.variances[name] == pytest.approx((deviation / expected) ** 2)
    noise = torch.stack([part.flatten() for part in result.mean.values()])
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 4.5 / math.sqrt(1000)


def test_a_round_that_is_repeated_has_the_same_noise_and_every_other_round_its_own():
    first, again, second = (released(central(SECRET), [], plan_of(round=round)).mean for round in (1, 1, 2))
    assert_same_bits(first, again)
    assert not torch.equal(first["b"], second["b"])


def test_a_round_that_is_repeated_with_other_replies_has_other_secret_noise():
    # The difference of two releases with the same noise would be the difference of the replies.
    silent, secret = (
        [released(central(randomness), [delta(0.1, value, 0.0)]).mean["b"] for value in (0.1, 0.2)]
        for randomness in (Silent(), SECRET)
    )
    assert not torch.allclose(secret[1] - secret[0], silent[1] - silent[0], rtol=0, atol=1e-3)


# Squared norms.


def test_squared_norms_are_those_of_clipped_deltas_by_group():
    # (0.6, 0, 0.8) and (0, 0.5, 0), by 4: 0.36 / 4, and (0.64 + 0.25) / 4.
    deltas = [delta(3.0, 0.0, 4.0), delta(0.0, 0.5, 0.0)]
    squares = released(central(), deltas, plan_of((0, 1), asks_squares=True)).noised.squares
    assert squares == pytest.approx({"a": 0.09, "b": 0.2225})
    assert released(central(), deltas).noised.squares == {}


@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_all_that_a_round_releases_is_together_what_is_accounted(clipping: str):
    mechanism = central(z=0.8, clipping=clipping, expected=40)
    for asks_squares in (False, True):
        plan = plan_of(asks_squares=asks_squares)
        shares = [mechanism.multiplier(plan)]
        shares += [mechanism.squares_multiplier] if asks_squares else []
        shares += [2 * mechanism.count_noise] if clipping == "adaptive" else []
        assert joint(*shares) == pytest.approx(0.8, rel=1e-12)


def test_noise_of_squares_has_the_stated_deviation():
    # sqrt(10) z C^2 in the sum, with C = 3 and z = 0.5; 500 groups of one tensor.
    spec = ParamSpec({f"t{number}": TensorSpec((), f"g{number}") for number in range(500)})
    mechanism = central(Seeded(5), z=0.5, clipping_norm=3.0)
    squares = released(mechanism, [], plan_of(due=spec.names, asks_squares=True), spec=spec).noised.squares
    standard = torch.tensor(list(squares.values())).double() * 4 / (math.sqrt(10) * 0.5 * 9)
    assert chi2.ppf(1e-5, 500) < float(standard.square().sum()) < chi2.ppf(1 - 1e-5, 500)


# Adaptive clipping.


def test_the_clipping_norm_moves_towards_the_quantile():
    # 3 of 4 are at most 1: C exp(-0.2 (0.75 - 0.5)); then none of 4 is: C exp(0.2 * 0.5).
    mechanism = central(clipping="adaptive", count_noise=10.0)
    below = [delta(0.5, 0.0, 0.0)] * 3 + [delta(9.0, 0.0, 0.0)]
    assert released(mechanism, below).clipping_norm == pytest.approx(math.exp(-0.05))
    assert released(mechanism, [delta(9.0, 0.0, 0.0)] * 4).clipping_norm == pytest.approx(math.exp(0.1))
    assert released(mechanism, below, clipping_norm=9.5).clipping_norm == pytest.approx(9.5 * math.exp(-0.1))


def test_a_client_that_is_not_there_counts_as_half():
    mechanism = central(clipping="adaptive", count_noise=10.0)
    assert released(mechanism, []).clipping_norm == 1.0
    # One of four is there, above: b = 1/2 - 1/8.
    assert released(mechanism, [delta(9.0, 0.0, 0.0)]).clipping_norm == pytest.approx(math.exp(0.2 / 8))


def test_the_noise_in_the_count_has_the_stated_deviation():
    # log C' = -0.2 * (noise of sigma_b = 3) / 40, in 400 rounds.
    mechanism = central(SECRET, clipping="adaptive", count_noise=3.0, expected=40)
    moves = [math.log(released(mechanism, [], plan_of(round=round)).clipping_norm) for round in range(1, 401)]
    total = math.fsum((move / 0.2 * 40 / 3) ** 2 for move in moves)
    assert chi2.ppf(1e-5, 400) < total < chi2.ppf(1 - 1e-5, 400)


def test_a_fixed_clipping_norm_stays():
    assert released(central(clipping_norm=0.3), [delta(9.0, 0.0, 0.0)]).clipping_norm == 0.3


def test_the_factor_of_andrew_et_al():
    # z = 1: 1.0124352 with sigma_b = 3.2 (64 clients), 1.2810252 with sigma_b = 0.8 (16 clients).
    for expected, factor in ((64, 1.0124352), (16, 1.2810252)):
        mechanism = central(clipping="adaptive", expected=expected, num_clients=128)
        assert mechanism.multiplier(plan_of()) == pytest.approx(factor, abs=1e-7)


def test_a_count_with_too_little_noise_is_refused_in_words():
    # 8 / 20 = 0.4, and 2 * 0.4 <= 1.
    with pytest.raises(ConfigError) as caught:
        central(clipping="adaptive", expected=8)
    [problem] = caught.value.problems
    assert problem.startswith(
        "`privacy.count_noise` is 0.4 for `strategy.clients_per_round` = 8, expected more than 0.5, half of the noise "
        "multiplier 1:"
    )
    assert caught.value.hint is not None
    assert "`privacy.count_noise` above 0.5" in caught.value.hint
