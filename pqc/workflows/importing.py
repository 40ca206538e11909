"""Take a model from wherever it comes: export it, bring its graph into pqc's form, and compare with the source."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pqc import data, engine, exporters, files, graph, pipeline
from pqc.errors import DataError, EnvironmentFault, GraphError, PassError, UnsupportedError, UsageError
from pqc.samples import batch_size, sample
from pqc.workflows.checks import check_inputs

ROWS = 64
BOUND = 1e-4
"""How far outputs may lie from the source's, of the largest output: float32 sums in another order stay below."""
CLEANING = "normalize,fold-constants,simplify,normalize"
FREEING = "free-batch,fold-constants,simplify,normalize"


@dataclass(frozen=True)
class Request:
    """What to import and how.

    Args:
        source: FILE.onnx, FILE.keras, FILE.pt2, or FILE.py:NAME.
        inputs: dimensions and type by name; the first dimension may be a word.
        weights: a file of weights, where the source is code.
        samples: an .npz of inputs by name to compare on.
        framework: of what FILE.py:NAME gives, where it cannot be told: torch, keras or jax.
        exporter: PyTorch's, dynamo or torchscript.
        python: the interpreter that has the framework.
        free_batch: make a fixed number of rows a symbol, where the rows are independent.
        fold_norm: fold batch normalization.
    """

    source: str
    inputs: Mapping[str, tuple[Sequence[int | str], str]] = field(default_factory=dict)
    weights: Path | None = None
    samples: Path | None = None
    framework: str | None = None
    exporter: str = "dynamo"
    python: str = sys.executable
    free_batch: bool = True
    fold_norm: bool = False


@dataclass(frozen=True)
class Source:
    """A model as its framework exported it, with inputs and what the framework computes from them."""

    model: ir.Model
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[np.ndarray]
    origin: str


def import_model(request: Request, out: Path) -> dict[str, Any]:
    """Write the source as a clean ONNX file, and say what was done and what can be done with it.

    Raises:
        GraphError: the source is broken, or the file would compute something else than the source.
        UnsupportedError: names the node that cannot be taken.
        EnvironmentFault: the framework is missing, or failed.
    """
    source = _read(request)
    model, notes = graph.copy(source.model), list[str]()
    before = len(model.graph)
    steps = pipeline.run(model, CLEANING)
    if request.free_batch and batch_size(model) is not None:
        model, note = _freed(model)
        notes += [note] if note else []
    if request.fold_norm:
        steps += pipeline.run(model, "fold-batchnorm")
    difference = compare(model, source)
    graph.save(model, out)
    return {
        "source": source.origin,
        "out": str(out),
        "nodes": {"before": before, "after": len(model.graph)},
        "rows": len(next(iter(source.inputs.values()))),
        "difference": difference,
        "batch": batch_size(model) or "free",
        "passes": {step.text: step.changed for step in steps if step.changed},
        "notes": notes,
        "trains": obstacle(model) or "yes",
    }


def compare(model: ir.Model, source: Source) -> float:
    """The largest difference to the source's outputs, of the largest output.

    Raises:
        GraphError: it is above the bound.
    """
    names = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
    feeds = dict(zip(names, source.inputs.values(), strict=True))
    found = list(_evaluate(model, feeds).values())
    worst = 0.0
    for value, array, wanted in zip(model.graph.outputs, found, source.outputs, strict=True):
        if array.shape != wanted.shape:
            raise GraphError(f"the output '{value.name}' has the shape {list(array.shape)}, not {list(wanted.shape)}")
        scale = max(float(np.abs(wanted.astype(np.float64)).max(initial=0.0)), 1e-30)
        worst = max(worst, float(np.abs(array.astype(np.float64) - wanted).max(initial=0.0)) / scale)
    if not worst <= BOUND:
        raise GraphError(
            f"the exported graph does not compute what the source computes: outputs differ by {worst:.3g}",
            hint="export in evaluation mode; code that branches on values or shapes is recorded for one sample only",
        )
    return worst


def obstacle(model: ir.Model) -> str | None:
    """What keeps the model from being trained, or None."""
    try:
        check_inputs(model)
        pipeline.run(graph.copy(model), "normalize,fold-constants,fold-batchnorm,lower-gemm,legalize")
    except UnsupportedError as error:
        return f"{error.at}: {error.message}" if error.at else error.message
    return None


