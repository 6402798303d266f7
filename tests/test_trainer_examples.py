"""Scripts for a Trainer, and the same federated: few lines differ, and both run."""

from __future__ import annotations

import difflib
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "trainer"
NAMES = ("images", "texts", "words")
LEAST = {"images": 0.5, "texts": 0.3}  # right answers; by chance 0.1 and 0.25


def lines(name: str) -> list[str]:
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_a_script_for_a_trainer_is_federated_in_ten_lines(name: str):
    changes = [line for line in difflib.ndiff(lines(name), lines(f"{name}_federated")) if line.startswith("+ ")]
    assert 0 < len(changes) <= 10, changes
    assert len(lines(f"{name}_federated")) <= len(lines(name)) + 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "_federated"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # of transformers' Trainer, about this machine
def test_both_scripts_run(name: str, kind: str, pages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pages():
        runpy.run_path(str(FOLDER / f"{name}{kind}.py"))
    number = float(capsys.readouterr().out.splitlines()[-1])
    assert number > LEAST[name] if name in LEAST else 0 < number < 8  # nats; a uniform guess has more than 8
    assert (tmp_path / "runs" / name).is_dir()
    assert (tmp_path / "runs" / name / "report.html").is_file() == bool(kind)
