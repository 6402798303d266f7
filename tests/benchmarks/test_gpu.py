"""The sides of the GPU benchmark do the same work, here on the CPU; pfl and BlazeFL are not installed for tests."""

from __future__ import annotations

import pytest
from benchmarks.gpu import agreement, flat, lines
from benchmarks.gpu_sides import SIDES, Round, Task
from torch import tensor

TINY = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
}
TASK = Task(TINY, "cpu", num_clients=2, num_rows=6, batch_size=4, dtype="float32")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by PEFT
def test_lanes_one_lane_and_the_bare_loop_end_at_the_same_params():
    rounds = {name: SIDES[name](TASK) for name in ("lanes", "one", "bare")}
    assert "apart by lanes 0.0e+00, one" in agreement(rounds, TASK)
    ends = [flat(round()) for round in rounds.values()]  # the second round begins where the first ended
    assert max(float((end - ends[0]).norm() / ends[0].norm()) for end in ends) < 1e-5


def test_a_side_that_does_something_else_is_an_error_and_has_no_time():
    start = {"a": tensor([0.0, 0.0])}
    rounds = {"lanes": Round(start, lambda: {"a": tensor([1.0, 0.0])}), "bare": Round(start, lambda: start)}
    with pytest.raises(SystemExit, match=r"do not do the same \(float32, batch 4\): lanes 0.0e\+00, bare 1.0e\+00"):
        agreement(rounds, TASK)


def test_the_table_has_the_ratios_to_the_goals():
    seconds = {"lanes": [0.2, 0.1, 0.3], "one": [1.0, 1.0, 1.0], "bare": [0.5, 0.5, 0.5], "pfl": [0.8, 0.8, 0.8]}
    task = {"batch_size": 4, "num_clients": 2, "num_rows": 6, "dtype": "bfloat16"}
    table = lines({"task": task, "agreement": "", "seconds": seconds, "memory_bytes": dict.fromkeys(seconds, 2**20)})
    assert "  lanes       200.0 ms (100.0 to 300.0)        1 MiB" in table
    assert table[-2:] == [
        "  lanes / one after the other 0.20 (goal 0.35)",
        "  lanes / best peer (bare) 0.40 (goal 0.5)",
    ]
