"""Runs the rounds of a configuration and writes its run directory.

`run` starts a run and `resume` continues it after a kill, with the same bits as an undisturbed run: a round counts once
its checkpoint is written, which happens last.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from fedelta.assembly.origin import check_origin, origin_of
from fedelta.assembly.run import Assembly, assemble
from fedelta.config import WITHOUT_ADAPTER, Config, check_config, load_config, read_table
from fedelta.data.batches import FederatedData
from fedelta.data.clients import Name
from fedelta.durable import write_atomic
from fedelta.errors import InputError
from fedelta.federation.base import Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.inference.adapter import SavedAdapter, write_adapter
from fedelta.inference.costs import costs_of
from fedelta.inference.predict import Predictor, put_params
from fedelta.modalities.settings import Preparation
from fedelta.models.hub import Backbone
from fedelta.models.native import is_native
from fedelta.models.source import checkpoint_bytes
from fedelta.params import Params
from fedelta.plugins import changed_plugins, used_by
from fedelta.record import rundir
from fedelta.record.checkpoint import Checkpoint, check_fit, encode, load, save
from fedelta.record.citations import citations
from fedelta.record.environment import environment, peak_memory_bytes
from fedelta.record.files import Mark, Record, Seal, to_json
from fedelta.record.ledger import Ledger, opening_row
from fedelta.record.origin import Origin, refuse
from fedelta.record.partition import partition_record
from fedelta.record.rundir import RunDirectory, free_name, refuse_taken
from fedelta.record.runlog import round_record, summary, timing_record
from fedelta.settings.base import as_settings
from fedelta.tracking.mirror import mirrored
from fedelta.tracking.table import require
from fedelta.tuning.exits import exit_blocks

OnRound = Callable[[RoundOutcome, Ledger], None]


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
        _write_adapter(Path(directory), self.assembly, self.params, self.summary)

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
        return Predictor(backbone, self.assembly.data.class_names, self.assembly.config.task)


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
        return experiment

    @cached_property
    def assembly(self) -> Assembly:
        """The objects of this experiment, built on first use."""
        return assemble(self.config, backbone=self._backbone, data=self._data)

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
        RunDirectory.create(path, self._opening_files())
        return self.resume(path, on_round=on_round)

    def resume(self, directory: str | Path, *, on_round: OnRound | None = None) -> Result:
        """Continues a run after its last complete round; for a finished run, only writes its final files again.

        Raises:
            RunError: `directory` is no run.
            CheckpointError: its checkpoint is damaged or belongs to another configuration.
        """
        run = RunDirectory.open(Path(directory))
        require(self.config.tracking)
        with run.locked():
            return self._resume(run, on_round)

    def _resume(self, run: RunDirectory, on_round: OnRound | None) -> Result:
        run.read_rounds()  # raises for an older format, before anything is changed
        refuse(f"run {str(run.path)!r}", changed_plugins(run.plugins))
        checkpoint = load(run.checkpoint)
        check_origin(run.path, checkpoint, self._origin, self.config)
        check_fit(run.checkpoint, checkpoint, self.assembly.spec)
        seals = run.rewind(checkpoint)
        run.sweep()
        # The server has the initial values of tensors that never travel; clients start from them.
        assembly = self.assembly.starting_from(checkpoint.params)
        assembly.federation.runtime.restore(run.clients, checkpoint.memory_mark)
        ledger = Ledger.read(run.ledger)
        with mirrored(run, self.config) as mirror:
            logs = _Logs(run, ledger, seals)
            params = self._continue(assembly, checkpoint, logs, mirror.before(on_round))
            result = _finish(run, assembly, params, ledger)
            mirror.finish(result.summary)
        return result

    def _continue(self, assembly: Assembly, checkpoint: Checkpoint, logs: _Logs, on_round: OnRound | None) -> Params:
        """Runs the remaining rounds, records each before the next begins, and returns the last params."""
        federation, params, run, ledger = assembly.federation, checkpoint.params, logs.run, logs.ledger
        standing = Standing(params, checkpoint.state, checkpoint.round, ledger.total_bytes, checkpoint.claimed)
        started = time.perf_counter()
        for outcome in federate(federation, standing):
            params = outcome.params
            ledger.append(outcome.transfers)
            loss, clients = self.config.task.loss, self.assembly.data.clients
            run.rounds.append([round_record(outcome, ledger.total_bytes, loss, clients)])
            # Written before the checkpoint, which refers to it; until then the previous snapshot is kept.
            mark = federation.runtime.snapshot(run.clients, outcome.round)
            seconds = time.perf_counter() - started
            run.timings.append([timing_record(outcome.round, seconds, peak_memory_bytes())])
            started = time.perf_counter()
            save(
                run.checkpoint,
                replace(
                    checkpoint,
                    round=outcome.round,
                    params=params,
                    state=outcome.state,
                    claimed=outcome.claimed,
                    memory_mark=mark,
                    logs={name: seal.mark() for name, seal in logs.seals.items()},
                ),
            )
            if on_round is not None:
                on_round(outcome, ledger)
        return params

    @cached_property
    def _origin(self) -> Origin:
        """The settings and inputs that the run starts from."""
        assembly = self.assembly
        return origin_of(self.config, assembly.model, assembly.data, assembly.tiers)

    def _opening_files(self) -> dict[str, str | bytes]:
        """The content of a run directory before round 1."""
        assembly, config = self.assembly, self.config
        strategy, tuning = assembly.strategy, assembly.model.tuning
        sections = [getattr(config, name) for name in Config.model_fields]
        state = strategy.init(assembly.params, assembly.spec)
        opening = opening_row(checkpoint_bytes(config.model))
        files = {
            rundir.PARTITION: to_json(partition_record(assembly.data)),
            rundir.MODEL: to_json(
                {
                    "tuned_parameters": assembly.spec.num_parameters,
                    "total_parameters": assembly.model.total_parameters,
                    "groups": assembly.spec.sizes,
                    "strategy": as_settings(strategy).model_dump(mode="json"),
                }
            ),
        }
        origin = replace(self._origin, files={name: Mark.of(text.encode()).digest for name, text in files.items()})
        logs = {rundir.ROUNDS: Mark.of(b""), rundir.LEDGER: Mark.of(opening)}
        return {
            rundir.CONFIG: config.to_toml({"tuning": tuning}),
            rundir.ENVIRONMENT: to_json(environment(used_by([*sections, tuning])), indent=2),
            rundir.CITATIONS: citations(config.to_table({"tuning": tuning})),
            rundir.LEDGER: opening,
            rundir.CHECKPOINT: encode(Checkpoint(0, assembly.params, state, {}, "", logs, origin)),
            **files,
        }


@dataclass(frozen=True)
class _Logs:
    """The files that grow with every round.

    Args:
        run: directory of the files.
        ledger: the size of every payload so far.
        seals: running digests of the logs, up to the current round.
    """

    run: RunDirectory
    ledger: Ledger
    seals: Mapping[str, Seal]


def _finish(run: RunDirectory, assembly: Assembly, params: Params, ledger: Ledger) -> Result:
    """Writes the files of a finished run."""
    details, clients = assembly.details(params), assembly.data.clients
    by_client = {str(client): {**clients.entry(client), **values} for client, values in details.by_client.items()}
    record = summary(
        run.read_rounds(),
        run.timings.readable(),
        ledger,
        assembly.config.task.primary,
        {"tuned_parameters": assembly.spec.num_parameters, "total_parameters": assembly.model.total_parameters},
        details={**details.as_record(), "by_client": by_client},
    )
    if details.confusion is not None:
        write_atomic(run.path / rundir.CONFUSION, to_json(details.confusion.as_record()) + "\n")
    _write_adapter(run.adapter, assembly, params, record)
    if exit_blocks(assembly.backbone.module):
        _keep_costs(run, assembly)
    run.write_summary(record)
    return Result(run.path, assembly, params, ledger, record)


def _keep_costs(run: RunDirectory, assembly: Assembly) -> None:
    """Measures the cost of an answer at each exit, unless the run was measured on this machine before."""
    assembly.engine.lanes.active = 1
    # The caller's backbone may have no modality that makes an example.
    row = None if assembly.backbone.modality else assembly.data.test.inputs.fetch(torch.tensor([0]))
    costs_of(run.path, assembly.backbone, row)


def _write_adapter(directory: Path, assembly: Assembly, params: Params, record: Record) -> None:
    config, modality = assembly.config, assembly.backbone.modality
    adapter = SavedAdapter(
        assembly.model.tuning,
        params,
        base=config.model.source or "",
        class_names=assembly.data.class_names,
        model=config.model,
        seed=config.seed,
        preparation=Preparation() if modality is None else modality.preparation,
        task=config.task,
        identity=assembly.model.identity,
    )
    card = {
        **record,
        "num_clients": len(assembly.data.partition),
        "modality": None if modality is None else modality.name,
        "extra_inputs": dict(assembly.backbone.extra_inputs),
        "is_native": is_native(assembly.backbone.module),
        "config": config.to_table({"strategy": assembly.strategy}),
    }
    write_adapter(directory, adapter, assembly.backbone.anatomy, card)
