from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedelta.privacy.shown import shown_epsilon


@given(st.floats(1e-9, 1e9))
def test_a_shown_epsilon_is_never_too_small(epsilon: float):
    # By the rounding error of a float at most.
    shown = float(shown_epsilon(epsilon))
    assert epsilon * (1 - 1e-9) <= shown <= epsilon * 1.001


def test_an_epsilon_without_a_number_is_said_in_words():
    assert shown_epsilon(None) == "unknown"
    assert shown_epsilon(float("inf")) == "infinite"
