"""The `[compare]` table: what it means, and every way in which it can be wrong."""

from __future__ import annotations

import pytest

from fedelta.grid import Axis, Choice, Grid, Search, parse_grid

SETTING = {"silos": {"partition.num_clients": 10}, "devices": {"partition.num_clients": 100}}
OVER = {"tuning.name": ["head", "lora"], "setting": SETTING, "seed": [1, 2]}
SEARCH = {"key": "client.lr", "by": ["tuning.name"], "at": {"setting": "devices"}, "values": [0.1, 0.01]}


def problems(**table: object) -> list[str]:
    return parse_grid(table)[1]


def search_problems(**changes: object) -> list[str]:
    return problems(over=OVER, search={**SEARCH, **changes})


def test_axes_and_search_are_read_in_their_order():
    grid, texts = parse_grid({"over": OVER, "search": SEARCH})
    assert texts == []
    assert grid == Grid(
        (
            Axis("tuning.name", (Choice("head", {"tuning.name": "head"}), Choice("lora", {"tuning.name": "lora"}))),
            Axis("setting", tuple(Choice(name, values) for name, values in SETTING.items())),
            Axis("seed", (Choice("1", {"seed": 1}), Choice("2", {"seed": 2}))),
        ),
        Search("client.lr", ("tuning.name",), {"setting": Choice("devices", SETTING["devices"])}, {"": (0.1, 0.01)}),
    )


def test_candidates_are_those_of_the_label_or_of_all():
    by = {**SEARCH, "values": {"head": [1.0], "lora": [2.0, 3.0]}}
    search = parse_grid({"over": OVER, "search": by})[0].search
    assert search.candidates({"tuning.name": "lora", "setting": "silos"}) == (2.0, 3.0)
    assert parse_grid({"over": OVER, "search": SEARCH})[0].search.candidates({"tuning.name": "lora"}) == (0.1, 0.01)


def test_given_axes_replace_those_of_the_same_name_in_place_and_others_follow():
    grid, texts = parse_grid({"over": OVER}, {"seed": [7], "tuning.name": ["bias"], "tuning.r": [2, 4]})
    assert texts == []
    assert [(axis.name, axis.labels) for axis in grid.axes] == [
        ("tuning.name", ("bias",)),
        ("setting", ("silos", "devices")),
        ("seed", ("7",)),
        ("tuning.r", ("2", "4")),
    ]


def test_a_list_picks_named_choices():
    grid, texts = parse_grid({"over": OVER}, {"setting": ["devices"]})
    assert (texts, grid.axes[1].choices) == ([], (Choice("devices", SETTING["devices"]),))


def test_a_search_may_know_methods_that_are_not_compared_this_time():
    by = {**SEARCH, "values": {"head": [1.0], "lora": [2.0]}}
    assert parse_grid({"over": OVER, "search": by}, {"tuning.name": ["lora"]})[1] == []


BAD = {
    "no table": (parse_grid(3)[1], "`compare` is 3, expected a table"),
    "unknown key": (problems(ovr={}), "`compare.ovr` is unknown; did you mean 'over'?"),
    "axes that are no table": (problems(over=[1]), "`compare.over` is [1], expected a table of axes"),
    "no values": (problems(over={"tuning.name": []}), "axis `tuning.name` is empty, expected at least one value"),
    "no choices": (problems(over={"setting": {}}), "axis `setting` is empty, expected at least one value"),
    "one value": (
        problems(over={"seed": 1}),
        "axis `seed` is 1, expected a list of values or a table of named choices",
    ),
    "a value twice": (problems(over={"seed": [1, 2, 1]}), "axis `seed` holds '1' twice"),
    "a choice that is a value": (
        problems(over={"setting": {"silos": 3}}),
        "choice 'silos' of axis `setting` is 3, expected a table of keys and values",
    ),
    "a key on two axes": (
        problems(over={**OVER, "partition.num_clients": [5]}),
        "axes `setting` and `partition.num_clients` both set `partition.num_clients`",
    ),
    "a section and a key in it": (
        problems(over={**OVER, "partition": [{"name": "iid"}]}),
        "axes `setting` and `partition` both set `partition`",
    ),
    "seeds in a choice": (
        problems(over={"setting": {"one": {"seed": 1}}}),
        "axis `setting` sets `seed`, which has to be a separate axis: `seed = [1, 2]`",
    ),
    "an empty value from Python": (problems(over={"seed": [None]}), "axis `seed` holds an empty value"),
    "an unknown choice": (
        parse_grid({"over": OVER}, {"setting": ["device"]})[1],
        "axis `setting` has no choice 'device'; did you mean 'devices'?",
    ),
    "search that is no table": (problems(over=OVER, search=1), "`compare.search` is 1, expected a table"),
    "unknown key of a search": (search_problems(vals=[1]), "`compare.search.vals` is unknown; did you mean 'values'?"),
    "key missing": (problems(over=OVER, search={"values": [1]}), "`compare.search.key` is missing"),
    "values missing": (problems(over=OVER, search={"key": "client.lr"}), "`compare.search.values` is missing"),
    "key that is a number": (search_problems(key=3), "`compare.search.key` is 3, expected a key of the configuration"),
    "by that is no list": (search_problems(by="seed"), "`compare.search.by` is 'seed', expected a list of axes"),
    "at that is no table": (
        search_problems(at=3),
        "`compare.search.at` is 3, expected a table of axes and their values",
    ),
    "by of no axis": (
        search_problems(by=["tuning.nam"]),
        "`compare.search.by` names 'tuning.nam', which is no axis; did you mean 'tuning.name'?",
    ),
    "by the seeds": (
        search_problems(by=["seed"]),
        "`compare.search.by` names the seeds: the search is done at one of them",
    ),
    "at of no axis": (
        search_problems(at={"settin": "silos"}),
        "`compare.search.at` names 'settin', which is no axis; did you mean 'setting'?",
    ),
    "at of an axis in by": (
        search_problems(at={"tuning.name": "head"}),
        "`compare.search.at` names 'tuning.name', which is also in `by`",
    ),
    "at of no value": (
        search_problems(at={"setting": "silo"}),
        "`compare.search.at` names 'setting' = 'silo', which that axis does not hold; did you mean 'silos'?",
    ),
    "a searched axis": (search_problems(key="tuning.name"), "axis `tuning.name` sets `tuning.name`, which is searched"),
    "values of no label": (
        search_problems(values={"head": [1.0], "lora": [1.0], "loro": [1.0]}),
        "`compare.search.values` names 'loro', which is no value of the first axis in `by`; did you mean 'lora'?",
    ),
    "a label without values": (search_problems(values={"head": [1.0]}), "`compare.search.values` has none for 'lora'"),
    "no candidates": (
        search_problems(values={"head": [], "lora": [1.0]}),
        "`compare.search.values` for 'head' is [], expected a list with at least one value",
    ),
    "one candidate that is no list": (
        search_problems(values=0.1),
        "`compare.search.values` is 0.1, expected a list with at least one value",
    ),
    "a candidate twice": (search_problems(values=[0.1, 0.1]), "`compare.search.values` holds 0.1 twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case):
    texts, expected = BAD[case]
    assert texts == [expected]


def test_all_problems_are_found_at_once():
    assert len(problems(ovr=1, over={"seed": [], "tuning.name": 3})) == 3
