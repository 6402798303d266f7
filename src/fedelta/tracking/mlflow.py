"""MLflow in a local SQLite file: `mlflow ui --backend-store-uri sqlite:///RUN/tracking/mlflow/mlflow.db`.

MLflow 3 no longer writes its older store of plain files. Metrics cannot be replaced, so rounds that are already in the
store are skipped.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedelta.record.files import in_turn
from fedelta.tracking.base import Parameter, TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "fedelta.id"
_MAX_PARAMETERS = 100  # MLflow's limits for one request
_MAX_VALUE_LENGTH = 6000
_SUMMARY = "summary/"


@dataclass(frozen=True)
class Mlflow:
    """A run in an MLflow store.

    Args:
        client: of the store.
        run_id: MLflow's id of the run.
        rounds: the rounds in the store; changed.
    """

    client: MlflowClient
    run_id: str
    rounds: set[int]

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        if round not in self.rounds:
            self._add(round, values)
            self.rounds.add(round)

    def finish(self, summary: Mapping[str, float]) -> None:
        """See `Tracker.finish`."""
        stored = self.client.get_run(self.run_id).data.metrics
        self._add(0, {key: value for key, value in summary.items() if key not in stored})
        self.client.set_terminated(self.run_id, "FINISHED")

    def close(self) -> None:
        """See `Tracker.close`."""
        self.client.set_terminated(self.run_id, "KILLED")

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        time_ms = int(time.time() * 1000)
        metrics = [Metric(key, value, time_ms, step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)


def open_mlflow(run: TrackedRun) -> Mlflow:
    """Opens the run with this id in `mlflow/mlflow.db`, or creates it with its parameters."""
    # Switches telemetry off; read when mlflow is imported.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    # Its messages about new tables would break the progress bar.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    directory = run.directory / "mlflow"
    directory.mkdir(parents=True, exist_ok=True)
    lock = directory / ".lock"
    lock.touch()
    # Concurrent runs may share the store; if two create its tables at the same time, both fail.
    with in_turn(lock):
        client = MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlflow.db'}")
        experiment = experiment_id(client, run.project, directory / "artifacts")
    stored_runs = client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'")
    if not stored_runs:
        run_id = client.create_run(experiment, run_name=run.name, tags={_TAG: run.id}).info.run_id
        _log_parameters(client, run_id, run.parameters)
        return Mlflow(client, run_id, set())
    [data] = stored_runs
    client.update_run(data.info.run_id, status="RUNNING")
    keys = [key for key in data.data.metrics if not key.startswith(_SUMMARY)]
    rounds = {metric.step for key in keys for metric in client.get_metric_history(data.info.run_id, key)}
    return Mlflow(client, data.info.run_id, rounds)


def experiment_id(client: MlflowClient, name: str, artifacts: Path) -> str:
    """The id of the experiment `name`, which is created if needed; other processes may do so at the same time."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            new_id: str = client.create_experiment(name, artifact_location=artifacts.as_uri())
            return new_id
        except Exception:
            # Without a lock, another process may have created it in between; any other error is raised.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    existing_id: str = experiment.experiment_id
    return existing_id


def _log_parameters(client: MlflowClient, run_id: str, parameters: Mapping[str, Parameter]) -> None:
    from mlflow.entities import Param

    # Names of layers may contain characters that MLflow does not allow in keys.
    rows = [
        Param(re.sub(r"[^\w\-. /:]", "_", key), str(value)[:_MAX_VALUE_LENGTH]) for key, value in parameters.items()
    ]
    for start in range(0, len(rows), _MAX_PARAMETERS):
        client.log_batch(run_id, params=rows[start : start + _MAX_PARAMETERS])
