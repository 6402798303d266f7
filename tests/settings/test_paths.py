"""Paths are written in full when a setting is made, wherever it comes from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedelta.config import Config, parse_config
from fedelta.data.sources import DataSource
from fedelta.engine.exits import ExitSettings
from fedelta.models.source import ModelSource
from fedelta.settings.paths import in_full, table_in_full
from fedelta.tracking.settings import Tracking


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with some files in it."""
    for name in ("digits", "model", "start"):
        (tmp_path / name).mkdir()
    (tmp_path / "rows.csv").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_there_is_written_in_full(folder: Path):
    assert ModelSource(source="model", adapter="./start") == ModelSource(
        source=str(folder / "model"), adapter=str(folder / "start")
    )
    assert DataSource(source="rows.csv", test_source="rows.csv").test_source == str(folder / "rows.csv")


def test_names_stay_as_they_are():
    assert ModelSource(source="google/vit-base-patch16-224").source == "google/vit-base-patch16-224"
    assert ModelSource(source="bundled:vit-micro").source == "bundled:vit-micro"
    # A folder of that name does not take the place of the embedded data.
    assert DataSource(source="digits").source == "digits"


def test_a_file_that_is_to_come_is_written_in_full_too(folder: Path):
    assert ExitSettings(tiers_file="tiers.json").tiers_file == str(folder / "tiers.json")
    assert Tracking(directory="all/of/them").directory == str(folder / "all" / "of" / "them")


def test_an_empty_path_is_still_refused():
    with pytest.raises(ValidationError, match="at least 1 character"):
        Tracking(directory="")


def test_the_home_of_a_user_is_filled_in_where_it_is_known():
    assert in_full("~/x") == str(Path("~/x").expanduser())
    assert in_full("~of-a-user-who-is-not-here/x") == "~of-a-user-who-is-not-here/x"


def test_a_written_path_is_read_back_as_it_is(folder: Path):
    table = {"model": {"source": "model"}, "data": {"source": "digits"}, "partition": {"name": "iid", "num_clients": 8}}
    config = parse_config(table)
    assert config.model.source == str(folder / "model")
    assert parse_config(tomllib.loads(config.to_toml())) == config


def test_a_table_that_is_not_checked_yet_can_be_written_in_full(folder: Path):
    table = {
        "seed": "wrong",
        "model": {"source": "model", "adapter": 3, "image_size": 8},
        "data": {"source": "digits", "test_source": "rows.csv"},
        "exits": {"tiers_file": "tiers.json"},
        "unheard_of": {"source": "model"},
        "tuning": [{"name": "lora"}],
    }
    assert table_in_full(table, Config) == table | {
        "model": {"source": str(folder / "model"), "adapter": 3, "image_size": 8},
        "data": {"source": "digits", "test_source": str(folder / "rows.csv")},
        "exits": {"tiers_file": str(folder / "tiers.json")},
    }
    assert table["model"] == {"source": "model", "adapter": 3, "image_size": 8}
