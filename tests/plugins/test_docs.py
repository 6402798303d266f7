"""The page about plug-ins: its example runs, its tables name what is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.small import write_small

import fedelta as package
from fedelta.catalog import ALL
from fedelta.testing import contracts


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs/plugins.md").read_text()


@pytest.fixture
def example(page: str, tmp_path: Path) -> Path:
    [code] = re.findall(r"As a file, `fedexp.py`:\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "fedexp.py"
    path.write_text(code)
    return path


def test_the_example_runs_and_its_run_asks_for_it_as_the_page_says(
    page: str,
    example: Path,
    fedelta: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    given = ("--plugin", example, "--set", "strategy.name=fedexp", "--set", "strategy.epsilon=1e-2", "--quiet")
    code, _, err = fedelta("run", write_small(tmp_path), "--out", "runs/demo", *given)
    assert (code, err) == (0, "")
    code, _, err = fedelta("resume", "runs/demo")
    assert code == 2
    assert err.strip() in page


def test_the_example_keeps_its_contracts(example: Path):
    for contract in contracts(example):
        contract()


def test_the_table_of_kinds_is_that_of_the_catalog(page: str, repository: Path):
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (`.*) \|$", page, flags=re.MULTILINE))
    kinds = {registry.kind.noun: registry.kind for registry in ALL if registry.kind.marks}
    assert rows.keys() == kinds.keys()
    for noun, row in rows.items():
        marks, protocol, file = (re.findall(r"`([^`]+)`", cell) for cell in row.split(" | "))
        assert tuple(marks) == kinds[noun].marks
        assert getattr(package, protocol[0].removeprefix("fedelta.")).__name__ == kinds[noun].protocol.partition(":")[2]
        assert (repository / "src/fedelta" / file[0]).exists()
