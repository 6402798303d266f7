"""Exit codes and hints of the command line, by command and by what is wrong with what it is given."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.small import SMALL, stop_after, write_small

from fedelta import cli
from fedelta.experiment import Experiment
from fedelta.record import checkpoint

HELD_OUT = SMALL + "\n[personalization]\nheld_out_clients = 1\nlrs = [0.1]\n"
COMMANDS: dict[str, tuple[str, ...]] = {
    "resume": ("resume", "RUN"),
    "evaluate": ("evaluate", "RUN"),
    "personalize": ("personalize", "RUN"),
    "report": ("report", "RUN", "--out", "PAGE"),
    "predict": ("predict", "RUN", "none.png"),
    "export": ("export", "RUN", "--onnx"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and one that was stopped."""
    folder = tmp_path_factory.mktemp("made")
    config = write_small(folder, text=HELD_OUT)
    Experiment.from_toml(config, ["strategy.num_rounds=1"]).run(folder / "done")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(config).run(folder / "stopped", on_round=stop_after(1))
    return folder


def older_checkpoint(run: Path) -> None:
    path = run / "checkpoint" / "state.safetensors"
    content = checkpoint.load(path)
    now, checkpoint.FORMAT = checkpoint.FORMAT, "fedelta-checkpoint-5"
    try:
        path.write_bytes(checkpoint.encode(content))
    finally:
        checkpoint.FORMAT = now


def older_rounds(run: Path) -> None:
    rounds = run / "rounds.jsonl"
    rounds.write_text(rounds.read_text().replace('"measures"', '"accuracy"'))


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(content)


def directory(name: str) -> Callable[[Path], None]:
    def put(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return put


ALL = tuple(COMMANDS)
DEEP = b"[" * 99_999
NEEDS_CONFIG = ("resume", "evaluate", "personalize", "report")
NEEDS_CHECKPOINT = ("resume", "evaluate", "personalize")
FINISHED = ("evaluate", "personalize", "predict", "export")
FAULTS: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...], str]] = {
    "nothing there": ("done", shutil.rmtree, ALL, ""),
    "an empty directory": ("done", lambda run: (shutil.rmtree(run), run.mkdir()), ALL, "that `fedelta run` printed"),
    "a file": ("done", lambda run: (shutil.rmtree(run), run.write_text("")), ALL, ""),
    "not finished": ("stopped", lambda run: None, FINISHED, "finish it with `fedelta resume"),
    "a damaged checkpoint": (
        "done", write("checkpoint/state.safetensors", b"x"), (*NEEDS_CHECKPOINT, "predict", "export"), "from a copy"
    ),
    "a checkpoint of an older version": ("done", older_checkpoint, NEEDS_CHECKPOINT, checkpoint.OTHER_VERSION),
    "rounds of an older version": ("done", older_rounds, ("resume", "report"), checkpoint.OTHER_VERSION),
    "a damaged configuration": ("done", write("config.toml", b"seed = "), NEEDS_CONFIG, ""),
    "a damaged log": ("done", write("rounds.jsonl", b"[\n"), ("resume", "report"), ""),
    "a log that is too deep": ("done", write("rounds.jsonl", DEEP + b"\n"), ("resume", "report"), "from a copy"),
    "a file that is too deep": ("done", write("partition.json", DEEP), ("report",), "from a copy"),
    "sizes that are words": ("done", write("model.json", b'{"total_parameters": "1"}'), ("report",), ""),
    "a directory instead of a log": ("done", directory("rounds.jsonl"), NEEDS_CONFIG, "move them out of it"),
    "a directory instead of times": ("done", directory("timings.jsonl"), NEEDS_CONFIG, "move them out of it"),
    "a directory instead of a result": ("done", directory("summary.json"), NEEDS_CONFIG, "move them out of it"),
    "a directory instead of a table": ("done", directory("confusion.json"), NEEDS_CONFIG, "move them out of it"),
    "a directory instead of a page": ("done", directory("personalization.json"), NEEDS_CONFIG, "move them out of it"),
    "a damaged adapter": (
        "done", write("adapter/adapter_model.safetensors", b"x"), ("evaluate", "predict", "export"), "copy the adapter"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_ends_with_code_2_one_message_and_the_same_hint(
    fault: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source, damage, commands, hint = FAULTS[fault]
    run = tmp_path / "run"
    shutil.copytree(made / source, run)
    damage(run)
    for command in commands:
        arguments = [
            {"RUN": str(run), "PAGE": str(tmp_path / "page.html")}.get(word, word) for word in COMMANDS[command]
        ]
        monkeypatch.setattr(sys, "argv", ["fedelta", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (command, ended.value.code, out) == (command, 2, ""), err
        assert err.count("error:") == 1, err
        assert hint in err, (command, err)
        assert "Traceback" not in err


@pytest.mark.parametrize("command", ["evaluate", "personalize", "check", "report"])
def test_ctrl_c_ends_every_command_with_code_130(
    command: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedelta.evaluation.evaluate_adapter", interrupted)
    monkeypatch.setattr("fedelta.personalization.personalize", interrupted)
    monkeypatch.setattr("fedelta.experiment.Experiment.from_toml", interrupted)
    monkeypatch.setattr("fedelta.report.writing.write_report", interrupted)
    monkeypatch.setattr(
        sys, "argv", ["fedelta", command, str(made / "done"), *(["--quiet"] * (command == "personalize"))]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
