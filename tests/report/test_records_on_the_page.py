"""Every number of a page, against the files of its run: read and added up here, not by the code that makes the page."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from tests.report.pages import Page, page_of, plain
from tests.report.pages import lines as lines_of
from tests.report.pages import rows as rows_of
from tests.report.synthetic import SMALL, history_of, in_windows, make_run

from fedelta.federation.records import Rejection
from fedelta.report.plots import bytes_by_part, loss_by_round, measure_by_round, measure_by_traffic
from fedelta.strategies.fedlama import FedLama

SCOPE = {
    "tuned_parameters": 26_516,
    "before": {"mean_accuracy": 0.812, "std_accuracy": 0.224 / 2**0.5, "worst_accuracy": 0.7, "worst_client_id": 5},
    "after": {"mean_accuracy": 0.904, "std_accuracy": 0.048 / 2**0.5, "worst_accuracy": 0.88, "worst_client_id": 5},
    "clients": [
        {"client_id": 3, "num_train": 21, "num_eval": 9, "accuracy_before": 0.924, "accuracy_after": 0.928},
        {"client_id": 5, "num_train": 14, "num_eval": 6, "accuracy_before": 0.7, "accuracy_after": 0.88},
    ],
}
COSTS = {"flops": [10e6, 25e6, 60e6], "milliseconds": [1.0, 2.5, 3.0], "machine": {"device": "cpu"}}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Files:
    """The raw content of a run directory."""

    path: Path

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return lines(self.path / "rounds.jsonl")

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return lines(self.path / "ledger.jsonl")[1:]

    @property
    def backbone_bytes(self) -> int:
        return int(lines(self.path / "ledger.jsonl")[0]["payload_bytes"])

    def sent(self, direction: str) -> int:
        return sum(row["payload_bytes"] for row in self.payloads if row["direction"] == direction)

    @property
    def client_round_bytes(self) -> float:
        directions = [row["direction"] for row in self.payloads]
        return sum(self.sent(direction) / directions.count(direction) for direction in ("down", "up"))

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / name).read_text())
        return content

    @property
    def curve(self) -> list[float]:
        return [record["measures"]["accuracy"] for record in self.rounds if record["measures"]]

    @property
    def full_bytes(self) -> int:
        return 4 * int(self.json("model.json")["total_parameters"]) * len(self.payloads)

    @property
    def seconds(self) -> float:
        return sum(row["wall_seconds"] for row in lines(self.path / "timings.jsonl"))


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"


def three(value: float) -> str:
    """Three digits, as many of them as needed behind the point."""
    if value == 0:
        return "0"
    places = 0
    while value * 10**places < 100:
        places += 1
    return f"{value:,.{places}f}"


def measured_as(name: str, value: float) -> str:
    return f"{value:,}" if name == "num_examples" else three(value) if name == "loss_nats" else f"{100 * value:.1f}"


def size(number: float) -> str:
    return f"{three(number / 2**20)} MiB" if number >= 1024 else f"{number:.0f} B"


def flat(content: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows = []
    for key, value in content.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        else:
            text = "\N{EN DASH}" if value is None else value if isinstance(value, str) else json.dumps(value)
            rows.append([f"{prefix}{key}", text])
    return rows


def area(values: Sequence[float], costs: Sequence[float]) -> float:
    parts = range(len(costs) - 1)
    total = sum((values[i] + values[i + 1]) / 2 * (costs[i + 1] - costs[i]) for i in parts)
    return total / (costs[-1] - costs[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Files:
    """A run with all that a page can tell of one: exits, tiers, parts of the test set, rejections, personalisation."""
    path = tmp_path_factory.mktemp("runs") / "all"
    lost = (Rejection(3, "late by 3 s", "late"), Rejection(12, "holds 24 values that are NaN"))
    shape = dataclasses.replace(
        SMALL, num_rounds=5, num_finished=5, num_exits=3, exits={"tiers": [1, 3]}, num_tested=200, rejections=lost
    )
    make_run(path, shape)
    (path / "personalization.json").write_text(json.dumps({"scopes": {"all": SCOPE}}))
    (path / "exits.json").write_text(json.dumps(COSTS))
    return Files(path)


@pytest.fixture(scope="module")
def page(run) -> Page:
    return page_of(run.path)


def test_the_headline_is_that_of_the_records(run, page):
    model, exits = run.json("model.json"), run.rounds[-1]["measures_by_exit"]["accuracy"]
    peak = max(row["peak_memory_bytes"] for row in lines(run.path / "timings.jsonl"))
    down, up = run.sent("down"), run.sent("up")
    expected = [
        ("Test accuracy", percent(run.curve[-1]), f"best {percent(max(run.curve))}"),
        ("Mean over exits", percent(fmean(exits)), f"3 exits, {100 * exits[0]:.1f} to {percent(exits[-1])}"),
        ("Area over FLOPs", percent(area(exits, COSTS["flops"])), "mean accuracy over budgets"),
        (
            "Tuned parameters",
            f"{model['tuned_parameters']:,}",
            f"{percent(model['tuned_parameters'] / model['total_parameters'], 2)} of {model['total_parameters']:,}",
        ),
        ("Per client and round", size(run.client_round_bytes), "down and up together"),
        ("Sent in total", size(down + up), f"{size(down)} down, {size(up)} up"),
        (
            "Saving",
            f"{run.full_bytes / (down + up):,.0f} \N{MULTIPLICATION SIGN}",
            f"full fine-tuning: {size(run.full_bytes)}",
        ),
        ("Time", f"{run.seconds:.1f} s", f"peak memory {size(peak)}"),
    ]
    names, values = page.texts["dt"], [plain(text) for text in page.texts["dd"]]
    assert list(zip(names, values[::2], values[1::2], strict=True)) == expected
    partition = run.json("partition.json")
    assert f"5 rounds, 2 of {len(partition['clients'])} clients a round, begun" in page.plain


def test_every_table_is_that_of_the_records(run, page):
    summary, exits = run.json("summary.json"), run.rounds[-1]["measures_by_exit"]["accuracy"]
    measured, classes, clients, at_exits, tiers, personal, held_out, rejected, environment = page.tables
    assert measured[1] == [
        "Test set",
        *(measured_as(name, value) for name, value in summary["measures"].items()),
    ]
    assert sorted(classes[1:]) == sorted(
        [name, *(f"{100 * own[key]:.1f}" for key in ("precision", "recall", "f1")), f"{own['num_examples']:,}"]
        for name, own in summary["by_class"].items()
    )
    assert [float(row[3]) for row in classes[1:]] == sorted(float(row[3]) for row in classes[1:])
    assert sorted(clients[1:]) == sorted(
        [name, *(measured_as(key, value) for key, value in own.items())] for name, own in summary["by_client"].items()
    )
    assert [float(row[1]) for row in clients[1:]] == sorted(float(row[1]) for row in clients[1:])
    means = [fmean(exits), area(exits, COSTS["flops"]), area(exits, COSTS["milliseconds"])]
    assert at_exits[1:] == [
        ["Accuracy", *map(percent, exits), *map(percent, means)],
        ["Milliseconds", *map(three, COSTS["milliseconds"]), "", "", ""],
        ["MFLOPs", *(three(number / 1e6) for number in COSTS["flops"]), "", "", ""],
    ]
    # Six clients in turn: 0, 2 and 4 run one block, 1, 3 and 5 run three.
    by_tier = {
        (depth, direction): [
            row["payload_bytes"]
            for row in run.payloads
            if row["direction"] == direction and row["client_id"] % 2 == (depth == 3)
        ]
        for depth in (1, 3)
        for direction in ("down", "up")
    }
    assert tiers[1:] == [
        [str(depth), "3", "50.0 %", size(fmean(by_tier[depth, "down"])), size(fmean(by_tier[depth, "up"]))]
        for depth in (1, 3)
    ]
    assert personal[1:] == [["all", "26,516", "2", "81.2 ± 15.8", "90.4 ± 3.4", "70.0 %, client 5", "88.0 %, client 5"]]
    assert held_out[1:] == [["5", "14", "6", "70.0", "88.0"], ["3", "21", "9", "92.4", "92.8"]]
    assert rejected[1:] == [
        [str(record["round"]), str(reply["client_id"]), reply["reason"]]
        for record in run.rounds
        for reply in record["rejections"]
    ]
    assert environment[1:] == flat(run.json("environment.json"))


def test_every_sentence_with_numbers_is_that_of_the_records(run, page):
    partition = list(run.json("partition.json")["clients"].values())
    sizes, held = [sum(row) for row in partition], sorted(sum(number > 0 for number in row) for row in partition)
    taking_part = len({row["client_id"] for row in run.payloads})
    for expected in (
        (
            f"{len(sizes)} clients hold {sum(sizes):,} training examples of 10 classes: {min(sizes)} to {max(sizes)} "
            f"examples and {held[0]} to {held[-1]} classes each (median {held[len(held) // 2]})."
        ),
        (
            f"the frozen backbone, {size(run.backbone_bytes)}; {size(taking_part * run.backbone_bytes)} for the "
            f"{taking_part} clients that took part."
        ),
        f"Of {sum(len(record['cohort']) for record in run.rounds)} clients asked: late 1, refused 1.",
        f"On test examples, after round {len(run.rounds)}. Milliseconds measured on: device cpu.",
    ):
        assert expected in page.plain, expected


def test_configuration_and_citations_are_the_files(run, page):
    configuration, citations = page.texts["pre"]
    assert tomllib.loads(configuration) == tomllib.loads((run.path / "config.toml").read_text())
    assert citations == (run.path / "citations.bib").read_text()


def test_the_drawn_bytes_are_those_of_the_ledger(run, page):
    sums: dict[tuple[str, str], int] = {}
    for row in run.payloads:
        parts = {**row["groups"], "headers": row["payload_bytes"] - row["tensor_bytes"]}
        for group, number in parts.items():
            part = "8 blocks" if group.startswith("layers.") else group  # they are all equal
            sums[row["direction"], part] = sums.get((row["direction"], part), 0) + number
    chart = bytes_by_part(history_of(run.path))
    drawn = {(row["kind"], row["part"]): row["mib"] * 2**20 for row in rows_of(chart.spec)}
    assert drawn == {key: pytest.approx(number) for key, number in sums.items()}
    assert all(part in page.text for _, part in drawn)


def test_the_curves_are_those_of_the_records(run):
    history = [history_of(run.path)]
    heights = [pytest.approx(100 * value) for value in run.curve]
    rounds = [record["round"] for record in run.rounds]
    assert lines_of(measure_by_round(history)) == {"all": list(zip(rounds, heights, strict=True))}
    sent = [sum(row["payload_bytes"] for row in run.payloads if row["round"] <= round) for round in rounds]
    places = [pytest.approx(number / 2**20) for number in sent]
    assert lines_of(measure_by_traffic(history)) == {"all": list(zip(places, heights, strict=True))}
    assert lines_of(loss_by_round(history)) == {
        "training": [(record["round"], record["train_loss_nats"]) for record in run.rounds],
        "test": [(record["round"], record["measures"]["loss_nats"]) for record in run.rounds],
    }


def test_windows_are_shown_as_in_the_records(tmp_path):
    shape = dataclasses.replace(SMALL, num_rounds=8, num_finished=7)
    run = Files(make_run(tmp_path / "run", in_windows(shape, FedLama(phi=4))).path)
    full = sum(record["synced_fraction"] == 1 for record in run.rounds)
    cost = fmean(record["synced_fraction"] for record in run.rounds)
    uploads = [row["payload_bytes"] for row in run.payloads if row["direction"] == "up"]
    sent, largest = sum(uploads), max(uploads) * len(uploads)
    page = page_of(run.path)
    for expected in (
        f"{full} of {len(run.rounds)} rounds were full syncs, which average every group.",
        f"Relative cost: {percent(cost)} of the scalars that FedAvg averages in as many rounds (Eq. 9).",
        (
            f"Uploads: {size(sent)}; if each were as long as the longest {size(largest)}, "
            f"so {percent(1 - sent / largest)} is saved."
        ),
    ):
        assert expected in page.plain, expected


def test_several_runs_are_shown_side_by_side_with_their_records(run, small):
    runs = [run, Files(small)]
    figures, differences, *_ = page_of(*(files.path for files in runs)).tables
    for row, files in zip(figures[1:], runs, strict=True):
        sent = files.sent("down") + files.sent("up")
        at_exits = files.rounds[-1].get("measures_by_exit")
        assert row == [
            files.path.name,
            str(len(files.rounds)),
            percent(files.curve[-1]),
            percent(max(files.curve)),
            f"{files.json('model.json')['tuned_parameters']:,}",
            three(files.client_round_bytes / 2**20),
            three(sent / 2**20),
            three(files.full_bytes / 2**20),
            f"{files.full_bytes / sent:,.0f} \N{MULTIPLICATION SIGN}",
            f"{files.seconds:.1f} s",
            percent(fmean(at_exits["accuracy"])) if at_exits else "\N{EN DASH}",
        ]
    first, second = (dict(flat(tomllib.loads((files.path / "config.toml").read_text()))) for files in runs)
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
    assert differences[1:] == [[key, first.get(key, "\N{EN DASH}"), second.get(key, "\N{EN DASH}")] for key in keys]
