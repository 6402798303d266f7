"""What a client sends under `unit = "local"`: limited, noisy, and the same only for the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.builders import assert_same_bits, spec_of

from fedelta.params import Params, ParamSpec, TensorSpec, norm
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import KEY_BYTES, Randomness, Secret, Seeded
from fedelta.privacy.settings import Privacy
from fedelta.seeds import stream

SPEC = spec_of(a=(40, 50), b=(3,), c=())
GROUPED = ParamSpec({"a": TensorSpec((4, 5), "low"), "b": TensorSpec((3,), "high"), "c": TensorSpec((), "high")})
SEEDED, SECRET = Seeded(1), Secret(bytes(KEY_BYTES))


def local(noise: float, randomness: Randomness = SEEDED, clip: float = 1.0, **settings: object) -> SitePrivacy:
    """Noise 0 is no setting that a configuration can have; it shows what noise is added to."""
    privacy = Privacy(unit="local", noise_multiplier=noise or 1.0, clipping_norm=clip, **settings)
    return SitePrivacy(privacy, noise, randomness)


def drawn(spec: ParamSpec, length: float, seed: int = 0) -> Params:
    tensors = {name: torch.randn(spec.tensors[name].shape, generator=stream(seed, name)) for name in spec}
    return {name: tensor * (length / norm(tensors)) for name, tensor in tensors.items()}


@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=23, max_size=23),
    st.floats(1e-6, 1e6),
    st.sampled_from(["flat", "per-group"]),
)
def test_what_noise_is_added_to_is_never_longer_than_the_clipping_norm(values, clip, clipping):
    parts = torch.tensor(values, dtype=torch.float32).split([20, 3])
    delta = {"a": parts[0].reshape(4, 5), "b": parts[1]}
    sent = local(0.0, clip=clip, clipping=clipping).randomised(delta, GROUPED, 1, 0)
    # Rounding to float32 happens after the noise, so it belongs to no mechanism; here it costs 2^-24 of each element.
    assert norm(sent) <= clip * (1 + 2**-24)
    if clipping == "per-group":
        assert all(norm({name: tensor}) <= clip / math.sqrt(2) * (1 + 2**-24) for name, tensor in sent.items())


@given(st.floats(0.0, 1e30), st.floats(0.0, 1e30), st.sampled_from(["flat", "per-group"]))
def test_two_deltas_of_whatever_data_differ_by_twice_the_clipping_norm_at_most(first, second, clipping):
    privacy = local(0.0, clip=0.5, clipping=clipping)
    one = privacy.randomised(drawn(GROUPED, first), GROUPED, 1, 0)
    # The opposite direction is the worst case.
    other = privacy.randomised({name: -tensor for name, tensor in drawn(GROUPED, second).items()}, GROUPED, 1, 0)
    assert norm({name: one[name] - other[name] for name in one}) <= 2 * 0.5 * (1 + 1e-6)


def test_opposite_deltas_reach_the_sensitivity_that_is_accounted():
    privacy, delta = local(0.0, clip=0.5), drawn(SPEC, 100.0)
    one, other = (
        privacy.randomised({name: sign * tensor for name, tensor in delta.items()}, SPEC, 1, 0) for sign in (1, -1)
    )
    assert norm({name: one[name] - other[name] for name in one}) == pytest.approx(1.0)


def test_a_delta_that_is_short_enough_is_not_changed_before_the_noise():
    delta = drawn(SPEC, 0.4)
    assert_same_bits(local(0.0, clip=0.5).randomised(delta, SPEC, 1, 0), delta)


@pytest.mark.parametrize("randomness", [Seeded(1), SECRET], ids=["seeded", "secret"])
def test_noise_has_the_deviation_of_multiplier_times_clipping_norm_in_every_tensor(randomness):
    # 3 * 0.2 = 0.6
    delta = drawn(SPEC, 0.1)
    sent = local(3.0, randomness, clip=0.2).randomised(delta, SPEC, 4, 2)
    noise = torch.cat([(sent[name] - delta[name]).flatten() for name in SPEC]).double() / 0.6
    assert noise.numel() == 2004
    assert 1e-3 < stats.chi2.cdf(float(noise.square().sum()), noise.numel()) < 1 - 1e-3
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_delta_that_is_not_finite_counts_as_zero(broken):
    delta = drawn(SPEC, 0.1)
    delta["b"][1] = broken
    zero = {name: torch.zeros_like(tensor) for name, tensor in delta.items()}
    privacy = local(1.0)
    assert_same_bits(privacy.randomised(delta, SPEC, 1, 0), privacy.randomised(zero, SPEC, 1, 0))


@pytest.mark.parametrize("randomness", [Seeded(1), SECRET], ids=["seeded", "secret"])
def test_noise_repeats_with_the_round_and_is_another_in_other_rounds_and_for_other_clients(randomness):
    privacy, delta = local(1.0, randomness), drawn(SPEC, 0.1)
    first = privacy.randomised(delta, SPEC, 1, 0)
    assert_same_bits(privacy.randomised(delta, SPEC, 1, 0), first)
    for round, client in ((2, 0), (1, 1)):
        assert not torch.equal(privacy.randomised(delta, SPEC, round, client)["b"], first["b"])


def test_two_answers_for_the_same_round_have_different_secret_noise_if_they_are_about_different_deltas():
    # Otherwise their difference would show the data without noise.
    privacy, short = local(1.0, SECRET), drawn(SPEC, 0.1)
    longer = {name: 2 * tensor for name, tensor in short.items()}
    noises = [
        torch.cat([(privacy.randomised(delta, SPEC, 1, 0)[name] - delta[name]).flatten() for name in SPEC])
        for delta in (short, longer)
    ]
    assert abs(float(torch.corrcoef(torch.stack(noises))[0, 1])) < 0.1


def test_a_step_that_is_repeated_with_other_data_has_other_secret_noise():
    for randomness, same in ((Seeded(1), True), (SECRET, False)):
        noise = SitePrivacy(Privacy(unit="example"), 1.0, randomness, {3: "x"}).step_noise(1, 3)
        sums = [torch.ones(5), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0 + 1e-6])]
        assert torch.equal(noise(0, sums[0]), noise(0, sums[0]))
        assert torch.equal(*(noise(0, exact) for exact in sums)) is same


def test_clients_have_the_streams_of_their_occasion_which_only_secret_ones_know():
    for randomness, same in ((Seeded(1), True), (SECRET, False)):
        first, second = (SitePrivacy(Privacy(unit="local"), 1.0, randomness, {3: name}) for name in ("x", "y"))
        numbers = [privacy.streams(3).normal(5, "noise") for privacy in (first, second)]
        assert torch.equal(*numbers) is same
        assert torch.equal(first.streams(4).normal(5, "noise"), randomness.normal(5, "noise"))
        steps = [privacy.step_noise(1, 3)(0, torch.ones(5)) for privacy in (first, second)]
        assert torch.equal(*steps) is same


@pytest.mark.parametrize("randomness", [SEEDED, SECRET])
def test_every_step_of_every_client_has_its_own_noise(randomness):
    # With the same noise twice, the difference of two gradients would have none.
    privacy = SitePrivacy(Privacy(unit="example", noise_multiplier=2.0, clipping_norm=0.5), 2.0, randomness)
    places = [(round, client, step) for round in (1, 2) for client in (0, 1) for step in (0, 1)]
    exact = torch.zeros(4, dtype=torch.float64)
    draws = {place: privacy.step_noise(place[0], place[1])(place[2], exact) for place in places}
    assert len({tuple(noise.tolist()) for noise in draws.values()}) == len(places)
    torch.testing.assert_close(privacy.step_noise(2, 1)(1, exact), draws[2, 1, 1], rtol=0, atol=0)
