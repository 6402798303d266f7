"""The command line, in process: what it prints, where, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.small import write_small

from fedelta import cli


@pytest.fixture
def fedelta(monkeypatch, capsys):
    """Runs the command and returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedelta", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_a_run_from_its_configuration_to_report_and_prediction(fedelta, tmp_path):
    run, image = tmp_path / "run", tmp_path / "digit.png"
    code, out, err = fedelta("run", write_small(tmp_path), "--out", run)
    assert code == 0, err
    assert "accuracy" in out
    assert "full fine-tuning would have sent" in out
    assert (run / "report.html").is_file()

    code, out, err = fedelta("report", run, run, "--out", tmp_path / "both.html")
    assert (code, (tmp_path / "both.html").is_file()) == (0, True), err

    Image.new("L", (8, 8), 200).save(image)
    code, out, err = fedelta("predict", run, image)
    name, label, probability = out.strip().split("\t")
    assert (code, name) == (0, str(image)), err
    assert label in "0123456789"
    assert 0.1 <= float(probability) <= 1.0

    code, out, err = fedelta("evaluate", run)
    accuracy = json.loads((run / "summary.json").read_text())["final_accuracy"]
    assert json.loads(out)["accuracy"] == accuracy, err
    assert list(json.loads(out)) == ["accuracy", "evaluation_loss_nats", "macro_f1", "balanced_accuracy"]
    code, out, err = fedelta("evaluate", run, "--predictions", tmp_path / "answers.csv")
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    assert sum(row["label"] == row["predicted"] for row in rows) == round(accuracy * len(rows)), err

    code, out, err = fedelta("resume", run, "--quiet")
    assert (code, out) == (0, ""), err


def test_a_quiet_run_prints_nothing(fedelta, tmp_path):
    code, out, err = fedelta("run", write_small(tmp_path), "--out", tmp_path / "run", "--quiet")
    assert (code, out, err) == (0, "", "")


def test_inspect_counts_without_data_or_weights(fedelta, tmp_path):
    code, out, err = fedelta("inspect", write_small(tmp_path), "--set", "model.num_classes=10", "--json")
    assert code == 0, err
    content = json.loads(out)
    pair, head = 2 * 32 + 32 * 2, 10 * 32 + 10
    assert content["tuned_parameters"] == sum(content["groups"].values()) == 4 * pair + head
    assert content["tensor_bytes"] == 2 * (4 * pair + head)
    assert content["payload_bytes"] - content["tensor_bytes"] < 100


def test_check_names_what_it_found_and_writes_nothing(fedelta, tmp_path):
    config = write_small(tmp_path)
    code, out, err = fedelta("check", config)
    assert code == 0, err
    assert "60 test examples" in out
    assert "That took " in out
    assert "a round on a few rows " in out
    counts, classes, clients, first, *_ = out.splitlines()
    assert counts.startswith("examples: ")
    assert classes.startswith("classes: 10, each with its training + test examples: '0' ")
    assert clients.startswith("clients: 6 with ")
    assert first.startswith("  an array of 8 rows is ")
    assert "at most 32 of each set were read" in err
    assert sorted(tmp_path.iterdir()) == [config]


def test_a_terminal_that_has_no_letter_for_a_name_shows_its_number(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["fedelta", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    sys.stdout.write("caf\xe9\n")
    sys.stdout.flush()
    assert shown.getvalue().endswith(b"caf\\xe9\n")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("client.lr=1e30", "replies are usable|no longer finite"),
        ("model.architecture.hidden_act=none", "hidden_act|none"),
    ],
)
def test_what_fails_in_round_1_fails_in_check_with_one_message(fedelta, tmp_path, override, words):
    code, out, err = fedelta("check", write_small(tmp_path), "--set", override)
    assert (code, out) == (2, "")
    assert re.search(words, err)
    assert "Traceback" not in err


