"""LoRA on ViT-B/16 at 224 px, 8 clients on one GPU in bfloat16: fedelta in lanes beside one client after the other.

    .venv/bin/python -m benchmarks.gpu [--batches 8 16 32 64] [--repeats 5] [--sides lanes one bare] [--out FILE]

Every side has the same weights (random), images, steps and plain SGD, and all tensors of the data on the GPU from the
start. The sides take turns, round by round, in one process. Before a time is printed they must have come to the same
parameters: after a round in float32, and again in bfloat16, whose rounding explains the larger tolerance. A side whose
library is not installed is left out. `--tiny --device cpu` tries all of it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import torch
from benchmarks.gpu_sides import SIDES, Round, Task
from torch import Tensor

GOALS = {"one": 0.35, "peer": 0.5}
PEERS = ("bare", "pfl", "blazefl")
LIBRARIES = {"pfl": "pfl.model.pytorch", "blazefl": "blazefl.core"}
# Relative to the length of what a round changed. float32: sums in another order. bfloat16: 8 bits of mantissa.
TOLERANCES = {"float32": 2e-3, "bfloat16": 0.1}
VIT_B = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072, "image_size": 224, "patch_size": 16}  # fmt: skip
TINY = VIT_B | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
                "image_size": 32, "patch_size": 8}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rows", type=int, default=128, help="images of a client")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try this program")
    parser.add_argument("--profile", type=Path, help="also write where the time of a round in lanes goes")
    parser.add_argument("--out", type=Path, help="also write JSON")
    options = parser.parse_args()
    sizes = Task(TINY if options.tiny else VIT_B, options.device, options.clients, options.rows)
    sides = [name for name in options.sides if installed(name)]
    compare(replace(sizes, dtype="float32", num_rows=2 * options.batches[0], batch_size=options.batches[0]), sides)
    rows = []
    for batch_size in options.batches:
        rows.append(measure(replace(sizes, batch_size=batch_size), sides, options.repeats))
        print("\n".join(lines(rows[-1])), flush=True)
        if options.out:
            options.out.write_text(json.dumps({"facts": facts(), "rows": rows}, indent=1) + "\n")
    if options.profile:
        options.profile.write_text(profile(replace(sizes, batch_size=options.batches[-1])))


def installed(side: str) -> bool:
    """Whether the library of a side is there; says so if it is not."""
    try:
        import_module(LIBRARIES.get(side, "torch"))
    except ImportError as error:
        print(f"{side} is left out: {error}", file=sys.stderr)
        return False
    return True


def compare(task: Task, sides: list[str]) -> None:
    """Raises if a side comes to other parameters in a round in float32."""
    print(f"float32: {agreement({name: SIDES[name](task) for name in sides}, task)}", flush=True)


def measure(task: Task, sides: list[str], repeats: int) -> dict:
    """Seconds of the rounds of every side, in turns, and its memory on the GPU."""
    resident, rounds = {}, {}
    for name in sides:
        before = allocated()
        rounds[name] = SIDES[name](task)
        resident[name] = allocated() - before
    agreed = agreement(rounds, task)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    memory = dict.fromkeys(sides, 0)
    for name in repeats * sides:
        before = allocated()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        seconds[name].append(timed(rounds[name]))
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        memory[name] = max(memory[name], peak - before + resident[name])
    return {"task": asdict(task), "agreement": agreed, "seconds": seconds, "memory_bytes": memory}


def agreement(rounds: Mapping[str, Round], task: Task) -> str:
    """How far the sides are apart after a round, in words.

    Raises:
        SystemExit: further than rounding explains.
    """
    ends = {name: flat(round()) for name, round in rounds.items()}
    start, reference = flat(next(iter(rounds.values())).start), next(iter(ends.values()))
    moved = (reference - start).norm()
    gaps = {name: float((end - reference).norm() / moved) for name, end in ends.items()}
    text = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
    if not max(gaps.values()) <= TOLERANCES[task.dtype]:
        raise SystemExit(f"the sides do not do the same ({task.dtype}, batch {task.batch_size}): {text}")
    return f"apart by {text} of what a round changes"


def flat(params: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([params[name].detach().double().cpu().flatten() for name in sorted(params)])


def timed(call: Callable[[], object]) -> float:
    """Seconds until all work of `call` is done, on the GPU too."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def lines(row: dict) -> list[str]:
    """The rows of a table: median and range in ms, ratios of fedelta in lanes, MiB."""
    medians = {name: statistics.median(seconds) for name, seconds in row["seconds"].items()}
    task = row["task"]
    table = [
        f"batch {task['batch_size']}, {task['num_clients']} clients of {task['num_rows']} images, {task['dtype']}:"
    ]
    table += [f"  {row['agreement']}"]
    for name, seconds in row["seconds"].items():
        low, high, mib = 1e3 * min(seconds), 1e3 * max(seconds), row["memory_bytes"][name] / 2**20
        table.append(f"  {name:8} {1e3 * medians[name]:8.1f} ms ({low:.1f} to {high:.1f}) {mib:8.0f} MiB")
    if "lanes" in medians and "one" in medians:
        table.append(f"  lanes / one after the other {medians['lanes'] / medians['one']:.2f} (goal {GOALS['one']})")
    if "lanes" in medians and (peers := {name: medians[name] for name in PEERS if name in medians}):
        best = min(peers, key=peers.__getitem__)
        table.append(f"  lanes / best peer ({best}) {medians['lanes'] / peers[best]:.2f} (goal {GOALS['peer']})")
    return table


def facts() -> dict[str, object]:
    """What figures depend on."""
    return {
        "command": " ".join(sys.argv),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def profile(task: Task) -> str:
    """Where the time of a round in lanes goes, by operation."""
    from torch.profiler import ProfilerActivity

    call = SIDES["lanes"](task)
    call()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with torch.profiler.profile(activities=kinds, acc_events=True) as record:
        timed(call)
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = record.key_averages()
    return f"{table.table(sort_by=order, row_limit=40)}\n{table.table(sort_by='self_cpu_time_total', row_limit=25)}"


if __name__ == "__main__":
    main()
