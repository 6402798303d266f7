"""Sites that do not fit the run, or mean it ill: refused by name and with the reason, while the others go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.deploy.expected import assert_same_bits, expected, lost_clients
from tests.deploy.harness import Federation
from tests.deploy.inputs import write_digits, write_weights
from tests.deploy.recipes import RECIPE, SITE

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]


def test_whatever_a_hostile_site_sends_the_mean_is_that_of_the_others(federation: Federation) -> None:
    bonn = federation.add_site("bonn", {**SITE, "clients": "6-8"})
    federation.register("bonn")
    bonn.run(hostile=True)
    bonn.wait_until_joined()
    settings = [
        "partition.num_clients=9", "strategy.clients_per_round=9", "deployment.min_sites=3", "strategy.num_rounds=10",
        "deployment.max_message_mib=16", "client.local_steps=3", "strategy.max_examples=1000",
    ]  # fmt: skip
    run = federation.deploy(RECIPE, "hostile", *settings).wait()
    assert [len(record["rejections"]) for record in run.rounds] == [3] * 9 + [0]
    assert {rejection["client_id"] for record in run.rounds[:9] for rejection in record["rejections"]} == {6, 7, 8}
    reasons = [record["rejections"][0]["reason"] for record in run.rounds[:9]]
    assert all(reasons)
    simulated = expected(federation.folder / "hostile.toml", settings, lost_clients(run.rounds))
    assert_same_bits(run.params, simulated.params)


def test_a_run_does_not_begin_with_a_site_of_another_version(federation: Federation) -> None:
    _assert_refused(
        federation, {**SITE, "clients": "6-8"}, RECIPE, ["99.9.9", "install the same version"], "other version"
    )


def test_a_run_does_not_begin_with_a_site_that_has_other_weights(federation: Federation) -> None:
    weights = {name: write_weights(federation.folder / name, seed) for name, seed in (("weights", 0), ("others", 1))}
    settings = {**SITE, "clients": "6-8", "model": {"source": str(weights["others"])}}
    recipe = f'{RECIPE}\n[model]\nsource = "{weights["weights"]}"\n'
    without_architecture = recipe[: recipe.index("[model.architecture]")] + recipe[recipe.index("[tuning]") :]
    _assert_refused(federation, settings, without_architecture, ["weights"])


def test_a_run_does_not_begin_with_a_site_whose_data_lack_a_class(federation: Federation) -> None:
    data = {"source": str(write_digits(federation.folder / "images", "012345678"))}
    _assert_refused(federation, {"clients": "6-8", "data": data}, RECIPE, ["'9'", "allow_missing_classes"])


def test_a_site_whose_data_lack_a_column_does_not_join(federation: Federation) -> None:
    data = {**SITE["data"], "label_column": "diagnosis"}
    program = federation.add_site("bonn", {**SITE, "clients": "6-8", "data": data}).run()
    assert program.wait(60) == 2
    assert "diagnosis" in program.text


def _assert_refused(
    federation: Federation, settings: Mapping[str, Any], recipe: str, texts: Sequence[str], *deed: str
) -> None:
    """With bonn the run does not begin, and the message names it and says these texts."""
    bonn = federation.add_site("bonn", settings)
    federation.register("bonn")
    bonn.run(*deed, hostile=bool(deed))
    bonn.wait_until_joined()
    run = federation.deploy(recipe, f"refused-{len(list(federation.folder.iterdir()))}", "partition.num_clients=9")
    assert run.program.wait(90) == 2, run.program.text
    for text in ("site 'bonn'", *texts):
        assert text in run.program.text
    assert "site 'hamburg'" not in run.program.text
