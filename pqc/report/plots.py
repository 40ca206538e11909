"""The plots of the report, each as SVG text; empty where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pqc.metrics import SHARES
from pqc.report import figure, markup, roc
from pqc.report.sections import metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 40
MOST_HISTOGRAMS = 12
MOST_CLASSES = len(figure.COLOURS)
COLUMNS = 3
FLOOR = 0.7
"""The foot of a histogram on a logarithmic axis: a single weight is to be seen."""
BLUE, ORANGE = figure.COLOURS[0], figure.COLOURS[1]


def largest(sizes: Mapping[str, int], most: int) -> list[str]:
    """The names of the `most` largest, in their own order."""
    chosen = set(sorted(sizes, key=lambda name: -sizes[name])[:most])
    return [name for name in sizes if name in chosen]


def weights_per_layer(layers: Sequence[Mapping[str, Any]]) -> str:
    """Horizontal bars: each layer's weights, and how many are not zero; the largest layers if there are many."""
    costs = {str(index): markup.number(layer.get("weights")) or 0 for index, layer in enumerate(layers)}
    shown = [layers[int(index)] for index in largest({name: int(size) for name, size in costs.items()}, MOST_BARS)]
    if not shown:
        return ""

    def draw(canvas: Figure) -> None:
        axis = canvas.subplots()
        total = np.array([markup.number(layer.get("weights")) or 0.0 for layer in shown])
        nonzero = np.array([markup.number(layer.get("nonzero")) or 0.0 for layer in shown])
        places = np.arange(len(shown))
        all_bars = axis.barh(places, total, height=0.72, color=figure.INK, alpha=0.16)
        kept_bars = axis.barh(places, nonzero, height=0.72, color=BLUE)
        for place, layer in enumerate(shown):
            axis.annotate(_kept(layer), (total[place], place), (4, 0), textcoords="offset points", va="center")
        axis.set_yticks(places, [markup.plain(layer.get("name"), 34) for layer in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_xlabel("weights (number)")
        axis.grid(axis="x")
        _weight_scale(axis, total)
        figure.legend(canvas, [all_bars, kept_bars], ["all weights", "not zero"])

    return figure.svg("weights", 0.9 + 0.24 * len(shown), "Weights and nonzero weights of each layer", draw)


def _kept(layer: Mapping[str, Any]) -> str:
    total, nonzero = markup.number(layer.get("weights")), markup.number(layer.get("nonzero"))
    share = f" ({markup.percent(nonzero / total)})" if total and nonzero is not None else ""
    return f"{markup.count(nonzero)} of {markup.count(total)}{share}"


def _weight_scale(axis: Axes, total: np.ndarray) -> None:
    """Logarithmic where a linear axis would hide the small layers; with room for the text at the bars' ends."""
    top = max(float(total.max()), 1.0)
    present = total[total > 0]
    if present.size and top > 50 * present.min():
        axis.set_xlim(0.5, 0.5 * (2 * top) ** 1.42)
        figure.logarithmic(axis, "x")
        axis.set_xlabel("weights (number, logarithmic scale)")
    else:
        axis.set_xlim(0, 1.36 * top)
    figure.thousands(axis, "x")


def histograms(weights: Mapping[str, np.ndarray], float_weights: Mapping[str, np.ndarray]) -> str:
    """Each layer's weights that are not zero, float against compressed; the largest layers if there are many."""
    shown = largest({name: int(array.size) for name, array in weights.items()}, MOST_HISTOGRAMS)
    if not shown:
        return ""
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)

    def draw(canvas: Figure) -> None:
        grid = canvas.subplots(rows, columns, squeeze=False)
        handles: list[object] = []
        for axis, name in zip(grid.flat, shown, strict=False):
            handles = _histogram(axis, name, weights[name], float_weights.get(name, np.zeros(0)))
        for axis in list(grid.flat)[len(shown) :]:
            axis.set_axis_off()
        for axis in grid[:, 0]:
            axis.set_ylabel("weights per bin")
        for column in range(columns):
            grid[(len(shown) - 1 - column) // columns, column].set_xlabel("weight")
        figure.legend(canvas, handles, ["float model", "compressed model, zeros left out"])

    return figure.svg("histograms", 0.7 + 1.75 * rows, "Histograms of the weights of each layer", draw)


def _histogram(axis: Axes, name: str, compressed: np.ndarray, reference: np.ndarray) -> list[object]:
    after, before = _nonzero(compressed), _nonzero(reference)
    zeros = int(compressed.size - np.count_nonzero(compressed))
    axis.set_title(f"{markup.plain(name, 28)}\n{markup.count(zeros)} of {markup.count(compressed.size)} are zero")
    edges = bins(after, before)
    heights = [np.maximum(np.histogram(array, edges)[0], FLOOR) for array in (before, after)]
    handles = [
        axis.stairs(heights[0], edges, baseline=FLOOR, fill=True, color=figure.INK, alpha=0.22, linewidth=0),
        axis.stairs(heights[1], edges, baseline=FLOOR, fill=True, color=BLUE, alpha=0.85, linewidth=0),
    ]
    axis.set_ylim(FLOOR, 2 * max(float(np.max(heights)), 5.0))
    figure.logarithmic(axis)
    axis.grid(axis="y")
    return list(handles)


def _nonzero(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1).astype(np.float64)
    found: np.ndarray = flat[np.isfinite(flat) & (flat != 0)]
    return found


def bins(compressed: np.ndarray, reference: np.ndarray, most: int = 48) -> np.ndarray:
    """Edges of bins for both. They lie between the values of the quantizer's grid, an equal number in each bin."""
    both = np.concatenate([compressed, reference])
    if not both.size:
        return np.array([-1.0, 1.0])
    low, high = float(both.min()), float(both.max())
    grid = np.unique(np.append(compressed, 0.0))
    step = float(np.diff(grid).min()) if grid.size > 1 else (high - low) / most
    step = step or abs(low) or 1.0
    width = step * max(np.ceil((high - low) / step / most), 1.0)
    start = step * np.floor(low / step) - step / 2
    edges: np.ndarray = start + width * np.arange(np.ceil((high - start) / width) + 1)
    return edges


def roc_curves(tags: Sequence[roc.Tag]) -> str:
    """Efficiency against mis-tag rate, and the same with a logarithmic mis-tag rate; float dashed, clean solid."""
    shown = tags[:MOST_CLASSES]
    if not shown:
        return ""
    names = [_areas(tag) for tag in shown]
    columns = min(3 if max(map(len, names)) < 42 else 2, len(names))
    rows = -(-len(names) // columns)

    def draw(canvas: Figure) -> None:
        left, right = canvas.subplots(1, 2)
        handles, floor = [], 1.0
        for colour, tag in zip(figure.COLOURS, shown, strict=False):
            for model, line in tag.curves.items():
                x, y = roc.thinned(line)
                dashes = "--" if model == "float" else "-"
                (drawn,) = left.plot(x, y, dashes, color=colour)
                right.plot(y[x > 0], x[x > 0], dashes, color=colour)
                floor = min(floor, float(x[x > 0][0]))
            handles.append(drawn)
        _roc_axes(left, right, floor)
        figure.legend(canvas, handles, names, columns)

    return figure.svg("roc", 3.7 + 0.18 * rows, "ROC curves, one class against the rest", draw)


def _roc_axes(left: Axes, right: Axes, floor: float) -> None:
    left.plot([0, 1], [0, 1], ":", color=figure.INK, alpha=0.4, linewidth=1)
    left.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="mis-tag rate", ylabel="efficiency")
    right.set(xlim=(0, 1), ylim=(max(floor, 1e-5), 1.2), xlabel="efficiency", ylabel="mis-tag rate")
    figure.logarithmic(right)
    for axis in (left, right):
        axis.grid()


def _areas(tag: roc.Tag) -> str:
    areas = ", ".join(f"{model} {line.area:.4f}" for model, line in tag.curves.items())
    return f"{markup.plain(tag.name, 16)}: AUC {areas}"


def pareto_front(points: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The metric against bit operations, of all epochs on the front and of the models measured on the test rows."""
    if len(points) < 2:
        return ""
    factor = 100.0 if metric in SHARES else -1.0

    def draw(canvas: Figure) -> None:
        axis = canvas.subplots()
        known = [point["ebops"] for point in points]
        validation = [factor * point[f"validation_{metric}"] for point in points]
        tested = [point for point in points if metric in point]
        line = axis.step(known, validation, where="post", color=BLUE, alpha=0.6)
        dots = axis.plot([point["clean_ebops"] for point in tested], [factor * point[metric] for point in tested], "o")
        dots[0].set_color(ORANGE)
        dots[0].set_markersize(4)
        figure.logarithmic(axis, "x")
        axis.set_xlabel("EBOPs (bit operations)")
        axis.set_ylabel(f"{metric_title(metric)} (%)" if metric in SHARES else metric_title(metric))
        axis.grid()
        figure.legend(canvas, [line[0], dots[0]], ["validation rows", "test rows, clean models"])

    return figure.svg("front", 3.0, "Metric against bit operations along the Pareto front", draw)
