"""The style of all figures, and their conversion to SVG or PNG.

Colours are constants here. `to_svg` turns them into CSS variables, so that one drawing serves the light page,
the dark page and paper; a PNG has these colours. The series colours are those of Okabe and Ito
(2008), which colour-blind readers can tell apart; runs also differ in line style.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_mixed import MixedModeRenderer
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from fedelta.record.neutral import paragraphs

INK, MUTED, GRID = "#1c2126", "#5d6670", "#dfe3e7"
ON_STRONG = "#fefefe"  # text on a strong colour of a series
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Line styles as lengths on and off, in line widths; solid, dashed, dash-dotted, dotted.
STYLES = ((), (3.7, 1.6), (6.4, 1.6, 1.0, 1.6), (1.5, 1.0))
# Inches: two figures fit side by side on a desktop page, one fills a phone, where 9 points are readable.
SIZE = (4.7, 3.1)
_POINTS = 72  # in an inch; the unit of an SVG
_IMAGE_DPI = 100
_PAD = 3.0  # points around everything
_SETTINGS: dict[Any, object] = {  # Any: matplotlib types the keys as one Literal of all names
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,  # a run may be called `$x$`
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "svg.fonttype": "none",  # text is kept as text: small, selectable, in the page's font
    "svg.hashsalt": "fedelta",  # ids are the same in every report
}


@contextmanager
def style() -> Iterator[None]:
    """Context manager with the settings for making and saving figures."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # The page's font draws names in scripts that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def single() -> tuple[Figure, Axes]:
    """An empty figure of one plot."""
    figure = blank(SIZE)
    return figure, figure.subplots()


def blank(size: tuple[float, float]) -> Figure:
    """An empty figure of `size` in inches."""
    figure = Figure(figsize=size, dpi=_POINTS, facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def transparent_to(color: str) -> LinearSegmentedColormap:
    """A colour map from transparent to `color`, for any background; zero is fully transparent."""
    red, green, blue, _ = to_rgba(color)
    opacities = [0.0, *(0.15 + 0.85 * step / 254 for step in range(255))]
    return LinearSegmentedColormap.from_list("share", [(red, green, blue, opacity) for opacity in opacities], N=256)


def to_svg(figure: Figure, prefix: str, description: str) -> str:
    """`figure` as an SVG element for an HTML page.

    Args:
        figure: as `plots.py` draws them.
        prefix: makes its ids unique within the page.
        description: for readers who do not see it.
    """
    buffer = io.StringIO()
    renderer = _renderer(figure, buffer)
    with style():
        _fit(figure, renderer)
        figure.draw(renderer)
        renderer.finalize()
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    for number, color in enumerate(SERIES, start=1):
        svg = svg.replace(color, f"var(--series-{number})")
    for color, name in ((INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (ON_STRONG, "on-strong")):
        svg = svg.replace(color, f"var(--{name})")
    # Labels may contain any names; matplotlib escapes markup in them, but not control characters.
    return paragraphs(svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def to_png(figure: Figure, dots_per_inch: int = 200) -> bytes:
    """`figure` as a PNG on white."""
    buffer = io.BytesIO()
    settle(figure)
    with style():
        figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="white")
    return buffer.getvalue()


def settle(figure: Figure) -> None:
    """Fixes the positions of the plots in `figure`, before texts are placed by pixels."""
    with style():
        _fit(figure, FigureCanvasAgg(figure).get_renderer())  # type: ignore[no-untyped-call]


def _renderer(figure: Figure, buffer: io.StringIO) -> Any:  # Any: matplotlib's types of this class are incomplete
    """Writes `figure` to `buffer` as SVG.

    `savefig` would draw the figure twice, and measure every text once more for the layout.
    """
    width, height = figure.bbox.size
    metadata = {"Date": None, "Creator": None}
    vectors = RendererSVG(width, height, buffer, image_dpi=_IMAGE_DPI, metadata=metadata)  # type: ignore[no-untyped-call]
    mixed: Any = MixedModeRenderer  # parts that matplotlib rasterises, such as a colour bar, become an image
    return mixed(figure, *figure.get_size_inches(), _IMAGE_DPI, vectors)


def _fit(figure: Figure, renderer: RendererBase) -> None:
    """Sets the margins of `figure` to the space that labels and legends around its plots need.

    One pass, where matplotlib's layout engines take two: labels hardly change when the plots become a little smaller.
    """
    width, height = figure.bbox.size
    boxes = [axes.get_tightbbox(renderer, for_layout_only=True) for axes in figure.axes]
    plots, used = Bbox.union([axes.bbox for axes in figure.axes]), Bbox.union([box for box in boxes if box])
    legends = max((height - legend.get_window_extent(renderer).y0 for legend in figure.legends), default=0.0)
    figure.subplots_adjust(
        left=(plots.x0 - used.x0 + _PAD) / width,
        right=1 - (used.x1 - plots.x1 + _PAD) / width,
        bottom=(plots.y0 - used.y0 + _PAD) / height,
        top=1 - (used.y1 - plots.y1 + _PAD + legends) / height,
    )
