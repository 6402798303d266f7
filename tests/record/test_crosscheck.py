from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.synthetic import Shape, history_of, make_run

CLASSES = ("cat", "dog", "emu")


@pytest.fixture
def path(tmp_path) -> Path:
    """A finished run whose measures of classes come from its matrix."""
    shape = Shape(num_rounds=2, num_finished=2, num_clients=6, clients_per_round=2, class_names=CLASSES, num_tested=80)
    return make_run(tmp_path / "run", shape).path


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_run_wrote_agrees(path):
    assert history_of(path).misfits == ()


def test_edited_counts_are_reported(path):
    counts = json.loads((path / "confusion.json").read_text())["counts"]
    hits, examples = counts[0][0], sum(counts[0])
    counts[0][0] += 4
    edit(path / "confusion.json", counts=counts)
    misfits = history_of(path).misfits
    assert misfits[0] == (
        f"`num_examples` of class 'cat' is {examples} in `summary.json`, the counts of `confusion.json` make it "
        f"{examples + 4}"
    )
    assert f"the counts of `confusion.json` make it {(hits + 4) / (examples + 4)!r}" in misfits[1]


def test_an_edited_measure_of_a_class_is_reported(path):
    by_class = json.loads((path / "summary.json").read_text())["by_class"]
    by_class["dog"]["precision"] = 0.125
    edit(path / "summary.json", by_class=by_class)
    (misfit,) = history_of(path).misfits
    assert misfit.startswith("`precision` of class 'dog' is 0.125 in `summary.json`, the counts of `confusion.json`")


def over(mean: float, deviation: float | None, worst: float) -> dict[str, object]:
    return {"mean_accuracy": mean, "std_accuracy": deviation, "worst_accuracy": worst, "worst_client_id": 3}


# Means of 0.5 and 0.7, and of 0.75 and 0.85; the deviation of two values is their difference by the root of two.
CLIENTS = [
    {"client_id": 3, "accuracy_before": 0.5, "accuracy_after": 0.75},
    {"client_id": 4, "accuracy_before": 0.7, "accuracy_after": 0.85},
]
SCOPE = {
    "tuned_parameters": 9,
    "clients": CLIENTS,
    "before": over(0.6, 0.02**0.5, 0.5),
    "after": over(0.8, 0.005**0.5, 0.75),
}


@pytest.mark.parametrize(
    ("part", "changed", "message"),
    [
        ("before", {}, None),
        ("after", {"mean_accuracy": 0.9}, "`mean_accuracy` after tuning 'all' is 0.9 in `personalization.json`, its"),
        ("before", {"std_accuracy": 0.2}, "`std_accuracy` before tuning 'all' is 0.2"),
        ("after", {"worst_accuracy": 0.76}, "`worst_accuracy` after tuning 'all' is 0.76"),
    ],
)  # fmt: skip
def test_means_that_do_not_follow_from_the_clients_are_reported(path, part, changed, message):
    scope = {**SCOPE, part: {**SCOPE[part], **changed}}
    (path / "personalization.json").write_text(json.dumps({"scopes": {"all": scope}}))
    misfits = history_of(path).misfits
    assert [misfit.startswith(message) for misfit in misfits] == ([True] if message else [])


@pytest.mark.parametrize("scopes", [[], {"all": 3}, {"all": {"clients": [{}], "before": {}, "after": {}}}])
def test_what_cannot_be_read_is_left_to_the_page(path, scopes):
    (path / "personalization.json").write_text(json.dumps({"scopes": scopes}))
    assert history_of(path).misfits == ()
