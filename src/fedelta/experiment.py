"""The composition root: a configuration becomes objects, rounds, and a run directory.

`assemble` makes the objects; `Experiment` runs them. `run` starts, `resume` continues after a kill, and both end
with the same bits as an undisturbed run: a round counts once its checkpoint, which is written last, is there.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from fedelta.config import Config, load_config, with_absolute_paths
from fedelta.data.batches import FederatedData
from fedelta.data.federate import federate as divide
from fedelta.data.sources import read
from fedelta.errors import ConfigError, ModelError
from fedelta.federation.client import Site
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import Federation, federate
from fedelta.federation.training import Evaluation, LaneEngine
from fedelta.inference.adapter import Adapter, check_fits, read_adapter, write_adapter
from fedelta.inference.predict import Predictor
from fedelta.models.hub import Backbone, build, checkpoint_bytes
from fedelta.models.transforms import TextTransform
from fedelta.params import Params, ParamSpec
from fedelta.results import rundir
from fedelta.results.checkpoint import Checkpoint, encode, load, save
from fedelta.results.citations import citations
from fedelta.results.environment import environment, peak_memory_bytes
from fedelta.results.files import JsonLines, Record, to_json
from fedelta.results.ledger import Ledger, opening_row
from fedelta.results.rundir import RunDirectory, free_name, refuse_taken
from fedelta.results.runlog import round_record, summary, timing_record
from fedelta.runtimes.simulation import Simulation
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

logger = logging.getLogger("fedelta")

OnRound = Callable[[RoundOutcome, Ledger], None]


@dataclass(frozen=True)
class Assembly:
    """The objects of one run.

    Args:
        config: with the tuning method that is really used.
        backbone: with the tuning method applied.
        data: of all clients, and the test set.
        engine: trains and evaluates.
        federation: what `federate` needs.
        params: server params before round 1.
        total_parameters: scalars of the model before tuning.
    """

    config: Config
    backbone: Backbone
    data: FederatedData
    engine: LaneEngine
    federation: Federation
    params: Params
    total_parameters: int

    @property
    def spec(self) -> ParamSpec:
        """Names, shapes and groups of what is tuned."""
        return self.engine.spec

    def evaluate(self, params: Params) -> Evaluation:
        """Accuracy and loss of `params` on the test set."""
        return self.engine.evaluate(params, self.data.test)


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        path: of the run directory.
        assembly: the objects that ran.
        params: server params after the last round.
        ledger: every payload.
        summary: the content of `summary.json`.
    """

    path: Path
    assembly: Assembly
    params: Params
    ledger: Ledger
    summary: Record

    @property
    def accuracy(self) -> float:
        """Fraction of the test set that is classified correctly after the last round."""
        return float(self.summary["final_accuracy"])

    def save_adapter(self, directory: str | Path) -> None:
        """Writes the adapter in Hugging Face PEFT layout; it is also in `path / "adapter"`."""
        _write_adapter(Path(directory), self.assembly, self.params, self.summary)

    def predictor(self) -> Predictor:
        """The tuned model, ready for images or texts."""
        return Predictor.open(self.path)


