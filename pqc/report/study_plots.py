"""The plots of a search, each as SVG text; empty where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pqc.metrics import SHARES
from pqc.report import figure, markup
from pqc.report.sections import metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

BLUE, ORANGE, GREY = figure.COLOURS[0], figure.COLOURS[1], figure.COLOURS[8]
MOST_AXES = 14
ABSENT = -0.12
"""Where a line passes an axis whose parameter its trial does not have."""


def title(name: str) -> str:
    """What a metric is called on an axis."""
    last = name.rpartition(".")[2]
    unit = " (%)" if last in SHARES or last == "keep_ratio" else ""
    known = {"ebops": "EBOPs (bit operations)", "keep_ratio": "weights not zero", "negative_mse": metric_title(last)}
    return known.get(last, last.replace("_", " ")) + unit


def shown(name: str, value: float) -> float:
    """A metric's value as it is drawn: shares in per cent, errors without their sign."""
    last = name.rpartition(".")[2]
    if last in SHARES or last == "keep_ratio":
        return 100 * value
    return -value if last == "negative_mse" else value


def complete(found: Record) -> list[Record]:
    """The trials that ended with values."""
    return [one for one in found["trials"] if one["state"] == "complete"]


def front(found: Record) -> str:
    """The first two objectives of all trials, and the line of those that no other beats."""
    trials, names = complete(found), [one["name"] for one in found["objectives"]]
    if len(names) < 2 or len(trials) < 2:
        return ""

    def draw(canvas: Figure) -> None:
        axis = canvas.subplots()
        groups = {
            "breaks a constraint": [one for one in trials if not one["feasible"]],
            "keeps the constraints": [one for one in trials if one["feasible"] and one["number"] not in found["front"]],
            "Pareto front": [one for one in trials if one["number"] in found["front"]],
        }
        styles = {
            "breaks a constraint": ("x", GREY),
            "keeps the constraints": ("o", BLUE),
            "Pareto front": ("o", ORANGE),
        }
        handles = []
        for label, group in groups.items():
            marker, colour = styles[label]
            places = sorted((shown(names[1], one["values"][1]), shown(names[0], one["values"][0])) for one in group)
            line = "-" if label == "Pareto front" and len(names) == 2 else "none"
            across, up = [place[0] for place in places], [place[1] for place in places]
            handles += axis.plot(across, up, marker, color=colour, linestyle=line, markersize=4, linewidth=1)
        axis.set(xlabel=title(names[1]), ylabel=title(names[0]))
        axis.grid()
        _scale(axis, [shown(names[1], one["values"][1]) for one in trials])
        figure.legend(canvas, handles, list(groups))

    return figure.svg("front", 3.4, "The objectives of all trials", draw)


def _scale(axis: Axes, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) > 10 * min(values):
        figure.logarithmic(axis, "x")
    figure.thousands(axis, "x")


