"""How many cells fit into memory."""

from __future__ import annotations

import pytest

from fedelta.comparison.memory import UNSEEN_BYTES, fits

GIB = 2**30


@pytest.mark.parametrize(
    ("available", "running", "highest", "expected"),
    [
        (None, [0, 0], 0, True),
        # Nothing seen yet: 4 GiB for the one that runs and 4 for the next.
        (8 * GIB, [0], 0, True),
        (8 * GIB - 1, [0], 0, False),
        # 1.1 GiB each: the running one has taken all but 0.1 GiB of it, so 1.2 GiB are enough.
        (1.21 * GIB, [GIB], GIB, True),
        (1.19 * GIB, [GIB], GIB, False),
        # The largest was a finished one of 2 GiB: 2.2 - 1 are set aside, 2.2 are needed.
        (3.3 * GIB, [GIB], 2 * GIB, False),
        (3.5 * GIB, [GIB], 2 * GIB, True),
    ],
)
def test_a_further_cell_starts_if_what_the_running_ones_may_still_take_is_left(available, running, highest, expected):
    assert UNSEEN_BYTES == 4 * GIB
    assert fits(available, running, highest) is expected
