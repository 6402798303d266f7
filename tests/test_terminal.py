from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.deployed import CUT, GOOD, make_deployed
from tests.report.synthetic import PROMISE, SMALL, make_run

from fedelta.errors import RunError
from fedelta.record.ledger import Ledger
from fedelta.record.rundir import CONFIG
from fedelta.record.status import Status, write_status
from fedelta.tables import Finished, table_of_run
from fedelta.tasks.classification import ACCURACY
from fedelta.terminal import deployment_bar


def text_console(*, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=200, markup=False, force_terminal=is_terminal)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_of_a_run_on_too_few_sites_says_so_in_its_first_line(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD, "hamburg": CUT}, own={"berlin": 0.912}).path
    console = text_console()
    console.print(table_of_run(Finished.read(run), ACCURACY, run / "report.html"))
    title, _, first, *others = written(console).splitlines()
    assert title.strip() == str(run)
    assert "12 of 30 rounds had fewer than 2 sites: 'hamburg' away in 12." in first
    sites = [line for line in others if "site " in line]
    assert "there in 30 of 30 rounds, accuracy 91.2 % on its own data" in sites[0].replace("\u202f", " ")
    assert "there in 18 of 30 rounds" in sites[1]


def test_the_table_of_a_private_run_says_what_is_promised_and_that_the_budget_ended_it(tmp_path: Path):
    stopped = "The privacy budget is spent: the run ended after round 2 of 3."
    run = make_run(tmp_path / "run", replace(SMALL, promise=PROMISE, num_finished=2, stopped=stopped)).path
    console = text_console()
    console.print(table_of_run(Finished.read(run), ACCURACY, run / "report.html"))
    text = " ".join(written(console).replace("\u2502", " ").split())
    # Invented: 3.25 * sqrt(2 / 30) / 0.8075 = 1.0392 after round 2.
    assert "privacy Protected: any one client with all of its data (added or removed), with epsilon 1.04 at" in text
    assert f"ended early {stopped}" in text


def test_the_bar_of_a_private_run_shows_epsilon(tmp_path: Path):
    run = make_run(tmp_path / "run", replace(SMALL, promise=PROMISE)).path
    console = text_console(is_terminal=True)
    with deployment_bar(console, run, quiet=False) as look:
        look()
    assert "epsilon 1.273" in written(console)


def test_the_table_of_a_run_whose_rounds_had_no_clients_has_no_figures_of_payloads(tmp_path: Path):
    run = make_run(tmp_path / "run", SMALL).path
    finished = replace(Finished.read(run), ledger=Ledger(backbone_bytes=1000))
    console = text_console()
    console.print(table_of_run(finished, ACCURACY, run / "report.html"))
    text = " ".join(written(console).replace("\u2502", " ").split())
    assert "sent in all 0 B: 0 B down, 0 B up" in text.replace("\u202f", " ")
    assert "per client and round" not in text
    assert "full fine-tuning" not in text


def test_the_results_of_an_unfinished_run_are_refused(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD[:3]}).path
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished"):
        Finished.read(run)


def test_a_deployment_that_waits_is_followed_before_it_has_begun(tmp_path: Path):
    (tmp_path / CONFIG).write_text((make_run(tmp_path / "other", SMALL).path / CONFIG).read_text())
    console = text_console()
    with deployment_bar(console, tmp_path, quiet=False) as look:
        look()
        for seconds in (55, 50):
            write_status(tmp_path, Status("waiting", f"waiting for sites: 1 of 2, missing: hamburg ({seconds} s left)"))
            look()
    lines = [line for line in written(console).splitlines() if line and not line.startswith("round")]
    assert lines == ["waiting for sites: 1 of 2, missing: hamburg (55 s left)"]


def test_rounds_of_a_deployment_are_shown_as_those_of_a_run(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD, "hamburg": CUT}).path
    console = text_console(is_terminal=True)
    with deployment_bar(console, run, quiet=False) as look:
        look()
    assert "30/30" in written(console)
    assert "accuracy 92.5" in written(console)


def test_a_quiet_deployment_shows_nothing(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD[:3]}).path
    console = text_console(is_terminal=True)
    with deployment_bar(console, run, quiet=True) as look:
        look()
    assert written(console) == ""
