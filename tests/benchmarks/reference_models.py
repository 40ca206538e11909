"""Run the reference models under their schedules, with several seeds, and put the figures into docs/results.md.

    python tests/benchmarks/reference_models.py --seeds 0 1 2

A run is the main job: training, a clean model, firmware compiled with g++ and compared on every test row. It is written
to build/reference-models and is not repeated once its summary is there. A model is added by a line in `CASES`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results_page

HERE = Path(__file__).parents[2]
BEGIN, END = (
    "<!-- reference models: written by tests/benchmarks/reference_models.py -->",
    "<!-- end of reference models -->",
)
OUT = HERE / "build" / "reference-models"


@dataclass(frozen=True)
class Case:
    """A reference model under a schedule.

    Args:
        model: as the command line takes it; likewise `schedule`.
        factor: what the metric is multiplied by for the table, after `label`.
        label: what is then measured.
        metric: by name, where it is not the first of the model's.
        hls: make firmware of it; for the others, the summary says which operators stop hls4ml.
    """

    model: str
    schedule: str
    factor: float
    label: str
    metric: str | None = None
    hls: bool = True


CASES = (
    Case("deep_sets", "deep-sets", 100, "accuracy (%)"),
    Case("mlp_mixer", "mlp-mixer", 100, "accuracy (%)"),
    Case("particle_transformer", "particle-transformer", 100, "accuracy (%)", hls=False),
    Case("smart_pixels", "smart-pixels", -1, "mean squared error of the scaled targets"),
    Case("resnet20", "resnet20", 100, "accuracy (%)"),
    Case("autoencoder", "autoencoder", 100, "area under the curve of anomalies (%)", "anomaly_auc"),
    Case("hept_tracking", "hept-tracking", 100, "neighbour accuracy (%)", hls=False),
    Case("hept_pileup", "hept-pileup", 100, "average precision (%)", hls=False),
)


def run(case: Case, seed: int) -> dict[str, Any]:
    """The summary of one run."""
    from pqc import workflows

    folder = OUT / f"{case.model}-{case.schedule}-{seed}"
    path = folder / "summary.json"
    if not path.exists():
        source = workflows.resolve(case.model)
        plan = workflows.load_plan(case.schedule, source, {"training.seed": str(seed)})
        workflows.run(source, plan, None, folder, workflows.RunOptions(hls=case.hls))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def row(case: Case, summaries: list[dict[str, Any]]) -> str:
    """A line of the table: means over the seeds, and half the range where they differ."""
    metric = case.metric or summaries[0]["metric"]
    columns = {
        "float": [case.factor * one["float"][metric] for one in summaries],
        "clean": [case.factor * one["clean"][metric] for one in summaries],
        "weights": [100 * one["keep_ratio"] for one in summaries],
    }
    cells = [f"{case.model}: {case.label}", f"`{case.schedule}`", *(spread(values) for values in columns.values())]
    cells += [f"{np.mean([one['ebops'] for one in summaries]):,.0f}"]
    cells += [_firmware(summaries) if case.hls else "none", f"{np.mean([one['seconds'] for one in summaries]):.0f}"]
    return "| " + " | ".join(cells) + " |"


def _firmware(summaries: list[dict[str, Any]]) -> str:
    mismatches = sum(one["hls"]["mismatches"] for one in summaries)
    return f"{mismatches} of {sum(one['hls']['samples'] for one in summaries):,}"


def spread(values: list[float]) -> str:
    """Mean and half the range, to four digits."""
    middle, half = float(np.mean(values)), float(np.ptp(values)) / 2
    return f"{middle:.4g} ± {half:.2g}" if half else f"{middle:.4g}"


def table(cases: Sequence[Case], seeds: list[int]) -> str:
    """The cases as Markdown."""
    head = ["model: metric", "schedule", "float", "compressed", "weights left (%)", "EBOPs"]
    head += ["firmware mismatches", "seconds"]
    rows = [row(case, [run(case, seed) for seed in seeds]) for case in cases]
    lines = [f"Seeds {', '.join(map(str, seeds))}; mean and half the range.", ""]
    return "\n".join([*lines, "| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])


def main() -> None:
    """Run what has not run yet, and write the block of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", help="only these; the page is left alone then")
    options = parser.parse_args()
    chosen = [case for case in CASES if not options.models or case.model in options.models]
    text = table(chosen, options.seeds)
    print(text)
    if not options.models:
        results_page.write(BEGIN, END, text)


if __name__ == "__main__":
    main()
