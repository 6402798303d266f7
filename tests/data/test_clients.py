"""Clients by number and by name."""

from __future__ import annotations

import pytest
import torch
from tests.builders import tiny_data

from fedelta.data.batches import FederatedData
from fedelta.data.clients import Clients
from fedelta.errors import DataError

BY_TEXT = Clients.of([2, 0, 1], {0: "ann", 1: "george", 2: "7"})
BY_NUMBER = Clients.of(range(3), {0: 10, 1: 20, 2: -3})
UNNAMED = Clients.of(range(3))


def test_numbers_ascend_in_whatever_order_they_come():
    assert BY_TEXT.numbers == (0, 1, 2)


@pytest.mark.parametrize(
    ("clients", "key", "number"),
    [
        (BY_TEXT, "george", 1),
        (BY_TEXT, "7", 2),
        (BY_TEXT, "0", None),  # a text is a name
        (BY_TEXT, 0, 0),  # not all are named by numbers
        (BY_TEXT, 7, None),
        (BY_NUMBER, 20, 1),
        (BY_NUMBER, -3, 2),
        (BY_NUMBER, 1, None),  # a number is a name here
        (BY_NUMBER, "20", 1),
        (UNNAMED, 2, 2),
        (UNNAMED, 3, None),
        (UNNAMED, -1, None),
        (UNNAMED, "2", None),
    ],
)
def test_a_text_is_a_name_and_a_number_is_one_where_clients_are_named_by_numbers(clients, key, number):
    assert clients.find(key) == number


@pytest.mark.parametrize(
    ("clients", "text", "number"),
    [
        (BY_TEXT, "george", 1),
        (BY_TEXT, "0", 0),
        (BY_TEXT, "7", 2),
        (BY_NUMBER, "20", 1),
        (BY_NUMBER, "-3", 2),
        (BY_NUMBER, "1", None),
        (UNNAMED, "2", 2),
        (UNNAMED, "3", None),
        (UNNAMED, "ann", None),
        (UNNAMED, "1_0", None),
        (UNNAMED, "\u0662", None),  # a digit that int() would take
    ],
)
def test_where_everything_is_a_text_it_may_be_the_number(clients, text, number):
    assert clients.find_text(text) == number


def test_texts_of_whole_numbers_are_numbers_unless_two_are_the_same():
    speakers = Clients.of(range(3), {0: "01", 1: "02", 2: "2"})
    assert (speakers.find(1), speakers.find("02"), speakers.find("2")) == (0, 1, 2)
    assert speakers.find(2) is None
    assert speakers.find(0) is None


@pytest.mark.parametrize(
    ("clients", "described"),
    [
        (BY_TEXT, "3 clients: 'ann', 'george', '7'"),
        (BY_NUMBER, "3 clients: 10, 20, -3"),
        (UNNAMED, "3 clients, 0 to 2"),
        (Clients.of([0]), "1 client: 0"),
        (Clients.of([1, 5]), "2 clients: 1, 5"),
        (Clients.of(range(64), {n: f"c{n}" for n in range(64)}), "64 clients: 'c0', 'c1', "),
    ],
)
def test_who_there_is_is_said_in_a_line(clients, described):
    assert clients.described.startswith(described)


def test_of_many_names_twenty_are_shown():
    assert Clients.of(range(64), {n: n for n in range(64)}).described.endswith("18, 19 and 44 more")


def test_clients_are_called_by_number_and_name():
    assert [clients.called(1) for clients in (BY_TEXT, BY_NUMBER, UNNAMED)] == [
        "client 1 ('george')",
        "client 1 (20)",
        "client 1",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "a"}, "names are for all clients or for none; clients 1 have only one of the two"),
        ({0: "a", 1: "b", 2: "c"}, "clients 2 have only one"),
        ({0: "a", 1: "a"}, "several clients are called 'a', expected different names"),
        ({0: "1", 1: 1}, "several clients are called '1'"),
        ({0: "a", 1: 1.5}, "names of kind 'float', expected texts or whole numbers"),
        ({0: "a", 1: True}, "names of kind 'bool'"),
    ],
)
def test_names_that_cannot_be_right_are_refused(names, message):
    with pytest.raises(DataError, match=message):
        Clients.of(range(2), names)


def test_names_given_in_python_stay_with_clients_that_are_held_out():
    rows = dict(enumerate(torch.arange(6).split(2)))
    data = FederatedData(tiny_data(num_rows=6), tiny_data(), ("a", "b", "c"), rows, names={0: "x", 1: "y", 2: "z"})
    assert data.clients.find("y") == 1
    apart = data.without([1])
    assert (set(apart.partition), set(apart.held_out)) == ({0, 2}, {1})
    assert apart.clients == data.clients
