"""The table of invented comparisons in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from tests.comparison.invented import METHODS, invented

from fedelta.comparison.display import print_table


@pytest.mark.parametrize(("relative_cost", "exits"), [(None, False), (0.5, False), (None, True), (0.5, True)])
def test_the_table_in_a_terminal_has_each_figure_below_its_name(relative_cost, exits):
    output = io.StringIO()
    print_table(invented(METHODS, relative_cost=relative_cost, exits=exits), Console(file=output, width=300))
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.getvalue().splitlines()]
    header = next(line for line in lines if line[0] == "tuning.name")
    row = next(line for line in lines if line[0] == "lora")
    assert dict(zip(header, row, strict=False)) == {
        "tuning.name": "lora",
        "client.lr": "0.1",
        "accuracy, %": "52.5 ± 0.7",
        **({"exit 1, %": "21.0", "mean exit, %": "31.5 ± 2.1"} if exits else {}),
        "seeds": "2",
        "tuned": "2,000",
        "MiB/round": "0.500",
        "MiB": "2.00",
        **({"cost, %": "50.0"} if relative_cost else {}),
        "time": "3.0\N{NARROW NO-BREAK SPACE}s",
    }
