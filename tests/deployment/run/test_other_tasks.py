"""Tasks whose settings follow from sums over all sites: a deployment is the simulation of the same recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.builders import assert_close
from tests.deployment.local import AT, Local
from tests.small import write_small

from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.inference.predict import Predictor
from fedelta.record.checkpoint import load
from fedelta.record.rundir import CHECKPOINT

SCENES = {"source": "digit-scenes", "max_train_examples": 120, "max_test_examples": 60}
TASKS = {
    "regression": {"label_columns": ["number", "sum"]},
    "multi-label": {"label_column": "digits"},
}


def overrides_of(name: str) -> list[str]:
    data = SCENES | TASKS[name]
    more = ["task.pos_weight=balanced"] if name == "multi-label" else []
    return [f"task.name={name}", *(f"data.{key}={json.dumps(value)}" for key, value in data.items()), *more]


def deployment(folder: Path, name: str) -> Local:
    own = {site: {"data": SCENES | TASKS[name]} for site in AT}
    return Local(folder, overrides=overrides_of(name), own=own)


@pytest.mark.parametrize("name", TASKS)
def test_a_deployment_is_settled_and_trained_as_a_simulation_is(name: str, tmp_path: Path):
    simulated = Experiment.from_toml(write_small(tmp_path), overrides_of(name)).run(tmp_path / "simulated")
    local = deployment(tmp_path / "deployed", name)
    local.conduct()
    assert_close(load(local.run / CHECKPOINT).params, simulated.params, rtol=1e-4, atol=1e-5)
    task, expected = Predictor.open(local.run).task, simulated.assembly.task
    for key in type(expected).model_fields:
        value, other = getattr(task, key), getattr(expected, key)
        assert value == (pytest.approx(other) if isinstance(other, tuple | dict) else other), key
    measures = json.loads((local.run / "summary.json").read_text())["measures"]
    assert measures == pytest.approx(dict(simulated.measures), rel=1e-3)


def test_a_server_that_is_killed_goes_on_with_the_settled_task(tmp_path: Path):
    whole, local = deployment(tmp_path / "whole", "regression"), deployment(tmp_path / "killed", "regression")
    whole.conduct()
    answer = local.sites["hamburg"].handler
    trained = []

    def killing(message):
        trained.extend([message] if message.kind == "train" else [])
        if len(trained) == 2:
            local.sites["hamburg"].handler = answer
            raise KeyboardInterrupt
        return answer(message)

    local.sites["hamburg"].handler = killing
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    local.conduct()
    assert_close(load(local.run / CHECKPOINT).params, load(whole.run / CHECKPOINT).params, rtol=1e-6, atol=1e-7)
    assert evaluate_adapter(local.run).measures["rmse"] > 0
