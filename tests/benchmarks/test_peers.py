from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.peers import measure
from benchmarks.peers.__main__ import merged
from benchmarks.peers.environments import commands
from benchmarks.peers.goals import best_peer, reached
from benchmarks.peers.growth import points
from benchmarks.peers.loaded import load
from benchmarks.peers.measure import Figures, Plan
from benchmarks.peers.memory import family, pss_bytes
from benchmarks.peers.page import BEGIN, END, page, summary_table, with_table
from benchmarks.peers.prepare import experiment_of, prepare
from benchmarks.peers.side import SIDES
from benchmarks.peers.sides.bare import total
from benchmarks.peers.sides.flower import refuse_networks
from benchmarks.peers.talk import Talk
from benchmarks.peers.works import MLP, TINY, VIT, WORKS, Work, llama
from safetensors.torch import load_file

SMALL_VIT = VIT | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL_WORKS = {
    "mlp": Work("", MLP, "full", 3, 20, 1, 10, 0.05),
    "full": Work("", TINY, "full", 3, 20, 1, 10, 0.05),
    "lora": Work("", SMALL_VIT, "lora", 2, 8, 2, 4, 0.05),
    "head": Work("", SMALL_VIT, "head", 2, 8, 1, 4, 0.05),
    "language": Work("", llama(32, 2, 64), "lora", 2, 4, 2, 2, 0.5),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", SMALL_WORKS)
def test_fedelta_and_the_bare_loop_end_at_the_same_params(name: str, tmp_path: Path) -> None:
    work = SMALL_WORKS[name]
    loaded = load(prepare(work, tmp_path))
    params = {key: tensor.detach().clone() for key, tensor in loaded.tuned.items()}
    start = dict(params)
    for number in (1, 2):
        params = total(loaded, number, params, range(work.num_clients))
    ours = experiment_of(work, 2, workers=None).run(tmp_path / "run").params
    assert ours.keys() == params.keys()
    for key, tensor in params.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6)
    assert any((params[key] - start[key]).abs().max() > 1e-4 for key in params)


def test_a_prepared_work_is_not_prepared_again(tmp_path: Path) -> None:
    first = prepare(SMALL_WORKS["full"], tmp_path)
    (first / "base.safetensors").unlink()
    assert prepare(SMALL_WORKS["full"], tmp_path) == first
    assert not (first / "base.safetensors").exists()


def test_a_side_that_differs_has_an_error_instead_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {
        "bare": {"w": torch.tensor([1.0, 2.0])},
        "pfl": {"w": torch.tensor([1.0, 2.000001])},
        "flower": {"w": torch.tensor([1.0, 2.1])},
        "blazefl": {"v": torch.tensor([1.0, 2.0])},
    }
    figures = {name: Figures() for name in params}
    monkeypatch.setattr(measure, "load", lambda folder: SimpleNamespace(loss=lambda tensors: 1.5))
    plan = Plan(Path(), Path(), list(params), repeats=1, warm_up=1, compared=2, logs=Path())
    measure._compare(WORKS["W1"], plan, params, figures)
    assert [figures[name].error == "" for name in params] == [True, True, False, False]
    assert figures["flower"].error == "parameters differ by 1.0e-01 after 2 rounds, expected at most 1e-05"
    assert figures["blazefl"].error == "has other tensors: ['v', 'w']"
    assert figures["pfl"].loss == 1.5


def test_memory_of_a_family_is_the_sum_of_its_proportional_sizes(tmp_path: Path) -> None:
    # 7 has a child 8 of one thread and a child 9 of another; 9 has a child 10 that is ending: it has no sizes any more.
    for pid, tid, children in ((7, 7, "8 "), (7, 71, "9 "), (8, 8, ""), (9, 9, "10 "), (10, 10, "")):
        task = tmp_path / f"{pid}/task/{tid}"
        task.mkdir(parents=True)
        (task / "children").write_text(children)
    for pid, size in ((7, 300), (8, 20), (9, 1)):
        (tmp_path / f"{pid}/smaps_rollup").write_text(f"0-1 rollup\nRss: 999 kB\nPss: {size} kB\nPss_Anon: 5 kB\n")
    assert sorted(family(7, tmp_path)) == [7, 8, 9, 10]
    assert sum(pss_bytes(pid, tmp_path) for pid in family(7, tmp_path)) == 321 * 1024


