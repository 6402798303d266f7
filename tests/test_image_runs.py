"""Runs on photographs and on gray images of many bits: what was done to pixels, told and done again elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.cards import executed
from tests.inference.adapters import CLASS_NAMES
from tests.small import stop_after
from typer.testing import CliRunner

from fedelta.assembly.run import assemble
from fedelta.cli import app
from fedelta.data.sources import DataSource
from fedelta.errors import ConfigError, ModelError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment, Result
from fedelta.inference.export import export_onnx
from fedelta.inference.predict import Predictor
from fedelta.models.hub import build
from fedelta.models.source import ModelSource

CONFIG = """
seed = 3
[model]
source = "MODEL"
[tuning]
name = "lora"
r = 2
[data]
source = "IMAGES"
test_fraction = 0.34
[partition]
name = "iid"
num_clients = 2
[strategy]
name = "fedavg"
clients_per_round = 2
num_rounds = 1
[client]
local_epochs = 1
batch_size = 2
lr = 0.1
"""
CROPPING = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"shortest_edge": 37},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
       "intermediate_size": 16, "image_size": 32, "patch_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """427 x 640 pixels of a temple."""
    return load_sample_images().images[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint whose processor crops."""
    place = tmp_path_factory.mktemp("model")
    module = build(ModelSource(architecture=VIT), CLASS_NAMES, seed=0).module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    module.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps(CROPPING))
    return place


@pytest.fixture(scope="module")
def config(model, photograph, tmp_path_factory) -> Path:
    """On nine pieces of a photograph, of many shapes, of three classes."""
    place = tmp_path_factory.mktemp("photographs")
    for number in range(9):
        folder = place / "images" / CLASS_NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        piece = photograph[10 * number : 200 + 20 * number, 30 * number : 300 + 35 * number]
        Image.fromarray(piece).save(folder / f"{number}.png")
    path = place / "config.toml"
    path.write_text(CONFIG.replace("MODEL", str(model)).replace("IMAGES", str(place / "images")))
    return path


@pytest.fixture(scope="module", params=["checkpoint", "stretch"])
def result(request, config, tmp_path_factory) -> Result:
    run = tmp_path_factory.mktemp("runs") / request.param
    return Experiment.from_toml(config, [f"data.resize={request.param}"]).run(run)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_stock_path_gives_the_logits_of_a_photograph(result, model, photograph, tmp_path):
    image = Image.fromarray(photograph)
    image.save(tmp_path / "image.png")
    (said, scope), (ours, _) = executed(result.path / "adapter", tmp_path, model)
    assert f"label='{said}'" in ours
    predictor = Predictor.open(result.path)
    with torch.no_grad():
        theirs = scope["model"](**scope["processor"](image, return_tensors="pt")).logits
        (inputs,) = predictor.backbone.modality.examples([image], 1)
        ours = predictor.backbone.logits(inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    (answer,) = predictor.predict([image])
    assert list(answer.probabilities.values()) == pytest.approx(theirs.double().softmax(1)[0].tolist(), abs=1e-4)


def test_the_preparation_is_recorded_in_adapter_card_and_export(result, tmp_path):
    settings = json.loads((result.path / "adapter/fedelta.json").read_text())
    resize = result.assembly.config.data.resize
    assert (settings["resize"], settings["value_range"]) == (resize, [0, 255])
    assert settings["processor"] == json.loads((result.path / "adapter/preprocessor_config.json").read_text())
    sizes = {"shortest_edge": 37} if resize == "checkpoint" else {"height": 32, "width": 32}
    assert settings["processor"]["size"] == sizes
    card = " ".join((result.path / "adapter/README.md").read_text().split())
    notes = {
        "checkpoint": "by the base model's `ViTImageProcessor`",
        "stretch": "resized to the model's square without keeping their aspect ratio",
    }
    assert [text in card for text in notes.values()] == [key == resize for key in notes]
    export_onnx(Predictor.open(result.path), tmp_path / "onnx")
    described = json.loads((tmp_path / "onnx/export.json").read_text())["preprocessing"]
    assert (described["resize"], described["processor"]["size"]) == (resize, sizes)


def test_an_adapter_is_evaluated_as_it_was_tuned(result, config):
    observed = evaluate_adapter(config, result.path / "adapter")
    assert observed.measures["loss_nats"] == pytest.approx(result.measures["loss_nats"], abs=1e-6)


def test_an_adapter_without_a_recorded_preparation_stretches_images(result, tmp_path):
    shutil.copytree(result.path / "adapter", tmp_path / "adapter")
    own = json.loads((tmp_path / "adapter/fedelta.json").read_text())
    for key in ("resize", "processor", "value_range"):
        del own[key]
    (tmp_path / "adapter/fedelta.json").write_text(json.dumps(own))
    assert Predictor.from_adapter(tmp_path / "adapter").backbone.modality.preparation.resize == "stretch"


def test_check_says_how_images_are_prepared(config):
    def check(*overrides: str) -> str:
        settings = [part for override in overrides for part in ("--set", override)]
        done = CliRunner().invoke(app, ["check", str(config), *settings])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "Images are prepared by the checkpoint's ViTImageProcessor." in check()
    assert "its sizes scaled from 32 to 64 pixels." in check("model.image_size=64")
    assert "Images are stretched to 32 x 32 pixels, without keeping their aspect ratio." in check("data.resize=stretch")


def test_a_processor_that_cannot_be_followed_is_refused_before_a_run(config, model, tmp_path):
    other = tmp_path / "model"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "preprocessor_config.json").write_text('{"image_processor_type": "Siglip2ImageProcessor"}')
    with pytest.raises(
        ModelError, match=r'(?s)the checkpoint.s image preparation cannot be used.*data.resize = "stretch"'
    ):
        Experiment.from_toml(config, [f"model.source={other}"]).assembly  # noqa: B018 it is made when asked for
    assert Experiment.from_toml(config, [f"model.source={other}", "data.resize=stretch"]).assembly


