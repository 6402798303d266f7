"""`fedelta personalize`: the clients that a run never asked fine-tune its model, each for itself.

Nothing travels: there is no codec, no payload and no row in the ledger. What a client tunes stays with it; only the
numbers in `personalization.json` are written.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.assembly.model import TunedModel, tiers_of, tuned_model
from fedelta.assembly.origin import check_origin, origin_of
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
from fedelta.record.rundir import PERSONALIZATION, RunDirectory
from fedelta.tasks.base import Evaluation, Measure
from fedelta.tuning.scopes import scopes_of

# Called with each result and the number that there will be: one a client and scope.
OnResult = Callable[[Personalized, int], None]
_NOTE = "Each client fine-tuned on its own data and kept the result: nothing was sent, the ledger has no row of it."
# Sections that say how clients fine-tune, and where; the others are the run's.
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
        backbone: the model that the run was given, if it was given one; fresh, and edited in place.
        data: likewise.
        on_result: called with each client's result of each scope, and how many there will be.

    Returns:
        The content of the file: by scope, each client's measures before and after, with mean, deviation and worst.

    Raises:
        RunError: `directory` is no run, or one that is not finished.
        InputError: the run held no client out, or something else in it cannot be used.
        CheckpointError: the data are no longer those of the run.
    """
    run = RunDirectory.open(Path(directory))
    original = load_config(run.config, ["model.adapter="])  # it may be gone, and the checkpoint has all of it
    config = load_config(run.config, ["model.adapter=", *overrides])
    num_held_out = original.personalization.num_held_out + (0 if data is None else len(data.held_out))
    _check(original, config, run, num_held_out)
    with run.locked():
        bench = _bench(config, num_held_out, backbone, data)
        checkpoint = load(run.checkpoint)
        check_origin(run.path, checkpoint, origin_of(original, bench.model, bench.data, bench.tiers), original)
        check_fit(run.checkpoint, checkpoint, bench.model.spec)
        record = _record(bench, checkpoint, config, on_result)
        write_atomic(run.path / PERSONALIZATION, to_json(record, indent=2) + "\n")
    return record


def _check(original: Config, config: Config, run: RunDirectory, num_held_out: int) -> None:
    """Lets `config` differ from the run's in how clients fine-tune, not in who they are.

    Raises:
        InputError: it differs in more, or nobody is held out, or the run is not finished.
    """
    before, now = original.personalization, config.personalization
    if not num_held_out:
        raise InputError(
            f"run {str(run.path)!r} held no client out, so that there is none that it has not seen.",
            hint="set `personalization.held_out_clients` and run again.",
        )
    problems = []
    if (before.held_out_clients, before.held_out) != (now.held_out_clients, now.held_out):
        problems.append("the run has chosen which clients it does not ask; for others, run again")
    other = [key for key in Config.model_fields if key not in _FREE and getattr(original, key) != getattr(config, key)]
    problems += [f"`{key}` is the run's; only `personalization.` and `runtime.` keys can be set" for key in other]
    if problems:
        raise ConfigError(problems, origin=f"run {str(run.path)!r}")
    run.refuse_unfinished()


@dataclass(frozen=True)
class _Bench:
    """What the clients that no round asks fine-tune with; there is no server and no round.

    Args:
        model: that they start from, with the values of the backbone.
        data: of all clients.
        engine: trains as `[personalization]` says.
        tiers: how deep each client runs.
    """

    model: TunedModel
    data: FederatedData
    engine: LaneEngine
    tiers: Tiers | None


def _bench(config: Config, num_held_out: int, backbone: Backbone | None, data: FederatedData | None) -> _Bench:
    backbone, data = read_data(config, backbone, data)
    client = config.personalization.training(config.client)
    num_lanes = config.runtime.num_lanes(
        clients_per_round=num_held_out * len(config.personalization.lrs), batch_size=client.batch_size
    )
    model = tuned_model(config, backbone, data.class_names, num_lanes=num_lanes, sample=few_rows(data))
    tiers = tiers_of(config, model, data.clients)
    return _Bench(model, data, build_engine(config, model, data, client), tiers)


def _record(bench: _Bench, checkpoint: Checkpoint, config: Config, on_result: OnResult | None) -> Record:
    data, spec, personal = bench.data, bench.model.spec, config.personalization
    scopes = personal.scopes(scopes_of(bench.model.backbone, spec), bench.model.tuning.name)
    held_out = HeldOut(
        bench.engine, data, checkpoint.params, config.seed, round=max(1, checkpoint.round), tiers=bench.tiers
    )
    found: dict[Scope, list[Record]] = {scope: [] for scope in scopes}
    for each in fine_tune(personal, held_out, scopes):
        found[each.scope].append(_row(each, data.clients))
        if on_result:
            on_result(each, len(scopes) * len(data.held_out))
    return {
        "note": _NOTE,
        "round": checkpoint.round,
        "settings": personal.model_dump(mode="json") | {"batch_size": bench.engine.client.batch_size},
        "scopes": {
            scope: {
                "tuned_parameters": sum(spec.tensors[name].numel for name in scopes[scope]),
                **_summary(sorted(rows, key=lambda row: row["client_id"]), config.task.primary, data.clients),
            }
            for scope, rows in found.items()
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


def _measures(found: Evaluation, when: str) -> Record:
    own: Record = {f"{name}_{when}": value for name, value in found.measures.items()}
    return own | {f"{name}_by_exit_{when}": list(values) for name, values in found.by_exit.items()}


def _summary(rows: Sequence[Record], primary: Measure, clients: Clients) -> Record:
    overall = {when: _over_clients(rows, when, primary, clients) for when in ("before", "after")}
    return {**overall, "clients": list(rows)}


def _over_clients(rows: Sequence[Record], when: str, primary: Measure, clients: Clients) -> Record:
    """Mean, deviation of a sample, and the worst client; every client counts the same, whatever its size."""
    name = primary.name
    values: dict[int, float] = {row["client_id"]: row[f"{name}_{when}"] for row in rows}
    worst = (min if primary.higher_is_better else max)(values, key=lambda client: values[client])
    found: Record = {
        f"mean_{name}": statistics.fmean(values.values()),
        f"std_{name}": statistics.stdev(values.values()) if len(values) > 1 else None,
        f"worst_{name}": values[worst],
        "worst_client_id": worst,
        **clients.entry(worst, "worst_client_name"),
    }
    if own := [each for row in rows if (each := row.get(f"{name}_by_exit_{when}")) is not None]:
        # Clients differ in depth: an exit's mean is over those that reach it.
        reached = [[each[place] for each in own if place < len(each)] for place in range(max(map(len, own)))]
        found[f"mean_{name}_by_exit"] = [statistics.fmean(each) for each in reached]
    return found
