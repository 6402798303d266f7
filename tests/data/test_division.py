"""Every partitioner, against what all must hold and against its own definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, PathologicalPartitioner
from pydantic import ValidationError
from torch import Tensor

from fedelta.catalog import PARTITIONERS
from fedelta.data.division import Partitioner, divide
from fedelta.data.label_skew import Dirichlet, Pathological
from fedelta.data.partition import Iid, Natural, Quantity
from fedelta.errors import DataError
from fedelta.seeds import stream

EXAMPLES: dict[str, Partitioner] = {
    "iid": Iid(num_clients=7),
    "dirichlet": Dirichlet(num_clients=7, alpha=0.3, min_size=5),
    "pathological": Pathological(num_clients=10, labels_per_client=2),
    "natural": Natural(),
    "quantity": Quantity(num_clients=7, alpha=0.3, min_size=5),
}


@pytest.fixture
def labels() -> Tensor:
    # 200 rows: 29 rows of label 0 down to 11 of label 9, in mixed order
    sizes = torch.arange(29, 10, -2)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    return torch.arange(10).repeat_interleave(sizes)[order]


@pytest.fixture
def client_ids() -> list[str]:
    return [f"site {row % 6}" for row in range(200)]


def test_the_examples_hold_every_partitioner_by_its_name():
    assert EXAMPLES.keys() == PARTITIONERS.keys()
    for name, settings in EXAMPLES.items():
        assert settings.name == name
        assert PARTITIONERS[name].model_validate(settings.model_dump()) == settings


def test_dividing_prints_nothing(labels, client_ids, capfd):
    for settings in EXAMPLES.values():
        divide(settings, labels, client_ids, seed=3)
    assert capfd.readouterr() == ("", "")


def test_iid_mixes_labels_that_the_file_holds_in_order():
    labels = torch.arange(4).repeat_interleave(50)
    for rows in divide(Iid(num_clients=4), labels, None, seed=0).values():
        assert len(labels[rows].unique()) == 4


def test_small_alpha_gives_few_labels_and_large_alpha_gives_all(labels):
    few = divide(Dirichlet(num_clients=5, alpha=0.01, min_size=1), labels, None, seed=0)
    many = divide(Dirichlet(num_clients=5, alpha=1e5, min_size=1), labels, None, seed=0)
    assert num_labels(few, labels) < 4 < 8 < num_labels(many, labels)


@pytest.mark.parametrize("self_balancing", [False, True])
def test_sixty_four_clients_at_alpha_a_tenth_all_get_the_minimum(self_balancing):
    # The size of the digits' training set; no draw of the Dirichlet distribution succeeds here.
    labels = torch.arange(1437) % 10
    settings = Dirichlet(num_clients=64, alpha=0.1, min_size=8, self_balancing=self_balancing)
    rows = divide(settings, labels, None, seed=7)
    assert min(len(of_client) for of_client in rows.values()) == 8
    assert max(len(of_client) for of_client in rows.values()) > 40
    assert sum(len(of_client) for of_client in rows.values()) == 1437
    # Topping up with labels a client holds keeps the skew: IID clients of 22 rows hold 9 labels.
    assert num_labels(rows, labels) < 5


def test_a_minimum_that_takes_every_row_makes_all_clients_equal(labels):
    rows = divide(Dirichlet(num_clients=10, alpha=0.1, min_size=20), labels, None, seed=0)
    assert [len(of_client) for of_client in rows.values()] == [20] * 10


@pytest.mark.parametrize("self_balancing", [False, True])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("num_clients", [3, 40])
def test_a_draw_without_a_minimum_is_that_of_flwr_datasets(num_clients, alpha, self_balancing, labels):
    settings = Dirichlet(num_clients=num_clients, alpha=alpha, self_balancing=self_balancing, min_size=1)
    for seed in range(3):
        theirs = DirichletPartitioner(
            num_clients, "label", alpha, 0, self_balancing=self_balancing, shuffle=False, seed=seed
        )
        theirs.dataset = Dataset.from_dict({"label": labels.tolist(), "place": range(len(labels))})
        try:
            with np.errstate(invalid="raise", divide="raise"):
                expected = [sorted(theirs.load_partition(client)["place"]) for client in range(num_clients)]
        except FloatingPointError:  # balancing has left no client that may take a label
            expected = []
        assert [rows.tolist() for rows in settings.draw(labels, seed).values()] == expected


def test_many_clients_are_not_loaded_one_by_one(monkeypatch):
    # Loading one takes two milliseconds.
    load_partition, loaded = PathologicalPartitioner.load_partition, []
    monkeypatch.setattr(
        PathologicalPartitioner,
        "load_partition",
        lambda self, client: loaded.append(client) or load_partition(self, client),
    )
    assert len(divide(Pathological(num_clients=300), torch.arange(6000) % 10, None, seed=0)) == 300
    assert len(loaded) == 2  # the first, and the largest to check the partitioner's own note


@pytest.mark.parametrize("note", [None, {}, {client: [client] for client in range(7)}])
def test_partitioners_without_a_trustworthy_note_are_asked_for_each_client(note, labels, client_ids, monkeypatch):
    expected = {name: divide(settings, labels, client_ids, seed=3) for name, settings in EXAMPLES.items()}
    monkeypatch.setattr("fedelta.data.flwr_rows.vars", lambda _: {"_partition_id_to_indices": note}, raising=False)
    for name, settings in EXAMPLES.items():
        rows = divide(settings, labels, client_ids, seed=3)
        assert rows.keys() == expected[name].keys()
        assert all(torch.equal(rows[client], expected[name][client]) for client in rows)


def test_pathological_clients_hold_exactly_their_number_of_labels():
    labels = torch.arange(300) % 10
    rows = divide(Pathological(num_clients=12, labels_per_client=3), labels, None, seed=0)
    assert all(len(labels[of_client].unique()) == 3 for of_client in rows.values())


def test_labels_that_no_client_drew_are_left_out_with_a_warning(caplog):
    labels = torch.arange(100) % 10
    rows = divide(Pathological(num_clients=2, labels_per_client=2), labels, None, seed=0)
    assert [(record.name, record.levelname) for record in caplog.records] == [("fedelta", "WARNING")]
    assert "of 100 training rows have labels that no client drew" in caplog.text
    assert sum(len(of_client) for of_client in rows.values()) < 100


def test_natural_clients_are_numbered_in_the_order_of_their_ids():
    rows = divide(Natural(num_clients=3), torch.zeros(5).long(), [20, 3, 100, 3, 20], seed=0)
    assert {client: of_client.tolist() for client, of_client in rows.items()} == {
        0: [1, 3],
        1: [0, 4],
        2: [2],
    }


def test_fewer_natural_clients_are_drawn_and_keep_their_order():
    ids = [f"writer {row % 30:02}" for row in range(90)]
    all_clients = divide(Natural(), torch.zeros(90).long(), ids, seed=0)
    drawn = [divide(Natural(num_clients=10), torch.zeros(90).long(), ids, seed=seed) for seed in (0, 0, 1)]
    of_all = [rows.tolist() for rows in all_clients.values()]
    first, repeated, other = ([rows.tolist() for rows in partition.values()] for partition in drawn)
    assert first == repeated != other
    assert [rows for rows in of_all if rows in first] == first
    assert [list(partition) for partition in drawn] == [list(range(10))] * 3


def test_quantity_skew_differs_in_size_and_not_in_labels():
    labels = torch.arange(4000) % 4
    rows = divide(Quantity(num_clients=10, alpha=0.5, min_size=40), labels, None, seed=0)
    sizes = sorted(len(of_client) for of_client in rows.values())
    assert sizes[0] >= 40
    assert sizes[-1] > 4 * sizes[0]
    assert all(len(labels[of_client].unique()) == 4 for of_client in rows.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Iid(num_clients=201), "num_clients is 201, expected at most 200"),
        (
            Dirichlet(num_clients=64, alpha=1.0, min_size=4),
            "min_size is 4, but 200 training rows give 64 .* 3 ",
        ),
        (Quantity(num_clients=64, alpha=1.0, min_size=4), "lower min_size or num_clients"),
        (Pathological(num_clients=5, labels_per_client=11), "labels_per_client is 11, expected at most 10"),
        (
            Pathological(num_clients=201, labels_per_client=11),
            "(?s)2 problems.*num_clients.*labels_per_client",
        ),
        (
            Pathological(num_clients=150, labels_per_client=10),
            "(?s)the rarest label has 11.*hint: lower `partition.num_clients`",
        ),
        (Natural(num_clients=7), "num_clients is 7, expected at most 6, the number of client ids"),
    ],
)
def test_divisions_that_the_data_do_not_allow_are_refused(settings, message, labels, client_ids):
    with pytest.raises(DataError, match=message):
        divide(settings, labels, client_ids, seed=0)


def test_natural_clients_need_a_column(labels):
    with pytest.raises(DataError, match=r"`data.client_column` is not set"):
        divide(Natural(), labels, None, seed=0)


def test_balancing_at_tiny_alpha_assigns_every_row_or_is_refused(labels):
    # Proportions underflow to 0 for all clients but one, which may be full already: such draws are dropped.
    rows = divide(Dirichlet(num_clients=6, alpha=0.01, min_size=1, self_balancing=True), labels, None, seed=0)
    assert sum(len(of_client) for of_client in rows.values()) == 200
    with pytest.raises(DataError, match=r"(?s)balancing leaves labels .* set `partition.self_balancing` to false"):
        divide(Dirichlet(num_clients=6, alpha=1e-5, self_balancing=True), torch.arange(200) % 10, None, seed=0)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Dirichlet, {"num_clients": 4, "alpha": 0.0}, "greater than 0"),
        (Dirichlet, {"num_clients": 4, "alpha": float("nan")}, "finite"),
        (Dirichlet, {"num_clients": 4, "alpha": 1.0, "min_size": 0}, "greater than or equal to 1"),
        (Iid, {"num_clients": 0}, "greater than or equal to 1"),
        (Iid, {"num_clients": 2.5}, "valid integer"),
        (Pathological, {"num_clients": 4, "labels_per_client": 0}, "greater than or equal to 1"),
        (Quantity, {"num_clients": 4, "alpha": -1.0}, "greater than 0"),
        (Natural, {"clients": 4}, "Extra inputs"),
    ],
)
def test_impossible_values_are_refused_when_the_settings_are_made(kind, values, message):
    with pytest.raises(ValidationError, match=message):
        kind(**values)


def num_labels(rows: dict[int, Tensor], labels: Tensor) -> float:
    """Mean number of labels of a client."""
    return sum(len(labels[of_client].unique()) for of_client in rows.values()) / len(rows)


def test_equal_shares_are_those_of_flwr_datasets(labels):
    order = torch.randperm(200, generator=stream(3, "partition", "order"))
    reference = IidPartitioner(7)
    reference.dataset = Dataset.from_dict({"row": order.tolist()})
    rows_of = divide(Iid(num_clients=7), labels, None, seed=3)
    assert [of_client.tolist() for of_client in rows_of.values()] == [
        sorted(reference.load_partition(client)["row"][:]) for client in range(7)
    ]
