"""The lowering passes: text before and after, what they leave alone, and that values stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from hardware_networks import Network

from pqc import graph
from pqc.hardware.compare import reference
from pqc.passes.lower_conv import LowerConv
from pqc.passes.lower_gemm import LowerGemm
from pqc.passes.lower_pool import LowerPool
from pqc.passes.lower_reshape import LowerReshape
from pqc.passes.lower_scales import LowerScales
from pqc.passes.strip_softmax import StripSoftmax
from pqc.rewriting import Pass

RNG = np.random.default_rng(5)


def listing(model: ir.Model) -> list[str]:
    """One line a node: outputs, operator, inputs, attributes."""
    rows = []
    for node in model.graph:
        given = ", ".join(f"{name}={attribute.value}" for name, attribute in sorted(node.attributes.items()))
        inputs = ", ".join(value.name or "" for value in node.inputs if value is not None)
        rows.append(f"{node.outputs[0].name} = {node.op_type}({inputs}){' ' + given if given else ''}")
    return rows


def apply(step: Pass, model: ir.Model) -> int:
    """Run a pass twice: the second time it must find nothing."""
    changed = step.rewrite(model)
    assert step.rewrite(model) == 0, "not idempotent"
    graph.to_proto(model)
    return changed


def test_strip_softmax() -> None:
    model = onnx_model("(float[N, 4] x) => (float[N, 4] y) { z = Relu(x) y = Softmax<axis = -1>(z) }")
    assert apply(StripSoftmax(), model) == 1
    assert listing(model) == ["y = Relu(x)"]


@pytest.mark.parametrize(
    "text",
    [
        "(float[N, 4] x) => (float[N, 4] y) { z = Relu(x) s = Softmax(z) y = Relu(s) }",
        "(float[N, 4] x) => (float[N, 4] y, float[N, 4] w) { z = Relu(x) y = Sigmoid(z) w = Relu(y) }",
        "(float[N, 4] x) => (float[N, 4] y) { y = Softmax(x) }",
        "(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }",
    ],
)
def test_strip_softmax_leaves_alone(text: str) -> None:
    model = onnx_model(text)
    before = listing(model)
    assert apply(StripSoftmax(), model) == 0
    assert listing(model) == before


GEMM = "(float[N, 4] x) => (float[N, 3] y) { y = Gemm<%s>(x, w, b) }"


def test_lower_gemm() -> None:
    weight = RNG.normal(size=(3, 4)).astype(np.float32)
    model = onnx_model(GEMM % "transB = 1", w=weight, b=np.zeros(3, np.float32))
    assert apply(LowerGemm(), model) == 1
    assert [row.split(" = ")[1] for row in listing(model)] == ["MatMul(x, w)", f"Add({_first(model)}, b)"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(graph.constant(model.graph.initializers["w"]), weight.T)


def _first(model: ir.Model) -> str | None:
    return model.graph.node(0).outputs[0].name


def test_lower_gemm_without_a_bias() -> None:
    model = onnx_model(
        "(float[N, 4] x) => (float[N, 3] y) { y = Gemm(x, w) }", w=RNG.normal(size=(4, 3)).astype(np.float32)
    )
    assert apply(LowerGemm(), model) == 1
    assert listing(model) == ["y = MatMul(x, w)"]


def test_lower_gemm_transposes_behind_a_quant() -> None:
    net = Network(4)
    model = net.model(net.op("Gemm", net.quant(net.x, 8, 4), net.weight(3, 4), net.weight(3), transB=1))
    samples = RNG.normal(size=(20, 4)).astype(np.float32)
    before = reference(model, samples)[0]
    assert apply(LowerGemm(), model) == 1
    np.testing.assert_array_equal(reference(model, samples)[0], before)


@pytest.mark.parametrize("attributes", ["alpha = 0.5", "beta = 2.0", "transA = 1"])
def test_lower_gemm_leaves_alone(attributes: str) -> None:
    model = onnx_model(GEMM % attributes, w=np.ones((4, 3), np.float32), b=np.zeros(3, np.float32))
    before = listing(model)
    assert apply(LowerGemm(), model) == 0
    assert listing(model) == before


def test_lower_gemm_leaves_a_shared_weight_alone() -> None:
    model = onnx_model(
        "(float[N, 3] x) => (float[N, 3] y) { a = Gemm<transB = 1>(x, w) y = MatMul(a, w) }",
        w=np.ones((3, 3), np.float32),
    )
    assert apply(LowerGemm(), model) == 0


@pytest.mark.parametrize("target", [[-1, 12], [0, -1], [0, 12], [1, 12]])
def test_lower_reshape(target: list[int]) -> None:
    model = onnx_model(
        "(float[N, 3, 4] x) => (float[N, 12] y) { y = Reshape(x, shape) }", shape=np.array(target, np.int64)
    )
    assert apply(LowerReshape(), model) == 1
    assert listing(model) == ["y = Flatten(x) axis=1"]
    assert not model.graph.initializers


@pytest.mark.parametrize("target", [[0, 4, 3], [-1, 6], [-1, 24]])
def test_lower_reshape_leaves_alone(target: list[int]) -> None:
    model = onnx_model("(float[N, 3, 4] x) => (float y) { y = Reshape(x, shape) }", shape=np.array(target, np.int64))
    assert apply(LowerReshape(), model) == 0


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
def test_lower_pool(kind: str) -> None:
    model = onnx_model(f"(float[N, 3, 4, 5] x) => (float[N, 3, 1, 1] y) {{ y = Global{kind}(x) }}")
    assert apply(LowerPool(), model) == 1
    assert listing(model) == [f"y = {kind}(x) kernel_shape=(4, 5), pads=(0, 0, 0, 0), strides=(4, 5)"]


def test_lower_pool_writes_defaults() -> None:
    text = '(float[N, 3, 4, 5] x) => (float y) { y = MaxPool<kernel_shape = [2, 2], auto_pad = "VALID">(x) }'
    model = onnx_model(text)
    assert apply(LowerPool(), model) == 1
    assert listing(model) == ["y = MaxPool(x) kernel_shape=(2, 2), pads=(0, 0, 0, 0), strides=(1, 1)"]


def test_lower_pool_leaves_alone() -> None:
    model = onnx_model("(float[N, 3, H, 5] x) => (float[N, 3, 1, 1] y) { y = GlobalMaxPool(x) }")
    assert apply(LowerPool(), model) == 0
    same = '(float[N, 3, 4, 5] x) => (float y) { y = MaxPool<kernel_shape = [2, 2], auto_pad = "SAME_UPPER">(x) }'
    assert apply(LowerPool(), onnx_model(same)) == 0


CONV = "(float[N, 4, 9, 9] x) => (float[N, M, A, B] y) { y = Conv%s(x, w) }"


@pytest.mark.parametrize(
    ("shape", "attributes", "kernel", "group"),
    [
        ((4, 4, 2, 2), "", (4, 4, 2, 2), 1),
        ((4, 4, 3, 2), "<dilations = [2, 3]>", (4, 4, 5, 4), 1),
        ((4, 1, 3, 3), "<group = 4>", (4, 1, 3, 3), 4),
        ((4, 1, 3, 3), "<group = 4, dilations = [2, 2]>", (4, 1, 5, 5), 4),
        ((8, 1, 3, 3), "<group = 4>", (8, 4, 3, 3), 1),
        ((6, 2, 3, 3), "<group = 2, strides = [2, 1], pads = [1, 0, 0, 1]>", (6, 4, 3, 3), 1),
    ],
)
def test_lower_conv(shape: tuple[int, ...], attributes: str, kernel: tuple[int, ...], group: int) -> None:
    """Integers, so that float32 is exact in any order."""
    weight = RNG.integers(-9, 10, shape).astype(np.float32)
    model = onnx_model(CONV % attributes, w=weight)
    samples = RNG.integers(-9, 10, (3, 4, 9, 9)).astype(np.float32)
    before = reference(model, samples)[0]
    assert apply(LowerConv(), model) == 1
    node = model.graph.node(0)
    assert graph.constant(node.inputs[1]).shape == kernel  # type: ignore[union-attr]
    assert (node.attributes["group"].as_int(), set(node.attributes["dilations"].as_ints())) == (group, {1})
    np.testing.assert_array_equal(reference(model, samples)[0], before)


def test_lower_conv_leaves_alone() -> None:
    shared = onnx_model(
        "(float[N, 4, 9, 9] x) => (float y) { a = Conv<group = 4>(x, w) b = Conv<group = 4>(x, w) y = Add(a, b) }",
        w=np.ones((8, 1, 1, 1), np.float32),
    )
    LowerConv().rewrite(shared)
    assert [node.attributes["group"].as_int() for node in list(shared.graph)[:2]] == [4, 4]
    computed = onnx_model("(float[N, 4, 9, 9] x, float[4, 4, 1, 1] w) => (float y) { y = Conv(x, w) }")
    assert apply(LowerConv(), computed) == 0


def _quant(model_weights: np.ndarray, scale: object, bits: object, *, zero: object = 0.0, narrow: int = 0) -> ir.Model:
    net = Network(model_weights.shape[0])
    parts = [net.constant(np.asarray(part, np.float32)) for part in (model_weights, scale, zero, bits)]
    given = {"signed": 1, "narrow": narrow, "rounding_mode": "ROUND"}
    weight = net.op("Quant", *parts, domain=graph.QONNX, **given)
    return net.model(net.op("MatMul", net.quant(net.x, 8, 4), weight))


def _parameters(model: ir.Model) -> list[object]:
    quant = next(node for node in model.graph if graph.constant(node.inputs[0]) is not None)
    arrays = [graph.constant(value) for value in quant.inputs[1:]]
    assert all(array is not None and array.ndim == 0 for array in arrays)
    return [float(array) for array in arrays if array is not None]


@pytest.mark.parametrize(
    ("weights", "scale", "bits", "found"),
    [
        ([[0.5, 0.25], [-1.5, 0.75]], [[0.5, 0.25]], 3.0, [0.25, 0.0, 4.0]),
        ([[0.5, 0.25], [-1.5, 0.75]], 0.25, [[4.0, 3.0]], [0.25, 0.0, 4.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [[0.5, 0.25]], 3.0, [0.25, 0.0, 2.0]),
        ([[-8.0, 0.25], [0.0, 0.0]], [[2.0, 0.25]], 3.0, [0.25, 0.0, 7.0]),
        ([[0.5], [0.25]], [[0.25]], [3.0], [0.25, 0.0, 3.0]),
    ],
)
def test_lower_scales(weights: object, scale: object, bits: object, found: list[float]) -> None:
    model = _quant(np.array(weights, np.float32), scale, bits)
    samples = RNG.normal(size=(20, 2)).astype(np.float32)
    before = reference(model, samples)[0] if np.size(bits) == 1 else None  # qonnx has one width a tensor
    assert apply(LowerScales(), model) == 1
    assert _parameters(model) == found
    after = reference(model, samples)[0]
    np.testing.assert_array_equal(after, after if before is None else before)
    np.testing.assert_array_equal(reference(model, np.eye(2, dtype=np.float32))[0], np.array(weights, np.float32))


@pytest.mark.parametrize(("scale", "zero"), [([[0.3, 0.25]], 0.0), ([[0.5, 0.25]], 1.0), ([[4.0, 0.25]], 0.0)], ids=str)
def test_lower_scales_leaves_alone(scale: object, zero: float) -> None:
    model = _quant(np.array([[0.5, 0.25], [-1.5, 0.75]], np.float32), scale, 3.0, zero=zero)
    before = listing(model)
    assert apply(LowerScales(), model) == 0
    assert listing(model) == before
