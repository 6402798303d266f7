"""What a site keeps of the runs that it takes part in."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fedelta.deployment.site.run_folders import RunFolders, RunRecord


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_another_process_finds_what_one_has_written(tmp_path):
    record = RunRecord("seed = 1", {"clients": [[0, "ann"]]}, keeps=True)
    RunFolders(tmp_path).write("run 1", record)
    assert RunFolders(tmp_path).read("run 1") == record
    assert RunFolders(tmp_path).read("run 2") is None


def test_the_id_of_a_run_is_no_path(tmp_path):
    folders = RunFolders(tmp_path / "runs")
    folders.write("../../elsewhere", RunRecord(""))
    assert names(tmp_path) == ["runs"]
    folders.delete("../../elsewhere")
    assert names(tmp_path / "runs") == []


def test_a_damaged_record_is_none(tmp_path, caplog):
    folders = RunFolders(tmp_path)
    folders.write("run 1", RunRecord(""))
    next(tmp_path.glob("*/run.json")).write_text('{"config": 1')
    assert folders.read("run 1") is None
    assert "what the server said of run run 1 cannot be read" in caplog.text


def test_runs_that_were_not_used_for_long_are_forgotten(tmp_path):
    folders = RunFolders(tmp_path)
    for run in ("old", "used", "new"):
        folders.write(run, RunRecord(run))
        (folders.memories(run).folder).mkdir()
    long_ago = time.time() - 3 * 86400
    for run in ("old", "used"):
        for path in (folders._of(run), *folders._of(run).iterdir()):
            os.utime(path, (long_ago, long_ago))
    (folders.memories("used").folder / "0-1.memory").touch()
    folders.prune(keep_days=2)
    assert [folders.read(run) is not None for run in ("old", "used", "new")] == [False, True, True]
