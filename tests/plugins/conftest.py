"""Registries that are after each test as they were before it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedelta import cli
from fedelta.catalog import ALL
from fedelta.settings import loading

STRANGER = Path(__file__).with_name("stranger.py")


@contextmanager
def own_registries() -> Iterator[None]:
    """Undoes what is registered inside."""
    before = [dict(registry.added) for registry in ALL]
    installed = loading.INSTALLED.is_done, dict(loading.INSTALLED.broken)
    for registry in ALL:
        registry.added.clear()
    try:
        yield
    finally:
        for registry, added in zip(ALL, before, strict=True):
            registry.added.clear()
            registry.added.update(added)
        loading.INSTALLED.is_done, loading.INSTALLED.broken = installed


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    with own_registries():
        yield


@pytest.fixture
def fedelta(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command as a process of its own would, without the plug-ins of an earlier one."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedelta", *map(str, arguments)])
        with own_registries(), pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call
