"""The sections on clients whose replies are not in the mean: their number, the rounds and the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from fedelta.record.history import History
from fedelta.record.numbers import count, duration
from fedelta.record.privacy import is_void
from fedelta.report import plots
from fedelta.report.elements import Picture, Table, picture

MAX_REJECTIONS = 100


@dataclass(frozen=True)
class Participation:
    """The content of participation.html; without a picture if every reply is in the mean."""

    template: ClassVar[str] = "participation.html"
    title: str
    text: str
    by_round: Picture | None


@dataclass(frozen=True)
class Rejections:
    """The content of rejections.html: the first rejected replies, and the number of further ones."""

    template: ClassVar[str] = "rejections.html"
    replies: Table
    num_more: int


def participation(run: History, prefix: str, *, titled: bool) -> Participation | None:
    """The section on the replies of the cohorts and the simulated time of rounds; None if all replies are in the mean.

    Args:
        run: the run to show.
        prefix: makes the ids of the figure unique within the page.
        titled: whether the heading names the run.
    """
    seconds = [value for record in run.rounds if (value := record.get("simulated_seconds")) is not None]
    causes = Counter(rejection["cause"] for record in run.rounds for rejection in record["rejections"])
    if not causes and not seconds:
        return None
    text = " ".join(sentence for sentence in (_asked(run, causes), _void(run), _simulated(seconds)) if sentence)
    says = "What became of the clients asked, by round"
    by_round = picture(plots.participation(run), prefix, "", says=says, is_wide=True) if causes else None
    return Participation(f"Participation in {run.name}" if titled else "Participation", text, by_round)


def rejections(runs: Sequence[History]) -> Rejections | None:
    """The section on replies that are not in the mean; None if there are none."""
    rows = [
        [run.name, str(record["round"]), run.client_label(rejection["client_id"]), str(rejection.get("reason"))]
        for run in runs
        for record in run.rounds
        for rejection in record["rejections"]
    ]
    if not rows:
        return None
    header, first = ["Run", "Round", "Client", "Reason"], 0 if len(runs) > 1 else 1
    table = Table(header[first:], [row[first:] for row in rows[:MAX_REJECTIONS]])
    return Rejections(table, max(0, len(rows) - MAX_REJECTIONS))


def _asked(run: History, causes: Counter[str]) -> str:
    num_asked = sum(len(record["cohort"]) for record in run.rounds)
    lost = ", ".join(f"{cause} {count(number)}" for cause, number in sorted(causes.items())) or "none lost"
    return f"Of {count(num_asked)} {'client' if num_asked == 1 else 'clients'} asked: {lost}."


def _void(run: History) -> str:
    number = sum(is_void(record, run.promise) for record in run.rounds)
    rounds = "1 round" if number == 1 else f"{count(number)} rounds"
    return f"{rounds} did not count, for too few replies." if number else ""


def _simulated(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    return f"Simulated time: {duration(sum(seconds))} in all, {duration(median(seconds))} in the median round."
