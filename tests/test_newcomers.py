"""What newcomers get wrong is told at once, in one error that says what was found and what to do."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from tests.federated import CLIENTS, TEST, cnn
from tests.small import write_small
from typer.testing import CliRunner

import fedelta
from fedelta.cli import app
from fedelta.data.columns import NamedColumns
from fedelta.data.dialogues import dialogue_columns
from fedelta.data.glance import shown
from fedelta.data.stored import StoredColumn
from fedelta.errors import ConfigError, DataError, InputError, RunError
from fedelta.models.files import unreadable
from fedelta.models.generation import Sampling
from fedelta.record.rundir import RunDirectory


def told(*words: str) -> str:
    """What a command that is refused says."""
    done = CliRunner().invoke(app, list(words))
    assert isinstance(done.exception, InputError)
    return str(done.exception)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two directories that look like runs, from which commands are given."""
    for name in ("demo", "other"):
        for file in ("config.toml", "ledger.jsonl"):
            (tmp_path / "runs" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "runs" / name / file).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize("command", [("resume",), ("report",), ("personalize",), ("export", "--merged")])
def test_a_missing_run_is_told_with_the_place_and_the_nearest_runs(runs: Path, command: tuple[str, ...]):
    text = told(*command, "runs/dmeo")
    assert f"run directory 'runs/dmeo' does not exist (looked in '{runs}')" in text
    assert "hint: did you mean 'runs/demo'?" in text


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("runs", "it holds runs: 'runs/"),
        ("runs/demo/config.toml", "give the directory of the run: 'runs/demo'"),
        ("mine.toml", "a configuration becomes a run by `fedelta run mine.toml`"),
        ("elsewhere", "Runs near here are 'runs/"),
    ],
)
def test_what_is_no_run_is_told_apart(runs: Path, path: str, hint: str):
    write_small(runs.parent, "mine.toml")
    with pytest.raises(RunError) as caught:
        RunDirectory.open(Path(path))
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("path", "hint"),
    [("demoo", "did you mean 'demo'"), ("mime.toml", "did you mean 'mine.toml'?"), ("zzzzz", "recipes that come with")],
)
def test_a_missing_configuration_is_told_with_the_nearest(runs: Path, path: str, hint: str):
    write_small(runs.parent, "mine.toml")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        fedelta.load_config(path)
    assert hint in (caught.value.hint or "")


def test_python_m_fedelta_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["fedelta", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("fedelta", run_name="__main__")
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out == f"fedelta {fedelta.__version__}\n"


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do():
    error = unreadable("google/vit", OSError("We couldn't connect to 'https://huggingface.co' to load the files."))
    assert (
        "is no directory here, not in the hub's cache on this machine, and the hub cannot be reached" in error.message
    )
    assert "`hf download google/vit --local-dir FOLDER`" in (error.hint or "")
    assert "cannot be reached" not in unreadable("google/vit", OSError("the file is damaged")).message


def federate(folder: Path, **other: Any) -> fedelta.Result:
    arguments = {"model": cnn(), "clients": CLIENTS, "test": TEST, "tuning": "full", **other}
    return fedelta.federate(**arguments, out=folder / "run")


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "tuning": ({"tuning": fedelta.Lora}, r"`tuning` is the class Lora, expected an object: `Lora\(\)`"),
    "strategy": ({"strategy": fedelta.FedAvg}, r"`strategy` is the class FedAvg, .* `FedAvg\(\)`"),
    "client": ({"client": fedelta.ClientSettings}, r"`client` is the class ClientSettings"),
    "codec": ({"codec": fedelta.Integers}, r"`codec` is the class Integers"),
    "channel": ({"codec": fedelta.Channel}, r"`codec` is the class Channel"),
    "task": ({"task": fedelta.Classification}, r"`task` is the class Classification"),
    "partition": ({"partition": fedelta.Iid, "clients": TEST}, r"`partition` is the class Iid"),
    "config": ({"config": fedelta.Config}, r"`config` is the class Config"),
    "model": ({"model": torch.nn.Linear}, r"`model` is the class Linear, expected a `torch.nn.Module`"),
    "data of a client": ({"clients": {"ann": Rows, "george": Rows}}, r"client 'ann' are the class Rows"),
    "test": ({"test": Rows}, "the test data are the class Rows"),
    "loss": ({"loss": torch.nn.CrossEntropyLoss}, "`loss` is the class CrossEntropyLoss, expected a function"),
    "loss of torch": ({"loss": torch.nn.CrossEntropyLoss()}, "`loss` is CrossEntropyLoss, expected a function"),
    "names": ({"class_names": "abc"}, "`class_names` is the text 'abc', expected a list of texts"),
    "head": ({"head": "fc"}, "`head` is the text 'fc', expected a list of texts"),
    "on_round": ({"on_round": 3}, "`on_round` is int, expected a function"),
    "seed": ({"seed": "3"}, "`seed` is '3', expected: a whole number, without quotes"),
}