class Experiment:
    """One configuration, ready to run.

    Args:
        config: what to run.
        backbone: a model of your own instead of `config.model`.
        data: data of your own instead of `config.data` and `config.partition`.
        name: of the run directory, where none is given.
    """

    def __init__(
        self,
        config: Config,
        *,
        backbone: Backbone | None = None,
        data: FederatedData | None = None,
        name: str = "experiment",
    ) -> None:
        self.config = with_absolute_paths(config)
        self.name = name
        self._backbone = backbone
        self._data = data

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
        """The experiment of a TOML file, with `section.key=value` overrides."""
        return cls(load_config(path, overrides), name=Path(path).stem)

    @classmethod
    def from_run(cls, directory: str | Path) -> Experiment:
        """The experiment behind a run directory."""
        run = RunDirectory.open(Path(directory))
        return cls(load_config(run.config), name=run.path.name)

    @cached_property
    def assembly(self) -> Assembly:
        """The objects of this experiment, made on first use."""
        return assemble(self.config, backbone=self._backbone, data=self._data)

    def run(self, out: str | Path | None = None, *, on_round: OnRound | None = None) -> Result:
        """Runs all rounds.

        Args:
            out: the run directory, which must not exist; `runs/<name>` by default, with a number if that is taken.
            on_round: called after each round with its outcome and the ledger.

        Raises:
            InputError: the configuration, data or model cannot be used; no run directory is left behind.
            RoundError: training failed; the rounds before it are kept.
        """
        path = free_name(Path("runs"), self.name) if out is None else Path(out)
        refuse_taken(path)
        RunDirectory.create(path, self._opening_files())
        return self.resume(path, on_round=on_round)

    def resume(self, directory: str | Path, *, on_round: OnRound | None = None) -> Result:
        """Continues a run after its last complete round; a finished run only gets its final files again.

        Raises:
            RunError: `directory` is no run.
            CheckpointError: its checkpoint is damaged or belongs to another configuration.
        """
        run = RunDirectory.open(Path(directory))
        checkpoint = load(run.checkpoint, self.assembly.spec, self._fingerprint)
        run.rewind(checkpoint)
        ledger = Ledger.read(run.ledger)
        params = self._continue(run, checkpoint, ledger, on_round)
        return _finish(run, self.assembly, params, ledger)

    def _continue(self, run: RunDirectory, checkpoint: Checkpoint, ledger: Ledger, on_round: OnRound | None) -> Params:
        """Runs the rounds that are left, each recorded before the next begins; returns the last params."""
        params, best = checkpoint.params, checkpoint.best_accuracy
        outcomes = federate(
            self.assembly.federation,
            params,
            checkpoint.state,
            rounds_done=checkpoint.round,
            bytes_sent=ledger.total_bytes,
        )
        started = time.perf_counter()
        for outcome in outcomes:
            params = outcome.params
            best = max((x for x in (best, outcome.accuracy) if x is not None), default=None)
            ledger.append(outcome.transfers)
            run.rounds.append([round_record(outcome, ledger.total_bytes)])
            seconds = time.perf_counter() - started
            run.timings.append([timing_record(outcome.round, seconds, peak_memory_bytes())])
            started = time.perf_counter()
            save(
                run.checkpoint,
                Checkpoint(
                    round=outcome.round,
                    params=params,
                    state=outcome.state,
                    log_bytes=run.rounds.num_bytes,
                    ledger_bytes=JsonLines(run.ledger).num_bytes,
                    timing_bytes=run.timings.num_bytes,
                    accuracy=outcome.accuracy,
                    best_accuracy=best,
                    run_fingerprint=self._fingerprint,
                ),
            )
            if on_round is not None:
                on_round(outcome, ledger)
        return params

    @property
    def _fingerprint(self) -> str:
        """Differs between configurations that would give other results."""
        return hashlib.sha256(self.assembly.config.to_toml().encode()).hexdigest()[:16]

    def _opening_files(self) -> dict[str, str | bytes]:
        """The content of a run directory before round 1."""
        assembly = self.assembly
        config = assembly.config
        state = assembly.federation.strategy.init(assembly.params, assembly.spec)
        opening = opening_row(checkpoint_bytes(config.model))
        first = Checkpoint(0, assembly.params, state, 0, len(opening), 0, None, None, self._fingerprint)
        return {
            rundir.CONFIG: config.to_toml(),
            rundir.ENVIRONMENT: to_json(environment(), indent=2),
            rundir.CITATIONS: citations(config.model_dump()),
            rundir.PARTITION: to_json(_label_counts(assembly.data)),
            rundir.MODEL: to_json(
                {
                    "tuned_parameters": assembly.spec.num_parameters,
                    "total_parameters": assembly.total_parameters,
                }
            ),
            rundir.LEDGER: opening,
            rundir.CHECKPOINT: encode(first),
        }


def assemble(config: Config, *, backbone: Backbone | None = None, data: FederatedData | None = None) -> Assembly:
    """The objects that `config` describes; reads data and weights, trains nothing.

    Args:
        config: what to run.
        backbone: a model of your own instead of `config.model`; edited in place.
        data: data of your own instead of `config.data` and `config.partition`.

    Raises:
        InputError: something in it cannot be used.
    """
    if data is None:
        raw = read(config.data, seed=config.seed)
        _check_num_classes(config, len(raw.class_names))
        backbone = backbone or build(config.model, raw.class_names, seed=config.seed)
        if backbone.transform is None:
            raise ModelError("a backbone without a transform cannot read raw data; give `data` too.")
        data = divide(raw, config.partition, backbone.transform, seed=config.seed)
    elif backbone is None:
        backbone = build(config.model, data.class_names, seed=config.seed)
    _check_cohort(config, data)
    total_parameters = backbone.num_parameters
    backbone.module.to(config.runtime.torch_device())
    adapter = None if config.model.adapter is None else read_adapter(config.model.adapter, backbone.anatomy)
    if adapter is not None:
        config = _adopt_tuning(config, adapter, backbone)
    engine = _engine(config, backbone, data)
    start = engine.bank.read(0) | (adapter.params if adapter is not None else {})
    federation = _federation(config, engine, data)
    return Assembly(config, backbone, data, engine, federation, _on_cpu(start), total_parameters)


def evaluate_adapter(
    config: str | Path, adapter: str | Path | None = None, overrides: Iterable[str] = ()
) -> Evaluation:
    """Accuracy and loss on the test set, without training.

    Args:
        config: a TOML file, or a run directory, whose own adapter is taken when none is given.
        adapter: a PEFT adapter directory; without one the model is measured as it starts.
        overrides: `section.key=value` strings.
    """
    path = Path(config)
    if path.is_dir():
        run = RunDirectory.open(path)
        path, adapter = run.config, adapter or run.adapter
    loaded = load_config(path, overrides)
    if adapter is not None:
        # The adapter says what is tuned, whatever the configuration was written for.
        found = read_adapter(adapter)
        model = loaded.model.model_copy(update={"adapter": str(adapter)})
        loaded = loaded.model_copy(update={"model": model, "tuning": found.tuning})
    assembly = assemble(loaded)
    return assembly.evaluate(assembly.params)


