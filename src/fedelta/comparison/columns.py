"""The figures of a comparison; all frames, files and tables are made from these columns.

Frames hold figures in the units of a run's records: fractions, bytes, seconds. Files and people get percent and MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedelta.privacy.shown import shown_epsilon
from fedelta.record.numbers import MIB, UNKNOWN, bare, count, duration, headed, in_unit, mebibytes
from fedelta.tasks.base import Measure, Task

if TYPE_CHECKING:
    from fedelta.record.history import History

STATE, REASON, RUN = "state", "reason", "run"
IS_BEST, ON_FRONT, IS_CLEAR = "is_best", "on_pareto_front", "front_is_clear"
NUM_SEEDS, NUM_CELLS = "num_seeds", "num_cells"
ROUND = "round"
TOTAL_BYTES, RELATIVE_COST, EPSILON = "total_bytes", "relative_cost", "epsilon"


@dataclass(frozen=True)
class Column:
    """One figure of a run.

    Args:
        name: in the frame of the cells.
        read: reads the figure from a run's records; None if they lack it.
        heading: in tables for people.
        short: the heading in a terminal.
        text: formats a mean and its deviation for people; either may be None.
        dtype: of its pandas column; `Int64` holds integers beside missing values.
        file: its name in CSV files, where `{}` stands for its name in the frame.
        factor: from the unit of the records to the unit in CSV files.
        mean: name of the mean over seeds in the frame of the groups; empty for `name`.
        deviation: name of the sample deviation over seeds there; None where no table shows it.
        of_seeds: whether a group has the mean over its seeds, the largest value, which is true of all, or the first
            seed's value because all are equal.
    """

    name: str
    read: Callable[[History], float | None]
    heading: str
    short: str
    text: Callable[[float | None, float | None], str]
    dtype: Literal["float64", "Int64"] = "float64"
    file: str = "{}"
    factor: float = 1
    mean: str = ""
    deviation: str | None = None
    of_seeds: Literal["mean", "largest", "first"] = "mean"

    @property
    def in_groups(self) -> tuple[str, ...]:
        """Its names in the frame of the groups."""
        mean = self.mean or self.name
        return (mean,) if self.deviation is None else (mean, self.deviation)

    def number(self, value: float | None) -> str:
        """The text of a value in a CSV file.

        At most six decimals, so that rounding differences do not make files of equal runs differ.
        """
        return "" if value is None else f"{round(value * self.factor, 6):.15g}"


COSTS = (
    Column(
        name="tuned_parameters",
        read=lambda run: run.model["tuned_parameters"],
        heading="tuned parameters",
        short="tuned",
        text=lambda value, _: count(None if value is None else int(value)),
        dtype="Int64",
        of_seeds="first",
    ),
    Column(
        name="bytes_per_client_round",
        read=lambda run: run.bytes_per_client_round,
        heading="MiB per client and round, down and up",
        short="MiB/round",
        text=lambda value, _: mebibytes(value),
        file="mib_per_client_and_round_both_directions",
        factor=1 / MIB,
    ),
    Column(
        name=TOTAL_BYTES,
        read=lambda run: run.ledger.total_bytes,
        heading="MiB in total",
        short="MiB",
        text=lambda value, _: mebibytes(value),
        dtype="Int64",
        file="mib_total",
        factor=1 / MIB,
    ),
    Column(
        name=RELATIVE_COST,
        read=lambda run: run.relative_cost,
        heading="relative cost, %",
        short="cost, %",
        text=lambda value, _: UNKNOWN if value is None else f"{100 * value:.1f}",
    ),
    Column(
        name=EPSILON,
        read=lambda run: run.epsilon,
        heading="epsilon",
        short="epsilon",
        text=lambda value, _: UNKNOWN if value is None else shown_epsilon(value),
        of_seeds="largest",
    ),
    Column(
        name="wall_seconds",
        read=lambda run: run.wall_seconds,
        heading="time",
        short="time",
        text=lambda value, _: duration(value),
    ),
)


def measures(primary: Measure) -> tuple[Column, Column, Column]:
    """The primary measure in the last evaluated round: of the model, at its first exit, and its mean over the exits."""
    name, at_first, over_exits = primary.name, f"first_exit_{primary.name}", f"mean_exit_{primary.name}"

    def measure(column: str, label: str, short: str, read: Callable[[History], float | None], **names: str) -> Column:
        return Column(
            name=column,
            read=read,
            heading=headed(label, primary),
            short=headed(short, primary),
            text=lambda mean, deviation: bare(mean, primary, deviation),
            # The name of a measure ends with its unit, but files have fractions in percent.
            file="{}_percent" if primary.is_fraction else "{}",
            factor=in_unit(1, primary),
            mean=names.get("mean", ""),
            deviation=names.get("deviation"),
        )

    return (
        measure(
            name,
            primary.label,
            primary.label,
            lambda run: run.final,
            mean=f"{name}_mean",
            deviation=f"{name}_deviation",
        ),
        measure(at_first, "at the first exit", "exit 1", lambda run: run.by_exit[0] if run.by_exit else None),
        measure(
            over_exits,
            "mean over exits",
            "mean exit",
            lambda run: run.mean_over_exits,
            deviation=f"{over_exits}_deviation",
        ),
    )


def share(measure: Measure) -> Column:
    """A fraction beside the primary measure, of the finished model or else of the last round that has it."""

    def read(run: History) -> float | None:
        value = None if run.details is None else run.details.measures.get(measure.name)
        return value if value is not None else next((value for _, value in reversed(run.curve_of(measure))), None)

    return Column(
        name=measure.name,
        read=read,
        heading=headed(measure.label, measure),
        short=headed(measure.label, measure),
        text=lambda mean, deviation: bare(mean, measure, deviation),
        file="{}_percent",
        factor=100,
        mean=f"{measure.name}_mean",
        deviation=f"{measure.name}_deviation",
    )


def reserved(task: Task) -> frozenset[str]:
    """Names that no axis may have, because frames or files of runs of this task may have columns of these names."""
    columns = [*measures(task.primary), *map(share, task.measured.values()), *COSTS]
    names = {name: column for column in columns for name in (column.name, *column.in_groups)}
    files = {column.file.format(name) for name, column in names.items()}
    trials = {column.file.format(f"validation_{column.name}") for column in columns}
    marks = {IS_BEST, ON_FRONT, IS_CLEAR, NUM_SEEDS, NUM_CELLS, ROUND}
    return frozenset({*names, *files, *trials, *marks, STATE, REASON, RUN})
