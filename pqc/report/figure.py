"""Draw a Matplotlib figure as SVG text for use inside a page: no global state, no dates, no links."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from pqc.report import markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
"""Inches; the height is each plot's own."""

COLOURS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#832db6",
    "#94a4a2",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
"""Ten colours told apart with any colour vision (Petroff, arXiv:2107.02270), readable on white and on black."""

INK = "#010203"
"""Stands for the page's text colour, which replaces it in the SVG: so plots follow light and dark."""

STYLE = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    # A dollar sign in a layer's name is no formula.
    "text.parse_math": False,
}


def svg(name: str, height: float, title: str, draw: Callable[[Figure], None]) -> str:
    """The SVG text of what `draw` puts on a figure.

    Args:
        name: of the plot, unique on its page: its identifiers are made from it.
        height: in inches; the width is fixed.
        title: what readers hear who cannot see it.
        draw: fills the figure.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    content = StringIO()
    with style.context(["default", {**STYLE, "svg.hashsalt": f"pqc {name}"}]), warnings.catch_warnings():
        # Names may hold letters that the measuring font lacks; the browser has a font for them.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=nothing)
    return _inline(content.getvalue(), title)


def _inline(document: str, title: str) -> str:
    """What is left of an SVG file once it is part of a page."""
    body = document[document.index("<svg") :]
    opening, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    rest = re.sub(r"\s*<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    # Only inside tags: a layer's name stays as it is. Names hold no tag, for Matplotlib escapes them.
    rest = re.sub(r"<[^>]+>", lambda tag: tag.group().replace(INK, "currentColor"), rest)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest).replace("xlink:href=", "href=")
    return f'<svg {box.group() if box else ""} role="img" aria-label="{html.escape(title)}">{rest}'


def legend(figure: Figure, handles: Sequence[object], names: Sequence[str], columns: int = 4) -> None:
    """A legend below all axes."""
    figure.legend(handles, [_label(name) for name in names], loc="outside lower center", ncols=columns)  # type: ignore[call-overload]


def _label(name: str) -> str:
    """Matplotlib hides what starts with an underscore."""
    return f" {name}" if name.startswith("_") else name


def logarithmic(axis: Axes, which: str = "y") -> None:
    """A logarithmic axis whose numbers are plain text: 0.001, 1e-05."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    {"x": axis.set_xscale, "y": axis.set_yscale}[which]("log")
    scale = axis.xaxis if which == "x" else axis.yaxis
    low, high = sorted(axis.get_xlim() if which == "x" else axis.get_ylim())
    scale.set_major_locator(LogLocator(subs=(1.0,) if high > 200 * low else (1.0, 2.0, 5.0), numticks=8))
    scale.set_major_formatter(FuncFormatter(lambda value, _: markup.real(value, 3)))
    scale.set_minor_formatter(NullFormatter())


def thousands(axis: Axes, which: str = "y") -> None:
    """Numbers as 20k and 3M."""
    from matplotlib.ticker import EngFormatter

    (axis.xaxis if which == "x" else axis.yaxis).set_major_formatter(EngFormatter(sep=""))
