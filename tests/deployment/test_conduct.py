from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders import assert_close
from tests.deployment.local import Local
from tests.small import write_small

from fedelta.experiment import Experiment
from fedelta.record.checkpoint import load
from fedelta.record.ledger import Ledger
from fedelta.record.rundir import CHECKPOINT, LEDGER


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """A deployment over two sites, and in `simulated` the same experiment in one process."""
    local = Local(tmp_path_factory.mktemp("deployed"))
    local.conduct()
    return local


def test_a_deployment_is_the_experiment_that_a_simulation_is(finished: Local, tmp_path: Path):
    result = Experiment.from_toml(write_small(tmp_path)).run(tmp_path / "run")
    assert_close(load(finished.run / CHECKPOINT).params, result.params, rtol=1e-5, atol=1e-6)
    ledger = Ledger.read(finished.run / LEDGER)
    assert (ledger.uplink_bytes, ledger.downlink_bytes) == (result.ledger.uplink_bytes, result.ledger.downlink_bytes)
