"""Crops and flips, on images small enough to write down."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch
from pydantic import ValidationError
from tests.builders import ReadyInputs
from torch import Tensor, tensor
from torch.nn.functional import interpolate

from fedelta.data.augmentation import Augmentation, AugmentedInputs, crop_padded, draw_boxes, resize_boxes
from fedelta.errors import ConfigError
from fedelta.modalities.image import Images
from fedelta.seeds import stream

BLACK = tensor([0.0])
CPU = torch.device("cpu")
NUM_DRAWS = 25


def uniforms(**columns: float) -> Tensor:
    """One image's numbers; named ones as given, in the order of the file under test, the others 0.99."""
    names = ("flip", "row", "column", "place_row", "place_column", "area", "aspect")
    line = torch.full((1, NUM_DRAWS), 0.99)
    for name, value in columns.items():
        line[0, names.index(name)] = value
    return line


def image(*rows: list[float]) -> Tensor:
    return tensor([[list(rows)]])


def inputs_of(num_rows: int = 6, **options: object) -> AugmentedInputs:
    pixels = torch.rand(num_rows, 3, 8, 8, generator=stream(0))
    chosen = Augmentation(**(options or {"crop_padding": 2, "flip": True, "resized_crop": 0.2}))
    return AugmentedInputs(ReadyInputs({"pixel_values": pixels}), chosen, (0.0,), CPU)


def test_a_number_below_a_half_flips_left_and_right():
    once, squares = Augmentation(flip=True), image([1.0, 2.0], [3.0, 4.0])
    assert once(squares, uniforms(flip=0.49), BLACK).tolist() == image([2.0, 1.0], [4.0, 3.0]).tolist()
    assert once(squares, uniforms(flip=0.5), BLACK).tolist() == squares.tolist()


def test_a_crop_starts_anywhere_from_the_padding_above_to_the_padding_below():
    # Padding 1 makes 3 places an axis: 0.3 * 3 -> 0, 0.5 * 3 -> 1, 0.99 * 3 -> 2. At place 1 nothing moves.
    crop, squares = Augmentation(crop_padding=1), image([1.0, 2.0], [3.0, 4.0])
    assert crop(squares, uniforms(row=0.5, column=0.5), BLACK).tolist() == squares.tolist()
    assert crop(squares, uniforms(row=0.3, column=0.5), BLACK).tolist() == image([0.0, 0.0], [1.0, 2.0]).tolist()
    assert crop(squares, uniforms(row=0.99, column=0.3), BLACK).tolist() == image([0.0, 3.0], [0.0, 0.0]).tolist()


def test_the_images_of_a_batch_are_cropped_and_flipped_each_on_its_own():
    both = Augmentation(crop_padding=1, flip=True)
    squares = torch.cat([image([1.0, 2.0], [3.0, 4.0]), image([5.0, 6.0], [7.0, 8.0])])
    lines = torch.cat([uniforms(row=0.3, column=0.5, flip=0.9), uniforms(row=0.5, column=0.99, flip=0.1)])
    first, second = both(squares, lines, BLACK)
    assert first.tolist() == [[[0.0, 0.0], [1.0, 2.0]]]
    # One column to the left, [[6, 0], [8, 0]], then flipped.
    assert second.tolist() == [[[0.0, 6.0], [0.0, 8.0]]]


def test_the_padding_is_black_before_normalisation():
    # (0 - 0.5) / 0.25 = -2 and (0 - 0.2) / 0.1 = -2: what a black image becomes.
    images = Images(2, mean=(0.5, 0.2), std=(0.25, 0.1), num_channels=2)
    black_image = images.transform(torch.zeros(1, 2, 2, 2, dtype=torch.uint8))["pixel_values"]
    assert images.black == pytest.approx((-2.0, -2.0))
    white = images.transform(torch.full((1, 2, 2, 2), 255, dtype=torch.uint8))["pixel_values"]
    cropped = crop_padded(white, tensor([[0, 1]]), 1, tensor(images.black))
    torch.testing.assert_close(cropped[:, :, 0], black_image[:, :, 0])
    assert torch.equal(cropped[:, :, 1], white[:, :, 0])


