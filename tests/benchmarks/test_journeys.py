"""The small work that is written for several frameworks: its lines are counted, and ours is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.journeys.__main__ import PROGRAMS, SIDES, Ended, num_lines, run, table

SOURCE = '''"""What it is."""

# A comment.
import json  # counts


def read(
    path,
):
    """Returns
    an object.
    """
    return json.loads("""[
1]""")
'''


def test_lines_of_code_are_those_with_code():
    # import, three lines of `def`, two of `return`
    assert num_lines(SOURCE) == 6


def test_a_string_that_is_used_is_code():
    assert num_lines('text = """\na\n"""\n') == 3


def test_the_table_has_the_shortest_time_and_the_median_accuracy_of_each_side():
    runs = {name: [Ended(9.0, 0.5), Ended(1.0, 0.25), Ended(2.0, 0.75)] for name in SIDES}
    first, *lines = table(runs).splitlines()[2:]
    assert first.startswith("| fedelta | 6 | 1.0 | 50.0% | yes")
    assert len(lines) == 2


def test_each_side_has_what_all_are_given():
    for side, *_ in SIDES.values():
        assert "from given import clients, model, test" in (PROGRAMS / f"{side.module}.py").read_text()


@pytest.mark.slow
def test_our_side_runs_in_an_empty_folder(tmp_path: Path):
    ended = run(SIDES["ours"][0], tmp_path)
    assert ended.accuracy > 0.7  # the CNN before it was tuned: 40 %
