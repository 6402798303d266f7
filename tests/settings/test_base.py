"""What a setting is told of the others, and that every setting is asked, however deep it lies."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedelta.settings import Context, Settings
from fedelta.settings.base import problems_of


class Inner(Settings):
    """Complains of the seed."""

    limit: int = 3

    def problems(self, context: Context) -> list[str]:
        seed = context.get("seed")
        return [] if seed is None or seed <= self.limit else [f"`seed` is {seed}, more than {self.limit}"]


class Outer(Settings):
    """Holds others, one of them in a tuple."""

    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    count: int = 0


def test_a_setting_without_rules_has_no_problems():
    assert Outer().problems(Context({})) == []


def test_settings_inside_of_others_are_asked_too_in_their_order():
    outer = Outer(inner=Inner(limit=1), several=(Inner(limit=2), Inner(limit=9)))
    result = problems_of(Context({"seed": 5, "outer": outer, "last": Inner(limit=4)}))
    assert result == ["`seed` is 5, more than 1", "`seed` is 5, more than 2", "`seed` is 5, more than 4"]


def test_a_path_leads_through_sections_to_a_value():
    context = Context({"seed": 5, "outer": Outer(inner=Inner(limit=7)), "budget": None})
    assert (context.get("seed"), context.get("outer.inner.limit")) == (5, 7)
    assert context.get("budget") is None
    assert "budget" in context


def test_a_section_that_could_not_be_read_is_absent_and_its_values_are_none():
    context = Context({})
    assert "outer" not in context
    assert context.get("outer.inner.limit") is None
    assert problems_of(Context({"inner": Inner()})) == []


def test_a_key_that_no_section_has_is_an_error_of_the_program():
    with pytest.raises(AttributeError, match="depth"):
        Context({"outer": Outer()}).get("outer.depth")


def test_settings_are_frozen_and_refuse_unknown_keys():
    with pytest.raises(ValidationError, match="frozen"):
        Outer().count = 1
    with pytest.raises(ValidationError, match="Extra inputs"):
        Outer(size=1)
