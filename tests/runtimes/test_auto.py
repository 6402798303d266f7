"""When a run starts workers unasked: where they save time, and only as many as fit into memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest

from fedelta.engine.filling import Chunk
from fedelta.federation.packs import Pack
from fedelta.runtimes import processes
from fedelta.runtimes.processes import Processes, Workers

MIB = 2**20


@dataclass(frozen=True)
class Site:
    """Ten rounds; a client's work is its number."""

    num_rounds: int = 10

    def work_of(self, client_id: int) -> float:
        return client_id


def packs(round: int) -> deque[Pack]:
    return deque(Pack(round, {i: ()}, {i: b""}, {}) for i in (30, 20))


def alone(seconds_per_work: float | None, resident_bytes: int | None = None) -> Processes:
    """A runtime that has trained; a round is work of 100."""
    runtime = Processes(Site(), Workers(4, lambda site: None, 0.5, asked_for=False))
    runtime._pace.seconds_per_work, runtime._pace.resident_bytes = seconds_per_work, resident_bytes
    runtime._pace.work_of_round = 100.0
    return runtime


@pytest.mark.parametrize(
    ("seconds_per_work", "round", "expected"),
    [
        (None, 1, 0),  # nothing is known before the first pack
        # 50 left and nine rounds of 100: 950 * 0.006 = 5.7 s, of which two workers save half, less 0.5 s to start.
        (0.006, 1, 2),
        (0.005, 1, 0),  # 4.75 / 2 - 0.5 < 2
        (0.1, 10, 2),  # the last round: 50 * 0.1 = 5 s
        (0.09, 10, 0),
    ],
)
def test_workers_start_if_they_save_more_than_two_seconds(seconds_per_work, round, expected, monkeypatch):
    monkeypatch.setattr(processes, "available_bytes", lambda: None)
    assert alone(seconds_per_work)._worthwhile(packs(round)) == expected


@pytest.mark.parametrize(
    ("seconds_per_row", "expected"),
    [
        (None, 0),  # nothing is known before the first chunk
        (0.026, 2),  # two chunks of 30 rows: 1.56 s, of which two workers save half, less 0.5 s to start
        (0.024, 0),  # 1.44 / 2 - 0.5 < 0.25
    ],
)
def test_workers_fill_the_cache_if_they_save_a_quarter_of_a_second(seconds_per_row, expected, monkeypatch):
    monkeypatch.setattr(processes, "available_bytes", lambda: None)
    runtime = alone(None)
    runtime._may_start = True
    if seconds_per_row is not None:
        runtime._filling_pace.note(seconds_per_row * 30, 30)
    assert runtime._worth_filling(deque([Chunk(tuple(range(30)))] * 2)) == expected


@pytest.mark.parametrize(
    ("available_mib", "expected"),
    [
        # Training took 500 - 200 = 300 MiB here, and a worker takes 128 more.
        (2 * 428, 2),
        (2 * 428 - 1, 0),
        (9999, 2),  # no more than there are packs
    ],
)
def test_workers_start_only_if_they_fit_into_memory(available_mib, expected, monkeypatch):
    monkeypatch.setattr(processes, "available_bytes", lambda: available_mib * MIB)
    monkeypatch.setattr(processes, "peak_memory_bytes", lambda: 500 * MIB)
    assert alone(1.0, resident_bytes=200 * MIB)._worthwhile(packs(1)) == expected
