"""A run read back from its directory: what is refused, and with which words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.report.synthetic import SMALL, make_error_run, make_run


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", SMALL).path


@pytest.fixture
def small(tmp_path, original) -> Path:
    """A finished run of three rounds."""
    return Path(shutil.copytree(original, tmp_path / "small"))


@pytest.fixture
def errors(tmp_path, monkeypatch) -> Path:
    """A run of a task whose measures should be low."""
    return make_error_run(tmp_path / "errors", monkeypatch)
