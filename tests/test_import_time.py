"""What is imported, and when: `import fedelta` loads nothing heavy, and a command only what it needs.

Modules are counted and not seconds, which depend on what else the machine does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "absl", "datasets", "dp_accounting", "flwr", "flwr_datasets", "huggingface_hub", "matplotlib", "numpy", "pandas",
    "peft", "pyarrow", "pydantic", "scipy", "sklearn", "torch", "transformers",
}  # fmt: skip

# What `fedelta inspect` and `fedelta check` do without, of a simulation with images and a published partitioner.
NOT_NEEDED = (
    "dp_accounting", "flwr", "flwr_datasets", "matplotlib", "mlflow", "onnx", "onnxruntime", "peft",
    "scipy.optimize", "scipy.stats", "sklearn", "torch._dynamo", "torch._inductor", "torch.distributed.tensor",
    "torchvision", "wandb",
)  # fmt: skip

# `inspect` knows the names of the digits' classes without reading them.
NOT_READ = ("datasets", "pandas", "pyarrow")

# Runs both commands in one process, and afterwards uses what was left out of the import of transformers.
COMMANDS = """
import contextlib, io, json, sys
from fedelta.cli import main
loaded = {}
for command in ("inspect", "check"):
    sys.argv = ["fedelta", command, "recipes/demo.toml"]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            assert not end.code, end.code
    loaded[command] = sorted(sys.modules)
import torch, torch._dynamo, torch.distributed.tensor
from transformers.loss.loss_for_object_detection import linear_sum_assignment
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex():
    assert torch.arange(3)[torch.tensor(2)] == 2
compiled = torch.compile(lambda x: x + 1, backend="eager")
columns = linear_sum_assignment([[1, 0], [0, 1]])[1].tolist()
loaded["afterwards"] = [compiled(1), columns, torch.distributed.is_available()]
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def import_times() -> dict[str, float]:
    """Seconds each module took, its own imports included, in a new interpreter that imports fedelta."""
    command = [sys.executable, "-X", "importtime", "-c", "import fedelta"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    # "import time: self [us] | cumulative | imported package", the package indented by depth.
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    return {name.strip(): int(total) / 1e6 for _, total, name in rows if total.strip().isdigit()}


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[object]]:
    """Command to the modules that are loaded when it ends, and what worked afterwards."""
    command = [sys.executable, "-c", COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    modules: dict[str, list[object]] = json.loads(done.stdout)
    return modules


def test_importing_the_package_loads_no_heavy_library(import_times: dict[str, float]):
    assert "fedelta" in import_times
    assert not {name.split(".")[0] for name in import_times} & HEAVY


def test_importing_the_package_takes_less_than_a_second(import_times: dict[str, float]):
    # It takes about a millisecond; the bound holds on a machine that is busy with something else.
    assert import_times["fedelta"] < 1.0


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_a_command_loads_no_library_that_it_does_not_need(command: str, loaded: dict[str, list[object]]):
    assert "transformers.models.vit.modeling_vit" in loaded[command]
    assert not {*NOT_NEEDED, *(NOT_READ if command == "inspect" else ())} & {*loaded[command]}


def test_what_a_command_imports_lightly_works_when_it_is_needed_after_all(loaded: dict[str, list[object]]):
    assert loaded["afterwards"] == [2, [1, 0], True]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["run", "--help"]])
def test_a_command_that_only_prints_loads_no_heavy_library(arguments: list[str]):
    allowed = {"pydantic"} if arguments == ["list"] else set()  # the registries are made of settings
    code = f"""
import sys
from fedelta.cli import main
sys.argv = ["fedelta", *{arguments}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    assert not {*done.stdout.splitlines()[-1].split()} & HEAVY - allowed
