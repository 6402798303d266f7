"""Section `[deployment]`."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests.small import SMALL

from fedelta.config import parse_config
from fedelta.errors import ConfigError
from fedelta.runtimes.remote.settings import Deployment


def test_the_section_is_read_from_a_recipe():
    import tomllib

    config = parse_config(tomllib.loads(SMALL), ["deployment.min_sites=3", "deployment.site_measures=5"])
    assert config.deployment == Deployment(min_sites=3, site_measures=5)
    assert config.deployment.max_message_bytes == 512 * 2**20


@pytest.mark.parametrize(
    "values",
    [
        {"min_sites": 0}, {"round_seconds": 0}, {"grace_factor": 0.5}, {"site_measures": 0}, {"evaluate": "nobody"},
        {"max_message_mib": 0}, {"wait_seconds": -1},
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(values: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(values))):
        Deployment(**values)


def test_a_grace_beyond_the_deadline_is_refused():
    with pytest.raises(ValidationError, match=r"`min_grace_seconds` is 90, expected at most `round_seconds`.* is 60"):
        Deployment(round_seconds=60)


@pytest.mark.parametrize("name", ["flower", "simulation"])
def test_simulated_failures_are_refused_in_a_deployment_only(name: str):
    import tomllib

    table = tomllib.loads(SMALL) | {"runtime": {"name": name}, "stability": {"dropout_fraction": 0.1}}
    if name == "simulation":
        assert parse_config(table).stability.dropout_fraction == 0.1
        return
    with pytest.raises(ConfigError, match=r"`\[stability\]` lets clients of a simulation fail"):
        parse_config(table)
