"""The public names: sorted, lazy, all there, all documented."""

from __future__ import annotations

import inspect

import pytest

import fedelta


def test_public_names_are_sorted_and_unique():
    assert list(fedelta.__all__) == sorted(set(fedelta.__all__))


@pytest.mark.parametrize("name", fedelta.__all__)
def test_public_name_resolves(name: str):
    assert getattr(fedelta, name) is getattr(fedelta, name)


@pytest.mark.parametrize("name", fedelta.__all__)
def test_public_name_is_documented(name: str):
    value = getattr(fedelta, name)
    if is_definition(value):
        text = (value.__doc__ or "").strip()
        assert text, f"`fedelta.{name}` has no docstring"
        # A dataclass without a docstring gets its signature as one.
        assert not text.startswith(f"{name}("), f"`fedelta.{name}` has no docstring of its own"


@pytest.mark.parametrize("name", fedelta.__all__)
def test_public_name_says_where_it_is_defined(name: str):
    value = getattr(fedelta, name)
    if is_definition(value):
        assert value.__module__.split(".")[0] == "fedelta"


def test_dir_lists_the_public_names_and_nothing_else():
    visible = {name for name in dir(fedelta) if not (name.startswith("__") and name.endswith("__"))}
    assert visible == {name for name in fedelta.__all__ if not name.startswith("__")}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        fedelta.no_such_name  # noqa: B018


def is_definition(value: object) -> bool:
    """Whether `value` is a class or a function: a constant or a type alias has no docstring of its own."""
    return (inspect.isclass(value) and not hasattr(value, "__origin__")) or inspect.isroutine(value)
