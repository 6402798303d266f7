"""A tuning method, a strategy and a task in a file outside of the package: run, resumed, compared, saved, loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.plugins.conftest import STRANGER, own_registries
from tests.small import SMALL, stop_after

import fedelta
from fedelta.config import load_config, parse_config
from fedelta.errors import AdapterError, CheckpointError, PluginError
from fedelta.experiment import Experiment
from fedelta.inference.adapter import read_adapter
from fedelta.inference.predict import Predictor
from fedelta.inspection import inspect
from fedelta.plugins import for_processes, load_same
from fedelta.testing import check

Call = Callable[..., tuple[int, str, str]]
METHODS = {
    'name = "lora"\nr = 2': 'name = "scale"',
    'name = "fedavg"': 'name = "damped"',
    "[data]": '[task]\nname = "smoothed"\n\n[data]',
}
PLACES = {
    "model": {"source": "bundled:vit-micro"},
    "data": {"source": "digits"},
    "partition": {"name": "iid", "num_clients": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `my_method.py`, `x.toml`, a finished run and an image."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copy(STRANGER, folder / "my_method.py")
    config = SMALL
    for name, instead in METHODS.items():
        config = config.replace(name, instead)
    (folder / "x.toml").write_text(config)
    Image.new("L", (8, 8), 200).save(folder / "digit.png")
    with own_registries():
        fedelta.load_plugin(folder / "my_method.py")
        Experiment.from_toml(folder / "x.toml").run(folder / "run")
    return folder


@pytest.fixture
def plugin(folder: Path) -> Path:
    fedelta.load_plugin(folder / "my_method.py")
    return folder / "my_method.py"


def test_a_plugin_says_what_it_provides(folder: Path):
    provided = ["tuning.name = 'scale'", "task.name = 'smoothed'", "strategy.name = 'damped'"]
    assert fedelta.load_plugin(folder / "my_method.py") == provided


def test_a_run_records_its_plugins(folder: Path):
    [record] = json.loads((folder / "run/environment.json").read_text())["plugins"]
    assert record["plugin"] == "my_method.py"
    assert len(record["sha256"]) == 64
    assert record["provides"] == {"tuning.name": ["scale"], "task.name": ["smoothed"], "strategy.name": ["damped"]}


def test_a_run_without_plugins_says_so(folder: Path, tmp_path: Path, plugin: Path):
    (tmp_path / "plain.toml").write_text(SMALL)
    run = Experiment.from_toml(tmp_path / "plain.toml", ["strategy.num_rounds=1"]).run(tmp_path / "run").path
    assert json.loads((run / "environment.json").read_text())["plugins"] == []


def test_a_resumed_run_has_the_same_bits(folder: Path, tmp_path: Path, plugin: Path):
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(folder / "x.toml").run(tmp_path / "run", on_round=stop_after(1))
    Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    for file in ("rounds.jsonl", "ledger.jsonl", "config.toml", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (folder / "run" / file).read_bytes()


def test_the_adapter_is_saved_and_loaded_with_a_type_of_its_own(folder: Path, plugin: Path):
    adapter = read_adapter(folder / "run/adapter")
    config = load_config(folder / "run/config.toml")
    assert (adapter.tuning, adapter.task) == (config.tuning, config.task)
    assert json.loads((folder / "run/adapter/adapter_config.json").read_text())["peft_type"] == "FEDELTA_SCALE"
    assert Predictor.from_adapter(folder / "run/adapter").predict([folder / "digit.png"])[0].cells


def test_an_adapter_without_its_plugin_names_it(folder: Path):
    with pytest.raises(PluginError, match=r"(?s)adapter .*needs a plug-in .*'my_method.py'.*--plugin my_method.py"):
        read_adapter(folder / "run/adapter")


def test_an_adapter_of_an_unknown_method_still_names_the_known_ones(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "run/adapter", tmp_path / "adapter")
    (tmp_path / "adapter/fedelta.json").unlink()
    with pytest.raises(AdapterError, match="'FEDELTA_SCALE', expected 'LORA' or one of 'FEDELTA_ACCUMULATOR'"):
        read_adapter(tmp_path / "adapter")


WITHOUT = {
    "resume": ("resume", "run"),
    "report": ("report", "run"),
    "predict": ("predict", "run", "digit.png"),
    "evaluate": ("evaluate", "run"),
    "export": ("export", "run", "--onnx"),
    "personalize": ("personalize", "run"),
    "compare": ("compare", "run/config.toml", "--over", "seed=1,2"),
    "run": ("run", "run/config.toml"),
    "inspect": ("inspect", "run/config.toml"),
    "check": ("check", "run/config.toml"),
}


@pytest.mark.parametrize("command", WITHOUT)
def test_a_run_is_not_read_without_its_plugin(
    command: str, folder: Path, fedelta: Call, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    code, out, err = fedelta(*WITHOUT[command])
    assert (code, out) == (2, "")
    assert "run 'run' needs a plug-in that is not given: 'my_method.py', which provides `tuning.name` = 'scale'" in err
    assert "hint: give `--plugin my_method.py`" in err


@pytest.mark.parametrize(
    "command",
    [("report", "run"), ("predict", "run", "digit.png"), ("evaluate", "run"), ("inspect", "x.toml", "--json")],
    ids=lambda command: command[0],
)
def test_commands_take_the_plugin(
    command: tuple[str, ...], folder: Path, fedelta: Call, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    code, out, err = fedelta(*command, "--plugin", "my_method.py")
    assert (code, err) == (0, "")
    assert out


def test_the_list_says_where_each_name_is_from(folder: Path, fedelta: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = fedelta("list", "--plugin", folder / "my_method.py")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "scale (my_method.py)" in " ".join(out.replace("│", " ").split())
    assert fedelta("list")[1].count("my_method") == 0


def test_a_report_names_the_plugins_of_all_runs(folder: Path, fedelta: Call, tmp_path: Path):
    shutil.copytree(folder / "run", tmp_path / "other")
    path = tmp_path / "other/environment.json"
    path.write_text(path.read_text().replace("my_method.py", "theirs.py"))
    code, _, err = fedelta("report", folder / "run", tmp_path / "other", "--out", tmp_path / "page.html")
    assert code == 2
    assert "2 of 2 runs cannot be reported" in err
    assert "give `--plugin my_method.py`" in err
    assert "give `--plugin theirs.py`" in err


def test_a_changed_plugin_does_not_resume_a_run_and_reads_it(folder: Path, tmp_path: Path):
    (tmp_path / "my_method.py").write_text(f"{STRANGER.read_text()}\n# a line more\n")
    fedelta.load_plugin(tmp_path / "my_method.py")
    with pytest.raises(CheckpointError, match=r"(?s)belongs to another run.*my_method.py is .*SHA-256 .* now, it was"):
        Experiment.from_run(folder / "run").resume(folder / "run")
    assert read_adapter(folder / "run/adapter").params


def test_settings_of_a_plugin_can_be_overridden_and_combined(plugin: Path):
    table = {**PLACES, "tuning": {"name": "scale+lora", "start": 1.5, "blocks": [1]}}
    config = parse_config(table, ["strategy.name=damped", "strategy.decay=0.25", "strategy.mean.name=median"])
    assert config.strategy.decay == 0.25
    assert config.strategy.mean.name == "median"
    assert [(method.name) for method in config.tuning.methods] == [
        "lora",
        "scale",
    ]  # innermost, behind the built-in ones
    assert config.tuning.methods[1].blocks == (1,)
    assert parse_config(config.to_table()) == config
    assert inspect(config).tuned_parameters > inspect(parse_config(table, ["tuning.name=lora"])).tuned_parameters


def test_a_wrong_value_of_a_plugin_is_explained_like_any_other(plugin: Path):
    table = {**PLACES, "strategy": {"name": "damped", "decay": 2, "decai": 1}}
    with pytest.raises(fedelta.InputError) as caught:
        parse_config(table)
    assert "`strategy.decay` is 2, expected: less than or equal to 1" in caught.value.message
    assert "`strategy.decai` is unknown; did you mean `strategy.decay`?" in caught.value.message


def test_the_processes_of_a_comparison_load_the_same_files(plugin: Path):
    arguments = for_processes()
    with own_registries():
        load_same(arguments)
        assert for_processes() == arguments
    with own_registries(), pytest.raises(PluginError, match="has changed since the comparison began"):
        load_same([f"{'0' * 64}:{plugin}"])


@pytest.mark.slow
def test_a_comparison_runs_a_plugin_in_its_processes_and_is_continued_with_it(
    folder: Path, fedelta: Call, tmp_path: Path
):
    out, given = tmp_path / "out", ("--plugin", folder / "my_method.py")
    grid = ("--over", "tuning.name=scale,lora+scale", "--set", "strategy.num_rounds=1", "--processes", 1, "--quiet")
    code, _, err = fedelta("compare", folder / "x.toml", *grid, "--out", out, *given)
    assert (code, err) == (0, "")
    assert "failed" not in (out / "table.md").read_text()
    code, _, err = fedelta("compare", out / "compare.toml")
    assert code == 2
    assert "needs a plug-in that is not given: 'my_method.py'" in err
    assert fedelta("compare", out / "compare.toml", "--quiet", *given)[0] == 0


@pytest.mark.slow
def test_a_strangers_classes_keep_their_contracts():
    with own_registries():
        check(STRANGER)
