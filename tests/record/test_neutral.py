"""Names that would be run or rendered by whatever reads a file are mere text in it."""

from __future__ import annotations

import csv
import io

import pytest
import yaml as pyyaml
from pandas import DataFrame

from fedelta.comparison.tables import Field, to_csv
from fedelta.inference.card import render
from fedelta.modalities.settings import Preparation
from fedelta.record.neutral import cell, code, latex, line, markdown

FORMULAS = (
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1+1",
    '=HYPERLINK("http://a.b")',
    "\uff1d1+1",
)


@pytest.mark.parametrize("name", FORMULAS)
def test_no_spreadsheet_takes_a_name_for_a_formula(name: str):
    expected = "'" + name.replace("\r", "\n")
    assert cell(name) == expected
    [[header], [field]] = csv.reader(
        io.StringIO(to_csv(DataFrame({name: [name]}), [Field(name, name, str)]), newline="")
    )
    assert header == field == expected


@pytest.mark.parametrize("text", ["-0.5", "+3", "1e-9", "-inf", "seven", "a=b", "", "3-4"])
def test_numbers_and_plain_texts_stay_in_a_table(text: str):
    assert cell(text) == text


HOSTILE = {
    "<script>alert(1)</script>": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<img src=x onerror=y>": "&lt;img src=x onerror=y&gt;",
    "![a](b)": r"\!\[a\](b)",
    "[a](javascript:b)": r"\[a\](javascript:b)",
    "`code` ~~gone~~ $x$": r"\`code\` \~\~gone\~\~ \$x\$",
    "a | b\n# title": r"a \| b \# title",
    "https://a.b www.c.d e@f.g": r"https\://a.b www\.c.d e\@f.g",
    "&lt;b&gt; \\<": r"&amp;lt;b&amp;gt; \\&lt;",
    "__a__ snake_case": r"\_\_a\_\_ snake_case",
    "b\u202eac\x1b[31m": "b\ufffdac\ufffd\\[31m",
}


@pytest.mark.parametrize(("name", "shown"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_a_name_is_plain_text_in_markdown(name: str, shown: str):
    assert markdown(name) == shown


def test_a_line_and_a_span_of_code_cannot_be_left():
    assert line("a\r\nb\u2028c\x00") == "a b c\ufffd"
    assert code("a``b") == "``` a``b ```"
    assert code("plain") == "`plain`"


def test_a_model_card_renders_no_name_of_a_class_a_model_or_a_client():
    names = ("<b>bold</b>", "[link](http://a.b)", "a\n## title", "=1+1")
    config = {
        "data": {"source": "<i>data</i>", "label_column": "x|y"},
        "partition": {"name": "natural"},
        "personalization": {"held_out": ["<u>"]},
    }
    base = 'x"\n---\nevil: `true` <s>'
    card = {"num_clients": 3, "config": config, "modality": "image"}
    text = render("lora", base, names, card, has_weights=True, preparation=Preparation())
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert pyyaml.safe_load(front).keys() <= {"library_name", "pipeline_tag", "tags"}  # it is no name on the hub
    prose = body.partition("```python")[0]
    for tag in ("<b>", "<i>", "<u>", "](http://a"):
        assert tag not in prose
    assert "\n## title" not in body
    assert r"x\|y" in prose


def test_no_character_that_pdflatex_lacks_comes_of_greek_or_of_what_cannot_be_printed():
    assert latex("\u03b1 = 0.1, \u03bb\x1b") == r"$\alpha$ = 0.1, $\lambda$?"
