"""What a site has released about its clients in all runs, and the most that it may: `state/privacy.json`.

The server counts for its run; a site that has a limit of its own does not rely on that. What an answer releases is on
the disk before its clients train, so that no kill loses it. A message that comes again has the same answer, with the
same noise, and is counted once: the *occasion* says what an answer starts from.

    {"runs": {RUN: {CLIENT: {"releases": [[noise multiplier, rate, times], ...], "occasions": [...]}}}, "said": ...}

Imports no torch: the process that serves a site shows what is said here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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

    def admit(self, run: str, dues: Mapping[str, Due]) -> set[str]:
        """The clients about which this may be released; for them it is counted, on the disk, when this returns.

        Args:
            run: id of the run.
            dues: client to what its answer releases.

        Raises:
            InputError: the account cannot be read.
            OSError: it cannot be written.
        """
        record = self._read()
        clients = record["runs"].setdefault(run, {})
        admitted = set()
        for client, due in sorted(dues.items()):
            entry = clients.get(client, {"releases": [], "occasions": []})
            if due.occasion not in entry["occasions"]:
                grown = _counter(entry) + Counter(due.releases)
                if not self._allows(grown + _elsewhere(record, run, client, self.limit)):
                    continue
                clients[client] = _entry(grown, [*entry["occasions"], due.occasion])
            admitted.add(client)
        if admitted:
            record["said"] = self._said(record, run, admitted)
            write_atomic(self.path, json.dumps(record))
        return admitted

    def spent(self) -> dict[str, float]:
        """Client to the epsilon of all that was released about it, in the order of their names.

        Raises:
            InputError: the account cannot be read.
        """
        record = self._read()
        names = sorted({client for clients in record["runs"].values() for client in clients})
        return {name: self._epsilon(_elsewhere(record, None, name, self.limit)) for name in names}

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
                entry["occasions"] = []
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

    def _said(self, record: Mapping[str, Any], run: str, admitted: set[str]) -> str:
        totals = [
            _counter(record["runs"][run][client]) + _elsewhere(record, run, client, self.limit)
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
                    if not isinstance(entry["occasions"], list):
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


def _elsewhere(record: Mapping[str, Any], run: str | None, client: str, limit: Limit) -> Counter[Release]:
    """What was released in all other runs about a client, or about whichever client may have had its data."""
    total: Counter[Release] = Counter()
    for other, clients in record["runs"].items():
        if other == run:
            continue
        if limit.is_shared:
            total += max((_counter(entry) for entry in clients.values()), key=partial(_rdp, delta=limit.delta))
        elif client in clients:
            total += _counter(clients[client])
    return total


def _rdp(releases: Mapping[Release, int], delta: float) -> float:
    return rdp_epsilon(tuple(sorted(releases.items())), delta)


def _counter(entry: Mapping[str, Any]) -> Counter[Release]:
    return Counter({Release(float(noise), float(rate)): int(times) for noise, rate, times in entry["releases"]})


def _entry(releases: Mapping[Release, int], occasions: list[str]) -> dict[str, Any]:
    triples = [[release.noise_multiplier, release.rate, times] for release, times in sorted(releases.items())]
    return {"releases": triples, "occasions": occasions[-_NUM_OCCASIONS:]}
