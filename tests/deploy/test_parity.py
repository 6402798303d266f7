"""The same experiment in this process, over worker processes, and deployed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.deploy.expected import assert_same_bits, expected
from tests.deploy.harness import Federation, tensor_bytes
from tests.deploy.recipes import RECIPE
from tests.small import SMALL

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

FEDAVG = SMALL + '\n[runtime]\nname = "flower"\n'


def test_five_rounds_deployed_end_where_the_simulation_does(federation: Federation) -> None:
    settings = ["strategy.num_rounds=5", "strategy.clients_per_round=5"]
    run = federation.deploy(FEDAVG, "fedavg", *settings)
    simulated = expected(federation.folder / "fedavg.toml", settings)
    run.wait()
    assert run.params.keys() == simulated.params.keys()
    for name, tensor in simulated.params.items():  # lanes differ, so the last decimals may
        torch.testing.assert_close(run.params[name], tensor, atol=1e-5, rtol=1e-3)
    assert tensor_bytes(run.path) == simulated.tensor_bytes
    assert [record["num_examples"] > 0 for record in run.rounds] == [True] * 5
    assert {site["state"] for record in run.rounds for site in record["sites"]} == {"took part"}
    assert next(iter(run.summary)) != "too_few_sites"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("int4", ["codec.name=int4", "codec.rounding=stochastic"]),
        (
            "hlora",
            ["codec.name=float16", "aggregation.name=hlora", "tuning.r=4", "tuning.rank_by_client.ranks=[1, 2, 4]"],
        ),
    ],
)
def test_coarse_codecs_and_ranks_are_those_of_the_simulation_to_the_last_bit(
    federation: Federation, name: str, settings: list[str]
) -> None:
    settings = ["strategy.name=fedavg", *settings]
    run = federation.deploy(RECIPE, name, *settings).wait()
    simulated = expected(federation.folder / f"{name}.toml", settings)
    assert_same_bits(run.params, simulated.params)
    assert tensor_bytes(run.path) == simulated.tensor_bytes


def test_memory_of_clients_is_that_of_the_simulation_to_the_last_bit_over_processes_and_deployed(
    federation: Federation,
) -> None:
    run = federation.deploy(RECIPE, "scaffold").wait()
    simulated = expected(federation.folder / "scaffold.toml")
    assert_same_bits(run.params, simulated.params)
    assert tensor_bytes(run.path) == simulated.tensor_bytes
    assert run.summary["final_accuracy"] == simulated.measures["accuracy"]
    local = federation.folder / "local"
    over = ["--set", "runtime.name=processes", "--set", "runtime.workers=2"]
    federation.command("run-local", "run", federation.folder / "scaffold.toml", "--out", local, *over)
    assert_same_bits(load_file(local / "adapter" / "adapter_model.safetensors"), simulated.params)
    assert tensor_bytes(local) == simulated.tensor_bytes
