"""Single images: every form in which a data set may hold one, and what is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from fedelta.modalities import pixels
from fedelta.modalities.base import ExampleError
from fedelta.modalities.pixels import (
    ImageShape,
    brightest_of_deep_colour,
    decode_full_size,
    decode_image,
    extremes,
    image_shape,
    read_header,
)
from fedelta.modalities.value_range import ValueRange, check_colour, common_range

RAMP = (np.arange(20, dtype=np.uint8) * 12).reshape(4, 5)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_it_is(value: object) -> np.ndarray:
    return decode_image(value, image_shape(value))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_encoded_colour_keeps_its_pixels(kind):
    assert np.array_equal(as_it_is(encoded(Image.fromarray(COLOUR), kind)), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_read_too(kind):
    assert image_shape(encoded(Image.fromarray(COLOUR), kind)) == ImageShape(3, 4, 5)


def test_bytes_in_a_struct_win_over_the_path_beside_them(tmp_path):
    content = encoded(Image.fromarray(COLOUR))
    (tmp_path / "a.png").write_bytes(content)
    for value in ({"bytes": content, "path": "gone.png"}, {"bytes": None, "path": str(tmp_path / "a.png")}):
        assert np.array_equal(as_it_is(value), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("array", [COLOUR, COLOUR.transpose(2, 0, 1), COLOUR.tolist(), COLOUR / 255.0])
def test_arrays_may_have_channels_first_or_last_and_be_bytes_or_fractions(array):
    value_range = common_range([extremes(array)])
    assert np.array_equal(decode_image(array, image_shape(array), value_range), COLOUR.transpose(2, 0, 1))


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


DEEP = {
    "12 of 16 bits": (np.uint16, "PNG", 0, 4095),
    "few of 16 bits": (np.uint16, "PNG", 3, 19),
    "signed tomography": (np.int32, "TIFF", -1024, 3071),
    "fractions": (np.float32, "TIFF", -0.5, 0.25),
    "tiny fractions": (np.float32, "TIFF", 0.0, 0.001),
    "large numbers": (np.float32, "TIFF", 0.0, 1e6),
}


@pytest.mark.parametrize("case", DEEP)
def test_more_than_eight_bits_are_scaled_by_their_own_range(case):
    dtype, kind, low, high = DEEP[case]
    # Four equal steps from the darkest to the brightest become 0, 64, 128, 191 and 255.
    numbers = (low + (high - low) * np.linspace(0, 1, 5)).astype(dtype)
    content = encoded(Image.fromarray(np.tile(numbers, (4, 1))), kind)
    value_range = common_range([extremes(content)])
    assert value_range == ValueRange(pytest.approx(low), pytest.approx(high))
    decoded = decode_image(content, image_shape(content), value_range)
    assert np.abs(decoded[0, 0].astype(int) - [0, 64, 128, 191, 255]).max() <= 1
    assert np.array_equal(decode_image(np.tile(numbers, (4, 1)).tolist(), ImageShape(1, 4, 5), value_range), decoded)


def test_usual_ranges_stay_where_values_fill_an_eighth_of_them():
    assert common_range([(0, 200), (5, 32)]) == ValueRange(0, 255)
    assert common_range([(0.1, 0.9)]) == ValueRange(0, 1)
    assert common_range([(0, 16)]) == ValueRange(0, 16)
    assert common_range([(0.0, 0.1)]) == ValueRange(0, 0.1)
    assert common_range([(-1, 200)]) == ValueRange(-1, 200)


def test_a_value_a_little_outside_of_the_range_is_cut_and_one_far_outside_is_refused():
    value_range = ValueRange(0, 1000)
    assert decode_image([[-500, 0, 500, 1900]], ImageShape(1, 1, 4), value_range).tolist() == [[[0, 0, 128, 255]]]
    for numbers, extremes_text in (([[0, 2001]], "0 to 2001"), ([[-1001, 7]], "-1001 to 7")):
        with pytest.raises(ExampleError, match=f"values {extremes_text}, far outside the training data's 0 to 1000"):
            decode_image(numbers, ImageShape(1, 1, 2), value_range)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(odd):
    numbers = np.array([[0.0, odd]], dtype=np.float32)
    content = encoded(Image.fromarray(numbers), "TIFF")
    assert extremes(content) is None
    with pytest.raises(ExampleError, match="an image with values that are NaN or infinite"):
        as_it_is(content)
    with pytest.raises(ExampleError, match="an array with values that are NaN or infinite"):
        as_it_is(numbers)


# Each shows the same colour, within what the conversion of its mode loses.
ODD_MODES = {
    "YCbCr": lambda image: image.convert("YCbCr"),
    "HSV": lambda image: image.convert("HSV"),
    "RGBX": lambda image: image.convert("RGBX"),
    "RGBa": lambda image: image.convert("RGBA").convert("RGBa"),
    "CMYK": lambda image: image.convert("CMYK"),
    "P": lambda image: image.quantize(256),
    "PA": lambda image: image.quantize(256).convert("PA"),
    "LAB": lambda image: ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    ),
}


@pytest.mark.parametrize("mode", ODD_MODES)
def test_a_pillow_image_of_any_mode_keeps_its_colours(mode):
    plain = Image.new("RGB", (5, 4), (200, 90, 40))
    image = ODD_MODES[mode](plain)
    assert image.mode == mode
    assert np.abs(as_it_is(image).astype(int) - np.asarray(plain).transpose(2, 0, 1)).max() <= 4
    image.load()  # it is still open


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"])
def test_a_gray_pillow_image_of_any_mode_keeps_its_values(mode):
    gray = Image.fromarray(np.tile(np.array([0, 255, 0, 255, 0], dtype=np.uint8), (4, 1)))
    if mode == "La":
        image = gray.convert("LA").convert("La")
    elif mode.startswith("I;16"):
        image = gray.convert("I").convert("I;16") if mode == "I;16" else gray.convert("I").convert("I;16").convert(mode)
    else:
        image = gray.convert(mode)
    assert image.mode == mode
    assert np.array_equal(as_it_is(image)[0], np.asarray(gray))


def test_what_is_transparent_is_put_on_white_where_that_is_asked_for():
    image = Image.new("RGBA", (5, 4), (0, 0, 0, 0))
    shape = image_shape(image)
    assert (decode_image(image, shape) == 0).all()
    assert (decode_image(image, shape, on_white=True) == 255).all()
    palette = Image.fromarray(np.zeros((4, 5), dtype=np.uint8)).convert("P")
    content = encoded(palette, transparency=0)
    assert (decode_image(content, shape, on_white=True) == 255).all()


def deep_colour(level: int) -> bytes:
    """A PNG of one pixel of 16 bits per channel, which Pillow cannot write."""
    row = b"\0" + level.to_bytes(2, "big") * 3
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_colour_of_sixteen_bits_that_uses_few_of_them_is_refused():
    assert brightest_of_deep_colour(deep_colour(4095)) == 15
    assert brightest_of_deep_colour(deep_colour(65535)) == 255
    assert brightest_of_deep_colour(encoded(Image.fromarray(COLOUR))) is None
    check_colour([15, 32])
    with pytest.raises(ExampleError, match=r"colour images of 16 bits per channel with values below 4,096 of 65,536"):
        check_colour([15, 7])


def test_the_header_shows_whether_a_file_has_several_images():
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    for kind in ("GIF", "TIFF", "WEBP"):
        assert read_header(encoded(first, kind, save_all=True, append_images=[second])).has_frames, kind
        assert not read_header(encoded(first, kind)).has_frames, kind


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(monkeypatch):
    monkeypatch.setattr(pixels, "_LARGE", 200 * 200)
    monkeypatch.setattr(pixels, "_LARGEST", 300 * 300)
    content = encoded(Image.new("RGB", (800, 600), (200, 90, 40)), "JPEG")
    # Of the fractions of JPEG, 1/2, 1/4 and 1/8, the last leaves less than twice 64 pixels.
    assert decode_full_size(content, 3, ValueRange(), 64).shape == (3, 150, 200)
    assert decode_full_size(encoded(Image.new("L", (260, 340)), "PNG"), 1, ValueRange(), 64).shape == (1, 170, 130)
    with pytest.raises(ExampleError, match=r"an image of 800 x 600 pixels, expected at most 90,000 in total"):
        as_it_is(encoded(Image.new("L", (800, 600)), "PNG"))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_camera_orientation_that_does_not_exist_turns_nothing(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for kind in ("PNG", "WEBP", "TIFF"):
        content = encoded(Image.fromarray(COLOUR), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        assert np.array_equal(as_it_is(content), COLOUR.transpose(2, 0, 1)), kind


def test_gray_becomes_colour_where_the_shape_says_so():
    assert np.array_equal(decode_image(RAMP, ImageShape(3, 4, 5)), np.stack([RAMP] * 3))


def test_an_image_is_resized_to_the_shape():
    resized = decode_image(np.full((8, 6, 3), 77, dtype=np.uint8), ImageShape(3, 4, 4))
    assert resized.shape == (3, 4, 4)
    assert (resized == 77).all()


def test_the_camera_orientation_is_followed():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for kind in ("PNG", "TIFF"):
            turned = encoded(Image.fromarray(COLOUR), kind, exif=exif)
            expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))))
            assert np.array_equal(as_it_is(turned), expected.transpose(2, 0, 1)), orientation
            assert np.array_equal(as_it_is(Image.open(io.BytesIO(turned))), expected.transpose(2, 0, 1)), orientation
            assert image_shape(turned) == ImageShape(3, *((5, 4) if orientation > 4 else (4, 5)))


def test_broken_camera_notes_do_not_spoil_an_image():
    content = encoded(Image.fromarray(COLOUR), exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(as_it_is(content), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "not an image in a known format"),
        (b"words", "not an image in a known format"),
        (b"\x89PNG but not really", "not an image in a known format"),
        (None, "missing image"),
        ({"bytes": None, "path": None}, "not an image in a known format"),
        ({"bytes": None, "path": "/no/such.png"}, "No such file"),
        (7, "not an image but int"),
        ([[1, 2], [3]], "rows of unequal length"),
        ([], "shape"),
        ([1, 2, 3], r"shape \(3,\), expected"),
        (np.zeros((5, 5, 7)), r"shape \(5, 5, 7\), expected"),
        ([[0.5, float("nan")]], "values that are NaN or infinite"),
        ([["a", "b"]], "values that are not numbers"),
    ],
)
def test_values_that_are_not_images_are_refused_with_the_reason(value, message):
    with pytest.raises(ExampleError, match=message):
        image_shape(value)


def test_an_image_that_is_cut_off_is_refused_when_it_is_decoded():
    rng = np.random.default_rng(0)
    content = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    shape = image_shape(content[: len(content) // 2])
    with pytest.raises(ExampleError, match="damaged image"):
        decode_image(content[: len(content) // 2], shape)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX"])
def test_damaged_bytes_are_read_or_refused_without_a_crash(kind):
    rng = np.random.default_rng(0)
    content = encoded(Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)), kind)
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        for place in rng.integers(0, min(len(damaged), 150), 3):
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(ExampleError):
            header = read_header(bytes(damaged))
            if header.shape.height * header.shape.width < 10**6:
                assert decode_image(bytes(damaged), ImageShape(3, 4, 4)).shape == (3, 4, 4)
