"""The finished model on a page: measures, classes, clients, and what was taken for what."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.report.pages import Page, page_of, rows, shown, text_of
from tests.report.synthetic import Shape, details_of, make_run

from fedelta.errors import RunError
from fedelta.record.history import read_histories
from fedelta.record.numbers import UNKNOWN
from fedelta.report.confusion import MAX_CELLS, MAX_NUMBERS, matrix, mistakes
from fedelta.report.drawing import to_svg
from fedelta.report.measure_section import section
from fedelta.tasks.details import Confusion

SMALL = Shape(num_rounds=2, num_finished=2, num_clients=6, clients_per_round=2, class_names=("cat", "<dog>", "emu"))
CONFUSION = {"class_names": ["cat", "<dog>", "emu"], "counts": [[8, 2, 0], [1, 1, 2], [0, 0, 0]]}
DETAILS = {
    "measures": {"accuracy": 0.642857, "loss_nats": 0.81, "macro_f1": 0.5, "balanced_accuracy": 0.525},
    "by_class": {
        "cat": {"precision": 8 / 9, "recall": 0.8, "f1": 0.842105, "num_examples": 10},
        "<dog>": {"precision": 1 / 3, "recall": 0.25, "f1": 0.285714, "num_examples": 4},
        "emu": {"precision": 0.0, "recall": None, "f1": None, "num_examples": 0},
    },
    "by_client": {
        "2": {"accuracy": 0.75, "loss_nats": 0.5, "num_examples": 4},
        "5": {"accuracy": 0.25, "loss_nats": 1.5, "auroc": 0.5, "num_examples": 1200},
    },
}


def told(path: Path, details: dict[str, object] = DETAILS, confusion: object = CONFUSION) -> Path:
    """A finished run that tells these things of its model."""
    run = make_run(path, SMALL)
    content = json.loads(run.summary.read_text())
    run.summary.write_text(json.dumps({**content, **details}))
    if confusion is not None:
        (path / "confusion.json").write_text(json.dumps(confusion))
    return path


def section_of(*paths: Path) -> Page:
    measures = section(read_histories(paths))
    assert measures is not None
    return shown(measures)


def test_tables_of_classes_and_clients_begin_with_the_worst(tmp_path):
    overall, classes, clients = section_of(told(tmp_path / "run")).tables
    assert overall == [
        ["", "Accuracy, %", "Loss, nats per example", "Macro F1, %", "Balanced accuracy, %"],
        ["Test set", "64.3", "0.810", "50.0", "52.5"],
    ]
    # By F1, the last of their measures; what has none comes last.
    assert classes == [
        ["Class", "Precision, %", "Recall, %", "F1, %", "Examples"],
        ["<dog>", "33.3", "25.0", "28.6", "4"],
        ["cat", "88.9", "80.0", "84.2", "10"],
        ["emu", "0.0", UNKNOWN, UNKNOWN, "0"],
    ]
    # By the primary measure.
    assert clients == [
        ["Client", "Accuracy, %", "Loss, nats per example", "AUROC, %", "Examples"],
        ["5", "25.0", "1.50", "50.0", "1,200"],
        ["2", "75.0", "0.500", UNKNOWN, "4"],
    ]


def test_clients_are_called_by_their_names(tmp_path):
    path = told(tmp_path / "run")
    partition = json.loads((path / "partition.json").read_text())
    partition["names"] = {client: f"site {client} & co" for client in partition["clients"]}
    (path / "partition.json").write_text(json.dumps(partition))
    _, _, clients = section_of(path).tables
    assert [row[0] for row in clients] == ["Client", "site 5 & co (5)", "site 2 & co (2)"]


def test_the_section_is_on_the_page_with_the_matrix(tmp_path):
    page = page_of(told(tmp_path / "run"))
    for expected in (
        "Finished model",
        "Answers by true class",
        "Classes, worst first",
        "Each on its own rows of the test",
    ):
        assert expected in page.text
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert "Share of each answer among the examples of each true class" in labels
    assert "Most frequent mistakes" not in page.text  # they can be read from the matrix


@pytest.mark.parametrize("shape", [SMALL, dataclasses.replace(SMALL, num_finished=1)])
def test_a_run_without_measures_has_no_section(tmp_path, shape):
    path = make_run(tmp_path / "run", shape).path
    assert section(read_histories([path])) is None
    assert "Finished model" not in text_of(path)


@pytest.mark.parametrize("missing", ["by_class", "by_client", "confusion"])
def test_missing_values_are_not_shown(tmp_path, missing):
    details = {key: value for key, value in DETAILS.items() if key != missing}
    content = section_of(told(tmp_path / "run", details, None if missing == "confusion" else CONFUSION)).content
    assert ("Classes, worst first" in content) == (missing != "by_class")
    assert ("Clients, worst first" in content) == (missing != "by_client")
    assert ("<svg" in content) == (missing != "confusion")
    assert "Finished model" in content


def test_several_runs_share_a_table_and_their_parts_are_folded(tmp_path):
    one = told(tmp_path / "one <b>")
    other = told(tmp_path / "other", {"measures": {"accuracy": 0.5, "auroc": 0.75}}, None)
    page = section_of(one, other)
    overall, *_ = page.tables
    assert overall == [
        ["Run", "Accuracy, %", "Loss, nats per example", "Macro F1, %", "Balanced accuracy, %", "AUROC, %"],
        ["one <b>", "64.3", "0.810", "50.0", "52.5", UNKNOWN],
        ["other", "50.0", UNKNOWN, UNKNOWN, UNKNOWN, "75.0"],
    ]
    assert page.content.count("<details>") == 1
    assert "<summary>Classes and clients of one &lt;b&gt;</summary>" in page.content


def test_long_tables_are_folded_after_the_worst_ten_and_the_largest_mistakes_are_listed(tmp_path):
    names = tuple(f"class {number}" for number in range(100))
    path = make_run(tmp_path / "run", dataclasses.replace(SMALL, class_names=names, num_tested=3000)).path
    page = section_of(path)
    overall, errors, worst, others, clients = page.tables
    assert [len(item) for item in (overall, worst, others, clients)] == [2, 11, 91, 7]
    assert "<summary>90 more</summary>" in page.content
    scores = [float(row[3]) for row in worst[1:] + others[1:]]
    assert scores == sorted(scores)
    assert len(errors) == 11
    assert errors[0] == ["True class", "Taken for", "Examples", "Share of the class"]
    confusion = details_of(dataclasses.replace(SMALL, class_names=names, num_tested=3000)).confusion
    true, answer, number, share = mistakes(confusion, 1)[0]
    assert errors[1] == [true, answer, str(number), f"{100 * share:.1f} %"]


def test_a_matrix_holds_the_share_of_each_answer_among_a_true_class():
    chart = matrix(Confusion(("cat", "dog", "emu"), ((8, 2, 0), (1, 1, 2), (0, 0, 0)), 14))
    assert {(row["true"], row["answer"]): (row["share"], row["text"]) for row in rows(chart.spec)} == {
        ("cat", "cat"): (80, "80 %\n8"),
        ("cat", "dog"): (20, "20 %\n2"),
        ("dog", "emu"): (50, "50 %\n2"),
        ("dog", "cat"): (25, "25 %\n1"),
        ("dog", "dog"): (25, "25 %\n1"),
    }
    svg = to_svg(chart, "m", "matrix")
    assert svg.count(">emu<") == 2  # a row and a column, though no emu was seen
    light, dark = (
        [text for text in svg.split("<text") if f'fill="var(--{name})"' in text] for name in ("on-strong", "ink")
    )
    assert [text for text in light if "80 %" in text]
    assert [text for text in dark if "50 %" in text]


@pytest.mark.parametrize("number", [1, 2, MAX_NUMBERS, MAX_NUMBERS + 1, 300])
def test_a_matrix_of_any_size_is_drawn(number):
    names = tuple(f"a class with a long name {place}" for place in range(number))
    counts = tuple(tuple(3 if row <= column else 0 for column in range(number)) for row in range(number))
    chart = matrix(Confusion(names, counts, 3 * number))
    assert len(rows(chart.spec)) == min(MAX_CELLS, number * (number + 1) // 2)
    svg = to_svg(chart, "m", "matrix")
    assert len(svg) < 2**19
    if number <= MAX_NUMBERS:  # of more classes some names are left out
        assert all(svg.count(f">{name}<") == 2 for name in names)
    marks = [layer["mark"]["type"] for layer in chart.spec["layer"]]
    assert ("text" in marks) is (number <= MAX_NUMBERS)


def test_mistakes_are_ordered_by_number_and_then_by_share():
    confusion = Confusion(("a", "b", "c"), ((90, 5, 1), (5, 5, 0), (2, 0, 8)), 116)
    assert mistakes(confusion, 3) == [("b", "a", 5, 0.5), ("a", "b", 5, 5 / 96), ("c", "a", 2, 0.2)]
    assert mistakes(Confusion(("a",), ((4,),), 4), 3) == []


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"measures": 3}, "numbers by name in `measures`"),
        ({"measures": {"accuracy": "high"}}, "`accuracy` is 'high'"),
        ({"measures": {}, "by_class": {"cat": 3}}, "numbers by name in `measures`, and by class and client"),
        ({"measures": {}, "by_client": {"ann": {}}}, "numbers by name in `measures`, and by class and client"),
        ({"measures": {}, "by_client": [1]}, "numbers by name in `measures`, and by class and client"),
    ],
)
def test_details_that_do_not_fit_are_named(tmp_path, details, message):
    with pytest.raises(RunError, match=f"summary.json' does not hold .*{message}"):
        read_histories([told(tmp_path / "run", details)])


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        ({"class_names": ["a"]}, "does not hold `class_names` and a row of `counts` for each of them"),
        ({"class_names": ["a", "b"], "counts": [[1, 2]]}, "does not hold `class_names` and a row of `counts`"),
        ({"class_names": [], "counts": []}, "does not hold `class_names` and a row of `counts`"),
        ({"class_names": ["a"], "counts": [[1, 2]]}, "`counts` of 'a' are not 1 whole numbers"),
        ({"class_names": ["a"], "counts": [[-1]]}, "`counts` of 'a' are not 1 whole numbers"),
        ({"class_names": ["a"], "counts": [[0.5]]}, "`counts` of 'a' are not 1 whole numbers"),
        ({"class_names": ["a"], "counts": [[1]], "num_models": 0}, "`num_models` is 0, and should be a whole number"),
        ([1], "expected an object"),
    ],
)
def test_a_confusion_that_does_not_fit_is_named(tmp_path, confusion, message):
    with pytest.raises(RunError, match=f"confusion.json.*{message}"):
        read_histories([told(tmp_path / "run", confusion=confusion)])
