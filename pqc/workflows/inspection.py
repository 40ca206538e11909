"""Look at models, rewrite them, and compare two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pqc import data, engine, graph, masking, metrics, names, pipeline
from pqc import ebops as counting
from pqc.conventions import DEFAULT, named
from pqc.errors import DataError, PqcError
from pqc.rewriting import Pass
from pqc.samples import batch_size, sample
from pqc.workflows.sources import resolve

DIFF_ROWS = 1024


def opt(
    model: str | Path,
    passes: str,
    out: Path | None = None,
    *,
    verify_each: bool = False,
    after_change: Callable[[Pass, ir.Model], None] | None = None,
) -> tuple[ir.Model, list[pipeline.Step]]:
    """Run a pipeline on a model and write the result.

    Args:
        model: a file or the name of a reference model.
        passes: pipeline text.
        out: the file to write, or None.
        verify_each: measure what each pass does to the outputs, and hold it against what it declares.
        after_change: called after each pass that changed something.
    """
    parsed = pipeline.parse(passes)
    loaded = resolve(model).load()
    steps = pipeline.run(loaded, parsed, verify_each=verify_each, after_change=after_change)
    if out is not None:
        graph.save(loaded, out)
    return loaded, steps


def show(model: str | Path) -> dict[str, Any]:
    """A model in numbers: inputs, outputs, operators, layers with bits and EBOPs, its pipeline."""
    source = resolve(model)
    loaded = source.load()
    costs, reason = None, ""
    try:
        plain = graph.copy(loaded)
        pipeline.run(plain, "normalize")
        costs = metrics.Probe(plain).costs({})
    except PqcError as error:
        reason = str(error)
    operators: dict[str, int] = {}
    for node in loaded.graph:
        key = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        operators[key] = operators.get(key, 0) + 1
    return {
        "model": source.name,
        "opset": loaded.graph.opset_imports.get(""),
        "inputs": [_value(value) for value in loaded.graph.inputs],
        "outputs": [_value(value) for value in loaded.graph.outputs],
        "operators": dict(sorted(operators.items())),
        "parameters": int(sum(graph.stored(one.value).size for one in masking.parameters(loaded.graph))),
        "layers": [cost.record() for cost in costs] if costs is not None else [],
        **({"unread": reason} if costs is None else {}),
        "keep_ratio": metrics.keep_ratio(costs) if costs is not None else None,
        "ebops": metrics.ebops(costs) if costs is not None else None,
        "pipeline": loaded.metadata_props.get(names.PIPELINE, ""),
    }


def ebops(model: str | Path, convention: str = DEFAULT.name) -> dict[str, Any]:
    """The bit operations of each node of a model, their total, and the operators that compute and are not counted.

    Args:
        model: a file or the name of a reference model.
        convention: the name of what counts.
    """
    chosen = named(convention)
    loaded = resolve(model).load()
    pipeline.run(loaded, "normalize,raise-bits")
    costs = metrics.Probe(loaded, chosen).costs({})
    parts = ("products", "additions", "ebops")
    return {
        "convention": chosen.name,
        "nodes": [
            {"name": one.name, "operator": one.operator, **{part: getattr(one, part) for part in parts}}
            for one in costs
        ],
        "total": {part: metrics.whole(sum(getattr(one, part) for one in costs)) for part in parts},
        "uncounted": counting.uncounted(loaded.graph),
    }


def _value(value: ir.Value) -> dict[str, Any]:
    dims = () if value.shape is None else value.shape.dims
    shape = [dim if isinstance(dim, int) else str(dim) for dim in dims]
    return {"name": value.name, "type": str(value.dtype).lower().removeprefix("datatype."), "shape": shape}


@dataclass(frozen=True)
class Difference:
    """How one output of two models differs: how many values of how many, and by how much at most."""

    output: str
    values: int
    different: int
    largest: float


def diff(a: str | Path, b: str | Path, data_path: Path | None = None, rows: int = DIFF_ROWS) -> list[Difference]:
    """Run two models on the same inputs and compare their outputs in order.

    Args:
        a: a file or the name of a reference model; likewise `b`.
        data_path: an .npz with arrays by input name, or None for random inputs.
        rows: how many rows of them.

    Raises:
        DataError: the two take different inputs.
    """
    first, second = resolve(a).load(), resolve(b).load()
    feeds = _feeds(first, data_path, rows)
    wanted = {name: array.shape[1:] for name, array in sample(second, 1).items()}
    if wanted != {name: array.shape[1:] for name, array in feeds.items()}:
        raise DataError(
            f"the inputs differ: {_listed(first)} against {_listed(second)}", hint="compare models of one network"
        )
    found = [list(engine.evaluate(model, feeds).items()) for model in (first, second)]
    return [
        _difference(name if name == other else f"{name} / {other}", left, right)
        for (name, left), (other, right) in zip(*found, strict=False)
    ]


def _feeds(model: ir.Model, path: Path | None, rows: int) -> dict[str, np.ndarray]:
    feeds = sample(model, batch_size(model) or rows)
    if path is None:
        return feeds
    arrays = data.samples(path, [value for value in model.graph.inputs if value.name in feeds])
    return {name: data.as_float(arrays[name][: len(feeds[name])]) for name in feeds}


def _listed(model: ir.Model) -> str:
    """The inputs with their shapes, without the rows."""
    return ", ".join(f"{name} {list(array.shape[1:])}" for name, array in sample(model, 1).items())


def _difference(name: str, left: np.ndarray, right: np.ndarray) -> Difference:
    if left.shape != right.shape:
        raise DataError(f"output '{name}' has the shapes {list(left.shape)} and {list(right.shape)}")
    equal = (left == right) | (np.isnan(left) & np.isnan(right))
    largest = float(np.abs(left.astype(np.float64) - right)[~equal].max(initial=0.0))
    return Difference(name, left.size, int((~equal).sum()), largest)
