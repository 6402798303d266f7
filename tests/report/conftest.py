from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.pages import Page, page_of
from tests.report.synthetic import SMALL, make_run


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A finished run of three rounds; not to be changed."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", SMALL).path


@pytest.fixture(scope="session")
def small_page(small) -> Page:
    """The page about it."""
    return page_of(small)
