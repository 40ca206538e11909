"""Time one training step with learned bits: pqc against HGQ2 on JAX and the PyTorch reference, one thread each.

    make bench-hgq

All train the same dense network (16-64-32-32-5) with bits of their own for every weight, every bias and every element
that enters a layer, the bit operations in the loss, cross entropy and Adam, on batches picked from resident arrays by
index. HGQ2 (on Keras and JAX) is timed with a jitted step, one call each as pqc's are, and with fifty steps compiled
into one call (`scan`). The reference (pquant-ml on PyTorch) is timed in its high-granularity mode. Every side runs in a
process of its own; rounds alternate, so that all meet the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from step_time import LEARNING_RATE, ROWS, WARM_UP, WIDTHS, arrays

HERE = Path(__file__).parent


def pqc_step(batch: int) -> Callable[[np.ndarray], None]:
    """A function that takes one step of pqc on the given rows, under the schedule `hgq` without its teacher."""
    from pqc import graph, pipeline, schedule
    from pqc.models import TABLE
    from pqc.training.segments import control_curves
    from pqc.training.stages import Stage, values_of
    from pqc.training.state import TrainingState
    from pqc.workflows.compression import NORMALIZE, compress_pipeline

    plan = schedule.load("hgq", {"training.batch": str(batch), "distill": "null"})
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, f"{NORMALIZE},{compress_pipeline(plan, None)},calibrate-quant")
    stage = Stage(model, "training", plan, plan.phases.training, TrainingState(values_of(model), {}), batch=batch)
    stage.set_controls({name: curve(0, 100) for name, curve in control_curves(plan).items()})
    x, y = arrays()
    inputs, count = {"x": x}, iter(range(1, 10**9))

    def step(rows: np.ndarray) -> None:
        stage.stepper.step(inputs, y, rows, number=next(count), learning_rate=LEARNING_RATE)

    return step


def reference_step(batch: int) -> Callable[[np.ndarray], None]:
    """A function that takes one step of the PyTorch reference in its high-granularity mode."""
    import torch
    from pquant import add_compression_layers, cs_config, get_model_losses, load_from_dictionary
    from pquant.layers import post_pretrain_functions

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for place, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        layers += [torch.nn.Linear(fan_in, fan_out)] + ([torch.nn.ReLU()] if place < len(WIDTHS) - 2 else [])
    content = cs_config().get_dict()
    relus = [str(place) for place, layer in enumerate(layers) if isinstance(layer, torch.nn.ReLU)]
    content["pruning_parameters"]["enable_pruning"] = False
    content["quantization_parameters"] |= {
        "use_high_granularity_quantization": True,
        "granularity": "per_weight",
        "overflow_mode_data": "WRAP",
        "overflow_mode_parameters": "SAT_SYM",
        "layer_specific": {name: {"input": {"quantize": False}} for name in relus},
    }
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


STEPS: dict[str, Callable[[int], Callable[[np.ndarray], None]]] = {"pqc": pqc_step, "reference": reference_step}


def work(side: str) -> None:
    """Answer requests `batch steps` on standard input with the steps' times in microseconds."""
    output = sys.stdout
    sys.stdout = sys.stderr
    steps: dict[int, Callable[[np.ndarray], None]] = {}
    rng = np.random.default_rng(1)
    for line in sys.stdin:
        batch, count = (int(part) for part in line.split())
        if batch not in steps:
            steps[batch] = STEPS[side](batch)
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

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        )

    def times(self, batch: int, steps: int) -> list[float]:
        """Microseconds of each step, or of each of the blocks that the steps are taken in."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{batch} {steps}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died; run it by hand: {self._process.args!r}")
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """How each side is started."""
    hgq2 = [options.hgq2_python, str(HERE / "peers" / "hgq2_jax.py"), "--worker", "--way"]
    found = {
        "pqc": [sys.executable, __file__, "--worker", "pqc"],
        "hgq2": [*hgq2, "pure"],
        "hgq2 scan": [*hgq2, "scan"],
        "reference": [options.peer_python, __file__, "--worker", "reference"],
    }
    return {side: found[side] for side in ("pqc", *options.sides)}


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Alternate the sides and return one record a batch size."""
    workers = {side: Worker(command) for side, command in commands(options).items()}
    found: dict[tuple[str, int], list[float]] = {(side, batch): [] for side in workers for batch in options.batch}
    for _ in range(options.rounds):
        for batch in options.batch:
            for side, worker in workers.items():
                found[side, batch] += worker.times(batch, options.steps)
    for worker in workers.values():
        worker.close()
    return [_record(batch, {side: found[side, batch] for side in workers}) for batch in options.batch]


def _record(batch: int, times: dict[str, list[float]]) -> dict[str, Any]:
    record: dict[str, Any] = {"batch": batch, "steps": len(times["pqc"])}
    for name, reduce in (("median", statistics.median), ("minimum", min)):
        numbers = {side: reduce(values) for side, values in times.items()}
        record[name] = {side: round(number, 1) for side, number in numbers.items()}
        record[f"{name}_ratio"] = {side: round(numbers[side] / numbers["pqc"], 2) for side in numbers if side != "pqc"}
    return record


def main() -> None:
    """Print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", default=".venv-peers/bin/python", help="Python of the PyTorch reference")
    parser.add_argument("--hgq2-python", default=".venv-hgq/bin/python", help="Python of HGQ2")
    parser.add_argument("--sides", nargs="*", default=["hgq2", "hgq2 scan", "reference"], help="the peers")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100, help="steps a round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    records = compare(options)
    if options.json:
        print(json.dumps(records, indent=2))
        return
    print(f"{'batch':>6} {'':8} {'pqc µs':>9}" + "".join(f" {side + ' µs':>13} {'ratio':>6}" for side in options.sides))
    for record in records:
        for name in ("median", "minimum"):
            numbers, ratios = record[name], record[f"{name}_ratio"]
            peers = "".join(f" {numbers[side]:>13} {ratios[side]:>6}" for side in options.sides)
            print(f"{record['batch']:>6} {name:8} {numbers['pqc']:>9}{peers}")


if __name__ == "__main__":
    main()
