"""Run directories as a run leaves them, with invented but plausible numbers; what the report is looked at with.

python -m tests.report.synthetic OUT    writes runs and reports below OUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from tests.strategies.hand import step

from fedelta.aggregation.base import Update
from fedelta.federation.records import Direction, Rejection, RoundOutcome, Transfer
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.privacy.accounting import Epsilons
from fedelta.record import history
from fedelta.record.checkpoint import Checkpoint, encode
from fedelta.record.citations import citations
from fedelta.record.environment import environment
from fedelta.record.files import read_json, to_json
from fedelta.record.history import History, read_histories
from fedelta.record.ledger import Ledger, opening_row
from fedelta.record.privacy import STOPPED
from fedelta.record.promise import Promise
from fedelta.record.rundir import (
    CHECKPOINT,
    CITATIONS,
    CONFIG,
    CONFUSION,
    ENVIRONMENT,
    EXITS,
    LEDGER,
    MODEL,
    PARTITION,
    PRIVACY,
    RunDirectory,
)
from fedelta.record.runlog import round_record, summary, timing_record
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.tasks.base import Evaluation, Measure
from fedelta.tasks.classification import ACCURACY, LOSS, Classification
from fedelta.tasks.details import Answered, Details


@dataclass(frozen=True)
class Shape:
    """What a synthetic run looks like; with a `strategy`, that decides what travels when; `exits` is a section.

    With `num_tested` examples of a test set the measures of the finished model are there too. With a `promise` it was
    private; `stopped` says that the budget has ended it.
    """

    tuning: str = "lora"
    num_rounds: int = 30
    num_finished: int = 30
    num_clients: int = 64
    clients_per_round: int = 8
    class_names: tuple[str, ...] = tuple("0123456789")
    groups: tuple[tuple[str, int], ...] = (*((f"layers.{index}", 3_072) for index in range(8)), ("head", 1_940))
    total_parameters: int = 1_214_000
    plateau: float = 0.93
    pace: float = 5.0
    rejections: tuple[Rejection, ...] = ()
    evaluate_every: int = 1
    seed: int = 7
    strategy: FedLama | FedLamaAuto | None = None
    num_exits: int = 0
    exits: Mapping[str, object] = field(default_factory=dict)
    num_tested: int = 0
    promise: Promise | None = None
    stopped: str = ""


PROMISE = Promise(
    unit="client",
    mechanism="gaussian",
    delta=1e-3,
    noise_multiplier=0.8075,
    clipping="flat",
    clipping_norm=1.0,
    limit=5.0,
    accountant="pld",
    cohort_rate=0.125,
    randomness="seeded",
)
SMALL = Shape(num_rounds=3, num_finished=3, num_clients=6, clients_per_round=2)


@cache
def _environment() -> str:
    return to_json(environment(), indent=2)


def make_run(path: Path, shape: Shape = Shape()) -> RunDirectory:
    """A run directory at `path`, finished when all rounds are."""
    opening = opening_row(backbone_bytes=2 * shape.total_parameters)
    counts = _partition(shape)
    files = {
        CONFIG: tomli_w.dumps(config_of(shape)),
        ENVIRONMENT: _environment(),
        CITATIONS: citations(config_of(shape)),
        PARTITION: to_json({"class_names": shape.class_names, "clients": counts}),
        MODEL: to_json(
            {
                "tuned_parameters": _tuned(shape),
                "total_parameters": shape.total_parameters,
                "groups": dict(shape.groups),
            }
        ),
        LEDGER: opening,
        **({PRIVACY: to_json(shape.promise.as_record())} if shape.promise else {}),
        CHECKPOINT: encode(Checkpoint(shape.num_finished, {"w": torch.zeros(2)}, {}, {}, "")),
    }
    run = RunDirectory.create(path, files)
    ledger = Ledger.read(run.ledger)
    records, outcomes = [], _outcomes(shape, counts)
    for outcome in outcomes:
        ledger.append(outcome.transfers)
        records.append(round_record(outcome, ledger.total_bytes, LOSS, promise=shape.promise))
    run.rounds.append(records)
    run.timings.append([timing_record(outcome.round, 1.7, 900 * 2**20 + outcome.round) for outcome in outcomes])
    if shape.num_finished == shape.num_rounds or shape.stopped:
        sizes = {"tuned_parameters": _tuned(shape), "total_parameters": shape.total_parameters}
        details = details_of(shape) if shape.num_tested else None
        record = {STOPPED: shape.stopped} if shape.stopped else {}
        record |= {} if details is None else details.as_record()
        run.write_summary(
            summary(
                run.rounds.read(),
                run.timings.read(),
                ledger,
                ACCURACY,
                sizes,
                details=record,
                promise=shape.promise,
            )
        )
        if details is not None and details.confusion is not None:
            (path / CONFUSION).write_text(to_json(details.confusion.as_record()))
    return run


MAE = Measure("mae", "mean error", higher_is_better=False, unit="mm")
MSE = Measure("mse", "squared error", higher_is_better=False, unit="mm²")


def make_error_run(path: Path, patch: pytest.MonkeyPatch) -> Path:
    """A run of a task whose measures should be low: 3, 1.5 and 2 mm. Until `patch` is undone all runs have it."""
    task = SimpleNamespace(primary=MAE, loss=MSE, measured={}, stratum=("range", "ranges"))
    patch.setattr(history, "task_of", lambda _: task)
    run = make_run(path, SMALL)
    records = run.rounds.read()
    for record, error in zip(records, (3.0, 1.5, 2.0), strict=True):
        record |= {"measures": {"mae": error, "mse": error**2}, "train_mse": record.pop("train_loss_nats")}
    rewrite(run, records)
    content = read_json(run.summary)
    sizes = {key: content[key] for key in ("tuned_parameters", "total_parameters")}
    run.write_summary(summary(records, run.timings.read(), Ledger.read(run.ledger), MAE, sizes))
    return path


def rewrite(run: RunDirectory, records: Sequence[dict[str, object]]) -> None:
    run.rounds.truncate(0)
    run.rounds.append(records)


def history_of(path: Path) -> History:
    return read_histories([path])[0]


def in_windows(shape: Shape, strategy: FedLama | FedLamaAuto) -> Shape:
    """`shape` with as many rounds and clients, run by `strategy`."""
    length = {"num_rounds": shape.num_rounds, "clients_per_round": shape.clients_per_round}
    return replace(shape, strategy=strategy.model_copy(update=length))


def config_of(shape: Shape) -> dict[str, object]:
    """The resolved configuration of a synthetic run."""
    return {
        "seed": shape.seed,
        "model": {"source": "bundled:vit-micro"},
        "tuning": {"name": shape.tuning, "r": 8, "lora_alpha": 16.0}
        if shape.tuning == "lora"
        else {"name": shape.tuning},
        "data": {"source": "digits", "test_fraction": 0.2},
        "partition": {"name": "dirichlet", "num_clients": shape.num_clients, "alpha": 0.1, "min_size": 5},
        "strategy": shape.strategy.model_dump(mode="json", exclude_none=True)
        if shape.strategy
        else {
            "name": "fedavg",
            "num_rounds": shape.num_rounds,
            "clients_per_round": shape.clients_per_round,
        },
        "local_rule": {"name": "plain"},
        "client": {"local_epochs": 2, "batch_size": 16, "lr": 0.05, "optimizer": {"name": "adamw"}},
        "codec": {"name": "cast", "dtype": "float16"},
        **({"exits": dict(shape.exits)} if shape.exits else {}),
    }


def details_of(shape: Shape) -> Details:
    """What a classifier might answer that knows some classes better than others and confuses neighbours."""
    generator, number = stream(shape.seed, "answers"), len(shape.class_names)
    labels = torch.randint(number, (shape.num_tested,), generator=generator)
    skill = torch.linspace(1.5, 6.0, number)[torch.randperm(number, generator=generator)]
    outputs = 1.3 * torch.randn(shape.num_tested, number, generator=generator)
    rows = torch.arange(shape.num_tested)
    outputs[rows, labels] += skill[labels]
    outputs[rows, (labels + 1) % number] += 1.5
    clients = torch.randint(-1, shape.num_clients, (shape.num_tested,), generator=generator)
    return Classification().details([Answered(rows, outputs, labels)], shape.class_names, clients)


def _tuned(shape: Shape) -> int:
    return sum(number for _, number in shape.groups)


def _partition(shape: Shape) -> dict[str, list[int]]:
    rng = np.random.default_rng(shape.num_clients)
    classes = len(shape.class_names)
    shares = rng.dirichlet([0.1] * shape.num_clients, size=classes)
    counts = rng.multinomial(max(144, 4 * shape.num_clients), shares).T
    counts[np.arange(shape.num_clients), np.arange(shape.num_clients) % classes] += 3
    return {str(client): row.tolist() for client, row in enumerate(counts)}


def _outcomes(shape: Shape, counts: dict[str, list[int]]) -> Sequence[RoundOutcome]:
    rng = np.random.default_rng(shape.seed)
    outcomes = []
    spec = ParamSpec({group: TensorSpec((number,), group) for group, number in shape.groups})
    windows = _windows(shape, shape.strategy, spec) if shape.strategy else None
    for round in range(1, shape.num_finished + 1):
        cohort = tuple(sorted(rng.choice(shape.num_clients, shape.clients_per_round, replace=False).tolist()))
        accuracy = shape.plateau - 0.85 * np.exp(-round / shape.pace) + rng.normal(0, 0.035) * np.exp(-round / 12)
        evaluated = round % shape.evaluate_every == 0
        tensor_bytes = {group: 2 * number for group, number in shape.groups}
        plan, logged = next(windows) if windows else (None, {})
        cohort = plan.cohort if plan else cohort
        travel = {"down": plan.download, "up": plan.upload} if plan else {}
        outcomes.append(
            RoundOutcome(
                round=round,
                params={},
                state={},
                cohort=cohort,
                rejections=shape.rejections if round == 4 else (),
                transfers=tuple(
                    _transfer(round, client, direction, {group: tensor_bytes[group] for group in groups})
                    for direction in ("down", "up")
                    for client in cohort
                    for groups in [travel[direction][client] if plan else tensor_bytes]
                ),
                num_examples=sum(sum(counts[str(client)]) for client in cohort),
                train_loss=None if shape.promise else float(0.25 + 1.9 * np.exp(-round / 4) + abs(rng.normal(0, 0.04))),
                evaluation=_evaluation(shape, round, accuracy) if evaluated else None,
                synced_fraction=sum(dict(shape.groups)[name] for name in plan.upload[cohort[0]]) / _tuned(shape)
                if plan
                else 1.0,
                logged=logged,
                **_privacy(shape.promise, round),
            )
        )
    return outcomes


def _privacy(promise: Promise | None, round: int) -> dict[str, Any]:  # Any: fields of `RoundOutcome`
    """Invented: what 8 of 64 clients spend, and a clipping norm that shrinks where it is adaptive."""
    if promise is None:
        return {}
    pld = 3.25 * (round / 30) ** 0.5 / promise.noise_multiplier
    adaptive = promise.clipping_norm * (0.4 + 0.6 * 0.93**round) if promise.clipping == "adaptive" else None
    return {"clipping_norm": adaptive, "epsilons": Epsilons(pld, 1.22 * pld)}


def _evaluation(shape: Shape, round: int, accuracy: float) -> Evaluation:
    measures = {"accuracy": float(np.clip(accuracy, 0, 1)), "loss_nats": float(0.3 + 2.0 * np.exp(-round / shape.pace))}
    by_exit = _by_exit(shape, round)
    return Evaluation(measures, {"accuracy": by_exit} if by_exit else {})


def _by_exit(shape: Shape, round: int) -> tuple[float, ...]:
    """The deeper an exit, the better it becomes, and the later."""
    depths = np.arange(1, shape.num_exits + 1) / max(1, shape.num_exits)
    reached = shape.plateau * (0.6 + 0.4 * depths**0.4)
    return tuple((reached * (1 - np.exp(-round / (shape.pace * (0.5 + depths))))).tolist())


def _transfer(round: int, client: int, direction: Direction, tensor_bytes: Mapping[str, int]) -> Transfer:
    return Transfer(round, client, direction, sum(tensor_bytes.values()) + 612, tensor_bytes)


def _windows(
    shape: Shape, strategy: FedLama | FedLamaAuto, spec: ParamSpec
) -> Iterator[tuple[RoundPlan, Mapping[str, tuple[float, ...]]]]:
    """Plan and logged state of every round; each group has one tensor of its name, and clients differ at random."""
    params: Params = {name: torch.zeros(spec.tensors[name].shape) for name in spec}
    state = strategy.init(params, spec)
    spread = {name: 10.0 ** -(3 * index / len(spec)) for index, name in enumerate(spec)}
    for round in range(1, shape.num_finished + 1):
        plan = strategy.plan(state, round, range(shape.num_clients), spec, stream(shape.seed, "cohort", round))
        updates = []
        for client in plan.cohort:
            noise = stream(shape.seed, "noise", round, client)
            delta = {
                name: spread[name] * (1 + torch.randn(params[name].shape, generator=noise))
                for name in plan.upload[client]
            }
            updates.append(Update(client, 10, delta))
        params, state = step(strategy, state, params, plan, updates, spec)
        yield plan, {name: tuple(state[name].tolist()) for name in strategy.logged}


def main(out: Path) -> None:
    """Runs and reports to look at."""
    from fedelta.report.drawing import to_png
    from fedelta.report.writing import measure_figure, write_report

    head = (("head", 1_940),)
    full = (*((f"layers.{index}", 148_000) for index in range(8)), ("embeddings", 28_000), ("head", 1_940))
    hundred = tuple(f"class {index}" for index in range(100))
    runs = [
        make_run(out / "lora", Shape()).path,
        make_run(out / "head only", Shape(tuning="head", groups=head, plateau=0.74, pace=8.0, seed=3)).path,
        make_run(out / "full", Shape(tuning="full", groups=full, plateau=0.95, pace=7.0, seed=5)).path,
    ]
    rejection = Rejection(12, "`layers.0.q.lora_a` holds 24 values that are NaN or infinite")
    wide = Shape(num_finished=12, num_clients=200, class_names=hundred, rejections=(rejection,), evaluate_every=3)
    unfinished = make_run(out / "cifar <100> & $more$", wide).path
    empty = make_run(out / "just begun", Shape(num_finished=0)).path
    deep = make_run(out / "exits", Shape(num_exits=12, exits={"tiers": [3, 6, 9, 12]})).path
    costs = [35e6 * number for number in range(1, 13)]
    machine = {"device": "cpu", "threads": 1}
    (deep / EXITS).write_text(
        to_json({"flops": costs, "milliseconds": [cost / 3e7 for cost in costs], "machine": machine})
    )
    write_report([deep], out / "exits.html")
    long = tuple(f"a class with <name> {index}" for index in range(20))
    names = ("benign", "malignant"), tuple("0123456789"), long[:11], long, hundred
    tested = [
        make_run(
            out / f"{len(classes)} classes", Shape(class_names=classes, num_tested=40 * len(classes) + 200, seed=4)
        ).path
        for classes in names
    ]
    for path in tested:
        write_report([path], out / f"{path.name}.html")
    write_report([tested[1], make_run(out / "again", Shape(num_tested=600, seed=5)).path], out / "two tested.html")
    write_report([runs[0], make_run(out / "few exits", Shape(num_exits=4, seed=2)).path, deep], out / "mixed.html")
    write_report(runs[:1], out / "one.html")
    private = {
        "client adaptive": Shape(promise=replace(PROMISE, clipping="adaptive")),
        "example": Shape(promise=replace(PROMISE, unit="example", limit=None, randomness="secure"), seed=3),
        "local": Shape(promise=replace(PROMISE, unit="local", noise_multiplier=0.3, limit=20.0), plateau=0.3, seed=4),
        "reproduced": Shape(promise=replace(PROMISE, unit="example", mechanism="fedpeft-code"), seed=5),
        "halted": Shape(promise=PROMISE, num_rounds=100, stopped="The privacy budget is spent: the run ended early."),
        "private exits": Shape(promise=PROMISE, num_exits=4, exits={"tiers": [1, 2, 3, 4]}),
    }
    paths = [make_run(out / name, shape).path for name, shape in private.items()]
    for path in paths:
        write_report([path], out / f"{path.name}.html")
    write_report([runs[0], *paths[:5]], out / "several private.html")
    write_report([*runs, unfinished], out / "many.html")
    write_report([unfinished], out / "unfinished.html")
    write_report([empty], out / "empty.html")
    (out / "figure.png").write_bytes(to_png(measure_figure(runs)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
