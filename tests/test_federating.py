"""Model and data as objects: the same run as from a file, in every form, and what goes on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tests.cards import executed
from tests.federated import CLIENTS, TEST, cnn, federated, rows
from tests.small import stop_after, write_small
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

import fedelta
from fedelta.errors import AdapterError, CheckpointError, ConfigError, DataError, InputError, ModelError

BASE = 4 * (1 * 4 * 9 + 4 + 4 * 16 * 3 + 3)  # bytes of `cnn`: a convolution of 4 channels, 3 outputs


def bits(result: fedelta.Result) -> tuple[list[Any], dict[str, list[Any]]]:
    """What was measured and sent, and what was tuned, by the end of its name."""
    records = [json.loads(line) for line in (result.path / "rounds.jsonl").read_text().splitlines()]
    return [record["measures"] for record in records], {name: value.tolist() for name, value in result.params.items()}


@pytest.fixture(scope="module")
def result(tmp_path_factory, pages):
    with pages():
        return federated(tmp_path_factory.mktemp("federate") / "run", metrics=metrics)


def metrics(outputs: Tensor, labels: Tensor) -> Mapping[str, float]:
    return {"hits": float((outputs.argmax(1) == labels).sum())}


class Rows(Dataset[Any]):
    """A data set that makes its rows when they are asked for."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.inputs[row], int(self.labels[row])


FORMS = {
    "arrays": lambda inputs, labels: (inputs.numpy().astype(np.float64), labels.numpy()),
    "a dictionary": lambda inputs, labels: {"input": inputs, "labels": labels},
    "a tensor data set": TensorDataset,
    "a data set": Rows,
    "several data sets": lambda inputs, labels: ConcatDataset([
        Rows(inputs[:5], labels[:5]), Rows(inputs[5:], labels[5:])
    ]),
    "a Hugging Face data set": lambda inputs, labels: datasets.Dataset.from_dict({
        "input": inputs.tolist(), "label": labels.tolist(), "unused": labels.tolist(),
    }),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_bits(form: str, result, tmp_path):
    clients = {name: FORMS[form](*pair) for name, pair in CLIENTS.items()}
    assert bits(federated(tmp_path / "run", clients=clients, test=FORMS[form](*TEST))) == bits(result)


def test_rows_that_do_not_fit_into_memory_give_the_same_bits(result, tmp_path):
    config = fedelta.Config(data=fedelta.DataSource(source="python:data", max_memory_mib=0))
    clients = {name: Rows(*pair) for name, pair in CLIENTS.items()}
    assert bits(federated(tmp_path / "run", clients=clients, test=Rows(*TEST), config=config)) == bits(result)


def test_one_data_set_is_divided_by_a_column_of_it(result, tmp_path):
    inputs, labels = (torch.cat(parts) for parts in zip(*CLIENTS.values(), strict=True))
    clients = {"input": inputs, "labels": labels, "site": torch.arange(3).repeat_interleave(12)}
    config = fedelta.Config(data=fedelta.DataSource(source="python:data", client_column="site"))
    test = {"input": TEST[0], "labels": TEST[1], "site": TEST[1]}
    strategy = fedelta.FedAvg(num_rounds=2, clients_per_round=3)
    run = federated(tmp_path / "run", clients=clients, test=test, config=config, strategy=strategy)
    # All clients take part, in the same order.
    assert bits(run) == bits(result)
    assert run.assembly.clients.names == {0: 0, 1: 1, 2: 2}


def test_one_data_set_is_divided_by_a_partitioner(tmp_path):
    inputs, labels = (torch.cat(parts) for parts in zip(*CLIENTS.values(), strict=True))
    run = federated(tmp_path / "run", clients=(inputs, labels), partition=fedelta.Iid(num_clients=4))
    assert [len(rows) for rows in run.assembly.data.partition.values()] == [9] * 4


def test_the_run_from_hugging_face_objects_is_the_run_from_the_file(tmp_path):
    images = [
        (torch.rand(16, 16, generator=torch.Generator().manual_seed(row)) * 255).byte().tolist() for row in range(30)
    ]
    table = {
        "image": images,
        "label": [row % 3 for row in range(30)],
        "site": [name for name in ("ann", "george", "mary") for _ in range(10)],
    }
    features = datasets.Features({
        "image": datasets.Array2D((16, 16), "uint8"), "label": datasets.ClassLabel(names=["x", "y", "z"]),
        "site": datasets.Value("string"),
    })  # fmt: skip
    whole = datasets.Dataset.from_dict(table, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(9))}).save_to_disk(str(tmp_path / "data"))
    text = Path(write_small(tmp_path)).read_text().replace('"digits"', f'"{tmp_path}/data"\nclient_column = "site"')
    head, tail = text.split("[partition]")
    file = tmp_path / "natural.toml"
    file.write_text(f'{head}[partition]\nname = "natural"\n[strategy]{tail.split("[strategy]")[1]}')
    from_file = fedelta.Experiment.from_toml(file).run(tmp_path / "file")
    clients = {name: whole.filter(lambda row, name=name: row["site"] == name) for name in ("ann", "george", "mary")}
    test = whole.select(range(9))
    experiment = fedelta.Experiment(
        fedelta.load_config(file), fedelta.Objects(from_file.assembly.config.model, clients, test)
    )
    from_objects = experiment.run(tmp_path / "objects")
    assert bits(from_objects) == bits(from_file)
    for name in ("ledger.jsonl", "adapter/adapter_model.safetensors", "partition.json", "confusion.json"):
        assert (from_objects.path / name).read_bytes() == (from_file.path / name).read_bytes()


