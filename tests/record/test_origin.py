"""The settings that a run began with, as they are compared with those in its directory."""

from __future__ import annotations

import tomllib

from tests.small import SMALL, write_small

from fedelta.config import load_config
from fedelta.record.origin import CLASS_NAMES, Origin, digest_of_names, other_settings, other_words, settings_of


def test_the_settings_of_a_combination_are_those_that_its_file_holds(tmp_path):
    # TOML puts tables such as `rank_pattern` after values, so that the order of keys in a list changes on the way.
    config = load_config(write_small(tmp_path, text=SMALL.replace('name = "lora"', 'name = "lora+bias"')))
    assert other_settings(settings_of(config.to_table()), settings_of(tomllib.loads(config.to_toml()))) == []


def test_the_order_of_keys_in_a_list_of_tables_is_no_difference():
    written = {"tuning.methods": '[{"r": 4, "name": "lora"}, {"name": "bias"}]', "data.file_pattern": "[{label}]"}
    again = {"tuning.methods": '[{"name": "lora", "r": 4}, {"name": "bias"}]', "data.file_pattern": "[{label}]"}
    assert other_settings(written, again) == []
    [problem] = other_settings(written, again | {"tuning.methods": '[{"name": "bias"}, {"name": "lora", "r": 4}]'})
    assert problem.startswith("`tuning.methods` is")


def test_an_adapter_of_a_combination_is_that_of_its_run_in_whatever_order_its_fields_are():
    origin = Origin(
        {"tuning.methods": '[{"r": 4, "name": "lora"}]', "data.source": "x"}, {CLASS_NAMES: digest_of_names("ab")}
    )
    assert other_words(origin, {"tuning": {"methods": [{"name": "lora", "r": 4}]}}, "ab") == []
    [problem] = other_words(origin, {"tuning": {"methods": [{"name": "lora", "r": 8}]}}, "ab")
    assert problem.endswith("tuning.methods")


def test_a_setting_that_is_absent_differs_from_an_empty_one():
    [problem] = other_settings({}, {"data.text_column": ""})
    assert problem.startswith("`data.text_column` is ")
