"""The check whether an example can be read, without a model: a file is decoded as it is later decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedelta.modalities.audio import Recordings
from fedelta.modalities.base import ExampleError
from fedelta.modalities.image import Images
from fedelta.modalities.pixels import decode_full_size, extremes, image_shape
from fedelta.modalities.settings import AudioSettings, Preparation
from fedelta.modalities.spectrograms import needed_seconds
from fedelta.modalities.text import Texts
from fedelta.modalities.turns import problem_of
from fedelta.modalities.value_range import common_range
from fedelta.modalities.waveforms import decode_audio
from fedelta.modalities.words import Words, words_of

Check = Callable[[object, Preparation], None]


def check_image(value: object, preparation: Preparation) -> None:  # noqa: ARG001 a `Check`
    """Refuses a value that is no image, or one whose pixels cannot be decoded.

    Its values are not compared with the value range of the data set, but with its own.

    Raises:
        ExampleError: says what is wrong with it.
    """
    pair = extremes(value)
    value_range = common_range([] if pair is None else [pair])
    # A side of 1: a very large image is decoded at its smallest size, which reads all of its bytes.
    decode_full_size(value, image_shape(value).channels, value_range, 1)


def check_recording(value: object, preparation: Preparation) -> None:
    """Refuses a value that is no recording, or one that is damaged in the seconds that are used.

    Raises:
        ExampleError: says what is wrong with it.
    """
    decode_audio(value, needed_seconds(preparation.audio or AudioSettings()))


def check_text(value: object, preparation: Preparation) -> None:  # noqa: ARG001 a `Check`
    """Refuses a value that is no text, or one without letters.

    Raises:
        ExampleError: says so.
    """
    if not isinstance(value, str):
        raise ExampleError("it has no text" if value is None else f"it is no text but {type(value).__name__}")
    if not value.strip():
        raise ExampleError("its text is empty")


def check_words(value: object, preparation: Preparation) -> None:  # noqa: ARG001 a `Check`
    """Refuses a value that is no list of words, or an empty one.

    Raises:
        ExampleError: says so.
    """
    if not words_of(value):
        raise ExampleError("it has no words")


def check_dialogue(value: object, preparation: Preparation) -> None:  # noqa: ARG001 a `Check`
    """Refuses a value that is no dialogue to learn from.

    Raises:
        ExampleError: says what is wrong with it.
    """
    if problem := problem_of(value):
        raise ExampleError(f"it {problem}")


CHECKS: Mapping[str, Check] = {
    Images.name: check_image,
    Recordings.name: check_recording,
    Texts.name: check_text,
    Words.name: check_words,
}
"""Name of a modality to its check; dialogues have their own."""
