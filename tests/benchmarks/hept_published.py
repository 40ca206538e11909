"""Time and memory of training steps of HEPT in its published sizes: `python tests/benchmarks/hept_published.py`.

Each task in a process of its own: export, compile to a training step with masks, some steps on random events of 1,000
points. Needs torch.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from pqc import graph, layers, pipeline, schedule
from pqc.functions.optimizers import make_optimizer
from pqc.models.hept.export import OUTPUT, export
from pqc.models.hept.sizes import PUBLISHED, TASKS
from pqc.training.stages import loss_pipeline, step_pipeline
from pqc.training.stepper import Stepper
from pqc.workflows.compression import NORMALIZE, compress_pipeline

PAPER = {"tracking": 329_400, "pileup": 313_979}


@click.command()
@click.option("--task", type=click.Choice(TASKS), help="One task in this process  [default: each in its own]")
@click.option("--steps", type=click.IntRange(2), default=5, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Events; one as published.")
def main(task: str | None, steps: int, batch: int) -> None:
    """Print one line of JSON for each task."""
    if task is not None:
        print(json.dumps(measure(task, steps, batch)))
        return
    for one in TASKS:
        options = ["--task", one, "--steps", str(steps), "--batch", str(batch)]
        subprocess.run([sys.executable, __file__, *options], check=True)


def measure(task: str, steps: int, batch: int) -> dict[str, Any]:
    """Parameters, seconds to compile, seconds a step, peak memory, and the losses of the steps."""
    size = PUBLISHED[task]
    plan, _ = schedule.read(f"hept-{task}", {})
    with tempfile.TemporaryDirectory() as folder:
        export(size, Path(folder) / "hept.onnx", OUTPUT[task], seed=0)
        model = graph.load(Path(folder) / "hept.onnx")
    started = time.perf_counter()
    pipeline.run(model, f"{NORMALIZE},{compress_pipeline(plan, None)}")
    counts = parameters(model)
    pipeline.run(model, f"{loss_pipeline(plan)},{step_pipeline(plan, batch)}")
    optimizer = make_optimizer(plan.training.optimizer.name, {})
    stepper = Stepper(model, optimizer)
    compiled = time.perf_counter() - started
    random = np.random.default_rng(0)
    x = random.normal(0, 0.5, (batch, size.points, size.features)).astype(np.float32)
    x[..., 0] = 1
    target = events(task, x, random)
    losses, seconds = [], []
    for number in range(1, steps + 1):
        started = time.perf_counter()
        losses.append(stepper.step({"x": x}, target, np.arange(batch), number=number, learning_rate=1e-3))
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"task": task, **counts, "paper": PAPER[task], "batch": batch, "compile_seconds": round(compiled, 1)}
    return found | {"step_seconds": round(float(np.median(seconds)), 2), "peak_mib": round(peak), "losses": losses}


def parameters(model: Any) -> dict[str, int]:
    """How many numbers are trained, and how many weights among them can be pruned."""
    from pqc import masking

    trained = sum(int(np.prod(graph.dims(one.value))) for one in masking.parameters(model.graph))
    prunable = sum(int(np.prod(graph.dims(layer.weight))) for layer in layers.layers(model.graph))
    return {"trained": trained, "prunable": prunable}


def events(task: str, x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Targets: a hundred clusters of ten points, or zeros and ones."""
    if task == "pileup":
        return random.integers(-1, 2, x.shape[:2]).astype(np.float32)
    cluster = np.arange(x.shape[1]) // 10 + np.zeros(x.shape[:2])
    return np.stack([cluster, x[..., 4], x[..., 2]], axis=-1).astype(np.float32)


if __name__ == "__main__":
    main()
