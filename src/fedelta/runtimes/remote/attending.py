"""What each site did in a round, collected until the round's record is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedelta.federation.records import Attendance
from fedelta.runtimes.remote.post import Post, Traffic
from fedelta.runtimes.remote.roster import Roster

_NEWCOMER = "it was not there when the run began; it takes part from the next run on"
_UNUSABLE = "none of its clients' answers could be used; `rejections` says why"


class Sheet:
    """The attendance sheet of a round.

    Args:
        post: knows what travelled, and has the book of sites.
        roster: the sites of the run.
    """

    def __init__(self, post: Post, roster: Roster) -> None:
        self._post, self._book, self._roster = post, post.book, roster
        self._asked: dict[str, set[int]] = {}
        self._claimed: dict[int, int] = {}
        self._accepted: set[int] = set()

    def asked(self, site: str, client_ids: Sequence[int]) -> None:
        """Notes that clients of a site were asked; what the site did is in the book."""
        self._asked.setdefault(site, set()).update(client_ids)

    def claimed(self, client_id: int, num_examples: object) -> None:
        """Notes what a client claims."""
        if type(num_examples) is int:
            self._claimed[client_id] = num_examples

    def accepted(self, client_ids: Iterable[int]) -> None:
        """Notes that the replies of these clients are in the mean."""
        self._accepted.update(client_ids)

    def finished(self, round: int) -> list[Attendance]:
        """What each site did, by name; begins a new sheet."""
        for site in self._book.names:
            if site not in self._asked:
                self._note_idle(site, round)
            elif self._is_useless(site):
                self._book.note(site, "failed", round, _UNUSABLE)
        attendances = [self._of(site) for site in self._book.names]
        self._asked, self._claimed, self._accepted = {}, {}, set()
        self._post.traffic.clear()
        return attendances

    def _is_useless(self, site: str) -> bool:
        """Whether a site has answered in time, and the mean holds others' answers and none of its own."""
        return (
            self._book.of(site).state == "took part" and bool(self._accepted) and not self._asked[site] & self._accepted
        )

    def _note_idle(self, site: str, round: int) -> None:
        """Enters the state of a site that was asked for nothing in this round."""
        entry = self._book.of(site)
        if not entry.presence.is_online:
            self._book.note(site, "away", round, "it is not connected")
        elif site not in self._roster.profiles:
            self._book.note(site, "refused", round, _NEWCOMER)
        elif entry.is_refused:
            self._book.note(site, "refused", round, entry.reason)
        elif entry.debt is not None:
            self._book.note(site, "busy", round, "it is at work for an earlier round")
        else:
            self._book.note(site, "not asked", round)

    def _of(self, site: str) -> Attendance:
        entry, traffic = self._book.of(site), self._post.traffic.get(site, Traffic())
        asked = self._asked.get(site, set())
        accepted = asked & self._accepted
        return Attendance(
            site,
            entry.state,
            entry.since,
            entry.since_round,
            entry.reason,
            num_asked=len(asked),
            num_accepted=len(accepted),
            num_examples=sum(self._claimed.get(client_id, 0) for client_id in accepted),
            downlink_bytes=traffic.downlink_bytes,
            uplink_bytes=traffic.uplink_bytes,
            seconds=traffic.seconds,
        )
