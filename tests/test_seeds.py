"""Random streams: the same path gives the same bits, another path gives others."""

from __future__ import annotations

import hashlib

import pytest
import torch

from fedelta.seeds import derive, stream, uniform_numbers


def draw(*path: str | int, seed: int = 7) -> torch.Tensor:
    return torch.rand(1000, generator=stream(seed, *path))


def test_the_same_path_gives_the_same_bits_whatever_was_drawn_before():
    expected = draw("batches", 3, 12)
    draw("cohort", 3)
    assert torch.equal(expected, draw("batches", 3, 12))


@pytest.mark.parametrize(
    "path",
    [
        ("batches", 3, 13),
        ("batches", 4, 12),
        ("cohort", 3, 12),
        ("batches", 12, 3),
        ("batches", 3),
        ("batches", "3", 12),
    ],
)
def test_another_path_gives_a_stream_without_correlation(path: tuple[str | int, ...]):
    # Correlation of 1,000 independent pairs has a deviation of 1 / sqrt(1000) = 0.032; 0.15 is almost 5 of them.
    draws = torch.stack([draw("batches", 3, 12), draw(*path)])
    assert abs(torch.corrcoef(draws)[0, 1].item()) < 0.15


def test_another_seed_gives_another_stream():
    assert not torch.equal(draw("cohort", 1, seed=7), draw("cohort", 1, seed=8))


def test_seeds_are_all_different_over_many_rounds_and_clients():
    seeds = {derive(0, "batches", round, client) for round in range(50) for client in range(64)}
    assert len(seeds) == 50 * 64


def test_words_are_not_run_together():
    assert derive(0, "ab", "c") != derive(0, "a", "bc")


def test_a_seed_is_half_of_the_first_eight_bytes_of_a_sha256():
    # Written out, because every recorded run depends on it.
    digest = hashlib.sha256(b"(7, 'batches', 3)").digest()
    assert derive(7, "batches", 3) == int.from_bytes(digest[:8], "big") // 2
    assert 0 <= derive(7, "batches", 3) < 2**63


def test_streams_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    draw("cohort", 1)
    assert torch.equal(state, torch.get_rng_state())


def test_uniform_numbers_are_even_and_go_on_from_call_to_call():
    generator = stream(7, "cohort")
    numbers = torch.cat([uniform_numbers(generator, 1000) for _ in range(20)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(numbers.unique()) == 20_000
    # 20 cells of 1,000 numbers expected each: chi-square with 19 degrees of freedom, 0.1 % to either side.
    counts = numbers.histc(bins=20, min=0, max=1)
    assert 5.4 < ((counts - 1000) ** 2 / 1000).sum() < 43.8
    assert torch.equal(numbers[:1000], uniform_numbers(stream(7, "cohort"), 1000))


def test_uniform_numbers_are_not_those_of_torchs_generator_whose_state_they_would_tell():
    expected = torch.rand(5000, generator=stream(7), dtype=torch.float64)
    assert not torch.isin(uniform_numbers(stream(7), 1000), expected).any()
    # one call does not tell the next: they come from different states
    generator = stream(7)
    assert not torch.isin(uniform_numbers(generator, 1000), uniform_numbers(generator, 1000)).any()
