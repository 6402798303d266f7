"""Problems in our words, for a root that is no configuration; tests/test_config.py has those of the real one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from fedelta.settings import Settings
from fedelta.settings.explain import explain, named_choices, names_in, unknown_key
from fedelta.settings.registry import Chosen, Kind, Provider, Registry


def registry_of(place: str, *classes: type[Settings]) -> Registry:
    registry = Registry(Kind("shape", "", ()), (place,), {})
    for kind in classes:
        registry.add(kind, Provider("a test"))
    return registry


class Round(Settings):
    """A shape."""

    name: Literal["circle", "ball"] = "circle"
    radius: float = Field(default=1.0, gt=0)


class Square(Settings):
    """Another shape."""

    name: Literal["square"] = "square"
    sides: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    corner: Annotated[Round, Field()] = Round()


SHAPES = registry_of("shape.name", Round, Square)


class Drawing(Settings):
    """The root."""

    shape: Annotated[Settings, Chosen(SHAPES)] = Round()
    width: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    weights: Literal["none"] | dict[str, Annotated[float, Field(gt=0)]] = "none"


def explained(section: str, value: Any, root: type[Settings] = Drawing) -> list[str]:
    field = root.model_fields[section]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value)
    return explain(caught.value.errors(), section, value, root)


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
        (
            "shape",
            "square",
            "`shape` is 'square', expected a table; give `shape.name`, such as `shape.name = 'square'`",
        ),
        ("width", 0, "`width` is 0, expected: 'auto' or greater than or equal to 1"),
        ("weights", {"a": 1.0, "b": 0.0}, "`weights.b` is 0.0, expected: greater than 0"),
        ("weights", "even", "`weights` is 'even', expected: 'none' or a table"),
    ],
)
def test_a_problem_says_where_what_was_found_and_what_was_expected(section: str, value: Any, problem: str):
    assert explained(section, value) == [problem]


@pytest.mark.parametrize(("name", "advice"), [("circle", "; 'circle' is a choice of `shape.name`"), ("cube", "")])
def test_a_name_of_another_setting_is_pointed_out(name: str, advice: str):
    class Line(Settings):
        name: Literal["line"] = "line"

    class Root(Settings):
        shape: Annotated[Settings, Chosen(SHAPES)] = Round()
        frame: Annotated[Settings, Chosen(registry_of("frame.name", Square, Line))] = Square()

    problem = f"`frame.name` is {name!r}, expected one of square, line{advice}"
    assert explained("frame", {"name": name}, Root) == [problem]


def test_named_choices_are_found_in_the_annotations_at_any_depth():
    assert named_choices(Drawing) == {
        "shape.name": ["circle", "ball", "square"],
        "shape.corner.name": ["circle", "ball"],
    }


def test_names_are_those_of_the_registries_or_of_the_one_class():
    assert names_in(Annotated[Settings, Chosen(SHAPES)]) == ["circle", "ball", "square"]
    assert names_in(Round) == ["circle", "ball"]
    assert names_in(int | None) == names_in(Drawing) == []


def test_an_unknown_key_names_the_nearest_or_all():
    assert unknown_key("widht", "", Drawing, Drawing) == "`widht` is unknown; did you mean `width`?"
    known = "`drawing.colour` is unknown; known: shape, width, weights"
    assert unknown_key("colour", "drawing", Drawing, Drawing) == known


def test_a_key_of_another_section_or_method_is_said_to_belong_there():
    assert unknown_key("radius", "", Drawing, Drawing) == (
        "`radius` is unknown; it belongs in `[shape]` or `[shape.corner]`"
    )
    assert unknown_key("radius", "shape", Square, Drawing) == (
        "`shape.radius` is unknown; it is a key of `shape.name` = circle, ball"
    )


def test_a_class_in_place_of_an_object_is_named():
    assert explained("shape", Square) == ["`shape` is the class Square, expected an object: `Square()`"]
