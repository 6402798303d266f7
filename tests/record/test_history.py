"""A run read back from its directory: what is refused, and with which words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.report.synthetic import SMALL, make_error_run, make_run

from fedelta.errors import RunError
from fedelta.record import history
from fedelta.record.history import read_histories
from fedelta.record.rundir import RunDirectory
from fedelta.tasks.classification import Classification


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", SMALL).path


@pytest.fixture
def small(tmp_path, original) -> Path:
    """A finished run of three rounds."""
    return Path(shutil.copytree(original, tmp_path / "small"))


@pytest.fixture
def errors(tmp_path, monkeypatch) -> Path:
    """A run of a task whose measures should be low."""
    return make_error_run(tmp_path / "errors", monkeypatch)


def test_runs_of_the_same_name_are_called_by_their_path(tmp_path):
    paths = [make_run(tmp_path / parent / "demo", SMALL).path for parent in ("one", "two")]
    assert [history.name for history in read_histories(paths)] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", "= 3", "config.toml.*cannot be read"),
        ("partition.json", '{"class_names": ["a"]}', "does not hold class names and counts"),
        ("partition.json", '{"class_names": ["a"], "clients": {"0": [1, 2]}}', "one count per class"),
        ("summary.json", "{", "not valid JSON"),
        ("ledger.jsonl", "{}\n", "does not start with the row of the backbone"),
    ],
)
def test_a_broken_file_is_named(small, name, content, message):
    (small / name).write_text(content)
    with pytest.raises(RunError, match=message):
        read_histories([small])


def test_runs_that_are_measured_by_different_things_are_not_on_one_page(tmp_path, errors, monkeypatch):
    tasks = {7: Classification(), 8: history.task_of({})}
    monkeypatch.setattr(history, "task_of", lambda config: tasks[config["seed"]])
    other = make_run(tmp_path / "other", SMALL).path
    config = errors / "config.toml"
    config.write_text(config.read_text().replace("seed = 7", "seed = 8"))
    with pytest.raises(RunError, match=r"different measures: accuracy of 'other'; mean error of 'errors'") as error:
        read_histories([other, errors])
    assert error.value.hint == "report those of one measure at a time."


def test_a_run_of_an_older_format_is_refused_with_a_way_out(small):
    run = RunDirectory.open(small)
    content = run.rounds.path.read_text()
    run.rounds.path.write_text(content.replace('"measures"', '"accuracy"'))
    for read in (run.read_rounds, lambda: read_histories([small])):
        with pytest.raises(RunError, match="rounds without `measures`: an older version of fedelta wrote") as error:
            read()
        assert "use the version that environment.json names, or run config.toml again" in str(error.value.hint)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"mae": 1.0}, "`measures` is {'mae': 1.0}, expected numbers, mae and mse among them"),
        ({"mae": "1", "mse": 2.0}, "`measures` is .* expected numbers"),
        (0.5, "`measures` is 0.5, expected numbers"),
    ],
)
def test_measures_that_do_not_fit_are_named(errors, measures, message):
    run = RunDirectory.open(errors)
    first, *_ = run.rounds.read()
    run.rounds.truncate(0)
    run.rounds.append([{**first, "measures": measures}])
    with pytest.raises(RunError, match=f"line 1: {message}"):
        read_histories([errors])


def test_an_unknown_task_is_named(small):
    config = small / "config.toml"
    config.write_text(f'{config.read_text()}\n[task]\nname = "sorcery"\n')
    with pytest.raises(RunError, match=r"config.toml': `\[task\]` is not valid"):
        read_histories([small])