def test_this_process_has_a_proportional_size() -> None:
    assert 2**20 < pss_bytes(os.getpid()) < 2**40


def test_a_side_waits_for_rounds_and_writes_params(tmp_path: Path) -> None:
    answers = io.StringIO()
    talk = Talk(io.StringIO(f"round\nparams {tmp_path}/p.safetensors\nend\n"), answers)
    assert talk.wait()
    assert not talk.wait(lambda: {"w": torch.ones(2)})
    assert answers.getvalue().splitlines() == ['{"ready": true}', '{"ready": false}', '{"written": true}']
    assert load_file(tmp_path / "p.safetensors")["w"].tolist() == [1.0, 1.0]


def test_flower_is_not_started_where_there_is_a_network() -> None:
    refuse_networks(["lo"])
    with pytest.raises(SystemExit, match=r"only started where `lo` is the only interface, here: \['lo', 'eth0'\]"):
        refuse_networks(["lo", "eth0"])


def test_torch_is_installed_first_and_what_asks_for_a_newer_python_last() -> None:
    steps = commands(Path("/env"), "python3", ["blazefl==2.0.3", "numpy==2.4.6", "torch==2.13.0"])
    assert [step[-1] for step in steps] == ["/env", "torch==2.13.0", "torch==2.13.0", "blazefl==2.0.3"]
    assert steps[2][-2:] == ["numpy==2.4.6", "torch==2.13.0"]
    assert "--ignore-requires-python" in steps[3]
    assert "--ignore-requires-python" not in steps[2]


def test_growth_keeps_what_is_done_while_clients_grow() -> None:
    clients = [point for point in points() if point.title.startswith("clients")]
    assert [point.work.num_clients for point in clients] == [100, 1_000, 10_000, 100_000]
    assert {(point.work.cohort, point.work.steps, point.work.batch_size) for point in clients} == {(10, 1, 10)}
    assert {point.work.num_clients * point.work.num_rows for point in clients} == {1_000_000}


def one(seconds: list[float], mib: float, **more: object) -> dict[str, object]:
    return {
        "seconds": seconds, "first_seconds": [], "peak_mib": mib, "difference": 1e-7, "loss": 2.0, "error": "", **more,
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, object]:
    """W1: 2 s against BlazeFL's 3 s and pfl's 4 s. W3: 1 s, the first round 3 s, against pfl's 10 s."""
    w1 = {"fedelta": one([1.0, 2.0, 9.0], 500.0), "pfl": one([4.0], 400.0), "blazefl": one([3.0, 3.0], 1000.0)}
    w1["flower"] = one([], 0.0, error="parameters differ")
    w3 = {"fedelta": one([1.0], 800.0, first_seconds=[3.0]), "pfl": one([10.0], 700.0)}
    works = {
        name: {
            "title": f"the work {name}",
            "repeats": 3,
            "date": "2026-01-02",
            "command": "it",
            "sides": sides,
            "commit": "0123456789abcdef",
        }
        for name, sides in (("W1", w1), ("W3", w3))
    }
    growth = {"title": "clients", "clients": 100_000, "cohort": 10, "workers": "auto"}
    return {
        "works": works,
        "machine": {"processor": "A CPU", "cpu_count": 2, "torch": "2.13.0", "python": "3.11.7"},
        "versions": ["pfl 0.6.0"], "left_out": {"BlazeFL, 2 workers": "there is no interpreter 'python3.12'"},
        "growth": [{**growth, "seconds": [0.5, 0.5], "peak_mib": 400.0}],
    }  # fmt: skip


