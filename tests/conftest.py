"""What every test shares: an offline, single-threaded process, and the fixtures for what may be absent."""

from __future__ import annotations

import os

# Before anything imports torch or transformers: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    FLWR_TELEMETRY_ENABLED="0",
    MPLBACKEND="Agg",
)
# One arithmetic thread per process: several compute side by side (`pytest -n 2`), and sums then have the
# same order on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest

# A file is on the disk for good after `fsync`, which takes 3 ms and matters when a machine loses its power. No test
# does that; those of killed processes start processes of their own, in which it is as it is.
os.fsync = os.fstat  # type: ignore[assignment]

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# The same examples in every run, and no file left behind.
hypothesis.settings.register_profile("fedelta", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fedelta")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, the tests that need something this machine lacks."""
    absent = {}
    if not SHARED.is_dir():
        absent["shared"] = pytest.mark.skip(reason="needs the folder shared/ beside the repository")
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        absent["gpu"] = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        for marker, skip in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(skip)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse what makes pytest-socket lift every restriction, that of `allow_hosts` included."""
    if item.get_closest_marker("enable_socket") or "socket_enabled" in getattr(item, "fixturenames", ()):
        pytest.fail('`enable_socket` opens every address; use `@pytest.mark.allow_hosts(["127.0.0.1"])` alone')


@pytest.fixture(scope="session", autouse=True)
def _without_pages() -> Iterator[None]:
    """Leave out the page of a run that is started in Python, which takes half a second; see `pages`."""
    from fedelta import experiment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "write_page", lambda _: None)
        yield


@pytest.fixture(scope="session")
def pages() -> Callable[[], AbstractContextManager[None]]:
    """Makes a context in which runs that are started in Python write their pages, as they do for users."""
    from fedelta import experiment
    from fedelta.report.writing import write_report

    @contextmanager
    def written() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "write_page", lambda run: write_report(run, run / experiment.PAGE))
            yield

    return written


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder shared/ beside the repository; mark the test `shared` too, so that it can be selected."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder shared/ beside the repository")
    return SHARED
