"""Cells on several GPUs: each sees one, the one with the fewest cells; tried with GPUs that are not there."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.small import write_small

from fedelta.comparison import launchers
from fedelta.comparison.cells import make_plan
from fedelta.comparison.directory import CellRun, ComparisonDirectory
from fedelta.comparison.pool import default_processes
from fedelta.comparison.request import read_request
from fedelta.runtimes import settings
from fedelta.runtimes.settings import VISIBLE_GPUS, gpus


class Started:
    """A process that ends when it is told to."""

    def __init__(self, environment: Any) -> None:
        self.gpu, self.code, self.stdin = environment.get(VISIBLE_GPUS), None, io.BytesIO()

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    monkeypatch.setattr(settings, "_num_gpus", lambda: 2)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    processes: list[Started] = []

    def opened(command: object, *, environment: Any, **named: object) -> Started:
        processes.append(Started(environment))
        return processes[-1]

    monkeypatch.setattr(launchers, "_open", opened)
    return processes


def jobs(folder: Path, *overrides: str) -> list[CellRun]:
    """Five cells that differ in their seed."""
    directory = ComparisonDirectory(folder / "out")
    directory.make()
    plan = make_plan(read_request(write_small(folder), {"seed": [1, 2, 3, 4, 5]}, overrides))
    return directory.jobs(plan.cells({(): None}))


@pytest.mark.parametrize(
    ("visible", "num", "expected"),
    [(None, 2, ("0", "1")), ("3,5", 2, ("3", "5")), ("GPU-a, GPU-b", 2, ("GPU-a", "GPU-b")), ("7", 0, ())],
)
def test_gpus_are_named_as_this_process_was_told(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, num: int, expected: tuple[str, ...]
):
    monkeypatch.setattr(settings, "_num_gpus", lambda: num)
    monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE_GPUS, visible)
    assert gpus() == expected


@pytest.mark.usefixtures("two_gpus")
def test_each_cell_sees_the_gpu_with_the_fewest_cells(tmp_path: Path, started: list[Started]):
    cells = jobs(tmp_path)
    assert default_processes(cells) == 2
    launcher = launchers.launcher_for(cells)
    polls = [launcher.start(job) for job in cells[:3]]
    assert [process.gpu for process in started] == ["0", "1", "0"]
    started[1].code = 0
    assert [poll() for poll in polls] == [None, 0, None]
    assert polls[1]() == 0  # asked again, it frees nothing more
    launcher.start(cells[3])
    launcher.start(cells[4])
    assert [process.gpu for process in started[3:]] == ["1", "1"]


@pytest.mark.usefixtures("two_gpus")
def test_cells_with_several_workers_take_all_gpus_one_after_the_other(tmp_path: Path, started: list[Started]):
    cells = jobs(tmp_path, "runtime.workers=2")
    assert default_processes(cells) == 1
    launchers.launcher_for(cells).start(cells[0])
    assert started[0].gpu is None


@pytest.mark.usefixtures("two_gpus")
def test_cells_on_a_cpu_use_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.comparison.pool.available_cores", lambda: 3)
    assert default_processes(jobs(tmp_path, "runtime.device=cpu")) == 3


@pytest.mark.usefixtures("two_gpus")
def test_each_worker_of_a_run_trains_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    from fedelta.assembly import run

    chosen: list[int] = []
    monkeypatch.setattr(
        run.torch, "cuda", SimpleNamespace(is_available=lambda: True, set_device=chosen.append, device_count=lambda: 2)
    )
    monkeypatch.setattr(run, "assemble", lambda config, lanes: SimpleNamespace(site=lanes))
    monkeypatch.setattr(run, "parse_config", lambda table: table)
    assert [run.worker_site("", (), 4, number) for number in range(2)] == [4, 4]
    assert chosen == [0, 1]
