from __future__ import annotations

import pytest
from tests.comparison.inline import run_inline

from fedelta.comparison import compare


@pytest.fixture
def inline(monkeypatch):
    """Comparisons run their cells in this process; gives the names of those that were begun."""
    begun: list[str] = []

    def run(jobs, **options: object):
        begun.extend(job.cell.name for job in jobs)
        return run_inline(jobs)

    monkeypatch.setattr(compare, "run_jobs", run)
    return begun
