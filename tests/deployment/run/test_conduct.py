from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.builders import assert_close, assert_same_bits
from tests.deployment.local import AT, Local
from tests.report.pages import text_of
from tests.report.synthetic import history_of
from tests.small import CONVOLUTIONAL, SMALL, write_small

from fedelta.errors import InputError, RunError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment, Result
from fedelta.inference.predict import Predictor
from fedelta.record.checkpoint import load
from fedelta.record.ledger import Ledger
from fedelta.record.rundir import CHECKPOINT, LEDGER, RunDirectory
from fedelta.record.status import read_status
from fedelta.runtimes.remote.messages import Message


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """A deployment over two sites."""
    local = Local(tmp_path_factory.mktemp("deployed"))
    local.conduct()
    return local


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same experiment in one process."""
    folder = tmp_path_factory.mktemp("simulated")
    return Experiment.from_toml(write_small(folder)).run(folder / "run")


def rounds_of(run: Path) -> list[dict[str, Any]]:
    return RunDirectory.open(run).read_rounds()


def summary_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def before(local: Local, kind: str, number: int, act: Callable[[], None]) -> None:
    """Lets something happen before hamburg answers its message `number` of a kind."""
    answer, num_seen = local.sites["hamburg"].handler, 0

    def watched(message: Message) -> Message:
        nonlocal num_seen
        num_seen += message.kind == kind
        if message.kind == kind and num_seen == number:
            local.sites["hamburg"].handler = answer
            act()
        return answer(message)

    local.sites["hamburg"].handler = watched


def killed() -> None:
    raise KeyboardInterrupt


def test_a_deployment_is_the_experiment_that_a_simulation_is(finished: Local, simulated: Result):
    assert_close(load(finished.run / CHECKPOINT).params, simulated.params, rtol=1e-5, atol=1e-6)
    ledger = Ledger.read(finished.run / LEDGER)
    assert ledger.groups == simulated.ledger.groups
    assert ledger.rounds == simulated.ledger.rounds


def test_it_writes_what_a_simulation_writes_with_the_sites_beside(finished: Local, simulated: Result):
    written = {path.name for path in finished.run.iterdir()}
    # Wrong answers are test examples, which may be those of sites.
    expected = {path.name for path in simulated.path.iterdir()} - {"mistakes.json"}
    assert written == expected | {"run.id", "status.json", "report.html"}
    for record, expected in zip(rounds_of(finished.run), rounds_of(simulated.path), strict=True):
        assert record.keys() == expected.keys() | {"sites"}
        assert record["cohort"] == expected["cohort"]
        assert record["measures"]["accuracy"] == expected["measures"]["accuracy"]
        assert sum(site["num_asked"] for site in record["sites"]) == 3
    history = history_of(finished.run)
    assert history.misfits == ()
    assert history.details is not None
    assert history.details.confusion is not None


def test_each_site_measures_the_finished_model_beside_the_server(finished: Local):
    summary = summary_of(finished.run)
    # Both sites have the test set of the server, of 60 rows.
    for site in ("berlin", "hamburg"):
        own = summary["measures_of_sites"][site]
        assert own["num_test_examples"] == 60
        assert own["measures"]["accuracy"] == pytest.approx(summary["measures"]["accuracy"])
    assert "too_few_sites" not in summary
    text = text_of(finished.run)
    assert "hamburg was there in all 3 rounds." in text


def test_predict_and_evaluate_work_on_its_run_directory(finished: Local):
    details = evaluate_adapter(finished.run)
    assert details.measures == summary_of(finished.run)["measures"]
    assert Predictor.open(finished.run).class_names == tuple("0123456789")


def test_the_card_of_the_model_which_may_be_published_names_no_site(finished: Local):
    card = (finished.run / "adapter" / "README.md").read_text()
    assert "accuracy" in card
    assert not [name for name in AT if name in card]


def test_the_sites_forget_what_the_run_needed_of_them(finished: Local):
    assert [kind for _, kind, _ in finished.link.log[-2:]] == ["finish", "finish"]
    assert read_status(finished.run).state == "finished"  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [1, 2])
def test_a_server_that_was_killed_goes_on_with_the_same_bits(finished: Local, tmp_path: Path, number: int):
    local = Local(tmp_path)
    before(local, "train", number, killed)
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    assert len(rounds_of(local.run)) < 3
    local.conduct()
    assert_same_bits(load(local.run / CHECKPOINT).params, load(finished.run / CHECKPOINT).params)
    assert (local.run / LEDGER).read_bytes() == (finished.run / LEDGER).read_bytes()
    measures = [record["measures"] for record in rounds_of(finished.run)]
    assert [record["measures"] for record in rounds_of(local.run)] == measures


def test_a_server_that_was_killed_before_round_1_begins_anew(tmp_path: Path):
    local = Local(tmp_path, overrides=["strategy.num_rounds=1"])
    before(local, "prepare", 1, killed)
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    name = (local.run / "run.id").read_text()
    assert not (local.run / CHECKPOINT).exists()
    local.conduct()
    assert (local.run / "run.id").read_text() == name
    assert len(rounds_of(local.run)) == 1


def test_a_run_on_too_few_sites_says_so_first_everywhere(tmp_path: Path):
    local = Local(tmp_path)

    def cut() -> None:
        local.sites["hamburg"].is_online = False

    before(local, "train", 1, cut)
    local.conduct()
    told = "2 of 3 rounds had fewer than 2 sites: 'hamburg' away in 2."
    assert next(iter(summary_of(local.run).items())) == ("too_few_sites", told)
    status = read_status(local.run)
    assert status is not None
    assert (status.state, status.text) == ("finished", told)
    assert told in text_of(local.run)
    assert "\n2 of 3 rounds had fewer than 2 sites.\n" in (local.run / "adapter" / "README.md").read_text()
    second = rounds_of(local.run)[1]
    lost = {rejection["cause"] for rejection in second["rejections"]}
    assert lost == {"away"}
    assert second["sites"][1]["state"] == "away"


def test_too_few_sites_at_the_start_are_told_with_what_to_do(tmp_path: Path):
    local = Local(tmp_path)
    local.sites["hamburg"].is_online = False
    with pytest.raises(InputError, match="1 sites were connected after 60 s") as caught:
        local.conduct()
    status = read_status(local.run)
    assert status is not None
    assert status.state == "failed"
    assert status.text == caught.value.message
    assert "start the missing sites" in status.hint
    with pytest.raises(RunError, match=r"has no rounds yet \(failed: 1 problem in the sites"):
        RunDirectory.open(local.run)


def test_while_it_waits_the_status_names_the_missing_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    local, told = Local(tmp_path, overrides=["strategy.num_rounds=1"]), list[object]()
    local.sites["hamburg"].is_online = False
    local.link.at.append((7.0, lambda: told.append(read_status(local.run))))
    local.link.at.append((8.0, local.sites["hamburg"].restart))
    local.conduct()
    [status] = told
    assert status.text == "waiting for sites: 1 of 2, missing: hamburg (55 s left)"  # type: ignore[attr-defined]
    assert status.sites == {"berlin": "connected", "hamburg": "missing"}  # type: ignore[attr-defined]


def test_a_round_that_has_waited_says_when_it_goes_on(tmp_path: Path):
    local, told = Local(tmp_path, overrides=["strategy.num_rounds=2"]), list[object]()

    def cut() -> None:
        local.sites["hamburg"].is_online = False
        now = local.link.seconds
        local.link.at.append((now + 30, lambda: told.append(read_status(local.run))))
        local.link.at.append((now + 31, local.sites["hamburg"].restart))

    before(local, "train", 1, cut)
    answer = local.sites["berlin"].handler

    def watched(message: Message) -> Message:
        if message.kind == "train" and message.manifest["round"] == 2:
            told.append(read_status(local.run))
        return answer(message)

    local.sites["berlin"].handler = watched
    local.conduct()
    waiting, running = told
    assert waiting.state == "waiting"  # type: ignore[attr-defined]
    assert running.state == "running"  # type: ignore[attr-defined]
    assert running.sites == {"berlin": "took part", "hamburg": "took part"}  # type: ignore[attr-defined]


def test_a_second_process_for_the_same_run_is_refused_and_says_nothing(tmp_path: Path):
    local = Local(tmp_path, overrides=["strategy.num_rounds=1"])

    def again() -> None:
        with pytest.raises(RunError, match="another process is running or resuming"):
            local.conduct()

    before(local, "train", 1, again)
    local.conduct()
    assert read_status(local.run).state == "finished"  # type: ignore[union-attr]


def test_sites_that_measure_together_give_the_measures_of_the_run(finished: Local, tmp_path: Path):
    local = Local(tmp_path, overrides=["deployment.evaluate=sites", "data.source=sites", "strategy.num_rounds=2"])
    local.conduct()
    records = rounds_of(local.run)
    # Twice the test set of the server has its measures.
    for record, expected in zip(records, rounds_of(finished.run)[:2], strict=True):
        assert record["measures"] == pytest.approx(expected["measures"])
        assert {site["num_test_examples"] for site in record["sites"]} == {60}
    summary = summary_of(local.run)
    assert summary["measures"] == records[-1]["measures"]
    assert "measures_of_sites" not in summary
    assert history_of(local.run).misfits == ()


def test_sites_can_measure_every_so_many_rounds(tmp_path: Path):
    local = Local(tmp_path, overrides=["deployment.site_measures=2", "strategy.num_rounds=2"])
    local.conduct()
    first, second = rounds_of(local.run)
    assert not any("measures" in site for site in first["sites"])
    assert all("measures" in site for site in second["sites"])
    assert "measures_of_sites" not in summary_of(local.run)


def test_a_server_may_have_a_test_set_only(tmp_path: Path):
    for number in range(20):
        path = tmp_path / "tested" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 12 * number).save(path)
    tested = f"data.test_source={tmp_path / 'tested'}"
    local = Local(tmp_path / "deployed", overrides=["data.source=sites", tested, "strategy.num_rounds=1"])
    local.conduct()
    summary = summary_of(local.run)
    assert sum(values["num_examples"] for values in summary["by_class"].values()) == 20
    assert summary["measures_of_sites"]["berlin"]["num_test_examples"] == 60


def test_a_run_can_start_from_an_adapter_that_only_the_server_has(finished: Local, tmp_path: Path):
    adapter = tmp_path / "adapter"
    shutil.copytree(finished.run / "adapter", adapter)
    overrides = ["strategy.num_rounds=2", f"model.adapter={adapter}"]
    local = Local(tmp_path / "deployed", overrides=overrides)
    before(local, "train", 2, killed)
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    result = Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "simulated")
    shutil.rmtree(adapter)
    local.conduct()
    assert_close(load(local.run / CHECKPOINT).params, result.params, rtol=1e-5, atol=1e-6)


def test_sites_with_data_of_their_own_are_clients_with_names(tmp_path: Path):
    for number in range(40):
        label = number % 10
        path = tmp_path / ("berlin" if label < 6 else "hamburg") / f"class {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * number).save(path)
    own = {name: {"data": {"source": str(tmp_path / name)}, "allow_missing_classes": True} for name in AT}
    overrides = ["data.source=sites", "deployment.evaluate=sites", "partition.name=natural"]
    overrides += ["strategy.clients_per_round=2", "strategy.num_rounds=1"]
    text = SMALL.replace('name = "dirichlet"\nnum_clients = 6\nalpha = 0.5\nmin_size = 4', 'name = "natural"')
    local = Local(tmp_path / "deployed", at=dict.fromkeys(AT), text=text, overrides=overrides, own=own)
    local.conduct()
    [record] = rounds_of(local.run)
    assert record["cohort_names"] == ["berlin", "hamburg"]
    assert [site["num_asked"] for site in record["sites"]] == [1, 1]
    settings = json.loads((local.run / "adapter" / "fedelta.json").read_text())
    assert settings["class_names"] == [f"class {label}" for label in range(10)]
    # Of 24 and 16 images, a fifth is for tests.
    assert record["num_examples"] + sum(site["num_test_examples"] for site in record["sites"]) == 40


def test_a_run_whose_roster_was_changed_does_not_go_on(tmp_path: Path):
    local = Local(tmp_path)
    before(local, "train", 2, killed)
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    path = local.run / "partition.json"
    path.write_text(path.read_text().replace("hamburg", "bremen"))
    with pytest.raises(InputError, match=r"partition.json' is not as the run wrote it when it began"):
        local.conduct()


def test_models_that_only_the_sites_have_are_measured_there_and_nowhere_else(tmp_path: Path):
    overrides = ["tuning.name=full", "model.batch_norm=local", "strategy.num_rounds=1", "deployment.evaluate=sites"]
    local = Local(tmp_path, text=CONVOLUTIONAL, overrides=overrides)
    local.conduct()
    assert 0 <= summary_of(local.run)["measures"]["accuracy"] <= 1
    for use in (evaluate_adapter, lambda run: Predictor.open(run, client=0)):
        with pytest.raises(InputError, match=r"has one model per client, .* these are at their sites"):
            use(local.run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stability.dropout_fraction=0.1"], r"`\[stability\]` simulates failures"),
        (["personalization.held_out_clients=1"], r"`\[personalization\]` holds clients out"),
        (["data.evaluate_on=validation"], "`data.evaluate_on` is 'validation', but the clients' rows are not"),
        (["model.batch_norm=local"], "`model.batch_norm` is 'local', so that only the clients have whole models"),
        (["data.source=sites"], "`data.source` is 'sites', so the server has no examples to measure the model on"),
    ],
)
def test_what_only_a_simulation_can_do_is_refused_before_sites_are_asked(
    tmp_path: Path, overrides: list[str], message: str
):
    local = Local(tmp_path, overrides=overrides)
    with pytest.raises(InputError, match=message):
        local.conduct()
    assert local.link.log == []


def test_a_simulation_of_data_that_are_at_the_sites_is_refused(tmp_path: Path):
    path = write_small(tmp_path, text=SMALL)
    with pytest.raises(InputError, match="each site of a deployment reads its own data, so there is none here"):
        Experiment.from_toml(path, ["data.source=sites"]).run(tmp_path / "run")
