from __future__ import annotations

import re

import pytest

from fedelta.record.citations import ALWAYS, WORKS, citations, entries

DEMO = {
    "model": {"source": "bundled:vit-micro"},
    "tuning": {"name": "lora", "use_rslora": False},
    "data": {"source": "digits"},
    "partition": {"name": "dirichlet"},
    "strategy": {"name": "fedavg"},
    "local_rule": {"name": "plain"},
    "client": {"optimizer": {"name": "adamw"}, "schedule": {"name": "constant"}},
}


def keys(text: str) -> set[str]:
    return set(re.findall(r"^@\w+\{(\w+),$", text, flags=re.MULTILINE))


def test_the_demo_cites_what_it_used_and_nothing_else():
    assert keys(citations(DEMO)) == {
        *ALWAYS,
        "dosovitskiy2021image",
        "kataoka2020pretraining",
        "nakashima2022can",
        "sun2022fedpeft",
        "hu2022lora",
        "alpaydin1998optical",
        "pedregosa2011scikit",
        "beutel2020flower",
        "hsu2019measuring",
        "yurochkin2019bayesian",
        "li2022silos",
        "mcmahan2017communication",
        "loshchilov2019decoupled",
    }


def test_what_is_unknown_is_left_out():
    assert keys(citations({"model": {"source": "/my/model"}, "tuning": "lora"})) == set(ALWAYS)


def test_exits_are_cited_by_what_makes_them_and_by_how_they_learn():
    heads = {"tuning": {"name": "exit-heads"}, "exits": {"train": "deepest"}}
    assert keys(citations(heads)) == {*ALWAYS, "liu2022federated"}
    methods = [{"name": "accumulator"}, {"name": "adapter", "placement": "parallel"}]
    both = {"tuning": {"name": "combined", "methods": methods}, "exits": {"train": "distill"}}
    assert keys(citations(both)) == {
        *ALWAYS,
        "liu2022federated",
        "sun2022fedpeft",
        "houlsby2019parameter",
        "chen2022adaptformer",
        "lee2024recurrent",
    }
    inline = {"tuning": {"name": "adapter", "placement": "sequential"}, "exits": {"train": "random"}}
    assert not {"chen2022adaptformer", "lee2024recurrent"} & keys(citations(inline))


@pytest.mark.parametrize(("path", "value"), [pair for pair in WORKS if pair[1] != "*"])
def test_each_row_of_the_table_is_reached(path, value):
    config: object = value
    for key in reversed(path.split(".")):
        config = {key: config}
    assert set(WORKS[path, value]) <= keys(citations(config))


def test_every_entry_is_used_and_every_key_has_an_entry():
    used = {key for cited in WORKS.values() for key in cited} | set(ALWAYS)
    assert set(entries()) == used


def test_every_entry_is_complete():
    for key, entry in entries().items():
        assert entry.count("{") == entry.count("}"), key
        assert re.search(r"^  title = ", entry, flags=re.MULTILINE), key
        assert re.search(r"^  author = ", entry, flags=re.MULTILINE), key
        assert re.search(r"^  year = \{\d{4}\},$", entry, flags=re.MULTILINE), key
