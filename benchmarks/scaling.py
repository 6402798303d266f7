"""Memory and seconds a round with more and more simulated clients, the cohort and the data staying the same.

    .venv/bin/python benchmarks/scaling.py [--clients 100 1000 10000] [--rounds 7] [--out docs/results/scaling.json]

80,000 images are divided among N clients, 10 of them take part in a round, and each takes two steps of 8 images. One
process for each N; their rounds take turns. The pixels are noise, which costs what photographs would: nothing here
depends on them. A round is all that a run does, checkpoint and logs included, evaluation on 64 images too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NUM_IMAGES = 80_000
WARM_UP_ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, WARM_UP_ROUNDS + options.rounds, options.strategy)
        return
    rows = interleaved(options.clients, options.rounds, options.strategy)
    print("| clients | s a round | against the fewest | peak MiB | set-up, s | run directory, MiB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        ratio = statistics.median(b / a for a, b in zip(rows[0]["seconds"], row["seconds"], strict=True))
        print(
            f"| {row['clients']:,} | {statistics.median(row['seconds']):.2f} | {ratio:.2f} | {row['peak_mib']:,.0f} "
            f"| {row['setup_seconds']:.1f} | {row['run_mib']:.2f} |"
        )
    if options.out:
        options.out.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1) + "\n")


def interleaved(counts: list[int], num_rounds: int, strategy: str) -> list[dict]:
    """One row for each number of clients; a child computes only while the others wait for their turn."""
    children, setups = [], []
    for count in counts:
        command = [sys.executable, __file__, "--child", str(count), "--rounds", str(num_rounds), "--strategy", strategy]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        setups.append(json.loads(child.stdout.readline()))
    seconds = {count: [] for count in counts}
    for _ in range(WARM_UP_ROUNDS + num_rounds - 1):
        for count, child in zip(counts, children, strict=True):
            child.stdin.write("\n")
            child.stdin.flush()
            seconds[count].append(json.loads(child.stdout.readline()))
    rows = []
    for count, child, setup in zip(counts, children, setups, strict=True):
        last, _ = child.communicate("\n")
        measured = {"seconds": seconds[count][WARM_UP_ROUNDS - 1 :], **setup, **json.loads(last)}
        rows.append({"clients": count, **measured})
    return rows


def child(num_clients: int, num_rounds: int, strategy: str) -> None:
    """A run of `num_clients` that waits for a line on standard input after every round."""
    import torch

    from fedelta.config import load_config
    from fedelta.data.batches import Examples, FederatedData
    from fedelta.experiment import Experiment
    from fedelta.modalities.image import Images
    from fedelta.modalities.stores import Stored
    from fedelta.record.environment import peak_memory_bytes
    from fedelta.seeds import stream
    from fedelta.tasks.labels import Labels

    started = time.perf_counter()
    generator = stream(0, "scaling")
    images = torch.randint(0, 256, (NUM_IMAGES, 1, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (NUM_IMAGES,), generator=generator)
    inputs = Stored(images, Images(32, (0.5,) * 3, (0.5,) * 3))
    partition = dict(enumerate(torch.arange(NUM_IMAGES).tensor_split(num_clients)))
    test = Examples(Stored(images[:64], inputs.modality), Labels(labels[:64]))
    data = FederatedData(Examples(inputs, Labels(labels)), test, tuple("0123456789"), partition)
    recipe = Path(__file__).resolve().parents[1] / "recipes" / "demo.toml"
    config = load_config(
        recipe,
        [
            "client.local_epochs=", "client.local_steps=2", "client.batch_size=8", "client.optimizer.name=sgd",
            "strategy.clients_per_round=10", f"strategy.num_rounds={num_rounds}", f"strategy.name={strategy}",
            f"partition.num_clients={num_clients}", "runtime.cache_mib=0",
        ],
    )  # fmt: skip
    experiment = Experiment(config, data=data)
    _ = experiment.assembly
    print(json.dumps({"setup_seconds": time.perf_counter() - started}), flush=True)
    before = None

    def wait(_outcome: object, _ledger: object) -> None:
        nonlocal before
        if before is not None:
            print(json.dumps(time.perf_counter() - before), flush=True)
        sys.stdin.readline()
        before = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        run = experiment.run(Path(folder) / "run", on_round=wait)
        size = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    print(json.dumps({"peak_mib": peak_memory_bytes() / 2**20, "run_mib": size / 2**20}), flush=True)


if __name__ == "__main__":
    main()
