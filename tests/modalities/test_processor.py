"""Images as the image processors of the most used families make them, pixel for pixel."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor

from fedelta.data.stored import StoredColumn
from fedelta.errors import ModelError
from fedelta.modalities.base import ModelFiles
from fedelta.modalities.image import Images
from fedelta.modalities.processor import UnfollowableError, follow, read_preprocessor
from fedelta.modalities.settings import Preparation

SIDE = 32
CROPPED = {"size": {"shortest_edge": 37}, "crop_size": {"height": SIDE, "width": SIDE}}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
# Family to class and settings, small; each leaves the rest to the class, as the checkpoints of the family do.
FAMILIES = {
    "vit": ("ViTImageProcessor", SQUARE),
    "deit": ("DeiTImageProcessor", {"size": {"height": 37, "width": 37}, "crop_size": SQUARE["size"]}),
    "deit of the hub": ("ViTImageProcessor", CROPPED | {"do_center_crop": True, "resample": 3}),
    "beit": ("BeitImageProcessor", {"size": {"height": 37, "width": 37}, "do_center_crop": True,
                                    "crop_size": SQUARE["size"]}),
    "dinov2": ("BitImageProcessor", CROPPED),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875}),
    "resnet": ("ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_pct": 0.95, "resample": 2}),
    "swin": ("ViTImageProcessor", SQUARE | {"resample": 3}),
    "clip": ("CLIPImageProcessor", {"size": SIDE, "crop_size": SIDE}),
    "siglip": ("SiglipImageProcessor", SQUARE),
    "mobilenet_v2": ("MobileNetV2ImageProcessor", CROPPED),
    "mobilevit": ("MobileViTImageProcessor", CROPPED),
    "efficientnet": ("EfficientNetImageProcessor", SQUARE | {"resample": 0, "rescale_offset": True}),
    "levit": ("LevitImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE["size"]}),
    "pvt": ("PvtImageProcessor", SQUARE),
    "poolformer": ("PoolFormerImageProcessor", CROPPED),
    "perceiver": ("PerceiverImageProcessor", SQUARE | {"crop_size": {"height": 36, "width": 36}}),
    "a crop without resizing": ("ViTImageProcessor", {"do_resize": False, "do_center_crop": True,
                                                      "crop_size": SQUARE["size"]}),
    "lanczos": ("ViTImageProcessor", SQUARE | {"resample": 1}),
}  # fmt: skip
SHAPES = {"wide": (90, 131), "tall": (201, 60), "tiny": (5, 3), "small square": (20, 20), "of the model": (SIDE, SIDE)}


def picture(height: int, width: int) -> Image.Image:
    """A gradient with noise: neither flat nor without structure."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([255 * y / height, 255 * x / width, 128 + 100 * np.sin(x / 7)], axis=-1)
    return Image.fromarray((base + rng.normal(0, 20, base.shape)).clip(0, 255).astype(np.uint8))


def content_of(family: str) -> dict[str, object]:
    name, settings = FAMILIES[family]
    return {"image_processor_type": name, **settings}


def save(directory: Path, content: dict[str, object]) -> str:
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    return str(directory)


def stock(directory: str, image: Image.Image) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
    return processor(image, return_tensors="pt")["pixel_values"]


def assert_within_a_gray_level(actual: torch.Tensor, expected: torch.Tensor, std: tuple[float, ...]) -> None:
    assert actual.shape == expected.shape
    levels = (actual - expected).abs().amax((0, 2, 3)) * torch.tensor(std) * 255
    assert levels.max() <= 1.001, levels


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_stock_processor(family, tmp_path):
    place = save(tmp_path, content_of(family))
    images = Images.from_preprocessor(read_preprocessor(place), SIDE, 3)
    for shape in SHAPES.values():
        image = picture(*shape)
        (inputs,) = images.examples([image], 1)
        assert_within_a_gray_level(inputs["pixel_values"], stock(place, image), images.std)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_prediction_prepare_images_the_same_way(family):
    images = Images.from_preprocessor(content_of(family), SIDE, 3)
    for shapes in ([(20, 24), (20, 24)], [(90, 131), (40, 40)]):
        pillow = [picture(*shape) for shape in shapes]
        content = []
        for image in pillow:
            file = io.BytesIO()
            image.save(file, "PNG")
            content.append(file.getvalue())
        column = StoredColumn.of(Dataset.from_dict({"image": content}), "image", origin="the test")
        expected = torch.cat([batch["pixel_values"] for batch in images.examples(pillow, 1)])
        for max_memory_mib in (0, 1):
            stored = images.store(column, max_memory_mib).fetch(torch.arange(2))["pixel_values"]
            assert torch.equal(stored, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_preparation_recreates_the_modality(family, tmp_path):
    images = Images.from_preprocessor(content_of(family), SIDE, 3)
    preparation = Preparation.model_validate_json(images.preparation.model_dump_json())
    assert Images(SIDE, (0.5,) * 3, (0.5,) * 3).prepared(preparation) == images
    place, image = save(tmp_path, preparation.processor or {}), picture(90, 131)
    assert_within_a_gray_level(next(images.examples([image], 1))["pixel_values"], stock(place, image), images.std)


def test_sizes_are_scaled_with_the_model():
    content = {**CROPPED, "image_processor_type": "BitImageProcessor"}
    followed = follow(content, "", 64)
    assert followed.native == SIDE
    assert followed.processor.fields["size"] == {"shortest_edge": 74}
    assert followed.processor.fields["crop_size"] == {"height": 64, "width": 64}
    assert "its sizes scaled from 32 to 64 pixels" in Images.from_preprocessor(content, 64, 3).notes[0]


def test_a_model_without_a_known_size_takes_that_of_the_processor(tmp_path):
    place = save(tmp_path, content_of("convnext"))
    assert Images.for_model(ModelFiles(object(), place, 224, is_size_known=False)).image_size == SIDE
    assert Images.for_model(ModelFiles(object(), place, 64)).image_size == 64


def test_the_family_says_what_a_file_without_a_class_means():
    content = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE["size"]}
    assert follow(content, "levit", SIDE).processor.fields["image_processor_type"] == "LevitImageProcessor"
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE, "crop_size": SIDE}
    assert follow(old, "", SIDE).processor.fields["image_processor_type"] == "CLIPImageProcessor"
    assert follow({"image_processor_type": "ViTImageProcessorFast", **SQUARE}, "", SIDE).processor.is_stretch


