"""When the groups of a run travelled, and why, for the section "Layers" of the report.

`rounds.jsonl` has the intervals that apply from the next round on; here each round has the intervals that it used.

Source: Lee et al. 2023 (FedLAMA, arXiv 2110.10302), Eq. 2 to 4 and 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from fedelta.errors import RunError
from fedelta.params import ParamSpec, TensorSpec
from fedelta.record.files import Record
from fedelta.record.history import History
from fedelta.record.privacy import is_void
from fedelta.strategies.fedlama import Curves, FedLama, curves
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.windows import place as place_in_window

_InWindows = Annotated[FedLama | FedLamaAuto, Field(discriminator="name")]


@dataclass(frozen=True)
class IntervalChoice:
    """A choice of intervals.

    Args:
        round: the round after which it was made.
        intervals: [G] int64, the chosen intervals.
        curves: of the unit discrepancy on which it was based.
        discrepancy_share: share of the groups with an interval above 1 in the sum of d_l dim_l.
        parameter_share: share of the same groups in all scalars.
    """

    round: int
    intervals: Tensor
    curves: Curves
    discrepancy_share: float
    parameter_share: float


@dataclass(frozen=True)
class Layers:
    """The groups of a run with windows, over its R finished rounds (at least one).

    Args:
        strategy: as configured.
        records: lines of `rounds.jsonl`.
        counts: whether each round counted.
        sizes: group to the number of its scalars that are trained and travel; G groups in the order of the model.
        intervals: [R, G] int64, used in each round.
        unit_discrepancy: [R, G] float64, Eq. 2, from the last upload of the group; zero before the first.
    """

    strategy: FedLama | FedLamaAuto
    records: Sequence[Record]
    counts: Sequence[bool]
    sizes: Mapping[str, int]
    intervals: Tensor
    unit_discrepancy: Tensor

    @cached_property
    def num_syncs(self) -> Tensor:
        """Number of rounds that averaged each group, [G] int64, kappa_l of Eq. 9."""
        places = [place_in_window(self.strategy, record["round"]) for record in self.records]
        positions = torch.tensor([[place.position] for place in places])
        came_up = (positions % self.intervals == 0) | torch.tensor([[place.is_last] for place in places])
        return (came_up & torch.tensor(self.counts)[:, None]).sum(0)

    @property
    def num_counted(self) -> int:
        """Number of rounds that averaged any group."""
        return sum(self.counts)

    @cached_property
    def choice(self) -> IntervalChoice | None:
        """The last choice that was followed by rounds, else FedLAMA's final choice; None before the first one."""
        ends = [
            index
            for index, record in enumerate(self.records)
            if self.counts[index] and place_in_window(self.strategy, record["round"]).is_last
        ]
        followed = [index for index in ends if self.records[index]["round"] < self.strategy.num_rounds]
        made = followed or (ends if isinstance(self.strategy, FedLama) else [])
        return self._choice(made[-1]) if made else None

    def _choice(self, index: int) -> IntervalChoice:
        sizes = torch.tensor(list(self.sizes.values()))
        intervals = torch.tensor(self.records[index]["interval_rounds"])
        is_rare, amounts = intervals > 1, self.unit_discrepancy[index] * sizes
        return IntervalChoice(
            round=self.records[index]["round"],
            intervals=intervals,
            curves=curves(self.unit_discrepancy[index], sizes),
            discrepancy_share=float(amounts[is_rare].sum() / amounts.sum()) if amounts.any() else 0.0,
            parameter_share=float(sizes[is_rare].sum() / sizes.sum()),
        )


def read_layers(run: History) -> Layers | None:
    """The groups of `run`; None if they are unknown, or if all travel in every round.

    Raises:
        RunError: its rounds have intervals, but its strategy has no windows.
    """
    sizes = run.model.get("groups")
    if not sizes or not run.has_intervals:
        return None
    # The configuration does not contain the changes made for a byte budget.
    section = run.model.get("strategy") or run.config.get("strategy")
    try:
        strategy: FedLama | FedLamaAuto = TypeAdapter(_InWindows).validate_python(section)
    except ValidationError as error:
        raise RunError(
            f"{str(run.path)!r}: `[strategy]` is not the one that wrote its rounds: {error.errors()[0]['msg']}."
        ) from error
    spec = ParamSpec({group: TensorSpec((size,), group) for group, size in sizes.items()})
    before = strategy.init({}, spec)["interval_rounds"].tolist()
    after = [record["interval_rounds"] for record in run.rounds]
    discrepancy = torch.tensor([record["unit_discrepancy"] for record in run.rounds], dtype=torch.float64)
    counts = [not is_void(record, run.promise) for record in run.rounds]
    return Layers(strategy, run.rounds, counts, sizes, torch.tensor([before, *after[:-1]]), discrepancy)
