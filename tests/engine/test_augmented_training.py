"""Augmentation in the lane engine and in federated runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.builders import (
    ReadyInputs,
    assert_close,
    assert_same_bits,
    deltas_of,
    jobs_for,
    start_of,
    tiny_data,
    tiny_engine,
)
from tests.small import stop_after, write_small
from tests.sounds import write_flat

from fedelta.config import load_config
from fedelta.data.augmentation import Augmentation
from fedelta.data.batches import Examples
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment
from fedelta.tuning.bias import Bias
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora

ALL = Augmentation(crop_padding=2, flip=True, resized_crop=0.3)
ON = ["augmentation.crop_padding=2", "augmentation.flip=true", "augmentation.resized_crop=0.3"]
SIZES = [5, 2, 9, 1]
EPOCHS = ClientSettings(batch_size=4, local_epochs=2)


def train(augmentation: Augmentation | None, *, seed: int = 0, **engine: object):
    built, _ = tiny_engine(Lora(r=2), tiny_data(), augmentation=augmentation, **({"client": EPOCHS} | engine))
    return deltas_of(built, jobs_for(SIZES, start_of(built), seed=seed))


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_are_one_client_after_the_other(lanes: int):
    # The batches are ragged: a padding row that drew random numbers would shift those of all rows after it.
    alone, together = train(ALL), train(ALL, lanes=lanes)
    for client_id, delta in alone.items():
        assert_close(together[client_id], delta, rtol=1e-4, atol=1e-6)


def test_a_client_sees_the_same_images_in_batches_of_another_size():
    images_of: dict[int, list[tuple[float, ...]]] = {}
    for batch_size in (1, 4):
        engine, backbone = tiny_engine(
            Head(), tiny_data(), augmentation=ALL, client=ClientSettings(batch_size=batch_size, local_epochs=2)
        )  # fmt: skip
        images = images_of[batch_size] = []
        backbone.module.vit.register_forward_pre_hook(
            lambda _, inputs, images=images: images.extend(map(tuple, inputs[0].flatten(1).tolist()))
        )
        deltas_of(engine, jobs_for([9], start_of(engine)))
    for epoch in (slice(0, 9), slice(9, 18)):
        assert set(images_of[1][epoch]) == set(images_of[4][epoch])
    assert not set(images_of[1][:9]) & set(images_of[1][9:])


def test_augmentation_changes_training_and_another_stream_changes_it_otherwise():
    plain, augmented, reseeded = train(None), train(ALL), train(ALL, seed=1)
    name = "classifier.weight"
    assert not torch.equal(plain[0][name], augmented[0][name])
    assert not torch.equal(reseeded[0][name], augmented[0][name])


def test_all_of_it_off_is_none_of_it():
    plain, off = train(None), train(Augmentation())
    for client_id, delta in plain.items():
        assert_same_bits(off[client_id], delta)


def test_the_cache_is_off_for_training_alone_and_a_note_says_so():
    engine, _ = tiny_engine(Head(), tiny_data(), augmentation=ALL, cache_bytes=2**20)
    assert [note.partition(":")[0] for note in engine.notes] == ["frozen-prefix cache off for the training data"]
    plain, _ = tiny_engine(Head(), tiny_data(), cache_bytes=2**20)
    test, anchor, calls = tiny_data(seed=1), start_of(engine), []
    assert engine.evaluator.evaluate(anchor, test) == plain.evaluator.evaluate(anchor, test)
    engine._model.backbone.module.vit.register_forward_pre_hook(lambda *_: calls.append(1))
    engine.evaluator.evaluate(anchor, test)
    assert calls == []
    deltas_of(engine, jobs_for([4, 3], anchor))
    assert len(calls) == 2


def test_without_a_prefix_there_is_no_cache_to_speak_of():
    engine, _ = tiny_engine(Bias(), tiny_data(), augmentation=ALL, cache_bytes=2**20)
    assert engine.notes == []


def bits(path: Path) -> bytes:
    return (path / "rounds.jsonl").read_bytes() + (path / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augmented")
    return Experiment.from_toml(write_small(folder), ON).run(folder / "run")


def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(result, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(write_small(tmp_path), ON).run(tmp_path / "run", on_round=stop_after(2))
    Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    assert bits(tmp_path / "run") == bits(result.path)


def test_a_run_with_augmentation_is_another_run_and_cites_where_it_comes_from(result, tmp_path):
    plain = Experiment.from_toml(write_small(tmp_path)).run(tmp_path / "plain")
    assert bits(plain.path) != bits(result.path)
    cited, not_cited = ((run.path / "citations.bib").read_text() for run in (result, plain))
    for key in ("he2016deep", "szegedy2015going"):
        assert key in cited
        assert key not in not_cited


def test_a_run_says_that_its_cache_is_off(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "fedelta"):
        Experiment.from_toml(write_small(tmp_path), [*ON, "tuning.name=head"]).assembly  # noqa: B018
    assert "frozen-prefix cache off for the training data" in caplog.text


def test_a_padding_as_large_as_the_image_is_refused_before_a_run_directory_is_there(tmp_path):
    with pytest.raises(
        ConfigError, match=r"`augmentation\.crop_padding` is 16, expected less than the side of an image, 16 pixels"
    ):
        Experiment.from_toml(write_small(tmp_path), ["augmentation.crop_padding=16"]).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_bad_value_of_the_section_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write_small(tmp_path), ["augmentation.resized_crop=1.5", "augmentation.crop_padding=-1"])
    assert "`augmentation.resized_crop` is 1.5, expected: less than or equal to 1" in str(caught.value)
    assert "`augmentation.crop_padding` is -1, expected: greater than or equal to 0" in str(caught.value)


def test_texts_are_refused(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 8)
    text = ["data.max_train_examples=", "data.max_test_examples=", f'data.source="{tmp_path / "d.csv"}"']
    with pytest.raises(ConfigError, match=r"`\[augmentation\]` crops and flips images, but column 'text' holds texts"):
        Experiment.from_toml(write_small(tmp_path), [*ON, *text]).assembly  # noqa: B018


def test_recordings_are_refused(tmp_path):
    source = f'data.source="{write_flat(tmp_path / "flat")}"'
    sounds = [
        "data.max_train_examples=",
        "data.max_test_examples=",
        source,
        'data.file_pattern="{label}_{who}_{index}"',
    ]
    with pytest.raises(ConfigError, match="crops and flips images, but column 'audio' holds recordings"):
        Experiment.from_toml(write_small(tmp_path), [*ON, *sounds]).assembly  # noqa: B018


def test_rows_that_two_clients_have_are_refused(tmp_path):
    config = write_small(tmp_path)
    federated = Experiment.from_toml(config).assembly.data
    shared = replace(federated, partition={**federated.partition, 0: federated.partition[1]})
    with pytest.raises(ConfigError, match="some rows have two clients"):
        Experiment(load_config(config, ON), data=shared).assembly  # noqa: B018
    assert Experiment(load_config(config), data=shared).assembly


def test_data_of_ones_own_that_are_no_images_are_refused(tmp_path):
    config = write_small(tmp_path)
    federated = Experiment.from_toml(config).assembly.data
    features = ReadyInputs({"features": torch.zeros(len(federated.train), 3)})
    data = replace(federated, train=Examples(features, federated.train.targets))
    with pytest.raises(ConfigError, match="changes `pixel_values`, but the training data have features"):
        Experiment(load_config(config, [*ON, "runtime.cache_mib=0"]), data=data).assembly  # noqa: B018
