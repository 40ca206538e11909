"""The plot of the training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pqc.metrics import SHARES
from pqc.report import figure, markup
from pqc.report.sections import metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

KNOWN = {
    *("epoch", "stage", "round", "seconds", "loss", "validation_loss"),
    *("keep_ratio", "sparsity", "ebops", "learning_rate", "on_front"),
}
MOST_CONTROLS = 6
STAGES = {"pretraining": figure.COLOURS[1], "training": figure.COLOURS[0], "fine-tuning": figure.COLOURS[3]}
OTHER_STAGE = figure.COLOURS[4]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        label: of the vertical axis.
        keys: of the records, and the name of each line; one line needs no name.
        factor: what values are multiplied with.
        scale: `linear`, `log` where the values allow it, or `count`.
    """

    label: str
    keys: dict[str, str]
    factor: float = 1.0
    scale: str = "linear"


@dataclass
class Stretch:
    """Successive epochs of one stage and round."""

    stage: str
    round: Any
    epochs: list[float] = field(default_factory=list)


def controls(history: Sequence[Record], metric: str) -> list[str]:
    """The names of the method's annealed controls: all numbers of a record that are not known by name."""
    names = dict.fromkeys(name for record in history for name in record)
    return [
        name
        for name in names
        if name not in KNOWN | {metric} and any(markup.number(record.get(name)) is not None for record in history)
    ]


def panels(history: Sequence[Record], metric: str) -> list[Panel]:
    """What is drawn of a history: all that has a finite value."""
    wanted = [
        Panel("loss", {"loss": "training", "validation_loss": "validation"}, scale="log"),
        Panel(f"{metric_title(metric)}, validation (%)", {metric: ""}, 100.0)
        if metric in SHARES
        else Panel("mean squared error, validation", {metric: ""}, -1.0, "log"),
        Panel("weights not zero (%)", {"keep_ratio": ""}, 100.0),
        Panel("pruned by masks (%)", {"sparsity": ""}, 100.0),
        Panel("EBOPs (bit operations)", {"ebops": ""}, scale="count"),
        Panel("learning rate", {"learning_rate": ""}, scale="log"),
    ]
    names = controls(history, metric)[:MOST_CONTROLS]
    wanted += [Panel(f"control: {markup.plain(name, 24)}", {name: ""}, scale="log") for name in names]
    return [panel for panel in wanted if any(np.isfinite(_values(history, key, 1.0)).any() for key in panel.keys)]


def training(history: Sequence[Record], metric: str) -> str:
    """The course of training over the epochs, as SVG text; phases are shaded, rounds marked."""
    drawn = panels(history, metric)
    if not drawn:
        return ""
    rows = -(-len(drawn) // 2)
    stretches = phases(history)

    def draw(canvas: Figure) -> None:
        grid = canvas.subplots(rows, 2, squeeze=False, sharex=True)
        for axis, panel in zip(grid.flat, drawn, strict=False):
            _panel(axis, panel, history)
            _shade(axis, stretches)
        for column in range(min(2, len(drawn))):
            lowest = grid[(len(drawn) - 1 - column) // 2, column]
            lowest.set_xlabel("epoch")
            lowest.tick_params(labelbottom=True)
        if len(drawn) % 2:
            grid[-1, 1].set_axis_off()
        _legend(canvas, stretches)

    return figure.svg("training", 0.6 + 1.75 * rows, "Training curves over the epochs", draw)


def phases(history: Sequence[Record]) -> list[Stretch]:
    """The history cut where the stage or the round changes."""
    found: list[Stretch] = []
    for epoch, record in zip(_epochs(history), history, strict=True):
        stage, number = str(record.get("stage", "training")), record.get("round", 0)
        if not found or (found[-1].stage, found[-1].round) != (stage, number):
            found.append(Stretch(stage, number))
        found[-1].epochs.append(epoch)
    return found


def _epochs(history: Sequence[Record]) -> list[float]:
    found = [markup.number(record.get("epoch")) for record in history]
    return [index + 1.0 if epoch is None else epoch for index, epoch in enumerate(found)]


def _values(history: Sequence[Record], key: str, factor: float) -> np.ndarray:
    """A key's values, NaN (a gap in the line) where there is none."""
    found = [markup.number(record.get(key)) for record in history]
    return np.array([np.nan if value is None else factor * value for value in found])


def _panel(axis: Axes, panel: Panel, history: Sequence[Record]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = _epochs(history)
    seen = []
    for (key, name), colour in zip(panel.keys.items(), figure.COLOURS, strict=False):
        values = _values(history, key, panel.factor)
        marker = "o" if len(epochs) < 4 else ""
        axis.plot(epochs, values, color=colour, marker=marker, markersize=3, label=name)
        seen.append(values[np.isfinite(values)])
    axis.set_ylabel(panel.label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axis.grid()
    if len(panel.keys) > 1:
        axis.legend(loc="upper right")
    values = np.concatenate(seen)
    if panel.scale == "log" and values.min() > 0 and values.max() > 20 * values.min():
        figure.logarithmic(axis)
    elif panel.scale == "count":
        figure.thousands(axis)


def _shade(axis: Axes, stretches: Sequence[Stretch]) -> None:
    previous = None
    for stretch in stretches:
        start, end = min(stretch.epochs) - 0.5, max(stretch.epochs) + 0.5
        axis.axvspan(start, end, color=STAGES.get(stretch.stage, OTHER_STAGE), alpha=0.11, linewidth=0)
        if previous is not None and previous.stage == stretch.stage:
            axis.axvline(start, color=figure.INK, linestyle=":", linewidth=0.9, alpha=0.6)
        previous = stretch


def _legend(canvas: Figure, stretches: Sequence[Stretch]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    stages = list(dict.fromkeys(stretch.stage for stretch in stretches))[:4]
    handles: list[object] = [Patch(color=STAGES.get(stage, OTHER_STAGE), alpha=0.3, linewidth=0) for stage in stages]
    names = [markup.plain(stage, 20) for stage in stages]
    if len(stretches) > len({stretch.stage for stretch in stretches}):
        handles.append(Line2D([], [], color=figure.INK, linestyle=":", linewidth=0.9))
        names.append("a new round begins")
    figure.legend(canvas, handles, names, columns=5)
