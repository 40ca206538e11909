"""A small network that is trained in a second, and what an MLflow store must hold of its run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_mlp

from pqc import engine, graph, workflows
from pqc.schedule import Schedule
from pqc.workflows.job import Listener

EPOCHS = 5
SCHEDULE = """\
pruning: {method: cs, options: {final_temp: 50}}
training: {batch: 32, learning_rate: "cosine(1e-2, 1e-3)"}
phases:
  training: {epochs: 3}
  fine_tuning: {epochs: 2}
"""


@dataclass(frozen=True)
class Small:
    """The files of a run, and its command line."""

    model: Path
    schedule: Path
    data: Path
    out: Path

    def plan(self, **settings: str) -> Schedule:
        """The schedule with some settings."""
        changes = {f"tracking.mlflow.{key}": value for key, value in settings.items()}
        return workflows.load_plan(self.schedule, workflows.resolve(self.model), changes)

    def run(self, listener: Listener | None = None, *, resume: bool = False, **settings: str) -> dict[str, Any]:
        """The whole chain but for the firmware, tracked where settings say where."""
        plan = self.plan(**settings)
        options = workflows.RunOptions(hls=False, resume=resume, verify_each=False)
        with workflows.tracked(plan.tracking.mlflow, self.out, listener) as one:
            return workflows.run(workflows.resolve(self.model), plan, self.data, self.out, options, one)

    def history(self) -> list[dict[str, Any]]:
        """The records of the epochs."""
        found: list[dict[str, Any]] = json.loads((self.out / "history.json").read_text())
        return found

    def arguments(self, verb: str, *more: object) -> list[str]:
        """The command line of `verb`."""
        hls = ["--no-hls"] if verb == "run" else []
        files = ["--schedule", self.schedule, "--data", self.data, "--out", self.out, "--no-verify-each", *hls]
        return [str(part) for part in (verb, self.model, *files, *more)]


def make(folder: Path) -> Small:
    """Write model, schedule and data to a folder."""
    rng = np.random.default_rng(3)
    graph.save(make_mlp(), folder / "mlp.onnx")
    (folder / "s.yaml").write_text(SCHEDULE)
    np.savez(folder / "d.npz", x=rng.normal(size=(160, 4)).astype(np.float32), y=np.arange(160) % 3)
    return Small(folder / "mlp.onnx", folder / "s.yaml", folder / "d.npz", folder / "a run")


def assert_epochs(client: Any, run: str, history: list[dict[str, Any]], *, but: tuple[str, ...] = ()) -> None:
    """The store has each number of each epoch once, with the epoch for its step, and equal to the last bit."""
    names = {name for line in history for name, value in line.items() if type(value) in (int, float)} - {"epoch"}
    assert {"loss", "validation_loss", "accuracy", "ebops", "sparsity", "beta", "seconds"} <= names
    stored = {name for name in client.get_run(run).data.metrics if not name.startswith("summary/")}
    assert stored == names
    for name in names - set(but):
        found = [(one.step, one.value) for one in client.get_metric_history(run, name)]
        assert sorted(found) == [(line["epoch"], line[name]) for line in history if name in line], name


def assert_summary(client: Any, run: str, summary: dict[str, Any]) -> None:
    """The store has the numbers of the summary, by their places in it."""
    data = client.get_run(run).data
    flat = {key: value for key, value in summary.items() if type(value) in (int, float)}
    for section in ("float", "trained", "clean", "validation", "timings"):
        flat |= {f"{section}/{key}": value for key, value in summary[section].items()}
    flat["clean_equals_trained"] = 1.0 if summary["clean_equals_trained"] else 0.0
    assert {key.removeprefix("summary/"): value for key, value in data.metrics.items() if "summary/" in key} == flat
    assert data.tags["pqc.model"] == summary["model"]
    assert data.tags["pqc.versions.onnx"] == summary["versions"]["onnx"]


def assert_model(mlflow: Any, uri: str, small: Small) -> None:
    """The logged model gives what the clean one gives, on all rows, and knows its inputs and outputs."""
    with np.load(small.data) as arrays:
        rows = arrays["x"]
    wanted = engine.evaluate(graph.load(small.out / "clean.onnx"), {"x": rows})["y"]
    assert len(np.unique(wanted)) > 20
    model = mlflow.pyfunc.load_model(uri)
    assert np.array_equal(model.predict({"x": rows})["y"], wanted)
    schema = model.metadata.signature
    assert [(one.name, one.type, one.shape) for one in schema.inputs.inputs] == [("x", np.dtype("float32"), (-1, 4))]
    assert [(one.name, one.type, one.shape) for one in schema.outputs.inputs] == [("y", np.dtype("float32"), (-1, 3))]
