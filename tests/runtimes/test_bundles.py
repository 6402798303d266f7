"""Small packs go to a worker together, large ones alone, and all workers end at about the same time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedelta.federation.memory import Memory
from fedelta.federation.packs import Pack
from fedelta.runtimes.bundles import bundled


def packs(num: int, num_bytes: int = 10) -> list[Pack]:
    return [Pack(1, {i: ("t",)}, {i: b"x" * num_bytes}, {i: Memory()}) for i in range(num)]


def sizes(num: int, work_of: Callable[[int], float], num_workers: int = 2, num_bytes: int = 10) -> list[int]:
    given = packs(num, num_bytes)
    bundles = bundled(given, work_of, num_workers)
    assert [pack for bundle in bundles for pack in bundle] == given
    return [len(bundle) for bundle in bundles]


def test_bundles_become_smaller_until_packs_are_alone():
    # 2 workers, 4 bundles for each: an eighth of the rest each time. 16 / 8 = 2; (16 - 2) / 8 = 1.75, one pack.
    assert sizes(16, lambda _: 1.0) == [2, *[1] * 14]
    many = sizes(1000, lambda _: 1.0)
    assert many[0] == 125
    assert many == sorted(many, reverse=True)
    assert len(many) < 60
    assert many[-8:] == [1] * 8


def test_few_packs_are_not_bundled():
    assert sizes(8, lambda _: 3.0) == [1] * 8


def test_a_pack_with_most_of_the_work_is_alone():
    assert sizes(101, lambda client_id: 100.0 if client_id == 0 else 1.0)[0] == 1


def test_the_updates_of_a_bundle_take_no_more_than_a_mebibyte():
    assert max(sizes(1000, lambda _: 1.0, num_bytes=2**18)) == 4
    assert set(sizes(100, lambda _: 1.0, num_bytes=2**21)) == {1}


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_nothing_is_lost_without_work_or_packs(num_workers: int):
    assert sizes(5, lambda _: 0.0, num_workers) == [5]
    assert bundled([], lambda _: 1.0, num_workers) == []
