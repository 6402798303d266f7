"""The section "Privacy": what is promised to whom, the epsilon of every round, and what it bought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.privacy.shown import shown_epsilon
from fedelta.record.history import History
from fedelta.record.numbers import UNKNOWN, capitalised, three_digits
from fedelta.record.privacy import COVERED, NO_GUARANTEE, NOT_COVERED, sentence
from fedelta.record.promise import Promise
from fedelta.report.elements import Line, Picture, Table, legend, picture
from fedelta.report.privacy_plots import clipping_by_round, epsilon_by_round, is_adaptive, measure_by_epsilon, points

_HEADER = ("Run", "Protected", "Epsilon", "By RDP", "Delta", "Noise multiplier", "Clipping norm", "Noise from")
_PROTECTED = {"example": "examples", "client": "clients", "local": "clients, from the server too"}
_SOURCES = {"seeded": "the seed", "secure": "secret keys"}


@dataclass(frozen=True)
class PrivacySection:
    """The content of privacy_section.html.

    Args:
        warning: which of several runs guarantee nothing; empty if none does, or if the top of the page says it.
        texts: what is promised, covered and not covered; of one run.
        runs: what each run promises; None for one run.
        lines: of the runs, if there are several.
        pictures: epsilon and clipping norm by round, and the measure against epsilon; empty without an epsilon.
    """

    template: ClassVar[str] = "privacy_section.html"
    warning: str
    texts: Sequence[str]
    runs: Table | None
    lines: Sequence[Line]
    pictures: Sequence[Picture]


def section(runs: Sequence[History]) -> PrivacySection | None:
    """The section for `runs`; None if none of them protects anybody."""
    promises = [(run, run.promise) for run in runs if run.promise is not None]
    if not promises:
        return None
    is_alone = len(runs) == 1
    known = {index for index, run in enumerate(runs) if points(run, "epsilon")}
    return PrivacySection(
        warning="" if is_alone else _warning(runs),
        texts=_texts(*promises[0]) if is_alone else (),
        runs=None if is_alone else Table(_HEADER, [_row(run, promise) for run, promise in promises], numbers_from=2),
        lines=[] if is_alone else legend([run.name for run in runs], known),
        pictures=_pictures(runs) if known else (),
    )


def _warning(runs: Sequence[History]) -> str:
    """A sentence on runs, of several, whose noise guarantees nothing."""
    names = [run.name for run in runs if run.promise is not None and not run.promise.is_kept]
    return f"{', '.join(names)}: {NO_GUARANTEE}, whatever epsilon was asked for." if names else ""


def _texts(run: History, promise: Promise) -> list[str]:
    last = run.rounds[-1] if run.rounds else {}
    texts = [sentence(promise, last.get("epsilon", 0.0), last.get("epsilon_rdp", 0.0))]
    if not promise.is_kept:
        return texts
    clipping = three_digits(last.get("clipping_norm", promise.clipping_norm))
    noise = f"Noise multiplier {promise.noise_multiplier:.4g}, clipping norm {clipping}"
    moved = " in the last round" if is_adaptive(run) and run.rounds else ""
    limit = f" No round may exceed epsilon {promise.limit:g}." if promise.limit is not None else ""
    return [
        *texts,
        f"{noise}{moved}.{limit} {run.stopped}".strip(),
        f"Covered: {COVERED[promise.unit]}.",
        f"Not covered: {NOT_COVERED[promise.unit]}.",
    ]


def _row(run: History, promise: Promise) -> list[str]:
    last = run.rounds[-1] if run.rounds else {}
    epsilon = shown_epsilon(run.epsilon) if run.epsilon is not None else UNKNOWN
    by_rdp = last.get("epsilon_rdp")
    return [
        run.name,
        _PROTECTED[promise.unit],
        epsilon if promise.is_kept else NO_GUARANTEE,
        UNKNOWN if by_rdp is None else shown_epsilon(by_rdp),
        f"{promise.delta:g}",
        f"{promise.noise_multiplier:.4g}",
        three_digits(last.get("clipping_norm", promise.clipping_norm)),
        _SOURCES[promise.randomness],
    ]


def _pictures(runs: Sequence[History]) -> list[Picture]:
    pictures = [
        picture(epsilon_by_round(runs), "pe", "Epsilon against rounds", note=_epsilon_note(runs)),
        picture(measure_by_epsilon(runs), "pm", f"{capitalised(runs[0].primary.label)} against epsilon"),
    ]
    if any(map(is_adaptive, runs)):
        pictures.append(picture(clipping_by_round(runs), "pc", "Clipping norm against rounds"))
    return pictures


def _epsilon_note(runs: Sequence[History]) -> str:
    promises = [run.promise for run in runs if run.promise is not None]
    parts = ["strong: accounted; faint: by RDP"] if any(promise.accountant == "pld" for promise in promises) else []
    parts += ["dotted: the largest that is allowed"] if any(promise.limit for promise in promises) else []
    return f"{capitalised('; '.join(parts))}." if parts else ""
