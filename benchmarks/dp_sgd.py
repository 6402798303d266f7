"""Seconds and memory of a DP-SGD step on LoRA beside our ordinary step and beside Opacus, in turns in one process.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/dp_sgd.py [--models bundled:vit-micro PATH] [--pairs 15] [--steps 3]

One client, whose examples are all in every batch, so that each side takes the same steps: 32 examples, LoRA of rank 8
on queries and values, a head, SGD with momentum, clipping to norm 1, noise multiplier 1.

| side | what it is |
|---|---|
| plain | fedelta without privacy |
| private | fedelta with `privacy.unit = "example"`; `lanes` as fedelta chooses them, so that one of 400 batches has two passes |
| opacus | transformers' model with PEFT's LoRA in `GradSampleModule`, and `DPOptimizer` |

Before anything is timed, one step without noise checks that private and opacus compute the same clipped mean. Opacus is
no dependency: `pip install --no-deps opacus==1.6.0 opt_einsum` into a folder on PYTHONPATH, since its own requirements
may change PyTorch. Without it its side is left out. Memory is what two steps add to the resident size of a process with
one side, at its highest, after freed memory went back to the system (Linux only: it is read from /proc).
"""  # noqa: E501 a table

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedelta.data.batches import Examples
from fedelta.engine.dp_sgd import DpSgd
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.params import Params
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import Seeded
from fedelta.privacy.settings import Privacy
from fedelta.runtimes.settings import RuntimeSettings
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.labels import Labels
from fedelta.testing.small import ReadyInputs
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

BATCH, CLASSES, RANK, LR = 32, tuple("0123456789"), 8, 1e-3
PRIVACY = Privacy(unit="example", noise_multiplier=1.0, clipping_norm=1.0)
WARM_UP = 2

# `steps` steps from the initial values; gives what they have changed.
Side = Callable[[int], Params]


def base(model: str) -> Backbone:
    return build(ModelSource(source=model), CLASSES, seed=0)


def data(backbone: Backbone) -> tuple[Tensor, Tensor]:
    size = backbone.module.config.image_size
    pixels = torch.randn(BATCH, 3, size, size, generator=stream(0, "pixels"))
    return pixels, torch.randint(len(CLASSES), (BATCH,), generator=stream(0, "labels"))


def ours(model: str, *, is_private: bool, noise: float) -> Side:
    backbone = base(model)
    pixels, labels = data(backbone)
    lanes = Lanes(RuntimeSettings().num_lanes_of_examples(BATCH) if is_private else 1)
    spec = Lora(r=RANK).apply(backbone, lanes, stream(0, "tuning"))
    examples = Examples(ReadyInputs({"pixel_values": pixels}), Labels(labels))
    settings = ClientSettings(local_steps=1, batch_size=BATCH, optimizer=Sgd(momentum=0.9))
    engine = LaneEngine(
        backbone, spec, lanes, examples, client=settings, rule=Plain(),
        dp=DpSgd(PRIVACY.clipping_norm) if is_private else None,
    )  # fmt: skip
    start = engine.bank.read(0)
    noise_of_step = SitePrivacy(PRIVACY, noise, Seeded(0)).step_noise(1, 0)

    def run(steps: int) -> Params:
        engine.client = settings.in_steps(steps)
        order, dropout = repeat(stream(0, "batches")), stream(0, "dropout")
        job = Job(0, torch.arange(BATCH), start, order, dropout, noise_of_step=noise_of_step)
        [trained] = engine.train([job], LR)
        return trained.delta

    return run


def opacus(model: str, *, noise: float) -> Side:
    import peft
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    backbone, tuned = base(model), base(model)
    pixels, labels = data(backbone)
    spec = Lora(r=RANK).apply(tuned, Lanes(1), stream(0, "tuning"))
    targets = sorted({name.split(".")[-2] for name in spec if name.endswith("lora_A")})
    lora = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=targets, modules_to_save=["classifier"])
    module = peft.get_peft_model(backbone.module, lora).train()
    start = {name: tuned.module.get_parameter(name).detach()[0] for name in spec}
    values = {name: module.get_parameter(peft_name(name)) for name in spec}
    private = GradSampleModule(module)

    def run(steps: int) -> Params:
        for name, value in values.items():
            value.data.copy_(start[name])
        sgd = torch.optim.SGD(list(values.values()), lr=LR, momentum=0.9)
        optimizer = DPOptimizer(
            sgd, noise_multiplier=noise, max_grad_norm=PRIVACY.clipping_norm, expected_batch_size=BATCH
        )
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(private(pixel_values=pixels).logits, labels).backward()
            optimizer.step()
        return {name: value.detach() - start[name] for name, value in values.items()}

    return run


def peft_name(name: str) -> str:
    """The name that PEFT gives to one of our tensors."""
    layer, _, kind = name.rpartition(".")
    if layer == "classifier":
        return f"base_model.model.classifier.modules_to_save.default.{kind}"
    return f"base_model.model.{layer}.{kind}.default.weight"


def sides(model: str, noise: float = 1.0) -> dict[str, Callable[[], Side]]:
    every = {
        "plain": lambda: ours(model, is_private=False, noise=noise),
        "private": lambda: ours(model, is_private=True, noise=noise),
    }
    return every | ({"opacus": lambda: opacus(model, noise=noise)} if importlib.util.find_spec("opacus") else {})


def largest_difference(model: str) -> float:
    """Of private and opacus after one step without noise, relative to the step."""
    step, expected = (sides(model, noise=0.0)[side]()(1) for side in ("private", "opacus"))
    size = max(float(part.abs().max()) for part in expected.values())
    return max(float((step[name] - part).abs().max()) for name, part in expected.items()) / size


def memory_of_steps(side: Side) -> int:
    """Bytes that two steps add to the resident size at its highest."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest size so far is the present one
    before = status_bytes("VmRSS")
    side(2)
    return status_bytes("VmHWM") - before


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def compare(model: str, pairs: int, steps: int) -> dict[str, object]:
    runs = {side: make() for side, make in sides(model).items()}
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    for turn in range(-WARM_UP, pairs):
        for side, run in runs.items():
            began = time.perf_counter()
            run(steps)
            if turn >= 0:
                seconds[side].append((time.perf_counter() - began) / steps)
    commands = {side: [sys.executable, __file__, "--memory", side, "--models", model] for side in runs}
    memory = {side: json.loads(subprocess.check_output(command)) for side, command in commands.items()}
    return {"model": model, "seconds": seconds, "memory_bytes": memory}


def describe(row: dict[str, object]) -> str:
    seconds, memory = row["seconds"], row["memory_bytes"]
    lines = [
        f"{row['model']}: {side:8} {1000 * statistics.median(values):8.1f} ms a step, {memory[side] / 2**20:6.1f} MiB"
        for side, values in seconds.items()
    ]
    for other in seconds.keys() - {"private"}:
        ratios = [ours / theirs for ours, theirs in zip(seconds["private"], seconds[other], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(f"  private / {other}: {middle:.2f} (quartiles {low:.2f} to {high:.2f}, {len(ratios)} pairs)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bundled:vit-micro"])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--memory", help="the side whose memory is measured in this process")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # hooks on modules whose inputs need no gradient
    if options.memory:
        print(memory_of_steps(sides(options.models[0])[options.memory]()))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for model in options.models:
        if importlib.util.find_spec("opacus"):
            print(f"{model}: after a step without noise the sides differ by {largest_difference(model):.1e} of it")
        print(describe(compare(model, options.pairs, options.steps)), flush=True)


if __name__ == "__main__":
    main()
