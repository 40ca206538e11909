"""Time one training step of the jet tagger: pqc against the PyTorch reference implementation, one thread each.

    make bench

All train the same dense network (16-64-32-32-5) with a pruning method (`--method`, continuous sparsification by
default; its budget and ramp at their ends), fixed point, cross entropy and Adam, on batches picked from the same arrays
by index. The reference (pquant-ml on PyTorch) is timed twice: as its shipped configuration has it, and with equal
quantizers. As it comes, it also rounds what enters each ReLU; with equal quantizers it has the same twelve as pqc (four
weights, four biases, four layer inputs). Each side runs in a process of its own; rounds alternate, so that all meet the
same machine. The reference goes into an environment of its own, which `make bench` sets up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = (16, 64, 32, 32, 5)
ROWS = 20_000
WARM_UP = 20
LEARNING_RATE = 1e-3


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Inputs [ROWS, 16] and labels [ROWS], the same on both sides."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, WIDTHS[0])).astype(np.float32), rng.integers(0, WIDTHS[-1], ROWS)


CONFIGS = {
    "activation-pruning": "ap_config",
    "autosparse": "autosparse_config",
    "cs": "cs_config",
    "dst": "dst_config",
    "mdmm": "mdmm_config",
    "pdp": "pdp_config",
    "wanda": "wanda_config",
}
"""The reference's configuration by the name of pqc's schedule."""


def pqc_step(batch: int, method: str) -> Callable[[np.ndarray], None]:
    """A function that takes one step of pqc on the given rows."""
    from pqc import graph, pipeline, schedule
    from pqc.models import TABLE
    from pqc.training.events import Events
    from pqc.training.segments import control_curves
    from pqc.training.stages import Stage, values_of
    from pqc.training.state import TrainingState
    from pqc.workflows.compression import NORMALIZE, compress_pipeline

    plan = schedule.load(method, {"training.batch": str(batch)})
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, f"{NORMALIZE},{compress_pipeline(plan, None)}")
    values = values_of(model)
    controls = {name: curve(99, 100) for name, curve in control_curves(plan).items()}
    Events(model).begin_training(values, controls)
    stage = Stage(model, "training", plan, plan.phases.training, TrainingState(values, {}), batch=batch)
    stage.set_controls(controls)
    x, y = arrays()
    inputs, count = {"x": x}, iter(range(1, 10**9))

    def step(rows: np.ndarray) -> None:
        stage.stepper.step(inputs, y, rows, number=next(count), learning_rate=LEARNING_RATE)

    return step


def peer_step(batch: int, method: str, *, equal: bool) -> Callable[[np.ndarray], None]:
    """A function that takes one step of the PyTorch reference on the given rows.

    Args:
        batch: rows a step.
        method: a key of `CONFIGS`.
        equal: leave out the quantizers before the ReLUs, which pqc does not have.
    """
    import pquant
    import torch
    from pquant import add_compression_layers, get_model_losses, load_from_dictionary
    from pquant.layers import post_pretrain_functions

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        layers += [torch.nn.Linear(fan_in, fan_out)] + ([torch.nn.ReLU()] if i < len(WIDTHS) - 2 else [])
    content = getattr(pquant, CONFIGS[method])().get_dict()
    relus = [str(i) for i, layer in enumerate(layers) if isinstance(layer, torch.nn.ReLU)]
    if equal:
        content["quantization_parameters"]["layer_specific"] = {name: {"input": {"quantize": False}} for name in relus}
    config = load_from_dictionary(content)
    model = add_compression_layers(torch.nn.Sequential(*layers), config, (batch, WIDTHS[0]))
    post_pretrain_functions(model, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    x, y = (torch.from_numpy(array) for array in arrays())
    model.train()

    def step(rows: np.ndarray) -> None:
        index = torch.from_numpy(rows)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[index]), y[index])
        get_model_losses(model, loss).backward()
        optimizer.step()
        loss.item()

    return step


SIDES: dict[str, Callable[[int, str], Callable[[np.ndarray], None]]] = {
    "pqc": pqc_step,
    "reference": partial(peer_step, equal=False),
    "equal": partial(peer_step, equal=True),
}


def work(side: str, method: str) -> None:
    """Answer requests `batch steps` on standard input with the steps' times in microseconds."""
    output = sys.stdout
    sys.stdout = sys.stderr
    steps: dict[int, Callable[[np.ndarray], None]] = {}
    rng = np.random.default_rng(1)
    for line in sys.stdin:
        batch, count = (int(part) for part in line.split())
        if batch not in steps:
            steps[batch] = SIDES[side](batch, method)
            for _ in range(WARM_UP):
                steps[batch](rng.integers(0, ROWS, batch))
        times = []
        for _ in range(count):
            rows = rng.integers(0, ROWS, batch)
            start = time.perf_counter()
            steps[batch](rows)
            times.append(1e6 * (time.perf_counter() - start))
        print(json.dumps(times), file=output, flush=True)


class Worker:
    """One side in a process of its own."""

    def __init__(self, python: str, side: str, method: str) -> None:
        environment = {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        self._process = subprocess.Popen(
            [python, __file__, "--worker", side, "--method", method],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def times(self, batch: int, steps: int) -> list[float]:
        """Microseconds of each of `steps` steps."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{batch} {steps}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died; run it by hand: {' '.join(map(str, self._process.args))}")  # type: ignore[arg-type]
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(peer_python: str, method: str, batches: list[int], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Alternate the sides and return one record a batch size."""
    workers = {side: Worker(sys.executable if side == "pqc" else peer_python, side, method) for side in SIDES}
    found: dict[tuple[str, int], list[float]] = {(side, batch): [] for side in workers for batch in batches}
    for _ in range(rounds):
        for batch in batches:
            for side, worker in workers.items():
                found[side, batch] += worker.times(batch, steps)
    for worker in workers.values():
        worker.close()
    return [_record(batch, {side: found[side, batch] for side in SIDES}) for batch in batches]


def _record(batch: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and minima in microseconds, and how many times longer than pqc each peer takes."""
    record: dict[str, Any] = {"batch": batch, "steps": len(times["pqc"])}
    for name, reduce in (("median", statistics.median), ("minimum", min)):
        numbers = {side: reduce(values) for side, values in times.items()}
        record[name] = {side: round(number, 1) for side, number in numbers.items()}
        record[f"{name}_ratio"] = {side: round(numbers[side] / numbers["pqc"], 2) for side in numbers if side != "pqc"}
    return record


def main() -> None:
    """Print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", default=str(Path(".venv-peers/bin/python")), help="Python of the reference")
    parser.add_argument(
        "--method", choices=CONFIGS, default="cs", help="the schedule of pqc and its like of the reference"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100, help="steps a round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.method)
        return
    records = compare(options.peer_python, options.method, options.batch, options.rounds, options.steps)
    if options.json:
        print(json.dumps(records, indent=2))
        return
    print(
        f"{'batch':>6} {'':8} {'pqc µs':>9} {'reference µs':>13} {'ratio':>6} {'equal quantizers µs':>20} {'ratio':>6}"
    )
    for record in records:
        for name in ("median", "minimum"):
            numbers, ratios = record[name], record[f"{name}_ratio"]
            peers = f"{numbers['reference']:>13} {ratios['reference']:>6} {numbers['equal']:>20} {ratios['equal']:>6}"
            print(f"{record['batch']:>6} {name:8} {numbers['pqc']:>9} {peers}")


if __name__ == "__main__":
    main()
