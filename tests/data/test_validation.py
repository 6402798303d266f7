"""The validation set: what each client gives up, and that the test set stays out of it."""

from __future__ import annotations

import pytest
import torch
from tests.small import write_small

from fedelta.config import load_config
from fedelta.data.federate import federate
from fedelta.data.label_skew import Dirichlet
from fedelta.data.sources import DataSource, read
from fedelta.data.validation import RowsOf, hold_back
from fedelta.errors import ConfigError, DataError
from fedelta.experiment import Experiment
from fedelta.modalities.image import Images

PARTITION = Dirichlet(num_clients=6, alpha=0.5, min_size=4)


def digits(**fields: object):
    source = DataSource(source="digits", max_train_examples=120, max_test_examples=60, **fields)
    raw = read(source, seed=3)
    return raw, federate(raw, PARTITION, Images.from_preprocessor({}, 16, 3), seed=3)


# 0.2 * 10 = 2; 0.2 * 8 = 1.6, nearest 2; 0.2 * 7 = 1.4, nearest 1; 0.5 * 3 = 1.5, of 1 and 2 the larger;
# 0.9 * 4 = 3.6, but one row stays; one row is never given up.
@pytest.mark.parametrize(
    ("num_rows", "fraction", "num_validation"),
    [(10, 0.2, 2), (8, 0.2, 2), (7, 0.2, 1), (3, 0.5, 2), (4, 0.9, 3)],
)
def test_a_client_gives_up_the_nearest_whole_number_of_rows(num_rows, fraction, num_validation):
    train, held = hold_back({0: torch.arange(num_rows), 5: torch.tensor([99])}, fraction, seed=0)
    assert (len(held), len(train[0]), train[5].tolist()) == (num_validation, num_rows - num_validation, [99])


def test_every_client_gives_its_share_and_no_row_is_in_both_sets():
    raw, without = digits()
    _, data = digits(evaluate_on="validation")
    assert isinstance(data.test.inputs, RowsOf)
    held = data.test.inputs.rows
    for client, rows in without.partition.items():
        client_rows, validation = data.partition[client], held[torch.isin(held, rows)]
        # The division is that of the real run.
        assert torch.equal(torch.cat([client_rows, validation]).sort().values, rows)
        assert len(validation) == int(0.2 * len(rows) + 0.5)
    assert torch.equal(data.test.targets.values, raw.train.targets.values[held])


def test_the_view_shares_the_training_images():
    _, data = digits(evaluate_on="validation")
    assert data.test.inputs.inputs is data.train.inputs
    rows = data.test.inputs.rows[[1, 0]]
    view, fetched = data.test.inputs.fetch(torch.tensor([1, 0])), data.train.inputs.fetch(rows)
    assert torch.equal(view["pixel_values"], fetched["pixel_values"])


def test_a_draw_depends_on_seed_and_client_alone():
    rows = torch.arange(20)
    alone, beside = hold_back({3: rows}, 0.2, seed=1), hold_back({2: rows + 20, 3: rows}, 0.2, seed=1)
    assert torch.equal(alone[0][3], beside[0][3])
    assert not torch.equal(alone[1], hold_back({3: rows}, 0.2, seed=2)[1])


def test_clients_too_small_to_give_anything_up_are_refused():
    with pytest.raises(
        DataError,
        match=r"`data.validation_fraction` is 0.1, which gives no validation rows: the largest client has 4 rows",
    ):
        hold_back({0: torch.arange(4)}, 0.1, seed=0)


def test_test_labels_do_not_reach_a_run_that_is_measured_on_validation_rows(tmp_path, monkeypatch):
    def accuracy(name: str) -> float:
        path = write_small(tmp_path)
        return Experiment.from_toml(path, ["data.evaluate_on=validation", "strategy.num_rounds=1"]).run(
            tmp_path / name
        ).measures["accuracy"]  # fmt: skip

    from fedelta.assembly import site

    first = accuracy("first")
    original = site.read

    def permuted(source: DataSource, **others: object):
        raw = original(source, **others)
        raw.test.targets.values[:] = raw.test.targets.values.flip(0)
        return raw

    monkeypatch.setattr(site, "read", permuted)
    assert accuracy("second") == first


def test_an_unknown_place_to_evaluate_on_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`data\.evaluate_on` is 'train', expected: 'test' or 'validation'"):
        load_config(write_small(tmp_path), ["data.evaluate_on=train"])
