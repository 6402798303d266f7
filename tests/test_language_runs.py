"""Whole runs of language models: trained, answered with, read by stock PEFT, and merged."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from tests.builders import assert_same_bits
from tests.cards import executed
from tests.small import stop_after
from tests.small_language import dialogues, small_config, write_model, write_table
from typer.testing import CliRunner

from fedelta.assembly.run import assemble
from fedelta.cli import app
from fedelta.config import parse_config
from fedelta.errors import InputError, ModelError
from fedelta.experiment import Experiment
from fedelta.inference.merged import write_merged
from fedelta.inference.predict import Predictor
from fedelta.models.generation import Sampling
from fedelta.report.writing import write_report
from fedelta.runtimes.stability import Unstable


def files(folder: Path, family: str = "llama", **fields: object) -> tuple[Path, Path]:
    model = write_model(folder / family, family, **fields)
    return model, write_table(folder / "rows.jsonl", dialogues(90))


def experiment(folder: Path, family: str = "llama", more: str = "", *overrides: str) -> Experiment:
    table = tomllib.loads(small_config(*files(folder, family), more))
    return Experiment(parse_config(table, overrides))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("language")


@pytest.fixture(scope="module")
def result(folder: Path):
    return experiment(folder).run(folder / "run")


def test_a_run_measures_tokens_and_answers(result):
    summary = json.loads((result.path / "summary.json").read_text())
    measures = summary["measures"]
    assert set(measures) == {"test_loss", "perplexity", "exact_match", "rouge_l"}
    assert measures["perplexity"] == pytest.approx(2.718281828 ** measures["test_loss"])
    assert {"test_loss", "perplexity"} <= set(next(iter(summary["by_client"].values())))
    rounds = [json.loads(line) for line in (result.path / "rounds.jsonl").read_text().splitlines()]
    assert rounds[-1]["measures"]["test_loss"] == measures["test_loss"]


def test_a_check_shows_prompts_with_their_responses(folder: Path):
    path = folder / "check.toml"
    path.write_text(small_config(*files(folder)))
    done = CliRunner().invoke(app, ["check", str(path)])
    assert done.exit_code == 0, done.output
    assert "examples: 72 training, 18 test" in done.stdout
    assert re.search(r"'What does the old \w+ do\?' is 'The \w+ \w+ loudly\.', client \d \('farm \d'\)", done.stdout)


def test_padding_is_left_out_and_lanes_are_used(result):
    engine = result.assembly.engine
    assert engine.notes == []
    assert engine.lanes.num > 1
    assert engine._model._unpadded is not None
    assert engine._model._unpadded.last is not None


def test_training_lowers_the_loss(folder: Path):
    losses = []
    longer = ("strategy.num_rounds=6", "client.local_steps=4", "task.num_answers=0", "evaluate_every=3")
    trained = experiment(folder, "llama", "", *longer)
    trained.run(folder / "longer", on_round=lambda outcome, _: losses.append(outcome.evaluation))
    measured = [evaluation.measures["test_loss"] for evaluation in losses if evaluation is not None]
    assert measured[-1] < 0.9 * measured[0]


def test_a_clients_work_is_its_tokens(folder: Path):
    site = experiment(folder, "llama", "", "client.local_steps=", "client.local_epochs=2").assembly.site
    inputs = site.engine.inputs
    for client, rows in site.partition.items():
        tokens = sum(int(inputs.fetch(row.view(1))["attention_mask"].sum()) for row in rows)
        assert site.work_of(client) == pytest.approx(2 * tokens)


def test_simulated_time_counts_tokens(folder: Path):
    settings = ("stability.examples_per_second=10.0", "stability.speed_spread=0.0")
    runtime = experiment(folder, "llama", "", *settings).assembly.federation.runtime
    assert isinstance(runtime, Unstable)
    site = experiment(folder).assembly.site
    tokens = site.engine.inputs.num_tokens.double()
    # 2 steps of 4 rows, at 10 rows of mean length a second.
    expected = {farm: 0.8 * float(tokens[rows].mean() / tokens.mean()) for farm, rows in site.partition.items()}
    assert len(set(expected.values())) > 1
    assert {farm: runtime.seconds(farm, 0) for farm in expected} == pytest.approx(expected)


def test_many_lanes_give_what_one_lane_gives(folder: Path):
    params = [
        experiment(folder, "llama", "", f"runtime.lanes={lanes}").run(folder / f"lanes-{lanes}").params
        for lanes in (1, 3)
    ]
    for name, value in params[0].items():
        torch.testing.assert_close(params[1][name], value, rtol=1e-3, atol=1e-5)


def test_workers_train_and_evaluate_with_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.runtimes.settings.available_cores", lambda: 2)
    here, apart = (
        experiment(folder, "llama", "", "task.num_answers=0", *overrides).run(folder / f"workers-{number}")
        for number, overrides in enumerate(
            (["runtime.name=simulation"], ["runtime.name=processes", "runtime.workers=2"])
        )
    )
    assert_same_bits(apart.params, here.params)
    assert apart.measures == here.measures


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_the_code_in_the_card_computes_the_same_logits_and_answers_alike(result, tmp_path):
    (said, scope), (ours, _) = executed(result.path / "adapter", tmp_path, result.assembly.config.model.source)
    stock = scope["model"]
    assert ours
    assert said.startswith(ours)  # fedelta ends an answer where the context ends
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    assert stock.peft_config["default"].task_type == "CAUSAL_LM"
    with torch.no_grad():
        expected = stock(**inputs).logits
        torch.testing.assert_close(Predictor.open(result.path).backbone.logits(inputs), expected)
        torch.testing.assert_close(result.predictor().backbone.logits(inputs), expected, rtol=1e-4, atol=1e-4)


def test_the_template_lies_beside_the_adapter(result):
    text = (result.path / "adapter" / "chat_template.jinja").read_text()
    assert text == Predictor.open(result.path).backbone.modality.template.source


def test_the_merged_model_is_a_whole_directory(result, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fedelta.models.weights import quiet_transformers

    directory = write_merged(result.path, tmp_path / "merged")
    with quiet_transformers():
        model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What does the cow do?"}], return_tensors="pt")
    with torch.no_grad():
        expected = Predictor.open(result.path).backbone.logits({"input_ids": ids["input_ids"]})
        torch.testing.assert_close(model(input_ids=ids["input_ids"]).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="holds files already"):
        write_merged(result.path, directory)


def test_answers_do_not_depend_on_the_other_prompts(result):
    predictor = Predictor.open(result.path)
    prompts = ["What does the cow do?", "What does the old old old fox do?"]
    together = predictor.generate(prompts, Sampling(max_new_tokens=8))
    assert together == [predictor.generate([prompt], Sampling(max_new_tokens=8))[0] for prompt in prompts]


def test_a_prompt_is_read_whole_however_long_its_answer_may_be(result):
    predictor = Predictor.open(result.path)
    modality, prompt = predictor.backbone.modality, "What does the old old old fox do?"
    (short,) = predictor.generate([prompt], Sampling(max_new_tokens=4))
    (long,) = predictor.generate([prompt, "Hi."], Sampling(max_new_tokens=10 * modality.context))[:1]
    assert long.startswith(short)
    assert len(long) > len(short)
    with pytest.raises(
        InputError, match=r"prompt 2 has [\d,]+ tokens, and the model takes [\d,]+, its answer included"
    ):
        predictor.generate(["Hi.", "old " * modality.context])


def test_an_answer_comes_in_pieces_and_ends_where_it_should(result):
    predictor, pieces = Predictor.open(result.path), []
    sampling = Sampling(max_new_tokens=8)
    (answer,) = predictor.generate(["What does the cow do?"], sampling, on_text=pieces.append)
    assert "".join(pieces).strip() == answer.strip()
    stop = answer[2:4]
    stopped, pieces = answer[: answer.index(stop)], []
    sampling = Sampling(max_new_tokens=8, stop=(stop,))
    assert predictor.generate(["What does the cow do?"], sampling) == [stopped]
    assert predictor.generate(["What does the cow do?"], sampling, on_text=pieces.append) == [stopped]
    assert "".join(pieces) == stopped


def test_settings_of_the_checkpoint_do_not_change_how_an_answer_is_continued(result):
    predictor, likely = Predictor.open(result.path), Sampling(max_new_tokens=8)
    drawn = [Sampling(max_new_tokens=1, temperature=100.0, seed=seed) for seed in range(8)]
    (before,) = predictor.generate(["What does the cow do?"], likely)
    own = predictor.backbone.module.generation_config
    own.repetition_penalty, own.top_k = 9.0, 1
    assert predictor.generate(["What does the cow do?"], likely) == [before]
    # Nearly all of 320 tokens are equally likely; transformers draws from the 50 most likely ones by default.
    assert len({answer for each in drawn for answer in predictor.generate(["What?"] * 32, each)}) > 50
    assert predictor.backbone.module.generation_config is own


def test_what_is_drawn_follows_from_the_seed(result):
    predictor = Predictor.open(result.path)
    answers = {
        seed: [
            predictor.generate(["What?"], Sampling(max_new_tokens=8, temperature=2.0, top_p=0.95, seed=seed))[0]
            for _ in range(2)
        ]
        for seed in (0, 1)
    }
    assert answers[0][0] == answers[0][1] != answers[1][0]


def test_a_language_model_has_no_labels_to_predict(result):
    with pytest.raises(InputError, match="a language model gives no labels, but texts"):
        Predictor.open(result.path).predict(["Hi."])


def test_an_empty_prompt_is_refused(result):
    with pytest.raises(InputError, match="prompt 2 is empty"):
        Predictor.open(result.path).generate(["Hi.", "  "])


@pytest.mark.parametrize("family", ["gemma2", "bloom"])
def test_families_that_keep_their_padding_run_too(folder: Path, family: str):
    measures = experiment(folder, family, "", "task.num_answers=0").run(folder / f"run-{family}").measures
    assert measures["test_loss"] > 0


@pytest.mark.parametrize(
    ("method", "fits"),
    [
        ("lora", True), ("adapter", True), ("full", True), ("bias", False), ("head", False), ("prompt", False),
        ("accumulator", False), ("exit-heads", False), ("parallel", False),
    ],
)  # fmt: skip
def test_methods_fit_or_are_refused_with_a_reason(folder: Path, method: str, fits: bool):
    table = tomllib.loads(small_config(*files(folder)))
    table["tuning"] = {"name": method}
    if fits:
        assert assemble(parse_config(table)).spec.num_parameters > 0
        return
    with pytest.raises(InputError) as error:
        assemble(parse_config(table))
    assert "LlamaForCausalLM" in str(error.value) or "language model" in str(error.value)


def test_bias_fits_a_family_that_has_biases(folder: Path):
    table = tomllib.loads(small_config(*files(folder, "gpt2")))
    table["tuning"] = {"name": "bias"}
    assert assemble(parse_config(table)).spec.num_parameters > 0


def test_full_fine_tuning_trains_the_output_embedding_too(folder: Path):
    assembly = experiment(folder, "llama", "", "tuning.name=full", "tuning.r=").assembly
    assert any("lm_head" in name or "embed_tokens" in name for name in assembly.spec.names)


def test_the_output_embedding_gets_no_pair(folder: Path):
    with pytest.raises(ModelError, match="entry 'lm_head' matches no linear or convolutional layer"):
        assert experiment(folder, "llama", "", 'tuning.target_modules=["lm_head"]').assembly


def test_division_by_classes_is_refused(folder: Path):
    with pytest.raises(InputError, match="which divides by classes, but the task has none"):
        assert experiment(
            folder, "llama", "", "partition.name=dirichlet", "partition.num_clients=3", "partition.alpha=1.0"
        ).assembly


def test_the_command_answers_one_prompt_as_text_and_several_as_lines(result):
    one = CliRunner().invoke(app, ["predict", str(result.path), "--prompt", "What?", "--max-tokens", "4"])
    assert one.exit_code == 0, one.output
    prompts = ["--prompt", "What?", "--prompt", "Who?"]
    several = CliRunner().invoke(app, ["predict", str(result.path), *prompts, "--max-tokens", "4"])
    lines = [json.loads(line) for line in several.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["What?", "Who?"]
    assert lines[0]["answer"].strip() == one.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "there is nothing to predict"),
        (["a.png", "--prompt", "Hi."], "INPUT and --prompt exclude each other"),
        (["Hi.", "--temperature", "1"], "how an answer is drawn was given, but no prompt"),
        (["--prompt", "Hi.", "--top-p", "2"], "`--top-p`"),
    ],
)
def test_options_that_do_not_go_together_are_refused(result, arguments: list[str], problem: str):
    done = CliRunner().invoke(app, ["predict", str(result.path), *arguments])
    assert isinstance(done.exception, InputError) or done.exit_code == 2
    assert problem in (str(done.exception) + done.output)


def test_one_prompt_instead_of_a_list_is_a_misuse(result):
    with pytest.raises(InputError, match="`prompts` is one text, expected a list of prompts"):
        Predictor.open(result.path).generate("Hi?")


def test_answers_have_curves_where_a_setting_asks_for_them(folder: Path):
    asked = ("strategy.num_rounds=5", "evaluate_every=4", "task.answers_every=3")
    run = experiment(folder, "llama", "", *asked).run(folder / "answers")
    rounds = [json.loads(line)["measures"] for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    # Rounds 3 and 5, the last one, have answers; round 4 is evaluated without.
    assert [None if measures is None else len(measures) for measures in rounds] == [None, None, 4, 2, 4]
    assert rounds[-1] == run.measures
    write_report([run.path], folder / "page.html")
    page = (folder / "page.html").read_text()
    assert "Exact match against rounds" in page
    assert "ROUGE-L against rounds" in page
    with pytest.raises(KeyboardInterrupt):
        experiment(folder, "llama", "", *asked).run(folder / "stopped", on_round=stop_after(3))
    Experiment.from_run(folder / "stopped").resume(folder / "stopped")
    assert (folder / "stopped" / "rounds.jsonl").read_bytes() == (run.path / "rounds.jsonl").read_bytes()
