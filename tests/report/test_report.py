from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tests.report.synthetic import Shape, make_run

from fedelta.errors import RunError
from fedelta.federation.records import Rejection
from fedelta.record import history
from fedelta.record.history import read_histories
from fedelta.record.ledger import Ledger
from fedelta.record.rundir import RunDirectory
from fedelta.record.runlog import summary
from fedelta.report.drawing import to_png
from fedelta.report.plots import MAX_GROUPS, bytes_by_group, loss_by_round, measure_by_round
from fedelta.report.writing import measure_figure, write_report
from fedelta.tasks.base import Measure
from fedelta.tasks.classification import Classification

SMALL = Shape(num_rounds=3, num_finished=3, num_clients=6, clients_per_round=2)


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not match."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def small(tmp_path) -> Path:
    return make_run(tmp_path / "small", SMALL).path


def report(*runs: Path) -> str:
    out = runs[0].parent / "out" / "report.html"
    write_report(runs, out)
    return out.read_text(encoding="utf-8")


def test_a_report_holds_every_section(small):
    text = Page(report(small)).text
    for wanted in (
        "Accuracy against rounds",
        "Accuracy against traffic",
        "full fine-tuning, rounds 1 to 3",
        "Loss against rounds",
        "Traffic by group and direction",
        "layers.0",
        "Clients",
        "Configuration",
        'source = "bundled:vit-micro"',
        "Environment",
        "packages.torch",
        "Citations",
        "@inproceedings{hu2022lora",
    ):
        assert wanted in text, wanted


def test_the_headline_numbers_are_right(small):
    text = re.sub(r"\s+", " ", Page(report(small)).text)
    # Groups: 8 layers of 3,072 and a head of 1,940 scalars = 26,516; 2 bytes each and 612 of headers.
    # A client sends and receives 53,644 bytes a round: 104.8 KiB. 3 rounds x 2 clients x 107,288 = 629 KiB.
    # Full: 4 x 1,214,000 x 12 transfers = 58,272,000 bytes = 55.6 MiB; 58,272,000 / 643,728 = 90.5.
    assert "26,516" in text
    assert "2.18 % of 1,214,000" in text
    assert "105 KiB" in text
    assert "629 KiB" in text
    assert "55.6 MiB" in text
    assert "91 \N{MULTIPLICATION SIGN}" in text


def test_a_report_loads_nothing_and_runs_nothing(small):
    content = report(small)
    page = Page(content)
    loading = {"src", "srcset", "data", "poster", "action", "background", "xlink:href", "href"}
    for tag, name, value in page.attributes:
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        assert not name.startswith("on")
        if name in loading:
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    assert "@import" not in content
    assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)'\"]+)", content))


def test_ids_are_unique_and_references_point_to_them(tmp_path, small):
    page = Page(report(small, make_run(tmp_path / "other", dataclasses.replace(SMALL, seed=8)).path))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for _, name, value in page.attributes if name.endswith("href") and value.startswith("#")}
    used |= {match for _, _, value in page.attributes for match in re.findall(r"url\(#([^)]+)\)", value)}
    assert used
    assert used <= set(ids)


def test_no_fixed_colour_remains_in_the_curves(small):
    svgs = re.findall(r"<svg role.*?</svg>", report(small), flags=re.DOTALL)
    assert svgs
    for svg in svgs[:4]:
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) <= {"#000000"}


def test_what_a_run_says_is_escaped(tmp_path):
    nasty = "<img src=x onerror=f()>$x^2$"
    shape = dataclasses.replace(
        SMALL,
        num_finished=3,
        num_rounds=5,
        class_names=(nasty, "_b", "\N{CJK UNIFIED IDEOGRAPH-732B}"),
        groups=((nasty, 30),),
        tuning="</pre><script>",
        rejections=(),
    )
    run = make_run(tmp_path / "_<b>$name$", shape)
    run.rounds.append(
        [{**run.rounds.read()[-1], "round": 4, "rejections": [{"client_id": 1, "reason": nasty, "cause": "refused"}]}]
    )
    (run.path / "citations.bib").write_text("</pre><script>alert(2)</script>")
    page = Page(report(run.path))
    assert not [tag for tag, _, _ in page.attributes if tag in {"script", "img", "b"}]
    assert page.text.count(nasty) >= 3  # group, class and reason


def test_rejections_are_listed_when_there_are_any(tmp_path, small):
    assert "Replies that did not enter the mean" not in report(small)
    assert "Participation" not in report(small)
    shape = Shape(num_rounds=4, num_finished=4, rejections=(Rejection(12, "holds 3 values that are NaN"),))
    text = report(make_run(tmp_path / "faulty", shape).path)
    assert "Replies that did not enter the mean" in text
    assert "Of 32 clients asked: refused 1." in text
    assert "holds 3 values that are NaN" in text


