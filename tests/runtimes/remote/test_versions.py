"""Which version of its memory is expected of a client."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedelta.errors import CheckpointError
from fedelta.runtimes.remote.versions import NO_VERSIONS, Versions
from fedelta.strategies.base import RoundPlan


def plan(round: int, *cohort: int) -> RoundPlan:
    return RoundPlan(round, dict.fromkeys(cohort, ()), dict.fromkeys(cohort, ()), num_clients=3)


def test_a_version_counts_once_its_reply_is_accepted():
    versions = Versions()
    versions.answer(1, 4, b"")
    assert versions.of(1) == 0
    versions.accept([2])
    assert versions.of(1) == 0  # discarded with its reply
    versions.answer(1, 5, b"")
    versions.accept([1])
    assert versions.of(1) == 5
    versions.answer(1, 0, b"")  # it keeps nothing any more
    versions.accept([1])
    assert versions.of(1) == 0


def test_a_client_keeps_what_it_has_adrift_as_long_as_it_is_in_every_cohort():
    versions = Versions()
    versions.begin(plan(1, 1, 2))
    assert not versions.keeps_adrift(1)
    versions.accept([1])
    versions.begin(plan(2, 1, 2))
    assert versions.keeps_adrift(1)
    versions.accept([])  # a rejected reply changes nothing
    versions.begin(plan(3, 2))
    versions.accept([2])
    versions.begin(plan(4, 1, 2))
    assert (versions.keeps_adrift(1), versions.keeps_adrift(2)) == (False, True)


def test_a_client_can_forget_only_what_was_expected_of_it():
    versions = Versions()
    versions.answer(1, 4, b"")
    versions.accept([1])
    assert versions.forget(1)
    assert (versions.of(1), versions.forget(1)) == (0, False)


def test_a_snapshot_is_found_again(tmp_path: Path):
    versions = Versions()
    versions.answer(1, 4, b"")
    versions.accept([1, 2])
    record = versions.snapshot(tmp_path, 4)
    restored = Versions()
    restored.restore(tmp_path, record)
    restored.begin(plan(5, 1, 2))
    assert (restored.of(1), restored.of(2), restored.keeps_adrift(2)) == (4, 0, True)
    restored.restore(tmp_path, NO_VERSIONS)
    assert (restored.of(1), restored.keeps_adrift(2)) == (0, False)


def test_copies_that_are_gone_are_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        Versions().restore(tmp_path, {**NO_VERSIONS, "copies": "0123456789abcdef"})
