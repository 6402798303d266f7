"""The cells of a grid: their order, names, configurations, and all that can be wrong with them."""

from __future__ import annotations

import pytest
from tests.small import SMALL, write_small

from fedelta.comparison.cells import make_plan, slugs
from fedelta.comparison.request import read_request
from fedelta.errors import ConfigError

SETTING = {"2 of 4, IID": {"partition.name": "iid", "partition.num_clients": 4, "strategy.clients_per_round": 2}}


def plan_of(folder, over: dict[str, object], search: str = ""):
    return make_plan(read_request(write_small(folder), over, [f"compare.search={search}"]))


def cells_of(folder, over: dict[str, object]):
    return plan_of(folder, over).cells({(): None})


def test_the_first_axis_varies_slowest(tmp_path):
    cells = cells_of(tmp_path, {"tuning.name": ["head", "lora"], "seed": [1, 2]})
    assert [cell.name for cell in cells] == [
        "tuning.name=head, seed=1",
        "tuning.name=head, seed=2",
        "tuning.name=lora, seed=1",
        "tuning.name=lora, seed=2",
    ]
    assert [(cell.config.tuning.name, cell.config.seed) for cell in cells] == [
        ("head", 1), ("head", 2), ("lora", 1), ("lora", 2),
    ]  # fmt: skip


def test_a_named_choice_sets_its_keys_and_drops_those_of_the_name_before(tmp_path):
    (cell,) = cells_of(tmp_path, {"setting": SETTING})
    assert cell.config.partition.model_dump() == {"name": "iid", "num_clients": 4}
    assert cell.config.strategy.clients_per_round == 2


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"tuning.name": ["lora"], "seed": [1]}, ["lora-seed-1"]),
        ({"setting": SETTING, "client.lr": [1e-05, 0.5]}, ["2-of-4-IID-lr-1e-05", "2-of-4-IID-lr-0.5"]),
        ({"tuning.target_modules": [["q", "v"]], "model.pretrained": [True]}, ["target_modules-q-v-pretrained-true"]),
        ({"tuning.name": ["lora+bias"]}, ["lora+bias"]),
    ],
)
def test_a_directory_is_named_after_its_cell(tmp_path, over, expected):
    cells = cells_of(tmp_path, over)
    assert [slugs(cells)[cell.name] for cell in cells] == expected


def test_names_of_directories_differ_on_every_file_system_and_are_not_too_long(tmp_path):
    names = ["A b", "a-b", "../a:b", "été", "x" * 300, "x" * 299 + "y"]
    setting = {name: {"client.batch_size": number} for number, name in enumerate(names, start=1)}
    directories = [*slugs(cells_of(tmp_path, {"setting": setting})).values()]
    assert len({name.lower() for name in directories}) == len(names)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_") for name in directories
    )
    assert max(map(len, directories)) <= 120
    # What a name is does not depend on the order of the choices.
    turned = slugs(cells_of(tmp_path, {"setting": dict(reversed(setting.items()))}))
    assert sorted(turned.values()) == sorted(directories)


def test_every_problem_is_named_once_with_its_cells(tmp_path):
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, {"tuning.name": ["head", "loro"], "strategy.clients_per_round": [3, 7], "seed": [1, 2]})
    too_many, unknown = caught.value.problems
    assert too_many == (
        "`strategy.clients_per_round` is 7, more than `partition.num_clients` = 6 "
        "(in 'tuning.name=head, strategy.clients_per_round=7, seed=1' and 3 more)"
    )
    assert unknown.startswith("`tuning.name` is 'loro', expected one of full, accumulator, ")
    assert unknown.endswith(
        "; did you mean 'lora'? (in 'tuning.name=loro, strategy.clients_per_round=3, seed=1' and 3 more)"
    )


def test_a_problem_of_every_cell_is_not_named_for_each(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean `client\.batch_size`\? \(in every cell\)"):
        plan_of(tmp_path, {"client.batch_sise": [1, 2], "seed": [1, 2]})


def test_an_axis_below_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`seed\.x`: `seed` is a value, not a section \(in every cell\)"):
        plan_of(tmp_path, {"seed.x": [1]})


def test_cells_that_are_the_same_are_refused(tmp_path):
    setting = {"a": {"client.batch_size": 4}, "b": {"client.batch_size": 4, "codec.name": "float16"}}
    with pytest.raises(ConfigError, match=r"two cells are the same configuration: 'setting=a' and 'setting=b'"):
        plan_of(tmp_path, {"setting": setting})


def test_cells_that_are_judged_by_different_measures_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="1 problem") as error:
        plan_of(tmp_path, {"task.name": ["classification", "regression"], "seed": [1, 2]})
    (problem,) = error.value.problems
    assert problem == (
        "cells are judged by different measures, accuracy in 'task.name=classification, seed=1', rmse in "
        "'task.name=regression, seed=1'; compare those of one measure at a time"
    )


