"""The page of invented comparisons."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.comparison.invented import METHODS, invented
from tests.report.pages import Page, svgs

from fedelta.comparison.figures import _apart_in_height
from fedelta.comparison.page import render

SIX = [f"m{number}" for number in range(6)]
PAGES = {
    "few groups": (METHODS, (), 2),
    "two tasks": ({"tuning.name": SIX, "setting": ["a", "b"], "seed": ["1", "2"]}, ("setting",), 4),
    # 18 in each of two tasks: wide, no curves.
    "many groups": (
        {"tuning.name": SIX, "tuning.r": ["2", "4", "8"], "setting": ["a", "b"], "seed": ["1", "2"]},
        ("setting",),
        2,
    ),
    "one seed": ({"tuning.name": ["head", "lora"]}, (), 2),
    "nothing but seeds": ({"seed": ["1", "2"]}, (), 2),
}


@pytest.mark.parametrize("case", PAGES)
def test_a_page_is_whole_and_has_its_figures(case):
    axes, task_axes, num_figures = PAGES[case]
    comparison = invented(axes, task_axes=task_axes)
    page = Page(render(comparison))
    assert sum(tag == "svg" and name == "role" for tag, name, _ in page.attributes) == num_figures
    assert "invented <&> $x" in page.text
    assert not [value for _, name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]


def test_runs_with_an_epsilon_have_a_figure_of_it_with_those_that_guarantee_nothing_on_the_right():
    axes = {"tuning.name": ["head", "lora"], "privacy.target_epsilon": ["1", "5", "none"]}
    page = Page(render(invented(axes, epsilons={"1": 0.99, "5": 4.98})))
    (svg,) = [text for text in svgs(page.content) if "against epsilon" in text]
    assert [
        label for label in ("0.99", "4.98", "none", "head", "lora") if f">{label}<" not in svg.replace("> ", ">")
    ] == []


def test_a_page_without_any_result_yet_says_so():
    page = Page(render(invented(METHODS, failed=("head", "lora"))))
    assert "0 of 4 cells finished" in page.text
    assert not [value for tag, name, value in page.attributes if tag == "svg" and name == "role"]


def test_the_plot_of_one_seed_has_its_marks_inside():
    svg = svgs(render(invented({"tuning.name": ["head", "lora"]})))[0]
    # 50 and 52 %: an axis of five points around them.
    assert [label for label in ("49", "50", "51", "52", "53") if f">{label}<" not in svg] == []


def test_groups_without_a_result_are_not_in_the_legend():
    page = Page(render(invented(METHODS, failed=("head",))))
    legend = [text for text in page.texts["li"] if text]
    assert legend == ["lora"]


def test_what_is_strong_is_the_front_and_no_measure():
    page = Page(render(invented({"tuning.name": ["head", "lora"]})))
    strong = page.texts["strong"]
    assert "front" in strong
    assert not any("±" in text for text in strong)


def test_numbers_of_marks_at_one_place_do_not_cover_each_other():
    # Four groups that send as much as each other, two of which are equally good.
    rows = [{"number": str(number), "x": 1.0, "y": height} for number, height in enumerate((10.0, 90.0, 90.0, 91.0))]
    heights = [row["beside"] for row in _apart_in_height([*rows, {"number": "far", "x": 9.0, "y": 90.5}], "x")]
    assert heights[0] == 10.0
    apart = sorted(heights[:4])
    assert min(later - before for before, later in pairwise(apart)) >= 0.04 * 81 - 1e-9
    assert heights[4] == 90.5
