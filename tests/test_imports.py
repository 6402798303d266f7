"""Python's search for reference cycles is kept away from objects that stay."""

from __future__ import annotations

import gc

from fedelta.imports import collector_spared


def test_what_is_there_before_a_loop_is_left_out_of_the_search_until_its_end():
    assert gc.get_freeze_count() == 0
    with collector_spared():
        assert gc.get_freeze_count() > 0
        with collector_spared():
            pass
        assert gc.get_freeze_count() > 0  # an inner loop does not end it
    assert gc.get_freeze_count() == 0
