"""`fedelta privacy`: noise and epsilon of a planned run, without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.small import SMALL
from typer.testing import CliRunner

from fedelta.cli.entry import app
from fedelta.errors import InputError
from fedelta.experiment import Experiment
from fedelta.forecast import Forecast, forecast, opening

# 3 of 6 clients, 3 rounds.
CLIENT = ("privacy.unit=client", "privacy.noise_multiplier=8.0", "privacy.target_delta=1e-2")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forecast") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def of_clients(config: Path) -> Forecast:
    return forecast(config, CLIENT)


def test_the_forecast_has_the_epsilon_that_the_run_reports(config: Path, of_clients: Forecast, tmp_path: Path):
    Experiment.from_toml(config, CLIENT).run(tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert {record["round"]: record["epsilon"] for record in records} == {
        round: both.pld for round, both in of_clients.rounds.items()
    }
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"] == of_clients.sentence


def test_the_forecast_says_what_it_follows_from(of_clients: Forecast):
    assert dict(of_clients.facts) == {
        "rounds": "3",
        "clients": "3 of 6 a round on average, by Poisson sampling of rate 0.5",
        "clipping": "flat, norm 1",
        "noise multiplier": "8",
        "noise, standard deviation": "8 in the sum of a round, 2.667 in its mean",
    }
    assert of_clients.sentence.startswith(
        "Protected: any one client with all of its data (added or removed), with epsilon "
    )
    assert of_clients.median is None


def test_examples_have_a_least_protected_and_a_median_client(config: Path):
    result = forecast(config, ("privacy.unit=example", "privacy.noise_multiplier=3.0", "privacy.target_delta=1e-2"))
    assert result.median is not None
    assert result.median.pld <= result.rounds[3].pld
    assert result.facts["clients"] == "3 of 6 a round; who they are counts as known"
    assert set(result.facts) >= {"examples of a client", "batches", "steps of a client and round"}


def test_a_budget_ends_the_run_before_it_is_exceeded(config: Path, of_clients: Forecast):
    limit = (of_clients.rounds[2].pld + of_clients.rounds[3].pld) / 2
    result = forecast(config, (*CLIENT, f"privacy.max_epsilon={limit}"))
    assert (result.num_rounds, result.planned_rounds) == (2, 3)
    assert [*result.rounds] == [1, 2]


def test_a_budget_below_the_first_round_leaves_none(config: Path):
    result = forecast(config, (*CLIENT, "privacy.max_epsilon=1e-3"))
    assert (result.num_rounds, dict(result.rounds)) == (0, {})


def test_long_runs_are_thinned_unless_all_rounds_are_asked_for(config: Path):
    long = (*CLIENT, "strategy.num_rounds=45", "privacy.accountant=rdp")
    assert [*forecast(config, long).rounds] == [1, *range(3, 46, 3)]
    assert [*forecast(config, (*CLIENT, "strategy.num_rounds=21"), all_rounds=True).rounds] == [*range(1, 22)]


def test_noise_that_guarantees_nothing_has_a_forecast_without_epsilon(config: Path):
    result = forecast(config, ("privacy.unit=example", "privacy.target_epsilon=5", "privacy.mechanism=fedpeft-code"))
    assert dict(result.rounds) == {}
    assert result.sentence.startswith("No guarantee: ")


def test_a_run_without_privacy_has_none(config: Path):
    with pytest.raises(InputError, match=r"`privacy.unit` is 'none': nothing is protected") as caught:
        forecast(config, ())
    assert caught.value.hint == "for example `--set privacy.unit=client --set privacy.target_epsilon=5`."


def test_a_run_says_what_it_promises_before_it_begins(config: Path, of_clients: Forecast, tmp_path: Path):
    options = [option for override in CLIENT for option in ("--set", override)]
    result = CliRunner().invoke(app, ["run", str(config), *options, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    text = f"Privacy after all 3 rounds, with noise multiplier 8. {of_clients.sentence}"
    assert result.stderr.startswith(text)


def test_a_run_says_that_its_budget_is_too_small_for_all_rounds(config: Path):
    private = Experiment.from_toml(config, (*CLIENT, "privacy.max_epsilon=1e-3")).assembly.federation.privacy
    assert private is not None
    text = opening(private, 3)
    limit = "the run will end before, because they would exceed epsilon 0.001"
    assert text.startswith(f"Privacy after all 3 rounds ({limit}), with noise multiplier 8. ")


def test_the_check_of_a_configuration_says_what_is_promised(config: Path, of_clients: Forecast):
    options = [option for override in CLIENT for option in ("--set", override)]
    result = CliRunner().invoke(app, ["check", str(config), *options])
    text = f"Privacy after all 3 rounds, with noise multiplier 8. {of_clients.sentence}"
    assert text in result.stdout.splitlines()


def test_the_command_prints_facts_and_rounds(config: Path):
    options = [option for override in CLIENT for option in ("--set", override)]
    result = CliRunner().invoke(app, ["privacy", str(config), *options, "--set", "privacy.max_epsilon=1e9"])
    assert result.exit_code == 0, result.output
    assert "of every client, at delta 0.01" in result.output
    assert "epsilon, PLD" in result.output
    assert "2.667 in its mean" in result.output


def test_the_command_prints_json(config: Path, of_clients: Forecast):
    options = [option for override in CLIENT for option in ("--set", override)]
    result = CliRunner().invoke(app, ["privacy", str(config), "--json", *options])
    record = json.loads(result.stdout)
    assert record == of_clients.as_record()
    assert [entry["round"] for entry in record["rounds"]] == [1, 2, 3]
    assert (record["unit"], record["delta"], record["noise_multiplier"]) == ("client", 0.01, 8.0)


def test_data_that_do_not_matter_are_not_read(config: Path, of_clients: Forecast):
    elsewhere = ("data.source=somewhere/else", "data.max_train_examples=", "data.max_test_examples=")
    assert forecast(config, (*CLIENT, *elsewhere)).as_record() == of_clients.as_record()
    held_out = forecast(config, (*CLIENT, *elsewhere, "personalization.held_out_clients=2"))
    assert held_out.facts["clients"] == "3 of 4 a round on average, by Poisson sampling of rate 0.75"
