"""The section "Sites" of a deployed run: who took part when, since when a site is away, bytes and measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.record.numbers import bare, capitalised, count, headed, mebibytes, size, times
from fedelta.record.sites import PRESENT, OwnMeasures, SiteTotals, own_measures, totals_of_sites
from fedelta.report.elements import Picture, Table, picture
from fedelta.report.site_plot import attendance


@dataclass(frozen=True)
class SiteSection:
    """The content of site_section.html.

    Args:
        title: of the section.
        warning: on rounds with too few sites; empty if there are none, or if the top of the page says it.
        text: how many sites took part, and what travelled.
        strip: what each site did in each round.
        states: what each site did in the last round, and since when.
        amounts: data, bytes and measures of each site.
    """

    template: ClassVar[str] = "site_section.html"
    title: str
    warning: str
    text: str
    strip: Picture
    states: Table
    amounts: Table


def section(run: History, prefix: str, *, titled: bool) -> SiteSection | None:
    """The section for `run`; None for a run without sites.

    Args:
        run: the run to show.
        prefix: makes the ids of the figure unique within the page.
        titled: whether the heading names the run.
    """
    totals = totals_of_sites(run.rounds)
    if not totals:
        return None
    strip = picture(attendance(run), prefix, "", says="What each site did, by round", is_wide=True)
    title = f"Sites of {run.name}" if titled else "Sites"
    warning = run.too_few_sites if titled else ""
    return SiteSection(title, warning, _text(run, totals), strip, _states(totals), _amounts(run, totals))


def _text(run: History, totals: Sequence[SiteTotals]) -> str:
    """How often the sites were there, and the bytes of all messages beside those of the payloads."""
    num_rounds = sum("sites" in record for record in run.rounds)
    sentences = [_presence(site, num_rounds) for site in totals]
    if run.value("deployment.evaluate") == "sites":
        sentences.append("The measures of the run are over the test examples of all sites that answered.")
    on_the_wire = sum(site.downlink_bytes + site.uplink_bytes for site in totals)
    if payloads := run.ledger.total_bytes:
        ratio = f"{times(on_the_wire / payloads)} the payloads"
        sentences.append(f"Messages between server and sites: {size(on_the_wire)}, {ratio}.")
    return " ".join(sentences)


def _presence(site: SiteTotals, num_rounds: int) -> str:
    """A sentence on the rounds in which a site was there, and on what it did in the others."""
    absent = {state: number for state, number in sorted(site.rounds.items()) if state not in PRESENT}
    there = sum(site.rounds.values()) - sum(absent.values())
    if there == num_rounds:
        rounds = "the only round" if num_rounds == 1 else f"all {count(num_rounds)} rounds"
        return f"{site.name} was there in {rounds}."
    others = "".join(f", {state} in {count(number)}" for state, number in absent.items())
    return f"{site.name} was there in {count(there)} of {count(num_rounds)} rounds{others}."


def _states(totals: Sequence[SiteTotals]) -> Table:
    rows = [[site.name, _state(site), _since(site), count(site.rounds.get("took part", 0))] for site in totals]
    note = "Rounds: those in which clients of the site were asked and it answered in time."
    return Table(["Site", "In the last round", "Since", "Rounds"], rows, 3, note=note)


def _amounts(run: History, totals: Sequence[SiteTotals]) -> Table:
    measures = own_measures(run.rounds, run.summary)
    names = dict.fromkeys(name for measured in measures.values() for name in measured.values)
    known = [run.task.measured[name] for name in names if name in run.task.measured]
    header = ["Site", "Clients", "Examples", "MiB down", "MiB up"]
    header += [headed(capitalised(measure.label), measure) for measure in known] + (["Test examples"] if known else [])
    rows = []
    for site in totals:
        of_site = {} if run.partition is None else run.partition.sites.get(site.name, {})
        measured = measures.get(site.name, OwnMeasures({}, None))
        rows.append(
            [
                site.name,
                count(len(of_site) or None),
                count(sum(of_site.values()) or None),
                mebibytes(site.downlink_bytes),
                mebibytes(site.uplink_bytes),
                *(bare(measured.values.get(measure.name), measure) for measure in known),
                *([count(measured.num_examples)] if known else []),
            ]
        )
    note = "Examples: for training. MiB: messages as they travelled."
    return Table(header, rows, 1, note=f"{note} Each site measures on its own test examples." if known else note)


def _state(site: SiteTotals) -> str:
    """What the site did in the last round, with the reason if it did not take part."""
    reason = site.last.get("reason")
    return f"{site.last['state']}: {reason}" if reason else str(site.last["state"])


def _since(site: SiteTotals) -> str:
    """The round and the minute in which the present state began."""
    return f"round {site.last['since_round']}, {site.last['since'][:16].replace('T', ' ')} UTC"
