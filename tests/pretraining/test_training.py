"""The recipe and the training loop: deterministic, resumable, complete."""

import json
from pathlib import Path

import pytest
import torch
from pretraining.batches import make_bank
from pretraining.directory import sha256_of, write_directory
from pretraining.networks import build_backbone, head_name, image_features
from pretraining.recipe import Recipe, read_recipe
from pretraining.storage import write_atomically
from pretraining.training import lr_factor, pretrain, source_accuracy, start, train_steps
from pydantic import ValidationError
from transformers import AutoModelForImageClassification

RECIPE_PATH = Path(__file__).parents[2] / "pretraining" / "vit-micro.toml"

VIT_SETTINGS = {
    "image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
RESNET_SETTINGS = {"image_size": 16, "stem_width": 8, "widths": [8, 16], "blocks_per_stage": 1}


@pytest.fixture
def threads():
    """Restores the number of threads, which training sets from the recipe."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(model_type: str = "vit", **training: float) -> Recipe:
    values = read_recipe(RECIPE_PATH).model_dump()
    settings = VIT_SETTINGS if model_type == "vit" else RESNET_SETTINGS
    values["network"] = {"model_type": model_type, "settings": settings}
    values["images"]["side"] = 16
    values["images"]["camera"]["resolutions"] = [8]
    for source in values["images"]["sources"]:
        source["num_classes"] = 3
    small = {
        "steps": 3,
        "batch_size": 12,
        "warmup_steps": 1,
        "threads": 1,
        "checkpoint_every": 2,
        "held_out_batches": 1,
    }
    values["training"] |= small | training
    return Recipe.model_validate(values)


def trained(recipe: Recipe) -> list[torch.Tensor]:
    trainer = start(recipe)
    losses = [loss for _, loss in train_steps(trainer, make_bank(recipe.images, recipe.seed), recipe.training)]
    return [*trainer.backbone.parameters(), *trainer.head.parameters(), torch.tensor(losses)]


@pytest.mark.parametrize("model_type", ["vit", "fedelta_resnet"])
def test_same_seed_gives_the_same_bits_after_a_few_steps(model_type, threads):
    torch.set_num_threads(1)
    recipe = tiny(model_type)
    for first, second in zip(trained(recipe), trained(recipe), strict=True):
        assert torch.equal(first, second)


def test_another_seed_gives_other_weights():
    recipe = tiny()
    first, second = (next(build_backbone(recipe.network, seed).parameters()) for seed in (7, 8))
    assert not torch.equal(first, second)


def test_building_a_network_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    build_backbone(tiny().network, 7)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, threads):
    class StoppedError(Exception):
        pass

    recipe = tiny()
    whole, _, bank = pretrain(recipe, tmp_path / "whole.pt")
    path = tmp_path / "stopped.pt"
    with pytest.MonkeyPatch.context() as patch:

        def stop_after_first_save(file: Path, write: object) -> None:
            write_atomically(file, write)  # type: ignore[arg-type]  # whatever the trainer hands over
            raise StoppedError

        patch.setattr("pretraining.training.write_atomically", stop_after_first_save)
        with pytest.raises(StoppedError):
            pretrain(recipe, path)
    resumed, head, _ = pretrain(recipe, path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert 0.0 <= source_accuracy(resumed, head, bank, recipe) <= 1.0


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, threads):
    pretrain(tiny(), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="belongs to another recipe"):
        pretrain(tiny(lr=0.5), tmp_path / "checkpoint.pt")


def test_the_learning_rate_warms_up_and_falls_to_zero():
    training = tiny(steps=12, warmup_steps=2).training
    # Steps 0 and 1 warm up (1/2, 1); step 7 is half way through the cosine (1/2); step 12 would be zero.
    assert [lr_factor(step, training) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert lr_factor(7, training) == pytest.approx(0.5)
    assert lr_factor(12, training) == pytest.approx(0.0)


@pytest.mark.parametrize("model_type", ["vit", "fedelta_resnet"])
def test_a_written_directory_gives_the_features_of_the_backbone(model_type, tmp_path):
    recipe = tiny(model_type)
    backbone = build_backbone(recipe.network, 7).eval()
    write_directory(
        tmp_path, backbone, recipe, recipe_path=RECIPE_PATH, command="a test", facts={"source_accuracy": 0.5}
    )
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float32)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    # Half precision keeps about three decimal digits of every weight.
    torch.testing.assert_close(
        image_features(loaded.base_model, images), image_features(backbone, images), atol=0.02, rtol=0.02
    )
    assert all(not parameter.any() for parameter in loaded.get_submodule(head_name(loaded)).parameters())
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["sha256"] == sha256_of(tmp_path / "model.safetensors")
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"


def test_an_unknown_key_of_a_recipe_is_an_error(tmp_path):
    text = RECIPE_PATH.read_text().replace("seed = 7", "seed = 7\nsead = 8")
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ValidationError, match="sead"):
        read_recipe(path)
