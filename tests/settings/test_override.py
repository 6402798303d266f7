"""What `--set` does to a table before it is checked."""

from __future__ import annotations

import pytest

from fedelta.config import Config
from fedelta.settings.override import override, toml_value, with_values

# Any other type of value in a table of the test would be a type of TOML.
Table = dict[str, object]


def after(table: Table, *overrides: str) -> Table:
    assert override(table, overrides, Config) == []
    return table


def test_values_are_toml_or_bare_words_and_sections_are_made():
    changed = after({}, "seed=3", "client.optimizer.name=adamw", "data.source='digits'", "tuning.target_modules=['q']")
    assert changed == {
        "seed": 3,
        "client": {"optimizer": {"name": "adamw"}},
        "data": {"source": "digits"},
        "tuning": {"target_modules": ["q"]},
    }


def test_nothing_behind_the_sign_drops_a_key_and_one_that_is_not_there_is_no_problem():
    assert after({"client": {"lr": 0.1, "batch_size": 4}}, "client.lr=", "client.local_steps=") == {
        "client": {"batch_size": 4}
    }


def test_a_new_name_keeps_the_fields_that_both_methods_have():
    strategy = {"name": "fedlama", "num_rounds": 3, "tau": 2, "phi": 4, "crossing": "excluded"}
    assert after({"strategy": dict(strategy)}, "strategy.name=fedlama-auto")["strategy"] == {
        "name": "fedlama-auto", "num_rounds": 3, "tau": 2, "phi": 4,
    }  # fmt: skip
    assert after({"strategy": dict(strategy)}, "strategy.name=fedavg")["strategy"] == {
        "name": "fedavg", "num_rounds": 3,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["lora+bias", "bias + lora"])
def test_several_methods_joined_keep_the_fields_of_each(name: str):
    changed = after({"tuning": {"name": "lora", "r": 4}}, f"tuning.name={name}")
    assert changed["tuning"] == {"name": name, "r": 4}
    assert after({"tuning": {"name": "lora", "r": 4}}, "tuning.name=head+bias")["tuning"] == {"name": "head+bias"}


def test_a_name_that_is_not_known_drops_all_other_fields():
    assert after({"strategy": {"name": "fedlama", "tau": 2}}, "strategy.name=unheard-of") == {
        "strategy": {"name": "unheard-of"}
    }


def test_values_at_keys_are_put_into_a_copy():
    table: Table = {"strategy": {"name": "fedlama", "tau": 2}}
    result, problems = with_values(table, {"strategy.clients_per_round": 3, "strategy.name": "fedavg"}, Config)
    assert (result, problems) == ({"strategy": {"name": "fedavg", "clients_per_round": 3}}, [])
    assert table == {"strategy": {"name": "fedlama", "tau": 2}}


def test_one_name_for_several_settings_replaces_their_tables():
    codec = {"down": {"name": "float32"}, "up": {"name": "int8"}}
    assert after({"codec": codec}, "codec.name=float16") == {"codec": {"name": "float16"}}


def test_a_table_given_as_a_value_is_copied():
    mean: Table = {"name": "trimmed", "fraction": 0.3}
    table, problems = with_values({}, {"strategy.mean": mean, "strategy.mean.fraction": 0.1}, Config)
    assert (table, problems) == ({"strategy": {"mean": {"name": "trimmed", "fraction": 0.1}}}, [])
    assert mean["fraction"] == 0.3


def test_a_value_in_the_way_of_a_section_is_named():
    _, problems = with_values({"seed": 3}, {"seed.x": 1}, Config)
    assert problems == ["`seed.x`: `seed` is a value, not a section"]


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1e-3", 0.001), ("true", True), ("lora", "lora"), ("[1, 2]", [1, 2]), ("a b", "a b")]
)
def test_a_text_is_what_toml_makes_of_it_or_a_word(text: str, value: object):
    assert toml_value(text) == value
