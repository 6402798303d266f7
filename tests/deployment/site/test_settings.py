"""Section by section, the settings of a site."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedelta.deployment.site.settings import load_site, parse_site
from fedelta.errors import ConfigError

LEAST = 'name = "hamburg"\n[data]\nsource = "digits"\n'


def test_the_least_settings_have_defaults_relative_to_the_folder_of_the_file(tmp_path):
    (tmp_path / "site.toml").write_text(LEAST)
    settings = load_site(tmp_path)
    assert (settings.name, settings.clients, settings.is_partition) == ("hamburg", None, False)
    assert Path(settings.state) == tmp_path / "state"
    assert Path(settings.key).parent == tmp_path


def test_a_path_is_relative_to_the_folder_of_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "rows.csv").write_text("text,label\n")
    (folder / "site.toml").write_text(LEAST.replace("digits", "rows.csv"))
    monkeypatch.chdir(tmp_path)
    assert load_site("site").data.source == str(folder / "rows.csv")
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0-3", (0, 1, 2, 3)), ("4, 0-1", (0, 1, 4)), ([3, 1], (1, 3)), ("7", (7,))],
)
def test_clients_are_numbers_and_ranges(tmp_path, value, expected):
    table = {"name": "a", "clients": value, "data": {"source": "digits"}}
    assert parse_site(table, tmp_path).clients == expected


@pytest.mark.parametrize(
    ("update", "problem"),
    [
        ({"clients": "3-1"}, "`clients`: '3-1' has a range that ends before it begins"),
        ({"clients": "all"}, "`clients`: 'all' is no list of numbers and ranges"),
        ({"clients": "0-999999999"}, "has more than 1000000 clients"),
        ({"clients": [1, 1]}, "`clients`: expected each client once, found 1 several times"),
        ({"clients": []}, "`clients`: expected one client or more"),
        ({"clients": [True]}, "`clients`: expected one client or more, as whole numbers"),
        ({"name": "../a"}, "`name`: '../a' is no name of a site"),
        ({"server": "example.org"}, "`server`: 'example.org' is no host and port"),
        ({"server": "example.org:99999"}, "`server`: 'example.org:99999' is no host and port"),
        ({"data": {"source": "./absent.csv"}}, "`data.source`: './absent.csv' does not exist"),
        ({"data": {"sorce": "digits"}}, "`data.sorce` is unknown; did you mean `data.source`"),
        ({"worker": {"idle_minutes": 0}}, "`worker.idle_minutes` is 0, expected: greater than 0"),
        ({"model": {"source": "/absent/model"}}, "`model.source`: model directory '/absent/model' does not exist"),
        ({"colour": 1}, "`colour` is unknown"),
        ({"privacy": {"unit": "row"}}, "`privacy.unit` is 'row'"),
        ({"privacy": {"unit": "local", "max_epsilon": 0}}, "`privacy.max_epsilon` is 0, expected: greater than 0"),
        ({"privacy": {"unit": "local", "max_delta": 1}}, "`privacy.max_delta` is 1, expected: less than 1"),
        ({"privacy": {"max_epsilon": 3.0}}, "`max_epsilon` is 3 and `unit` None: the site can only count what it"),
        ({"privacy": {"unit": "client", "max_epsilon": 3.0}}, "`unit` 'client': the site can only count what it"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(tmp_path, update, problem):
    table = {"name": "a", "data": {"source": "digits"}} | update
    with pytest.raises(ConfigError, match=problem):
        parse_site(table, tmp_path)


def test_all_problems_are_in_one_message(tmp_path):
    with pytest.raises(ConfigError) as raised:
        parse_site({"clients": "x", "allow_missing_classes": "yes"}, tmp_path)
    assert len(raised.value.problems) == 4  # `name` and `[data]` are missing too


def test_a_missing_file_says_what_makes_one(tmp_path):
    with pytest.raises(ConfigError, match="No such file") as raised:
        load_site(tmp_path)
    assert "fedelta site init" in str(raised.value.hint)


def test_a_file_that_is_not_toml_is_told(tmp_path):
    (tmp_path / "site.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_site(tmp_path)
