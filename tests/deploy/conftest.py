"""One server and two sites, which most tests of a deployment share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.deploy.harness import Federation
from tests.deploy.recipes import HAMBURG, KIEL


@pytest.fixture(scope="session")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and the sites hamburg (clients 0 to 2) and kiel (3 to 5), all up; tests leave them as they were."""
    with Federation(tmp_path_factory.mktemp("two-sites")) as federation:
        federation.start_server()
        for name, settings in (("hamburg", HAMBURG), ("kiel", KIEL)):
            federation.add_site(name, settings)
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
