"""Pages and their parts as tests read them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedelta.record.history import read_histories
from fedelta.report.drawing import Chart
from fedelta.report.elements import Table
from fedelta.report.rendering import render
from fedelta.report.writing import Section, page


class Page(HTMLParser):
    """Tags, attributes, text (of all, and by tag) and tables of a page; fails where tags do not match."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.content = content
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.feed(content)
        assert self.open == []

    @property
    def plain(self) -> str:
        """The text, with single spaces."""
        return plain(self.text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += plain(data)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def page_of(*paths: Path) -> Page:
    """The page about the runs at `paths`."""
    return Page(page(read_histories(paths)))


def text_of(*paths: Path) -> str:
    """The text of that page without that of its figures, which are made and not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedelta.report.elements.to_svg", lambda chart, prefix, says: "<svg></svg>")
        patch.setattr("fedelta.report.elements.to_live", lambda chart: {})
        return page_of(*paths).plain


def shown(section: Section) -> Page:
    """What the template of `section` makes of it."""
    return Page(render(section.template, {"section": section}))


def cells(table: Table) -> list[list[str]]:
    """Header and rows of `table`, with plain spaces."""
    return [[plain(text) for text in row] for row in (table.header, *table.rows)]


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of a chart, or of a layer or view of one."""
    values: list[dict[str, Any]] = spec["data"]["values"]
    return values


def lines(chart: Chart | dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """The curves of a chart by name."""
    spec = chart.spec if isinstance(chart, Chart) else chart
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows(spec):
        curves.setdefault(row["name"], []).append((row["x"], row["y"]))
    return curves


def opacities(chart: Chart) -> list[float]:
    """The opacities of the curves of a chart."""
    layer = next(layer for layer in chart.spec["layer"] if layer["mark"] == "line")
    values: list[float] = layer["encoding"]["opacity"]["scale"]["range"]
    return values


def svgs(content: str) -> list[str]:
    """The drawings on a page."""
    return re.findall(r"<svg role.*?</svg>", content, flags=re.DOTALL)


def fixed_colours(svg: str) -> set[str]:
    """The colours of a drawing that do not follow the page from light to dark."""
    return set(re.findall(r'(?:fill|stroke)="(?!var|none|transparent)([^"]*)"', svg))
