"""From images to a model's keyword arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import ViTImageProcessor

from fedelta.errors import DataError, ModelError
from fedelta.modalities.image import Images


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixels_are_scaled_and_normalised():
    # (255 / 255 - 0.5) / 0.25 = 2, (0 - 0.5) / 0.25 = -2
    images = Images(2, mean=(0.5,), std=(0.25,), num_channels=1)
    pixels = images.transform(torch.tensor([[[[255, 0], [0, 255]]]], dtype=torch.uint8))["pixel_values"]
    assert pixels.tolist() == [[[[2.0, -2.0], [-2.0, 2.0]]]]


def test_gray_is_repeated_and_colour_is_averaged(images: Tensor):
    gray, colour = images[:, :1], images
    repeated = Images(12, (0.0,) * 3, (1.0,) * 3).transform(gray)["pixel_values"]
    assert repeated.shape == (2, 3, 12, 12)
    assert torch.equal(repeated[:, 0], repeated[:, 2])
    averaged = Images(12, (0.0,), (1.0,), num_channels=1).transform(colour)["pixel_values"]
    torch.testing.assert_close(averaged.mean(), images.float().mean() / 255, atol=1e-3, rtol=0)


def test_other_numbers_of_channels_are_refused(images: Tensor):
    with pytest.raises(DataError, match="images have 2 channels, but the model takes 3"):
        Images(12, (0.0,) * 3, (1.0,) * 3).transform(images[:, :2])


@pytest.mark.parametrize("size", [6, 24])
def test_an_image_is_as_the_image_processor_of_transformers_makes_it(images: Tensor, size: int):
    processor = ViTImageProcessor(size={"height": size, "width": size})
    expected = processor(images, return_tensors="pt")["pixel_values"]
    pixels = Images.from_preprocessor(processor.to_dict(), size, 3).transform(images)["pixel_values"]
    # Theirs rounds to 8 bits after each axis: twice half a step of 1/255, divided by the deviation 0.5.
    torch.testing.assert_close(pixels, expected, atol=1 / 255 / 0.5 + 1e-5, rtol=0)


def test_without_a_file_the_values_are_those_of_vit():
    modality = Images.from_preprocessor({}, 8, 3)
    assert modality.mean == pytest.approx(tuple(ViTImageProcessor().image_mean))
    assert modality.std == pytest.approx(tuple(ViTImageProcessor().image_std))


def test_rescaling_and_normalising_can_be_switched_off(images: Tensor):
    square = images[..., :10, :]
    raw = Images.from_preprocessor({"do_rescale": False, "do_normalize": False}, 10, 3).transform(square)
    torch.testing.assert_close(raw["pixel_values"], square.float(), atol=1e-3, rtol=1e-5)
    unscaled = Images.from_preprocessor({"do_rescale": False, "image_mean": [1, 2, 3], "image_std": [2, 2, 2]}, 10, 3)
    expected = (square.float() - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / 2
    torch.testing.assert_close(unscaled.transform(square)["pixel_values"], expected, atol=1e-3, rtol=1e-5)


def test_statistics_fit_the_number_of_channels():
    assert Images.from_preprocessor({"image_mean": [0.2, 0.4, 0.6]}, 8, 1).mean == pytest.approx((0.4,))
    assert Images.from_preprocessor({"image_mean": 0.2, "image_std": [0.1]}, 8, 3).mean == pytest.approx((0.2,) * 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_mean": [0.1, 0.2]}, "image_mean is .*expected 3 numbers"),
        ({"image_std": [0.1, 0.2, 0.0]}, "image_std is .*expected values > 0"),
        ({"image_std": "big"}, "image_std is 'big'"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
    ],
)
def test_values_that_are_no_statistics_are_refused(config: dict[str, object], message: str):
    with pytest.raises(ModelError, match=message):
        Images.from_preprocessor(config, 8, 3)
