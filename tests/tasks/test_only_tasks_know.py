"""Only tasks, and testing/ which tries them, know what a label is: no other code names a measure or picks a class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "fedelta"
# Plurals and other forms too; of the functions of PyTorch and NumPy also `log_softmax`, `nanargmax` and the like.
KNOWLEDGE = re.compile(r"accurac|argmax|softmax", re.IGNORECASE)
# Its softmax is that of attention.
ATTENTION = "engine/readout.py"


def test_nothing_outside_of_tasks_says_what_a_task_measures():
    places = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*"))
        if path.suffix in {".py", ".html"}
        and not {"tasks", "testing"} & set(path.relative_to(SOURCE).parts)
        and path.relative_to(SOURCE).as_posix() != ATTENTION
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if KNOWLEDGE.search(line)
    ]
    assert not places, "\n".join(places)


@pytest.mark.parametrize("text", ["final_accuracy", "Accuracies", "torch.argmax(x)", "F.log_softmax(x)"])
def test_what_a_task_measures_is_found(text: str):
    assert KNOWLEDGE.search(text)
