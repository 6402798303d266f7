from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.cases import CASES
from benchmarks.sides import bare_side, fedelta_side


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.lanes == "auto"] + ["lanes-2"])
def test_both_sides_of_the_benchmark_do_the_same_steps(name: str):
    # Few and small clients, ragged batches, exact payloads: what is left to differ is the order of float32 sums.
    case = replace(CASES[name], sizes=(5, 9, 12), batch_size=4, local_epochs=1, codec="float32")
    bare, fedelta = bare_side(case), fedelta_side(case)
    first, _ = bare(), fedelta()
    expected, result = bare(), fedelta()
    assert list(expected) == list(result)
    assert not any(torch.equal(first[key], tensor) for key, tensor in expected.items())
    for key, tensor in expected.items():
        torch.testing.assert_close(result[key], tensor, rtol=1e-3, atol=1e-5)
