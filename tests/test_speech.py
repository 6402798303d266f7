"""From recordings to a run and its predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.cards import executed
from tests.inference.adapters import CLASS_NAMES, write
from tests.small import SMALL
from tests.sounds import encoded, tone, write_flat
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.config import parse_config
from fedelta.data.federate import federate
from fedelta.data.partition import Iid
from fedelta.data.sources import DataSource, read
from fedelta.errors import AdapterError, ConfigError, DataError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment, Result
from fedelta.inference.card import render
from fedelta.inference.predict import Predictor
from fedelta.modalities.settings import AudioSettings, Preparation
from fedelta.models.hub import build
from fedelta.models.source import ModelSource
from fedelta.tuning.head import Head

_MODEL = SMALL[SMALL.index("[model.arch") : SMALL.index("[data]")]
AUDIO = AudioSettings(sample_rate=8000, num_mel_bins=32, num_frames=24)
SPEECH = f"""
seed = 3

{_MODEL}

[data]
source = "SOURCE"
file_pattern = "{{label}}_{{client}}_{{index}}"
test_files = "*_[01].wav"

[data.audio]
sample_rate = 8000
num_mel_bins = 32
num_frames = 24

[partition]
name = "natural"

[strategy]
clients_per_round = 3
num_rounds = 6

[client]
local_epochs = 4
batch_size = 8
lr = 0.01

