"""Plug-ins that a test of `fedelta.testing` loads are unknown to the next test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.plugins.conftest import own_registries


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    with own_registries():
        yield
