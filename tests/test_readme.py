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
