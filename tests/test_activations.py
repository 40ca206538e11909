"""Activation functions: values and gradients against float64, and how they are quantized."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import CASES

import reference as ref
import reference_quant as quant
from pqc import engine, pipeline
from pqc.functions.standard import GRADIENTS
from pqc.names import layout

Function = Callable[[np.ndarray], np.ndarray]
TRAIN = "normalize,legalize,attach-loss{loss=mse},expose-parameters,differentiate"
ALPHA, GAMMA = float(np.float32(1.67326319217681884765625)), float(np.float32(1.05070102214813232421875))


def elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(x))


FUNCTIONS: dict[str, tuple[str, Function]] = {
    "LeakyRelu": ("a = LeakyRelu <alpha: float = 0.1015625> (h)", quant.leaky_relu),
    "LeakyRelu, negative slope": (
        "a = LeakyRelu <alpha: float = -0.5> (h)",
        lambda x: quant.leaky_relu(x, -0.5),
    ),
    "Elu": ("a = Elu (h)", elu),
    "Elu, alpha": ("a = Elu <alpha: float = 0.75> (h)", lambda x: elu(x, 0.75)),
    "Selu": ("a = Selu (h)", lambda x: GAMMA * elu(x, ALPHA)),
    "Selu, given": (
        "a = Selu <alpha: float = 1.5, gamma: float = 0.5> (h)",
        lambda x: 0.5 * elu(x, 1.5),
    ),
    "Softplus": ("a = Softplus (h)", lambda x: np.logaddexp(x, 0)),
    "Softsign": ("a = Softsign (h)", lambda x: x / (1 + np.abs(x))),
    "HardSigmoid": ("a = HardSigmoid (h)", lambda x: quant.hard_sigmoid(x, 0.2)),
    "HardSigmoid, given": (
        "a = HardSigmoid <alpha: float = 0.25, beta: float = 0.75> (h)",
        lambda x: quant.hard_sigmoid(x, 0.25, 0.75),
    ),
    "HardSwish": ("a = HardSwish (h)", lambda x: x * quant.hard_sigmoid(x, 1 / 6)),
    "Celu": ("a = Celu (h)", elu),
    "Celu, alpha": ("a = Celu <alpha: float = 2.0> (h)", lambda x: np.where(x > 0, x, 2 * np.expm1(x / 2))),
    "Mish": ("a = Mish (h)", lambda x: x * np.tanh(np.logaddexp(x, 0))),
    "hard tanh": ("a = Clip (h, minus, one)", quant.hard_tanh),
    "Gelu": ("a = Gelu (h)", quant.gelu),
    "Gelu, tanh": (
        'a = Gelu <approximate: string = "tanh"> (h)',
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    "Gelu, erf": (
        "d = Div (h, root) e = Erf (d) p = Add (e, one) m = Mul (h, p) a = Mul (m, half)",
        quant.gelu,
    ),
    "SiLU": ("s = Sigmoid (h) a = Mul (h, s)", quant.silu),
    "SiLU, slope": ("g = Mul (h, half) s = Sigmoid (g) a = Mul (h, s)", lambda x: x * ref.sigmoid(x / 2)),
}
CONSTANTS = {"minus": -1.0, "one": 1.0, "half": 0.5, "root": 2**0.5}
# Where a function has a corner, the central difference is between its two slopes.
CORNERS = (0.0, -1.0, 1.0, -2.5, 2.5, -3.0, 3.0)


def constants(nodes: str) -> dict[str, float]:
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: value for name, value in CONSTANTS.items() if name in words}


def trained(name: str, shape: tuple[int, ...]) -> tuple[ir.Model, engine.Session]:
    """y = f(x + b), and the gradient of b: every element of x has its own."""
    nodes = FUNCTIONS[name][0]
    text = ",".join(str(length) for length in shape)
    model = onnx_model(
        f"(float[n,{text}] x) => (float[n,{text}] y) {{ z = MatMul (x, w) h = Add (z, b) {nodes} y = Identity (a) }}",
        w=np.eye(shape[-1]),
        b=np.zeros(shape[-1]),
        **constants(nodes),
    )
    pipeline.run(model, TRAIN)
    return model, engine.Session(model)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=8)
@given(shape=st.sampled_from([(1,), (7,), (2, 5), (3, 1, 4)]), rows=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_values_and_gradients(name: str, shape: tuple[int, ...], rows: int, seed: int) -> None:
    """Values against float64, and the gradient against central differences of the float64 function."""
    function = FUNCTIONS[name][1]
    model, session = trained(name, shape)
    random = np.random.default_rng(seed)
    x = random.normal(0, 2.5, (rows, *shape)).astype(np.float32)
    for corner in CORNERS:
        x = np.where(np.abs(x - corner) < 1e-3, np.float32(corner + 0.01), x)
    target = random.normal(0, 1, x.shape).astype(np.float32)
    found = session.run({"x": x, "target": target})
    exact = x.astype(np.float64)
    loss, dy = ref.mse(function(exact), target)
    # rtol: kernels good to a few ulp; the loss is a mean of squares.
    assert found["loss"] == pytest.approx(loss, rel=2e-6)
    step = 1e-5
    dx = dy * (function(exact + step) - function(exact - step)) / (2 * step)
    gradient = {name: found["theta_grad"][part] for name, part in places(model).items()}["b"]
    # atol: the difference is good to 1e-10, a float32 sum of a few terms to 1e-6 of the largest.
    expected = dx.reshape(-1, shape[-1]).sum(axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=2e-6 * max(np.abs(dx).sum(axis=0).max(), 1))


def places(model: ir.Model) -> dict[str, slice]:
    found, start = {}, 0
    for name, shape, _ in layout(model):
        size = int(np.prod(shape))
        found[name] = slice(start, start + size)
        start += size
    return found


def test_every_gradient_is_tested() -> None:
    tested = {name.split(",")[0] for name in (*FUNCTIONS, *CASES)} | {"ConvTranspose"}  # test_layer_gradients
    assert {one.name for one in GRADIENTS} <= tested


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_far_out_are_numbers(name: str) -> None:
    """Where an exponential leaves float32 the gradient is still that of the function."""
    function = FUNCTIONS[name][1]
    _, session = trained(name, (6,))
    x = np.array([[-1e4, -200, -90, 90, 200, 1e4]], np.float32)
    found = session.run({"x": x, "target": np.ones_like(x)})["theta_grad"][-6:]
    with np.errstate(over="ignore"):
        _, dy = ref.mse(function(x.astype(np.float64)), np.ones_like(x))
        slopes = function(x.astype(np.float64) + 1e-3) - function(x.astype(np.float64) - 1e-3)
    # rtol, atol: float64 differences of values up to 1e4 over 2e-3 are good to 1e-9.
    np.testing.assert_allclose(found, (dy * slopes / 2e-3)[0], rtol=1e-5, atol=1e-5)


SLOPES = {"one": (), "one each": (3,), "rows": (2, 1), "channels": (4, 1, 1), "elements": (4, 2, 3)}


@pytest.mark.parametrize("kind", SLOPES)
@settings(max_examples=8)
@given(rows=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_prelu_trains_its_slopes(kind: str, rows: int, seed: int) -> None:
    shape, random = SLOPES[kind], np.random.default_rng(seed)
    slope = random.normal(0.2, 0.3, shape).astype(np.float32)
    model = onnx_model(
        "(float[n,4,2,3] x) => (float[n,4,2,3] y) { y = PRelu (x, slope) }",
        slope=slope,
    )
    pipeline.run(model, TRAIN)
    assert layout(model) == [("slope", shape, "slope")]
    x = random.normal(0, 1, (rows, 4, 2, 3)).astype(np.float32)
    x.flat[0] = 0.0
    target = random.normal(0, 1, x.shape).astype(np.float32)
    found = engine.evaluate(model, {"x": x, "target": target})
    loss, dy = ref.mse(quant.prelu(x, slope), target)
    assert found["loss"] == pytest.approx(loss, rel=2e-6)
    expected = dy * x * (x < 0)
    wanted = expected.sum(axis=tuple(range(4 - len(shape))))
    wanted = wanted.sum(axis=tuple(axis for axis, length in enumerate(shape) if length == 1), keepdims=True)
    # rtol, atol: float32 sums of at most 72 products.
    np.testing.assert_allclose(found["theta_grad"], wanted.ravel(), rtol=2e-5, atol=1e-6)


def test_prelu_passes_the_gradient_on() -> None:
    model = onnx_model(
        "(float[n,3] x) => (float[n,3] y) { h = MatMul (x, w) y = PRelu (h, slope) }", w=np.eye(3), slope=[0.5, 0.0, -2]
    )
    pipeline.run(model, TRAIN)
    x = np.array([[1, 2, 3], [-1, -2, -3], [0, -1, 1]], np.float32)
    found = engine.evaluate(model, {"x": x, "target": np.zeros_like(x)})["theta_grad"]
    slopes = np.where(x < 0, [0.5, 0.0, -2], 1.0)
    _, dy = ref.mse(slopes * x, np.zeros_like(x))
    np.testing.assert_allclose(found[:9].reshape(3, 3), x.T @ (dy * slopes), rtol=1e-6)
    np.testing.assert_allclose(found[9:], (dy * x * (x < 0)).sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_the_largest_gets_the_gradient(axis: int, kept: int) -> None:
    """Ties share it; the engine has no gradient of ReduceMax itself."""
    model = onnx_model(
        f"(float[n,3,4] x) => (y) {{ h = MatMul (x, w) y = ReduceMax <keepdims: int = {kept}> (h, axis) }}",
        w=np.eye(4),
        axis=np.array([axis]),
    )
    pipeline.run(model, f"normalize,legalize,{TRAIN}")
    assert "pqc.gradient.ReduceMaxGrad" in text_of(model)
    random = np.random.default_rng(3)
    x = random.integers(-2, 3, (5, 3, 4)).astype(np.float32)
    y = x.max(axis=axis, keepdims=True)
    first = x == y
    assert (first.sum(axis=axis) > 1).any()
    target = random.normal(0, 1, y.shape).astype(np.float32)
    _, dy = ref.mse(y, target)
    target = target if kept else target.squeeze(axis)
    dh = first / first.sum(axis=axis, keepdims=True) * dy
    expected = x.reshape(-1, 4).T @ dh.reshape(-1, 4)
    found = engine.evaluate(model, {"x": x, "target": target})["theta_grad"]
    np.testing.assert_allclose(found.reshape(4, 4), expected, rtol=2e-6, atol=1e-6)
