"""Sites that do not fit the run, or mean it ill: refused by name and with the reason, while the others go on."""

from __future__ import annotations

import pytest
from tests.deploy.expected import assert_same_bits, expected, lost_clients
from tests.deploy.harness import Federation
from tests.deploy.recipes import RECIPE, SITE

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]


def test_whatever_a_hostile_site_sends_the_mean_is_that_of_the_others(federation: Federation) -> None:
    bonn = federation.add_site("bonn", {**SITE, "clients": "6-8"})
    federation.register("bonn")
    bonn.run(hostile=True)
    bonn.wait_until_joined()
    settings = [
        "partition.num_clients=9", "strategy.clients_per_round=9", "deployment.min_sites=3", "strategy.num_rounds=9",
        "deployment.max_message_mib=16", "client.local_steps=3", "strategy.max_examples=1000",
    ]  # fmt: skip
    run = federation.deploy(RECIPE, "hostile", *settings).wait()
    assert [len(record["rejections"]) for record in run.rounds] == [3] * 8 + [0]
    assert {rejection["client_id"] for record in run.rounds[:8] for rejection in record["rejections"]} == {6, 7, 8}
    reasons = [record["rejections"][0]["reason"] for record in run.rounds[:8]]
    assert all(reasons)
    simulated = expected(federation.folder / "hostile.toml", settings, lost_clients(run.rounds))
    assert_same_bits(run.params, simulated.params)


@pytest.mark.parametrize(
    ("deed", "texts"),
    [("other version", ["99.9.9", "install the same version"]), ("other fingerprint", ["fingerprint"])],
)
def test_a_run_does_not_begin_with_a_site_that_does_not_fit(
    federation: Federation, deed: str, texts: list[str]
) -> None:
    bonn = federation.add_site("bonn", {**SITE, "clients": "6-8"})
    federation.register("bonn")
    bonn.run(deed, hostile=True)
    bonn.wait_until_joined()
    run = federation.deploy(RECIPE, deed.replace(" ", "-"), "partition.num_clients=9")
    assert run.program.wait(60) == 2
    for text in ("site 'bonn'", *texts):
        assert text in run.program.text
