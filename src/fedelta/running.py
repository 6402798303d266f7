"""Runs the rounds of a run and writes its directory, wherever its clients are.

A round counts once its checkpoint is written, which happens last. `begun` gives the files before round 1, `go_on`
continues after the last complete round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedelta.assembly.origin import check_origin
from fedelta.assembly.parts import Parts
from fedelta.config import Config
from fedelta.data.skipping import as_csv
from fedelta.durable import write_atomic
from fedelta.federation.base import Federation, Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.imports import collector_spared
from fedelta.inference.adapter import SavedAdapter, write_adapter
from fedelta.inference.costs import costs_of
from fedelta.modalities.settings import Preparation
from fedelta.models.native import is_native
from fedelta.models.source import checkpoint_bytes
from fedelta.params import Params
from fedelta.plugins import changed_plugins, used_by
from fedelta.record import rundir
from fedelta.record.amending import Amendment, amend
from fedelta.record.checkpoint import Checkpoint, check_fit, encode, load, save
from fedelta.record.citations import citations
from fedelta.record.environment import environment, peak_memory_bytes
from fedelta.record.files import Mark, Record, Seal, to_json
from fedelta.record.keys import KEY, check_key
from fedelta.record.ledger import Ledger, opening_row
from fedelta.record.origin import refuse
from fedelta.record.privacy import STOPPED
from fedelta.record.promise import Promise, other_promise, read_promise
from fedelta.record.rundir import RunDirectory
from fedelta.record.runlog import NUM_SKIPPED, round_record, summary, timing_record
from fedelta.settings.base import as_settings
from fedelta.settings.paths import is_in_python
from fedelta.tasks.details import Details
from fedelta.tracking.mirror import mirrored
from fedelta.tuning.exits import exit_blocks

logger = logging.getLogger("fedelta")

OnRound = Callable[[RoundOutcome, Ledger], None]


@dataclass(frozen=True)
class Finished:
    """What a run has come to.

    Args:
        params: of the server after the last round.
        ledger: the size of every payload.
        summary: the content of `summary.json`.
    """

    params: Params
    ledger: Ledger
    summary: Record


@dataclass(frozen=True)
class _Logs:
    """The files that grow with every round.

    Args:
        run: directory of the files.
        ledger: the size of every payload so far.
        seals: running digests of the logs, up to the current round.
        promise: what the run guarantees; None without privacy.
    """

    run: RunDirectory
    ledger: Ledger
    seals: Mapping[str, Seal]
    promise: Promise | None


def begun(parts: Parts) -> dict[str, str | bytes]:
    """The files of a run directory before round 1: content by relative name."""
    config, tuning, spec, strategy = parts.config, parts.model.tuning, parts.model.spec, parts.federation.strategy
    state = strategy.init(parts.model.params, spec)
    is_given = is_in_python(config.model.source)
    opening = opening_row(parts.model.base_bytes if is_given else checkpoint_bytes(config.model))
    files: dict[str, str | bytes] = {
        rundir.PARTITION: to_json(parts.partition),
        rundir.MODEL: _sizes(parts),
    }
    if (promise := _promise(parts)) is not None:
        files[rundir.PRIVACY] = to_json(promise.as_record(), indent=2)
    if parts.skipped:
        files[rundir.SKIPPED] = as_csv(parts.skipped)
    if parts.key is not None:
        files[KEY] = parts.key
    digests = {name: Mark.of(text if isinstance(text, bytes) else text.encode()).digest for name, text in files.items()}
    origin = replace(parts.origin, files=digests)
    logs = {rundir.ROUNDS: Mark.of(b""), rundir.LEDGER: Mark.of(opening)}
    return {
        **described(config, tuning=tuning),
        rundir.LEDGER: opening,
        **files,
        rundir.CHECKPOINT: encode(Checkpoint(0, parts.model.params, state, {}, "", logs, origin)),
    }


def _sizes(parts: Parts) -> str:
    """The content of `model.json`."""
    spec = parts.model.spec
    return to_json(
        {
            "tuned_parameters": spec.num_parameters,
            "total_parameters": parts.model.total_parameters,
            "groups": spec.sizes,
            "strategy": as_settings(parts.federation.strategy).model_dump(mode="json"),
        }
    )


def _promise(parts: Parts) -> Promise | None:
    """What the run guarantees; None without privacy."""
    guarantee = parts.federation.privacy
    if guarantee is None:
        return None
    # Sites have a machine each, and their noise must be unknown to the others; a simulation has one machine.
    is_secure = guarantee.settings.is_secure(is_deployed="sites" in parts.partition)
    return Promise.of(guarantee, "secure" if is_secure else "seeded")


def described(config: Config, **instead: object) -> dict[str, str | bytes]:
    """The files of a run directory that follow from the configuration.

    Args:
        config: of the run.
        instead: settings that replace some sections, as the run changed them.
    """
    settings = {name: getattr(config, name) for name in Config.model_fields} | instead
    return {
        rundir.CONFIG: config.to_toml(instead),
        rundir.ENVIRONMENT: to_json(environment(used_by(settings.values())), indent=2),
        rundir.CITATIONS: citations(config.to_table(instead)),
    }


def go_on(
    run: RunDirectory, parts: Parts, on_round: OnRound | None = None, amendment: Amendment | None = None
) -> Finished:
    """Continues a run after its last complete round, and writes its final files; the caller has the run's lock.

    Args:
        run: the directory.
        parts: of the run, with the settings that it goes on with.
        on_round: called after each round with its outcome and the ledger.
        amendment: in what these settings are others than before; None: in nothing.

    Raises:
        CheckpointError: its checkpoint is damaged or belongs to another configuration.
        RoundError: training failed; earlier rounds are kept.
    """
    run.read_rounds()  # raises for an older format, before anything is changed
    refuse(f"run {str(run.path)!r}", changed_plugins(run.plugins))
    before = checkpoint = load(run.checkpoint)
    files = {rundir.MODEL: _sizes(parts)}
    if amendment is not None:
        checkpoint = amendment.applied(checkpoint, files)
    check_origin(run.path, checkpoint, parts.origin, parts.config)
    if parts.key is not None:
        check_key(run.path, parts.key, checkpoint.origin)
    check_fit(run.checkpoint, checkpoint, parts.model.spec)
    seals = run.rewind(checkpoint)
    run.sweep()
    # The server has the initial values of tensors that never travel; clients start from them.
    parts = parts.starting_from(checkpoint.params)
    parts.federation.runtime.restore(run.clients, checkpoint.memory_mark)
    promise = read_promise(run.path / rundir.PRIVACY)
    refuse(f"run {str(run.path)!r}", other_promise(promise, _promise(parts)))
    if amendment is not None:
        _tell(amendment, checkpoint.round)
        amend(run, amendment, before, files)
    logs = _Logs(run, Ledger.read(run.ledger), seals, promise)
    with mirrored(run, parts.config) as mirror:
        params = _rounds(parts, checkpoint, logs, mirror.before(on_round))
        record = _finish(parts, params, logs)
        mirror.finish(record)
    return Finished(params, logs.ledger, record)


def _tell(amendment: Amendment, rounds_done: int) -> None:
    """Logs in what a run that goes on with other settings differs from one that had them from the start."""
    for departure in amendment.departures:
        logger.warning(
            "the run goes on after round %d, not as if planned so from the start: %s.", rounds_done, departure
        )


def _rounds(parts: Parts, checkpoint: Checkpoint, logs: _Logs, on_round: OnRound | None) -> Params:
    """Runs the remaining rounds, records each before the next begins, and returns the last params."""
    federation, params, run, ledger = parts.federation, checkpoint.params, logs.run, logs.ledger
    standing = Standing(
        params,
        checkpoint.state,
        checkpoint.round,
        ledger.total_bytes,
        checkpoint.claimed,
        checkpoint.privacy,
        checkpoint.mirror,
    )
    started = time.perf_counter()
    with parts.at_work() as peaks, collector_spared():
        for outcome in federate(federation, standing):
            params = outcome.params
            ledger.append(outcome.transfers)
            loss, at_sites = parts.config.task.loss, parts.at_sites(outcome)
            record = round_record(outcome, ledger.total_bytes, loss, parts.clients, at_sites, promise=logs.promise)
            run.rounds.append([record])
            # Written before the checkpoint, which refers to it; until then the previous snapshot is kept.
            mark = federation.runtime.snapshot(run.clients, outcome.round)
            seconds = time.perf_counter() - started
            run.timings.append([timing_record(outcome.round, seconds, peak_memory_bytes(), peaks())])
            started = time.perf_counter()
            save(
                run.checkpoint,
                replace(
                    checkpoint,
                    round=outcome.round,
                    params=params,
                    state=outcome.state,
                    claimed=outcome.claimed,
                    privacy=outcome.privacy,
                    mirror=outcome.mirror,
                    memory_mark=mark,
                    logs={name: seal.mark() for name, seal in logs.seals.items()},
                ),
            )
            if on_round is not None:
                on_round(outcome, ledger)
    return params


def _finish(parts: Parts, params: Params, logs: _Logs) -> Record:
    """Writes the files of a finished run; returns the content of `summary.json`."""
    run, ledger, clients = logs.run, logs.ledger, parts.clients
    records = run.read_rounds()
    stopped = _stopped(parts.federation, len(records), ledger.total_bytes)
    details = parts.details(params) or Details(records[-1]["measures"] or {})
    by_client = {str(client): {**clients.entry(client), **values} for client, values in details.by_client.items()}
    record = summary(
        records,
        run.timings.readable(),
        ledger,
        parts.config.task.primary,
        {"tuned_parameters": parts.model.spec.num_parameters, "total_parameters": parts.model.total_parameters},
        details={
            **({STOPPED: stopped} if stopped else {}),
            **({NUM_SKIPPED: parts.num_skipped} if parts.num_skipped else {}),
            **details.as_record(),
            "by_client": by_client,
            **parts.at_the_end(params, records[-1]),
        },
        min_sites=parts.min_sites,
        promise=logs.promise,
    )
    if details.confusion is not None:
        write_atomic(run.path / rundir.CONFUSION, to_json(details.confusion.as_record()) + "\n")
    if details.mistakes:
        write_atomic(run.path / rundir.MISTAKES, to_json({"mistakes": [*details.mistakes]}) + "\n")
    keep_adapter(run.adapter, parts, params, record)
    if exit_blocks(parts.model.backbone.module):
        # Measures the cost of an answer at each exit, unless the run was measured on this machine before.
        parts.model.lanes.active = 1
        costs_of(run.path, parts.model.backbone, parts.row)
    run.write_summary(record)
    return record


def _stopped(federation: Federation, num_rounds: int, num_bytes: int) -> str:
    """A sentence on the privacy budget if it has ended the run; empty if anything else has."""
    planned, guarantee = federation.strategy.num_rounds, federation.privacy
    is_by_bytes = federation.byte_budget is not None and num_bytes >= federation.byte_budget
    if guarantee is None or guarantee.limit is None or num_rounds >= planned or is_by_bytes:
        return ""
    return (
        f"The privacy budget is spent: the run ended after round {num_rounds} of {planned}, since one more round would "
        f"exceed epsilon {guarantee.limit:g} at delta {guarantee.settings.target_delta:g}."
    )


def keep_adapter(directory: Path, parts: Parts, params: Params, record: Record) -> None:
    """Writes the adapter in Hugging Face PEFT layout.

    Args:
        directory: to be written.
        parts: of the run.
        params: of the server.
        record: the content of `summary.json`, for the model card.
    """
    config, backbone = parts.config, parts.model.backbone
    modality = backbone.modality
    adapter = SavedAdapter(
        parts.model.tuning,
        params,
        base=backbone.checkpoint if is_in_python(config.model.source) else config.model.source or "",
        class_names=parts.class_names,
        model=config.model,
        seed=config.seed,
        preparation=Preparation() if modality is None else modality.preparation,
        task=parts.task,
        identity=parts.model.identity,
        head=backbone.anatomy.head if is_in_python(config.model.source) else None,
    )
    card = {
        **record,
        "num_clients": len(parts.federation.clients.numbers),
        "modality": None if modality is None else modality.name,
        "extra_inputs": dict(backbone.extra_inputs),
        "is_native": is_native(backbone.module),
        "config": config.to_table({"strategy": parts.federation.strategy}),
    }
    write_adapter(directory, adapter, backbone.anatomy, card)
