"""Wrong answers on a page: images and texts of the run's own test rows, and nothing that a file smuggles in."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import pytest
import torch
from PIL import Image
from tests.report.pages import page_of, plain, shown
from tests.report.synthetic import SMALL, history_of, make_run

from fedelta.assembly.mistakes import MAX_MISTAKES, Mistakes
from fedelta.data.batches import Examples
from fedelta.errors import RunError
from fedelta.modalities.image import Images
from fedelta.report.mistake_section import section
from fedelta.tasks.classification import Classification
from fedelta.tasks.details import Answered


def written(path, mistakes: object):
    run = make_run(path, SMALL)
    (run.path / "mistakes.json").write_text(json.dumps(mistakes))
    return run.path


def test_a_run_without_wrong_answers_has_no_section(small):
    assert section(history_of(small), titled=False) is None


def test_images_and_texts_are_shown_and_markup_is_text(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 200).save(buffer, format="PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    path = written(
        tmp_path / "run",
        {
            "mistakes": [
                {"row": 7, "true": "<b>cat", "answer": "dog", "probability": 0.912, "image": picture},
                {"row": 9, "true": "", "answer": "x</script>", "text": "<i>a text</i>"},
            ]
        },
    )
    page = shown(section(history_of(path), titled=False))
    assert ("img", "src", f"data:image/png;base64,{picture}") in page.attributes
    assert "is <b>cattaken for dog (91.2 %)" in page.plain
    assert "is nothingtaken for x</script>" in page.plain
    assert "<i>a text</i>" in page.text
    assert "Wrong answers" in plain(page_of(path).text)


@pytest.mark.parametrize(
    ("task", "true", "answer", "told"),
    [
        ("tokens", "B-PER O O B-LOC", "B-LOC O O B-LOC", "is Ada B-PERtaken for Ada B-LOC"),
        ("tokens", "B-PER O", "O O", "is B-PER Otaken for O O"),  # not a tag for each word
        ("multi-label", "cat|dog", "cat|emu", "is cat, dogtaken for cat, emu"),
    ],
)
def test_wrong_answers_of_several_parts_are_told_apart(tmp_path, task, true, answer, told):
    entry = {"row": 1, "true": true, "answer": answer, "text": "Ada sails to Kiel"}
    path = written(tmp_path / "run", {"mistakes": [entry]})
    run = history_of(path)
    run = dataclasses.replace(run, config=run.config | {"task": {"name": task}})
    assert told in shown(section(run, titled=False)).plain


@pytest.mark.parametrize(
    "mistakes",
    [
        {"mistakes": [{"row": 1, "true": "a"}]},
        {"mistakes": [{"row": 1, "true": "a", "answer": "b", "image": '"><script>alert(1)</script>'}]},
        {"mistakes": 3},
        {},
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, mistakes):
    path = written(tmp_path / "run", mistakes)
    with pytest.raises(RunError, match=r"mistakes.json' does not hold wrong answers"):
        page_of(path)


def test_the_surest_wrong_answers_are_kept_with_small_images():
    images = Images(image_size=200, mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = torch.arange(40)
    # Row r is answered "b" with a logit of r / 10; every fifth row is a "b" and so right.
    logits, targets = torch.stack([torch.zeros(40), rows / 10], dim=1), (rows % 5 == 0).long()
    test = Examples(_Blank(40), targets, numbers=rows + 100)  # type: ignore[arg-type]
    mistakes = Mistakes(test, Classification(), ("a", "b"), images)
    for part in rows.split(7):
        mistakes(Answered(part, logits[part], targets[part]))
    records = mistakes.records()
    assert len(records) == MAX_MISTAKES
    surest = [row for row in range(39, 0, -1) if row % 5][:MAX_MISTAKES]
    assert [record["row"] for record in records] == [row + 100 for row in surest]
    assert {(record["true"], record["answer"]) for record in records} == {("a", "b")}
    picture = Image.open(io.BytesIO(base64.b64decode(records[0]["image"])))
    assert picture.size == (96, 96)
    assert picture.getpixel((0, 0)) == (191, 191, 191)  # 0.5 x 0.5 + 0.5 of 255


class _Blank:
    """Inputs that are all 0.5."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __len__(self) -> int:
        return self._number

    def fetch(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.full((len(rows), 3, 200, 200), 0.5)}
