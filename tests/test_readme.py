"""The first page: complete, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_nothing_is_left_to_be_filled_in():
    assert re.findall(r"\w*PLACEHOLDER\w*", README) == []


def test_every_recipe_that_it_names_is_there():
    named = set(re.findall(r"recipes/[\w./-]+\.toml", README))
    assert named, "the pattern finds no recipe any more"
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def code_blocks(text: str) -> list[str]:
    """The Python code of a page, block by block; those that need what is not there are marked."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_a_network_of_ones_own_takes_twelve_lines_that_run(tmp_path, monkeypatch, capsys, pages):
    (code,) = [block for block in code_blocks(README) if "fedelta.federate(" in block]
    assert len([line for line in code.splitlines() if line]) <= 12
    monkeypatch.chdir(tmp_path)
    with pages():
        exec(compile(code, "README.md", "exec"), {})
    accuracy = float(re.search(r"'accuracy': ([\d.]+)", capsys.readouterr().out)[1])
    assert accuracy > 0.8  # ten classes: 0.1 by chance
    assert (tmp_path / "runs/federate/report.html").is_file()


def test_the_code_of_the_page_about_python_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(code_blocks(page))
    exec(compile(code, "docs/python.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert "'num_examples'" in lines[-2]
    assert lines[-1].startswith("['")
