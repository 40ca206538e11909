"""Train the jet tagger with learned bits in pqc and in HGQ2, and compare accuracy against bit operations.

    make hgq-front        # or: python tests/benchmarks/hgq_front.py --epochs 400 --seeds 0 1 2

Both start from the same float weights, train on the same rows for the same number of epochs with batches of 256, and
keep the epochs that no other beats in validation accuracy and bit operations: pqc under its schedule `hgq`, in which the
float model is the teacher, HGQ2 (on Keras and JAX) with a constant learning rate and a logarithmic ramp of beta. Each is
the best of some twenty settings.
Bit operations are counted for both in HGQ2's way, widths without sign, and a weight or bias that is zero once rounded
counts nothing. For a budget the epoch with the best validation accuracy within it is taken, and its accuracy on the test
rows is given. A training that is finished is not repeated. Writes the table into docs/results.md, and the plot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results_page

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
BEGIN, END = "<!-- hgq front: written by tests/benchmarks/hgq_front.py -->", "<!-- end of hgq front -->"
BUDGETS = (500, 1000, 1500, 2500, 4000, 6000, 10_000)
FLOAT = HERE.parents[1] / "models" / "jet_tagger" / "jet_tagger.onnx"
BATCH = 256


@dataclass(frozen=True)
class Point:
    """An epoch: bit operations in HGQ2's way, and accuracies."""

    ebops: float
    validation: float
    test: float


def ebops(weight: np.ndarray, bits: np.ndarray, data: np.ndarray, bias: np.ndarray, bias_bits: np.ndarray) -> float:
    """Bit operations of a dense layer: widths without sign, zeros left out.

    Args:
        weight: [inputs, outputs], rounded; `bits` are its widths.
        bits: [inputs, outputs].
        data: [inputs] widths of what enters.
        bias: [outputs], rounded; `bias_bits` are its widths.
        bias_bits: [outputs].
    """
    return float((data[:, None] * bits * (weight != 0)).sum() + (bias_bits * (bias != 0)).sum())


