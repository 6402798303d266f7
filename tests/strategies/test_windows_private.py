"""FedLAMA from noisy sums: the discrepancy that it would measure from single updates, on average."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.federation.private import NUM_CLIENTS, SPEC, begun, next_of, private, strategy_of
from torch import Tensor

from fedelta.federation.base import Federation
from fedelta.federation.rounds import federate
from fedelta.privacy.randomness import Randomness, Seeded
from fedelta.strategies.base import Noised
from fedelta.strategies.windows import _noisy_distances


def window(federation: Federation) -> Tensor:
    """The unit discrepancy after the first window of two rounds."""
    standing = begun(federation)
    for outcome in federate(federation, standing):
        standing = next_of(outcome)
        if outcome.round == 2:
            break
    return standing.state["unit_discrepancy"]


def of_everyone(name: str, randomness: Randomness | None = None, **other: object) -> Federation:
    """Four rounds in which all eight clients send deltas of the same size, none of which is clipped."""
    federation = private(strategy_of(name, "fixed", num_rounds=4, clients_per_round=8), randomness=randomness, **other)
    federation.runtime.scales = (1.0,)
    return federation


@pytest.mark.parametrize("name", ["fedlama", "fedlama-auto"])
def test_without_noise_it_is_the_discrepancy_of_single_updates(name: str):
    # All clients took part, so that the expected number is the number of clients. Of no noise no bias is taken off.
    noiseless = of_everyone(name, clipping_norm=1e6, z=1e-12)
    public = replace(noiseless, central=None)
    torch.testing.assert_close(window(noiseless), window(public), rtol=1e-6, atol=1e-12)
    assert float(window(public).min()) > 0


def test_noise_does_not_change_it_on_average():
    # Of `first`, 15 scalars with 200 draws of the noise; the noise in the mean alone would add 15 z^2 C^2 / 64.
    totals = torch.zeros(200, 3, dtype=torch.float64)
    mean = {name: torch.randn(SPEC.tensors[name].shape, generator=torch.Generator().manual_seed(1)).double()
        for name in SPEC.shared}  # fmt: skip
    squares = dict.fromkeys(SPEC.sizes, 5.0)
    exact = _noisy_distances(mean, Noised(dict.fromkeys(mean, 0.0), dict.fromkeys(squares, 100.0)), SPEC)
    for draw in range(200):
        noisy = {
            name: part + 0.8 * Seeded(draw).normal(part.numel(), name).reshape(part.shape)
            for name, part in mean.items()
        }
        totals[draw] = _noisy_distances(noisy, Noised(dict.fromkeys(mean, 0.64), dict.fromkeys(squares, 100.0)), SPEC)
    error, deviation = (totals.mean(0) - exact).abs(), totals.std(0) / 200**0.5
    assert bool((error < 4 * deviation).all())
    assert float(15 * 0.64) > 4 * float(deviation[0])  # the bias would be seen


def test_a_negative_estimate_counts_as_zero():
    mean = {name: torch.ones(SPEC.tensors[name].shape, dtype=torch.float64) for name in SPEC.shared}
    squares = dict.fromkeys(SPEC.sizes, -3.0)
    assert _noisy_distances(mean, Noised(dict.fromkeys(mean, 0.0), squares), SPEC).tolist() == [0.0] * 3


def test_intervals_are_chosen_from_it_and_groups_that_are_not_due_keep_what_they_had():
    federation = private(strategy_of("fedlama", "fixed", num_rounds=6, clients_per_round=8), randomness=Seeded(2))
    outcomes = list(federate(federation, begun(federation)))
    for outcome, plan in zip(outcomes, federation.runtime.plans, strict=True):
        due = {SPEC.tensors[name].group for name in plan.due}
        synced = outcome.state["last_sync"] == outcome.round
        assert {group for group, is_synced in zip(SPEC.sizes, synced.tolist(), strict=True) if is_synced} == due
        assert plan.asks_squares == (outcome.round in (2, 4))
    assert outcomes[-1].state["num_measured"].tolist() == [2, 2, 2]
    assert set(outcomes[1].state["interval_rounds"].tolist()) <= {1, 2}
    assert len(outcomes[0].cohort) == NUM_CLIENTS