def _evaluate(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs on all rows, by pieces where the graph fixes their number."""
    rows, size = len(next(iter(feeds.values()))), batch_size(model)
    if size is None or size == rows:
        return dict(engine.evaluate(model, feeds))
    if rows % size:
        raise DataError(f"the model takes {size} rows at a time, and there are {rows}", hint="give a multiple")
    starts = range(0, rows, size)
    parts = [engine.evaluate(model, {name: array[at : at + size] for name, array in feeds.items()}) for at in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _freed(model: ir.Model) -> tuple[ir.Model, str]:
    """The model with a free number of rows where that computes the same, else as it is and the reason."""
    size, freed = batch_size(model), graph.copy(model)
    assert size is not None
    try:
        pipeline.run(freed, FREEING)
        halves = sample(model, size), sample(model, size, seed=1)
        wanted = [engine.evaluate(model, half) for half in halves]
        both = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
        found = engine.evaluate(freed, both)
    except (GraphError, PassError) as error:
        return model, f"the number of rows stays {size}: {error.message}"
    for name, array in found.items():
        expected = np.concatenate([one[name] for one in wanted]) if wanted[0][name].ndim else wanted[0][name]
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
        if array.shape != expected.shape or np.abs(array - expected).max(initial=0.0) > BOUND * scale:
            return model, f"the number of rows stays {size}: a row's output '{name}' depends on the other rows"
    return freed, ""


def _read(request: Request) -> Source:
    code, _, name = request.source.rpartition(":")
    path = code if code.endswith(".py") else request.source
    name = name if code.endswith(".py") else ""
    if not Path(path).is_file():
        reason = files.no_file(Path(path)) if path else None
        raise GraphError(
            f"no model file: {reason}" if reason else "no such model file",
            at=path,
            hint="give an .onnx, .keras or .pt2 file, or FILE.py:NAME",
        )
    if path.endswith(".py") and not name:
        raise UsageError(f"which model of {path}?", hint=f"give its name: {path}:NAME")
    if Path(path).suffix in (".pt", ".pth", ".pkl", ".pickle"):
        raise UnsupportedError(
            "a pickled model is a program, and is not run",
            at=path,
            hint="give FILE.py:NAME with --weights, or a file of torch.export (.pt2)",
        )
    if not name and Path(path).suffix not in (".keras", ".pt2"):
        return _onnx(Path(path), request)
    return _exported(path, name, request)


def _onnx(path: Path, request: Request) -> Source:
    model = graph.load(path)
    if request.inputs or request.weights is not None:
        raise UsageError("shapes and weights are for code; an ONNX file has its own", at=str(path))
    feeds = sample(model, batch_size(model) or ROWS)
    if request.samples is not None:
        arrays = data.samples(request.samples, [value for value in model.graph.inputs if value.name in feeds])
        feeds = {name: arrays[name].astype(feeds[name].dtype) for name in feeds}
    outputs = list(_evaluate(model, feeds).values())
    producer = f"{model.producer_name or 'unknown producer'} {model.producer_version or ''}".strip()
    return Source(model, feeds, outputs, f"ONNX, {producer}")


def _exported(path: str, name: str, request: Request) -> Source:
    """Let the framework's own Python write the model into a folder, and read that."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        text = {
            "source": str(Path(path).resolve()),
            "object": name,
            "inputs": {key: {"dims": list(dims), "type": kind} for key, (dims, kind) in request.inputs.items()},
            "weights": None if request.weights is None else str(request.weights.resolve()),
            "samples": None if request.samples is None else str(request.samples.resolve()),
            "framework": request.framework,
            "exporter": request.exporter,
            "rows": ROWS,
            "out": folder,
        }
        (out / "request.json").write_text(json.dumps(text))
        script = Path(exporters.__file__).parent / "main.py"
        done = subprocess.run([request.python, script, out / "request.json"], capture_output=True, text=True)
        if (out / "error.json").exists():
            raise UnsupportedError(**json.loads((out / "error.json").read_text()), at=request.source)
        if done.returncode or not (out / "report.json").exists():
            raise _failed(done, request)
        report = json.loads((out / "report.json").read_text())
        with np.load(out / "samples.npz", allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
        inputs = {key: found[f"in{number}"] for number, key in enumerate(report["inputs"])}
        outputs = [found[f"out{number}"] for number in range(len(found) - len(inputs))]
        origin = f"{report['framework']} {report['version']}, {report['exporter']}"
        return Source(graph.load(out / "model.onnx"), inputs, outputs, origin)


def _failed(done: subprocess.CompletedProcess[str], request: Request) -> EnvironmentFault:
    """The last words of a framework that gave up."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    own = next((line for line in reversed(lines) if not line.startswith(("File ", "^", "- ", "(")) and ":" in line), "")
    return EnvironmentFault(
        f"the export failed: {own or f'exit code {done.returncode}'}",
        at=request.source,
        hint="does the model run in its framework? PyTorch has a second way: --exporter torchscript",
    )
