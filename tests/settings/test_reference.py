"""Every key of a configuration as data, from the settings' own classes."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from fedelta.catalog import ALL, COMBINATIONS
from fedelta.choices import sections, sections_called
from fedelta.errors import InputError
from fedelta.settings import Settings
from fedelta.settings.reference import Key, Section, described, reference


class Oven(Settings):
    """Bakes things.

    Args:
        degrees: temperature of the inside, in
            degrees Celsius.
        mode, program: how it heats.
    """

    # Measured in our kitchen.
    degrees: int = Field(default=200, ge=50, le=300)
    mode: Literal["top", "fan"] = "fan"  # the manual
    program: Annotated[tuple[str, ...], Field(strict=False)] | None = None


class Kitchen(Settings):
    """A room.

    Args:
        area: of the floor, in square metres.
    """

    area: float = Field(gt=0)
    oven: Oven = Oven()


class Small(Oven):
    """Bakes small things."""

    degrees: int = 150


def test_a_section_has_every_key_with_type_default_origin_and_meaning():
    area = Key("area", "number > 0", "required", "", "Of the floor, in square metres.")
    degrees = Key(
        "oven.degrees", "whole number >= 50 and <= 300", "200", "Measured in our kitchen.",
        "Temperature of the inside, in degrees Celsius.",
    )  # fmt: skip
    mode = Key("oven.mode", '"top" or "fan"', '"fan"', "the manual", "How it heats.")
    program = Key("oven.program", "list of text", "nothing", "", "How it heats.")
    assert reference(Kitchen) == [
        Section("", (), False, "A room.", (area,)),
        Section("oven", (), False, "Bakes things.", (degrees, mode, program)),
    ]


def test_a_default_that_is_declared_anew_does_not_keep_the_old_origin_but_the_meaning():
    key = reference(Small)[0].keys[0]
    assert (key.default, key.origin) == ("150", "")
    assert key.meaning == "Temperature of the inside, in degrees Celsius."


def test_a_section_is_described_in_lines_no_longer_than_asked():
    text = next(described(reference(Kitchen)[1:], 40))
    assert text.splitlines()[:4] == [
        "[oven]",
        "  Bakes things.",
        "  degrees: whole number >= 50 and <= 300, default 200 (Measured in our kitchen.)",
        "      Temperature of the inside, in",
    ]


@pytest.mark.parametrize("key", [key for section in sections() for key in section.keys], ids=lambda key: key.path)
def test_every_key_has_a_meaning_that_is_a_sentence(key: Key):
    assert key.meaning.endswith("."), key
    assert len(key.meaning.split()) >= 3, key
    assert not key.meaning[0].islower(), key


def test_every_method_of_the_catalog_has_a_section():
    listed = {(section.path, name) for section in sections() for name in section.names}
    for registry in ALL:
        if registry is not COMBINATIONS:
            path = registry.places[0].removesuffix(".name")
            assert {(path, name) for name in registry} <= listed


def test_the_method_without_a_name_is_marked():
    chosen = {section.path: section.names[0] for section in sections() if section.default}
    assert chosen["tuning"] == "lora"
    assert chosen["strategy"] == "fedavg"
    assert chosen["codec"] == "float32"


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("strategy.fedlama", ["strategy.fedlama"]),
        ("codec.int4", ["codec.int8"]),  # one class with two names
        ("data", ["data", "data.audio"]),
        ("tuning.r", ["tuning.lora"]),
        ("seed", [""]),
        (
            "client.schedule",
            ["client.schedule.constant", "client.schedule.cosine", "client.schedule.linear", "client.schedule.step"],
        ),
    ],
)
def test_a_section_a_method_or_a_key_is_found(name: str, titles: list[str]):
    assert [section.title for section in sections_called(name)] == titles


def test_a_key_is_listed_alone():
    assert [key.path for section in sections_called("tuning.r") for key in section.keys] == ["tuning.r"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("strateggy", "did you mean `fedelta list strategy`?"),
        ("strategy.fedlma", "did you mean `fedelta list strategy.fedlama`?"),
        ("lora", "did you mean `fedelta list tuning.lora`?"),
        ("num_rounds", "did you mean `fedelta list strategy.num_rounds`?"),
    ],
)
def test_an_unknown_section_gets_the_nearest_name(name: str, hint: str):
    with pytest.raises(InputError, match="a configuration has no section or key") as error:
        sections_called(name)
    assert error.value.hint == hint


def test_a_name_like_nothing_gets_all_sections():
    with pytest.raises(InputError) as error:
        sections_called("qqqqq")
    assert error.value.hint is not None
    assert error.value.hint.startswith("sections: model, data, data.audio, partition, ")