def course(found: Record) -> str:
    """Each trial's objectives in the order of the trials, with the best so far."""
    trials = complete(found)
    if len(trials) < 2:
        return ""
    objectives = found["objectives"]

    def draw(canvas: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        grid = canvas.subplots(1, len(objectives), squeeze=False)
        for index, (axis, one) in enumerate(zip(grid.flat, objectives, strict=True)):
            numbers = np.array([trial["number"] for trial in trials])
            values = np.array([shown(one["name"], trial["values"][index]) for trial in trials])
            kept = np.array([trial["feasible"] for trial in trials])
            axis.plot(numbers[~kept], values[~kept], "x", color=GREY, markersize=4)
            axis.plot(numbers[kept], values[kept], "o", color=BLUE, markersize=3)
            if kept.any():
                rises = (one["direction"] == "maximize") == (one["name"].rpartition(".")[2] != "negative_mse")
                so_far = (np.maximum if rises else np.minimum).accumulate(values[kept])
                axis.step(numbers[kept], so_far, where="post", color=ORANGE)
            axis.set(xlabel="trial", ylabel=title(one["name"]))
            figure.thousands(axis)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axis.grid()

    return figure.svg("course", 2.6, "The objectives in the order of the trials", draw)


def importances(found: Record) -> str:
    """Horizontal bars: the share of each parameter, for each objective."""
    shares: Mapping[str, Mapping[str, float]] = found["importances"]
    if not shares:
        return ""
    names = [one["name"] for one in found["parameters"]]

    def draw(canvas: Figure) -> None:
        axis = canvas.subplots()
        height, handles = 0.8 / len(shares), []
        for index, (colour, values) in enumerate(zip(figure.COLOURS, shares.values(), strict=False)):
            places = np.arange(len(names)) + height * (index - (len(shares) - 1) / 2)
            handles.append(axis.barh(places, [100 * values.get(name, 0) for name in names], height * 0.9, color=colour))
        axis.set_yticks(range(len(names)), [markup.plain(name, 44) for name in names])
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlabel("importance (%)")
        axis.grid(axis="x")
        figure.legend(canvas, handles, [metric_words(name) for name in shares])

    return figure.svg("importances", 0.9 + 0.3 * len(names), "How much each parameter matters", draw)


def metric_words(name: str) -> str:
    """What a metric is called in a legend."""
    return title(name).partition(" (")[0]


@dataclass(frozen=True)
class Axis:
    """One of parallel axes: its title, where each trial's value is on it (0 to 1, None without one), and its ticks."""

    title: str
    places: list[float | None]
    ticks: list[tuple[float, str]]


def axes(found: Record) -> list[Axis]:
    """An axis for each parameter and objective."""
    trials = complete(found)
    made = [_parameter(one, [trial["params"].get(one["name"]) for trial in trials]) for one in found["parameters"]]
    for index, one in enumerate(found["objectives"]):
        values = [shown(one["name"], trial["values"][index]) for trial in trials]
        spread = min(values) > 0 and max(values) > 20 * min(values)
        made.append(_number(title(one["name"]), values, min(values), max(values), log=spread))
    return made


def _parameter(parameter: Record, values: list[Any]) -> Axis:
    if parameter["choices"]:
        choices = parameter["choices"]
        places = {choice: index / max(len(choices) - 1, 1) for index, choice in enumerate(choices)}
        ticks = [(places[choice], markup.plain(choice, 14)) for choice in choices]
        return Axis(parameter["name"], [places.get(value) for value in values], ticks)
    return _number(parameter["name"], values, parameter["low"], parameter["high"], log=parameter["log"])


def _number(name: str, values: Sequence[float | None], low: float, high: float, *, log: bool) -> Axis:
    def place(value: float) -> float:
        ends = [np.log(one) if log else one for one in (low, high, value)]
        return float((ends[2] - ends[0]) / (ends[1] - ends[0])) if high > low else 0.5

    middle = float(np.sqrt(low * high)) if log else (low + high) / 2
    ticks = [(place(value), _tick(value)) for value in dict.fromkeys((low, middle, high))]
    return Axis(name, [None if value is None else place(value) for value in values], ticks)


def _tick(value: float) -> str:
    return f"{value / 1000:.3g}k" if abs(value) >= 1000 else markup.real(value, 4)


def parallel(found: Record) -> str:
    """A line for each complete trial across all parameters and objectives; the front in orange."""
    trials, drawn = complete(found), axes(found) if complete(found) else []
    if len(trials) < 2 or len(drawn) > MOST_AXES:
        return ""

    def draw(canvas: Figure) -> None:
        axis = canvas.subplots()
        order = sorted(range(len(trials)), key=lambda index: trials[index]["number"] in found["front"])
        for index in order:
            best, kept = trials[index]["number"] in found["front"], trials[index]["feasible"]
            heights = [ABSENT if place is None else place for place in (one.places[index] for one in drawn)]
            colour = ORANGE if best else BLUE if kept else GREY
            axis.plot(
                range(len(drawn)), heights, color=colour, alpha=0.95 if best else 0.3, linewidth=1.5 if best else 0.8
            )
        for place, one in enumerate(drawn):
            axis.axvline(place, color=figure.INK, linewidth=0.8, alpha=0.5)
            for height, label in one.ticks:
                axis.annotate(label, (place, height), (3, 0), textcoords="offset points", va="center", fontsize=7)
        if any(place is None for one in drawn for place in one.places):
            axis.set_yticks([ABSENT], ["not there"])
        else:
            axis.set_yticks([])
        axis.set_xticks(range(len(drawn)), [_wrapped(one.title) for one in drawn], fontsize=7)
        axis.set_xlim(-0.2, len(drawn) - 0.4)
        axis.spines["left"].set_visible(False)

    return figure.svg("parallel", 3.6, "All trials across parameters and objectives", draw)


def _wrapped(name: str) -> str:
    """A dotted key over several lines."""
    return "\n".join(markup.plain(part, 18) for part in name.split(".")[-3:])