def test_padding_and_normalising_is_normalising_and_padding():
    images = Images(8, mean=(0.5, 0.2, 0.3), std=(0.25, 0.1, 0.2))
    raw = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=stream(0))
    starts = tensor([[0, 1], [4, 4], [2, 3], [2, 2]])
    first = images.transform(crop_padded(raw, starts, 2, torch.zeros(3)))["pixel_values"]
    second = crop_padded(images.transform(raw)["pixel_values"], starts, 2, tensor(images.black))
    torch.testing.assert_close(second, first)


def test_a_resized_box_is_the_box_cut_out_and_resized():
    pixels = torch.rand(3, 2, 12, 12, generator=stream(1))
    boxes = tensor([[0, 0, 12, 12], [2, 5, 6, 7], [11, 11, 1, 1]])
    result = resize_boxes(pixels, boxes)
    for index, (row, column, height, width) in enumerate(boxes.tolist()):
        cut = pixels[index : index + 1, :, row : row + height, column : column + width]
        expected = interpolate(cut, (12, 12), mode="bilinear", align_corners=False)
        torch.testing.assert_close(result[index : index + 1], expected, rtol=1e-4, atol=1e-5)


def test_a_box_by_hand():
    # Area 16^2 * (0.25 + 0.75 * 0) = 64, aspect exp((ln 3/4 + ln 4/3) / 2) = 1: 8 x 8 pixels with 9 places an axis,
    # 0.5 * 9 -> 4 and 0.99 * 9 -> 8.
    line = uniforms(area=0.0, aspect=0.5, place_row=0.5, place_column=0.99)
    assert draw_boxes(line, 0.25, 16).tolist() == [[4, 8, 8, 8]]


def test_a_box_is_wider_than_high_by_its_aspect_ratio():
    # Aspect 4/3 and area 16^2 * 0.25: height sqrt(64 * 3/4) = 6.9, width sqrt(64 * 4/3) = 9.2
    [[_, _, height, width]] = draw_boxes(uniforms(area=0.0, aspect=1.0 - 1e-6), 0.25, 16).tolist()
    assert (height, width) == (7, 9)


def test_a_box_that_does_not_fit_makes_way_for_the_next_and_the_last_for_the_whole():
    # Area 0.99 of the square at aspect ratios that are not 1 does not fit.
    line = uniforms()
    assert draw_boxes(line, 0.9, 16).tolist() == [[0, 0, 16, 16]]
    line[0, 7:9] = tensor([0.0, 0.5])  # the second try: area 0.25 * 256, a square
    assert draw_boxes(line, 0.25, 16)[0, 2:].tolist() == [8, 8]


def test_boxes_stay_inside_and_have_the_area_and_the_aspect_ratio_that_were_asked_for():
    boxes = draw_boxes(torch.rand(2000, NUM_DRAWS, generator=stream(0)), 0.05, 224)
    starts, sides = boxes[:, :2], boxes[:, 2:].double()
    assert starts.min() >= 0
    assert (starts + sides).max() <= 224
    areas, aspects = sides.prod(1) / 224**2, sides[:, 1] / sides[:, 0]
    # Half a pixel of rounding on sides of at least 43 pixels is about 1 %.
    assert 0.049 < areas.min() < 0.06
    assert 0.95 < areas.max() <= 1
    assert 0.73 < aspects.min() < 0.77
    assert 1.3 < aspects.max() < 1.37


def epochs(inputs: AugmentedInputs, order: list[list[int]], rows: list[int], *, epoch_steps: int) -> list[Tensor]:
    """What each batch of `order` holds, with the client's numbers from stream 7."""
    batches = inputs.in_epochs((tensor(batch) for batch in order), tensor(rows), epoch_steps, repeat(stream(7)))
    return [inputs.fetch(batch)["pixel_values"] for batch in batches]


