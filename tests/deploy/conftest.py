"""One server and two sites, which most tests of a deployment share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tests.deploy.apart import Happened, happen
from tests.deploy.harness import Federation
from tests.deploy.inputs import write_weights
from tests.deploy.recipes import HAMBURG, KIEL


@pytest.fixture(scope="session")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and the sites hamburg (clients 0 to 2) and kiel (3 to 5), all up; tests leave them as they were."""
    with Federation(tmp_path_factory.mktemp("two-sites")) as federation:
        federation.start_server()
        weights = write_weights(federation.folder / "weights", seed=0)
        for name, settings in (("hamburg", HAMBURG), ("kiel", KIEL)):
            federation.add_site(name, {**settings, "model": {"source": str(weights)}})
            federation.register(name)
            federation.sites[name].run()
        for site in federation.sites.values():
            site.wait_until_joined()
        yield federation


@pytest.fixture
def federation(two_sites: Federation) -> Iterator[Federation]:
    """The shared federation; whatever a test has killed is started again, and what it has added is ended."""
    yield two_sites
    two_sites.recover(("hamburg", "kiel"))


@pytest.fixture(scope="session", autouse=True)
def under_way(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[Happened] | None]:
    """What happens apart, from the first test on, if a test asks for it."""
    if not any("happened" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(happen, tmp_path_factory.mktemp("apart"))


@pytest.fixture
def happened(under_way: Future[Happened]) -> Happened:
    """What has happened apart; waits for its end."""
    return under_way.result(timeout=400)