def test_accounting_is_of_the_model_that_runs(result):
    opening = json.loads((result.path / "ledger.jsonl").read_text().splitlines()[0])
    assert opening["payload_bytes"] == result.ledger.backbone_bytes == BASE
    # A pair of rank 2 for the convolution: A of 2 x 1 x 3 x 3, B of 4 x 2; the head of 64 x 3 and 3.
    assert result.summary["tuned_parameters"] == 2 * 9 + 4 * 2 + 64 * 3 + 3
    assert 'source = "python:Sequential"' in (result.path / "config.toml").read_text()
    card = (result.path / "adapter" / "README.md").read_text()
    assert "bundled" not in card
    assert "base_model:" not in card
    assert "3 classes: 0, 1, 2" in card
    assert "Its base model, `Sequential`, was given as an object" in card
    assert 'from_adapter("path/of/this/directory", model)' in card


def test_the_code_in_the_card_answers_for_a_row_of_a_model_that_is_given_again(result, tmp_path):
    ((said, _),) = executed(result.path / "adapter", tmp_path, model=cnn(), row=TEST[0][0])
    assert "label=" in said


def test_clients_keep_their_names_and_the_page_is_written(result):
    assert result.assembly.clients.names == {0: "ann", 1: "george", 2: "mary"}
    assert "python:Sequential" in result.page.read_text()
    assert result.summary["metrics"] == {"hits": 12 * result.measures["accuracy"]}


def test_texts_for_people_are_short(result):
    experiment = fedelta.Experiment.from_run(result.path, fedelta.Objects(cnn(), CLIENTS, TEST))
    texts = [repr(value) for value in (result, result.assembly, experiment, result.predictor())]
    assert max(map(len, texts)) < 200
    assert "3 clients" in texts[2]


def test_the_callers_module_stays_as_it_is(tmp_path):
    module = cnn()
    federated(tmp_path / "run", module, tuning="full")
    assert all(torch.equal(value, cnn().state_dict()[name]) for name, value in module.state_dict().items())


def test_clients_in_lanes_train_as_each_does_alone(tmp_path):
    runs = [
        federated(tmp_path / f"{lanes}", config=fedelta.Config(runtime=fedelta.RuntimeSettings(lanes=lanes)))
        for lanes in (1, 3)
    ]
    assert [run.assembly.engine.lanes.num for run in runs] == [1, 3]
    for name, value in runs[0].params.items():
        torch.testing.assert_close(runs[1].params[name], value, rtol=1e-4, atol=1e-6)


class Mixing(nn.Module):
    """Subtracts the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = cnn()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits in a dictionary."""
        return {"logits": self.layers(pictures - pictures.mean(0))}


def test_a_module_that_mixes_rows_has_one_lane_and_a_note(tmp_path, caplog):
    config = fedelta.Config(runtime=fedelta.RuntimeSettings(lanes=3))
    run = federated(tmp_path / "run", Mixing(), config=config)
    assert run.assembly.engine.lanes.num == 1
    assert "would mix them" in caplog.text
    assert run.assembly.backbone.anatomy.head == ("layers.3",)


