"""Single images: every form in which a data set may hold one, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from fedelta.modalities.base import ExampleError
from fedelta.modalities.pixels import ImageShape, decode, measure

RAMP = (np.arange(20, dtype=np.uint8) * 12).reshape(4, 5)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_it_is(value: object) -> np.ndarray:
    return decode(value, measure(value))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_encoded_colour_keeps_its_pixels(kind):
    assert np.array_equal(as_it_is(encoded(Image.fromarray(COLOUR), kind)), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_read_too(kind):
    assert measure(encoded(Image.fromarray(COLOUR), kind)) == ImageShape(3, 4, 5)


def test_bytes_in_a_struct_win_over_the_path_beside_them(tmp_path):
    content = encoded(Image.fromarray(COLOUR))
    (tmp_path / "a.png").write_bytes(content)
    for value in ({"bytes": content, "path": "gone.png"}, {"bytes": None, "path": str(tmp_path / "a.png")}):
        assert np.array_equal(as_it_is(value), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("array", [COLOUR, COLOUR.transpose(2, 0, 1), COLOUR.tolist(), COLOUR / 255.0])
def test_arrays_may_have_channels_first_or_last_and_be_bytes_or_fractions(array):
    assert np.array_equal(as_it_is(array), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("array", [RAMP, RAMP[..., None], RAMP[None], RAMP.tolist()])
def test_an_array_of_one_channel_is_gray(array):
    assert np.array_equal(as_it_is(array), RAMP[None])


def test_gray_palette_and_transparent_images_become_gray_or_colour():
    assert np.array_equal(as_it_is(encoded(Image.fromarray(RAMP))), RAMP[None])
    opaque = Image.fromarray(COLOUR)
    transparent = opaque.copy()
    transparent.putalpha(7)
    palette = opaque.quantize(256)
    palette.info["transparency"] = bytes(range(20))
    for image in (transparent, palette, opaque.convert("CMYK")):
        kind = "TIFF" if image.mode == "CMYK" else "PNG"
        assert np.allclose(as_it_is(encoded(image, kind)), COLOUR.transpose(2, 0, 1), atol=2)


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = Image.fromarray((RAMP.astype(np.uint16) << 8) + 99)
    assert np.array_equal(as_it_is(encoded(deep)), RAMP[None])


def test_gray_becomes_colour_where_the_shape_says_so():
    assert np.array_equal(decode(RAMP, ImageShape(3, 4, 5)), np.stack([RAMP] * 3))


def test_an_image_is_resized_to_the_shape():
    resized = decode(np.full((8, 6, 3), 77, dtype=np.uint8), ImageShape(3, 4, 4))
    assert resized.shape == (3, 4, 4)
    assert (resized == 77).all()


def test_the_camera_orientation_is_followed():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        turned = encoded(Image.fromarray(COLOUR), exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))))
        assert np.array_equal(as_it_is(turned), expected.transpose(2, 0, 1)), orientation
        assert measure(turned) == ImageShape(3, *((5, 4) if orientation > 4 else (4, 5)))


def test_broken_camera_notes_do_not_spoil_an_image():
    content = encoded(Image.fromarray(COLOUR), exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(as_it_is(content), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "no image in a known format"),
        (b"words", "no image in a known format"),
        (b"\x89PNG but not really", "no image in a known format"),
        (None, "no image"),
        ({"bytes": None, "path": None}, "no image in a known format"),
        ({"bytes": None, "path": "/no/such.png"}, "No such file"),
        (7, "no image but int"),
        ([[1, 2], [3]], "rows of unequal length"),
        ([], "shape"),
        ([1, 2, 3], r"shape \(3,\), expected"),
        (np.zeros((5, 5, 7)), r"shape \(5, 5, 7\), expected"),
        ([[0, 256]], "other values than integers in 0..255"),
        ([[0, -1]], "other values"),
        ([[0.5, 1.5]], "floats in 0..1"),
        ([[0.5, float("nan")]], "other values"),
        ([["a", "b"]], "other values"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(value, message):
    with pytest.raises(ExampleError, match=message):
        measure(value)


def test_an_image_that_is_cut_off_is_refused_when_it_is_decoded():
    rng = np.random.default_rng(0)
    content = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    shape = measure(content[: len(content) // 2])
    with pytest.raises(ExampleError, match="damaged image"):
        decode(content[: len(content) // 2], shape)
