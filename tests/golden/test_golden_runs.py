"""Golden files: whole runs, written by the code itself (`python -m tests.golden.test_golden_runs`).

They say nothing about what is right; they show that a refactoring changed nothing. The tolerance covers the last bits
that differ between processors. On one machine nothing may differ: `python -m tests.golden.test_golden_runs FILE`
writes the numbers of all runs with a checksum of their tensors, to be compared from one commit to the next.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.golden.configurations import RUNS, SLOW_RUNS, numbers

FOLDER = Path(__file__).parent


def check(name: str, found: dict[str, Any]) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    problems = differences(golden, json.loads(json.dumps(found)))
    assert not problems, "\n".join(problems[:10])


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two trees of numbers, texts and lists differ by more than rounding."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [f"{path}: keys {sorted(before)} became {sorted(now)}"] if before.keys() != now.keys() else []
        return keys + [
            item for key in before.keys() & now.keys() for item in differences(before[key], now[key], f"{path}.{key}")
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [
            item
            for index, pair in enumerate(zip(before, now, strict=True))
            for item in differences(*pair, f"{path}[{index}]")
        ]
    expected = pytest.approx(before, rel=1e-3, abs=1e-7) if isinstance(before, float) else before
    return [] if now == expected else [f"{path}: {before} became {now}"]


@pytest.mark.parametrize("name", RUNS)
def test_a_golden_run_still_gives_what_it_gave(name: str, tmp_path: Path):
    check(name, numbers(RUNS[name](tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_RUNS)
def test_every_way_to_combine_still_gives_what_it_gave(name: str, tmp_path: Path):
    check(name, numbers(SLOW_RUNS[name](tmp_path)))


def exact(name: str, folder: Path) -> dict[str, Any]:
    """Numbers to the last bit, and a checksum of the tensors."""
    result = (RUNS | SLOW_RUNS)[name](folder)
    digest = hashlib.sha256()
    for key, tensor in result.params.items():
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return numbers(result) | {"sha256": digest.hexdigest()}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    found = {}
    for run_name in RUNS | SLOW_RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            found[run_name] = exact(run_name, Path(scratch))
        if len(sys.argv) == 1:
            kept = {key: value for key, value in found[run_name].items() if key != "sha256"}
            (FOLDER / f"{run_name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
