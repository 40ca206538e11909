"""`pqc check-quant`: what is missing, why something may be, and the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import test_cli
from conftest import onnx_model
from test_cli import Run

from pqc import engine, graph, layers, pipeline
from pqc.quantization_check import Finding, gaps
from pqc.workflows import quantization

program = test_cli.pqc
TWO = """(float[n,4] x) => (float[n,3] y) {
    h = MatMul (x, fc1__weight) b = Add (h, fc1__bias) r = Relu (b) s = Reshape (r, shape)
    y = MatMul (s, fc2__weight) }"""
RNG = np.random.default_rng(0)
ARRAYS = {
    "fc1__weight": RNG.normal(size=(4, 4)),
    "fc1__bias": RNG.normal(size=4),
    "fc2__weight": RNG.normal(size=(4, 3)),
    "shape": np.array([-1, 4]),
}


def model(text: str = TWO, passes: str = "normalize", **arrays: Any) -> ir.Model:
    made = onnx_model(text, **(arrays or ARRAYS))
    pipeline.run(made, passes)
    return made


def missing(one: ir.Model) -> list[tuple[str, str]]:
    """Operator and what is to be rounded."""
    return [(gap.finding.operator, str(gap.value.name)) for gap in gaps(one.graph) if gap.finding.fails]


def meant(one: ir.Model) -> list[tuple[str, str]]:
    return [(gap.finding.operator, gap.finding.input) for gap in gaps(one.graph) if not gap.finding.fails]


def test_a_float_model_lacks_all() -> None:
    assert missing(model()) == [
        ("MatMul", "x"),
        ("MatMul", "fc1.weight"),
        ("Add", "fc1.bias"),
        ("MatMul", "r"),
        ("MatMul", "fc2.weight"),
    ]


def test_a_quantized_model_lacks_nothing() -> None:
    quantized = model(passes="normalize,insert-quant")
    assert missing(quantized) == []
    # The sum before its bias, and the logits, are exact.
    assert meant(quantized) == [("Add", "h"), ("output", "y")]
    assert meant(model(passes="normalize,insert-quant{outputs=1,3,4}")) == [("Add", "h")]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("weights=none", [("MatMul", "fc1.weight"), ("MatMul", "fc2.weight")]),
        ("biases=none", [("Add", "fc1.bias")]),
        ("exclude=fc2", [("MatMul", "r"), ("MatMul", "fc2.weight")]),
    ],
)
def test_what_is_left_out_is_missing(option: str, expected: list[tuple[str, str]]) -> None:
    assert missing(model(passes=f"normalize,insert-quant{{{option}}}")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q = Tanh (x) y = Tanh (q)", [("Tanh", "x"), ("Tanh", "q")]),
        ("q = Relu (x) y = Add (q, x)", [("Add", "q"), ("Add", "x")]),
        ("q = MaxPool <kernel_shape: ints = [2]> (x) y = Tanh (q)", [("Tanh", "x")]),
        ("q = Concat <axis: int = 1> (x, x) y = Tanh (q)", [("Tanh", "q")]),
        ("y = Relu (x)", []),
        ("q = Mul (x, half) y = Neg (q)", [("Mul", "x")]),
        ("q = Mul (x, third) y = Neg (q)", [("Mul", "x"), ("Mul", "third")]),
        ("y = Softmax (x)", []),
        ("q = Softmax (x) y = Neg (q)", [("Softmax", "x")]),
        ("y = LeakyRelu (x)", [("LeakyRelu", "x")]),
    ],
)
def test_what_needs_a_grid(text: str, expected: list[tuple[str, str]]) -> None:
    arrays = {"half": np.array(0.375), "third": np.array(1 / 3)}
    used = {name: array for name, array in arrays.items() if name in text}
    made = onnx_model(f"(float[n,2,4] x) => (y) {{ {text} }}", **used)
    pipeline.run(made, "normalize")
    assert missing(made) == expected


def test_the_fix_adds_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    quantized = model(passes="normalize,insert-quant{exclude=fc2 weights=1,0,3}")
    graph.save(quantized, tmp_path / "m.onnx")
    x = RNG.normal(size=(500, 4)).astype(np.float32) * 3
    np.savez(tmp_path / "d.npz", x=x)
    added = quantization.fix_quant(tmp_path / "m.onnx", tmp_path / "out.onnx", data=tmp_path / "d.npz")
    assert sorted(added) == ["fc2.weight.quant", "r.quant"]
    assert not any(one.fails for one in quantization.check_quant(tmp_path / "out.onnx"))
    fixed = graph.load(tmp_path / "out.onnx")
    grids = {str(node.name): layers.grid(node) for node in fixed.graph if layers.is_quant(node)}
    before = {str(node.name): layers.grid(node) for node in quantized.graph if layers.is_quant(node)}
    for name, grid in before.items():
        assert repr(grids[name]) == repr(grid)
    bits, weight = grids["r.quant"], grids["fc2.weight.quant"]
    assert bits is not None and (bits.signed, float(bits.bits)) == (False, 8.0)
    assert weight is not None and (weight.signed, float(weight.bits)) == (True, 8.0)
    # The activation reaches beyond 1, the published default's range.
    assert float(bits.scale) * 256 == 2
    old, new = (engine.evaluate(one, {"x": x})["y"] for one in (quantized, fixed))
    assert 0 < np.abs(old - new).max() < 0.5 < np.abs(old).max()


def test_a_model_that_lacks_nothing_is_written_as_it_is(tmp_path: Path) -> None:
    graph.save(model(passes="normalize,insert-quant"), tmp_path / "m.onnx")
    assert quantization.fix_quant(tmp_path / "m.onnx", tmp_path / "out.onnx") == []
    nodes = [[node.name for node in graph.load(tmp_path / name).graph] for name in ("m.onnx", "out.onnx")]
    assert nodes[0] == nodes[1]


def test_the_verb(tmp_path: Path, program: Run) -> None:
    graph.save(model(), tmp_path / "m.onnx")
    result = program("check-quant", tmp_path / "m.onnx", "--json")
    found = json.loads(result.out)
    assert (result.code, found["ok"], len(found["missing"]), len(found["meant"])) == (1, False, 5, 2)
    assert Finding(**found["missing"][3]) == Finding(
        "MatMul_y", "MatMul", "s", "a quantizer of the activation", "round 'r'"
    )
    result = program("check-quant", tmp_path / "m.onnx", "--fix", tmp_path / "out.onnx")
    assert (result.code, result.out) == (0, f"{tmp_path / 'out.onnx'}\n")
    assert "quantizer of" in result.err and "fc1.weight" in result.err
    result = program("check-quant", tmp_path / "out.onnx", "--json")
    assert (result.code, json.loads(result.out)["missing"]) == (0, [])
    result = program("check-quant", tmp_path / "nosuch.onnx")
    assert result.code == 1 and "nosuch.onnx" in result.err


def test_the_reference_model_after_insertion(tmp_path: Path, program: Run) -> None:
    assert program("check-quant", "jet_tagger").code == 1
    assert program("check-quant", "jet_tagger", "--fix", tmp_path / "q.onnx").code == 0
