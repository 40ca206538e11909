"""Random networks of the operators that train: import, gradient, quantization and export of each."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import layer_cases
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
FORM = "normalize,fold-constants,{batch_norm}lower-gemm,expand-layernorm,expand-softmax,legalize"
BATCH_NORM = {"fold": "fold-batchnorm,", "train": "train-batchnorm,"}
QUANTIZED = f"{FORM},insert-quant{{{{weights=1,1,4 inputs=1,4,6 outputs=1,4,6}}}},insert-masks"


@dataclass(frozen=True)
class Piece:
    """Nodes from `a` [n, width], what a dense layer with a bias gives, to `s`.

    Args:
        width: how many numbers `a` has.
        text: the nodes; `x` is the input of the network.
        arrays: the constants that they read.
        opset: that they are written in.
    """

    width: int
    text: str
    arrays: Mapping[str, object]
    opset: int = graph.OPSET

    def renamed(self, prefix: str) -> str:
        """The nodes with names of their own; x keeps its name."""

        def fresh(match: re.Match[str]) -> str:
            return match.group() if match.group() == "x" else f"{prefix}{match.group()}"

        parts = re.split(ATTRIBUTES, self.text)
        return "".join(part if part.startswith("<") else re.sub(r"\b[a-z]\w*", fresh, part) for part in parts)

    @cached_property
    def width_behind(self) -> int | None:
        """How many numbers a row has behind the piece, or None where rows do not stay rows."""
        model = onnx_model(
            f"(float[n,{WIDTH}] x, float[n,{self.width}] a) => (s) {{ {self.text} }}", opset=self.opset, **self.arrays
        )
        shapes = []
        for count in (3, ROWS):
            random = np.random.default_rng(0)
            feeds = {"x": random.normal(size=(count, WIDTH)), "a": random.normal(size=(count, self.width))}
            known = {value.name for value in model.graph.inputs}
            try:
                found = engine.evaluate(model, {k: v.astype(np.float32) for k, v in feeds.items() if k in known})
            except PqcError:
                return None
            shapes.append(next(iter(found.values())).shape)
        kept = all(len(shape) > 1 and shape[0] == count for shape, count in zip(shapes, (3, ROWS), strict=True))
        return int(np.prod(shapes[0][1:])) if kept and shapes[0][1:] == shapes[1][1:] else None


def of_operator(case: Case) -> Piece:
    """A case of one operator."""
    plain = re.sub(ATTRIBUTES, "", case.text)
    start = "".join(text for name, text in STARTS.items() if re.search(rf"\b{name}\b", plain))
    image = re.search(r"\bc\b", plain) is not None
    arrays = {"c__shape": np.array([0, 4, 4, 4])} if image else {}
    return Piece(64 if image else WIDTH, start + case.text, {**arrays, **case.arrays})


def of_layer(case: layer_cases.Case) -> Piece:
    """A case of a layer, with what comes before it."""
    arrays = {"given__form": np.array([0, *case.x]), "before": case.before(), **case.arrays}
    text = f"given = Reshape (a, given__form) h = {'MatMul' if case.dense else 'Conv'} (given, before) {case.nodes}"
    return Piece(int(np.prod(case.x)), text, arrays, case.opset)


def batch_norm(layer: str, form: tuple[int, ...], **arrays: np.ndarray) -> Piece:
    """A batch normalization behind `layer`, which reads i [n, 4, ...]."""
    random = np.random.default_rng(len(form))
    vectors = {"g": random.uniform(-1.5, 1.5, 4), "b": random.normal(0, 0.5, 4)}
    vectors |= {"m": random.normal(0, 0.3, 4), "v": random.uniform(0.3, 1.5, 4)}
    text = f"i = Reshape (a, form) h = {layer} s = BatchNormalization <epsilon: float = 0.01> (h, g, b, m, v)"
    return Piece(int(np.prod(form)), text, {"form": np.array([0, *form]), **vectors, **arrays})


NORMS = {
    "a dense layer": batch_norm("MatMul (i, w)", (4,), w=layer_cases.normal(4, 4)),
    "a convolution": batch_norm("Conv (i, w, c)", (4, 3, 3), w=layer_cases.normal(4, 4, 2, 2), c=layer_cases.normal(4)),
    "a depthwise one": batch_norm("Conv <group: int = 4> (i, w)", (4, 5), w=layer_cases.normal(4, 1, 3)),
    "an activation": batch_norm("Relu (i)", (4, 2, 3)),
    "a mean": batch_norm("ReduceMean <keepdims: int = 0> (i, k)", (4, 3), k=np.array([2])),
}
PIECES = {name: of_operator(case) for name, case in CASES.items() if name not in EXCLUDED and not case.fixed}
PIECES |= {f"layer {name}": of_layer(case) for name, case in layer_cases.CASES.items() if case.opset == graph.OPSET}
PIECES |= {f"batch normalization of {name}": piece for name, piece in NORMS.items()}


@cache
def composable() -> list[str]:
    """The pieces that rows go through as rows."""
    return sorted(name for name, piece in PIECES.items() if piece.width_behind is not None)


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """One to three pieces in a row, a dense layer before each and a Tanh that keeps their numbers small.

    Half of the pieces are of one operator, the others layers and batch normalizations.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    layers_ = [name for name in composable() if name not in CASES]
    choices = st.one_of(*(st.sampled_from(names) for names in (_operators(), layers_)))
    text, arrays, value, width = "", {}, "x", WIDTH
    for number, name in enumerate(draw(st.lists(choices, min_size=1, max_size=3))):
        piece, prefix = PIECES[name], f"k{number}"
        arrays |= {f"{prefix}w0": random.normal(0, 0.8 * width**-0.5, (width, piece.width))}
        arrays |= {f"{prefix}b0": random.normal(0, 0.2, piece.width)}
        arrays |= {f"{prefix}{key}": array for key, array in piece.arrays.items()}
        text += f"{prefix}h0 = MatMul ({value}, {prefix}w0) {prefix}a = Add ({prefix}h0, {prefix}b0) "
        text += f"{piece.renamed(prefix)} {prefix}f0 = Flatten ({prefix}s) {prefix}z0 = Tanh ({prefix}f0) "
        value, width = f"{prefix}z0", piece.width_behind or 0
    arrays |= {"out__w": random.normal(0, width**-0.5, (width, 3))}
    return onnx_model(f"(float[n,{WIDTH}] x) => (float[n,3] y) {{ {text} y = MatMul ({value}, out__w) }}", **arrays)


