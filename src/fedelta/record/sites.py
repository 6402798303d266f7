"""What the records of a deployment say about its sites, over all rounds.

Each record of `rounds.jsonl` has an entry for each site (`Attendance`), with the site's own measures where they were
asked for. A run of another runtime has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from fedelta.federation.records import SiteState
from fedelta.record.files import Record

# A site without clients in the cohort was there, and would have taken part.
PRESENT: tuple[SiteState, ...] = ("took part", "not asked")
# In `summary.json`: the sentence that a run on too few sites starts with.
TOO_FEW = "too_few_sites"
# In `summary.json`: name of each site to what it has measured of the finished model.
AT_THE_END = "measures_of_sites"
_NUMBERS = ("since_round", "num_asked", "num_accepted", "num_examples", "downlink_bytes", "uplink_bytes")


@dataclass(frozen=True)
class SiteTotals:
    """A site over all rounds.

    Args:
        name: of the site.
        rounds: state to the number of rounds that the site was in it.
        last: its entry in the last round.
        num_examples: examples of its clients in the mean, of all rounds.
        downlink_bytes: of the messages to it, as they travelled.
        uplink_bytes: of its answers.
    """

    name: str
    rounds: Mapping[str, int]
    last: Record
    num_examples: int
    downlink_bytes: int
    uplink_bytes: int


@dataclass(frozen=True)
class OwnMeasures:
    """What a site has measured on its own test set.

    Args:
        values: measure to value.
        num_examples: of its test set.
    """

    values: Mapping[str, float]
    num_examples: int | None

    def as_record(self) -> Record:
        """A dictionary that JSON can hold."""
        return {"measures": dict(self.values), "num_test_examples": self.num_examples}


def totals_of_sites(records: Sequence[Record]) -> list[SiteTotals]:
    """Every site by name; empty for a run without sites."""
    entries: dict[str, list[Record]] = {}
    for record in records:
        for entry in record.get("sites", ()):
            entries.setdefault(entry["site"], []).append(entry)
    return [_totals(name, entries[name]) for name in sorted(entries)]


def _totals(name: str, entries: Sequence[Record]) -> SiteTotals:
    return SiteTotals(
        name,
        Counter(entry["state"] for entry in entries),
        entries[-1],
        sum(entry["num_examples"] for entry in entries),
        sum(entry["downlink_bytes"] for entry in entries),
        sum(entry["uplink_bytes"] for entry in entries),
    )


def own_measures(records: Sequence[Record], summary: Record) -> dict[str, OwnMeasures]:
    """Site to its own measures, when they were last asked for; sites that were never asked are left out.

    Args:
        records: lines of `rounds.jsonl`.
        summary: content of `summary.json`, with what was measured at the end; empty while the run is unfinished.
    """
    latest: dict[str, Record] = {}
    for record in records:
        latest |= {entry["site"]: entry for entry in record.get("sites", ()) if entry.get("measures")}
    latest |= summary.get(AT_THE_END, {})
    return {
        name: OwnMeasures(latest[name]["measures"], latest[name].get("num_test_examples")) for name in sorted(latest)
    }


def min_sites_of(config: Mapping[str, Any]) -> int | None:
    """The number of sites that every round should have; None for a configuration without it; Any: TOML values."""
    section = config.get("deployment")
    number = section.get("min_sites") if isinstance(section, Mapping) else None
    return number if isinstance(number, int) else None


def too_few_sites(records: Sequence[Record], min_sites: int | None) -> str:
    """A sentence on the rounds with fewer than `min_sites` sites and on what the others did; empty if there are none.

    >>> there, away = ({"site": name, "state": state} for name, state in (("kiel", "took part"), ("bonn", "away")))
    >>> too_few_sites([{"sites": [there]}, {"sites": [away, there]}], 2)
    "2 of 2 rounds had fewer than 2 sites: 'bonn' away in 1."
    """
    in_rounds = [record["sites"] for record in records if "sites" in record]
    few = [entries for entries in in_rounds if sum(map(_counts, entries)) < (min_sites or 0)]
    if not few:
        return ""
    absent: dict[str, Counter[str]] = {}
    for entry in (entry for entries in few for entry in entries if not _counts(entry)):
        state = "not in the mean" if entry["state"] in PRESENT else entry["state"]
        absent.setdefault(entry["site"], Counter())[state] += 1
    reasons = "; ".join(f"{site!r} {_counted(states)}" for site, states in sorted(absent.items()))
    said = f": {reasons}" if reasons else ""
    return f"{len(few)} of {len(in_rounds)} rounds had fewer than {min_sites} sites{said}."


def _counts(entry: Record) -> bool:
    """Whether a site was there in a round, and, if its clients were asked, the mean holds an answer of one of them."""
    return entry["state"] in PRESENT and not (entry.get("num_asked") and not entry.get("num_accepted"))


def _counted(states: Mapping[str, int]) -> str:
    """States with the number of rounds of each, such as "away in 2, late in 1"."""
    return ", ".join(f"{state} in {number}" for state, number in sorted(states.items()))


def summary_of_sites(records: Sequence[Record]) -> Record:
    """What `summary.json` says about the sites; empty for a run without sites."""
    totals = totals_of_sites(records)
    if not totals:
        return {}
    return {
        "sites": {
            site.name: {
                "rounds": dict(site.rounds),
                "state": site.last["state"],
                "since": site.last["since"],
                "num_examples": site.num_examples,
                "downlink_bytes": site.downlink_bytes,
                "uplink_bytes": site.uplink_bytes,
            }
            for site in totals
        },
        "wire_downlink_bytes": sum(site.downlink_bytes for site in totals),
        "wire_uplink_bytes": sum(site.uplink_bytes for site in totals),
    }


def site_problems(record: Record) -> list[str]:
    """A message about the first entry of a site in a record that has another form; empty if there is none."""
    entries = record.get("sites", [])
    if not isinstance(entries, list):
        return [f"`sites` is {entries!r:.40}, expected a list"]
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("site"), str):
            return [f"`sites` has {entry!r:.40}, expected the entry of a site with its name"]
        if entry.get("state") not in get_args(SiteState):
            return [f"site {entry['site']!r}: `state` is {entry.get('state')!r}, expected one of {get_args(SiteState)}"]
        if wrong := [key for key in _NUMBERS if type(entry.get(key)) is not int]:
            return [f"site {entry['site']!r}: `{wrong[0]}` is {entry.get(wrong[0])!r}, expected a whole number"]
        if not isinstance(entry.get("since"), str) or not isinstance(entry.get("measures", {}), dict):
            return [f"site {entry['site']!r}: `since` or `measures` are not as a run writes them"]
    return []


def by_sites(records: Sequence[Record]) -> list[str]:
    """Messages about rounds whose sites do not add up to what the rest of the record says."""
    problems = []
    for record in records:
        entries = record.get("sites", [])
        expected = {"num_asked": len(record["cohort"])}
        if "claims" not in record:  # a claim may exceed what counts
            expected["num_examples"] = record["num_examples"]
        for key, value in expected.items() if entries else ():
            if (total := sum(entry[key] for entry in entries)) != value:
                problems.append(
                    f"round {record['round']}: `{key}` of the sites add up to {total:,}, the rest of the record "
                    f"makes it {value:,}"
                )
    return problems