class Two(nn.Module):
    """Reads a dictionary as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits."""
        return self.head(self.left(batch["a"].flatten(1)).tanh() + self.left(batch["b"].flatten(1)).tanh())


def test_a_module_may_read_a_dictionary_as_a_whole(tmp_path):
    def pair(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"a": inputs, "b": inputs.square(), "labels": labels}

    clients = {name: pair(*of_client) for name, of_client in CLIENTS.items()}
    run = federated(tmp_path / "run", Two(), clients, pair(*TEST), tuning=fedelta.Lora(target_modules=("left",)))
    assert sorted(run.params) == ["head.bias", "head.weight", "left.lora_A", "left.lora_B"]
    answers = run.predictor().predict([{"a": TEST[0][0], "b": TEST[0][0].square()}])
    assert answers[0].label in "012"


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean_cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def test_a_loss_of_ones_own_trains_as_the_task_with_that_loss(result, tmp_path):
    own = federated(tmp_path / "own", loss=cross_entropy)
    assert bits(own)[1] == bits(result)[1]
    assert own.measures["test_loss"] == pytest.approx(result.measures["loss_nats"])
    assert own.assembly.engine.lanes.num == result.assembly.engine.lanes.num > 1
    logits = own.module()(TEST[0])
    assert functional.cross_entropy(logits, TEST[1]).item() == pytest.approx(own.measures["test_loss"], rel=1e-5)


def test_the_mean_of_a_loss_of_ones_own_trains_in_one_lane(result, tmp_path):
    mean = federated(tmp_path / "mean", loss=mean_cross_entropy)
    assert mean.assembly.engine.lanes.num == 1
    for name, value in result.params.items():
        torch.testing.assert_close(mean.params[name], value, rtol=1e-4, atol=1e-6)


def test_a_model_with_a_loss_of_ones_own_needs_no_head_and_predicts_by_its_module(tmp_path):
    autoencoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 16))

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return (model(batch[0]) - batch[0].flatten(1)).square().mean(1)

    clients = {name: TensorDataset(inputs) for name, (inputs, _) in CLIENTS.items()}
    tuning, slow = fedelta.Lora(target_modules="all-linear", r=2), fedelta.ClientSettings(lr=0.01)
    run = federated(
        tmp_path / "run", autoencoder, clients, TensorDataset(TEST[0]), loss=loss, tuning=tuning, head=(), client=slow
    )
    assert sorted(run.params) == ["1.lora_A", "1.lora_B", "3.lora_A", "3.lora_B"]
    first, last = (json.loads(line)["measures"] for line in (run.path / "rounds.jsonl").read_text().splitlines())
    assert last["test_loss"] < first["test_loss"]
    with pytest.raises(InputError, match="call the tuned module"):
        run.predictor().predict([TEST[0][0]])
    tuned = fedelta.Predictor.open(run.path, model=autoencoder).backbone.module
    torch.testing.assert_close(tuned(TEST[0]), run.module()(TEST[0]))


def test_a_loss_that_gives_no_loss_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"`loss` returned a tensor \(2, 3\) for 2 rows, expected a tensor \(2,\)"):
        federated(tmp_path / "run", loss=lambda model, batch: model(batch[0]))
    assert not (tmp_path / "run").exists()


def test_methods_are_given_by_name_or_as_objects(tmp_path):
    run = federated(
        tmp_path / "run", tuning="bias+head", strategy="fedadam", codec=fedelta.Cast(name="float16"), seed=4
    )
    config = run.assembly.config
    assert (config.tuning.name, config.strategy.name, config.seed) == ("combined", "fedadam", 4)
    assert config.codec == fedelta.Channel(down=fedelta.Cast(name="float16"), up=fedelta.Cast(name="float16"))
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        federated(tmp_path / "no", tuning="lore")
    with pytest.raises(ConfigError, match="`strategy`"):
        federated(tmp_path / "no", strategy=3)
    with pytest.raises(ConfigError, match="clients_per_round"):
        federated(tmp_path / "no", strategy=fedelta.FedAvg(clients_per_round=4))
    assert not (tmp_path / "no").exists()


