"""A golden file: three rounds of the small run, written by the code itself (`python -m tests.golden.test_small_run`).

It says nothing about what is right; it shows that a refactoring changed nothing. The tolerance covers the last bits
that differ between processors.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from tests.small import write_small

from fedelta.experiment import Experiment

GOLDEN = Path(__file__).with_name("small_run.json")


def records(folder: Path) -> list[dict[str, object]]:
    run = Experiment.from_toml(write_small(folder)).run(folder / "run")
    return [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]


def test_the_small_run_still_gives_what_it_gave(tmp_path):
    golden, found = json.loads(GOLDEN.read_text()), records(tmp_path)
    assert len(found) == len(golden)
    for before, now in zip(golden, found, strict=True):
        assert now.keys() == before.keys()
        for key, value in before.items():
            expected = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            assert now[key] == expected, key


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(records(Path(folder)), indent=1) + "\n")