def test_an_unforeseen_error_is_one_message_of_check(fedelta, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("fedelta.checking.rehearse", fail)
    code, out, err = fedelta("check", write_small(tmp_path))
    assert (code, out) == (2, "")
    assert "a run would fail with ZeroDivisionError: division by zero" in err


def test_the_version_is_that_of_the_package(fedelta):
    from fedelta import __version__

    assert fedelta("--version") == (0, f"fedelta {__version__}\n", "")


def test_list_describes_the_keys_of_a_section(fedelta):
    code, out, _ = fedelta("list", "local_rule.fedprox")
    assert code == 0
    assert out.splitlines()[0] == '[local_rule] name = "fedprox"'
    assert any(line.startswith("  mu: number >= 0, default 0.01") for line in out.splitlines())


def test_list_of_an_unknown_section_names_the_nearest(fedelta):
    code, out, err = fedelta("list", "fedprox")
    assert (code, out) == (2, "")
    assert "did you mean `fedelta list local_rule.fedprox`?" in err


def test_list_names_what_a_configuration_can_hold(fedelta):
    code, out, _ = fedelta("list")
    assert code == 0
    for name in ("lora", "bias", "dirichlet", "pathological", "fedavg", "fedprox", "bfloat16", "cosine"):
        assert name in out


BAD = {
    "unknown key": ("strategy.clients_per_rond=3", r"did you mean `strategy.clients_per_round`"),
    "wrong type": ("client.lr=fast", "`client.lr` is 'fast', expected: a valid number"),
    "too many clients a round": ("strategy.clients_per_round=7", "more than `partition.num_clients` = 6"),
    "alpha of zero": ("partition.alpha=0", "`partition.alpha` is 0, expected: greater than 0"),
    "missing directory": ("model.source=./nowhere", "'./nowhere' does not exist"),
    "missing data": ("data.source=./nothing.csv", "nothing.csv"),
    "rank above the layer": ("tuning.r=99", "rank 99 is too large"),
    "unknown layer": ('tuning.target_modules=["q_prj"]', "did you mean 'q_proj'"),
    "more clients than rows": ("partition.num_clients=500", "500"),
    "a GPU that is not there": ("runtime.device=cuda", "torch finds no GPU"),
    "a source of another architecture": ("model.source=bundled:vit-micro", "belongs to another architecture"),
    "an unknown field of an architecture": ("model.architecture.hiden_size=3", "did you mean `hidden_size`"),
    "an image size between patches": ("model.image_size=20", "not a multiple of the model's patch size, 8"),
    "text model on images": ("data.text_column=image", "image"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_code_2_one_message_and_no_directory(fedelta, tmp_path, case):
    override, message = BAD[case]
    code, out, err = fedelta("run", write_small(tmp_path), "--set", override, "--out", tmp_path / "run")
    assert code == 2, err
    assert out == ""
    assert message in err
    assert err.count("error:") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_all_problems_of_a_configuration_come_in_one_message(fedelta, tmp_path):
    overrides = ["partition.alpha=-1", "tuning.name=lorra", "client.lr=0", "strategy.min_replies=5"]
    arguments = [part for override in overrides for part in ("--set", override)]
    code, _, err = fedelta("run", write_small(tmp_path), *arguments)
    assert code == 2
    assert "4 problems" in err
    for name in ("partition.alpha", "did you mean 'lora'", "client.lr", "strategy.min_replies"):
        assert name in err


def write_table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_a_data_set_without_labels_is_refused_by_name_of_its_columns(fedelta, tmp_path):
    table = write_table(tmp_path, "sentence,author\ngood,ann\nbad,bob\n")
    code, _, err = fedelta("check", write_small(tmp_path), "--set", f"data.source={table}")
    assert code == 2
    assert "author" in err


def test_a_file_that_is_no_image_cannot_be_classified(fedelta, tmp_path):
    run, text = tmp_path / "run", tmp_path / "letter.png"
    assert fedelta("run", write_small(tmp_path), "--out", run, "--quiet", "--set", "strategy.num_rounds=1")[0] == 0
    text.write_text("dear all")
    code, out, err = fedelta("predict", run, text)
    assert (code, out) == (2, "")
    assert "letter.png" in err


def test_an_override_without_a_value_drops_a_key_and_a_new_name_keeps_what_both_methods_have(fedelta, tmp_path):
    steps = ("--set", "client.local_epochs=", "--set", "client.local_steps=2")
    code, out, err = fedelta("check", write_small(tmp_path), *steps, "--set", "partition.name=pathological")
    assert code == 0, err
    assert "6 clients" in out


def test_a_report_into_a_directory_is_refused(fedelta, tmp_path):
    code, _, err = fedelta("report", tmp_path, "--out", tmp_path)
    assert code == 2
    assert "expected a file" in err


def test_training_that_diverges_ends_with_code_1_and_a_hint(fedelta, tmp_path):
    diverging = ("--set", "client.lr=1e30", "--set", "tuning.name=full", "--set", "client.local_epochs=4")
    code, out, err = fedelta("run", write_small(tmp_path), "--out", tmp_path / "run", *diverging)
    assert (code, out) == (1, "")
    assert "hint:" in err
    assert "client.lr" in err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_with_exits_answers_within_a_budget_and_is_exported(fedelta, tmp_path):
    run, image = tmp_path / "run", tmp_path / "digit.png"
    method = ("--set", "tuning.name=exit-heads", "--set", "tuning.r=", "--set", "strategy.num_rounds=1")
    code, _, err = fedelta("run", write_small(tmp_path), "--out", run, "--quiet", *method)
    assert code == 0, err
    costs = json.loads((run / "exits.json").read_text())
    assert [len(costs[key]) for key in ("flops", "milliseconds")] == [2, 2]

    Image.new("L", (8, 8), 200).save(image)
    # So that the budgets fit whatever the machine does meanwhile.
    (run / "exits.json").write_text(json.dumps(costs | {"milliseconds": [5.0, 9.0]}))
    options = {
        "2": (), "1": ("--exit", 1), "1 ": ("--budget-ms", 6), "2 ": ("--budget-ms", 9), "1  ": ("--confidence", 0.01),
    }  # fmt: skip
    for number, option in options.items():
        code, out, err = fedelta("predict", run, image, *option)
        assert (code, out.rstrip("\n").split("\t")[3]) == (0, number.strip()), err

    refused = {
        ("--budget-ms", 4): "the budget is 4 ms, but the first of 2 exits takes 5 ms",
        ("--exit", 3): "there is no exit 3",
        ("--confidence", 2): "the confidence is 2.0",
        ("--exit", 1, "--budget-ms", 3): "--exit and --budget-ms exclude each other",
    }
    for option, message in refused.items():
        code, out, err = fedelta("predict", run, image, *option)
        assert (code, out) == (2, "")
        assert message in err
        assert "hint:" in err

    code, out, err = fedelta("export", run)
    assert (code, out) == (2, "")
    assert f"fedelta export {run} --onnx" in err
    code, _, err = fedelta("export", run, "--onnx", "--exits", "1,b")
    assert code == 2
    assert "`--exits` is '1,b', expected whole numbers" in err

    pytest.importorskip("onnxruntime")
    code, out, err = fedelta("export", run, "--onnx", "--exits", "1")
    assert code == 0, err
    assert [line.split("\t")[0] for line in out.splitlines()] == [
        str(run / "onnx" / name) for name in ("model.onnx", "exit-1.onnx")
    ]
    assert (run / "onnx" / "export.json").is_file()


def test_a_run_without_exits_has_no_costs_and_takes_no_budget(fedelta, tmp_path):
    run = tmp_path / "run"
    assert fedelta("run", write_small(tmp_path), "--out", run, "--quiet", "--set", "strategy.num_rounds=1")[0] == 0
    assert not (run / "exits.json").exists()
    code, out, err = fedelta("predict", run, tmp_path / "any.png", "--budget-ms", 5)
    assert (code, out) == (2, "")
    assert "has no exits" in err
