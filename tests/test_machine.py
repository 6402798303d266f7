"""How many cores and how much memory this process may use."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fedelta import machine
from fedelta.comparison import pool


@pytest.fixture(autouse=True)
def sixteen(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_in_affinity", lambda: 16)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)


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
    assert machine.available_cores() == expected
    assert pool.default_processes([]) == expected


def test_a_process_is_limited_if_its_quota_is_below_its_cores(tmp_path):
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert machine.is_limited()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert not machine.is_limited()


@pytest.mark.parametrize(("quota", "expected"), [("150000", 2), ("-1", 16)])
def test_the_quota_of_an_older_container_counts_too(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.available_cores() == expected


def test_a_system_without_control_groups_sets_no_quota(monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", Path("/absent"))
    assert machine.available_cores() == 16


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.available_bytes() == 350
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    assert machine.available_bytes() == 2048


def test_unknown_memory_sets_no_limit(monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", Path("/absent"))
    monkeypatch.setattr(machine, "_MEMINFO", Path("/absent"))
    assert machine.available_bytes() is None


_NEW_PAGES = """
import resource, sys
from fedelta.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(6 * 2**20) for _ in range(8)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_memory_that_was_freed_is_allocated_again_without_new_pages():
    # 48 MiB, or 12,288 pages of 4 KiB. In new processes, because what glibc keeps depends on what was freed before.
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", _NEW_PAGES, word], check=True, capture_output=True).stdout)
        for word in ("give back", "keep")
    )
    assert kept < given_back / 10


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _name: object())
    machine.keep_freed_memory()
