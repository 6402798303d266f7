"""The evaluation in portions gives the sums of one pass, however it is divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.small import write_small
from torch import Tensor

from fedelta.assembly.run import Assembly, assemble
from fedelta.config import load_config
from fedelta.engine import evaluator
from fedelta.federation.measuring import Portion, measured, portions_of, sums_of, totals
from fedelta.tasks.base import Sums, Task


@pytest.fixture
def assembly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assembly:
    monkeypatch.setattr(evaluator, "_BATCH_ROWS", {"cpu": 8})
    return assemble(load_config(write_small(tmp_path)))


@pytest.mark.parametrize("places", [1, 2, 3, 50])
def test_portions_cover_all_rows_of_each_model_once_in_whole_batches(places: int, assembly: Assembly):
    site, num_rows = replace(assembly.site, places=places), len(assembly.data.test)
    for num_models in (1, 3):
        portions = portions_of(site, num_models)
        rows = [(portion.model, row) for portion in portions for row in range(portion.start, portion.stop)]
        assert rows == [(model, row) for model in range(num_models) for row in range(num_rows)]
        assert all(portion.start % 8 == 0 for portion in portions)


@pytest.mark.parametrize("places", [1, 2, 50])
def test_the_sums_do_not_depend_on_the_portions(places: int, assembly: Assembly):
    other = {name: tensor + 0.1 for name, tensor in assembly.params.items()}
    expected = [assembly.engine.evaluator.sums(params, assembly.data.test) for params in (assembly.params, other)]
    site = replace(assembly.site, places=places)
    assert sums_of(site, [assembly.params, other]) == expected
    assert expected[0] != expected[1]


def test_portions_are_measured_with_the_threads_of_the_site(assembly: Assembly, monkeypatch: pytest.MonkeyPatch):
    threads, sums_of_batch = [], evaluator.sums_of

    def watched(task: Task, outputs: Tensor, targets: Tensor) -> Sums:
        threads.append(torch.get_num_threads())
        return sums_of_batch(task, outputs, targets)

    monkeypatch.setattr(evaluator, "sums_of", watched)
    measured(replace(assembly.site, threads=3), Portion(0, 0, 16), assembly.params)
    assert threads == [3, 3]
    assert torch.get_num_threads() != 3


def test_the_sums_of_batches_are_added_in_the_order_of_rows():
    # In float64 1e16 + 1 is 1e16, so only (1e16 - 1e16) + 1 gives 1.
    parts = [[[Sums({"loss": (value, 1)})]] for value in (1e16, -1e16, 1.0)]
    [[total]] = totals([Portion(0, row, row + 1) for row in range(3)], parts)
    assert total.totals == {"loss": (1.0, 3)}


def test_a_site_without_test_data_says_so(assembly: Assembly):
    with pytest.raises(ValueError, match="the site has no test data"):
        measured(replace(assembly.site, test=None), Portion(0, 0, 1), assembly.params)
