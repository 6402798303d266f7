"""How many cores there are for cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedelta.comparison import cores, pool


@pytest.fixture(autouse=True)
def sixteen(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_in_affinity", lambda: 16)
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("max 100000", 16),
        ("6400000 100000", 16),  # more than the affinity
        ("nonsense", 16),
        ("1 0", 16),
    ],
)
def test_the_quota_of_a_container_counts_rounded_up(tmp_path, limit, expected):
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert cores.available_cores() == expected
    assert pool.default_processes([]) == expected


@pytest.mark.parametrize(("quota", "expected"), [("150000", 2), ("-1", 16)])
def test_the_quota_of_an_older_container_counts_too(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.available_cores() == expected


def test_a_system_without_control_groups_sets_no_quota(monkeypatch):
    monkeypatch.setattr(cores, "_CGROUP", Path("/absent"))
    assert cores.available_cores() == 16