def test_lost_clients_void_rounds_and_simulated_time_are_told(tmp_path):
    lost = (Rejection(1, "could not be reached", "dropped out"), Rejection(2, "too few replies", "void round"))
    run = make_run(tmp_path / "lossy", Shape(num_rounds=4, num_finished=4, rejections=lost))
    records = run.rounds.read()
    run.rounds.truncate(0)
    run.rounds.append([{**record, "simulated_seconds": 100.0 * record["round"]} for record in records[:3]])
    run.rounds.append([{**records[3], "num_examples": 0, "train_loss_nats": None, "simulated_seconds": None}])
    text = Page(report(run.path)).text
    # 100 + 200 + 300 seconds
    assert "Of 32 clients asked: dropped out 1, void round 1. 1 round did not count" in text
    assert "Simulated time: 10 min 0 s in all, 3 min 20 s in the median round." in text


def test_many_rejections_are_cut_and_counted(tmp_path):
    shape = Shape(num_rounds=4, num_finished=4, rejections=tuple(Rejection(n, f"reason {n}") for n in range(130)))
    text = report(make_run(tmp_path / "faulty", shape).path)
    assert "reason 99<" in text
    assert "reason 100<" not in text
    assert "and 30 more" in text


@pytest.mark.parametrize("num_finished", [0, 1, 2])
def test_an_unfinished_run_is_reported_as_far_as_it_came(tmp_path, num_finished):
    run = make_run(tmp_path / "going", dataclasses.replace(SMALL, num_finished=num_finished))
    text = Page(report(run.path)).text
    assert f"Unfinished: {num_finished} of 3 rounds" in text


def test_a_killed_run_without_model_and_partition_files_is_reported(tmp_path):
    run = make_run(tmp_path / "going", dataclasses.replace(SMALL, num_finished=2))
    (run.path / "model.json").unlink()
    (run.path / "partition.json").unlink()
    with run.rounds.path.open("ab") as log:
        log.write(b'{"round": 3, "acc')
    text = Page(report(run.path)).text
    assert "Unfinished: 2 of 3 rounds" in text
    assert "full fine-tuning, rounds" not in text


def test_rounds_without_evaluation_leave_no_gap(tmp_path):
    run = make_run(tmp_path / "sparse", dataclasses.replace(SMALL, evaluate_every=2))
    (history,) = read_histories([run.path])
    assert [record["round"] for record in history.evaluated] == [2]
    assert "Accuracy against rounds" in report(run.path)


def test_several_runs_are_compared(tmp_path, small):
    other = make_run(tmp_path / "other", dataclasses.replace(SMALL, tuning="head", groups=(("head", 50),), seed=9)).path
    text = Page(report(small, other)).text
    assert "2 runs compared" in text
    assert "What differs" in text
    assert "tuning.name" in text
    assert "Clients of small, other" in text


def test_runs_of_the_same_name_are_called_by_their_path(tmp_path):
    paths = [make_run(tmp_path / parent / "demo", SMALL).path for parent in ("one", "two")]
    assert [history.name for history in read_histories(paths)] == [str(path) for path in paths]


def test_all_broken_runs_are_named_and_the_old_report_stays(tmp_path, small):
    out = tmp_path / "report.html"
    out.write_text("old")
    broken = make_run(tmp_path / "broken", SMALL)
    broken.rounds.path.write_text('{"round": 1, "measures": null}\n')
    with pytest.raises(RunError, match="2 of 3 runs cannot be reported") as error:
        write_report([small, tmp_path / "absent", broken.path], out)
    assert "absent" in str(error.value)
    assert "line 1: lacks cohort, cumulative_bytes" in str(error.value)
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", "= 3", "config.toml.*cannot be read"),
        ("partition.json", '{"class_names": ["a"]}', "does not hold class names and counts"),
        ("partition.json", '{"class_names": ["a"], "clients": {"0": [1, 2]}}', "one count per class"),
        ("summary.json", "{", "not valid JSON"),
        ("ledger.jsonl", "{}\n", "does not start with the row of the backbone"),
    ],
)
def test_a_broken_file_is_named(small, name, content, message):
    (small / name).write_text(content)
    with pytest.raises(RunError, match=message):
        read_histories([small])


def test_many_groups_are_merged(tmp_path):
    groups = tuple((f"layers.{index}", 10 + index) for index in range(50))
    (history,) = read_histories([make_run(tmp_path / "deep", dataclasses.replace(SMALL, groups=groups)).path])
    labels = [label.get_text() for label in bytes_by_group(history).axes[0].get_yticklabels()]
    assert len(labels) == MAX_GROUPS + 2
    assert labels[-2:] == ["30 more", "headers"]
    assert labels[0] == "layers.30"  # the largest twenty, in the model's order


