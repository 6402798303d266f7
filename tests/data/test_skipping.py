"""`data.on_error = "skip"`: images and recordings that cannot be read are left out, all else is unchanged."""

import csv
import json
import shutil
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedelta import Config, DataSource, Experiment
from fedelta.cli import app
from fedelta.data.label_skew import Dirichlet
from fedelta.data.sources import read
from fedelta.errors import DataError
from fedelta.models.source import ModelSource
from fedelta.report.writing import write_report
from fedelta.strategies.fedavg import FedAvg
from fedelta.tuning.head import Head

SIDE = 16


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def tone(path: Path, hertz: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (8000 * np.sin(np.arange(8000) * 2 * np.pi * hertz / 8000)).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples.tolist()))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def folder(root: Path, make=picture, suffix=".png", num: int = 12) -> Path:
    """Two sites with two classes each, and `num` files in each class."""
    for number, (site, label) in enumerate((s, c) for s in ("north", "south") for c in ("benign", "malignant")):
        for index in range(num):
            make(root / site / label / f"{index:02}{suffix}", 100 * (number + 1) + index)
    return root


def break_some(root: Path, suffix: str = ".png") -> list[Path]:
    """Breaks three files of `root`, each in another way."""
    broken = [root / "north/benign" / f"03{suffix}", root / "north/malignant" / f"00{suffix}",
              root / "south/benign" / f"11{suffix}"]  # fmt: skip
    cut(broken[0])
    broken[1].write_bytes(b"")
    broken[2].write_text("Thank you for your order.")
    return broken


def source(root: Path, **settings: object) -> DataSource:
    return DataSource(source=str(root), folders="client/label", **settings)


def experiment(root: Path, **settings: object) -> Experiment:
    return Experiment(
        Config(
            model=ModelSource(source="bundled:vit-micro"),
            data=source(root, **settings),
            partition=Dirichlet(num_clients=3, alpha=1.0),
            tuning=Head(),
            strategy=FedAvg(clients_per_round=2, num_rounds=1),
        )
    )


@pytest.mark.parametrize(("make", "suffix"), [(picture, ".png"), (tone, ".wav")])
def test_broken_files_are_left_out_and_named(tmp_path, make, suffix):
    root = folder(tmp_path / "data", make, suffix)
    broken = break_some(root, suffix)
    raw = read(source(root, on_error="skip"), seed=0)
    assert [Path(each.file) for each in raw.skipped] == broken
    assert [each.row for each in raw.skipped] == [3, 12, 35]
    assert all(each.reason for each in raw.skipped)
    assert len(raw.train) + len(raw.test) == 48 - 3
    assert not {3, 12, 35} & {*raw.train.numbers.tolist(), *raw.test.numbers.tolist()}


def test_a_run_is_that_of_the_data_without_the_broken_files(tmp_path):
    root = folder(tmp_path / "data")
    clean = tmp_path / "clean"
    shutil.copytree(root, clean)
    for path in break_some(root):
        (clean / path.relative_to(root)).unlink()
    skipping = experiment(root, on_error="skip").run(tmp_path / "skipping")
    expected = experiment(clean).run(tmp_path / "expected")
    assert skipping.params.keys() == expected.params.keys()
    assert all(torch.equal(skipping.params[name], expected.params[name]) for name in expected.params)

    summary = json.loads((tmp_path / "skipping/summary.json").read_text())
    assert summary["num_skipped"] == 3
    assert "num_skipped" not in json.loads((tmp_path / "expected/summary.json").read_text())
    with (tmp_path / "skipping/skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["training set"] * 3
    assert [Path(row["file"]).name for row in rows] == ["03.png", "00.png", "11.png"]
    assert "truncated" in rows[0]["reason"]
    assert not (tmp_path / "expected/skipped.csv").exists()
    write_report([tmp_path / "skipping"], tmp_path / "page.html")
    assert "3 examples could not be read and were left out" in (tmp_path / "page.html").read_text()


def test_by_default_they_are_an_error_whose_hint_names_the_setting(tmp_path):
    root = folder(tmp_path / "data")
    break_some(root)
    with pytest.raises(DataError, match=r"(?s)problems.*03.png.*--on-error skip"):
        experiment(root).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lost", ["client 'north'", "class 'benign'"])
def test_a_client_or_class_that_loses_all_its_files_is_an_error(tmp_path, lost):
    root = folder(tmp_path / "data")
    for path in root.glob("north/*/*" if "north" in lost else "*/benign/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=f"nothing is left of {lost}"):
        read(source(root, on_error="skip"), seed=0)


def test_a_test_set_that_loses_all_its_files_is_an_error(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "test"):
        for label in ("benign", "malignant"):
            for index in range(3):
                picture(root / split / label / f"{index}.png", index)
    (root / "test/benign/0.png").write_bytes(b"")
    assert len(read(DataSource(source=str(root), on_error="skip"), seed=0).test) == 5
    for path in root.glob("test/*/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="the test set:\n  - none of its 6 images can be read"):
        read(DataSource(source=str(root), on_error="skip"), seed=0)


def test_deep_images_are_not_held_for_broken(tmp_path):
    root = folder(tmp_path / "data")
    deep = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
    Image.fromarray(deep).save(root / "north/benign/00.png")
    assert not read(source(root, on_error="skip"), seed=0).skipped


def test_texts_cannot_be_skipped(tmp_path):
    table = tmp_path / "texts.csv"
    table.write_text("text,label\nvery good,yes\nvery bad,no\nnot good,no\n")
    with pytest.raises(DataError, match="holds texts"):
        read(DataSource(source=str(table), on_error="skip"), seed=0)


def test_the_commands_take_a_flag(tmp_path):
    root = folder(tmp_path / "data")
    broken = break_some(root)
    config = tmp_path / "run.toml"
    config.write_text(
        f"""
        model.source = "bundled:vit-micro"
        data = {{ source = "{root}", folders = "client/label" }}
        partition = {{ name = "dirichlet", num_clients = 3, alpha = 1.0 }}
        tuning.name = "head"
        strategy = {{ name = "fedavg", clients_per_round = 2, num_rounds = 1 }}
        """
    )
    checked = CliRunner().invoke(app, ["check", str(config), "--on-error", "skip"])
    assert checked.exit_code == 0
    assert str(broken[0]) in checked.output.replace("\n", "")
    assert "of each set were read" not in checked.output + checked.stderr
    ran = CliRunner().invoke(app, ["run", str(config), "--on-error", "skip", "--out", str(tmp_path / "run"), "--quiet"])
    assert ran.exit_code == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["num_skipped"] == 3


def test_a_resumed_run_leaves_out_the_same_files(tmp_path):
    root = folder(tmp_path / "data")
    break_some(root)
    whole = experiment(root, on_error="skip").run(tmp_path / "whole")

    def interrupt(outcome: object, ledger: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment(root, on_error="skip").run(tmp_path / "resumed", on_round=interrupt)
    resumed = Experiment.from_run(tmp_path / "resumed").resume(tmp_path / "resumed")
    assert (resumed.path / "skipped.csv").read_bytes() == (whole.path / "skipped.csv").read_bytes()
    assert (resumed.path / "rounds.jsonl").read_bytes() == (whole.path / "rounds.jsonl").read_bytes()
