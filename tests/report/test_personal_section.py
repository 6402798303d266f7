from __future__ import annotations

import json

import pytest
from tests.report.pages import cells, text_of
from tests.report.synthetic import SMALL, history_of, make_run

from fedelta.errors import RunError
from fedelta.record.numbers import UNKNOWN
from fedelta.record.rundir import PERSONALIZATION
from fedelta.report.personal_section import section


def over_clients(mean: float, deviation: float | None, worst: float) -> dict[str, object]:
    return {"mean_accuracy": mean, "std_accuracy": deviation, "worst_accuracy": worst, "worst_client_id": 3}


def of_client(number: int, before: float, after: float, **name: str) -> dict[str, object]:
    measured = {"accuracy_before": before, "accuracy_after": after}
    return {"client_id": number, "num_train": 7 * number, "num_eval": 3 * number, **measured, **name}


PERSONAL = {
    "scopes": {
        "all": {
            "tuned_parameters": 26_516,
            "before": over_clients(0.812, 0.053, 0.7),
            "after": over_clients(0.904, 0.021, 0.85),
            "clients": [of_client(3, 0.85, 0.92), of_client(5, 0.774, 0.888, client_name="<ann>")],
        },
        "<token>": {
            "tuned_parameters": 192,
            "before": over_clients(0.812, None, 0.812),
            "after": over_clients(0.833, None, 0.833),
            "clients": [of_client(3, 0.85, 0.86)],
        },
    }
}


def test_personalisation_has_a_row_for_each_choice_of_what_is_tuned(tmp_path):
    path = make_run(tmp_path / "run", SMALL).path
    assert section(history_of(path), titled=False) is None
    (path / PERSONALIZATION).write_text(json.dumps(PERSONAL))
    personal = section(history_of(path), titled=False)
    assert personal is not None
    assert cells(personal.scopes)[1:] == [
        ["all", "26,516", "2", "81.2 ± 5.3", "90.4 ± 2.1", "70.0 %, client 3", "85.0 %, client 3"],
        ["<token>", "192", "1", "81.2", "83.3", "81.2 %, client 3", "83.3 %, client 3"],
    ]
    assert cells(personal.clients.first) == [
        [
            "Client",
            "Training examples",
            "Measured examples",
            "Before, %",
            "After tuning all, %",
            "After tuning <token>, %",
        ],
        ["<ann> (5)", "35", "15", "77.4", "88.8", UNKNOWN],
        ["3", "21", "9", "85.0", "92.0", "86.0"],
    ]
    assert "Personalisation" in text_of(path)


@pytest.mark.parametrize("content", [{"round": 3}, {"scopes": []}, {"scopes": {"all": {"before": {}}}}])
def test_personalisation_that_does_not_fit_is_named(tmp_path, content):
    path = make_run(tmp_path / "run", SMALL).path
    (path / PERSONALIZATION).write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"personalization.json' does not hold `accuracy` before and after by scope"):
        section(history_of(path), titled=False)
