"""What is released: wheel and sdist that a registry accepts, and a wheel that brings all that the demo needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fedelta

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist, as `make dist` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: what builds them is in the environment, and nothing is downloaded.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(repository)])
    return folder


def run(words: list[str], **options: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_registry_accepts_both_and_they_have_the_version_of_the_package(dist: Path):
    names = sorted(path.name for path in dist.iterdir())
    assert names == [f"fedelta-{fedelta.__version__}-py3-none-any.whl", f"fedelta-{fedelta.__version__}.tar.gz"]
    run([sys.executable, "-m", "twine", "check", "--strict", *(str(dist / name) for name in names)])


def test_they_hold_the_recipes_and_the_weights_and_no_run(dist: Path, repository: Path):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {f"fedelta/recipes/{path.name}" for path in (repository / "recipes").glob("*.toml")} <= held
    assert {"fedelta/models/bundled/vit-micro/model.safetensors", "fedelta/py.typed"} <= held
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as source:
        files = [Path(name).parts[1:] for name in source.getnames()]
    assert {("recipes", "demo.toml"), ("docs", "tutorial.md"), ("tests", "conftest.py")} <= set(files)
    assert not {parts[0] for parts in files if parts} & {"runs", "site", "dist", ".venv"}


def test_the_demo_runs_from_the_wheel_outside_of_the_source_tree(dist: Path, tmp_path: Path):
    """With the dependencies of this environment; `make dist-demo PYTHON=...` makes one with its own."""
    (wheel,) = dist.glob("*.whl")
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-index", "--no-deps", "--target", str(installed), str(wheel)])
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = [sys.executable, "-c", "import fedelta; print(fedelta.__file__)"]
    assert run(where, env=environment, cwd=tmp_path).strip() == str(installed / "fedelta" / "__init__.py")
    short = ["--set", "strategy.num_rounds=1", "--set", "client.local_epochs=1"]
    command = [sys.executable, "-c", "from fedelta.cli import main; main()"]
    run([*command, "run", "demo", *short, "--quiet"], env=environment, cwd=tmp_path)
    assert (tmp_path / "runs" / "demo" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
