"""Streams of a seed and of a key: how they are distributed, that they repeat, and that they are apart."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fedelta.privacy.randomness import KEY_BYTES, Randomness, Secret, Seeded, new_key

SECRET = Secret(bytes(range(KEY_BYTES)))
NUM = 200_000
SAFE = 1e-4  # of a p-value: the streams are fixed, so a test that passes passes for ever


@pytest.fixture(params=[Seeded(7), SECRET], ids=["seeded", "secret"])
def randomness(request: pytest.FixtureRequest) -> Randomness:
    streams: Randomness = request.param
    return streams


def test_numbers_are_standard_normal(randomness):
    numbers = randomness.normal(NUM, "noise", 1, 3)
    assert (numbers.dtype, numbers.shape) == (torch.float64, (NUM,))
    assert stats.kstest(numbers.numpy(), "norm").pvalue > SAFE
    # NUM times the variance is chi-square with NUM degrees of freedom, mean 0 being known.
    assert SAFE < stats.chi2.cdf(float(numbers.square().sum()), NUM) < 1 - SAFE
    # Tails: P(|x| > 4) = 6.3e-5, 12.7 of 200,000 expected.
    assert SAFE < stats.binom.cdf(int((numbers.abs() > 4).sum()), NUM, 2 * stats.norm.sf(4)) < 1 - SAFE


def test_numbers_of_a_stream_are_independent_of_each_other(randomness):
    numbers = randomness.normal(NUM, "noise", 1, 3)
    # A mean of NUM - lag products of independent standard normal numbers has the deviation 1 / sqrt(NUM - lag).
    # 2048: cosine and sine of the same pairs of the secret stream.
    for lag in (1, 2, 2048, 4096):
        products = numbers[lag:] * numbers[:-lag]
        assert abs(float(products.mean())) * math.sqrt(len(products)) < 4, lag
        squares = (numbers[lag:].square() - 1) * (numbers[:-lag].square() - 1) / 2
        assert abs(float(squares.mean())) * math.sqrt(len(squares)) < 4, lag


@pytest.mark.parametrize("other", [("noise", 1, 4), ("noise", 2, 3), ("noise", 13), ("noise", "1", 3), ("nois", 1, 3)])
def test_streams_of_different_paths_are_independent(randomness, other):
    first, second = randomness.normal(NUM, "noise", 1, 3), randomness.normal(NUM, *other)
    assert abs(float((first * second).mean())) * math.sqrt(NUM) < 4
    uniform = torch.rand(50, generator=randomness.generator("noise", 1, 3))
    assert not torch.equal(uniform, torch.rand(50, generator=randomness.generator(*other)))


def test_the_same_path_gives_the_same_numbers_whatever_was_drawn_before(randomness):
    first = randomness.normal(1000, "a")
    randomness.normal(10, "b")
    assert torch.equal(randomness.normal(1000, "a"), first)
    bits = [torch.randint(2**31, (100,), generator=randomness.generator("a")) for _ in range(2)]
    assert torch.equal(*bits)


@pytest.mark.parametrize("num", [0, 1, 2047, 2048, 4095, 4096, 4097, 10_000])
def test_a_secret_number_depends_on_its_place_alone_not_on_how_many_are_asked_for(num):
    assert torch.equal(SECRET.normal(num, "a"), SECRET.normal(12_345, "a")[:num])


def test_numbers_of_a_generator_are_uniform(randomness):
    uniform = torch.rand(NUM, generator=randomness.generator("cohort", 1), dtype=torch.float64)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > SAFE


def test_a_secret_generator_takes_more_of_the_key_than_torch_takes_of_a_seed():
    # torch uses 32 bits of a seed, so seeds that differ above them are the same generator, and all can be tried out.
    first, second = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))
    words = SECRET.generator("a").get_state()[24 : 24 + 624 * 8].view(torch.int64)
    assert len(words.unique()) == 624
    assert 0.45 < float((words >> 31).float().mean()) < 0.55
    # The words are used: one other bit, and the numbers are others.
    generator = SECRET.generator("a")
    state = generator.get_state()
    state[24 + 8 * 500] ^= 1
    changed = torch.Generator().set_state(state)
    assert not torch.equal(torch.rand(624, generator=changed), torch.rand(624, generator=generator))


def test_another_key_gives_other_numbers():
    other = Secret(bytes(KEY_BYTES))
    assert not torch.equal(SECRET.normal(10, "a"), other.normal(10, "a"))
    assert new_key() != new_key()


def test_a_key_below_a_key_is_another_one_for_each_path():
    keys = {SECRET.key, SECRET.below("run", "a").key, SECRET.below("run", "b").key, SECRET.below("a").key}
    assert len(keys) == 4
    assert SECRET.below("run", "a") == SECRET.below("run", "a")


def test_only_secret_streams_are_secure_and_a_key_is_not_printed():
    assert (Seeded(7).is_secure, SECRET.is_secure) == (False, True)
    for text in (repr(SECRET), str(SECRET), f"{SECRET!r}"):
        assert text == "Secret()"


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a key has 32 bytes, found 31"):
        Secret(bytes(31))
