"""`fedelta personalize`: each client that a run held out fine-tunes the run's model on its own data.

Nothing is sent: there is no codec, no payload and no row in the ledger. Only measures are written, to
`personalization.json`; the tuned tensors are discarded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.assembly.lanes import model_scalars, with_tokens
from fedelta.assembly.model import TunedModel, tiers_of, tuned_model
from fedelta.assembly.origin import check_origin, origin_of
from fedelta.assembly.server import ranks_of
from fedelta.assembly.settling import settled
from fedelta.assembly.site import build_engine, few_rows, read_data
from fedelta.catalog import Scope
from fedelta.config import Config, load_config
from fedelta.data.batches import FederatedData
from fedelta.data.clients import Clients
from fedelta.durable import write_atomic
from fedelta.engine.lanes import LaneEngine
from fedelta.errors import ConfigError, InputError
from fedelta.federation.fine_tuning import HeldOut, Personalized, fine_tune
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone
from fedelta.record.checkpoint import Checkpoint, check_fit, load
from fedelta.record.files import Record, to_json
from fedelta.record.origin import Origin
from fedelta.record.rundir import PERSONALIZATION, RunDirectory
from fedelta.tasks.base import Evaluation, Measure
from fedelta.tuning.scopes import scopes_of

# Called with each result and the total number of results: one for each client and scope.
OnResult = Callable[[Personalized, int], None]
_NOTE = "Each client fine-tuned on its own data and kept the result: nothing was sent, the ledger has no row of it."
# Sections that may differ from the run's.
_FREE = ("personalization", "runtime")


def personalize(
    directory: str | Path,
    overrides: Iterable[str] = (),
    *,
    backbone: Backbone | None = None,
    data: FederatedData | None = None,
    on_result: OnResult | None = None,
) -> Record:
    """Fine-tunes the model of a finished run on each client that it held out; writes `personalization.json`.

    Args:
        directory: of the run.
        overrides: `personalization.key=value` and `runtime.key=value` strings.
        backbone: a fresh copy of the model that the caller gave to the run, if any; edited in place.
        data: the data that the caller gave to the run, if any.
        on_result: called with each client's result for each scope, and the total number of results.

    Returns:
        The content of the file: by scope, each client's measures before and after, with mean, deviation and worst.

    Raises:
        RunError: `directory` is no run, or one that is not finished.
        InputError: the run held no client out, or its configuration, data or model cannot be used.
        CheckpointError: the data are no longer those of the run.
    """
    run = RunDirectory.open(Path(directory))
    # The adapter that the run started from may be gone; the checkpoint has its tensors.
    original = load_config(run.config, ["model.adapter="])
    config = load_config(run.config, ["model.adapter=", *overrides])
    num_held_out = original.personalization.num_held_out + (0 if data is None else len(data.held_out))
    _check(original, config, run, num_held_out)
    with run.locked():
        bench = _bench(config, num_held_out, backbone, data)
        checkpoint = load(run.checkpoint)
        check_origin(run.path, checkpoint, _origin(original, bench), original)
        check_fit(run.checkpoint, checkpoint, bench.model.spec)
        record = _record(bench, checkpoint, config, on_result)
        write_atomic(run.path / PERSONALIZATION, to_json(record, indent=2) + "\n")
    return record


def _origin(config: Config, bench: _Bench) -> Origin:
    """What the run would start from now."""
    taking_part = bench.data.clients.only(bench.data.partition)
    ranks = ranks_of(config, bench.model.spec, taking_part, bench.tiers)
    return origin_of(config, bench.model, bench.data, bench.tiers, ranks)


def _check(original: Config, config: Config, run: RunDirectory, num_held_out: int) -> None:
    """Checks that the run is finished and has held-out clients, and that `config` differs only in fine-tuning.

    Raises:
        InputError: one of these is not so.
    """
    before, after = original.personalization, config.personalization
    if not num_held_out:
        raise InputError(
            f"run {str(run.path)!r} held no client out, but only held-out clients are fine-tuned.",
            hint="set `personalization.held_out_clients` and run again.",
        )
    problems = []
    if (before.held_out_clients, before.held_out) != (after.held_out_clients, after.held_out):
        problems.append("the held-out clients are those of the run; to hold out others, run again")
    fixed = [key for key in Config.model_fields if key not in _FREE]
    foreign = [key for key in fixed if getattr(original, key) != getattr(config, key)]
    problems += [f"`{key}` is the run's; only `personalization.` and `runtime.` keys can be set" for key in foreign]
    if problems:
        raise ConfigError(problems, origin=f"run {str(run.path)!r}")
    run.refuse_unfinished()


@dataclass(frozen=True)
class _Bench:
    """The objects for fine-tuning: those of a site, without a server.

    Args:
        model: with its initial values; those of the run are in the checkpoint.
        data: of all clients.
        engine: trains as `[personalization]` says.
        tiers: depth of each client.
    """

    model: TunedModel
    data: FederatedData
    engine: LaneEngine
    tiers: Tiers | None


def _bench(config: Config, num_held_out: int, backbone: Backbone | None, data: FederatedData | None) -> _Bench:
    backbone, data = read_data(config, backbone, data)
    config = settled(config, data)
    client = config.personalization.training(config.client)
    num_lanes = config.runtime.num_lanes(
        clients_per_round=num_held_out * len(config.personalization.lrs),
        batch_size=client.batch_size,
        places=1,
        model_scalars=model_scalars(config, backbone),
    )
    num_lanes = with_tokens(config, backbone, num_lanes, batch_size=client.batch_size)
    model = tuned_model(config, backbone, data.class_names, num_lanes=num_lanes, sample=few_rows(data))
    tiers = tiers_of(config, model, data.clients)
    return _Bench(model, data, build_engine(config, model, data.train, client), tiers)


def _record(bench: _Bench, checkpoint: Checkpoint, config: Config, on_result: OnResult | None) -> Record:
    data, spec, personal = bench.data, bench.model.spec, config.personalization
    scopes = personal.scopes(scopes_of(bench.model.backbone, spec), bench.model.tuning.name)
    held_out = HeldOut(
        bench.engine, data, checkpoint.params, config.seed, round=max(1, checkpoint.round), tiers=bench.tiers
    )
    rows_of: dict[Scope, list[Record]] = {scope: [] for scope in scopes}
    for result in fine_tune(personal, held_out, scopes):
        rows_of[result.scope].append(_row(result, data.clients))
        if on_result:
            on_result(result, len(scopes) * len(data.held_out))
    return {
        "note": _NOTE,
        "round": checkpoint.round,
        "settings": personal.model_dump(mode="json") | {"batch_size": bench.engine.client.batch_size},
        "scopes": {
            scope: {
                "tuned_parameters": sum(spec.tensors[name].numel for name in scopes[scope]),
                **_summary(sorted(rows, key=lambda row: row["client_id"]), config.task.primary, data.clients),
            }
            for scope, rows in rows_of.items()
        },
    }


def _row(result: Personalized, clients: Clients) -> Record:
    return {
        "client_id": result.client_id,
        **clients.entry(result.client_id),
        "num_train": result.after.num_train,
        "num_eval": result.num_eval,
        "lr": result.after.lr,
        **_measures(result.before, "before"),
        **_measures(result.after.evaluation, "after"),
    }


def _measures(evaluation: Evaluation, when: str) -> Record:
    measures: Record = {f"{name}_{when}": value for name, value in evaluation.measures.items()}
    return measures | {f"{name}_by_exit_{when}": list(values) for name, values in evaluation.by_exit.items()}


def _summary(rows: Sequence[Record], primary: Measure, clients: Clients) -> Record:
    overall = {when: _over_clients(rows, when, primary, clients) for when in ("before", "after")}
    return {**overall, "clients": list(rows)}


def _over_clients(rows: Sequence[Record], when: str, primary: Measure, clients: Clients) -> Record:
    """The mean over clients, the sample's standard deviation and the worst client; all clients have equal weight."""
    name = primary.name
    values: dict[int, float] = {row["client_id"]: row[f"{name}_{when}"] for row in rows}
    worst = (min if primary.higher_is_better else max)(values, key=lambda client: values[client])
    summary: Record = {
        f"mean_{name}": statistics.fmean(values.values()),
        f"std_{name}": statistics.stdev(values.values()) if len(values) > 1 else None,
        f"worst_{name}": values[worst],
        "worst_client_id": worst,
        **clients.entry(worst, "worst_client_name"),
    }
    if by_exit := [exits for row in rows if (exits := row.get(f"{name}_by_exit_{when}")) is not None]:
        # Clients differ in depth: the mean of an exit is over the clients that reach it.
        depth = max(map(len, by_exit))
        reached = [[exits[place] for exits in by_exit if place < len(exits)] for place in range(depth)]
        summary[f"mean_{name}_by_exit"] = [statistics.fmean(values) for values in reached]
    return summary
