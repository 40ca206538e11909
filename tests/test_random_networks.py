"""Random networks of the operators that train: import, gradient, quantization and export of each."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from operator_cases import CASES, STARTS, Case
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from pqc import engine, graph, pipeline
from pqc.errors import PqcError
from pqc.workflows.compression import FINALIZE
from pqc.workflows.importing import Request, import_model

WIDTH, ROWS = 8, 5
ATTRIBUTES = r"""(<(?:"[^"]*"|[^>"])*>)"""
# ONNX 1.17's own check fails where it has no axes.
EXCLUDED = {"MeanVarianceNormalization"}
FORM = "normalize,fold-constants,fold-batchnorm,lower-gemm,expand-layernorm,expand-softmax,legalize"
QUANTIZED = f"{FORM},insert-quant{{weights=1,1,4 inputs=1,4,6 outputs=1,4,6}},insert-masks"


def renamed(case: Case, prefix: str) -> str:
    """The nodes of a case with names of their own; x, the input of the network, keeps its name."""
    start = "".join(text for name, text in STARTS.items() if re.search(rf"\b{name}\b", _plain(case.text)))

    def fresh(match: re.Match[str]) -> str:
        return match.group() if match.group() == "x" else f"{prefix}{match.group()}"

    parts = re.split(ATTRIBUTES, start + case.text)
    return "".join(part if part.startswith("<") else re.sub(r"\b[a-z]\w*", fresh, part) for part in parts)


def _plain(text: str) -> str:
    return re.sub(ATTRIBUTES, "", text)


@cache
def width_behind(name: str) -> int | None:
    """How many numbers a row has behind a case, or None where rows do not stay rows."""
    model = CASES[name].build()
    node = next(node for node in model.graph if node.outputs[0].name == "y")
    model.graph.outputs[:] = [node.inputs[0]]
    shapes = []
    for rows in (3, ROWS):
        x = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
        try:
            shapes.append(next(iter(engine.evaluate(model, {"x": x}).values())).shape)
        except PqcError:
            return None
    kept = all(len(shape) > 1 and shape[0] == rows for shape, rows in zip(shapes, (3, ROWS), strict=True))
    return int(np.prod(shapes[0][1:])) if kept and shapes[0][1:] == shapes[1][1:] else None


COMPOSABLE = sorted(name for name in CASES if name not in EXCLUDED and width_behind(name) is not None)


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """One to three cases in a row, a dense layer before each and a Tanh that keeps their numbers small."""
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    text, arrays, value, width = "", {}, "x", WIDTH
    for number, name in enumerate(draw(st.lists(st.sampled_from(COMPOSABLE), min_size=1, max_size=3))):
        case, prefix = CASES[name], f"k{number}"
        inner = 64 if "c" in re.findall(r"\w+", _plain(case.text)) else WIDTH
        arrays |= {f"{prefix}w": random.normal(0, 0.8 * width**-0.5, (width, inner))}
        arrays |= {f"{prefix}b": random.normal(0, 0.2, inner)}
        arrays |= {f"{prefix}{key}": array for key, array in case.arrays.items()}
        arrays |= {f"{prefix}c__shape": np.array([0, 4, 4, 4])} if inner == 64 else {}
        text += f"{prefix}h = MatMul ({value}, {prefix}w) {prefix}a = Add ({prefix}h, {prefix}b) "
        text += f"{renamed(case, prefix)} {prefix}f = Flatten ({prefix}s) {prefix}z = Tanh ({prefix}f) "
        value, width = f"{prefix}z", width_behind(name) or 0
    arrays |= {"out__w": random.normal(0, width**-0.5, (width, 3))}
    return onnx_model(f"(float[n,{WIDTH}] x) => (float[n,3] y) {{ {text} y = MatMul ({value}, out__w) }}", **arrays)


def rows(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (ROWS, WIDTH)).astype(np.float32)


def assert_imports(model: ir.Model) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source.onnx", Path(folder) / "out.onnx"
        graph.save(model, source)
        report = import_model(Request(str(source)), out)
        assert (report["batch"], report["trains"]) == ("free", "yes")
        assert report["difference"] <= 1e-5


def assert_differentiates(model: ir.Model) -> None:
    """Along the gradient, and along a direction that has nothing to do with it."""
    pipeline.run(model, f"{FORM},attach-loss{{loss=mse}},expose-parameters")
    feeds = {"x": rows(), "target": np.random.default_rng(2).normal(0, 1, (ROWS, 3)).astype(np.float32)}
    forward = engine.Session(model)
    theta = graph.stored(model.graph.initializers["theta"]).copy()
    pipeline.run(model, "differentiate")
    gradient = engine.evaluate(model, {**feeds, "theta": theta})["theta_grad"].astype(np.float64)
    length = float(np.linalg.norm(gradient))
    assume(length > 1e-4)
    random = np.random.default_rng(3).normal(size=len(theta))
    for direction in (gradient / length, random / np.linalg.norm(random)):
        found = []
        for step in (2e-3, 1e-3):
            losses = [_loss(forward, feeds, theta + sign * step * direction) for sign in (1, -1)]
            found.append((losses[0] - losses[1]) / (2 * step))
        # float32 gives the loss to about 1e-7 of its size; a kink within a step shows as two that differ.
        bound = 2e-2 * length + 2 * abs(found[0] - found[1]) + 1e-3 * abs(losses[0])
        assert abs(found[1] - gradient @ direction) <= bound


def _loss(session: engine.Session, feeds: dict[str, np.ndarray], theta: np.ndarray) -> float:
    return float(session.run({**feeds, "theta": theta.astype(np.float32)})["loss"])


def assert_quantizes_and_exports(model: ir.Model) -> None:
    """The clean graph gives what the quantized one gives, by the engine and by qonnx."""
    pipeline.run(model, QUANTIZED)
    for name, value in model.graph.initializers.items():
        if name.endswith(".s"):  # a gate of either sign for each weight
            gates = np.random.default_rng(len(name)).normal(0.5, 1, value.shape)
            graph.set_initializer(value, gates.astype(np.float32))
    pipeline.run(model, "freeze-masks")
    wanted = engine.evaluate(model, {"x": rows()}, fuse=False)["y"]
    assert np.array_equal(wanted * 64, np.round(wanted * 64))
    pipeline.run(model, FINALIZE)
    assert np.array_equal(engine.evaluate(model, {"x": rows()}, fuse=False)["y"], wanted)
    pipeline.run(model, f"fix-batch{{size={ROWS}}}")  # qonnx knows no free lengths
    executed = execute_onnx(ModelWrapper(graph.to_proto(model)), {"x": rows()})["y"]
    assert np.abs(executed - wanted).max() <= 1 / 64


# Where an operator hides a length from ONNX's shape inference, qonnx says that it found another one.
@pytest.mark.filterwarnings("ignore:Output shapes disagree:UserWarning")
@settings(max_examples=25)
@given(networks())
def test_random_network(model: ir.Model) -> None:
    """Import, gradient, quantization, export."""
    assert_imports(graph.copy(model))
    assert_differentiates(graph.copy(model))
    assert_quantizes_and_exports(model)


def test_most_operators_take_part() -> None:
    assert len(COMPOSABLE) > 150
    assert {name.split(",")[0] for name in COMPOSABLE} >= {"Einsum", "TopK", "Gather", "CumSum", "Pad", "LRN"}
