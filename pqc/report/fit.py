"""The plot of a search: how far the network is from the float one as it nears the goal, and the bits along the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pqc.report import figure, markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {
    "rate": "stored bits against float32",
    "ebops": "EBOPs (bit operations)",
    "bits": "mean bits of a weight",
    "keep": "share of weights left",
}
MOST_LAYERS = len(figure.COLOURS)
FLOAT_BITS = 32

Step = Mapping[str, Any]


def section(found: Mapping[str, Any] | None) -> str:
    """The part of the page about a search, or nothing where there was none."""
    if not found:
        return ""
    ((measure, bound),) = found["goal"].items()
    note = (
        f"{markup.plain(found['search'], 12)} search for {measure} of at most {markup.real(bound)}: "
        f"{markup.real(found[measure])} after {markup.count(found['expansions'])} expansions. "
        "Squares are steps that prune."
    )
    layers = len(found["path"][0]["bits"])
    capped = f"The plot shows the bits of {MOST_LAYERS} of {layers} layers." if layers > MOST_LAYERS else ""
    return markup.section("Search for bits and masks", path(found), markup.paragraph(note), markup.paragraph(capped))


def path(found: Mapping[str, Any]) -> str:
    """Distance against the goal's measure, and each layer's bits and the pruned share over the steps."""
    steps: Sequence[Step] = found["path"]
    if len(steps) < 2:
        return ""
    ((measure, bound),) = found["goal"].items()

    def draw(canvas: Figure) -> None:
        left, right = canvas.subplots(1, 2)
        _distance(left, steps, str(measure), float(bound))
        handles, names = _bits(right, steps)
        figure.legend(canvas, handles, names)

    return figure.svg("fit", 3.4, "Distance against the goal, and bits per layer over the steps of the search", draw)


def _distance(axis: Axes, steps: Sequence[Step], measure: str, bound: float) -> None:
    values, lengths = ([step[key] for step in steps] for key in ("value", "length"))
    axis.plot(values, lengths, "-", color=figure.COLOURS[0])
    for pruned, marker in ((False, "o"), (True, "s")):
        chosen = [number for number, step in enumerate(steps) if number and (step["step"] == "prune") is pruned]
        places = [[line[number] for number in chosen] for line in (values, lengths)]
        axis.plot(*places, marker, color=figure.COLOURS[int(pruned)], markersize=3.5)
    axis.axvline(bound, color=figure.INK, alpha=0.5, linestyle=":")
    figure.logarithmic(axis, "x")
    axis.invert_xaxis()
    axis.set_xlabel(MEASURES[measure])
    axis.set_ylabel("length of the way, Σ √FIT")
    axis.grid()


def _bits(axis: Axes, steps: Sequence[Step]) -> tuple[list[object], list[str]]:
    numbers = np.arange(len(steps))
    layers = list(steps[0]["bits"])[:MOST_LAYERS]
    handles: list[object] = []
    for colour, layer in zip(figure.COLOURS, layers, strict=False):
        handles += axis.step(numbers, [step["bits"][layer] for step in steps], where="post", color=colour)
    narrow = [bits for step in steps for bits in step["bits"].values() if bits < FLOAT_BITS]
    axis.set_ylim(0, max(narrow, default=FLOAT_BITS) + 1.5)
    axis.set_xlabel("step")
    axis.set_ylabel("bits of the weights (float: above)")
    axis.grid()
    shares = axis.twinx()
    handles += shares.plot(numbers, [100 * step["pruned"] for step in steps], "--", color=figure.INK, alpha=0.6)
    shares.set_ylim(0, 100)
    shares.set_ylabel("pruned (%)")
    return handles, [*(markup.plain(layer, 24) for layer in layers), "pruned"]
