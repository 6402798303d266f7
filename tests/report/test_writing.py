"""The whole page: every section, nothing loaded, every text escaped."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
from pathlib import Path

import pytest
from tests.report.pages import Page, fixed_colours, lines, page_of, plain, svgs, text_of
from tests.report.synthetic import SMALL, Shape, in_windows, make_error_run, make_run

from fedelta.errors import InputError, RunError
from fedelta.federation.records import Rejection
from fedelta.record.history import read_histories
from fedelta.report.plots import loss_by_round, measure_by_round
from fedelta.report.writing import write_report
from fedelta.strategies.fedlama import FedLama


def test_a_report_holds_every_section(small_page):
    for expected in (
        "Accuracy against rounds",
        "Accuracy against traffic",
        "where full fine-tuning in float32 would be",
        "Loss against rounds",
        "Traffic by part and direction",
        "8 blocks",
        "Clients",
        "Configuration",
        'source = "bundled:vit-micro"',
        "Environment",
        "packages.torch",
        "Citations",
        "@inproceedings{hu2022lora",
    ):
        assert expected in small_page.text, expected


def test_the_headline_numbers_are_right(small_page):
    # Groups: 8 layers of 3,072 and a head of 1,940 scalars = 26,516; 2 bytes each and 612 of headers.
    # A client sends and receives 53,644 bytes a round: 0.102 MiB. 3 rounds x 2 clients x 107,288 = 0.614 MiB.
    # Full: 4 x 1,214,000 x 12 transfers = 58,272,000 bytes = 55.6 MiB; 58,272,000 / 643,728 = 90.5.
    for expected in (
        "26,516",
        "2.18 % of 1,214,000",
        "0.102 MiB",
        "0.614 MiB",
        "55.6 MiB",
        "91 \N{MULTIPLICATION SIGN}",
    ):
        assert expected in small_page.plain, expected


def test_a_report_loads_nothing_and_runs_only_its_own_script(small_page):
    loading = {"src", "srcset", "data", "poster", "action", "background", "xlink:href", "href"}
    for tag, name, value in small_page.attributes:
        assert tag not in {"link", "iframe", "object", "embed", "img"}
        assert not name.startswith("on")
        if name in loading:
            assert value.startswith("#"), (tag, name, value)
    kinds = [value for tag, name, value in small_page.attributes if tag == "script" and name == "type"]
    num_pictures = len(svgs(small_page.content))
    assert kinds == ["text/plain"] * (num_pictures + 1)  # the data of each, and the library once
    assert len(small_page.texts["script"]) == num_pictures + 2
    assert "@import" not in small_page.content
    assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)'\"]+)", small_page.content))
    assert len(small_page.content) < 1.5 * 2**20


def test_a_page_without_pictures_has_no_library(tmp_path):
    run = make_run(tmp_path / "begun", dataclasses.replace(SMALL, num_finished=0))
    (run.path / "partition.json").unlink()
    page = page_of(run.path)
    assert svgs(page.content) == []
    assert "library" not in [value for _, name, value in page.attributes if name == "id"]
    assert len(page.content) < 2**16


def test_ids_are_unique_and_references_point_to_them(tmp_path, small):
    # Exits, windows and a finished model: every section with figures, and one run more.
    shape = dataclasses.replace(SMALL, num_exits=3, num_tested=60, seed=8, rejections=())
    path = make_run(tmp_path / "other", in_windows(shape, FedLama(phi=2))).path
    page = page_of(small, path)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for _, name, value in page.attributes if name.endswith("href") and value.startswith("#")}
    used |= {match for _, _, value in page.attributes for match in re.findall(r"url\(#([^)]+)\)", value)}
    assert used <= set(ids)


def test_no_fixed_colour_remains_in_the_pictures(small_page):
    drawings = svgs(small_page.content)
    assert len(drawings) == 5
    assert set[str]().union(*map(fixed_colours, drawings)) == set()


NASTY = {
    "markup": "<img src=x onerror=f()>$x^2$",
    "quotes": "\"'><b>",
    "expression": "{{ section.name }}{{9*'z'}}",
    "statement": "{% raw %}{# no #}",
    "controls": "a\x1b[31mb\u202ec\u2066d",
}


def test_what_a_run_says_is_text_and_no_more(tmp_path):
    names = tuple(NASTY.values())
    shape = dataclasses.replace(
        SMALL,
        num_rounds=5,
        class_names=names,
        groups=tuple((name, 30) for name in names),
        tuning="</pre><script>{{9*'z'}}\u202e",
        num_tested=60,
        num_clients=5,
    )
    run = make_run(tmp_path / "_<b>$n{{9*'z'}}'\"\x1b\u202e", shape)
    reasons = [{"client_id": 1, "reason": name, "cause": "refused"} for name in names]
    run.rounds.append([{**run.rounds.read()[-1], "round": 4, "rejections": reasons}])
    (run.path / "citations.bib").write_text("</pre><script>alert(2)</script>{% include 'x' %}\u202e")
    partition = json.loads((run.path / "partition.json").read_text())
    called = {client: f"{client} {name}" for client, name in zip(partition["clients"], names, strict=True)}
    (run.path / "partition.json").write_text(json.dumps(partition | {"names": called}))
    (run.path / "confusion.json").write_text(json.dumps({"class_names": names, "counts": [[1] * 5] * 5}))
    summary = {"measures": {"accuracy": 0.5}, "by_class": {name: {"recall": 0.5} for name in names}}
    (run.path / "summary.json").write_text(json.dumps(summary))

    page = page_of(run.path)
    assert not {tag for tag, _, _ in page.attributes} & {"img", "b"}
    # Four scripts are ours: nothing that a name says becomes one, and none ends early.
    *data, _, _ = page.texts["script"]
    assert len(data) == len(svgs(page.content))
    for text in data:
        assert re.fullmatch("[A-Za-z0-9+/]+=*", text)
        assert json.loads(gzip.decompress(base64.b64decode(text)))["marks"]
    for name in names:
        seen = re.sub("[\x1b\u202e\u2066]", "\ufffd", name)
        # A reason, a class, its row, a client; groups and classes in figures are cut where they are long.
        assert page.text.count(seen) >= 4, name
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page.content)
    for said in (
        "alert(2)",
        "{% include 'x' %}",
        "</pre><script>{{9*'z'}}\ufffd",
        "_<b>$n{{9*'z'}}'\"\ufffd\ufffd",
    ):
        assert said in page.text
    assert "zzz" not in page.text


def test_only_drawings_are_trusted():
    templates = Path(write_report.__code__.co_filename).with_name("templates")
    trusting = [
        (path.name, line.strip())
        for path in sorted(templates.glob("*.html"))
        for line in path.read_text().splitlines()
        if re.search(r"\|\s*safe|autoescape", line)
    ]
    assert [name for name, _ in trusting] == ["macros.html"]
    assert trusting[0][1].endswith("{{ picture.svg | safe }}")


def test_rejections_are_listed_when_there_are_any(tmp_path, small_page):
    for absent in ("Replies that did not enter the mean", "Participation"):
        assert absent not in small_page.text
    rejections = tuple(Rejection(number, f"reason {number}") for number in range(130))
    path = make_run(tmp_path / "faulty", Shape(num_rounds=4, num_finished=4, rejections=rejections)).path
    page = page_of(path)
    assert "Replies that did not enter the mean" in page.text
    assert "Of 32 clients asked: refused 130." in page.text
    assert page.tables[-2] == [["Round", "Client", "Reason"], *(["4", str(n), f"reason {n}"] for n in range(100))]
    assert "and 30 more" in page.text


def test_lost_clients_void_rounds_and_simulated_time_are_shown(tmp_path):
    lost = (Rejection(1, "could not be reached", "dropped out"), Rejection(2, "too few replies", "void round"))
    run = make_run(tmp_path / "lossy", Shape(num_rounds=4, num_finished=4, rejections=lost))
    records = run.rounds.read()
    run.rounds.truncate(0)
    run.rounds.append([{**record, "simulated_seconds": 100.0 * record["round"]} for record in records[:3]])
    run.rounds.append([{**records[3], "num_examples": 0, "train_loss_nats": None, "simulated_seconds": None}])
    text = text_of(run.path)
    # 100 + 200 + 300 seconds
    assert "Of 32 clients asked: dropped out 1, void round 1. 1 round did not count" in text
    assert "Simulated time: 10 min 0 s in all, 3 min 20 s in the median round." in text


@pytest.mark.parametrize("num_finished", [0, 1, 2])
def test_an_unfinished_run_is_reported_as_far_as_it_came(tmp_path, num_finished):
    run = make_run(tmp_path / "going", dataclasses.replace(SMALL, num_finished=num_finished))
    text = page_of(run.path).text
    assert f"Unfinished: {num_finished} of 3 rounds" in text
    assert ("No round is finished yet." in text) is (num_finished == 0)


def test_a_run_of_one_round_is_one_round_long(tmp_path):
    run = make_run(tmp_path / "short", dataclasses.replace(SMALL, num_rounds=1, num_finished=1))
    assert "1 round, 2 of 6 clients a round" in page_of(run.path).text


def test_a_killed_run_without_model_and_partition_files_is_reported(tmp_path):
    run = make_run(tmp_path / "going", dataclasses.replace(SMALL, num_finished=2))
    (run.path / "model.json").unlink()
    (run.path / "partition.json").unlink()
    with run.rounds.path.open("ab") as log:
        log.write(b'{"round": 3, "acc')
    text = text_of(run.path)
    assert "Unfinished: 2 of 3 rounds" in text
    assert "full fine-tuning would be" not in text


def test_rounds_without_evaluation_leave_no_gap(tmp_path):
    run = make_run(tmp_path / "sparse", dataclasses.replace(SMALL, evaluate_every=2))
    (history,) = read_histories([run.path])
    assert [record["round"] for record in history.evaluated] == [2]
    assert [round for round, _ in lines(measure_by_round([history]))["sparse"]] == [2]
    assert "Accuracy against rounds" in text_of(run.path)


def test_several_runs_are_compared(tmp_path, small):
    other = make_run(tmp_path / "other", dataclasses.replace(SMALL, tuning="head", groups=(("head", 50),), seed=9)).path
    text = text_of(small, other)
    for expected in ("2 runs compared", "What differs", "tuning.name", "Clients of small, other"):
        assert expected in text


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


def test_equal_runs_give_equal_pages_in_a_folder_that_is_made(tmp_path, small, small_page):
    out = tmp_path / "new" / "report.html"
    write_report([small], out)
    assert out.read_text(encoding="utf-8") == small_page.content


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_a_measure_that_should_be_low_is_shown_with_its_unit_and_the_lowest_is_the_best(tmp_path, monkeypatch):
    path = make_error_run(tmp_path / "errors", monkeypatch)
    (run,) = read_histories([path])
    assert (run.final, run.best) == (2.0, 1.5)
    page: Page = page_of(path)
    assert "Test mean error2.00 mmbest 1.50 mm" in plain(page.text)
    for title in ("Mean error against rounds", "Mean error against traffic", "Squared error against rounds"):
        assert title in page.text
    assert "ccuracy" not in page.text
    chart = measure_by_round([run])
    across, up = (chart.spec["layer"][-1]["encoding"][channel] for channel in "xy")
    assert (across["title"], up["title"]) == ("Round", "Test mean error (mm)")
    assert [height for _, height in lines(chart)["errors"]] == [3.0, 1.5, 2.0]
    assert "domain" not in up["scale"]  # no fraction: nothing ends at 100
    losses = loss_by_round([run])
    assert losses.spec["layer"][-1]["encoding"]["y"]["title"] == "Squared error (mm²)"
    assert [height for _, height in lines(losses)["test"]] == [9.0, 2.25, 4.0]
