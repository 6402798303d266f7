from __future__ import annotations

import pytest
from tests.comparison.inline import run_once

from fedelta.comparison import compare


@pytest.fixture(scope="session")
def run_cells(tmp_path_factory):
    """Runs cells in this process, each configuration once for all tests."""
    return run_once(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def inline(monkeypatch, run_cells):
    """Comparisons run their cells in this process and draw no page; gives the names of the cells that were begun."""
    begun: list[str] = []

    def run(jobs, **options: object):
        begun.extend(job.cell.name for job in jobs)
        return run_cells(jobs)

    monkeypatch.setattr(compare, "run_jobs", run)
    monkeypatch.setattr(compare, "render", lambda comparison: "no page")
    return begun
