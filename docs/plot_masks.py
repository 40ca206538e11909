"""Draw docs/plots: how each pruning method's mask grows on the jet tagger. `make plots`, or with names for only those.

A short training each (30 epochs and 5 of fine-tuning, batch 1024, 8-bit weights and inputs), a few seconds on one core:
the hard mask after every epoch, as fine-tuning and the exported model would use it if training ended there. The same
versions on the same kind of machine write the same files. The runs are too short to compare the methods' accuracy.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pqc import curves, layers
from pqc.masking import Program, hard_masks
from pqc.metrics import Probe
from pqc.report import figure
from pqc.schedule import Schedule
from pqc.training.trainer import APPROACH, Trainer
from pqc.workflows.compression import compress
from pqc.workflows.job import Job, RunOptions
from pqc.workflows.sources import resolve

HERE = Path(__file__).parent
EPOCHS, FINE_TUNING = 30, 5
SHOWN = (1, 3, 6, 10, 20, 35)
"""The epochs whose masks are drawn."""
LAYER = "fc3"
TRAINING = {"batch": 1024, "learning_rate": "cosine(5e-3, 1e-4)"}
PRUNED, KEPT, RETURNED = "#e3e6e8", figure.COLOURS[0], figure.COLOURS[1]
STYLE = {
    **figure.STYLE,
    # A picture of its own has a page of its own: dark letters on white, whatever the reader's colours.
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), "#222222"),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "white"),
    "grid.color": "#222222",
}


@dataclass(frozen=True)
class Case:
    """A run to draw: the pruning method with its options, the target, and what else differs in training."""

    method: str | None
    options: dict[str, object] = field(default_factory=dict)
    sparsity: float | None = 0.8
    training: dict[str, object] = field(default_factory=dict)

    def schedule(self) -> Schedule:
        """The whole schedule of the run."""
        return Schedule.model_validate(
            {
                "pruning": {"method": self.method, "options": self.options},
                "target": {"sparsity": self.sparsity},
                "quantization": {"inputs": [0, 0, 8]},
                "training": {**TRAINING, **self.training},
                "phases": {"training": {"epochs": EPOCHS}, "fine_tuning": {"epochs": FINE_TUNING}},
            }
        )


METHODS = {
    "magnitude": Case("magnitude"),
    "activation_pruning": Case("activation_pruning", {"start_epoch": 4}, sparsity=None),
    "autosparse": Case("autosparse", training={"rates": {"threshold": 10}}),
    "cs": Case("cs"),
    "dst": Case("dst", {"threshold_type": "weightwise"}),
    "mdmm": Case("mdmm", {"constraint": "LessThanOrEqual"}),
    "pdp": Case("pdp", {"epsilon": 0.05}),
    "wanda": Case("wanda", {"start_epoch": 8}),
    "p_norm": Case(None, sparsity=None, training={"optimizer": {"name": "padam", "options": {"lambda_p": 0.1}}}),
}
STRUCTURES = {
    "single weights": Case("magnitude", sparsity=0.5),
    "outputs": Case("magnitude", {"structure": "output"}, sparsity=0.5),
    "input channels": Case("magnitude", {"structure": "input"}, sparsity=0.5),
    "pattern 2:4": Case("magnitude", {"pattern": "2:4"}, sparsity=None),
}

Masks = dict[str, np.ndarray]


class Recorder:
    """Keeps the hard masks after every epoch, [outputs, inputs] of each layer from first to last.

    Without a pruning method a weight is pruned where it rounds to zero.
    """

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.epochs: list[Masks] = []

    def watch(self, trainer: Trainer) -> None:
        """Start with a trainer that reports to this recorder."""
        self.trainer = trainer
        self._hard = Program(trainer.compressible, hard_masks)
        self._probe = Probe(trainer.compressible)

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        """An epoch ended."""
        assert self.trainer is not None
        state, method = self.trainer.state, self.trainer.method
        controls = {name: record[name] for name in (method.controls() if method else ()) if name in record}
        feeds = self.trainer.events.feeds(state.values, controls)
        found = state.masks or self._hard.run(feeds)
        effective = {} if method else self._probe.effective(feeds)
        masks: Masks = {}
        for layer in layers.layers(self.trainer.compressible.graph):
            shape = state.values[str(layer.weight.name)].shape
            mask = effective[layer.name] != 0 if effective else found.get(str(layer.weight.name), np.ones(()))
            kept = np.moveaxis(np.broadcast_to(mask, shape), layer.output_axis, 0)
            masks[str(layer.weight.name).removesuffix(".weight")] = kept.reshape(len(kept), -1).astype(bool)
        self.epochs.append(dict(sorted(masks.items())))


def train(case: Case) -> tuple[list[Masks], Schedule]:
    """The masks after every epoch of a run, and its schedule."""
    plan = case.schedule()
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as name:
        job = Job.start(resolve("jet_tagger"), plan, None, Path(name), RunOptions(hls=False), None)
        compressible, _ = compress(job.model, plan, job.data.train, Path(name))
        trainer = Trainer(compressible, plan, job.data, Path(name), progress=recorder)
        recorder.watch(trainer)
        trainer.train()
    return recorder.epochs, plan


def goal(plan: Schedule) -> tuple[list[float], str] | None:
    """The share that is to be pruned after each epoch of training, and what it is called."""
    method, sparsity = plan.method, plan.target.sparsity
    if method is None or sparsity is None:
        return None
    if method.strength is not None:
        approach = curves.cubic(0, 1, 0, APPROACH)
        return [sparsity * approach(epoch + 1, EPOCHS) for epoch in range(EPOCHS)], "what the controller aims at"
    if "ramp" in method.controls():
        ramp = curves.parse(method.controls()["ramp"])
        return [sparsity * ramp(epoch, EPOCHS) for epoch in range(EPOCHS)], "target times ramp"
    return [sparsity] * EPOCHS, "target"


def draw_method(canvas: Figure, masks: Sequence[Masks], plan: Schedule) -> None:
    """Pictures of one layer's mask above the share pruned of each layer."""
    grid = canvas.add_gridspec(2, len(SHOWN), height_ratios=(1.42, 1.9))
    before, any_back = None, False
    for place, epoch in enumerate(SHOWN):
        mask = masks[epoch - 1][LAYER]
        any_back |= before is not None and bool((mask & ~before).any())
        axis = canvas.add_subplot(grid[0, place])
        picture(axis, mask, before)
        axis.set_title(f"epoch {epoch}: {percent(mask)} pruned")
        if not place:
            axis.set_ylabel(f"{LAYER}: {len(mask)} outputs")
            axis.set_xlabel(f"{mask.shape[1]} inputs")
        before = mask
    axis = canvas.add_subplot(grid[1, :])
    handles, names = share_curves(axis, masks, plan)
    patches = {"kept": Patch(color=KEPT), "pruned": Patch(color=PRUNED)}
    if any_back:
        patches["back since the picture before"] = Patch(color=RETURNED)
    figure.legend(canvas, [*patches.values(), *handles], [*patches, *names], 5)


