"""What a site has released about its clients in all runs, and the most that it may: `state/privacy.json`.

The server counts for its run; a site that has a limit of its own does not rely on that. What an answer releases is on
the disk before its clients train, so that no kill loses it. A message that comes again has the same answer, with the
same noise, and is counted once: the *occasion* says what an answer starts from. If the answer is another one, because
data have changed in place, say, it is not sent: with the first one it would release more than was counted.

    {"runs": {RUN: {CLIENT: {"releases": [[noise multiplier, rate, times], ...], "occasions": {OCCASION: digest of the
    answer, or ""}}}}, "said": ...}

Imports no torch: the process that serves a site shows what is said here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fedelta.durable import write_atomic
from fedelta.errors import InputError
from fedelta.privacy.accounting import worst
from fedelta.privacy.bounds import rdp_epsilon
from fedelta.privacy.shown import shown_epsilon
from fedelta.privacy.state import Release

ACCOUNT = "privacy.json"
_NUM_OCCASIONS = 4  # of a client and run that are remembered; an older message that comes again is counted again


@dataclass(frozen=True)
class Due:
    """What one answer releases about a client.

    Args:
        releases: each with how often it happens.
        occasion: digest of all that the answer starts from.
    """

    releases: Mapping[Release, int]
    occasion: str


class Answered(NamedTuple):
    """An answer about a client, before it is sent.

    Args:
        occasion: as for `Due`.
        digest: of all that is sent.
    """

    occasion: str
    digest: str


@dataclass(frozen=True)
class Limit:
    """What may be released about a client, in all runs together.

    Args:
        delta: with which epsilon is calculated.
        epsilon: the largest; None: no limit.
        is_shared: whether a row of data may belong to different clients in different runs, because recipes divide the
            data. Then every client of another run counts for every client.
    """

    delta: float
    epsilon: float | None = None
    is_shared: bool = False


class Account:
    """The account of a site.

    Args:
        state: folder of the site's state.
        limit: of the site.
    """

    def __init__(self, state: Path, limit: Limit) -> None:
        self.path = state / ACCOUNT
        self.limit = limit

    def admit(self, run: str, dues: Mapping[str, Due], clients: Collection[str] = ()) -> set[str]:
        """The clients about which this may be released; for them it is counted, on the disk, when this returns.

        Args:
            run: id of the run.
            dues: client to what its answer releases.
            clients: all that the site has in this run, if there are more than those in `dues`.

        Raises:
            InputError: the account cannot be read.
            OSError: it cannot be written.
        """
        record = self._read()
        entries, present = record["runs"].setdefault(run, {}), {*clients, *dues}
        admitted = set()
        for client, due in sorted(dues.items()):
            entry = entries.get(client, {"releases": [], "occasions": {}})
            if due.occasion not in entry["occasions"]:
                grown = _counter(entry) + Counter(due.releases)
                if not self._allows(grown + _elsewhere(record, run, client, present, self.limit)):
                    continue
                entries[client] = _entry(grown, entry["occasions"] | {due.occasion: ""})
            admitted.add(client)
        if admitted:
            record["said"] = self._said(record, run, admitted, present)
            write_atomic(self.path, json.dumps(record))
        return admitted

    def confirm(self, run: str, answers: Mapping[str, Answered]) -> set[str]:
        """The clients whose answer may be sent: it is the first one to its message, or the same as the first one.

        Args:
            run: id of the run.
            answers: client to its answer, for clients that were admitted.

        Raises:
            InputError: the account cannot be read.
            OSError: it cannot be written.
        """
        record, confirmed, is_new = self._read(), set(), False
        for client, answer in answers.items():
            occasions = record["runs"].get(run, {}).get(client, {"occasions": {}})["occasions"]
            before = occasions.get(answer.occasion)
            if before == "":
                occasions[answer.occasion], is_new = answer.digest, True
            if before in ("", answer.digest):
                confirmed.add(client)
        if is_new:
            write_atomic(self.path, json.dumps(record))
        return confirmed

    def spent(self) -> dict[str, float]:
        """Client to the epsilon of all that was released about it, in the order of their names.

        Raises:
            InputError: the account cannot be read.
        """
        record = self._read()
        names = sorted({client for clients in record["runs"].values() for client in clients})
        return {name: self._epsilon(_elsewhere(record, None, name, names, self.limit)) for name in names}

    def start(self) -> None:
        """Makes an empty account, unless there is one."""
        if not self.path.exists():
            write_atomic(self.path, json.dumps({"runs": {}}))

    def forget_occasions(self) -> None:
        """Lets every answer count from now on, also to messages that come again: their noise will be another.

        Raises:
            InputError: the account cannot be read.
        """
        record = self._read()
        for clients in record["runs"].values():
            for entry in clients.values():
                entry["occasions"] = {}
        write_atomic(self.path, json.dumps(record))

    def _allows(self, releases: Counter[Release]) -> bool:
        limit = self.limit
        # The quick bound first: far from the limit it is enough.
        return (
            limit.epsilon is None
            or _rdp(releases, limit.delta) <= limit.epsilon
            or self._epsilon(releases) <= limit.epsilon
        )

    def _epsilon(self, *everyone: Mapping[Release, int]) -> float:
        return min(worst(everyone, self.limit.delta))

    def _said(self, record: Mapping[str, Any], run: str, admitted: set[str], present: Collection[str]) -> str:
        totals = [
            _counter(record["runs"][run][client]) + _elsewhere(record, run, client, present, self.limit)
            for client in sorted(admitted)
        ]
        most = "" if self.limit.epsilon is None else f" of at most {self.limit.epsilon:g}"
        who = "this client" if len(totals) == 1 else "the least protected of these clients"
        epsilon, delta = self._epsilon(*totals), self.limit.delta
        return f"privacy: epsilon {shown_epsilon(epsilon)}{most} is spent for {who} in all runs, at delta {delta:g}"

    def _read(self) -> dict[str, Any]:  # Any: JSON
        try:
            record: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            for clients in record["runs"].values():
                for entry in clients.values():
                    _counter(entry)
                    if not isinstance(entry["occasions"], dict):
                        raise TypeError
        except FileNotFoundError:
            return {"runs": {}}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "the site's account of what it has released cannot be read, so that it can release nothing more.",
                hint=f"bring back {ACCOUNT} in the site's state folder from a copy.",
            ) from error
        return record


def said(state: Path) -> str:
    """The last line about what is spent; empty if there is none."""
    try:
        return str(json.loads((state / ACCOUNT).read_text(encoding="utf-8")).get("said", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _elsewhere(
    record: Mapping[str, Any], run: str | None, client: str, present: Collection[str], limit: Limit
) -> Counter[Release]:
    """What was released in all other runs about a client, or about whichever client may have had its data.

    That is one that is not `present` any more, because the site's data now name clients otherwise, or any client if the
    data are divided by recipes.
    """
    total: Counter[Release] = Counter()
    for other, clients in record["runs"].items():
        if other == run:
            continue
        candidates = [
            _counter(entry)
            for name, entry in clients.items()
            if limit.is_shared or name == client or name not in present
        ]
        total += max(candidates, key=partial(_rdp, delta=limit.delta), default=Counter())
    return total


def _rdp(releases: Mapping[Release, int], delta: float) -> float:
    return rdp_epsilon(tuple(sorted(releases.items())), delta)


def _counter(entry: Mapping[str, Any]) -> Counter[Release]:
    return Counter({Release(float(noise), float(rate)): int(times) for noise, rate, times in entry["releases"]})


def _entry(releases: Mapping[Release, int], occasions: dict[str, str]) -> dict[str, Any]:
    triples = [[release.noise_multiplier, release.rate, times] for release, times in sorted(releases.items())]
    return {"releases": triples, "occasions": dict([*occasions.items()][-_NUM_OCCASIONS:])}
