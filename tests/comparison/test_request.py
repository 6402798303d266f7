"""What a comparison is asked to do: from a file, the command line and Python."""

from __future__ import annotations

import pytest
from tests.small import SMALL, write_small

import fedelta
from fedelta.comparison.request import parse_over, read_request, split_values
from fedelta.errors import ConfigError

COMPARE = """
[compare.over]
setting = { "2 of 4, IID" = { "partition.name" = "iid", "partition.num_clients" = 4 }, "as is" = { "data.seed" = 1 } }
"tuning.name" = ["head", "lora"]
seed = [1, 2]
[compare.search]
key = "client.lr"
by = ["tuning.name"]
values = { head = [0.5, 0.1], lora = [0.1] }
"""


def test_commas_in_brackets_braces_and_quotes_do_not_split():
    assert split_values("""["q","v"],["q"], {a = 1, b = [2, 3]},"x, y",'z, "',w""") == [
        '["q","v"]', '["q"]', "{a = 1, b = [2, 3]}", '"x, y"', "'z, \"'", "w",
    ]  # fmt: skip


def test_values_are_toml_or_bare_words():
    assert parse_over(["tuning.name=head,lora", "client.lr=1e-3,0.1", "tuning.target_modules=['q','v'],['q']"]) == {
        "tuning.name": ["head", "lora"],
        "client.lr": [0.001, 0.1],
        "tuning.target_modules": [["q", "v"], ["q"]],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", r"`--over seed`: expected `key=value,value`"),
        ("=1", r"`--over =1`: expected `key=value,value`"),
        ("seed=1,,2", r"`--over seed=1,,2`: value 2 is empty"),
        ("seed=", r"`--over seed=`: value 1 is empty"),
    ],
)
def test_an_axis_on_the_command_line_that_is_none_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_over([text])


def test_a_key_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"`--over seed=2`: `seed` is given twice; join the values by commas"):
        parse_over(["seed=1", "seed=2"])


def test_a_request_written_as_toml_is_read_back_equal_with_its_axes_in_order(tmp_path):
    request = read_request(write_small(tmp_path, text=SMALL + COMPARE), {"tuning.r": [2]}, ["strategy.num_rounds=1"])
    again = read_request(write_small(tmp_path, "again.toml", request.to_toml()))
    assert (again.name, again.table, again.grid.axes, again.grid.search) == (
        "small", request.table, request.grid.axes, request.grid.search,
    )  # fmt: skip
    assert [axis.name for axis in again.grid.axes] == ["setting", "tuning.name", "seed", "tuning.r"]
    assert again.table["strategy"]["num_rounds"] == 1


def test_a_request_for_some_methods_of_a_search_is_read_back_too(tmp_path):
    request = read_request(write_small(tmp_path, text=SMALL + COMPARE), {"tuning.name": ["lora"]})
    assert read_request(write_small(tmp_path, "again.toml", request.to_toml())).grid.search.values == {"lora": (0.1,)}


def test_axes_that_change_data_or_division_are_the_task(tmp_path):
    request = read_request(write_small(tmp_path, text=SMALL + COMPARE))
    assert (request.axes, request.task_axes) == (("setting", "tuning.name"), ("setting",))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"tunig.name": ["head"]}, r"axis `tunig\.name`: .* no key `tunig\.name`; did you mean `tuning\.name`\?"),
        ({"seting": ["as is"]}, r"axis `seting`: the configuration has no key `seting`; did you mean `setting`\?"),
        ({"xyz": [1]}, r"axis `xyz`: the configuration has no key `xyz`; known: seed, byte_budget_mib, "),
    ],
)  # fmt: skip
def test_an_axis_that_does_not_exist_is_refused_with_the_nearest_key(tmp_path, over, message):
    with pytest.raises(ConfigError, match=message):
        read_request(write_small(tmp_path, text=SMALL + COMPARE), over)


def test_nothing_to_vary_is_refused_with_a_way_to_say_it(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing is varied: there is no axis(.|\n)*--over tuning\.name=head,lora"):
        read_request(write_small(tmp_path))


def test_a_value_that_every_cell_replaces_is_refused(tmp_path):
    path = write_small(tmp_path, text=SMALL + COMPARE)
    with pytest.raises(ConfigError) as caught:
        read_request(path, None, ["client.lr=3", "seed=4", "client.batch_size=2"])
    assert caught.value.problems == (
        "`--set client.lr=3` has no effect: the search sets `client.lr` in every cell",
        "`--set seed=4` has no effect: axis `seed` sets `seed` in every cell",
    )


def test_a_search_can_be_dropped_on_the_command_line(tmp_path):
    request = read_request(write_small(tmp_path, text=SMALL + COMPARE), None, ["compare.search=", "client.lr=3"])
    assert (request.grid.search, request.table["client"]["lr"]) == (None, 3)


def test_a_configuration_made_in_python_carries_no_defaults_of_one_method_to_another(tmp_path):
    config = fedelta.load_config(write_small(tmp_path))
    request = read_request(config, {"tuning.name": ["head", "lora"]})
    assert request.table["tuning"] == {"name": "lora", "r": 2}
    assert request.table["partition"] == {"name": "dirichlet", "num_clients": 6, "alpha": 0.5, "min_size": 4}
    assert request.name == "comparison"


def test_a_run_of_a_file_with_a_compare_table_skips_it_and_checks_it(tmp_path):
    assert fedelta.load_config(write_small(tmp_path, text=SMALL + COMPARE)).tuning.name == "lora"
    with pytest.raises(ConfigError, match=r"`compare\.serch` is unknown; did you mean 'search'\?"):
        fedelta.load_config(write_small(tmp_path, text=SMALL + COMPARE.replace("compare.search", "compare.serch")))