def test_order_and_size_of_batches_do_not_change_what_an_image_becomes():
    rows = [1, 4, 5]
    whole = epochs(inputs_of(), [rows, rows], rows, epoch_steps=1)
    parts = epochs(inputs_of(), [[4], [5], [1], [5], [1], [4]], rows, epoch_steps=3)
    for epoch in (0, 1):
        for place, row in enumerate(rows):
            position = [4, 5, 1, 5, 1, 4].index(row, 3 * epoch)
            assert torch.equal(whole[epoch][place], parts[position][0])


def test_a_row_is_another_image_in_every_epoch_and_the_same_one_within_it():
    rows = [0, 1, 2, 3]
    first, again, second = epochs(inputs_of(), [rows, rows, rows], rows, epoch_steps=2)
    assert torch.equal(first, again)
    assert all(not torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_the_rows_of_others_keep_their_numbers():
    inputs = inputs_of()
    own, other = (inputs.in_epochs(iter([tensor([row])]), tensor([row]), 1, repeat(stream(row))) for row in (0, 1))
    before = inputs.fetch(next(own))["pixel_values"]
    next(other)
    assert torch.equal(inputs.fetch(tensor([0]))["pixel_values"], before)


def test_turning_on_one_thing_changes_nothing_about_another():
    rows = list(range(40))
    [cropped] = epochs(inputs_of(40, crop_padding=2), [rows], rows, epoch_steps=1)
    [both] = epochs(inputs_of(40, crop_padding=2, flip=True), [rows], rows, epoch_steps=1)
    same = [torch.equal(*pair) for pair in zip(cropped, both, strict=True)]
    flipped = [torch.equal(one.flip(-1), other) for one, other in zip(cropped, both, strict=True)]
    assert [one != other for one, other in zip(same, flipped, strict=True)] == [True] * 40
    # Half of 40 are 20, with a deviation of sqrt(40) / 2 = 3.2.
    assert 10 < sum(flipped) < 30


def test_nothing_is_changed_in_place_and_other_inputs_pass_through():
    raw = {"pixel_values": torch.rand(2, 1, 4, 4, generator=stream(0)), "place": tensor([3, 4])}
    before = raw["pixel_values"].clone()
    inputs = AugmentedInputs(ReadyInputs(raw), Augmentation(crop_padding=1, flip=True), (0.0,), CPU)
    list(inputs.in_epochs(iter([tensor([0, 1])]), tensor([0, 1]), 1, repeat(stream(0))))
    assert inputs.fetch(tensor([1, 0]))["place"].tolist() == [4, 3]
    assert torch.equal(raw["pixel_values"], before)
    assert len(inputs) == 2


def test_a_job_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="no `augmentation` generator"):
        next(inputs_of().in_epochs(iter([tensor([0])]), tensor([0]), 1, None))


def test_whether_anything_is_on():
    assert not Augmentation().is_on
    assert all(Augmentation(**one).is_on for one in ({"crop_padding": 1}, {"flip": True}, {"resized_crop": 1.0}))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_of_the_area_outside_0_to_1_is_refused(share: float):
    with pytest.raises(ValidationError, match="resized_crop"):
        Augmentation(resized_crop=share)


@pytest.mark.parametrize("padding", [4, 9])
def test_a_padding_as_large_as_the_image_is_refused(padding: int):
    with pytest.raises(
        ConfigError,
        match=rf"`augmentation.crop_padding` is {padding}, expected less than the side of an image, 4 pixels",
    ):
        AugmentedInputs(
            ReadyInputs({"pixel_values": torch.rand(1, 1, 4, 4)}), Augmentation(crop_padding=padding), (0.0,), CPU
        )


def test_inputs_that_are_no_images_are_refused():
    with pytest.raises(
        ConfigError, match="changes `pixel_values`, but the training data have attention_mask, input_ids"
    ):
        AugmentedInputs(
            ReadyInputs({"input_ids": tensor([[1]]), "attention_mask": tensor([[1]])}),
            Augmentation(flip=True),
            (0.0,),
            CPU,
        )


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ConfigError, match=r"of shape \(rows, channels, side, side\), but found \(1, 1, 4, 6\)"):
        AugmentedInputs(ReadyInputs({"pixel_values": torch.rand(1, 1, 4, 6)}), Augmentation(flip=True), (0.0,), CPU)
