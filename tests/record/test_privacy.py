"""What files say about the privacy of a run: no figure is too small, and no word promises too much."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tests.record.test_runlog import OUTCOME
from tests.report.synthetic import PROMISE

from fedelta.errors import RunError
from fedelta.privacy.accounting import Epsilons
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.settings import Privacy
from fedelta.record.files import to_json
from fedelta.record.ledger import Ledger
from fedelta.record.privacy import is_void, privacy_of_round, privacy_of_run, sentence
from fedelta.record.promise import Promise, read_promise
from fedelta.record.runlog import round_record, summary
from fedelta.tasks.classification import ACCURACY, LOSS

PRIVATE = replace(OUTCOME, train_loss=None, delta_norm=None, epsilons=Epsilons(2.5, 3.0), clipping_norm=0.75)
REPRODUCED = replace(PROMISE, unit="example", mechanism="fedpeft-code")


def test_a_promise_is_read_back_as_it_was_written(tmp_path: Path):
    path = tmp_path / "privacy.json"
    for promise in (PROMISE, replace(PROMISE, limit=None, unit="local", randomness="secure")):
        path.write_text(to_json(promise.as_record()))
        assert read_promise(path) == promise
    assert read_promise(tmp_path / "none.json") is None


def test_a_promise_names_what_the_configuration_leaves_open():
    settings = Privacy(unit="client", target_epsilon=5.0, target_delta=1e-3)
    promise = Promise.of(Guarantee(settings, 0.8075, cohort_rate=0.125), "secure")
    assert promise == replace(PROMISE, randomness="secure")


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "none"}, {"unit": []}, {"delta": 0}, {"noise_multiplier": "1"}, {"noise_multiplier": None},
        {"clipping_norm": True}, {"limit": -1}, {"randomness": "dice"}, {"cohort_rate": 0}, {"mechanism": 3},
        {"unknown": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_promise_that_no_run_wrote_is_refused(tmp_path: Path, change: dict[str, object]):
    path = tmp_path / "privacy.json"
    path.write_text(json.dumps(PROMISE.as_record() | change))
    with pytest.raises(RunError, match="does not hold what a run writes about its privacy"):
        read_promise(path)


def test_a_private_round_records_both_epsilons_and_the_clipping_norm_and_no_loss_of_clients():
    record = round_record(PRIVATE, 900, LOSS, promise=PROMISE)
    assert (record["epsilon"], record["epsilon_rdp"], record["clipping_norm"]) == (2.5, 3.0, 0.75)
    assert (record["train_loss_nats"], record["delta_norm"]) == (None, None)
    assert "epsilon" not in round_record(OUTCOME, 900, LOSS)


def test_epsilon_is_by_the_accountant_that_the_run_goes_by():
    assert privacy_of_round(PRIVATE, replace(PROMISE, accountant="rdp"))["epsilon"] == 3.0
    # Without a norm of its own a round has that of the configuration.
    assert privacy_of_round(replace(PRIVATE, clipping_norm=None), PROMISE)["clipping_norm"] == 1.0


def test_an_infinite_epsilon_is_null_with_its_reason_and_rdp_beside_it():
    outcome = replace(PRIVATE, epsilons=Epsilons(math.inf, 12.5))
    promise = replace(PROMISE, delta=1e-16)
    record = privacy_of_round(outcome, promise)
    assert (record["epsilon"], record["epsilon_rdp"]) == (None, 12.5)
    result = privacy_of_run([record], promise)
    assert (result["epsilon"], result["epsilon_note"]) == (None, "No finite epsilon at delta 1e-16.")
    assert "no finite epsilon at delta 1e-16 (12.5 by RDP)" in result["privacy"]


def test_noise_that_guarantees_nothing_has_no_epsilon_and_says_so():
    record = privacy_of_round(PRIVATE, REPRODUCED)
    assert (record["epsilon"], record["epsilon_rdp"]) == (None, None)
    result = privacy_of_run([record], REPRODUCED)
    assert result["epsilon"] is None
    assert result["epsilon_note"].startswith('No guarantee: "fedpeft-code" reproduces the noise of FedPEFT')
    assert result["privacy"].startswith("No guarantee:")


def test_a_summary_says_what_is_promised_to_whom():
    record = round_record(PRIVATE, 900, LOSS, promise=PROMISE)
    sizes = {"tuned_parameters": 1, "total_parameters": 2}
    result = summary([record], [], Ledger(), ACCURACY, sizes, promise=PROMISE)
    expected = {
        "privacy_unit": "client",
        "epsilon": 2.5,
        "epsilon_rdp": 3.0,
        "delta": 1e-3,
        "noise_multiplier": 0.8075,
        "clipping_norm": 0.75,
        "privacy_mechanism": "gaussian",
        "privacy_randomness": "seeded",
    }
    assert result.items() >= expected.items()
    assert "privacy_unit" not in summary([record], [], Ledger(), ACCURACY, sizes)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (
            "client",
            "Protected: any one client with all of its data (added or removed), with epsilon 2.5 at delta 0.001",
        ),
        ("example", "Protected: any one example of any one client (added or removed), with epsilon 2.5 at delta 0.001"),
        (
            "local",
            "Protected: all data of any one client (replaced by any other data), with epsilon 2.5 at delta 0.001",
        ),
    ],
)
def test_the_sentence_names_unit_epsilon_delta_trust_and_noise(unit: str, words: str):
    promise = replace(PROMISE, unit=unit)
    text = sentence(promise, 2.5, 3.0)
    assert text.startswith(f"{words} (3 by RDP). ")
    assert ("neither the server nor other clients are trusted" in text) == (unit != "client")
    assert ("The server sees every update and is trusted" in text) == (unit == "client")
    assert text.endswith("whoever knows the seed can remove it, and then nothing is protected.")
    assert sentence(replace(promise, randomness="secure"), 2.5, None).endswith(" The noise comes from secret keys.")


def test_under_privacy_for_clients_a_round_without_replies_counts():
    empty = {"num_examples": 0, "synced_fraction": 1.0, "measures": None}
    assert not is_void(empty, PROMISE)
    assert is_void(empty, None)
    assert is_void(empty, replace(PROMISE, unit="example"))
    result = summary([empty], [], Ledger(), ACCURACY, {"tuned_parameters": 1, "total_parameters": 2}, promise=PROMISE)
    assert (result["void_rounds"], result["relative_cost"]) == (0, 1.0)