@pytest.mark.parametrize(("arguments", "problem"), WRONG.values(), ids=WRONG)
def test_a_class_or_a_text_in_place_of_an_object_is_refused(tmp_path: Path, arguments: dict[str, object], problem: str):
    with pytest.raises(InputError, match=problem):
        federate(tmp_path, **arguments)
    assert not (tmp_path / "run").exists()


def test_an_experiment_refuses_classes_too():
    with pytest.raises(InputError, match="`config` is the class Config"):
        fedelta.Experiment(fedelta.Config)
    with pytest.raises(InputError, match="`objects` is the class Objects"):
        fedelta.Experiment(fedelta.Config(), fedelta.Objects)
    with pytest.raises(ValueError, match=r"an object, not the class: `Lora\(\)`"):
        fedelta.Config(tuning=fedelta.Lora)


def spoiled(value: float) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = TEST
    inputs = inputs.clone()
    inputs[2].view(-1)[1] = value
    return inputs, labels


class Lazy(torch.utils.data.Dataset):
    """Rows of which the third holds NaN, made one by one."""

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        inputs, labels = spoiled(float("nan"))
        return inputs[row], int(labels[row])

    def __len__(self) -> int:
        return len(TEST[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_told_with_their_client_and_row(tmp_path: Path, value: float):
    last = [*CLIENTS][-1]
    with pytest.raises(DataError, match=f"the data of client {last!r}: row 2 .from 0. holds NaN or infinity"):
        federate(tmp_path, clients={**CLIENTS, last: spoiled(value)})
    with pytest.raises(DataError, match=r"the test data: row 2 .from 0. holds NaN or infinity"):
        federate(tmp_path, test=spoiled(value))
    assert not (tmp_path / "run").exists()


def test_rows_that_are_made_at_every_fetch_are_checked_then(tmp_path: Path):
    with pytest.raises(DataError, match=r"the data of client 'ann': row 2 .from 0. holds NaN or infinity"):
        federate(tmp_path, test=Lazy(), clients=dict.fromkeys(CLIENTS, Lazy()))
    arguments = {"clients": CLIENTS, "test": Lazy(), "collate": torch.utils.data.default_collate}
    with pytest.raises(DataError, match=r"row 2 .from 0. holds NaN or infinity in column '0'"):
        federate(tmp_path, **arguments)


def test_a_frame_with_a_missing_number_is_told_with_its_column(tmp_path: Path):
    frame = pd.DataFrame({"age": [30.0, 41.0, None, 25.0], "height": [1.7, 1.8, 1.6, 1.9], "label": [0, 1, 0, 1]})
    with pytest.raises(
        DataError, match=r"the data of client 'a': row 2 .from 0. holds NaN or infinity in column 'age'"
    ):
        federate(tmp_path, model=torch.nn.Linear(2, 2), clients={"a": frame, "b": frame.dropna()}, test=frame.dropna())


def test_a_loss_of_ones_own_may_mask_what_is_missing(tmp_path: Path):
    def masked(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        inputs, labels = batch
        return torch.nn.functional.cross_entropy(model(inputs.nan_to_num()), labels, reduction="none")

    result = federate(tmp_path, test=spoiled(float("nan")), loss=masked, strategy=fedelta.FedAvg(num_rounds=1))
    assert result.measures


def test_a_table_without_the_named_column_names_the_nearest(tmp_path: Path):
    (tmp_path / "data.csv").write_text("text,Category\nbad,0\ngood,1\nfine,1\npoor,0\n")
    source = fedelta.DataSource(source=str(tmp_path / "data.csv"), label_column="category")
    from fedelta.data.sources import read

    with pytest.raises(DataError, match=r"no column 'category' \(`data.label_column`\).*did you mean 'Category'\?"):
        read(source, seed=0)


def test_plain_texts_beside_a_label_are_told_once_not_where_they_are_asked_for(caplog: pytest.LogCaptureFixture):
    rows = datasets.Dataset.from_dict({"text": ["bad", "good"], "label": [0, 1]})
    with caplog.at_level(logging.WARNING):
        assert dialogue_columns(rows, NamedColumns(), origin="the data") == ("text",)
    assert "column 'label' is not used" in caplog.text
    caplog.clear()
    assert dialogue_columns(rows, NamedColumns(inputs={"text": "text"}), origin="the data") == ("text",)
    assert not caplog.text


def test_messages_in_parts_are_shown_as_texts():
    def turn(role: str, text: str) -> dict[str, object]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    dialogue = [turn("user", "How many?"), turn("assistant", "Two.")]
    column = StoredColumn.of(datasets.Dataset.from_dict({"messages": [dialogue]}), "messages", origin="the data")
    (row,) = shown(column, [dialogue], torch.tensor([0]))
    assert (row.example, row.target) == ("'How many?'", "'Two.'")


def test_each_batch_of_prompts_is_drawn_from_another_seed():
    seeds = [Sampling(seed=5).of_batch(number).seed for number in range(3)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3


def test_the_whole_model_of_a_run_of_an_object_is_said_to_be_had_in_python(tmp_path: Path):
    federate(tmp_path, strategy=fedelta.FedAvg(num_rounds=1))
    text = told("export", str(tmp_path / "run"), "--merged")
    assert "`Predictor.open(run, model=model)`, whose `module()` is the whole tuned model" in text


@pytest.mark.parametrize(
    ("override", "here"),
    [
        ("client.learning_rate=0.1", "client.lr"),
        ("strategy.rounds=3", "strategy.num_rounds"),
        ("tuning.rank=3", "tuning.r"),
    ],
)
def test_names_of_other_tools_are_told_with_ours(tmp_path: Path, override: str, here: str):
    with pytest.raises(ConfigError, match=f"is unknown; here it is `{here}`"):
        fedelta.load_config(write_small(tmp_path), [override])


def test_a_misspelt_path_of_data_names_the_nearest(tmp_path: Path):
    (tmp_path / "letters.csv").write_text("text,label\n")
    problem = rf"'{tmp_path}/leters.csv' does not exist .*, did you mean '{tmp_path}/letters.csv'\?"
    with pytest.raises(ConfigError, match=problem):
        fedelta.load_config(write_small(tmp_path), [f"data.source={tmp_path}/leters.csv"])


def test_what_is_no_configuration_is_told_with_what_makes_one(runs: Path):
    (runs.parent / "mine.yaml").write_text("model: x\n")
    for path, hint in (
        ("mine.yaml", "expected a TOML file, such as the recipe `demo`; `fedelta new DATA` writes one"),
        ("runs", "such as `fedelta new runs`"),
        ("runs/demo", "it is a run: `fedelta resume runs/demo` goes on with it"),
    ):
        with pytest.raises(ConfigError) as caught:
            fedelta.load_config(path)
        assert hint in (caught.value.hint or "")