def _operators() -> list[str]:
    return [name for name in composable() if name in CASES]


def rows(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (ROWS, WIDTH)).astype(np.float32)


def assert_imports(model: ir.Model) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source.onnx", Path(folder) / "out.onnx"
        graph.save(model, source)
        report = import_model(Request(str(source)), out)
        assert (report["batch"], report["trains"]) == ("free", "yes")
        assert report["difference"] <= 1e-5


def assert_differentiates(model: ir.Model, batch_norm: str) -> None:
    """Along the gradient, and along a direction that has nothing to do with it."""
    statistics = "attach-statistics," if batch_norm == "train" else ""
    form = FORM.format(batch_norm=BATCH_NORM[batch_norm])
    pipeline.run(model, f"{form},attach-loss{{loss=mse}},{statistics}expose-parameters")
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
        for step in (4e-3, 2e-3, 1e-3):
            losses = [_loss(forward, feeds, theta + sign * step * direction) for sign in (1, -1)]
            found.append((losses[0] - losses[1]) / (2 * step))
        # float32 gives the loss to about 1e-7 of its size; kinks and jumps within a step show as differences that differ.
        bound = 2e-2 * length + 2 * float(np.ptp(found)) + 1e-3 * abs(losses[0])
        assert abs(found[-1] - gradient @ direction) <= bound


def _loss(session: engine.Session, feeds: dict[str, np.ndarray], theta: np.ndarray) -> float:
    return float(session.run({**feeds, "theta": theta.astype(np.float32)})["loss"])


def assert_quantizes_and_exports(model: ir.Model, batch_norm: str) -> None:
    """The clean graph gives what the quantized one gives, by the engine and by qonnx."""
    pipeline.run(model, QUANTIZED.format(batch_norm=BATCH_NORM[batch_norm]))
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
@settings(max_examples=16)
@given(networks(), st.sampled_from(sorted(BATCH_NORM)))
def test_random_network(model: ir.Model, batch_norm: str) -> None:
    """Import, gradient, quantization, export."""
    assert_imports(graph.copy(model))
    assert_differentiates(graph.copy(model), batch_norm)
    assert_quantizes_and_exports(graph.copy(model), batch_norm)


def test_most_operators_and_layers_take_part() -> None:
    assert len(_operators()) > 150
    assert {name.split(",")[0] for name in _operators()} >= {"Einsum", "TopK", "Gather", "CumSum", "Pad", "LRN"}
    others = [name for name in composable() if name not in CASES]
    assert len(others) > 120
    words = {word for name in others for word in name.split()}
    assert words >= {"LSTM", "GRU", "RNN", "AveragePool", "MaxPool", "resize", "group", "instance", "batch"}
    assert {f"layer {name}" for name in layer_cases.CONV_TRANSPOSE} <= set(others)