@pytest.fixture(scope="module")
def tomography(model, tmp_path_factory) -> Path:
    """Nine signed gray images, -1,024 to 3,071, of three shades."""
    place = tmp_path_factory.mktemp("tomography")
    for number in range(9):
        folder = place / "images" / CLASS_NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.linspace(-1024, 1023 + 1024 * (number % 3), 40 * 30).reshape(40, 30).astype(np.int32)
        Image.fromarray(values).save(folder / f"{number}.tif")
    path = place / "config.toml"
    path.write_text(CONFIG.replace("MODEL", str(model)).replace("IMAGES", str(place / "images")))
    return path


def test_a_private_run_measures_no_range_on_the_training_data(tomography, tmp_path):
    private = ["privacy.unit=client", "privacy.noise_multiplier=1"]
    with pytest.raises(ConfigError, match="would be measured on the training data") as raised:
        assemble(Experiment.from_toml(tomography, private).config)
    assert "3071" not in str(raised.value)
    assemble(Experiment.from_toml(tomography, [*private, "data.value_range=[-1024, 3071]"]).config)


def test_the_range_of_the_training_data_is_kept_with_the_run(tomography, tmp_path):
    result = Experiment.from_toml(tomography).run(tmp_path / "run")
    own = json.loads((result.path / "adapter/fedelta.json").read_text())
    assert own["value_range"] == [-1024, 3071]
    assert "-1024 becomes black and 3071 becomes white" in (result.path / "adapter/README.md").read_text()
    assert "-1024 becomes black and 3071 white" in result.assembly.backbone.modality.notes[1]
    # One of the darkest class: by its own range it would be as bright as the others.
    (inputs,) = Predictor.open(result.path).backbone.modality.examples([tomography.parent / "images/cat/0.tif"], 1)
    # Its mean, 0, is (0 + 1024) / 4095 = 0.25 of the way to white; less the mean of the file, by its deviation.
    assert float(inputs["pixel_values"][0, 0].mean()) == pytest.approx((0.25 - 0.485) / 0.229, abs=0.03)


def test_a_resumed_run_ends_with_the_same_numbers(tomography, tmp_path):
    whole = Experiment.from_toml(tomography, ["strategy.num_rounds=2"]).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(tomography, ["strategy.num_rounds=2"]).run(tmp_path / "part", on_round=stop_after(1))
    part = tmp_path / "part"
    assert Experiment.from_run(part).resume(part).measures == whole.measures


def test_an_unknown_way_of_resizing_is_refused():
    values: dict[str, Any] = {"source": "digits", "resize": "squash"}
    with pytest.raises(ValueError, match="'checkpoint' or 'stretch'"):
        DataSource(**values)