def test_a_killed_run_goes_on_with_the_same_objects_and_the_same_bits(result, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        federated(tmp_path / "run", on_round=stop_after(1))
    with pytest.raises(CheckpointError, match="training examples"):
        federated(tmp_path / "run", clients=CLIENTS | {"ann": rows(7)}, resume=True)
    with pytest.raises(CheckpointError, match="base weights"):
        federated(tmp_path / "run", cnn(1), resume=True)
    with pytest.raises(CheckpointError, match="lr"):
        federated(tmp_path / "run", client=fedelta.ClientSettings(lr=0.2), resume=True)
    with pytest.raises(InputError, match="given as objects in Python"):
        fedelta.Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    assert bits(federated(tmp_path / "run", resume=True)) == bits(result)


def test_a_finished_run_is_evaluated_with_the_same_objects(result):
    objects = fedelta.Objects(cnn(), CLIENTS, TEST)
    details = fedelta.Experiment.from_run(result.path, objects).evaluate(result.path)
    assert details.measures == result.measures
    others = fedelta.Objects(cnn(), CLIENTS, rows(8))
    with pytest.raises(CheckpointError, match="test examples"):
        fedelta.Experiment.from_run(result.path, others).evaluate(result.path)
    with pytest.raises(InputError, match="given as objects"):
        fedelta.Experiment.from_run(result.path).evaluate(result.path)


def test_a_predictor_is_opened_with_the_same_module(result):
    images = [*TEST[0][:4]]
    expected = [answer.label for answer in result.predictor().predict(images)]
    opened = fedelta.Predictor.open(result.path, model=cnn(), transform=lambda row: TEST[0][row])
    assert [answer.label for answer in opened.predict(range(4))] == expected
    with pytest.raises(AdapterError, match="was given as an object in Python"):
        fedelta.Predictor.open(result.path)
    with pytest.raises(AdapterError, match="is not the base model"):
        fedelta.Predictor.open(result.path, model=cnn(1))


def test_measures_by_client_come_from_test_data_by_client(tmp_path):
    tests = {"mary": rows(8, 6), "ann": rows(7, 3), "nobody": rows(6, 3)}
    run = federated(tmp_path / "run", test=tests)
    by_client = run.summary["by_client"]
    assert {entry["client_name"]: entry["num_examples"] for entry in by_client.values()} == {"ann": 3, "mary": 6}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, ModelError, "`model` is int"),
        ({"model": nn.Linear(3, 2)}, ModelError, "Linear fails on"),
        ({"clients": {}}, DataError, "empty dictionary"),
        ({"clients": rows(1)}, DataError, "nothing says which row belongs to which client"),
        ({"clients": {"ann": [1, 2]}}, DataError, "the data of client 'ann' are list"),
        ({"clients": {"ann": (TEST[0], TEST[1][:3])}}, DataError, "different lengths"),
        ({"clients": {"ann": {"labels": TEST[1]}}, "test": {"labels": TEST[1]}}, DataError, "hold only labels"),
        ({"clients": {"ann": {"x": TEST[0], "y": TEST[1]}}}, DataError, "the test data have the columns '0', '1'"),
        ({"clients": {"ann": TensorDataset(TEST[0])}, "test": TensorDataset(TEST[0])}, DataError, "no column of label"),
        ({"clients": CLIENTS | {"ann": (TEST[0], TEST[1] + 5)}}, DataError, "outside the 3 classes"),
        ({"clients": CLIENTS | {"ann": (TEST[0], TEST[1].float() / 2)}}, DataError, "expected integers"),
        ({"head": ["last"]}, ModelError, "has no 'last'"),
        ({"metrics": lambda outputs, labels: 3}, InputError, "the function of metrics returned 3"),
        ({"class_names": ["x"]}, InputError, "3 logits a row, but the data have 1 classes|only one class"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(change: dict[str, Any], error: type[InputError], message: str, tmp_path):
    with pytest.raises(error, match=message):
        federated(tmp_path / "run", **change)


def test_a_regression_has_float_labels(tmp_path):
    clients = {name: (inputs, inputs.mean((1, 2, 3))) for name, (inputs, _) in CLIENTS.items()}
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    run = federated(
        tmp_path / "run", model, clients, (TEST[0], TEST[0].mean((1, 2, 3))), task="regression", tuning="full"
    )
    assert "rmse" in run.measures


def test_a_report_takes_texts(result, tmp_path):
    fedelta.write_report(str(result.path), str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").is_file()
    with pytest.raises(InputError, match="at least one run"):
        fedelta.write_report([], tmp_path / "page.html")
