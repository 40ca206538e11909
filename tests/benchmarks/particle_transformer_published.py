"""Time and memory of training steps of the particle transformer in its published size.

    python tests/benchmarks/particle_transformer_published.py

Each number of particles in a process of its own: export, compile to a training step with quantizers and masks, some steps
on random jets. The figures go into docs/results.md. Needs torch.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import results_page

from pqc import graph, layers, masking, pipeline, schedule
from pqc.functions.optimizers import make_optimizer
from pqc.models.jet_constituents.generate import FEATURES, MASK
from pqc.models.particle_transformer.export import export_published
from pqc.training.stages import loss_pipeline, step_pipeline
from pqc.training.stepper import Stepper
from pqc.workflows.compression import NORMALIZE, compress_pipeline

BEGIN = "<!-- particle transformer: written by tests/benchmarks/particle_transformer_published.py -->"
END = "<!-- end of particle transformer -->"
SIZES = {32: 32, 128: 4}
"""The batch for each number of particles."""
COLUMNS = {
    "particles": "particles",
    "batch": "batch",
    "trained": "trained numbers",
    "prunable": "weights with masks",
    "compile_seconds": "seconds to compile",
    "step_seconds": "seconds a step",
    "peak_mib": "peak memory (MiB)",
}


@click.command()
@click.option("--particles", type=click.IntRange(2, 128), help="One size in this process; the page is left alone then.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Jets a step, with --particles.")
@click.option("--steps", type=click.IntRange(2), default=5, show_default=True)
def main(particles: int | None, batch: int, steps: int) -> None:
    """Print one line of JSON for each number of particles, and write the table."""
    if particles is not None:
        print(json.dumps(measure(particles, batch, steps)))
        return
    found = []
    for number, jets in SIZES.items():
        options = ["--particles", str(number), "--batch", str(jets), "--steps", str(steps)]
        done = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(found[-1]))
    results_page.write(BEGIN, END, table(found))


def table(found: list[Mapping[str, Any]]) -> str:
    """The measurements as Markdown."""
    rows = [[f"{one[name]:,}" for name in COLUMNS] for one in found]
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure(particles: int, batch: int, steps: int) -> dict[str, Any]:
    """Numbers of parameters, seconds to compile, seconds a step, peak memory, and the losses of the steps."""
    plan, _ = schedule.read("particle-transformer", {"distill": "null"})
    with tempfile.TemporaryDirectory() as folder:
        export_published(Path(folder) / "published.onnx", particles, seed=1)
        model = graph.load(Path(folder) / "published.onnx")
    started = time.perf_counter()
    pipeline.run(model, f"{NORMALIZE},{compress_pipeline(plan, None)}")
    trained = sum(int(np.prod(graph.dims(one.value))) for one in masking.parameters(model.graph))
    prunable = sum(int(np.prod(graph.dims(layer.weight))) for layer in layers.layers(model.graph))
    pipeline.run(model, f"{loss_pipeline(plan)},{step_pipeline(plan, batch)}")
    stepper = Stepper(model, make_optimizer(plan.training.optimizer.name, {}))
    compiled = time.perf_counter() - started
    losses, seconds = [], []
    x, y = jets(particles, batch)
    for number in range(1, steps + 1):
        started = time.perf_counter()
        losses.append(stepper.step({"x": x}, y, np.arange(batch), number=number, learning_rate=1e-3))
        seconds.append(time.perf_counter() - started)
    return {
        "particles": particles,
        "batch": batch,
        "trained": trained,
        "prunable": prunable,
        "compile_seconds": round(compiled, 1),
        "step_seconds": round(float(np.median(seconds)), 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "losses": losses,
    }


def jets(particles: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random particles, three quarters of the places taken, and classes."""
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (batch, len(FEATURES), 1, particles)).astype(np.float32)
    x[:, MASK] = np.arange(particles) < 0.75 * particles
    return x * x[:, MASK : MASK + 1], random.integers(0, 5, batch)


if __name__ == "__main__":
    main()
