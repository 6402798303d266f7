"""Problems in our words, for a root that is no configuration; tests/test_config.py has those of the real one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from fedelta.settings import Settings
from fedelta.settings.explain import explain, members, named_choices, unknown_key


class Round(Settings):
    """A shape."""

    name: Literal["circle", "ball"] = "circle"
    radius: float = Field(default=1.0, gt=0)


class Square(Settings):
    """Another shape."""

    name: Literal["square"] = "square"
    sides: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    corner: Annotated[Round, Field()] = Round()


class Drawing(Settings):
    """The root."""

    shape: Annotated[Round | Square, Field(discriminator="name")] = Round()
    width: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"


def explained(section: str, value: Any) -> list[str]:
    field = Drawing.model_fields[section]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value)
    return explain(caught.value.errors(), section, value, Drawing)


@pytest.mark.parametrize(
    ("section", "value", "problem"),
    [
        ("shape", {"name": "circle", "radius": 0.0}, "`shape.radius` is 0.0, expected: greater than 0"),
        ("shape", {"name": "square", "sides": [1, 0]}, "`shape.sides.1` is 0, expected: greater than or equal to 1"),
        ("shape", {"radius": 1.0}, "`shape.name` is missing, expected one of circle, ball, square"),
        (
            "shape",
            {"name": "squar"},
            "`shape.name` is 'squar', expected one of circle, ball, square; did you mean 'square'?",
        ),
        ("shape", {"name": "ball", "radios": 1.0}, "`shape.radios` is unknown; did you mean `shape.radius`?"),
        (
            "shape",
            {"name": "square", "corner": {"name": "circle", "r": 1}},
            "`shape.corner.r` is unknown; known: name, radius",
        ),
        ("width", 0, "`width` is 0, expected: 'auto' or greater than or equal to 1"),
    ],
)
def test_a_problem_says_where_what_was_found_and_what_was_expected(section: str, value: Any, problem: str):
    assert explained(section, value) == [problem]


@pytest.mark.parametrize(("name", "advice"), [("circle", "; 'circle' is a choice of `shape.name`"), ("cube", "")])
def test_a_name_that_stands_elsewhere_is_pointed_out(name: str, advice: str):
    class Line(Settings):
        name: Literal["line"] = "line"

    class Root(Settings):
        shape: Annotated[Round | Square, Field(discriminator="name")] = Round()
        frame: Annotated[Square | Line, Field(discriminator="name")] = Square()

    field = Root.model_fields["frame"]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Annotated[field.annotation, field]).validate_python({"name": name})
    assert explain(caught.value.errors(), "frame", {"name": name}, Root) == [
        f"`frame.name` is {name!r}, expected one of square, line{advice}"
    ]


def test_named_choices_are_found_in_the_annotations_at_any_depth():
    assert named_choices(Drawing) == {
        "shape.name": ["circle", "ball", "square"],
        "shape.corner.name": ["circle", "ball"],
    }


def test_members_are_told_apart_by_name_and_other_annotations_have_none():
    assert members(Round | Square) == {"circle": Round, "ball": Round, "square": Square}
    assert members(Round) == {"circle": Round, "ball": Round}
    assert members(int | None) == members(Drawing) == {}


def test_an_unknown_key_names_the_nearest_or_all():
    assert unknown_key("widht", "", Drawing) == "`widht` is unknown; did you mean `width`?"
    assert unknown_key("colour", "drawing", Drawing) == "`drawing.colour` is unknown; known: shape, width"
