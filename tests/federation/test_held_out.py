"""Who is held out, and whether they can be."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from fedelta.data.clients import Clients
from fedelta.errors import ConfigError, DataError
from fedelta.federation.held_out import Personalization


def test_a_draw_holds_out_as_many_as_asked_for_by_the_seed():
    settings, clients = Personalization(held_out_clients=3), Clients.of(range(20))
    drawn = {settings.held_out_ids(clients, seed) for seed in range(5)}
    assert all(len(client_ids) == 3 and client_ids <= set(range(20)) for client_ids in drawn)
    assert len(drawn) == 5
    assert settings.held_out_ids(clients, 4) == settings.held_out_ids(clients, 4)


def test_named_clients_are_held_out_whatever_the_seed():
    assert Personalization(held_out=(4, 1)).held_out_ids(Clients.of(range(6)), 0) == {1, 4}
    assert Personalization().held_out_ids(Clients.of(range(6)), 0) == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Personalization(held_out_clients=6), r"`personalization.held_out_clients` holds out 6 of 6 clients; at least"),
        (Personalization(held_out=(0, 1, 2, 3, 4, 5)), r"`personalization.held_out` holds out 6 of 6"),
        (Personalization(held_out=(2, 9, 6)), r"`personalization.held_out` has 9, 6, but there are 6 clients, 0 to 5"),
    ],
)
def test_clients_that_are_not_there_cannot_be_held_out_nor_can_all(settings: Personalization, message: str):
    with pytest.raises(ConfigError, match=message):
        settings.held_out_ids(Clients.of(range(6)), 0)


def test_clients_may_be_held_out_by_name():
    sites = Clients.of(range(3), {0: "ann", 1: "bob", 2: "carl"})
    assert Personalization(held_out=("carl", 0)).held_out_ids(sites, 0) == {0, 2}
    with pytest.raises(ConfigError, match="has 'dora', 3, but there are 3 clients: 'ann', 'bob', 'carl'"):
        Personalization(held_out=("dora", 3)).held_out_ids(sites, 0)
    with pytest.raises(ConfigError, match=r"`personalization.held_out` is 'ann', 0, which names a client twice"):
        Personalization(held_out=("ann", 0)).held_out_ids(sites, 0)


def test_of_clients_that_are_named_by_numbers_a_number_is_the_name():
    # 1 would be the second client if it were not the name of the first.
    sites = Clients.of(range(3), {0: 1, 1: 2, 2: 30})
    assert Personalization(held_out=(1, 30)).held_out_ids(sites, 0) == {0, 2}
    with pytest.raises(ConfigError, match="has 0, but there are 3 clients: 1, 2, 30"):
        Personalization(held_out=(0,)).held_out_ids(sites, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out": (1,), "held_out_clients": 1}, "give `held_out_clients` or `held_out`, not both"),
        ({"lrs": (0.1, 0.1)}, "each value once"),
        ({"tune": ("all", "all")}, "each value once"),
        ({"held_out": (1, 1)}, "each value once"),
        ({"lrs": ()}, "at least one value, found none"),
        ({"tune": ()}, "at least one value, found none"),
        ({"lrs": (0.0,)}, "greater than 0"),
        ({"train_fraction": 1.0}, "less than 1"),
        ({"tune": ("tokens",)}, "'all', 'adapters' or 'token'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message: str):
    with pytest.raises(ValidationError, match=message):
        Personalization(**fields)


def test_clients_that_are_too_small_to_split_are_refused_all_at_once():
    # 3 rows: 2 to train on, of them 1 to select by, and 1 to evaluate on. 2 rows: 1 to train on, and none to select by.
    rows = {number: torch.arange(number) for number in (1, 2, 3)}
    with pytest.raises(DataError) as caught:
        Personalization().check_sizes(rows, Clients.of(rows))
    assert caught.value.message == (
        "2 problems in the clients that `[personalization]` holds out:\n"
        "  - client 1 has 1 examples, expected at least 3: some to train on, to select the learning rate on and to "
        "evaluate on\n"
        "  - client 2 has 2 examples, expected at least 3: some to train on, to select the learning rate on and to "
        "evaluate on"
    )
    assert "personalization.train_fraction" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"client 0 \('ann'\) has 1 examples"):
        Personalization().check_sizes({0: torch.arange(1)}, Clients.of([0], {0: "ann"}))
    Personalization().check_sizes({3: torch.arange(3)}, Clients())
    # One rate: 2 rows are one to train on and one to evaluate on.
    Personalization(lrs=(0.1,)).check_sizes({2: torch.arange(2)}, Clients())
    # 0.95 * 9 = 8.55, so that 9 rows leave none to evaluate on, and 10 do (9.5 rounds up, too): 11 are 10 and 1.
    with pytest.raises(DataError, match="client 0 has 9 examples, expected at least 11"):
        Personalization(train_fraction=0.95).check_sizes({0: torch.arange(9)}, Clients())