def picture(axis: Any, mask: np.ndarray, before: np.ndarray | None = None) -> None:
    """A mask, each row an output; what the mask `before` had pruned is marked where it is back."""
    state = mask.astype(int)
    if before is not None:
        state[mask & ~before] = 2
    axis.imshow(state, cmap=ListedColormap([PRUNED, KEPT, RETURNED]), vmin=0, vmax=2, interpolation="none")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def percent(mask: np.ndarray) -> str:
    """The share that is pruned."""
    return f"{100 * (1 - mask.mean()):.0f} %"


def share_curves(axis: Any, masks: Sequence[Masks], plan: Schedule) -> tuple[list[object], list[str]]:
    """The share pruned over the epochs, by layer and of all, with the goal; the lines and their names."""
    epochs = np.arange(1, len(masks) + 1)
    handles: list[object] = []
    names: list[str] = []
    # The colours that the pictures do not use.
    for name, colour in zip(masks[0], figure.COLOURS[2:4] + figure.COLOURS[5:], strict=False):
        handles += axis.plot(epochs, [100 * (1 - mask[name].mean()) for mask in masks], color=colour, linewidth=1.1)
        names.append(f"{name} ({' x '.join(map(str, masks[0][name].shape))})")
    total = [100 * (1 - sum(m.sum() for m in mask.values()) / sum(m.size for m in mask.values())) for mask in masks]
    handles += axis.plot(epochs, total, color="#9b9fa6", linewidth=3.2, zorder=1.9)
    names.append("all layers")
    aim = goal(plan)
    if aim is not None:
        steps = [*aim[0], *[plan.target.sparsity or 0.0] * FINE_TUNING]
        handles += axis.plot(epochs, 100 * np.array(steps), color="#222222", linestyle=(0, (3, 2)), linewidth=1.1)
        names.append(aim[1])
    axis.axvspan(EPOCHS + 0.5, len(masks) + 0.5, color=figure.COLOURS[3], alpha=0.11, linewidth=0)
    free = np.sort([0, 100, *(line.get_ydata()[-1] for line in handles)])
    widest = int(np.argmax(np.diff(free)))
    words = "fine-tuning:\nmasks frozen" if plan.method else "fine-tuning"
    axis.text(EPOCHS + 0.7, free[widest : widest + 2].mean(), words, va="center")
    for epoch in SHOWN:
        axis.axvline(epoch, color="#222222", linewidth=0.5, alpha=0.35, linestyle=":")
    axis.set_xlim(0.5, len(masks) + 0.5)
    axis.set_ylim(0, 100)
    axis.set_xticks([*SHOWN, EPOCHS])
    axis.set_xlabel("epoch")
    axis.set_ylabel("pruned (%)")
    axis.grid(axis="y")
    return handles, names


def draw_structures(canvas: Figure, found: Mapping[str, np.ndarray]) -> None:
    """One layer's last mask for each structure."""
    for axis, (name, mask) in zip(canvas.subplots(1, len(found)), found.items(), strict=True):
        picture(axis, mask)
        axis.set_title(f"{name}: {percent(mask)} pruned")
        axis.set_xlabel(f"{mask.shape[1]} inputs")
        axis.set_ylabel(f"{len(mask)} outputs")
    figure.legend(canvas, [Patch(color=KEPT), Patch(color=PRUNED)], ["kept", "pruned"])


@contextmanager
def saved(name: str, height: float) -> Iterator[Figure]:
    """A figure to fill, written to the folder of plots."""
    with style.context(["default", {**STYLE, "svg.hashsalt": f"pqc {name}"}]):
        canvas = Figure(figsize=(figure.WIDTH, height), layout="constrained")
        canvas.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        yield canvas
        canvas.savefig(HERE / "plots" / f"{name}.svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def main() -> None:
    """Train and draw what the command line names, or all."""
    (HERE / "plots").mkdir(exist_ok=True)
    wanted = sys.argv[1:] or [*METHODS, "structures"]
    for name in wanted:
        print(name, flush=True)
        if name == "structures":
            last = {title: train(case)[0][-1][LAYER] for title, case in STRUCTURES.items()}
            with saved("mask_structures", 2.7) as canvas:
                draw_structures(canvas, last)
        else:
            masks, plan = train(METHODS[name])
            with saved(f"mask_{name}", 4.3) as canvas:
                draw_method(canvas, masks, plan)


if __name__ == "__main__":
    main()