[client.optimizer]
name = "adamw"
"""


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return write_flat(tmp_path_factory.mktemp("sounds") / "tones")


@pytest.fixture(scope="module")
def config_path(sounds) -> Path:
    path = sounds.parent / "speech.toml"
    path.write_text(SPEECH.replace("SOURCE", str(sounds)))
    return path


@pytest.fixture(scope="module")
def result(config_path) -> Result:
    return Experiment.from_toml(config_path).run(config_path.with_name("run"))


def call(*arguments: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, [str(item) for item in arguments])
    return done.exit_code, done.output, done.exception


def test_three_tones_are_learned_by_three_speakers(result):
    # Chance is a third.
    assert result.measures["accuracy"] > 0.8
    assert len(result.assembly.data.partition) == 3
    assert result.assembly.data.train.inputs.raw.shape == (36, 16, 16)


def test_lanes_of_speakers_are_speakers_one_after_the_other(config_path, tmp_path):
    alone = Experiment.from_toml(config_path, ["runtime.lanes=1", "strategy.num_rounds=1"]).run(tmp_path / "alone")
    together = Experiment.from_toml(config_path, ["runtime.lanes=3", "strategy.num_rounds=1"]).run(
        tmp_path / "together"
    )
    for name, tensor in alone.params.items():
        torch.testing.assert_close(together.params[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_answers_for_files_and_for_samples(result, sounds):
    wave = tone(2700, seed=9)
    (sounds.parent / "new.wav").write_bytes(encoded(wave, subtype="FLOAT"))
    predictor = Predictor.open(result.path)
    samples = torch.from_numpy(wave)
    answers = predictor.predict([sounds.parent / "new.wav", (samples, 8000), (samples.expand(2, -1).double(), 8000)])
    assert answers[0] == answers[1] == answers[2]
    assert answers[0].label == "high"
    # A recording of the telephone, of the studio: the same word.
    for sample_rate in (16_000, 44_100):
        (answer,) = predictor.predict([(torch.from_numpy(tone(2700, sample_rate, seed=9)), sample_rate)])
        assert answer.label == "high"
    (answer,) = result.predictor().predict([sounds.parent / "new.wav"])
    # Merged weights round differently from weights with their additions.
    assert answer.probability == pytest.approx(answers[0].probability, abs=1e-6)


def test_a_recording_is_prepared_as_in_training(result, sounds):
    path = sounds / "low_ann_0.wav"
    predictor = Predictor.open(result.path)
    raw, stored = result.assembly.data.test, result.assembly.data.test.inputs
    row = [Path(item["path"]).name for item in read_again(result).test.dataset["audio"]].index(path.name)
    with torch.no_grad():
        expected = predictor.backbone.logits(stored.fetch(torch.tensor([row]))).double().softmax(1)
    (answer,) = predictor.predict([path])
    assert list(answer.probabilities.values()) == expected[0].tolist()
    assert raw.targets.values[row] == list(answer.probabilities).index("low")


def read_again(result: Result):
    return read(result.assembly.config.data, seed=3)


def test_the_adapter_says_how_recordings_are_read(result, sounds, tmp_path):
    shutil.copy(next(sounds.glob("*.wav")), tmp_path / "recording.wav")
    own = json.loads((result.path / "adapter/fedelta.json").read_text())
    assert AudioSettings(**own["audio"]) == AUDIO
    card = (result.path / "adapter/README.md").read_text()
    assert "pipeline_tag: audio-classification" in card
    assert "log-mel spectrograms" in card
    ((ours, _),) = executed(result.path / "adapter", tmp_path)
    assert "label=" in ours
    other = Predictor.from_adapter(result.path / "adapter", audio=AUDIO.model_copy(update={"num_frames": 7}))
    assert other.backbone.modality.audio.num_frames == 7


@pytest.mark.parametrize(("modality", "is_told"), [("audio", True), ("image", False), ("text", False)])
def test_only_the_card_of_a_speech_model_mentions_spectrograms(modality, is_told):
    card = {"modality": modality, "config": {"data": {"source": "x", "audio": {"sample_rate": 16_000}}}}
    text = render("lora", "base", None, card, has_weights=True, preparation=Preparation())
    assert ("sample_rate" in text, "log-mel" in text, "source x" in text) == (is_told, is_told, True)


def test_an_adapter_of_an_image_model_knows_nothing_of_recordings(checkpoint_of_vit, tmp_path):
    adapter = write(tmp_path / "a", "vit", Head(), checkpoint_of_vit)
    assert adapter.preparation.audio is None
    assert json.loads((tmp_path / "a/fedelta.json").read_text())["audio"] is None
    content = json.loads((tmp_path / "a/fedelta.json").read_text())
    content["audio"] = {"sample_rate": 0}
    (tmp_path / "a/fedelta.json").write_text(json.dumps(content))
    with pytest.raises(AdapterError, match=r"`audio.sample_rate` is 0: Input should be greater than or equal to 1000"):
        Predictor.from_adapter(tmp_path / "a")


@pytest.fixture
def checkpoint_of_vit(tmp_path) -> Path:
    model = ModelSource(architecture={"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1,
                                      "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16,
                                      "patch_size": 8})  # fmt: skip
    build(model, CLASS_NAMES, seed=0).module.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_the_command_line_takes_recordings_everywhere(result, config_path, sounds):
    code, out, _ = call("check", config_path)
    assert (code, "3 clients with 12 to 12 examples, 18 test examples, 3 classes" in out) == (0, True)
    code, out, _ = call("inspect", config_path, "--json")
    assert code == 0
    code, out, _ = call("predict", result.path, sounds / "low_ann_0.wav", sounds / "high_bob_1.wav")
    assert code == 0
    assert [line.split("\t")[1] for line in out.splitlines()] == ["low", "high"]
    assert evaluate_adapter(result.path).measures["accuracy"] == result.measures["accuracy"]
    code, out, error = call("predict", result.path, config_path)
    assert "speech.toml': not a recording in a known format" in str(error)


def test_everything_that_is_no_recording_is_named_at_once(result, sounds):
    samples = torch.zeros(800)
    inputs = [
        sounds.parent / "absent.wav", samples, (samples.int(), 8000), (samples, 0), (samples[:0], 8000),
        (samples / 0, 8000), (7, 8000), 7, (samples, 8000.0), (samples + 32_767, 8000), (samples,),
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        Predictor.open(result.path).predict(inputs)
    lines = str(caught.value).splitlines()
    assert lines[0] == "11 problems in recordings:"
    for line, expected in zip(
        lines[1:],
        (
            "absent.wav': No such file or directory", "input 1: not a recording but Tensor",
            "input 2: a torch.int32 tensor of shape (800,), expected a float tensor [samples]",
            "input 3: a sample rate of 0 Hz", "input 4: a recording without samples",
            "input 5: a recording with samples that are NaN", "input 6: not a tensor but int",
            "input 7: not a recording but int", "input 8: a sample rate of 8000.0 Hz, expected 1000 to 768000",
            "input 9: samples up to 32767, expected -1 to 1", "and 1 more", "hint: give WAV",
        ),
        strict=True,
    ):  # fmt: skip
        assert expected in line


def test_everything_wrong_in_a_folder_is_named_by_its_file(sounds, config_path, tmp_path):
    folder = write_flat(tmp_path / "bad")
    (folder / "low_ann_3.wav").write_bytes(b"")
    (folder / "low_ann_4.wav").write_bytes((folder / "low_bob_4.wav").read_bytes()[:999])
    with pytest.raises(
        DataError, match=r"(?s)2 problems in the training set.*low_ann_3.wav\): an empty.*low_ann_4.wav\): .*cut off"
    ):
        _ = Experiment.from_toml(config_path, [f"data.source={folder}"]).assembly


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.audio.sample_rate=0", "`data.audio.sample_rate` is 0, expected: greater than or equal to 1000"),
        ("data.audio.sample_rat=8000", "`data.audio.sample_rat` is unknown; did you mean `data.audio.sample_rate`?"),
        ("data.file_pattern={label}{index}", "`data.file_pattern`: is '{label}{index}', expected text between"),
        (
            "data.file_pattern={label}_{index}",
            "which needs `data.client_column`, or a field {client} in `data.file_pattern`",
        ),
    ],
)
def test_a_problem_in_the_configuration_is_named(override, message):
    import tomllib

    table = tomllib.loads(SPEECH.replace("SOURCE", "digits"))
    with pytest.raises(ConfigError) as caught:
        parse_config(table, [override])
    assert message in str(caught.value)


def test_a_text_model_and_a_recording_do_not_go_together(sounds, result):
    from tests.data.test_federate import text_modality

    raw = read(DataSource(source=str(sounds), file_pattern="{label}_{client}_{index}"), seed=0)
    with pytest.raises(
        DataError, match=r"(?s)'audio' holds recordings, but the model takes texts\n?.*recordings go to image"
    ):
        federate(raw, Iid(num_clients=2), text_modality(), seed=0)
    digits = read(DataSource(source="digits"), seed=0)
    with pytest.raises(DataError, match="'image' holds images, but the model takes recordings"):
        federate(digits, Iid(num_clients=2), result.assembly.backbone.modality, seed=0)


def test_more_recordings_than_memory_train_to_the_same_params(config_path, result, tmp_path):
    overrides = ["data.max_memory_mib=0", "strategy.num_rounds=1"]
    lazy = Experiment.from_toml(config_path, overrides).run(tmp_path / "lazy")
    eager = Experiment.from_toml(config_path, overrides[1:]).run(tmp_path / "eager")
    assert all(torch.equal(tensor, lazy.params[name]) for name, tensor in eager.params.items())


@pytest.mark.shared
def test_six_speakers_of_ten_digits_are_six_clients(shared_dir, repository):
    config = Experiment.from_toml(
        repository / "recipes/speech-digits.toml", [f"data.source={shared_dir / 'data/fsdd'}"]
    ).config
    raw = read(config.data, seed=0)
    assert raw.class_names == tuple("0123456789")
    assert (len(raw.train), len(raw.test), len(set(raw.train.dataset["client"]))) == (2700, 300, 6)
