"""A deployment that is left alone, looked at, stopped and gone on with: it ends at the bits of an undisturbed run."""

from __future__ import annotations

import signal

import pytest
from tests.deploy.expected import assert_same_bits, expected
from tests.deploy.harness import Federation, Run
from tests.deploy.processes import fedelta
from tests.deploy.recipes import RECIPE

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

SETTINGS = ["strategy.num_rounds=7"]


def test_a_deployment_is_detached_from_stopped_and_gone_on_with(federation: Federation) -> None:
    run = federation.deploy(RECIPE, "commands", *SETTINGS)
    run.wait_for_round(1)
    run.program.process.send_signal(signal.SIGINT)
    assert run.program.wait(20) == 130
    assert f"fedelta attach {run.path}" in " ".join(run.program.text.split())

    attached = federation.programs.start("attach", fedelta("attach", federation.hub))
    run = Run(run.path, attached)
    run.wait_for_round(2)
    federation.command("stop", "server", "stop", run.path)
    assert attached.wait(20) == 1
    assert "commands was stopped" in attached.text
    assert f"fedelta deploy {run.path} --server {federation.hub}" in " ".join(attached.text.split())
    num_rounds = len(run.rounds)
    assert num_rounds < 7

    command = fedelta("deploy", run.path, "--server", federation.hub)
    run = Run(run.path, federation.programs.start("go-on", command)).wait()
    assert [record["round"] for record in run.rounds] == list(range(1, 8))
    assert_same_bits(run.params, expected(federation.folder / "commands.toml", SETTINGS).params)