@pytest.mark.parametrize(
    "name", ["state", "accuracy", "accuracy_mean", "macro_f1", "auroc_mean", "accuracy_percent", "run", "client.lr"]
)
def test_an_axis_with_the_name_of_another_column_of_the_tables_is_refused(tmp_path, name):
    choices = {"few": {"strategy.clients_per_round": 2}, "all": {"strategy.clients_per_round": 6}}
    with pytest.raises(ConfigError, match="1 problem") as error:
        plan_of(tmp_path, {name: choices}, '{key = "client.lr", values = [0.1]}')
    assert error.value.problems == (f"axis `{name}` has the name of another column of the tables; rename it",)


def test_trials_are_measured_on_validation_rows_at_the_first_seed_and_the_first_or_given_value(tmp_path):
    over = {
        "tuning.name": ["head", "lora"],
        "client.batch_size": [4, 8],
        "codec.name": ["float32", "float16"],
        "seed": [5, 6],
    }
    by = 'by = ["tuning.name"], at = {"client.batch_size" = 8}'
    search = f'{{key = "client.lr", {by}, values = {{head = [1.0, 0.5], lora = [0.1]}}}}'
    plan = plan_of(tmp_path, over, search)
    settings = [
        (t.config.tuning.name, t.config.client.lr, t.config.client.batch_size, t.config.seed) for t in plan.trials
    ]
    assert settings == [("head", 1.0, 8, 5), ("head", 0.5, 8, 5), ("lora", 0.1, 8, 5)]
    assert {trial.config.data.evaluate_on for trial in plan.trials} == {"validation"}
    assert plan.trials[1].name == (
        "search: tuning.name=head, client.batch_size=8, codec.name=float32, seed=5, client.lr=0.5"
    )
    cells = plan.cells({("head",): 0.5, ("lora",): 0.1})
    assert len(cells) == 16
    assert {(cell.config.tuning.name, cell.config.client.lr) for cell in cells} == {("head", 0.5), ("lora", 0.1)}
    assert {cell.config.data.evaluate_on for cell in cells} == {"test"}
    # While the search of a method is under way its cells are not there.
    assert {cell.labels["tuning.name"] for cell in plan.cells({("lora",): 0.1})} == {"lora"}


def test_the_search_keeps_its_choice_if_other_choices_are_compared(tmp_path):
    config = write_small(
        tmp_path,
        text=f"""{SMALL}
[compare.over.clients]
all = {{ "strategy.clients_per_round" = 6 }}
few = {{ "strategy.clients_per_round" = 2 }}

[compare.search]
key = "client.lr"
at = {{ clients = "few" }}
values = [0.1, 0.2]
""",
    )
    plan = make_plan(read_request(config, {"clients": ["all"]}))
    assert plan.points == [{"clients": "all"}]
    assert [trial.config.strategy.clients_per_round for trial in plan.trials] == [2, 2]
    # What was asked says it in full, so that it can be read back without the file.
    written = tmp_path / "compare.toml"
    written.write_text(plan.request.to_toml())
    again = make_plan(read_request(written))
    assert [trial.config for trial in again.trials] == [trial.config for trial in plan.trials]


def test_a_bad_candidate_is_found_before_anything_runs(tmp_path):
    with pytest.raises(
        ConfigError, match=r"`client\.lr` is -1\.0, expected: greater than 0 \(in 'seed=1, client\.lr=-1\.0'"
    ):
        plan_of(tmp_path, {"seed": [1, 2]}, '{key = "client.lr", values = [0.1, -1.0]}')


def test_paths_of_a_cell_are_written_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("text,label\na,b\n")
    request = read_request(write_small(tmp_path), {"seed": [1]}, ["data.source=table.csv"])
    assert make_plan(request).cells({(): None})[0].config.data.source == str(tmp_path / "table.csv")
