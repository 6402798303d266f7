"""`fedelta audit` on finished runs: what it finds, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.small import write_small
from typer.testing import CliRunner

from fedelta.auditing.audit import audit, verdict
from fedelta.auditing.bounds import Measured
from fedelta.cli import app
from fedelta.errors import FedeltaError, InputError, RunError
from fedelta.experiment import Experiment

# Much noise: an accountant needs milliseconds for it.
NOISY = ("privacy.noise_multiplier=8.0", "privacy.target_delta=0.01", "strategy.num_rounds=2")


def run_with(folder: Path, *overrides: str) -> Path:
    return Experiment.from_toml(write_small(folder), overrides).run(folder / "run").path


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with client-level privacy; tests copy it."""
    return run_with(tmp_path_factory.mktemp("audited"), "privacy.unit=client", *NOISY)


@pytest.fixture
def run(private: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(private, tmp_path / "run"))


def test_an_audit_is_written_beside_the_run_and_changes_nothing_else(run: Path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    record = audit(run, num_trials=80)
    assert json.loads((run / "audit.json").read_text()) == {"with_noise": record}
    assert {path: path.read_bytes() for path in before} == before
    assert not record["exceeds"]
    assert record["run_epsilon"] == json.loads((run / "summary.json").read_text())["epsilon"]
    assert record["measured"]["epsilon"] <= record["tried"]["epsilon"]
    assert "proved nothing (confidence 95%); epsilon" in record["sentence"]  # 80 trials are few


def test_the_same_seed_gives_the_same_audit_and_another_seed_another(run: Path):
    first, again, other = (audit(run, num_trials=80, seed=seed)["measured"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_without_noise_the_command_ends_with_exit_code_1_and_keeps_what_was_found_before(run: Path):
    audit(run, num_trials=80)
    result = CliRunner().invoke(app, ["audit", str(run), "--trials", "80", "--without-noise"])
    assert isinstance(result.exception, FedeltaError)  # for which `main` ends with 1
    assert not isinstance(result.exception, InputError)
    assert "the noise is not what is claimed" in result.exception.message
    assert "measured, without noise, at least" in result.output
    written = json.loads((run / "audit.json").read_text())
    assert written["without_noise"]["exceeds"]
    assert not written["with_noise"]["exceeds"]


def test_the_command_prints_what_it_found(run: Path):
    result = CliRunner().invoke(app, ["audit", str(run), "--trials", "80"])
    assert result.exit_code == 0
    assert "In 80 trials somebody who sees all that is released proved nothing" in result.output


@pytest.mark.parametrize(
    ("epsilon", "accounted", "words"),
    [
        (0.0, 3.0, "proved nothing (confidence 95%); epsilon 3.00 is accounted for."),
        (2.0, 3.0, "proved an epsilon of at least 2.00 (confidence 95%), no more than the 3.00"),
        (4.0, 3.0, "proved an epsilon of at least 4.00 (confidence 95%), more than the 3.00"),
    ],
)
def test_the_verdict_says_what_was_proved(epsilon: float, accounted: float, words: str):
    result = Measured(epsilon, epsilon, epsilon, epsilon > accounted, (), 50)
    assert words in verdict(result, accounted, 100, 0.95)


@pytest.mark.parametrize("unit", ["example", "local"])
def test_runs_of_the_other_units_can_be_audited(tmp_path: Path, unit: str):
    run = run_with(tmp_path, f"privacy.unit={unit}", *NOISY)
    assert not audit(run, num_trials=80)["exceeds"]
    assert audit(run, num_trials=80, without_noise=True)["exceeds"]


def test_a_run_without_privacy_is_refused(tmp_path: Path):
    run = run_with(tmp_path, "strategy.num_rounds=1")
    with pytest.raises(InputError, match="has no privacy, so there is nothing to audit"):
        audit(run)


def test_a_run_that_is_not_finished_is_refused(run: Path):
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match=r"is not finished\.\nhint: finish it with `fedelta resume"):
        audit(run)


def test_noise_that_guarantees_nothing_is_refused(run: Path):
    promise = json.loads((run / "privacy.json").read_text())
    (run / "privacy.json").write_text(json.dumps(promise | {"mechanism": "fedpeft-code", "unit": "example"}))
    with pytest.raises(InputError, match=r"guarantees nothing: `privacy\.mechanism` is 'fedpeft-code'"):
        audit(run)


@pytest.mark.parametrize(("trials", "confidence"), [(79, 0.95), (80, 1.0), (80, 0.0)])
def test_too_few_trials_and_impossible_confidences_are_refused(run: Path, trials: int, confidence: float):
    with pytest.raises(InputError, match="expected at least 80 and a confidence between 0 and 1"):
        audit(run, num_trials=trials, confidence=confidence)
