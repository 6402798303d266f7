"""Evaluation measures the examples and tensors that it gets, whatever was computed before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.small import write_small

from fedelta.assembly.run import Assembly, assemble
from fedelta.config import load_config


@pytest.fixture
def assembly(tmp_path: Path) -> Assembly:
    # Only the head is tuned, so that all below it is cached.
    choices = ("tuning.name=head", "runtime.lanes=2", "runtime.name=simulation")
    return assemble(load_config(write_small(tmp_path), choices))


def test_other_examples_are_not_taken_for_those_of_the_last_evaluation(assembly: Assembly):
    evaluator, data, params = assembly.engine.evaluator, assembly.data, assembly.params
    first = evaluator.evaluate(params, data.test)
    other = evaluator.evaluate(params, data.train)
    assert evaluator.evaluate(params, data.test) == first
    assert other == evaluator.evaluate(params, data.train) != first


def test_evaluation_uses_lane_0_after_a_step_of_several_lanes(assembly: Assembly):
    engine, rows = assembly.engine, torch.arange(8)
    expected = engine.evaluator.evaluate(assembly.params, assembly.data.test, rows)
    with torch.no_grad():
        engine.bank.values_KP[1].neg_()  # another client's tensors
    engine.lanes.active = 2
    assert engine.evaluator.evaluate(assembly.params, assembly.data.test, rows) == expected
