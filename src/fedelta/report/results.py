"""The section "Results": the primary measure against rounds and traffic, the losses, and the traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.record.numbers import capitalised, count, size
from fedelta.report.elements import Line, Picture, legend, picture
from fedelta.report.plots import bytes_by_part, loss_by_round, measure_by_round, measure_by_traffic, share_by_round

_FULL = "Dotted{}: where full fine-tuning in float32 would be after its first three rounds."
_SYNCED = "Strong: rounds in which all groups were averaged; faint: all rounds."


@dataclass(frozen=True)
class Results:
    """The content of results.html.

    Args:
        lines: of the runs, if there are several.
        pictures: the curves; empty before the first round is finished.
        traffic: of each run, under a second heading if there are several.
    """

    template: ClassVar[str] = "results.html"
    lines: Sequence[Line]
    pictures: Sequence[Picture]
    traffic: Sequence[Picture]


def results(runs: Sequence[History]) -> Results:
    """The section with the curves of `runs`, and the traffic of each."""
    if not any(run.rounds for run in runs):
        return Results([], [], [])
    if len(runs) == 1:
        return Results([], [*_curves(runs), _traffic(runs[0], "d", "Traffic by part and direction")], [])
    traffic = [_traffic(run, f"t{index}", run.name) for index, run in enumerate(runs) if run.rounds]
    return Results(legend([run.name for run in runs]), _curves(runs), traffic)


def _curves(runs: Sequence[History]) -> list[Picture]:
    measure, loss = (capitalised(measure.label) for measure in (runs[0].primary, runs[0].task.loss))
    synced = _SYNCED if any(run.has_partial_syncs for run in runs) else ""
    sizes = {run.full_round_bytes for run in runs if run.full_round_bytes is not None}
    full = _FULL.format(", in the colour of the run" if len(sizes) > 1 else "") if sizes else ""
    return [
        picture(measure_by_round(runs), "a", f"{measure} against rounds", note=synced),
        picture(
            measure_by_traffic(runs), "b", f"{measure} against traffic", says=f"{measure} against MiB sent", note=full
        ),
        picture(loss_by_round(runs), "c", f"{loss} against rounds", note=_losses(runs)),
        *_shares(runs),
    ]


def _losses(runs: Sequence[History]) -> str:
    words = " and ".join(dict.fromkeys(run.measured_on for run in runs))
    return f"Strong: {words}; faint: training." if any(run.train_losses for run in runs) else ""


def _shares(runs: Sequence[History]) -> list[Picture]:
    """The curves of fractions beside the primary measure, of those that some run has more than once."""
    measures = dict.fromkeys(measure for run in runs for measure in run.shares)
    drawn = [measure for measure in measures if any(len(run.curve_of(measure)) > 1 for run in runs)]
    return [
        picture(share_by_round(runs, measure), f"s{index}", f"{capitalised(measure.label)} against rounds")
        for index, measure in enumerate(drawn)
    ]


def _traffic(run: History, prefix: str, title: str) -> Picture:
    """The picture of the bytes by group and direction, with a note on the cost of the backbone."""
    num_clients = len(run.ledger.client_ids)
    if not run.ledger.backbone_bytes:
        return _traffic_picture(run, prefix, title, "Nothing is frozen: beside this clients receive nothing.")
    note = f"Once per client, beside this: the frozen backbone, {size(run.ledger.backbone_bytes)}"
    if num_clients:
        clients = "client" if num_clients == 1 else f"{count(num_clients)} clients"
        note += f"; {size(num_clients * run.ledger.backbone_bytes)} for the {clients} that took part"
    return _traffic_picture(run, prefix, title, f"{note}.")


def _traffic_picture(run: History, prefix: str, title: str, note: str) -> Picture:
    return picture(bytes_by_part(run), prefix, title, says="MiB by part of the model and direction", note=note)
