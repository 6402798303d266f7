"""The section "Layers": when each group of a run travelled, the traffic saved, and the reason for the choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.record.numbers import count, percent, size
from fedelta.report.elements import Picture, picture
from fedelta.report.layer_plots import (
    choice_curves,
    crossing,
    discrepancy_by_group,
    discrepancy_curves,
    intervals_by_round,
)
from fedelta.report.layers import IntervalChoice, Layers, read_layers
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto

_BARS = (
    "After the last round of a window everything travels, whatever its interval. "
    "Bars: rounds in which a group was averaged, and scalars so averaged; faint: had every round done so."
)


@dataclass(frozen=True)
class LayerSection:
    """The content of layer_section.html.

    Args:
        title: of the section.
        text: full syncs and traffic.
        intervals: of each group in each round.
        discrepancy: of the groups, and curves of the last choice; empty if clients did not differ.
    """

    template: ClassVar[str] = "layer_section.html"
    title: str
    text: str
    intervals: Picture
    discrepancy: Sequence[Picture]


def section(run: History, prefix: str, *, titled: bool) -> LayerSection | None:
    """The section for a run; None if all groups travel in every round.

    Args:
        run: the run to show.
        prefix: makes the ids of the figures unique within the page.
        titled: whether the heading names the run.
    """
    layers = read_layers(run)
    if layers is None:
        return None
    heat = picture(
        intervals_by_round(layers),
        f"{prefix}i",
        "Intervals in force, and what was averaged",
        says="Interval of each group by round",
        note=_BARS,
        is_wide=True,
    )
    title = f"Layers of {run.name}" if titled else "Layers"
    return LayerSection(title, f"{_syncs(run)} {_traffic(run)}", heat, _discrepancy(layers, prefix))


def _discrepancy(layers: Layers, prefix: str) -> list[Picture]:
    """Pictures of the discrepancy of each group, and of the curves of the last choice."""
    if not layers.unit_discrepancy.any():
        return []
    by_group = discrepancy_by_group(layers)
    pictures = [picture(by_group, f"{prefix}d", "Unit discrepancy of each group", note=_discrepancy_note(layers))]
    if layers.choice is not None:
        title = f"Behind the choice after round {layers.choice.round}"
        says = "Discrepancy and parameters of the first groups"
        note = _choice_note(layers, layers.choice)
        pictures.append(picture(discrepancy_curves(layers.choice), f"{prefix}c", title, says=says, note=note))
    return pictures


def _syncs(run: History) -> str:
    full, finished = len(run.full_syncs), len(run.rounds)
    verb = "was a full sync, which averages" if full == 1 else "were full syncs, which average"
    return f"{count(full)} of {count(finished)} rounds {verb} every group."


def _traffic(run: History) -> str:
    """A text on the cost by Eq. 9, and on the bytes of uploads if each were as long as the longest.

    Not on those of downloads: how long they are may depend on what a client holds, and not only on their groups.
    """
    sent, everything = run.ledger.uplink_bytes, run.ledger.largest_upload_bytes * run.ledger.transfers["up"]
    if run.relative_cost is None or not everything:
        return "Nothing was averaged."
    return (
        f"Relative cost: {percent(run.relative_cost)} of the scalars that FedAvg averages in as many rounds (Eq. 9). "
        f"Uploads: {size(sent)}; if each were as long as the longest {size(everything)}, "
        f"so {percent(1 - sent / everything)} is saved."
    )


def _discrepancy_note(layers: Layers) -> str:
    note = "Squared distance to the mean per scalar and local step (Eq. 2). Dots: the last; lines: range over the run."
    return f"{note} Hollow: zero." if (layers.unit_discrepancy[-1] == 0).any() else note


def _choice_note(layers: Layers, choice: IntervalChoice) -> str:
    if isinstance(layers.strategy, FedLamaAuto):
        groups = ", ".join(f"{interval} for {count(number)}" for interval, number in sorted(_numbers(choice).items()))
        budget = _budget(layers.strategy)
        return (
            f"Not chosen by the crossing but by a budget, {budget}. Intervals in rounds, by number of groups: {groups}."
        )
    return _crossing_note(layers, layers.strategy, choice)


def _crossing_note(layers: Layers, strategy: FedLama, choice: IntervalChoice) -> str:
    num_groups, is_included = _numbers(choice)[strategy.phi], strategy.crossing == "included"
    if strategy.phi == 1:
        return "With phi = 1 every group travels in every round."
    where = "before the crossing, and the one at it" if is_included else "before the crossing"
    return (
        f"The curves cross at l = {_crossing(choice)}. "
        f"{count(num_groups)} of {count(len(layers.sizes))} groups were given an interval of {strategy.phi} rounds: "
        f"those {where}. They have {percent(choice.parameter_share)} of the parameters and "
        f"{percent(choice.discrepancy_share)} of the discrepancy."
    )


def _crossing(choice: IntervalChoice) -> str:
    """The first l at which the discrepancy is not below the parameters, and where the curves cross."""
    delta, rest = choice_curves(choice)
    first = next(place for place, pair in enumerate(zip(delta, rest, strict=True)) if pair[0] >= pair[1])
    return f"{count(first)}, at {percent(crossing(delta, rest)[1], 0)}"


def _numbers(choice: IntervalChoice) -> Counter[int]:
    """Interval to the number of groups with it."""
    return Counter(choice.intervals.tolist())


def _budget(strategy: FedLamaAuto) -> str:
    if strategy.share is not None:
        return f"{percent(strategy.share)} of the traffic of FedAvg"
    return f"at most {percent(strategy.tolerance or 0.0)} more discrepancy than with FedAvg"
