"""The matrix of families and methods as a page, and the small checkpoints it is made with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import matrix, small


def test_the_page_counts_marks_and_explains(tmp_path: Path):
    reason = "tuning method 'bias' does not fit {}: it has no bias outside of its head."
    cells = {
        "bert": {"lora": ("works", ""), "bias": ("works", "clients train one after the other, in one lane")},
        "llama": {"lora": ("works", ""), "bias": ("refused", reason.format("LlamaForSequenceClassification"))},
        "qwen2": {"lora": ("fault", "differs"), "bias": ("refused", reason.format("Qwen2ForSequenceClassification"))},
    }
    for family, result in cells.items():
        facts = {name: {"kind": kind, "note": note, "tensors": 1} for name, (kind, note) in result.items()}
        (tmp_path / f"{family}.json").write_text(json.dumps({"cells": facts}))
    (tmp_path / "reformer.json").write_text(json.dumps({"refused": "it draws hashes.\nhint"}))
    page = matrix.page(tmp_path)
    assert "| lora | 2 | 0 | 1 |\n| bias | 1 | 2 | 0 |" in page
    assert "| bert | ✓ | ✓ a |\n| llama | ✓ | 1 |\n| qwen2 | ✗ | 1 |" in page
    assert f"1. {reason.format('the model')}\n" in page
    assert "| reformer | it draws hashes. |" in page
    assert matrix.line(tmp_path, "qwen2") == "qwen2: lora✗ bias-\n    lora: differs"


@pytest.mark.parametrize("family", ["gpt2", "clip", "qwen3_5"])
def test_a_small_architecture_is_small_in_all_its_parts(family: str):
    def widths(fields: dict[str, object]) -> list[object]:
        inner = [width for value in fields.values() if isinstance(value, dict) for width in widths(value)]
        return [*inner, *(fields[name] for name in ("hidden_size", "n_embd") if name in fields)]

    result = widths(small.architecture(family))
    assert result
    assert set(result) == {32}
