"""Contracts of means, tried on the updates of five clients, one of which does not send every tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from fedelta.aggregation.base import Aggregation, Update, combine
from fedelta.params import Params, ParamSpec, TensorSpec, is_finite
from fedelta.seeds import stream
from fedelta.testing.contract import BreachError, copied, no_global_draws, require, require_same_bits

SPEC = ParamSpec({
    "first.weight": TensorSpec((3, 4), "first"),
    "first.bias": TensorSpec((3,), "first"),
    "second.weight": TensorSpec((2, 3), "second"),
    "third.scale": TensorSpec((), "third"),
})  # fmt: skip
_EXAMPLES = (10, 30, 5, 20, 1)
_STEPS = (2.0, 5.0, 1.0, 4.0, 1.0)
# The last client lacks one tensor, as a weak device does (`[exits]`).
_SENT = (*(SPEC.names for _ in _EXAMPLES[:-1]), SPEC.names[:-1])


@dataclass(frozen=True)
class MeanTrial:
    """A mean and the updates that it is tried on.

    Args:
        mean: the mean to test.
    """

    mean: Aggregation

    @cached_property
    def updates(self) -> list[Update]:
        """The updates of five clients, by ascending client id."""
        return [
            Update(client, examples, drawn(SPEC, names, client), steps)
            for client, (examples, steps, names) in enumerate(zip(_EXAMPLES, _STEPS, _SENT, strict=True))
        ]

    def of(self, updates: Sequence[Update], mean: Aggregation | None = None) -> Params:
        """The mean of updates, always with the same random stream."""
        return combine(mean or self.mean, updates, SPEC, stream(0, "aggregation"))


def drawn(spec: ParamSpec, names: Sequence[str], *path: str | int) -> Params:
    """Normal numbers for `names`, of the magnitude of deltas."""
    shapes = {name: spec.tensors[name].shape for name in names}
    return {name: 0.1 * torch.randn(shape, generator=stream(0, *path, name)) for name, shape in shapes.items()}


def it_gives_float64_tensors_of_the_names_and_shapes_that_were_sent(trial: MeanTrial) -> None:
    """All tensors, and finite."""
    mean = trial.of(trial.updates)
    require(mean.keys() == set(SPEC.names), f"It gives {sorted(mean)}, and {sorted(SPEC.names)} were sent.")
    for name, tensor in mean.items():
        kind, expected = (tensor.dtype, tuple(tensor.shape)), (torch.float64, SPEC.tensors[name].shape)
        require(kind == expected, f"`{name}` is {kind}, expected {expected}.")
        require(is_finite(tensor), f"`{name}` is not finite.")


def it_does_not_change_the_updates(trial: MeanTrial) -> None:
    """A strategy that reads "each" uses them afterwards."""
    before = [copied(update.delta) for update in trial.updates]
    trial.of(trial.updates)
    for update, delta in zip(trial.updates, before, strict=True):
        require_same_bits(update.delta, delta, f"The update of client {update.client_id} was changed")


def it_does_not_matter_which_client_comes_first(trial: MeanTrial) -> None:
    """Up to rounding in float64."""
    mean, reversed_mean = trial.of(trial.updates), trial.of(list(reversed(trial.updates)))
    for name, tensor in mean.items():
        same = torch.allclose(tensor, reversed_mean[name], rtol=1e-9, atol=1e-12)
        require(same, f"`{name}` is another when the same updates come in another order.")


def each_round_begins_anew(trial: MeanTrial) -> None:
    """Equal updates give equal bits in a later round; no global generator is used."""
    with no_global_draws():
        first = trial.of(trial.updates)
        trial.of([replace(update, delta=drawn(SPEC, SPEC.names, "other")) for update in trial.updates])
        again = trial.of(trial.updates)
    require_same_bits(again, first, "After another round, the same updates have another mean")


def zeros_have_the_mean_zero(trial: MeanTrial) -> None:
    """The server does not change if no client does."""
    still = [
        replace(update, delta={name: torch.zeros_like(tensor) for name, tensor in update.delta.items()})
        for update in trial.updates
    ]
    moved = [name for name, tensor in trial.of(still).items() if tensor.any()]
    require(not moved, f"The mean of zeros is not zero for {moved}.")


def it_points_where_all_clients_point(trial: MeanTrial) -> None:
    """The mean of equal deltas has their direction, and is not longer."""
    delta = drawn(SPEC, SPEC.names, "equal")
    mean = trial.of([replace(update, delta=copied(delta), effective_steps=1.0) for update in trial.updates])
    for name, tensor in mean.items():
        scale = float((tensor * delta[name]).sum() / delta[name].double().square().sum())
        same = torch.allclose(tensor, scale * delta[name].double(), rtol=1e-6, atol=1e-9)
        require(same and 0 < scale < 1 + 1e-6, f"All clients send one `{name}`, and the mean is {scale:.3g} times it.")


def it_works_with_as_few_clients_as_it_says(trial: MeanTrial) -> None:
    """With `min_values` clients."""
    fewest = trial.mean.min_values
    require(fewest >= 1, f"`min_values` is {fewest}, expected 1 or more.")
    mean = trial.of(trial.updates[:fewest])
    broken = [name for name, tensor in mean.items() if not is_finite(tensor)]
    require(not broken and bool(mean), f"Of {fewest} clients the mean of {broken or 'all tensors'} is not finite.")


def what_it_needs_of_updates_is_one_of_two_words(trial: MeanTrial) -> None:
    """`reads` is "sum" or "each", and "sum" if `only_sums` is set."""
    mean = trial.mean
    require(mean.reads in ("sum", "each"), f"`reads` is {mean.reads!r}, expected 'sum' or 'each'.")
    require(not (mean.only_sums and mean.reads == "each"), "`only_sums` is True, but it reads each update.")


def statistics_have_a_mean_too(trial: MeanTrial) -> None:
    """`of_statistics` gives a value between the smallest and the largest, because a variance must stay positive."""
    updates = [
        replace(update, delta={name: tensor.square() + 1 for name, tensor in update.delta.items()})
        for update in trial.updates
    ]
    for name, tensor in trial.of(updates, trial.mean.of_statistics).items():
        values = torch.stack([update.delta[name] for update in updates if name in update.delta]).double()
        inside = (values.amin(0) - 1e-9 <= tensor) & (tensor <= values.amax(0) + 1e-9)
        if not bool(inside.all()):
            raise BreachError(f"The mean of the statistic `{name}` lies outside of the values of the clients.")


CHECKS: tuple[Callable[[MeanTrial], None], ...] = (
    what_it_needs_of_updates_is_one_of_two_words,
    it_gives_float64_tensors_of_the_names_and_shapes_that_were_sent,
    it_does_not_change_the_updates,
    it_does_not_matter_which_client_comes_first,
    each_round_begins_anew,
    zeros_have_the_mean_zero,
    it_points_where_all_clients_point,
    it_works_with_as_few_clients_as_it_says,
    statistics_have_a_mean_too,
)
