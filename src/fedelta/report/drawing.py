"""Draws charts: a Vega-Lite specification becomes a picture in the page, and the same picture with values to point at.

`vl-convert` compiles and draws a specification while the page is made, so that the page can be read without a script.
The library in the page (`library/vega.min.js.gz`, Vega as published on npm) draws it once more when a reader points
at it. Both have the colours of the page: a colour here is a variable of style.css, which follows light, dark and paper.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from fedelta.record.neutral import paragraphs

Spec = dict[str, Any]  # Any: a Vega-Lite specification, which is JSON

VEGA_LITE = "6.4"
INK, MUTED, GRID, ON_STRONG = "var(--ink)", "var(--muted)", "var(--grid)", "var(--on-strong)"
SERIES = tuple(f"var(--series-{number})" for number in range(1, 7))
# Line styles as lengths on and off, in units of the drawing; solid, dashed, dash-dotted, dotted.
STYLES: tuple[tuple[float, ...], ...] = ((), (6, 3), (10, 3, 2, 3), (2, 2))
NARROW, WIDE = 420, 1000  # units: two narrow pictures fit side by side, one fills a phone
HEIGHT = 270
_FONT = 11
# What the variables are on a light page, for pictures outside of pages.
_ON_PAPER = {
    "ink": "#1c2126",
    "muted": "#5d6670",
    "grid": "#dfe3e7",
    "on-strong": "#ffffff",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#009e73",
    "series-4": "#cc79a7",
    "series-5": "#e69f00",
    "series-6": "#56b4e9",
}
_CONFIG: Spec = {
    "aria": False,  # the picture as a whole has a description; its values are in tables
    "background": None,
    "font": "Arial, 'Liberation Sans', sans-serif",  # one width everywhere; style.css has the same
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "labelFontSize": _FONT,
        "titleColor": INK,
        "titleFontSize": _FONT,
        "titleFontWeight": "normal",
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "tickSize": 4,
    },
    "legend": {
        "orient": "top",
        "title": None,
        "columns": 0,
        "labelColor": INK,
        "labelFontSize": _FONT,
        "labelLimit": 300,
        "titleColor": INK,
        "titleFontSize": _FONT,
        "titleFontWeight": "normal",
        "symbolStrokeWidth": 2,
    },
    "mark": {"color": SERIES[0]},
    "line": {"strokeWidth": 1.9},
    "point": {"opacity": 1},
    "text": {"color": INK, "fontSize": _FONT},
}


@dataclass(frozen=True)
class Chart:
    """A picture to be drawn.

    Args:
        spec: a Vega-Lite specification without a configuration.
        pointed: the same with layers that answer to the pointer; None if the marks of `spec` do so themselves.
    """

    spec: Spec
    pointed: Spec | None = None

    @property
    def live(self) -> Spec:
        """The specification of what a reader can point at."""
        return self.pointed or self.spec


def style_of(index: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of the run or group number `index`; the first 24 are all different.

    >>> len({style_of(index) for index in range(24)})
    24
    """
    return SERIES[index % len(SERIES)], STYLES[(index + index // 12) % len(STYLES)]


def to_svg(chart: Chart, prefix: str, description: str) -> str:
    """`chart` as an SVG element for an HTML page.

    Args:
        chart: what is drawn.
        prefix: makes its ids unique within the page.
        description: for readers who do not see it.
    """
    import vl_convert  # no other command draws

    svg = vl_convert.vegalite_to_svg(_whole(chart.spec), vl_version=VEGA_LITE)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r' font-(?:family|weight)="[^"]*"', "", svg)  # style.css has it
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)  # the picture as a whole is told, not its parts
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"| class="[^"]*"| pointer-events="none"', "", svg)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", svg, count=2)
    # A tenth of a unit is thinner than a pixel, and curves of long runs are most of a page.
    svg = re.sub(r' (?:d|transform)="[^"]*"', lambda part: re.sub(r"(\.\d)\d+", r"\1", part[0]), svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(paragraphs(description))}"', 1)


def to_live(chart: Chart) -> Spec:
    """`chart` as a Vega specification, which the library in the page draws and answers to the pointer."""
    import vl_convert

    vega: Spec = vl_convert.vegalite_to_vega(_whole(chart.live), vl_version=VEGA_LITE)
    return vega


def to_png(chart: Chart, scale: float = 2.0) -> bytes:
    """`chart` as a PNG on white."""
    import vl_convert

    text = json.dumps(_whole(chart.spec) | {"background": "white"})
    for name, color in _ON_PAPER.items():
        text = text.replace(f"var(--{name})", color)
    png: bytes = vl_convert.vegalite_to_png(json.loads(text), vl_version=VEGA_LITE, scale=scale)
    return png


@cache
def library() -> str:
    """The library of the page, as base64 of its gzip."""
    packed = resources.files("fedelta.report").joinpath("library", "vega.min.js.gz").read_bytes()
    return base64.b64encode(packed).decode("ascii")


def _whole(spec: Spec) -> Spec:
    """`spec` with the configuration, its texts without what cannot be printed, and its numbers short."""
    return {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "config": _CONFIG, **_neutral(spec)}


def _neutral(value: Any) -> Any:  # Any: JSON
    if isinstance(value, str):
        return paragraphs(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if value - value == 0 else None  # neither NaN nor infinite
    if isinstance(value, Mapping):
        return {key: _neutral(part) for key, part in value.items()}
    return [_neutral(part) for part in value] if isinstance(value, list | tuple) else value
