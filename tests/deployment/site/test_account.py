"""What a site counts about its clients over all runs, and when it says no."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedelta.deployment.site.account import ACCOUNT, Account, Due, Limit, said
from fedelta.errors import InputError
from fedelta.privacy.accounting import epsilons
from fedelta.privacy.state import Release

ONE = {Release(1.0): 1}  # epsilon 4.377 at delta 1e-5 (one Gaussian)
DELTA = 1e-5


def due(occasion: str, releases: dict[Release, int] | None = None) -> Due:
    return Due(ONE if releases is None else releases, occasion)


def account(folder: Path, epsilon: float | None = None, *, is_shared: bool = False) -> Account:
    return Account(folder, Limit(DELTA, epsilon, is_shared))


def test_releases_about_a_client_add_up_over_rounds_runs_and_restarts(tmp_path):
    account(tmp_path).admit("a", {"kiel": due("1")})
    account(tmp_path).admit("a", {"kiel": due("2")})
    account(tmp_path).admit("b", {"kiel": due("1"), "husum": due("1")})
    spent = account(tmp_path).spent()
    assert spent["kiel"] == pytest.approx(epsilons({Release(1.0): 3}, DELTA).pld)
    assert spent["husum"] == pytest.approx(4.377, abs=1e-3)


def test_the_same_occasion_is_counted_once_also_after_a_restart(tmp_path):
    for _ in range(3):
        assert account(tmp_path).admit("a", {"kiel": due("1")}) == {"kiel"}
    assert account(tmp_path).spent()["kiel"] == pytest.approx(4.377, abs=1e-3)
    account(tmp_path).admit("b", {"kiel": due("1")})  # another run has noise of its own
    assert account(tmp_path).spent()["kiel"] > 5


def test_an_occasion_that_is_forgotten_is_counted_again(tmp_path):
    for occasion in "12345":
        account(tmp_path).admit("a", {"kiel": due(occasion)})
    before = account(tmp_path).spent()["kiel"]
    account(tmp_path).admit("a", {"kiel": due("5")})
    assert account(tmp_path).spent()["kiel"] == before
    account(tmp_path).admit("a", {"kiel": due("1")})
    assert account(tmp_path).spent()["kiel"] > before


def test_a_client_whose_limit_would_be_exceeded_is_left_out_and_the_others_are_not(tmp_path):
    # Gaussian 1 twice is epsilon 6.573 at delta 1e-5, so 6 admits one.
    assert epsilons({Release(1.0): 2}, DELTA).pld > 6
    limited = account(tmp_path, 6.0)
    assert limited.admit("a", {"kiel": due("1")}) == {"kiel"}
    assert limited.admit("a", {"kiel": due("2"), "husum": due("1")}) == {"husum"}
    assert limited.spent()["kiel"] == pytest.approx(4.377, abs=1e-3)
    assert limited.admit("a", {"kiel": due("1")}) == {"kiel"}  # the answer that was counted may go out again
    assert limited.admit("b", {"kiel": due("1")}) == set()
    assert limited.admit("b", {"kiel": due("1", {Release(100.0): 1})}) == {"kiel"}  # less may still be released


def test_the_first_answer_may_be_too_much_already(tmp_path):
    assert account(tmp_path, 4.3).admit("a", {"kiel": due("1")}) == set()
    assert account(tmp_path, 4.3).spent() == {}


def test_clients_of_a_divided_data_set_may_have_had_each_others_rows_in_other_runs(tmp_path):
    # In run "a" number 0 may have had any row; in one run a row has one client.
    shared = account(tmp_path, is_shared=True)
    shared.admit("a", {"0": due("1"), "1": due("1", {Release(1.0): 2})})
    shared.admit("b", {"0": due("1")})
    assert shared.spent()["0"] == pytest.approx(epsilons({Release(1.0): 3}, DELTA).pld)
    assert account(tmp_path).spent()["0"] == pytest.approx(epsilons({Release(1.0): 2}, DELTA).pld)
    assert account(tmp_path, 6.0, is_shared=True).admit("b", {"1": due("1")}) == set()


def test_steps_on_samples_are_counted_as_such(tmp_path):
    # q = 8 of 64, z = 1, 30 steps at delta 1e-3: 3.254 (the reference table).
    sampled = Account(tmp_path, Limit(1e-3))
    sampled.admit("a", {"kiel": due("1", {Release(1.0, 0.125): 30})})
    assert sampled.spent()["kiel"] == pytest.approx(3.254, abs=1e-3)


def test_what_is_counted_is_on_the_disk_before_anything_is_admitted(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedelta.deployment.site.account.write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        account(tmp_path).admit("a", {"kiel": due("1")})


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"runs": {"a": {"kiel": {"releases": [[1]]}}}}', '{"runs": 3}', "\xff"]
)
def test_an_account_that_cannot_be_read_admits_nothing(tmp_path, content):
    (tmp_path / ACCOUNT).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match="account of what it has released cannot be read") as raised:
        account(tmp_path).admit("a", {"kiel": due("1")})
    assert str(tmp_path) not in str(raised.value)


def test_the_last_line_says_what_is_spent_of_what(tmp_path):
    assert said(tmp_path) == ""
    account(tmp_path, 6.0).admit("a", {"kiel": due("1")})
    assert said(tmp_path) == "privacy: epsilon 4.378 of at most 6 is spent for this client in all runs, at delta 1e-05"
    account(tmp_path).admit("a", {"kiel": due("2"), "husum": due("1")})
    assert said(tmp_path).startswith("privacy: epsilon 6.573 is spent for the least protected of these clients")


def test_an_empty_account_is_made_once(tmp_path):
    account(tmp_path).start()
    account(tmp_path).admit("a", {"kiel": due("1")})
    account(tmp_path).start()
    assert json.loads((tmp_path / ACCOUNT).read_text())["runs"]
