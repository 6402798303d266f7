"""Runs the rounds of a configuration and writes its run directory.

`run` starts a run and `resume` continues it after a kill, with the same bits as an undisturbed run: a round counts once
its checkpoint is written, which happens last.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedelta.assembly.run import Assembly, assemble
from fedelta.config import WITHOUT_ADAPTER, Config, check_config, load_config, read_table
from fedelta.data.batches import FederatedData
from fedelta.data.clients import Name
from fedelta.errors import InputError, RunError
from fedelta.inference.predict import Predictor, put_params
from fedelta.models.hub import Backbone
from fedelta.params import Params
from fedelta.record.files import Record
from fedelta.record.keys import read_key
from fedelta.record.ledger import Ledger
from fedelta.record.privacy import stopped_by
from fedelta.record.rundir import RunDirectory, free_name, refuse_taken
from fedelta.running import OnRound, begun, go_on, keep_adapter
from fedelta.tracking.table import require


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        path: of the run directory.
        assembly: the objects of the run.
        params: server params after the last round.
        ledger: the size of every payload.
        summary: the content of `summary.json`.
    """

    path: Path
    assembly: Assembly
    params: Params
    ledger: Ledger
    summary: Record

    @property
    def measures(self) -> Mapping[str, float]:
        """The measures on the test set after the last round, such as `loss_nats`."""
        return dict(self.summary["measures"])

    def save_adapter(self, directory: str | Path) -> None:
        """Writes the adapter in Hugging Face PEFT layout, as in `path / "adapter"`."""
        keep_adapter(Path(directory), self.assembly, self.params, self.summary)

    def predictor(self, client: Name | None = None) -> Predictor:
        """Returns a predictor with the tuned model, for images, texts or recordings.

        Args:
            client: name or number of the client whose own tensors are used (`model.batch_norm = "local"`).
        """
        data, site = self.assembly.data, self.assembly.site
        kept = {} if client is None else site.memory_of(data.clients.number_of(client)).local_only
        backbone, lanes = copy.deepcopy((self.assembly.backbone, self.assembly.engine.lanes))
        put_params(backbone, self.params | kept)
        lanes.active = 1
        self.assembly.model.tuning.merge(backbone)
        return Predictor(backbone, self.assembly.data.class_names, self.assembly.task)


class Experiment:
    """One configuration, ready to run.

    Args:
        config: of the run.
        backbone: your model instead of `config.model`.
        data: your data instead of `config.data` and `config.partition`.
        name: default name of the run directory.
    """

    def __init__(
        self,
        config: Config,
        *,
        backbone: Backbone | None = None,
        data: FederatedData | None = None,
        name: str = "experiment",
    ) -> None:
        check_config(config)
        self.config = config
        self.name = name
        self._left_out: str | None = None
        self._key: bytes | None = None
        self._backbone = backbone
        self._data = data

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
        """Returns the experiment of a TOML file, with `section.key=value` overrides."""
        return cls(load_config(path, overrides), name=Path(path).stem)

    @classmethod
    def from_run(cls, directory: str | Path) -> Experiment:
        """Returns the experiment of a run directory, to resume it.

        The adapter that the run started from is not needed: its tuning method is in `config.toml`, its tensors are in
        the checkpoint.
        """
        run = RunDirectory.open(Path(directory))
        experiment = cls(load_config(run.config, WITHOUT_ADAPTER), name=run.path.name)
        experiment._left_out = read_table(run.config)["model"].get("adapter")
        if not run.is_deployed and experiment.config.privacy.is_secure(is_deployed=False):
            experiment._key = read_key(run.path)
        return experiment

    @cached_property
    def assembly(self) -> Assembly:
        """The objects of this experiment, built on first use."""
        return assemble(self.config, backbone=self._backbone, data=self._data, key=self._key)

    def run(self, out: str | Path | None = None, *, on_round: OnRound | None = None) -> Result:
        """Runs all rounds.

        Args:
            out: a new run directory; by default `runs/<name>`, with a number if that exists.
            on_round: called after each round with its outcome and the ledger.

        Raises:
            InputError: the configuration, data or model cannot be used; no run directory is left behind.
            RoundError: training failed; earlier rounds are kept.
        """
        if self._left_out is not None:
            raise InputError(
                f"the run {self.name!r} started from adapter {self._left_out!r}, without which it can only be resumed.",
                hint="to start anew, give its `config.toml` to `fedelta run` or `Experiment.from_toml`.",
            )
        if self.config.runtime.name == "flower":
            raise InputError(
                "`runtime.name` is 'flower': this experiment runs on sites.",
                hint="start it with `fedelta deploy`, or set `runtime.name` to 'auto' to run it on this machine.",
            )
        path = free_name(Path("runs"), self.name) if out is None else Path(out)
        refuse_taken(path)
        require(self.config.tracking)
        RunDirectory.create(path, begun(self.assembly))
        return self.resume(path, on_round=on_round)

    def resume(self, directory: str | Path, *, on_round: OnRound | None = None) -> Result:
        """Continues a run after its last complete round; for a finished run, only writes its final files again.

        Raises:
            RunError: `directory` is no run, or its privacy budget is spent.
            CheckpointError: its checkpoint is damaged or belongs to another configuration.
        """
        run = RunDirectory.open(Path(directory))
        if run.is_deployed:
            raise RunError(
                f"run {str(run.path)!r} was deployed: its clients are at sites.",
                hint=f"continue it with `fedelta deploy {run.path} --server HUB`.",
            )
        if stopped := stopped_by(run):
            raise RunError(
                f"run {str(run.path)!r} cannot go on. {stopped}",
                hint="its results are complete; more rounds need a new run, with a larger epsilon or with more noise.",
            )
        require(self.config.tracking)
        with run.locked():
            finished = go_on(run, self.assembly, on_round)
        return Result(run.path, self.assembly, finished.params, finished.ledger, finished.summary)
