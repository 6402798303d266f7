"""What is known about a site, and how long it is waited for."""

from __future__ import annotations

import pytest
from tests.runtimes.remote.local_link import LocalLink

from fedelta.runtimes.remote.book import Book, Debt
from fedelta.runtimes.remote.link import Presence
from fedelta.runtimes.remote.settings import Deployment

SETTINGS = Deployment(round_seconds=600, min_grace_seconds=20, grace_factor=3)


@pytest.fixture
def link() -> LocalLink:
    return LocalLink({})


@pytest.fixture
def book(link: LocalLink) -> Book:
    return Book(SETTINGS, link.clock)


@pytest.mark.parametrize(
    ("durations", "at_work", "expected"),
    [
        ((), 0.0, 600.0),  # nothing is known: the deadline
        ((1.0, 2.0), 0.0, 20.0),  # 3 x 2 = 6, less than the least grace
        ((1.0, 30.0, 2.0), 0.0, 90.0),  # 3 x 30
        ((300.0,), 0.0, 600.0),  # 3 x 300 = 900, more than the deadline
        ((30.0, 1.0, 1.0, 1.0, 1.0, 10.0), 0.0, 30.0),  # the last five: 3 x 10
        ((1.0,), 50.0, 150.0),  # it has worked for 50 s already
    ],
)
def test_a_site_is_waited_for_as_its_last_rounds_say(
    book: Book, durations: tuple[float, ...], at_work: float, expected: float
):
    for seconds in durations:
        book.took("berlin", "train", seconds)
    assert book.patience("berlin", "train", at_work) == expected
    assert book.patience("berlin", "evaluate") == 600.0  # each kind of message has a history of its own


def test_a_new_session_owes_no_answer_and_must_be_prepared(book: Book):
    book.observe({"berlin": Presence(True, "1")}, 0.0)
    book.described("berlin")
    book.ready("berlin")
    book.owes("berlin", Debt("ticket", "train", 0.0))
    book.observe({"berlin": Presence(False)}, 1.0)
    book.observe({"berlin": Presence(True, "1")}, 2.0)  # its line was cut
    assert (book.of("berlin").is_ready, list(book.debts)) == (True, ["ticket"])
    book.observe({"berlin": Presence(True, "2")}, 3.0)
    assert (book.of("berlin").is_ready, book.of("berlin").is_described, book.debts) == (False, False, {})


def test_a_site_that_is_refused_or_removed_from_the_register_is_not_available(book: Book):
    both = {"berlin": Presence(True, "1"), "hamburg": Presence(True, "1")}
    book.observe(both, 0.0)
    book.refuse("berlin", "another version")
    assert book.available == ["hamburg"]
    book.observe({"berlin": Presence(True, "2")}, 1.0)
    assert (book.available, book.of("hamburg").offline_since) == (["berlin"], 1.0)


def test_late_and_busy_are_one_state_and_away_another(book: Book, link: LocalLink):
    times = []
    for round, state in enumerate(("took part", "not asked", "late", "busy", "away", "away"), start=1):
        link.sleep(60.0)
        book.note("berlin", state, round)
        times.append((book.of("berlin").since, book.of("berlin").since_round))
    began = {1: "00:01:00", 3: "00:03:00", 5: "00:05:00"}
    assert times == [(f"2026-01-01T{began[round]}+00:00", round) for round in (1, 1, 3, 3, 5, 5)]