def test_the_accuracy_figure_has_both_plots_and_a_legend(tmp_path, small):
    other = make_run(tmp_path / "_other", dataclasses.replace(SMALL, seed=9)).path
    figure = measure_figure([small, other])
    left, right = figure.axes
    assert left.get_xlabel() == "Round"
    assert "MiB" in right.get_xlabel()
    assert [text.get_text().strip() for text in left.get_legend().get_texts()] == ["small", "_other"]
    picture = Image.open(io.BytesIO(to_png(figure, dots_per_inch=50)))
    assert picture.width > 2 * picture.height


def test_equal_runs_give_equal_pages(small):
    assert report(small) == report(small)


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")


MAE = Measure("mae", "mean error", higher_is_better=False, unit="mm")
MSE = Measure("mse", "squared error", higher_is_better=False, unit="mm²")


@pytest.fixture
def errors(tmp_path, monkeypatch) -> Path:
    """A run of a task whose measures should be low: 3, 1.5 and 2 mm."""
    task = SimpleNamespace(primary=MAE, loss=MSE, measured={}, stratum=("range", "ranges"))
    monkeypatch.setattr(history, "task_of", lambda _: task)
    run = make_run(tmp_path / "errors", SMALL)
    records = run.rounds.read()
    run.rounds.truncate(0)
    for record, error in zip(records, (3.0, 1.5, 2.0), strict=True):
        record |= {"measures": {"mae": error, "mse": error**2}, "train_mse": record.pop("train_loss_nats")}
    run.rounds.append(records)
    kept = json.loads(run.summary.read_text())
    sizes = {key: kept[key] for key in ("tuned_parameters", "total_parameters")}
    run.write_summary(summary(records, run.timings.read(), Ledger.read(run.ledger), MAE, sizes))
    return run.path


def test_a_measure_that_should_be_low_is_shown_with_its_unit_and_the_lowest_is_the_best(errors):
    (run,) = read_histories([errors])
    assert (run.final, run.best) == (2.0, 1.5)
    text = re.sub(r"\s+", " ", Page(report(errors)).text)
    assert "Test mean error2.00 mmbest 1.50 mm" in text
    for title in ("Mean error against rounds", "Mean error against traffic", "Squared error against rounds"):
        assert title in text
    assert "ccuracy" not in text
    axes = measure_by_round([run]).axes[0]
    assert axes.get_ylabel() == "Test mean error (mm)"
    assert list(axes.lines[0].get_ydata()) == [3.0, 1.5, 2.0]
    assert axes.get_ylim()[1] < 4  # no fraction: nothing ends at 100
    losses = loss_by_round([run]).axes[0]
    assert losses.get_ylabel() == "Squared error (mm²)"
    assert list(losses.lines[2].get_ydata()) == [9.0, 2.25, 4.0]


def test_runs_that_are_measured_by_different_things_are_not_on_one_page(tmp_path, errors, monkeypatch):
    tasks = {7: Classification(), 8: history.task_of({})}
    monkeypatch.setattr(history, "task_of", lambda config: tasks[config["seed"]])
    other = make_run(tmp_path / "other", SMALL).path
    config = errors / "config.toml"
    config.write_text(config.read_text().replace("seed = 7", "seed = 8"))
    with pytest.raises(RunError, match=r"different measures: accuracy of 'other'; mean error of 'errors'") as error:
        read_histories([other, errors])
    assert error.value.hint == "report those of one measure at a time."


def test_a_run_of_an_older_format_is_refused_with_a_way_out(small):
    run = RunDirectory.open(small)
    content = run.rounds.path.read_text()
    run.rounds.path.write_text(content.replace('"measures"', '"accuracy"'))
    for read in (run.read_rounds, lambda: read_histories([small])):
        with pytest.raises(RunError, match="rounds without `measures`: an older version of fedelta wrote") as error:
            read()
        assert "use the version that environment.json names, or run config.toml again" in str(error.value.hint)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"mae": 1.0}, "`measures` is {'mae': 1.0}, expected numbers, mae and mse among them"),
        ({"mae": "1", "mse": 2.0}, "`measures` is .* expected numbers"),
        (0.5, "`measures` is 0.5, expected numbers"),
    ],
)
def test_measures_that_do_not_fit_are_named(errors, measures, message):
    run = RunDirectory.open(errors)
    first, *_ = run.rounds.read()
    run.rounds.truncate(0)
    run.rounds.append([{**first, "measures": measures}])
    with pytest.raises(RunError, match=f"line 1: {message}"):
        read_histories([errors])


def test_a_task_that_nobody_knows_is_named(small):
    config = small / "config.toml"
    config.write_text(f'{config.read_text()}\n[task]\nname = "sorcery"\n')
    with pytest.raises(RunError, match=r"config.toml': `\[task\]` cannot be right"):
        read_histories([small])
