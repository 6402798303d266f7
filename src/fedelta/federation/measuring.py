"""The evaluation of models on the test data, divided into portions, so that several processes can share it.

A portion is some of the engine's batches, and its answer is the sums of each. They are added in the order of the rows,
so an evaluation has the same bits however many portions there are, and wherever each is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from fedelta.data.batches import Examples
from fedelta.engine.threads import computed_with
from fedelta.federation.client import Site
from fedelta.params import Params
from fedelta.tasks.base import Sums, added

_PORTIONS_PER_PLACE = 4  # our choice: so that a core that is slower gets fewer

BatchSums = list[list[Sums]]
"""The sums of each batch of a portion, at each exit."""


@dataclass(frozen=True)
class Portion:
    """Test rows that one model answers.

    Args:
        model: index of the model.
        start: the first row.
        stop: the row after the last one.
    """

    model: int
    start: int
    stop: int


def portions_of(site: Site, num_models: int) -> list[Portion]:
    """The portions of an evaluation of so many models, in the order of models and rows."""
    num_rows, batch = len(_test(site)), site.engine.evaluator.batch_rows
    per_model = max(1, site.places * _PORTIONS_PER_PLACE // num_models)
    size = batch * max(1, -(-num_rows // (batch * per_model)))
    return [
        Portion(model, start, min(start + size, num_rows))
        for model in range(num_models)
        for start in range(0, num_rows, size)
    ]


def measured(site: Site, portion: Portion, params: Params) -> BatchSums:
    """The sums of a portion with the tensors of its model."""
    test = _test(site)
    rows = torch.arange(portion.start, portion.stop)
    return list(computed_with(site.threads, site.engine.evaluator.sums_of_batches(params, test, rows)))


def sums_of(site: Site, models: Sequence[Params]) -> list[list[Sums]]:
    """The sums of each model on the site's test data, at each exit."""
    portions = portions_of(site, len(models))
    return totals(portions, (measured(site, portion, models[portion.model]) for portion in portions))


def totals(portions: Sequence[Portion], answers: Iterable[BatchSums]) -> list[list[Sums]]:
    """The sums of each model at each exit.

    Args:
        portions: all of an evaluation, in order.
        answers: of these portions.
    """
    batches: defaultdict[int, BatchSums] = defaultdict(list)
    for portion, answer in zip(portions, answers, strict=True):
        batches[portion.model] += answer
    return [added(of_model) for of_model in batches.values()]


def _test(site: Site) -> Examples:
    if site.test is None:
        raise ValueError("the site has no test data")
    return site.test
