"""The result of a run that has lost some clients is that of a simulation which loses the same ones."""

from __future__ import annotations

from pathlib import Path

from tests.deploy.expected import assert_same_bits, expected, lost_clients
from tests.deploy.harness import Run, tensor_bytes


def assert_mean_of_the_others(folder: Path, run: Run, settings: list[str]) -> None:
    """The run's result is that of a simulation in which exactly the clients that its record names are lost."""
    lost = lost_clients(run.rounds)
    assert any(lost.values())
    simulated = expected(folder / f"{run.path.name}.toml", settings, lost)
    assert_same_bits(run.params, simulated.params)
    assert run.summary["final_accuracy"] == simulated.measures["accuracy"]
    uploads = {key: size for key, size in simulated.tensor_bytes.items() if key[2] == "up"}
    assert {key: size for key, size in tensor_bytes(run.path).items() if key[2] == "up"} == uploads
