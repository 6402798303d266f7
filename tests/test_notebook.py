"""The notebook: its outputs are those of its code."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
FILE = FOLDER / "quickstart.ipynb"
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def shown(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    """The kind and the text of every output."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [(output["output_type"], "".join(output.get("text", []))) for output in outputs]


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "").rstrip(".")) for number in NUMBER.findall(text)]


def test_every_cell_that_shows_something_has_its_output_in_place():
    notebook = read()
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in codes] == list(range(1, len(codes) + 1))
    for cell in codes:
        source = "".join(cell["source"])
        if "print(" in source or "subplots(" in source:
            assert cell["outputs"], source
    assert FILE.stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that the notebook shows
def test_running_the_notebook_gives_the_outputs_that_it_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    import execute

    kept, made = read(), execute.executed(copy.deepcopy(read()))
    sys.modules.pop("execute")
    assert len(shown(made)) == len(shown(kept))
    for (kind, text), (kept_kind, kept_text) in zip(shown(made), shown(kept), strict=True):
        assert kind == kept_kind
        assert NUMBER.sub("#", text) == NUMBER.sub("#", kept_text)
        # Another processor may round otherwise, which training makes larger.
        assert numbers(text) == pytest.approx(numbers(kept_text), rel=0.05, abs=0.05)
