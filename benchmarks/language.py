"""LoRA on a language model: fedelta's lanes beside a plain loop on stock `peft` that takes one client after another.

Both sides have the same weights, dialogues and order of batches, and take the same steps of AdamW; their losses are
compared first. The loop pads each batch to its longest row, and gets its loss from transformers. Times are CPU seconds
of one thread, in turns; those of a user's run, with all cores, are in the works L1 to L10 of `benchmarks.peers`.

    .venv/bin/python -m benchmarks.language --hidden 256 --layers 6 --clients 8 --batch 4
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from benchmarks.peers.dialogues import drawn_dialogues, examples, llama, llama_backbone, stored
from benchmarks.peers.works import llama as llama_sizes
from torch import Tensor, nn

from fedelta.data.batches import batches
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW
from fedelta.engine.work import ClientSettings, Job
from fedelta.modalities.dialogues import Encoded
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.language import Language
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

TARGETS = ("q", "v")
MODULES = ["q_proj", "v_proj"]
RANK, ALPHA = 8, 16.0
PHASES = ("training", "evaluation")


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak is not None:
        print(json.dumps(peak_of(options)))
        return
    rows, sides = tokens(options), {}
    for name in ("lanes", "loop"):
        sides[name] = side(name, options, rows)
    losses = {name: run() for name, run in sides.items()}
    apart = max(abs(a - b) / b for a, b in zip(losses["lanes"], losses["loop"], strict=True))
    seconds: dict[str, list[float]] = {"lanes": [], "loop": []}
    for _ in range(options.repeats):
        for name, run in sides.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    ratio = median(a / b for a, b in zip(seconds["lanes"], seconds["loop"], strict=True))
    peaks = {phase: {name: peak(name, phase) for name in sides} for phase in PHASES} if options.memory else {}
    print(json.dumps({
        "parameters": sum(p.numel() for p in llama(sizes(options)).parameters()),
        "largest relative difference of losses": apart,
        "seconds": {name: median(values) for name, values in seconds.items()},
        "ratio": ratio,
        **{f"peak of {phase}": mib | {"ratio": mib["lanes"] / mib["loop"]} for phase, mib in peaks.items()},
    }, indent=2))  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {
        "hidden": 256, "layers": 6, "vocabulary": 4096, "clients": 8, "batch": 4, "steps": 4, "shortest": 64,
        "longest": 128, "repeats": 5, "threads": 1, "lanes": 8,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true", help="also the peaks of new processes that train or evaluate")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def tokens(options: argparse.Namespace) -> list[Encoded]:
    """Random dialogues of all clients."""
    num_rows = options.clients * options.batch * options.steps
    return drawn_dialogues(num_rows, options.vocabulary, options.shortest, options.longest)


def sizes(options: argparse.Namespace) -> dict[str, object]:
    return llama_sizes(options.hidden, options.layers, options.vocabulary)


def orders(options: argparse.Namespace) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The rows of each client, and its batches."""
    size = options.batch * options.steps
    for client in range(options.clients):
        rows = torch.arange(client * size, (client + 1) * size)
        yield rows, list(batches(rows, options.batch, options.steps, iter([stream(0, "batches", client)])))


def side(name: str, options: argparse.Namespace, rows: list[Encoded]) -> Callable[[], list[float]]:
    """Trains all clients from the same start, and returns the mean loss of each."""
    return (lanes if name == "lanes" else loop)(options, rows)


def lanes(options: argparse.Namespace, rows: list[Encoded]) -> Callable[[], list[float]]:
    engine, start = engine_of(options, rows)

    def run() -> list[float]:
        jobs = [
            Job(number, of_client, start, iter([stream(0, "batches", number)]), stream(0, "noise", number))
            for number, (of_client, _) in enumerate(orders(options))
        ]
        trained = sorted(engine.train(jobs, 1e-3), key=lambda result: result.client_id)
        return [result.train_loss or 0.0 for result in trained]

    return run


def engine_of(options: argparse.Namespace, rows: list[Encoded]) -> tuple[LaneEngine, dict[str, Tensor]]:
    """fedelta's engine, and the tensors that every client starts from."""
    backbone, shared = llama_backbone(sizes(options), options.longest), Lanes(options.lanes)
    method = Lora(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    spec = method.apply(backbone, shared, stream(0, "tuning"))
    start = {name: backbone.module.get_parameter(name)[0].detach().clone() for name in spec}
    draw_pairs({name: value for name, value in start.items() if "lora_A" in name})
    client = ClientSettings(local_steps=options.steps, batch_size=options.batch, lr=1e-3, optimizer=AdamW())
    train = examples(rows, options.vocabulary, options.longest)
    engine = LaneEngine(backbone, spec, shared, train, client=client, rule=Plain(), task=Language())
    for note in engine.notes:
        print(note, file=sys.stderr)
    return engine, start


def loop(options: argparse.Namespace, rows: list[Encoded]) -> Callable[[], list[float]]:
    inputs, model = stored(rows, options.vocabulary, options.longest), peft_model(options)
    tuned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    draw_pairs({name: value.data for name, value in tuned.items() if "lora_A" in name})
    start = {name: value.detach().clone() for name, value in tuned.items()}
    order = [of_client for _, of_client in orders(options)]

    def run() -> list[float]:
        means = []
        for of_client in order:
            for name, value in tuned.items():
                value.data.copy_(start[name])
            optimizer = torch.optim.AdamW(tuned.values(), lr=1e-3, weight_decay=0.01)
            losses = []
            for batch in of_client:
                loss = model(**inputs.fetch(batch), use_cache=False).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            means.append(sum(losses) / len(losses))
        return means

    return run


def peft_model(options: argparse.Namespace) -> nn.Module:
    """The Llama with stock LoRA."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama(sizes(options)), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES))


def evaluation(name: str, options: argparse.Namespace, rows: list[Encoded]) -> Callable[[], float]:
    """Gives the loss of all rows, in batches of as many rows on both sides."""
    if name == "lanes":
        engine, start = engine_of(options, rows)
        data = examples(rows, options.vocabulary, options.longest)
        return lambda: engine.evaluator.evaluate(start, data).measures["test_loss"]
    inputs, model = stored(rows, options.vocabulary, options.longest), peft_model(options).eval()

    @torch.no_grad()
    def run() -> float:
        total = 0.0
        for batch in torch.arange(len(rows)).split(64):
            total += float(model(**inputs.fetch(batch), use_cache=False).loss) * int(inputs.num_targets[batch].sum())
        return total / int(inputs.num_targets.sum())

    return run


def draw_pairs(down: dict[str, Tensor]) -> None:
    """The same initial values on both sides."""
    for number, name in enumerate(sorted(down)):
        bound = down[name].shape[1] ** -0.5
        down[name].uniform_(-bound, bound, generator=stream(0, "pair", number))


def peak(name: str, phase: str) -> float:
    """The highest resident size of a new process in which one side trains or evaluates, in MiB."""
    command = [sys.executable, "-m", "benchmarks.language", *sys.argv[1:], "--peak", name, phase]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def peak_of(options: argparse.Namespace) -> float:
    name, phase = options.peak
    run = (side if phase == "training" else evaluation)(name, options, tokens(options))
    run()
    # Not `getrusage`, whose peak is that of the process that started this one, if that was higher.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
