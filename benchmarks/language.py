"""LoRA on a language model: fedelta's lanes beside a plain loop on stock `peft` that takes one client after another.

Both sides have the same weights, dialogues and order of batches, and take the same steps of AdamW; their losses are
compared first. The loop pads each batch to its longest row, and gets its loss from transformers. Times are CPU seconds
of one thread, in turns.

    .venv/bin/python benchmarks/language.py --hidden 256 --layers 6 --clients 8 --batch 4
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
from torch import Tensor

from fedelta.data.batches import Examples, batches
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import AdamW
from fedelta.engine.work import ClientSettings, Job
from fedelta.modalities.dialogues import Dialogues, Encoded, StoredDialogues
from fedelta.models.decoders import decoder_of
from fedelta.models.hub import Backbone
from fedelta.models.vocabulary import vocabulary_of
from fedelta.seeds import stream
from fedelta.strategies.local import Plain
from fedelta.tasks.language import Language, TokenCounts
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

TARGETS = ("q", "v")
MODULES = ["q_proj", "v_proj"]
RANK, ALPHA = 8, 16.0


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
    peaks = {name: peak(name) for name in sides} if options.memory else {}
    print(json.dumps({
        "parameters": sum(p.numel() for p in network(options).parameters()),
        "largest relative difference of losses": apart,
        "seconds": {name: median(values) for name, values in seconds.items()},
        "ratio": ratio,
        **({"peak ratio": peaks["lanes"] / peaks["loop"], "peak_mib": peaks} if peaks else {}),
    }, indent=2))  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {
        "hidden": 256, "layers": 6, "vocabulary": 4096, "clients": 8, "batch": 4, "steps": 4, "shortest": 64,
        "longest": 128, "repeats": 5, "threads": 1, "lanes": 8,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true", help="also the peak of a new process for each side")
    parser.add_argument("--peak", choices=("lanes", "loop"), help=argparse.SUPPRESS)
    return parser.parse_args()


def tokens(options: argparse.Namespace) -> list[Encoded]:
    """Random dialogues of all clients, whose last third is the response."""
    generator = stream(0, "tokens")
    rows = []
    for _ in range(options.clients * options.batch * options.steps):
        length = int(torch.randint(options.shortest, options.longest + 1, (), generator=generator))
        ids = torch.randint(options.vocabulary, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [place >= length * 2 // 3 for place in range(length)]))
    return rows


def network(options: argparse.Namespace) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden, num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 32, num_key_value_heads=options.hidden // 32,
        intermediate_size=options.hidden * 8 // 3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class _NoTokenizer:
    pad_token_id = 0
    model_max_length = 10**9


def stored(options: argparse.Namespace, rows: list[Encoded]) -> StoredDialogues:
    return StoredDialogues.of(rows, Dialogues(_NoTokenizer(), max_length=options.longest))  # type: ignore[arg-type]


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
    module, inputs = network(options), stored(options, rows)
    backbone = Backbone(
        module, decoder_of(module, "llama"), extra_inputs={"use_cache": False}, vocabulary=vocabulary_of(module)
    )
    shared = Lanes(options.lanes)
    method = Lora(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    spec = method.apply(backbone, shared, stream(0, "tuning"))
    start = {name: module.get_parameter(name)[0].detach().clone() for name in spec}
    draw_pairs({name: value for name, value in start.items() if "lora_A" in name})
    client = ClientSettings(local_steps=options.steps, batch_size=options.batch, lr=1e-3, optimizer=AdamW())
    engine = LaneEngine(
        backbone, spec, shared, Examples(inputs, TokenCounts(inputs.num_targets.float())),
        client=client, rule=Plain(), task=Language(),
    )  # fmt: skip
    for note in engine.notes:
        print(note, file=sys.stderr)

    def run() -> list[float]:
        jobs = [
            Job(number, of_client, start, iter([stream(0, "batches", number)]), stream(0, "noise", number))
            for number, (of_client, _) in enumerate(orders(options))
        ]
        trained = sorted(engine.train(jobs, 1e-3), key=lambda result: result.client_id)
        return [result.train_loss or 0.0 for result in trained]

    return run


def loop(options: argparse.Namespace, rows: list[Encoded]) -> Callable[[], list[float]]:
    from peft import LoraConfig, get_peft_model

    inputs = stored(options, rows)
    model = get_peft_model(network(options), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES))
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


def draw_pairs(down: dict[str, Tensor]) -> None:
    """The same initial values on both sides."""
    for number, name in enumerate(sorted(down)):
        bound = down[name].shape[1] ** -0.5
        down[name].uniform_(-bound, bound, generator=stream(0, "pair", number))


def peak(name: str) -> float:
    """The highest resident size of a new process that runs one side, in MiB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", name]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def peak_of(options: argparse.Namespace) -> float:
    run = side(options.peak, options, tokens(options))
    run()
    # Not `getrusage`, whose peak is that of the process that started this one, if that was higher.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
