"""Quantizers that change nothing are taken out, and no others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model

from pqc import engine, graph, layers, library, pipeline
from pqc.quantizer import Quantizer
from pqc.quantizer_nodes import QuantizerWriter

QUANT = 'qonnx.custom_op.general.Quant <signed: int = {}, narrow: int = {}, rounding_mode: string = "{}">'
X = np.concatenate([np.linspace(-40, 40, 4001), np.random.default_rng(0).normal(0, 3, 3999)]).astype(np.float32)


def chain(between: str, first: str, second: str) -> ir.Model:
    """Two quantizers k,i,f or with words, and what lies between them."""
    model = onnx_model(f"(float[n,4,2,2] x) => (y) {{ {between} }}")
    return quantize(model, {"x": first, "y": second})


def quantize(model: ir.Model, kinds: dict[str, str]) -> ir.Model:
    pipeline.run(model, "normalize")
    writer = QuantizerWriter(model.graph, "ROUND")
    values = {value.name: value for value in graph.values(model.graph)}
    for name, kind in kinds.items():
        writer.quantize(values[name], Quantizer.parse(kind), None)
    library.link(model)
    return model


def merged(model: ir.Model) -> int:
    """How many go; what is computed stays, bit for bit."""
    feeds = {"x": X.reshape(-1, 4, 2, 2)}
    before = engine.evaluate(model, feeds, fuse=False)
    changed = pipeline.run(model, "merge-quant")[0].changed
    after = engine.evaluate(model, feeds, fuse=False)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
        assert np.ptp(array) > 0
    assert pipeline.run(model, "merge-quant")[0].changed == 0
    return changed


@pytest.mark.parametrize("words", ["", "/TRN", "/RND", "/SAT_SYM/RND_INF", "/WRAP", "/WRAP_SM/RND"])
@pytest.mark.parametrize(
    ("first", "second", "gone"),
    [
        ("1,2,3", "1,3,4", 1),
        ("0,2,3", "0,2,3", 1),
        ("0,2,3", "1,2,3", 1),
        ("1,2,3", "1,3,2", 0),
        ("1,3,3", "1,2,4", 0),
        ("1,2,3", "0,3,4", 0),
    ],
)
def test_a_second_quantizer(first: str, second: str, gone: int, words: str) -> None:
    if "WRAP_SM" in words and second.startswith("0"):
        return  # it needs a sign
    # WRAP_SM folds back what lies in its range, too.
    assert merged(chain("y = Identity (x)", first, second + words)) == (0 if "WRAP_SM" in words else gone)


@pytest.mark.parametrize(
    ("second", "gone"),
    [("1,2,3", 1), ("1,2,3/SAT_SYM", 0), ("1,2,3/WRAP_SM", 0), ("1,2,3/WRAP", 1), ("1,2,4/SAT_SYM", 0)],
)
def test_the_lowest_number_counts(second: str, gone: int) -> None:
    assert merged(chain("y = Identity (x)", "1,2,3", second)) == gone


@pytest.mark.parametrize(
    ("between", "gone"),
    [
        ("y = Relu (x)", 1),
        ("y = MaxPool <kernel_shape: ints = [2,2]> (x)", 1),
        ("y = Flatten (x)", 1),
        ("y = Transpose <perm: ints = [0,2,3,1]> (x)", 1),
        ("r = Relu (x) t = Transpose <perm: ints = [0,3,2,1]> (r) y = Flatten (t)", 1),
        ("y = Concat <axis: int = 1> (x, x)", 1),
        ("y = Add (x, x)", 0),
        ("y = Tanh (x)", 0),
        ("y = AveragePool <kernel_shape: ints = [2,2]> (x)", 0),
        ("y = LeakyRelu (x)", 0),
    ],
)
@pytest.mark.parametrize("first", ["1,2,3", "1,2,3/per_channel", "1,2,3/per_element/RND"])
def test_what_keeps_a_grid(between: str, gone: int, first: str) -> None:
    assert merged(chain(between, first, "1,2,3")) == gone


def test_relu_needs_no_sign() -> None:
    assert merged(chain("y = Relu (x)", "1,2,3", "0,2,3")) == 1


def test_each_channel_counts() -> None:
    for scale, gone in ([0.125, 0.25, 0.125, 0.5], 1), ([0.125, 0.0625, 0.125, 0.5], 0):
        model = chain("y = Relu (x)", "1,2,3/per_channel", "1,6,3/per_channel")
        value = model.graph.initializers["x.quant.scale"]
        graph.set_initializer(value, np.array(scale, np.float32).reshape(1, 4, 1, 1))
        assert merged(model) == gone


def test_a_join_of_grids_is_their_hull() -> None:
    text = "r = Relu (x) n = Neg (x) y = Concat <axis: int = 1> (r, n)"
    model = onnx_model(f"(float[n,4,2,2] x) => (y) {{ {text} }}")
    assert merged(quantize(model, {"r": "0,2,3", "n": "1,4,1", "y": "1,4,3"})) == 1
    model = onnx_model(f"(float[n,4,2,2] x) => (y) {{ {text} }}")
    assert merged(quantize(model, {"r": "0,2,3", "n": "1,4,1", "y": "1,4,2"})) == 0
    model = onnx_model(f"(float[n,4,2,2] x) => (y) {{ {text} }}")
    assert merged(quantize(model, {"r": "0,2,3", "y": "1,4,3"})) == 0


def test_equal_quantizers_of_one_value_are_one() -> None:
    node = QUANT.format(1, 0, "ROUND")
    text = f"a = {node} (x, s, z, b) b1 = {node} (x, s1, z, b) c = {node} (x, s2, z, b) t = Sub (a, b1) y = Sub (t, c)"
    model = onnx_model(
        f"(float[n,4,2,2] x) => (float[n,4,2,2] y) {{ {text} }}", s=0.125, s1=0.125, s2=0.25, z=0.0, b=6.0
    )
    assert merged(model) == 1
    assert sum(layers.is_quant(node) for node in model.graph) == 2


@pytest.mark.parametrize("kinds", [("1,2,3/bits", "1,2,3"), ("1,2,3", "1,2,3/bits"), ("1,2,3/bits", "1,2,3/bits")])
def test_learned_bits_stay(kinds: tuple[str, str]) -> None:
    assert merged(chain("y = Relu (x)", *kinds)) == 0


def test_scales_of_other_numbers_stay() -> None:
    node = QUANT.format(1, 0, "FLOOR")
    text = f"a = {node} (x, s, z, b) y = {node} (a, s, z, b)"
    for scale, zero in (0.3, 0.0), (0.5, 1.0):
        model = onnx_model(f"(float[n,4,2,2] x) => (float[n,4,2,2] y) {{ {text} }}", s=scale, z=zero, b=6.0)
        assert merged(model) == 0
