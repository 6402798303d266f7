from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.builders import kept, tiny_data
from tests.small import CONVOLUTIONAL, write_small
from torch import Tensor, tensor

from fedelta.data.batches import Examples, FederatedData
from fedelta.errors import InputError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.inference.predictions import table_of
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.details import Answered
from fedelta.tasks.labels import Labels

LOGITS = tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 3.0]])
LABELS = tensor([1, 1, 1])


def data(names: Mapping[int, str | int] | None = None, **of_test: Tensor) -> FederatedData:
    test = Examples(tiny_data(num_rows=3).inputs, Labels(LABELS), **of_test)
    rows = {0: tensor([0]), 1: tensor([1]), 2: tensor([2])}
    return FederatedData(test, test, ("-cat", "dog"), rows, names=names or {})


def written(path: Path, of: FederatedData, task: Task = Classification()) -> list[dict[str, str]]:  # noqa: B008
    with table_of(path, of, task) as write:
        write(Answered(tensor([0, 1]), LOGITS[:2], LABELS[:2]))
        write(Answered(tensor([2]), LOGITS[2:], LABELS[2:]))
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_a_line_has_the_row_what_is_true_what_is_answered_and_probabilities(tmp_path):
    rows = written(tmp_path / "p.csv", data())
    assert list(rows[0]) == ["row", "label", "predicted", "probability of -cat", "probability of dog"]
    assert [row["row"] for row in rows] == ["0", "1", "2"]
    # 1 / (1 + e^-1) and 1 / (1 + e^2); a text that looks like a formula is none any more.
    assert (rows[1]["label"], rows[1]["predicted"]) == ("dog", "'-cat")
    assert float(rows[1]["probability of -cat"]) == pytest.approx(0.7310586)
    assert float(rows[0]["probability of -cat"]) == pytest.approx(0.1192029)


def test_rows_have_the_numbers_of_the_data_and_the_names_of_their_clients(tmp_path):
    of_test = {"numbers": tensor([7, 3, 12]), "clients": tensor([2, -1, 0])}
    rows = written(tmp_path / "a.csv", data({0: "ann", 1: "bob", 2: "@cy"}, **of_test))
    assert [(row["row"], row["client"]) for row in rows] == [("7", "'@cy"), ("3", ""), ("12", "ann")]
    rows = written(tmp_path / "b.csv", data(**of_test))
    assert [row["client"] for row in rows] == ["2", "", "0"]


def test_a_file_that_exists_is_kept(tmp_path):
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(InputError, match=r"p.csv' already exists\.\nhint: use another name"):
        written(tmp_path / "p.csv", data())
    assert (tmp_path / "p.csv").read_text() == "mine"


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent/p.csv' cannot be written: No such file or directory"):
        written(tmp_path / "absent/p.csv", data())


def test_what_fails_half_way_leaves_nothing_behind(tmp_path):
    class Broken(Classification):
        def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
            if len(outputs) == 1:
                raise KeyError("lost")
            return super().records(outputs, targets, class_names)

    with pytest.raises(KeyError, match="lost"):
        written(tmp_path / "p.csv", data(), Broken())
    assert list(tmp_path.iterdir()) == []


def test_the_lines_are_those_of_the_evaluated_set_and_agree_with_the_measures(tmp_path):
    result = Experiment.from_toml(write_small(tmp_path), ["data.evaluate_on=validation"]).run(tmp_path / "run")
    observed = evaluate_adapter(result.path, predictions=tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    test = result.assembly.data.test
    assert [row["row"] for row in rows] == [str(number) for number in test.numbers.tolist()]
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == observed.measures["accuracy"]
    # Every client gave up some of its own rows.
    for client, values in observed.by_client.items():
        own = [row for row in rows if row["client"] == str(client)]
        assert len(own) == values["num_examples"] == int((test.clients == client).sum())
        assert sum(row["label"] == row["predicted"] for row in own) / len(own) == values["accuracy"]
    assert set(observed.by_client) == set(test.clients.tolist())


def test_clients_that_keep_norms_have_no_answers_in_common(tmp_path):
    path = write_small(tmp_path, text=CONVOLUTIONAL)
    result = Experiment.from_toml(path, ["model.batch_norm=local", "strategy.num_rounds=1"]).run(tmp_path / "run")
    with pytest.raises(InputError, match="there is no one model whose answers could be written"):
        evaluate_adapter(result.path, predictions=tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
    observed = evaluate_adapter(result.path)
    assert observed.measures == result.measures
    # The counts of all models together, each on the whole test set.
    assert observed.confusion.num_examples == 60 * len(kept(result.assembly.site))