def _engine(config: Config, backbone: Backbone, data: FederatedData) -> LaneEngine:
    num_lanes = config.runtime.num_lanes(
        clients_per_round=config.strategy.clients_per_round,
        batch_size=config.client.batch_size,
        max_lanes=config.tuning.max_lanes,
    )
    lanes = Lanes(num_lanes)
    spec = config.tuning.apply(backbone, lanes, stream(config.seed, "tuning"))
    engine = LaneEngine(
        backbone,
        spec,
        lanes,
        data.train,
        client=config.client,
        rule=config.local_rule,
        cache_bytes=config.runtime.cache_mib * 2**20,
        compute_dtype=config.runtime.compute_dtype,
    )
    for note in engine.notes:
        logger.warning(note)
    return engine


def _federation(config: Config, engine: LaneEngine, data: FederatedData) -> Federation:
    site = Site(engine, data.partition, config.codec, config.seed, config.strategy.num_rounds)
    budget = config.byte_budget_mib
    return Federation(
        strategy=config.strategy,
        runtime=Simulation(site),
        codec=config.codec,
        spec=engine.spec,
        client_ids=sorted(data.partition),
        seed=config.seed,
        evaluate=lambda params: engine.evaluate(params, data.test),
        evaluate_every=config.evaluate_every,
        byte_budget=None if budget is None else int(budget * 2**20),
    )


def _adopt_tuning(config: Config, adapter: Adapter, backbone: Backbone) -> Config:
    """The configuration with the tuning method of the adapter that the run starts from."""
    check_fits(adapter, backbone)
    chosen, found = config.tuning, adapter.tuning
    if isinstance(chosen, Lora) and isinstance(found, Lora):
        # An adapter from elsewhere may come without a head; whether ours is trained is the configuration's choice.
        found = found.model_copy(update={"train_head": found.train_head or chosen.train_head})
        if "target_modules" in chosen.model_fields_set and chosen.targets(backbone) == found.targets(backbone):
            chosen = chosen.model_copy(update={"target_modules": found.target_modules})
    differing = [
        name for name in sorted(chosen.model_fields_set) if getattr(chosen, name) != getattr(found, name, None)
    ]
    if differing:
        raise ConfigError(
            [
                f"`tuning.{name}` is {getattr(chosen, name)!r}, but the adapter {config.model.adapter!r} "
                f"has {getattr(found, name, None)!r}"
                for name in differing
            ],
            hint="leave `[tuning]` to the adapter: keep only its `name`.",
        )
    return config.model_copy(update={"tuning": found})


def _check_num_classes(config: Config, found: int) -> None:
    wanted = config.model.num_classes
    if wanted is not None and wanted != found:
        raise ConfigError(
            [f"`model.num_classes` is {wanted}, but the training data have {found} classes"],
            hint="leave it out: it is found from the data.",
        )


def _check_cohort(config: Config, data: FederatedData) -> None:
    wanted, found = config.strategy.clients_per_round, len(data.partition)
    if wanted > found:
        raise ConfigError([f"`strategy.clients_per_round` is {wanted}, but the data have {found} clients"])


def _finish(run: RunDirectory, assembly: Assembly, params: Params, ledger: Ledger) -> Result:
    """Writes what only a finished run has."""
    record = summary(
        run.rounds.read(),
        run.timings.read(),
        ledger,
        tuned_parameters=assembly.spec.num_parameters,
        total_parameters=assembly.total_parameters,
    )
    _write_adapter(run.adapter, assembly, params, record)
    run.write_summary(record)
    return Result(run.path, assembly, params, ledger, record)


def _write_adapter(directory: Path, assembly: Assembly, params: Params, record: Record) -> None:
    config = assembly.config
    base = config.model.source or "random"
    adapter = Adapter(config.tuning, params, base, assembly.data.class_names)
    card = {
        **record,
        "num_clients": len(assembly.data.partition),
        "modality": "text" if isinstance(assembly.backbone.transform, TextTransform) else "image",
        "extra_inputs": dict(assembly.backbone.extra_inputs),
        "config": config.model_dump(mode="json"),
    }
    write_adapter(directory, adapter, assembly.backbone.anatomy, card)


def _label_counts(data: FederatedData) -> dict[str, object]:
    """How many rows of each class every client has: what the report draws."""
    counts: Mapping[str, list[int]] = {
        str(client_id): torch.bincount(data.train.labels[rows], minlength=len(data.class_names)).tolist()
        for client_id, rows in sorted(data.partition.items())
    }
    return {"class_names": list(data.class_names), "clients": counts}


def _on_cpu(params: Params) -> Params:
    return {name: tensor.detach().cpu().float() for name, tensor in params.items()}
