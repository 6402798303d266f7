"""Measures one case in a new process and prints a line of JSON: `python -m benchmarks.worker time lora-8 11`."""

from __future__ import annotations

import json
import os
import platform
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# For both sides, as the command line does: on a busy machine threads that spin make every figure a lottery.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from benchmarks.cases import CASES, Case
from benchmarks.sides import SIDES, Round, model_name

from fedelta.record.environment import peak_memory_bytes

WARM_UP_ROUNDS = 2  # the first fills fedelta's cache and the allocator


def main(task: str, name: str, count: int) -> dict[str, object]:
    """`time` gives the seconds of `count` rounds of each side, another task is the side whose memory is measured."""
    case = CASES[name]
    if task == "time":
        return {"seconds": interleaved(case, count), "model": model_name(case), "machine": machine()}
    run = SIDES[task](case)
    for _ in range(count):
        run()
    return {"peak_memory_bytes": peak_memory_bytes()}


def interleaved(case: Case, repeats: int) -> dict[str, list[float]]:
    """Seconds of each side's rounds, taken in turns: whatever else the machine does hits both sides alike."""
    rounds = {side: build(case) for side, build in SIDES.items()}
    for _ in range(WARM_UP_ROUNDS):
        for run in rounds.values():
            run()
    seconds: dict[str, list[float]] = {side: [] for side in rounds}
    for _ in range(repeats):
        for side, run in rounds.items():
            seconds[side].append(timed(run))
    return seconds


def timed(run: Round) -> float:
    """Seconds of one round."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine() -> dict[str, object]:
    """What the seconds depend on."""
    return {
        "cpu": cpu_model(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cpu_model() -> str:
    """The processor as Linux names it, or what Python knows elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
