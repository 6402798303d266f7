"""The bundled backbones themselves: small, loadable, made by recipes of this repository, and worth having."""

import json
import logging
from pathlib import Path

import pytest
import torch
from pretraining.directory import sha256_of
from pretraining.networks import head_name
from pretraining.probes import digits, features_of, few_shot_accuracy
from pretraining.recipe import read_recipe
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from fedelta.models.native import register_networks

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "src" / "fedelta" / "models" / "bundled"
LARGEST = {"vit-micro": 4_000_000, "resnet-micro": 3_000_000}  # bytes of a directory
# Digits do not need a pre-trained convolutional network: 1x1 convolutions and norms beside random kernels do well too.
MARGINS = {"vit-micro": 0.1, "resnet-micro": 0.005}

register_networks()


@pytest.fixture(scope="module", params=LARGEST)
def directory(request):
    return BUNDLED / request.param


@pytest.fixture(scope="module")
def provenance(directory):
    return json.loads((directory / "provenance.json").read_text())


def test_the_directory_takes_at_most_so_many_bytes(directory):
    assert sum(file.stat().st_size for file in directory.iterdir()) <= LARGEST[directory.name]


def test_it_loads_without_a_warning(directory, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = AutoModelForImageClassification.from_pretrained(directory, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert not any(info.values())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert model.dtype == torch.float16


def test_it_takes_another_number_of_labels(directory):
    model = AutoModelForImageClassification.from_pretrained(directory, num_labels=7, ignore_mismatched_sizes=True)
    assert model.get_submodule(head_name(model)).out_features == 7


def test_a_random_network_of_its_configuration_is_float32(directory):
    config = AutoConfig.from_pretrained(directory)
    model = AutoModelForImageClassification.from_config(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_image_processor_gives_the_size_of_the_network(directory):
    processor = AutoImageProcessor.from_pretrained(directory)
    pixels = processor(torch.zeros(3, 8, 8, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    # (0 / 255 - 0.5) / 0.5 = -1
    assert torch.equal(pixels, torch.full_like(pixels, -1.0))


def test_the_checksum_is_that_of_the_weights(directory, provenance):
    assert provenance["sha256"] == sha256_of(directory / "model.safetensors")


def test_the_provenance_is_complete_and_names_the_recipe_as_it_is(provenance):
    required = {"recipe", "command", "resolved_recipe", "seed", "steps", "threads", "date", "versions"}
    assert required | {"source_accuracy", "num_parameters", "sha256", "measures"} <= provenance.keys()
    assert provenance["resolved_recipe"] == read_recipe(ROOT / provenance["recipe"]).model_dump()


def test_it_recognises_most_held_out_instances_of_its_source_classes(provenance):
    assert provenance["source_accuracy"] >= 0.5


def test_five_labelled_digits_per_class_go_much_further_than_on_a_random_network(provenance):
    probe = provenance["measures"]["digits_5_shot_probe"]
    assert probe["pretrained"] >= probe["random"] + 0.08


def test_its_recipe_reaches_ninety_percent_and_beats_a_random_network(provenance):
    demo = provenance["measures"]["demo"]
    assert min(demo["pretrained_by_seed"]) >= 0.9
    assert demo["pretrained"] >= demo["random"] + MARGINS[provenance["name"]]


def test_every_figure_has_its_command(provenance):
    for measure in provenance["measures"].values():
        assert {"pretrained", "random", "command"} <= measure.keys()
        assert measure["command"].startswith("python -m pretraining.measure ")


def test_the_weights_are_the_ones_that_were_measured(directory, provenance):
    model = AutoModelForImageClassification.from_pretrained(directory, dtype=torch.float32)
    images, labels = digits()
    # For the time: four draws instead of twenty, whose mean varies by about two points, and a quarter of the images.
    images, labels = images[::4], labels[::4]
    result = few_shot_accuracy(features_of(model.base_model, images, 32), labels, shots=5, draws=4)
    assert result == pytest.approx(provenance["measures"]["digits_5_shot_probe"]["pretrained"], abs=0.05)