def train_pqc(folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train under the schedule `hgq` and measure each epoch of the front."""
    from pqc import graph, schedule
    from pqc.training.stages import set_values
    from pqc.workflows.checks import outputs
    from pqc.workflows.compression import finalize
    from pqc.workflows.job import Job, RunOptions
    from pqc.workflows.sources import resolve

    settings = {"phases.training.epochs": str(epochs), "training.seed": str(seed), "training.batch": str(BATCH)}
    begin = time.perf_counter()
    plan, source = schedule.load("hgq", settings), resolve("jet_tagger")
    job = Job.start(source, plan, None, folder, RunOptions(hls=False), None)
    trained = job.train()
    seconds = time.perf_counter() - begin
    assert job.front is not None
    target, points = job.data.test.target[job.data.test.rows], []
    for point in job.front.points:
        model = graph.copy(trained)
        with np.load(job.front.path(point)) as arrays:
            set_values(model, {name: arrays[name] for name in arrays.files})
        clean, _ = finalize(model, verify_each=False)
        test = float((outputs(clean, job.data.test).argmax(-1) == target).mean())
        points.append({"ebops": count_pqc(clean), "validation": point.metric, "test": test})
    return {"seconds": round(seconds, 1), "points": points}


def count_pqc(clean: Any) -> float:
    """Bit operations of a clean graph in HGQ2's way."""
    from pqc import metrics
    from pqc.conventions import HGQ2

    return metrics.ebops(metrics.Probe(clean, HGQ2).costs({}))


def train_hgq2(folder: Path, epochs: int, seed: int, python: str) -> dict[str, Any]:
    """Train in HGQ2 and count each epoch of its front again, zeros left out."""
    rows, out, arrays = folder.parent / "jets.npz", folder / "hgq2.json", folder / "layers.npz"
    folder.mkdir(parents=True, exist_ok=True)
    if not rows.exists():
        subprocess.run([sys.executable, HERE / "peers" / "jet_rows.py", rows], check=True)
    options = {"rows": rows, "out": out, "layers": arrays, "float-start": FLOAT, "epochs": epochs, "batch": BATCH}
    options |= {"learning-rate": 5e-3, "beta-start": 1e-6, "beta-end": 5e-4, "seed": seed}
    options |= {"weight": 4, "weight-integer": 1, "data": 3}
    command = [python, HERE / "peers" / "hgq2_front.py"]
    subprocess.run([*command, *(f"--{name}={value}" for name, value in options.items())], check=True)
    record = json.loads(out.read_text())
    with np.load(arrays) as found:
        layers = {name: found[name] for name in found.files}
    points = []
    for point in record["front"]:
        total = sum(_hgq2_layer(layers, f"{point['epoch']}/{name}") for name in ("fc1", "fc2", "fc3", "fc4"))
        points.append({"ebops": total, "validation": point["validation_accuracy"], "test": point["test_accuracy"]})
    return {"seconds": record["seconds"], "points": points, "versions": record["versions"]}


def _hgq2_layer(arrays: Mapping[str, np.ndarray], name: str) -> float:
    parts = ("quantized_kernel", "kernel_bits", "input_bits", "quantized_bias", "bias_bits")
    return ebops(*(arrays[f"{name}/{part}"] for part in parts))


def best(points: list[Point], budget: float) -> Point | None:
    """The point with the best validation accuracy within a budget."""
    return max((point for point in points if point.ebops <= budget), key=lambda point: point.validation, default=None)


def table(found: Mapping[str, list[dict[str, Any]]], epochs: int) -> str:
    """The comparison as Markdown."""
    seeds = len(next(iter(found.values())))
    lines = [f"{epochs} epochs, {seeds} seeds; test accuracy in per cent, mean and half the range.", ""]
    lines += ["| EBOPs up to | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for budget in BUDGETS:
        cells = []
        for records in found.values():
            chosen = [best([Point(**point) for point in record["points"]], budget) for record in records]
            tests = [100 * point.test for point in chosen if point is not None]
            cells.append(f"{np.mean(tests):.2f} ± {np.ptp(tests) / 2:.2f}" if len(tests) == seeds else "")
        lines.append(f"| {budget:,} | " + " | ".join(cells) + " |")
    times = " | ".join(f"{np.mean([record['seconds'] for record in records]):.0f} s" for records in found.values())
    return "\n".join([*lines, f"| time of a training | {times} |"])


def plot(found: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Test accuracy against bit operations, a line for each training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (side, records), colour in zip(found.items(), ("#3f90da", "#ffa90e"), strict=True):
        for number, record in enumerate(records):
            points = sorted((Point(**point) for point in record["points"]), key=lambda point: point.ebops)
            shown = [point for point in points if point.ebops >= BUDGETS[0] / 2 and point.test > 0.5]
            label = side if not number else None
            axis.plot([p.ebops for p in shown], [100 * p.test for p in shown], color=colour, lw=0.8, label=label)
    axis.axhline(68.17, color="#717581", lw=0.8, ls="--", label="float")
    axis.set(xscale="log", xlabel="EBOPs (HGQ2's count, zeros left out)", ylabel="test accuracy (%)", ylim=(60, 69))
    axis.grid(alpha=0.2)
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train what is missing, and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("build/hgq-front"))
    parser.add_argument("--hgq2-python", default=".venv-hgq/bin/python")
    parser.add_argument("--dry", action="store_true", help="print the table, leave docs alone")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"pqc": [], "HGQ2": []}
    for side, records in found.items():
        for seed in options.seeds:
            folder = options.out / f"{side.lower()}-{options.epochs}-{seed}"
            done = folder / "points.json"
            if not done.exists():
                record = (
                    train_pqc(folder, options.epochs, seed)
                    if side == "pqc"
                    else train_hgq2(folder, options.epochs, seed, options.hgq2_python)
                )
                folder.mkdir(parents=True, exist_ok=True)
                done.write_text(json.dumps(record))
            records.append(json.loads(done.read_text()))
    text = table(found, options.epochs)
    print(text)
    if not options.dry:
        results_page.write(BEGIN, END, text)
        plot(found, DOCS / "plots" / "hgq_front.svg")


if __name__ == "__main__":
    main()
