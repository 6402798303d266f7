"""Frames, lists of rows, columns in lists, texts for labels: what people have, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.federated import CLIENTS, TEST, cnn, federated
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fedelta
from fedelta.errors import DataError, InputError, ModelError


def as_rows(inputs: Tensor, labels: Tensor) -> list[Any]:
    return list(zip(inputs, labels, strict=True))


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a list of rows": as_rows,
    "a list of dictionaries": lambda inputs, labels: [
        {"pixels": x, "label": int(y)} for x, y in as_rows(inputs, labels)
    ],
    "labels in a list": lambda inputs, labels: (inputs, labels.tolist()),
    "labels in a series": lambda inputs, labels: (inputs.numpy(), pd.Series(labels.numpy())),
    "a dictionary with another name than the argument": lambda inputs, labels: {"pixels": inputs, "label": labels},
    "texts for labels": lambda inputs, labels: (inputs, [["no", "yes", "maybe"][label] for label in labels]),
    "rows with texts for labels": lambda inputs, labels: [
        (x, ["no", "yes", "maybe"][y]) for x, y in as_rows(inputs, labels)
    ],
    "read-only arrays": lambda inputs, labels: (np.broadcast_to(inputs.numpy(), inputs.shape), labels.numpy()),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> fedelta.Result:
    return federated(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_the_same_data_give_the_same_params(form: str, plain, tmp_path):
    clients = {name: FORMS[form](*pair) for name, pair in CLIENTS.items()}
    run = federated(tmp_path / "run", clients=clients, test=FORMS[form](*TEST), class_names=("no", "yes", "maybe"))
    assert run.assembly.class_names == ("no", "yes", "maybe")
    assert {name: value.tolist() for name, value in run.params.items()} == {
        name: value.tolist() for name, value in plain.params.items()
    }


def test_texts_for_labels_are_classes_in_the_order_of_the_alphabet(tmp_path):
    def words(inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        return {"x": inputs, "label": [["no", "yes", "maybe"][label] for label in labels]}

    clients = {name: words(*pair) for name, pair in CLIENTS.items()}
    run = federated(tmp_path / "run", clients=clients, test=words(*TEST))
    assert run.assembly.class_names == ("maybe", "no", "yes")
    with pytest.raises(DataError, match="labels 'yes' are none of the classes 'maybe', 'no', 'perhaps'"):
        federated(tmp_path / "no", clients=clients, test=words(*TEST), class_names=("maybe", "no", "perhaps"))


def frame(inputs: Tensor, labels: Tensor) -> pd.DataFrame:
    table = pd.DataFrame(inputs.flatten(1).numpy(), columns=[f"f{number}" for number in range(16)])
    return table.assign(label=labels.numpy())


def test_the_columns_of_a_frame_are_the_inputs_of_a_module_side_by_side(tmp_path):
    frames = {name: frame(*pair) for name, pair in CLIENTS.items()}
    tensors = {name: (inputs.flatten(1), labels) for name, (inputs, labels) in CLIENTS.items()}
    module, test = nn.Linear(16, 3), (TEST[0].flatten(1), TEST[1])
    runs = [
        federated(tmp_path / "frames", module, frames, frame(*TEST), tuning="full"),
        federated(tmp_path / "tensors", module, tensors, test, tuning="full"),
    ]
    assert runs[0].measures == runs[1].measures
    whole = pd.concat([table.assign(site=name) for name, table in frames.items()])
    config = fedelta.Config(data=fedelta.DataSource(source="python:data", client_column="site"))
    run = federated(
        tmp_path / "whole", module, whole, frame(*TEST).assign(site="ann"), tuning="full", config=config,
        strategy=fedelta.FedAvg(num_rounds=2, clients_per_round=3),
    )  # fmt: skip
    assert run.measures == runs[0].measures
    assert run.assembly.clients.names == {0: "ann", 1: "george", 2: "mary"}


def test_frames_that_do_not_fit_are_refused(tmp_path):
    table = frame(*TEST)
    for change, message in (
        (table[["f1", "f0", *table.columns[2:]]], "have the columns 'f1', 'f0'"),
        (table.assign(f0="high"), "column 'f0' holds texts in the test data or in the training data"),
        (table.assign(f0=[None, *"abcdefghijk"]), "hold object in column 'f0', expected numbers"),
    ):
        with pytest.raises(DataError, match=message):
            federated(tmp_path / "run", nn.Linear(16, 3), {"ann": table}, change, tuning="full")
    worded = table.assign(city="Oslo")
    with pytest.raises(DataError, match=r"column 'city' holds texts(.|\n)*get_dummies"):
        federated(tmp_path / "run", nn.Linear(17, 3), {"ann": worded}, worded, tuning="full")
    assert not (tmp_path / "run").exists()


def images(seed: int) -> list[tuple[Image.Image, str]]:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return [(Image.fromarray(picture), "xyz"[number % 3]) for number, picture in enumerate(pixels)]


def test_images_and_texts_in_lists_go_through_the_processor_of_the_model(tmp_path):
    def with_names(rows: list[Any]) -> dict[str, Any]:
        return {"image": [picture for picture, _ in rows], "label": [label for _, label in rows]}

    def as_table(rows: list[Any]) -> datasets.Dataset:
        return datasets.Dataset.from_dict(with_names(rows))

    runs = [
        federated(tmp_path / form.__name__, "bundled:vit-micro", {"ann": form(images(1))}, form(images(2)))
        for form in (list, with_names, as_table)
    ]
    assert runs[0].measures == runs[1].measures == runs[2].measures
    assert runs[0].predictor().predict([images(3)[0][0]])[0].label in "xyz"
    with pytest.raises(DataError, match="images need `collate=`"):
        federated(tmp_path / "own", clients={"ann": images(1)}, test=images(2))


class Stream(IterableDataset[Any]):
    """Rows without an order."""

    def __iter__(self) -> Any:
        return iter(as_rows(*TEST))


SPLITS = datasets.DatasetDict({
    split: datasets.Dataset.from_dict({"input": TEST[0].tolist(), "label": TEST[1].tolist()})
    for split in ("train", "test")
})  # fmt: skip


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({"ann": DataLoader(TensorDataset(*TEST))}, "`loader.dataset`"),
        ({"ann": Stream()}, r"give `list\(...\)` of its rows"),
        ({"ann": (row for row in as_rows(*TEST))}, r"give `list\(...\)` of its rows"),
        ([CLIENTS["ann"], CLIENTS["mary"]], r"list of 2 data sets(.|\n)*dict\(enumerate"),
        (SPLITS, r"splits 'test', 'train' of one data set(.|\n)*partition="),
        ({"ann": [(TEST[0][0], 1), (TEST[0][1],)]}, "make no batch"),
        ({"ann": [(TEST[0][0][..., :3], 1), (TEST[0][1], 1)]}, "make no batch"),
        ({"ann": (TEST[0].byte(), TEST[1])}, r"x.float\(\) / 255"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_way_out(clients: Any, message: str, tmp_path):
    with pytest.raises(InputError, match=message):
        federated(tmp_path / "run", clients=clients)
    assert not (tmp_path / "run").exists()


def test_rows_that_a_collator_fails_on_are_named(tmp_path):
    def collate(batch: list[Any]) -> tuple[Tensor, Tensor]:
        if any(label == 2 for _, label in batch):
            raise KeyError("two")
        inputs, labels = zip(*batch, strict=True)
        return torch.stack(inputs), torch.stack(labels)

    with pytest.raises(DataError, match=r"rows '0', '1', '2' and 9 more make no batch: KeyError: 'two'"):
        federated(tmp_path / "run", clients={"ann": as_rows(*TEST)}, test=as_rows(*TEST), collate=collate)


def test_numbers_of_numpy_name_clients(tmp_path):
    clients = {np.int64(number): pair for number, pair in enumerate(CLIENTS.values())}
    assert federated(tmp_path / "run", clients=clients).assembly.clients.names == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize("change", ["double", "half", "bfloat16"])
def test_a_module_of_another_precision_is_tuned_in_float32_and_stays_as_it_is(change: str, tmp_path):
    module = getattr(cnn(), change)()
    run = federated(tmp_path / "run", module)
    assert {value.dtype for value in run.module().parameters()} == {torch.float32}
    assert torch.float32 not in {value.dtype for value in module.parameters()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, where it imports its compiler
def test_what_wraps_a_module_is_taken_off(plain, tmp_path):
    for number, wrapped in enumerate((nn.DataParallel(cnn()), torch.compile(cnn()))):
        run = federated(tmp_path / f"{number}", wrapped)
        assert run.params.keys() == plain.params.keys()
        assert run.measures == plain.measures
        assert fedelta.Predictor.open(run.path, model=wrapped).predict([TEST[0][0]])[0].label in "012"


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.lock = cnn(), threading.Lock()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_modules_that_cannot_be_copied_or_tuned_are_refused(tmp_path):
    with pytest.raises(ModelError, match="Locked cannot be copied: TypeError"):
        federated(tmp_path / "run", Locked())
    with pytest.raises(ModelError, match="compiled by TorchScript"):
        federated(tmp_path / "run", torch.jit.trace(cnn(), TEST[0]))
    with pytest.raises(InputError, match="`resume=True` needs the run"):
        fedelta.federate(cnn(), CLIENTS, TEST, resume=True)


def test_nothing_of_the_caller_changes(tmp_path):
    module = cnn().train()
    module[0].requires_grad_(requires_grad=False)
    module[3].weight.grad = torch.ones_like(module[3].weight)
    inputs = TEST[0].clone().requires_grad_()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    federated(tmp_path / "run", module, {"ann": (inputs, TEST[1])})
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert all(layer.training for layer in module)
    assert [value.requires_grad for value in module.parameters()] == [False, False, True, True]
    assert module[3].weight.grad is not None
    assert inputs.grad is None


def test_examples_that_make_no_inputs_are_refused(plain):
    predictor = plain.predictor(transform=lambda row: TEST[0][row])
    with pytest.raises(DataError, match="`transform` fails on 99: IndexError"):
        predictor.predict([99])
    predictor = plain.predictor()
    for examples, message in (
        (TEST[0].numpy(), r"`inputs` is one ndarray(.|\n)*`list\(inputs\)`"),
        ([TEST[0][0][:, :3]], "Sequential fails on input"),
        ([Image.new("L", (4, 4))], r"make no batch(.|\n)*`transform=`"),
    ):
        with pytest.raises(InputError, match=message):
            predictor.predict(examples)


def test_the_head_is_that_of_the_run(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.random.fork_rng():
        run = federated(tmp_path / "run", module, tuning="bias", head=["1"])
    assert sorted(run.params) == ["1.bias", "1.weight", "3.bias"]
    opened = fedelta.Predictor.open(run.path, model=module)
    torch.testing.assert_close(opened.module()(TEST[0]), run.module()(TEST[0]))
    assert type(opened.module()[1]) is nn.Linear


def test_representations_are_short(plain):
    config = fedelta.Config(tuning=fedelta.Lora(r=2), seed=3)
    assert repr(config) == "Config(seed=3, tuning=Lora(r=2))"
    assert repr(fedelta.Integers(name="int4")) == "Integers(name='int4')"
    for value in (plain.ledger, plain.assembly.backbone, plain.assembly.data):
        assert len(repr(value)) < 100
    assert "3 clients" in repr(plain.assembly.data)


def test_texts_as_the_inputs_of_a_module_are_refused(tmp_path):
    texts = pd.DataFrame({"text": ["yes", "no", "yes yes"], "label": ["good", "bad", "good"]})
    with pytest.raises(InputError, match="holds texts"):
        federated(Path(tmp_path, "run"), cnn(), {"ann": texts}, texts)
