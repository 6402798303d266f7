"""Every recipe that asks for a comparison plans one without an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedelta.comparison.cells import make_plan
from fedelta.comparison.request import read_request

RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").glob("*.toml") if "[compare" in path.read_text()
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_cell_of_a_recipe_is_valid(path: Path):
    plan = make_plan(read_request(path))
    assert len(plan.points) >= 18
    searched = read_request(path).grid.search is not None
    assert bool(plan.trials) == searched
