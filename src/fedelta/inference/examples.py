"""Single texts, images and recordings to batches of model inputs, by the code that reads training data."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedelta.data.audio import AudioError, check_rate, decode_audio, one_channel
from fedelta.data.images import ImageError, ImageShape, decode, measure
from fedelta.data.problems import refuse
from fedelta.models.audio import AudioTransform
from fedelta.models.transforms import ImageTransform, TextTransform

if TYPE_CHECKING:
    from PIL.Image import Image

    Example = str | Path | Image | Tensor | tuple[Tensor, int]

BATCH_SIZE = 32  # examples of one pass through the model
# Mixing may go a little beyond full scale; integers that became floats go far beyond.
_MAX_SAMPLE = 2.0


def text_batches(
    texts: Sequence[Example], transform: TextTransform, batch_size: int = BATCH_SIZE
) -> Iterator[dict[str, Tensor]]:
    """Model inputs of `batch_size` texts at a time, in order.

    Raises:
        DataError: something is no text or empty; names all of them. Raised at the call, not while iterating.
    """
    refuse(
        "texts",
        [
            f"input {index}: {'an empty text' if isinstance(text, str) else f'no text but {type(text).__name__}'}"
            for index, text in enumerate(texts)
            if not isinstance(text, str) or not text.strip()
        ],
    )
    checked = [text for text in texts if isinstance(text, str)]
    return (transform(checked[start : start + batch_size]) for start in range(0, len(checked), batch_size))


def image_batches(
    images: Sequence[Example], transform: ImageTransform, batch_size: int = BATCH_SIZE
) -> Iterator[dict[str, Tensor]]:
    """Model inputs of `batch_size` images at a time, in order.

    Raises:
        DataError: something is no image; names all of them. Raised at the call, not while iterating.
    """
    pixels: list[Tensor] = []
    problems: list[str] = []
    for index, image in enumerate(images):
        try:
            pixels.append(transform(_pixels(image, transform.image_size)[None])["pixel_values"])
        except ImageError as error:
            problems.append(f"{_name(image, index)}: {error}")
    refuse("images", problems, hint="give image files that Pillow can open, Pillow images, or uint8 tensors [C, H, W].")
    chunks = (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
    return ({"pixel_values": torch.cat(chunk)} for chunk in chunks)


def audio_batches(
    recordings: Sequence[Example], transform: AudioTransform, batch_size: int = BATCH_SIZE
) -> Iterator[dict[str, Tensor]]:
    """Model inputs of `batch_size` recordings at a time, in order.

    Raises:
        DataError: something is no recording; names all of them. Raised at the call, not while iterating.
    """
    spectrograms: list[Tensor] = []
    problems: list[str] = []
    for index, recording in enumerate(recordings):
        try:
            spectrograms.append(transform.spectrogram(*_waveform(recording, transform.max_seconds)))
        except AudioError as error:
            problems.append(f"{_name(recording, index)}: {error}")
    refuse(
        "recordings",
        problems,
        hint="give WAV, FLAC, OGG or MP3 files, or pairs of a float tensor [samples] or [channels, samples] and its "
        "sample rate in Hz.",
    )
    chunks = (spectrograms[start : start + batch_size] for start in range(0, len(spectrograms), batch_size))
    return (transform(torch.stack(chunk)) for chunk in chunks)


def _waveform(recording: Example, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    """One channel of float32, and its sample rate in Hz."""
    if isinstance(recording, str | Path):
        return decode_audio(str(recording), max_seconds)
    if not isinstance(recording, tuple) or len(recording) != 2:
        raise AudioError(f"no recording but {type(recording).__name__}")
    samples, sample_rate = recording
    if not isinstance(samples, Tensor):
        raise AudioError(f"no tensor but {type(samples).__name__}")
    if not samples.is_floating_point() or samples.dim() not in {1, 2}:
        found = f"a {samples.dtype} tensor of shape {tuple(samples.shape)}"
        raise AudioError(f"{found}, expected a float tensor [samples] or [channels, samples]")
    check_rate(sample_rate)
    if samples.numel() and samples.abs().max() > _MAX_SAMPLE:
        raise AudioError(f"samples up to {samples.abs().max():g}, expected -1 to 1: divide by the full scale")
    return one_channel(np.atleast_2d(samples.detach().cpu().float().numpy())), sample_rate


def _name(example: Example, index: int) -> str:
    return repr(str(example)) if isinstance(example, str | Path) else f"input {index}"


def _pixels(image: Example, image_size: int) -> Tensor:
    """uint8 [C, H, W], no larger than the model's input: decoded as the images of a data set are."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in {1, 3} or image.numel() == 0:
            raise ImageError(f"a {image.dtype} tensor of shape {tuple(image.shape)}, expected uint8 [1 or 3, H, W]")
        return image
    encoded = _encoded(image)
    shape = measure(encoded)
    if max(shape.height, shape.width) > image_size:
        shape = ImageShape(shape.channels, image_size, image_size)
    return torch.from_numpy(decode(encoded, shape))


def _encoded(image: Example) -> bytes:
    from PIL import Image, ImageOps

    if isinstance(image, str | Path):
        try:
            return Path(image).expanduser().read_bytes()
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
    if not isinstance(image, Image.Image):
        raise ImageError(f"no image but {type(image).__name__}")
    buffer = io.BytesIO()
    # TIFF keeps every mode of Pillow as it is; turned first, because it would turn by the camera's note on its own.
    ImageOps.exif_transpose(image).save(buffer, "TIFF")
    return buffer.getvalue()
