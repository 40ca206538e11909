"""Functions of one number, of one operator or many, and the quantizers before and behind them."""

from __future__ import annotations

import numpy as np
import pytest
from activation_forms import FORMS, constants
from conftest import onnx_model

from pqc import layers, pipeline, unary
from pqc.quantization_check import gaps

LAYERS = "(float[n,3] x) => (float[n,2] y) {{ h = MatMul (x, v) {} y = MatMul (a, w) }}"


def made(nodes: str, **arrays: object) -> list[tuple[str, str, int]]:
    """The functions of a graph: what enters, what leaves, how many nodes."""
    found = {name: value for name, value in constants(nodes).items() if name not in arrays}
    weights = {"v": np.ones((3, 3)), "w": np.ones((3, 2))}
    model = onnx_model(LAYERS.format(nodes), **weights, **found, **arrays)
    return [(str(one.x.name), str(one.y.name), len(one.nodes)) for one in unary.functions(model.graph)]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_one_function(name: str) -> None:
    nodes = onnx_model(f"(float[n,3] h) => (float[n,3] a) {{ {FORMS[name]} }}", **constants(FORMS[name])).graph
    assert made(FORMS[name]) == [("h", "a", len(nodes))]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("a = Relu (h)", []),
        ("a = Mul (h, half)", []),
        ("b = Tanh (h) a = Sigmoid (b)", [("h", "b", 1), ("b", "a", 1)]),
        ("b = Relu (h) a = Tanh (b)", [("b", "a", 1)]),
        ("b = Tanh (h) s = Sigmoid (b) a = Mul (b, s)", [("h", "b", 1), ("b", "a", 2)]),
        ("b = Mul (h, half) c = Tanh (b) a = Add (c, one)", [("h", "a", 3)]),
        ("b = MatMul (h, v) c = Tanh (b) a = Add (c, h)", [("b", "c", 1)]),
        ("s = Sigmoid (h) m = Mul (h, s) a = Add (m, s)", [("h", "s", 1)]),
        ("s = Sigmoid (h) m = Mul (h, s) n = MatMul (s, v) a = Add (m, n)", [("h", "s", 1)]),
    ],
)
def test_where_functions_begin_and_end(nodes: str, expected: list[tuple[str, str, int]]) -> None:
    assert made(nodes) == expected


def test_constants_of_many_numbers_are_not_of_one_function() -> None:
    assert made("a = PRelu (h, slope)", slope=np.ones(3)) == []
    assert made("b = Mul (h, half) a = Tanh (b)", half=np.ones(3)) == [("b", "a", 1)]


def test_a_bias_of_one_number_belongs_to_its_layer() -> None:
    model = onnx_model(
        "(float[n,3] x) => (float[n,1] y) { h = MatMul (x, w) b = Add (h, c) y = Tanh (b) }",
        w=np.ones((3, 1)),
        c=np.ones(1),
    )
    assert [one.x.name for one in unary.functions(model.graph)] == ["b"]


def test_a_head_is_not_one() -> None:
    model = onnx_model("(float[n,3] x) => (float[n,3] y) { y = Sigmoid (x) }")
    assert unary.functions(model.graph) == []


@pytest.mark.parametrize("name", FORMS)
def test_quantizers_stand_before_and_behind(name: str) -> None:
    nodes = FORMS[name]
    model = onnx_model(LAYERS.format(nodes), v=np.ones((3, 3)), w=np.ones((3, 2)), **constants(nodes))
    pipeline.run(model, "normalize,insert-quant{inputs=1,3,4}")
    rounded = {node.inputs[0].name for node in model.graph if layers.is_quant(node) and node.inputs[0] is not None}
    assert rounded == {"x", "v", "h", "a", "w"}
    assert not [gap for gap in gaps(model.graph) if gap.finding.fails]