def test_the_processor_of_a_composite_model_is_found(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": content_of("clip")}))
    assert read_preprocessor(str(tmp_path)) == content_of("clip")
    save(tmp_path, content_of("vit"))
    assert read_preprocessor(str(tmp_path)) == content_of("clip")  # as `AutoImageProcessor` does
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert read_preprocessor(str(tmp_path)) == content_of("vit")


def test_gray_is_prepared_like_colour_and_kept_as_one_channel():
    images = Images.from_preprocessor(content_of("mobilevit"), SIDE, 3)
    gray = picture(90, 131).convert("L")
    file = io.BytesIO()
    gray.save(file, "PNG")
    column = StoredColumn.of(Dataset.from_dict({"image": [file.getvalue()]}), "image", origin="the test")
    store = images.store(column, 1)
    assert store.raw.shape == (1, 1, SIDE, SIDE)
    (expected,) = images.examples([gray.convert("RGB")], 1)
    assert torch.equal(store.fetch(torch.tensor([0]))["pixel_values"], expected["pixel_values"])


def test_transparency_is_put_on_white_where_the_processor_does_it(tmp_path):
    image = picture(90, 131)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    images = Images.from_preprocessor(content_of("clip"), SIDE, 3)
    expected = stock(save(tmp_path, content_of("clip")), image)
    assert_within_a_gray_level(next(images.examples([image], 1))["pixel_values"], expected, images.std)


def test_a_model_of_one_channel_keeps_its_processor():
    content = {"image_processor_type": "ViTImageProcessor", **SQUARE, "image_mean": [0.2], "image_std": [0.4]}
    images = Images.from_preprocessor(content, SIDE, 1)
    assert (images.mean, images.std, images.refusal) == ((0.2,), (0.4,), "")
    assert next(images.examples([picture(40, 50)], 1))["pixel_values"].shape == (1, 1, SIDE, SIDE)


UNFOLLOWED = {
    "patches": (
        {"image_processor_type": "Siglip2ImageProcessor"},
        "does not turn an image into one image of three channels",
    ),
    "a page": ({"image_processor_type": "DonutImageProcessor"}, "into 2560 x 1920 pixels, expected a square"),
    "torchvision only": ({"image_processor_type": "PPLCNetImageProcessor"}, "no Pillow variant"),
    "custom code": ({"image_processor_type": "TheirProcessor"}, "no Pillow variant of its processor .TheirProcessor."),
    "an endless size": ({"size": {"height": 10**6, "width": 10**6}}, "a size of 1,000,000 pixels"),
    "an invalid size": ({"size": {"height": "big"}}, "its ViTImageProcessor fails"),
}


@pytest.mark.parametrize("case", UNFOLLOWED)
def test_unusable_processors_are_refused_unless_images_are_stretched(case):
    content, reason = UNFOLLOWED[case]
    with pytest.raises(UnfollowableError, match=reason):
        follow(content, "", SIDE)
    images = Images.from_preprocessor(content, SIDE, 3)
    for refused in (lambda: images.prepared(Preparation(resize="checkpoint")), lambda: images.examples([], 1)):
        with pytest.raises(ModelError, match=rf'(?s)cannot be used.*{reason}.*data.resize = "stretch"'):
            refused()
    stretched = images.prepared(Preparation(resize="stretch"))
    assert next(stretched.examples([picture(40, 50)], 1))["pixel_values"].shape == (1, 3, SIDE, SIDE)


def test_a_processor_that_keeps_sizes_takes_images_of_the_model_only():
    images = Images.from_preprocessor({"image_processor_type": "ViTImageProcessor", "do_resize": False}, SIDE, 3)
    assert len(list(images.examples([picture(SIDE, SIDE)], 1))) == 1
    with pytest.raises(
        ModelError, match=r'(?s)an image of 40 x 50 into 40 x 50 pixels, but the model takes 32 x 32.*"stretch"'
    ):
        images.examples([picture(40, 50)], 1)


def test_stretching_leaves_the_checkpoints_processor_aside():
    images = Images.from_preprocessor(content_of("dinov2"), SIDE, 3)
    stretched = images.prepared(Preparation(resize="stretch"))
    assert stretched.notes == ("images are stretched to 32 x 32 pixels, without keeping their aspect ratio",)
    assert (stretched.mean, stretched.std) == (images.mean, images.std)
    (inputs,) = stretched.examples([image := picture(90, 131)], 1)
    plain = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    assert torch.equal(inputs["pixel_values"], next(stretched.examples([plain], 1))["pixel_values"])


def test_an_image_too_thin_for_a_processor_is_refused_with_advice():
    images = Images.from_preprocessor({"image_processor_type": "DonutImageProcessor", **SQUARE}, SIDE, 3)
    with pytest.raises(ModelError, match=r'(?s)fails for an image of 1500 x 37.*"stretch"'):
        images.examples([picture(1500, 37)], 1)
