"""Whatever a run began with and wrote is recognised: what has changed since is told, by whoever uses it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.small import stop_after

from fedelta.errors import AdapterError, FedeltaError, InputError, RunError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.inference.predict import Predictor
from fedelta.personalization import personalize
from fedelta.record.history import read_histories
from fedelta.report.writing import write_report
from fedelta.seeds import stream

CONFIG = """
seed = 3

[model]
source = "{folder}/model"

[tuning]
name = "lora"
r = 2

[data]
source = "{folder}/data"
max_memory_mib = {memory}

[partition]
name = "iid"
num_clients = 4

[strategy]
clients_per_round = 2
num_rounds = 2

[client]
batch_size = 8

[personalization]
held_out_clients = 1
lrs = [0.1]
"""
ARCHITECTURE = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8, "patch_size": 4, "hidden_act": "gelu",
}  # fmt: skip


def write_images(folder: Path, salt: int = 0) -> None:
    """Ten images of each of two classes to learn from, four to measure on."""
    for split, number in (("train", 10), ("test", 4)):
        for label in ("cat", "dog"):
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                pixels = np.random.default_rng([salt, number, ord(label[0]), index]).integers(
                    0, 255, (8, 8, 3), np.uint8
                )
                Image.fromarray(pixels).save(place / f"{index}.png")


def write_model(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    folder.mkdir()
    model = ViTForImageClassification(ViTConfig(**ARCHITECTURE))
    for name, tensor in model.state_dict().items():
        tensor.copy_(0.2 * torch.randn(tensor.shape, generator=stream(0, name)))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that was stopped after its first round, one of another seed, and what they began with."""
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "data")
    write_model(folder / "model")
    for memory, name in ((64, "config"), (0, "lazy")):
        (folder / f"{name}.toml").write_text(CONFIG.format(folder=folder, memory=memory))
        Experiment.from_toml(folder / f"{name}.toml").run(folder / f"{name}-done")
        with pytest.raises(KeyboardInterrupt):
            Experiment.from_toml(folder / f"{name}.toml").run(folder / f"{name}-stopped", on_round=stop_after(1))
    Experiment.from_toml(folder / "config.toml", ["seed=4"]).run(folder / "other")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of all of it where it was, to be changed; the original is put back afterwards."""
    shutil.copytree(made, tmp_path / "kept")
    yield made
    shutil.rmtree(made)
    shutil.copytree(tmp_path / "kept", made)


def misfits_of(run: Path) -> tuple[str, ...]:
    return read_histories([run])[0].misfits


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def other_bytes(folder: Path, split: str) -> None:
    image = folder / "data" / split / "cat" / "0.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)


def other_order(folder: Path) -> None:
    first, second = (folder / "data" / "train" / "cat" / f"{index}.png" for index in (0, 1))
    first.rename(folder / "aside.png")
    second.rename(first)
    (folder / "aside.png").rename(second)


def other_weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["vit.layernorm.weight"][3] += 1e-3
    save_file(tensors, path, {"format": "pt"})


def other_activation(folder: Path) -> None:
    edit(folder / "model" / "config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"')


def resume(folder: Path, name: str) -> None:
    run = folder / f"{name}-stopped"
    Experiment.from_run(run).resume(run)


def evaluate(folder: Path, name: str) -> None:
    evaluate_adapter(folder / f"{name}-done")


def fine_tune(folder: Path, name: str) -> None:
    personalize(folder / f"{name}-done")


def predict(folder: Path, name: str) -> None:
    Predictor.open(folder / f"{name}-done")


INPUTS: dict[str, tuple[Callable[[Path], None], str, tuple[Callable[[Path, str], None], ...]]] = {
    "other bytes to learn from": (
        lambda folder: other_bytes(folder, "train"), r"training examples \(.*data\) are not those", (resume, fine_tune)
    ),
    "other bytes to measure on": (
        lambda folder: other_bytes(folder, "test"), r"the test examples \(.*data\) are not those", (resume, evaluate)
    ),
    "rows in another order": (other_order, r"the training examples \(.*data\) are not those", (resume, fine_tune)),
    "other weights": (
        other_weights, r"base weights.*(are not those that the run began with|differ)",
        (resume, evaluate, fine_tune, predict),
    ),
    "another activation": (
        other_activation, r"model file config.json.*(are not those that the run began with|differ)",
        (resume, evaluate, fine_tune, predict),
    ),
}  # fmt: skip


def test_what_has_not_changed_is_used(place: Path):
    for use in (resume, evaluate, fine_tune, predict):
        use(place, "lazy")


@pytest.mark.parametrize(
    ("change", "message", "users", "name"),
    [pytest.param(*case, "config", id=kind) for kind, case in INPUTS.items()]
    # Rows that are decoded at every fetch.
    + [pytest.param(*case, "lazy", id=f"{kind}, lazily") for kind, case in INPUTS.items() if "other bytes" in kind],
)
def test_other_inputs_at_the_same_place_are_refused(change, message, users, name: str, place: Path):
    change(place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for use in users:
        with pytest.raises(InputError, match=message) as caught:
            use(place, name)
        assert re.search("bring back what the run began with|restore the base model", str(caught.value.hint))
        assert "delete" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_what_an_evaluation_does_not_use_may_be_gone_and_what_is_asked_for_may_be_other(place: Path):
    other_bytes(place, "train")
    evaluate(place, "config")
    write_images(place / "more", salt=1)
    result = evaluate_adapter(place / "config-done", overrides=[f"data.test_source={place}/more/test"])
    assert 0 <= result.measures["accuracy"] <= 1


def test_data_and_weights_may_move(place: Path):
    for name in ("data", "model"):
        (place / name).rename(place / f"{name}-2")
    for run in ("config-stopped", "config-done"):
        edit(place / run / "config.toml", f'"{place}/data"', f'"{place}/data-2"')
        edit(place / run / "config.toml", f'"{place}/model"', f'"{place}/model-2"')
    resume(place, "config")
    evaluate(place, "config")


def one_digit(path: Path, key: str) -> None:
    """Changes the last digit of the first number under `key` in the last line."""
    *lines, last = path.read_text().splitlines()
    row = json.loads(last)
    row[key] += 1
    path.write_text("\n".join([*lines, json.dumps(row)]) + "\n")


def in_the_last_complete_round(path: Path) -> None:
    one_digit(path, "payload_bytes" if path.name == "ledger.jsonl" else "uplink_bytes")


LOGS = {
    "a digit of the ledger": ("ledger.jsonl", in_the_last_complete_round),
    "a digit of the rounds": ("rounds.jsonl", in_the_last_complete_round),
    "a ledger of another seed": ("ledger.jsonl", None),
    "rounds of another seed": ("rounds.jsonl", None),
}


@pytest.mark.parametrize(("name", "change"), LOGS.values(), ids=LOGS)
def test_a_changed_log_is_refused_by_resume_and_shown_by_report(name: str, change, place: Path):
    for run in ("config-stopped", "config-done"):
        if change is None:
            shutil.copy(place / "other" / name, place / run / name)
        else:
            change(place / run / name)
    message = rf"{name}' (is not as the run wrote it up to round|has \d+ bytes, the checkpoint was written when it had)"
    with pytest.raises(RunError, match=message) as caught:
        resume(place, "config")
    assert "restore it from a copy" in str(caught.value.hint)
    for run in ("config-stopped", "config-done"):
        assert re.search(message, misfits_of(place / run)[0])


def test_a_torn_last_line_of_a_log_does_no_harm(place: Path):
    for name in ("ledger.jsonl", "rounds.jsonl", "timings.jsonl"):
        with (place / "config-stopped" / name).open("a") as file:
            file.write('{"round": 2, "cli')
    assert not misfits_of(place / "config-stopped")
    resume(place, "config")
    for name in ("ledger.jsonl", "rounds.jsonl", "checkpoint/state.safetensors"):
        assert (place / "config-stopped" / name).read_bytes() == (place / "config-done" / name).read_bytes(), name


FILES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a configuration of another seed": (
        lambda run, other: shutil.copy(other / "config.toml", run),
        "`seed` is 4 in `config.toml`, the run began with 3",
    ),
    "a setting that was changed": (
        lambda run, other: edit(run / "config.toml", "batch_size = 8", "batch_size = 7"),
        "`client.batch_size` is 7 in `config.toml`, the run began with 8",
    ),
    "the names of another run's clients": (
        lambda run, other: (run / "partition.json").write_text('{"class_names": ["x"], "clients": {"0": [1]}}'),
        "partition.json' is not as the run wrote it when it began",
    ),
    "a summary of another run": (
        lambda run, other: edit(run / "summary.json", '"uplink_bytes": ', '"uplink_bytes": 1'),
        "`uplink_bytes` is 1",
    ),
    "a checkpoint of another run": (
        lambda run, other: shutil.copy(other / "checkpoint" / "state.safetensors", run / "checkpoint"),
        "ledger.jsonl' is not as the run wrote it up to round 2",
    ),
    "a loss in the summary": (
        lambda run, other: edit(run / "summary.json", '"final_loss_nats": ', '"final_loss_nats": 1'),
        "`final_loss_nats` is 1",
    ),
    "a damaged checkpoint": (
        lambda run, other: (run / "checkpoint" / "state.safetensors").write_bytes(b"nothing"),
        "it was truncated or damaged",
    ),
}


@pytest.mark.parametrize(("change", "message"), FILES.values(), ids=FILES)
def test_a_report_says_what_does_not_fit(change, message: str, place: Path):
    run = place / "config-done"
    assert not misfits_of(run)
    change(run, place / "other")
    assert any(message in problem for problem in misfits_of(run))


def test_the_page_shows_what_does_not_fit_and_of_which_run(place: Path):
    write_report([place / "config-done", place / "lazy-done"], place / "page.html")
    assert "Files that do not fit" not in (place / "page.html").read_text()
    one_digit(place / "lazy-done" / "ledger.jsonl", "payload_bytes")
    write_report([place / "config-done", place / "lazy-done"], place / "page.html")
    page = (place / "page.html").read_text()
    assert "Files that do not fit" in page
    assert re.search(
        r"<th[^>]*>lazy-done</th>\s*<td>[^<]*ledger.jsonl&#39; is not as the run wrote it up to round 2</td>", page
    )
    assert re.search(
        r"<td[^>]*>\s*round 2: `\w+link_bytes` is [\d,]+ in `rounds.jsonl`, the rows of `ledger.jsonl` add up", page
    )


@pytest.mark.parametrize("kind", ["a configuration of another seed", "a setting that was changed"])
def test_a_configuration_of_another_run_is_refused(kind: str, place: Path):
    change, message = FILES[kind]
    for run in ("config-stopped", "config-done"):
        change(place / run, place / "other")
    for use in (resume, evaluate, fine_tune):
        with pytest.raises(InputError, match=message):
            use(place, "config")


ADAPTERS = {
    "of another run": (
        lambda run, other: (shutil.rmtree(run / "adapter"), shutil.copytree(other / "adapter", run / "adapter")),
        r"tensors differ from the run's checkpoint, first `vit",
        FedeltaError,
    ),
    "with the tensors of another run": (
        lambda run, other: shutil.copy(other / "adapter" / "adapter_model.safetensors", run / "adapter"),
        r"is not the file that was written with `fedelta.json`",
        AdapterError,
    ),
}


OWN = {
    "lost": (lambda path: path.unlink(), "tuning.name.*class names"),
    "without anything": (lambda path: path.write_text("{}"), "tuning.name.*class names"),
    "with classes in another order": (
        lambda path: path.write_text(
            path.read_text().replace('"cat"', '"x"').replace('"dog"', '"cat"').replace('"x"', '"dog"')
        ),
        "(wrote into it: class names$|tensors differ from the run's checkpoint)",  # whichever is noticed first
    ),
    "with another scale": (
        lambda path: edit(path, '"lora_alpha": 16.0', '"lora_alpha": 17.0'), "wrote into it: tuning.lora_alpha$"
    ),
    "with another seed": (lambda path: edit(path, '"seed": 3', '"seed": 4'), "wrote into it: seed$"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), OWN.values(), ids=OWN)
def test_a_changed_fedelta_json_in_a_run_directory_is_refused(change, message: str, place: Path):
    change(place / "config-done" / "adapter" / "fedelta.json")
    for use in (evaluate, predict):
        with pytest.raises(InputError, match=re.compile(message, re.MULTILINE)):
            use(place, "config")


def test_another_scale_in_adapter_config_is_refused(place: Path):
    edit(place / "config-done" / "adapter" / "adapter_config.json", '"lora_alpha": 16.0', '"lora_alpha": 160.0')
    for use in (evaluate, predict):
        with pytest.raises(InputError, match=r"`adapter_config.json` is not as the run wrote it"):
            use(place, "config")


@pytest.mark.parametrize(("change", "message", "error"), ADAPTERS.values(), ids=ADAPTERS)
def test_another_adapter_in_a_run_directory_is_refused(change, message: str, error: type[Exception], place: Path):
    change(place / "config-done", place / "other")
    for use in (evaluate, predict):
        with pytest.raises(error, match=message):
            use(place, "config")


def test_an_adapter_on_other_base_weights_is_refused_and_a_base_model_of_the_caller_causes_a_warning(
    place: Path, caplog: pytest.LogCaptureFixture
):
    from fedelta.models.source import ModelSource

    adapter = place / "config-done" / "adapter"
    Predictor.from_adapter(adapter)
    other_weights(place)
    with pytest.raises(AdapterError, match=r"model' is not the base model that adapter .* its base weights"):
        Predictor.from_adapter(adapter)
    Predictor.from_adapter(adapter, ModelSource(source=str(place / "model")))
    Experiment.from_toml(place / "config.toml", [f"model.adapter={adapter}"]).assembly  # noqa: B018 made on first use
    assert "model' is not the base model that adapter" in caplog.text
    assert "the adapter was made for another base model: its base weights differ" in caplog.text


@pytest.mark.parametrize("rest", ["nothing", "half a line", "garbage"])
def test_timings_may_be_lost(rest: str, place: Path):
    for run in ("config-stopped", "config-done"):
        timings = place / run / "timings.jsonl"
        text = timings.read_text()
        timings.unlink()
        if rest != "nothing":
            timings.write_text(text[:9] if rest == "half a line" else f"\x00\n{{}}\n{text}")
    resume(place, "config")
    evaluate(place, "config")
    assert not misfits_of(place / "config-stopped")
    assert not misfits_of(place / "config-done")
    if rest == "nothing":
        write_report([place / "config-stopped", place / "config-done"], place / "page.html")
    assert (read_histories([place / "config-done"])[0].wall_seconds is None) == (rest != "garbage")


def test_an_evaluation_of_an_unfinished_run_says_that_it_is_not_finished(place: Path):
    with pytest.raises(RunError, match="is not finished") as caught:
        evaluate_adapter(place / "config-stopped")
    assert caught.value.hint == f"finish it with `fedelta resume {place / 'config-stopped'}`."
