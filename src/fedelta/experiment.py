"""Runs the rounds of a configuration and writes its run directory.

`run` starts a run and `resume` continues it after a kill, with the same bits as an undisturbed run: a round counts once
its checkpoint is written, which happens last.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from fedelta.assembly.objects import Objects, named_model
from fedelta.assembly.run import Assembly, assemble
from fedelta.config import Config, check_config, load_config, read_table
from fedelta.continuing import amendment_of, other_config
from fedelta.data.batches import FederatedData
from fedelta.data.clients import Name
from fedelta.errors import InputError, RunError
from fedelta.evaluation import evaluate_adapter
from fedelta.imports import collector_paused
from fedelta.inference.objects import Transform
from fedelta.inference.opening import put_params
from fedelta.inference.predict import Predictor
from fedelta.models.hub import Backbone
from fedelta.params import Params
from fedelta.record.amending import complete
from fedelta.record.files import Record
from fedelta.record.keys import read_key
from fedelta.record.ledger import Ledger
from fedelta.record.privacy import stopped_by
from fedelta.record.rundir import RunDirectory, free_name, refuse_taken
from fedelta.running import OnRound, begun, go_on, keep_adapter
from fedelta.tasks.details import Details
from fedelta.tracking.table import require

PAGE = "report.html"


def write_page(run: Path) -> None:
    """Writes the page about a run into its directory."""
    with collector_paused():  # one search of all that a run has made takes as long as the page
        from fedelta.report.writing import write_report

        write_report(run, run / PAGE)


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        measures = ", ".join(f"{name} {value:.4g}" for name, value in self.measures.items())
        return f"Result({str(self.path)!r}: {measures})"

    @property
    def page(self) -> Path:
        """The page about the run, one HTML file."""
        return self.path / PAGE

    @property
    def measures(self) -> Mapping[str, float]:
        """The measures on the test set after the last round, such as `loss_nats`."""
        return dict(self.summary["measures"])

    def save_adapter(self, directory: str | Path) -> None:
        """Writes the adapter in Hugging Face PEFT layout, as in `path / "adapter"`."""
        keep_adapter(Path(directory), self.assembly, self.params, self.summary)

    def module(self, client: Name | None = None) -> nn.Module:
        """Returns a copy of the tuned model, in evaluation mode, with what was tuned folded in where that is possible.

        Args:
            client: as for `predictor`.
        """
        return self.predictor(client).module()

    def predictor(self, client: Name | None = None, *, transform: Transform | None = None) -> Predictor:
        """Returns a predictor with the tuned model, for images, texts or recordings.

        Args:
            client: name or number of the client whose own tensors are used (`model.batch_norm = "local"`).
            transform: makes the inputs of one example, in the form that the rows of the data have without the label,
                for a model that was given as an object; None if examples are such inputs.
        """
        data, site = self.assembly.data, self.assembly.site
        kept = {} if client is None else site.memory_of(data.clients.number_of(client)).local_only
        backbone, lanes = copy.deepcopy((self.assembly.backbone, self.assembly.engine.lanes))
        put_params(backbone, self.params | kept)
        lanes.active = 1
        self.assembly.model.tuning.merge(backbone)
        return Predictor(backbone, self.assembly.data.class_names, self.assembly.task, transform)


class Experiment:
    """One configuration, ready to run.

    Args:
        config: of the run.
        objects: your model and data instead of the sections `[model]`, `[data]` and `[partition]`.
        backbone: your model instead of `config.model`.
        data: your data instead of `config.data` and `config.partition`.
        name: default name of the run directory.

    Raises:
        ConfigError: the sections contradict each other.
    """

    def __init__(
        self,
        config: Config,
        objects: Objects | None = None,
        *,
        backbone: Backbone | None = None,
        data: FederatedData | None = None,
        name: str = "experiment",
    ) -> None:
        if objects is not None:
            objects = objects.unwrapped
            config = objects.named_in(config)
        elif backbone is not None:
            config = config.model_copy(update={"model": named_model(config, backbone)})
        check_config(config)
        self.config = config
        self._objects = objects
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
    def from_run(
        cls, directory: str | Path, objects: Objects | None = None, overrides: Iterable[str] = ()
    ) -> Experiment:
        """Returns the experiment of a run directory, to resume it or to evaluate its model.

        The adapter that the run started from is not needed: its tuning method is in `config.toml`, its tensors are in
        the checkpoint.

        Args:
            directory: of the run.
            objects: model and data, if the run was given them as objects.
            overrides: `section.key=value` strings, such as `strategy.num_rounds=60`, to resume it with.

        Raises:
            RunError: `directory` is no run.
            InputError: `overrides` would change what has been computed.
        """
        run = RunDirectory.open(Path(directory))
        complete(run)
        experiment = cls(other_config(run, overrides), objects, name=run.path.name)
        experiment._left_out = read_table(run.config)["model"].get("adapter")
        experiment._take_key(run)
        return experiment

    def __repr__(self) -> str:
        objects = "" if self._objects is None else f", {self._objects}"
        return f"Experiment({self.name!r}, {self.config.tuning.name!r}, {self.config.strategy.name!r}{objects})"

    @cached_property
    def assembly(self) -> Assembly:
        """The objects of this experiment, built on first use."""
        objects = self._objects
        backbone, data = (self._backbone, self._data) if objects is None else objects.parts(self.config)
        assembly = assemble(self.config, backbone=backbone, data=data, key=self._key)
        return assembly if objects is None else replace(assembly, metrics=objects.metrics)

    def run(
        self, out: str | Path | None = None, *, on_round: OnRound | None = None, writes_page: bool = True
    ) -> Result:
        """Runs all rounds, and writes the page about the run.

        Args:
            out: a new run directory; by default `runs/<name>`, with a number if that exists.
            on_round: called after each round with its outcome and the ledger.
            writes_page: False leaves the page out, which takes half a second.

        Raises:
            InputError: the configuration, data or model cannot be used; no run directory is left behind.
            RoundError: training failed; earlier rounds are kept.
        """
        if self._left_out is not None:
            raise InputError(
                f"the run {self.name!r} started from adapter {self._left_out!r}, without which it can only be resumed.",
                hint="to start anew, give its `config.toml` to `fedelta run` or `Experiment.from_toml`.",
            )
        _refuse_sites(self.config)
        path = free_name(Path("runs"), self.name) if out is None else Path(out)
        refuse_taken(path)
        require(self.config.tracking)
        RunDirectory.create(path, begun(self.assembly))
        return self.resume(path, on_round=on_round, writes_page=writes_page)

    def resume(self, directory: str | Path, *, on_round: OnRound | None = None, writes_page: bool = True) -> Result:
        """Continues a run after its last complete round; for a finished run, only writes its final files again.

        If `num_rounds` of the strategy, `byte_budget_mib` or `evaluate_every` of this experiment are others than those
        of the run, it goes on with these, also after its end. What a finished run came to is kept in
        `after-N-rounds/`. The other arguments are as for `run`.

        Raises:
            RunError: `directory` is no run, or its privacy budget is spent.
            InputError: the run has more rounds already, or its noise was calculated for another number of rounds.
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
        _refuse_sites(self.config)
        require(self.config.tracking)
        complete(run)
        amendment = amendment_of(run, self.config)
        if "assembly" not in self.__dict__:  # made by `run`, it has the key that the run began with
            self._take_key(run)
        with run.locked():
            finished = go_on(run, self.assembly, on_round, amendment)
        if writes_page:
            write_page(run.path)
        return Result(run.path, self.assembly, finished.params, finished.ledger, finished.summary)

    def evaluate(self, directory: str | Path, *, predictions: Path | None = None) -> Details:
        """Returns all that is measured of the model of a finished run on the test set.

        Args:
            directory: of the run.
            predictions: a CSV file to write, with the answer to each example.

        Raises:
            InputError: the run is not finished, or model or data are not those that it had.
        """
        return evaluate_adapter(directory, objects=self._objects, predictions=predictions)

    def _take_key(self, run: RunDirectory) -> None:
        """Goes on with the secret that the noise of a run is made of, if it has one."""
        if not run.is_deployed and self.config.privacy.is_secure(is_deployed=False):
            self._key = read_key(run.path)


def _refuse_sites(config: Config) -> None:
    if config.runtime.name == "flower":
        raise InputError(
            "`runtime.name` is 'flower': this experiment runs on sites.",
            hint="start it with `fedelta deploy`, or set `runtime.name` to 'auto' to run it on this machine.",
        )
