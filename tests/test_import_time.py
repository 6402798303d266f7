"""`import fedelta` stays quick: it loads nothing heavy, so that `fedelta --help` answers at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "datasets", "flwr", "flwr_datasets", "huggingface_hub", "matplotlib", "numpy", "pandas", "peft",
    "pyarrow", "pydantic", "scipy", "sklearn", "torch", "transformers",
}  # fmt: skip


@pytest.fixture(scope="module")
def import_times() -> dict[str, float]:
    """Seconds each module took, its own imports included, in a new interpreter that imports fedelta."""
    command = [sys.executable, "-X", "importtime", "-c", "import fedelta"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    # "import time: self [us] | cumulative | imported package", the package indented by depth.
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    return {name.strip(): int(total) / 1e6 for _, total, name in rows if total.strip().isdigit()}


def test_importing_the_package_loads_no_heavy_library(import_times: dict[str, float]):
    assert "fedelta" in import_times
    assert not {name.split(".")[0] for name in import_times} & HEAVY


def test_importing_the_package_takes_less_than_a_second(import_times: dict[str, float]):
    # It takes about a millisecond; the bound holds on a machine that is busy with something else.
    assert import_times["fedelta"] < 1.0


def test_the_heavy_libraries_would_be_seen():
    command = [sys.executable, "-X", "importtime", "-c", "import numpy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert any(line.split("|")[-1].strip() == "numpy" for line in done.stderr.splitlines())