def test_goals_compare_medians_with_the_best_side(results: dict) -> None:
    w1, w3 = (results["works"][name]["sides"] for name in ("W1", "W3"))
    assert best_peer(w1) == "blazefl"
    assert [(one.side, round(one.ratio, 3), one.is_met) for one in reached(WORKS["W1"], w1)] == [
        ("blazefl", 0.667, True),  # 2 s of 3 s, at most 0.85
        ("blazefl", 0.5, True),  # 500 of 1,000 MiB
    ]
    assert [(one.goal.what, one.ratio, one.is_met) for one in reached(WORKS["W3"], w3)] == [
        ("round", 0.1, False),  # 1 s of 10 s, at most 0.01
        ("first", 0.3, True),  # 3 s of 10 s
    ]


def test_the_page_says_where_fedelta_is_behind(results: dict) -> None:
    text = page(results)
    behind = text.split("## Where fedelta is behind")[1].split("\n## ")[0]
    assert "3 rounds of each side, 2026-01-02, commit 0123456789: `it`." in text
    assert "- W1: the peak of memory is 1.25 times that of pfl, one process." in behind
    assert "- W3: the peak of memory is 1.14 times that of pfl, one process." in behind
    assert "- W3: seconds a round against pfl, one process: **0.1**, goal 0.01, not met." in behind
    assert f"no times for {SIDES['flower'].title}: parameters differ." in behind
    assert "W1: seconds" not in behind
    assert "| fedelta | 2 | 1 to 9 |  | 500 | 1e-07 | 2.0000 |" in text
    assert "| clients | 100,000 | 10 | auto | 0.5 | 50,000 | 400 |" in text
    assert "Left out: BlazeFL, 2 workers, there is no interpreter 'python3.12'." in text


def test_figures_of_another_machine_do_not_stay(results: dict, tmp_path: Path) -> None:
    options, new = SimpleNamespace(out=tmp_path / "peers.json"), {"works": {"W5": results["works"]["W1"]}}
    first = merged(options, {"works": results["works"]}, {})
    assert merged(options, new, {})["works"].keys() == {"W1", "W3", "W5"}
    options.out.write_text(json.dumps({**first, "machine": {**first["machine"], "processor": "another"}}))
    assert merged(options, new, {})["works"].keys() == {"W5"}


def test_the_page_names_every_side_that_is_faster_also_bare_loops(results: dict) -> None:
    sides = results["works"]["W1"]["sides"]
    sides["bare"], sides["pfl2"] = one([1.0], 900.0), one([1.6], 900.0)  # fedelta takes 2 s
    expected = f"- W1: a round takes 2.00 times as long as with {SIDES['bare'].title}, 1.25 times as long as with pfl, "
    assert expected in page(results)


def test_the_page_says_so_if_fedelta_is_nowhere_behind(results: dict) -> None:
    del results["works"]["W3"], results["works"]["W1"]["sides"]["flower"]
    results["works"]["W1"]["sides"]["pfl"]["peak_mib"] = 600.0
    assert "Nowhere in these works" in page(results)


def test_the_readme_gets_the_table_between_its_comments(results: dict) -> None:
    text = with_table(f"before\n{BEGIN}\n\nold\n\n{END}\nafter", summary_table(results))
    assert text.startswith(f"before\n{BEGIN}\n\n| work |")
    assert text.endswith(f"|\n\n{END}\nafter")
    assert "old" not in text
    assert "| the work W1 | 2 | 3, BlazeFL" in text
    assert with_table(text, summary_table(results)) == text


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}", f"{BEGIN} {END} {END}"])
def test_a_readme_without_both_comments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each; put them around the table"):
        with_table(text, "table")


def test_results_of_works_are_records_for_json(results: dict) -> None:
    figures = Figures(seconds=[1.0], peak_mib=2.0)
    assert json.loads(json.dumps(figures.as_record()))["seconds"] == [1.0]
    assert figures.median == 1.0
    assert Figures().median == float("inf")
