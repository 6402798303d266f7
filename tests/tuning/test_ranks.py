"""Ranks by client: dealt out, drawn, by tier or from a file, and what they cannot be combined with."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedelta.config import parse_config
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError
from fedelta.tuning.ranks import RankByClient

CLIENTS = Clients.of(range(6))
NAMED = Clients.of(range(3), {0: "ann", 1: "ben", 2: "cleo"})


def test_ranks_are_dealt_out_in_turn():
    ranks = RankByClient(ranks=(4, 8), assignment="cycle")
    assert ranks.of(CLIENTS, 8, 0, None) == {0: 4, 1: 8, 2: 4, 3: 8, 4: 4, 5: 8}


def test_drawn_ranks_follow_from_the_seed_and_the_client_and_not_from_who_else_is_there():
    many, ranks = Clients.of(range(300)), RankByClient(ranks=(4, 8, 16))
    drawn = ranks.of(many, 16, 7, None)
    assert drawn == ranks.of(many, 16, 7, None) != ranks.of(many, 16, 8, None)
    assert ranks.of(many.only(range(5, 30)), 16, 7, None) == {number: drawn[number] for number in range(5, 30)}
    assert all(70 < count < 130 for count in Counter(drawn.values()).values())  # 100 each


def test_the_lowest_depth_gets_the_first_rank():
    ranks = RankByClient(ranks=(2, 4), assignment="tier")
    assert ranks.of(NAMED, 4, 0, {0: 12, 1: 3, 2: 12}) == {0: 4, 1: 2, 2: 4}


def test_the_rank_of_the_server_for_all_is_no_difference():
    assert RankByClient(ranks=(8, 8)).of(CLIENTS, 8, 0, None) == {}


def test_ranks_from_a_file_by_name(tmp_path: Path):
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps({"ben": 2, "ann": 8, "cleo": 1}))
    assert RankByClient(file=str(path)).of(NAMED, 8, 0, None) == {0: 8, 1: 2, 2: 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ann": 1, "ben": 2, "cleo": 3, "dora": 4}, "names 'dora', but there are 3 clients"),
        ({"ann": 1, "ben": 2}, "has no rank for client 2 ('cleo')"),
        ({}, "has no rank for client 0 ('ann'), client 1 ('ben'), client 2 ('cleo')"),
        ({"ann": 1, "ben": 2, "cleo": None}, "client 2 ('cleo') has rank null; expected 1 to 8 for every client"),
        ({"ann": 1, "ben": 2, "cleo": "3"}, "client 2 ('cleo') has rank \"3\"; expected 1 to 8"),
        ({"ann": 1, "ben": 2, "cleo": 9}, "client 2 ('cleo') has rank 9; expected 1 to 8"),
        ({"ann": 1, "ben": True, "cleo": 1}, "client 1 ('ben') has rank true"),
        ({"ann": 0, "ben": 1, "cleo": 1}, "client 0 ('ann') has rank 0"),
        ({"ann": 1, "ben": 1, "cleo": 1, "0": 8}, "names a client twice, by name and by number"),
        ([1, 2, 3], "cannot be read: it holds [1, 2, 3]"),
        ([], "cannot be read: it holds []"),
        ([["ann", 1], ["ben", 1], ["cleo", 1]], 'cannot be read: it holds [["ann", 1], ["ben", 1], ["cleo", 1]]'),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: object, message: str):
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=re.escape(message)):
        RankByClient(file=str(path)).of(NAMED, 8, 0, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: Expecting value"),
        (b"ann,1\nben,2\n", "cannot be read: Expecting value"),
        (b"\xff\xfe{}", "cannot be read: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "cannot be read: maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "ranks.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        RankByClient(file=str(path)).of(NAMED, 8, 0, None)
    assert caught.value.hint == 'expected a JSON object that maps clients to ranks, such as {"ann": 8, "ben": 8}.'


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path):
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps({"ben": 2, "ann": 8, "cleo": 1}), encoding="utf-8-sig")
    assert RankByClient(file=str(path)).of(NAMED, 8, 0, None) == {0: 8, 1: 2, 2: 1}


def test_an_assignment_of_ranks_that_are_in_a_file_is_refused():
    with pytest.raises(ValidationError, match="`assignment` is 'tier', but the ranks are in `file`; leave one out"):
        RankByClient(file="ranks.json", assignment="tier")


def test_a_client_that_a_file_has_twice_is_refused(tmp_path: Path):
    path = tmp_path / "ranks.json"
    path.write_text('{"ann": 1, "ben": 2, "cleo": 3, "ben": 4}')
    with pytest.raises(ConfigError, match="cannot be read: 'ben' stands there more than once"):
        RankByClient(file=str(path)).of(NAMED, 8, 0, None)


def test_a_rank_above_that_of_the_server_is_refused():
    with pytest.raises(ConfigError, match=r"has rank 16, more than `tuning.r` = 8"):
        RankByClient(ranks=(4, 16)).of(Clients.of(range(40)), 8, 0, None)


def test_ranks_by_tier_need_as_many_depths():
    with pytest.raises(ConfigError, match="there are 2 ranks, but clients have 0 different depths"):
        RankByClient(ranks=(2, 4), assignment="tier").of(CLIENTS, 8, 0, None)


BASE = {
    "model": {"source": "bundled:vit-micro"},
    "data": {"source": "digits"},
    "partition": {"name": "iid", "num_clients": 20},
    "tuning": {"name": "lora", "rank_by_client": {"ranks": [2, 8]}},
}
LORA = {"name": "lora"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"name": "scaffold"}}, "'scaffold', which compares the changes of clients scalar by scalar"),
        ({"strategy": {"name": "fedavg", "mean": {"name": "krum"}}}, "'krum', which would take the rows"),
        ({"privacy": {"unit": "example", "target_epsilon": 5.0}}, "noise would also be added to the rows"),
        ({"tuning": LORA | {"rank_by_client": {}}}, "give `ranks` or `file`, one of the two"),
        ({"tuning": LORA | {"rank_by_client": {"ranks": [0]}}}, "rank_by_client.ranks.0` is 0"),
        (
            {"tuning": LORA | {"rank_by_client": {"ranks": []}}},
            "`tuning.rank_by_client.ranks` is [], expected: a list with at least 1",
        ),
        ({"tuning": LORA | {"rank_by_client": {"ranks": 4}}}, "`tuning.rank_by_client.ranks` is 4, expected: a list"),
        (
            {"tuning": LORA | {"r": 8, "rank_pattern": {"q": 16}, "rank_by_client": {"ranks": [2, 8]}}},
            "`tuning.rank_pattern.q` is 16, but `tuning.r` is 8, the largest rank of a client",
        ),
        ({"tuning": LORA | {"rank_by_client": {"ranks": [2], "assignment": "tier"}}}, "`[exits]` has no tiers"),
    ],
)
def test_what_ranks_cannot_be_combined_with(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(BASE | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": {"name": "bias"}}, "`tuning.name` has no low-rank pairs"),
        ({"tuning": {"name": "lora+bias"}, "aggregation": {"name": "flora"}}, "`tuning.name` must be 'lora'"),
        ({"strategy": {"name": "scaffold"}}, "but `strategy.name` is 'scaffold'"),
        ({"strategy": {"name": "fedadam"}}, "but `strategy.name` is 'fedadam'"),
        ({"strategy": {"name": "fedavg", "server_lr": 0.5}}, "`strategy.server_lr` must be 1"),
        ({"strategy": {"name": "fedavg", "mean": {"name": "median"}}}, "`strategy.mean.name` is 'median'"),
        ({"privacy": {"unit": "client", "target_epsilon": 5.0}}, "`privacy.unit` is 'client'"),
        (
            {"aggregation": {"name": "rolora"}, "strategy": {"name": "fedluar"}},
            "'fedluar', which repeats the last update",
        ),
        ({"aggregation": {"name": "lora"}}, "lora"),
    ],
)
def test_what_methods_of_low_rank_aggregation_cannot_be_combined_with(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(BASE | {"tuning": LORA, "aggregation": {"name": "hlora"}} | changes)
