"""Two states of this repository side by side: seconds and peak memory of the same work, taken in turns.

    git worktree add ../before 941b0d0
    .venv/bin/python benchmarks/between.py ../before [--cases deltas scaffold-4000] [--pairs 5]

Prints, for each case, the median of the ratio now / before over pairs of processes. This process imports no torch,
because a child's peak memory starts at what its parent holds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "deltas": "ten float32 deltas of 86 M in a round: encode, decode, check, mean",
    "deltas-half": "the same in float16",
    "deltas-layers": "ten float32 deltas of 86 M in 200 tensors",
    "codec": "4 M numbers encoded and decoded: in int4, or before 75753b5, which had no int4, in float16",
    "codec-int8": "the same in int8",
    "cnn-50": "full fine-tuning of a CNN of 1.6 M, cohort of 50 with 50 images each, batch 10",
    "lora-8": "LoRA on vit-micro, batch 8: a round",
    "lora-32": "LoRA on vit-micro, batch 32: a round",
    "head": "the head of vit-micro, from round 2 on",
    "full": "full fine-tuning of a CNN of 0.2 M: a round",
    "scaffold-1000": "a round's checkpoint where 1,000 clients remember 40,000 numbers each, 8 of them new ones",
    "scaffold-4000": "the same with 4,000 clients",
    "demo": "`fedelta run recipes/demo.toml` with 4 rounds, start included",
}


def main() -> None:
    options = parse()
    trees = {"before": options.before.resolve(), "now": ROOT}
    print("| case | seconds before | now | ratio | MiB before | now | ratio |\n|---|---|---|---|---|---|---|")
    for name in options.cases:
        result: dict[str, list[dict[str, float]]] = {side: [] for side in trees}
        for pair in range(options.pairs):
            # In turns, and each side first as often as the other.
            for side in sorted(trees, reverse=bool(pair % 2)):
                result[side].append(run(trees[side], name))
        print(row(CASES[name], result), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout of another commit")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--pairs", type=int, default=5)
    return parser.parse_args()


def run(tree: Path, case: str) -> dict[str, float]:
    """The result of one measurement in a new process, with the code in `tree`."""
    environment = os.environ | {
        "PYTHONPATH": f"{tree / 'src'}:{tree}",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, str(ROOT / "benchmarks" / "between_worker.py"), case]
    done = subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(title: str, found: dict[str, list[dict[str, float]]]) -> str:
    cells = [title]
    for key, digits in (("seconds", 3), ("mebibytes", 0)):
        before, now = ([item[key] for item in found[side]] for side in ("before", "now"))
        ratio = statistics.median(ours / theirs for theirs, ours in zip(before, now, strict=True))
        cells += [f"{statistics.median(before):.{digits}f}", f"{statistics.median(now):.{digits}f}", f"{ratio:.2f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
