"""Measures one work: whether all sides come to the same parameters, their memory, and then their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from benchmarks.peers.loaded import load
from benchmarks.peers.memory import MIB, Watch
from benchmarks.peers.side import Running, SideError, running
from benchmarks.peers.works import Work
from safetensors.torch import load_file

Tell = Callable[[str], None]
REFERENCE = "bare"


@dataclass
class Figures:
    """What a side came to.

    Args:
        difference: largest difference of a parameter from the reference's after the compared rounds.
        loss: over all training rows, with those parameters.
        peak_mib: of all processes, from the start to the end of the compared rounds, alone on the machine.
        seconds: of the timed rounds.
        first_seconds: of first rounds, each in a new run.
        error: why there are no times.
    """

    difference: float | None = None
    loss: float | None = None
    peak_mib: float | None = None
    seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """Seconds of a round; infinite if the side has none."""
        return statistics.median(self.seconds) if self.seconds else float("inf")

    def as_record(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """How a work is measured.

    Args:
        folder: of the work.
        environments: the peers' environments are below it.
        sides: names.
        repeats: timed rounds of each side.
        warm_up: rounds before them.
        compared: rounds after which params are compared.
        logs: what sides print goes below it.
        is_tiny: see `Work`.
        seconds: no turn begins later than this after the start, except for the first timed one.
        workers: of fedelta, instead of what it finds right.
    """

    folder: Path
    environments: Path
    sides: Sequence[str]
    repeats: int
    warm_up: int
    compared: int
    logs: Path
    is_tiny: bool = False
    seconds: float = float("inf")
    workers: int | None = None

    def running(self, name: str) -> AbstractContextManager[Running]:
        """A context in which the side is there."""
        workers = self.workers if name == "fedelta" else None
        return running(name, self.folder, self.environments, self.logs / f"{name}.log", workers, is_tiny=self.is_tiny)


def measure(work: Work, plan: Plan, tell: Tell) -> dict[str, Figures]:
    """The figures of each side; a side that fails or disagrees has an error and no times."""
    until = time.monotonic() + plan.seconds
    figures = {name: Figures() for name in plan.sides}
    params = {}
    for name in plan.sides:
        try:
            params[name] = _alone(plan, name, figures[name])
        except SideError as error:
            figures[name].error = str(error)
        tell(f"{name}: {figures[name].error or f'{figures[name].peak_mib:.0f} MiB'}")
    _compare(work, plan, params, figures)
    fit = [name for name in plan.sides if not figures[name].error]
    for name in fit:
        tell(f"{name}: largest difference {figures[name].difference:.1e}, loss {figures[name].loss:.6f}")
    _time(plan, fit, figures, until, tell)
    if any(goal.what == "first" for goal in work.goals) and "fedelta" in fit:
        for _ in range(plan.repeats):
            with plan.running("fedelta") as side:
                side.hear()
                figures["fedelta"].first_seconds.append(side.round())
    return figures


def _alone(plan: Plan, name: str, figures: Figures) -> Mapping[str, torch.Tensor]:
    """The params of a side after the compared rounds; its memory goes into `figures`."""
    path = plan.folder / f"params-{name}.safetensors"
    with plan.running(name) as side:
        with Watch(side.process.pid) as watch:
            side.hear()
            for _ in range(plan.compared):
                side.round()
        figures.peak_mib = watch.peak_bytes / MIB
        side.params(path)
    return load_file(path)


def _compare(work: Work, plan: Plan, params: Mapping[str, Mapping[str, torch.Tensor]], figures: Mapping) -> None:
    """Adds differences and losses, and an error where they are too large."""
    loaded = load(plan.folder)
    expected = params.get(REFERENCE) or next(iter(params.values()))
    for name, tensors in params.items():
        if tensors.keys() != expected.keys():
            figures[name].error = f"has other tensors: {sorted(tensors.keys() ^ expected.keys())[:3]}"
            continue
        figures[name].difference = max(float((tensors[key] - expected[key]).abs().max()) for key in expected)
        figures[name].loss = loaded.loss(tensors)
        if not figures[name].difference <= work.tolerance:
            figures[name].error = (
                f"parameters differ by {figures[name].difference:.1e} after {plan.compared} rounds, "
                f"expected at most {work.tolerance:.0e}"
            )


def _time(plan: Plan, names: Sequence[str], figures: Mapping[str, Figures], until: float, tell: Tell) -> None:
    """Sides take turns, a round each, in an order that moves on."""
    with ExitStack() as stack:
        sides: dict[str, Running] = {name: stack.enter_context(plan.running(name)) for name in names}
        for side in sides.values():
            side.hear()
        for number in range(plan.warm_up + plan.repeats):
            if number > plan.warm_up and time.monotonic() > until:
                break
            turn = number % max(1, len(names))
            for name in [*names[turn:], *names[:turn]]:
                seconds = sides[name].round()
                if number >= plan.warm_up:
                    figures[name].seconds.append(seconds)
            tell(", ".join(f"{name} {figures[name].seconds[-1]:.3f}" for name in names if figures[name].seconds))
