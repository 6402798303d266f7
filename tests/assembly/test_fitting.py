"""Lanes and workers that memory does not hold are refused with the sum, or fitted if they are automatic."""

from __future__ import annotations

import logging
import re

import pytest
from tests.small import write_small

from fedelta.assembly import fitting
from fedelta.assembly.run import Assembly, assemble
from fedelta.config import load_config
from fedelta.engine.footprint import Footprint
from fedelta.errors import ConfigError
from fedelta.runtimes import settings

MIB = 2**20


@pytest.fixture(autouse=True)
def a_step_of_one_lane_takes_100_mib(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "available_cores", lambda: 4)
    monkeypatch.setattr(fitting, "_footprint", lambda config, model, data: Footprint(20 * MIB, 10 * MIB))


def assembled(tmp_path, monkeypatch: pytest.MonkeyPatch, free_mib: int, *overrides: str) -> Assembly:
    monkeypatch.setattr(fitting, "available_bytes", lambda: free_mib * MIB)
    choices = ("client.batch_size=8", "strategy.clients_per_round=6", *overrides)
    return assemble(load_config(write_small(tmp_path), choices))


def test_lanes_that_fit_are_kept(tmp_path, monkeypatch):
    assert assembled(tmp_path, monkeypatch, 500, "runtime.lanes=5").engine.lanes.num == 5


def test_too_many_lanes_are_refused_with_the_largest_number_that_fits(tmp_path, monkeypatch):
    expected = (
        "`runtime.lanes` is 5, but a step of 5 lanes with 8 samples each takes about 500 MiB, and 399 MiB are free; "
        "expected 3 or fewer, or 'auto'"
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        assembled(tmp_path, monkeypatch, 399, "runtime.lanes=5")


def test_where_not_even_one_lane_fits_one_is_still_said_to_be_allowed(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="and 5 MiB are free; expected 1 or fewer, or 'auto'"):
        assembled(tmp_path, monkeypatch, 5, "runtime.lanes=2")


def test_a_lane_of_dp_sgd_has_one_example(tmp_path, monkeypatch):
    # 2 * (20 + 10) = 60 MiB
    private = ("privacy.unit=example", "privacy.noise_multiplier=1.0", "privacy.target_delta=0.01")
    choices = (*private, "privacy.clipping_norm=1.0", "runtime.lanes=2")
    assert assembled(tmp_path, monkeypatch, 60, *choices).engine.lanes.num == 2
    with pytest.raises(ConfigError, match="2 lanes with 1 sample each takes about 60 MiB, and 59 MiB are free"):
        assembled(tmp_path, monkeypatch, 59, *choices)


def test_automatic_lanes_are_halved_until_they_fit(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(settings.RuntimeSettings, "num_lanes", lambda *args, **kwargs: 6)
    with caplog.at_level(logging.WARNING):
        assembly = assembled(tmp_path, monkeypatch, 350)
    assert assembly.engine.lanes.num == 3
    assert "3 lanes instead of 6: a step of 6 lanes with 8 samples each takes about 600 MiB, and 350" in caplog.text


def test_a_batch_is_no_larger_than_the_largest_client(tmp_path, monkeypatch):
    # 120 examples, 20 at each of 6 clients: 2 * (20 + 20 * 10) = 440 MiB, however large the batch may be.
    choices = ("runtime.lanes=2", "client.batch_size=1000", "partition.name=iid")
    assert assembled(tmp_path, monkeypatch, 440, *choices).engine.lanes.num == 2
    with pytest.raises(ConfigError, match="2 lanes with 20 samples each takes about 440 MiB, and 439 MiB are free"):
        assembled(tmp_path, monkeypatch, 439, *choices)


def test_one_lane_is_left_where_none_fits(tmp_path, monkeypatch):
    assert assembled(tmp_path, monkeypatch, 5).engine.lanes.num == 1


def test_too_many_workers_are_refused_with_the_sum(tmp_path, monkeypatch):
    expected = (
        r"`runtime.workers` is 4, but they would take about 913 MiB, 229 each \(128 for itself, 1 for replies, 100 for "
        r"a step of 1 lane\), and 500 MiB are free; expected 2 or fewer, or 'auto'"
    )
    with pytest.raises(ConfigError, match=expected):
        assembled(tmp_path, monkeypatch, 500, "runtime.workers=4", "runtime.lanes=1")


def test_workers_that_fit_are_kept(tmp_path, monkeypatch):
    processes = assembled(tmp_path, monkeypatch, 500, "runtime.workers=2", "runtime.lanes=1").processes
    assert processes is not None
    assert processes.most_workers == 2


def test_a_worker_that_is_no_copy_takes_as_much_as_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "can_copy", lambda device: False)
    monkeypatch.setattr(fitting, "resident_bytes", lambda: 700 * MIB)
    with pytest.raises(ConfigError, match=r"801 each \(700 for itself, 1 for replies, 100 for a step of 1 lane\)"):
        assembled(tmp_path, monkeypatch, 900, "runtime.workers=4", "runtime.lanes=1")


@pytest.mark.parametrize(("free_mib", "expected"), [(500, 2), (5, 1)])
def test_automatic_workers_are_as_many_as_fit(free_mib: int, expected: int, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        processes = assembled(tmp_path, monkeypatch, free_mib, "runtime.name=processes", "runtime.lanes=1").processes
    assert processes is not None
    assert processes.most_workers == expected
    assert f"{expected} worker{'s' * (expected > 1)} instead of 4: they would take about 913 MiB" in caplog.text


def test_nothing_is_refused_where_free_memory_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "available_bytes", lambda: None)
    assemble(load_config(write_small(tmp_path), ["runtime.workers=2", "runtime.lanes=2"]))
