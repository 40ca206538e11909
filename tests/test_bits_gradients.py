"""Gradients of weights, biases and all their bits through whole networks, against the chain rule in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model

import reference_quant as ref
from pqc import engine, graph, pipeline
from pqc.names import layout

Back = Callable[[np.ndarray], np.ndarray]
MLP = """(float[n,3] x) => (float[n,2] y) {
    h = MatMul (x, a__weight) g = Add (h, a__bias) r = Relu (g) y = Gemm <transB: int = 1> (r, b__weight, b__bias)
}"""
CONV = """(float[n,2,4,4] x) => (float[n,3,3,3] y) {
    y = Conv <kernel_shape: ints = [2,2]> (x, a__weight, a__bias)
}"""
GRANULARITIES = {"per_tensor": "per_tensor", "per_channel": "per_channel", "per_element": "per_weight"}


class Tape:
    """The network's parameters in float64, and the gradients that reach them."""

    def __init__(self, values: dict[str, np.ndarray], signed: dict[str, int]) -> None:
        self.values = values
        self.signed = signed
        self.gradients = {name: np.zeros_like(array) for name, array in values.items()}

    def quantize(self, x: np.ndarray, name: str) -> tuple[np.ndarray, Back]:
        """x rounded by the quantizer of `name`, and the way back."""
        i, f = (self.values[f"{name}.quant.{part}"] for part in ("integer_bits", "fractional_bits"))
        parts = (self.signed[name], i, f, "RND_CONV", "SAT_SYM")

        def back(dy: np.ndarray) -> np.ndarray:
            dx, di, df = ref.fixed_point_gradients(dy, x, *parts)
            self.gradients[f"{name}.quant.integer_bits"] += ref.reduce_to(di, i.shape)
            self.gradients[f"{name}.quant.fractional_bits"] += ref.reduce_to(df, f.shape)
            return dx

        return ref.fixed_point(x, *parts), back

    def parameter(self, name: str) -> tuple[np.ndarray, Back]:
        """A rounded parameter, and the way back to it."""
        y, through = self.quantize(self.values[name], name)

        def back(dy: np.ndarray) -> np.ndarray:
            dx = through(dy)
            self.gradients[name] += dx
            return dx

        return y, back


def learned(text: str, granularity: str, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    rng = np.random.default_rng(4)
    model = onnx_model(text, **{name: rng.normal(0, 0.8, shape) for name, shape in shapes.items()})
    weight, data = GRANULARITIES[granularity], granularity
    pipeline.run(
        model,
        f"normalize,insert-quant{{weights=1,0,3/{weight}/SAT_SYM/bits biases=1,2,2/{weight}/SAT_SYM/bits "
        f"inputs=1,1,2/{data}/SAT_SYM/bits}},attach-loss{{loss=mse}},fix-batch{{size=16}},expose-parameters,differentiate",
    )
    return model


def pieces(model: ir.Model, theta: np.ndarray) -> dict[str, np.ndarray]:
    found, start = {}, 0
    for name, shape, _ in layout(model):
        size = int(np.prod(shape))
        found[name] = theta[start : start + size].reshape(shape).astype(np.float64)
        start += size
    assert start == theta.size
    return found


def check(model: ir.Model, x: np.ndarray, backward: Callable[[Tape, np.ndarray, np.ndarray], float]) -> None:
    """Weights and bits a little off what they start from; every gradient is there and equals the chain rule's.

    rtol, atol: a float32 forward and backward pass with sums of a few hundred terms.
    """
    rng = np.random.default_rng(5)
    theta = graph.stored(model.graph.initializers["theta"])
    theta = (theta + rng.normal(0, 0.4, theta.shape)).astype(np.float32)
    values = pieces(model, theta)
    target_shape = graph.dims(next(value for value in model.graph.inputs if value.name == "target"))
    target = rng.normal(0, 1, target_shape).astype(np.float32)
    found = engine.evaluate(model, {"x": x, "target": target, "theta": theta})
    tape = Tape(values, {name.split(".quant")[0]: 1 for name in values})
    loss = backward(tape, x.astype(np.float64), target.astype(np.float64))
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    assert any(name.endswith("integer_bits") and array.any() for name, array in tape.gradients.items())
    for name, gradient in pieces(model, found["theta_grad"]).items():
        assert name.endswith("integer_bits") or np.any(tape.gradients[name] != 0), name
        np.testing.assert_allclose(gradient, tape.gradients[name], rtol=1e-4, atol=1e-5, err_msg=name)


def mse(y: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    return float(((y - target) ** 2).mean()), 2 * (y - target) / y.size


def dense(tape: Tape, x: np.ndarray, target: np.ndarray) -> float:
    xq, back_x = tape.quantize(x, "x")
    (wa, back_wa), (ba, back_ba) = tape.parameter("a.weight"), tape.parameter("a.bias")
    (wb, back_wb), (bb, back_bb) = tape.parameter("b.weight"), tape.parameter("b.bias")
    g = xq @ wa + ba
    r, back_r = tape.quantize(np.maximum(g, 0), "r")
    loss, dy = mse(r @ wb.T + bb, target)
    back_bb(dy.sum(axis=0))
    back_wb(dy.T @ r)
    dg = back_r(dy @ wb) * (g > 0)
    back_ba(dg.sum(axis=0))
    back_wa(xq.T @ dg)
    back_x(dg @ wa.T)
    return loss


def convolution(tape: Tape, x: np.ndarray, target: np.ndarray) -> float:
    xq, back_x = tape.quantize(x, "x")
    (w, back_w), (b, back_b) = tape.parameter("a.weight"), tape.parameter("a.bias")
    windows = np.lib.stride_tricks.sliding_window_view(xq, (2, 2), axis=(2, 3))
    loss, dy = mse(np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None], target)
    back_b(dy.sum(axis=(0, 2, 3)))
    back_w(np.einsum("nohw,nchwij->ocij", dy, windows))
    dx = np.zeros_like(xq)
    for i in range(2):
        for j in range(2):
            dx[:, :, i : i + 3, j : j + 3] += np.einsum("nohw,oc->nchw", dy, w[:, :, i, j])
    back_x(dx)
    return loss


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_dense_network(granularity: str) -> None:
    shapes = {"a__weight": (3, 4), "a__bias": (4,), "b__weight": (2, 4), "b__bias": (2,)}
    x = np.random.default_rng(6).normal(0, 2, (16, 3)).astype(np.float32)
    check(learned(MLP, granularity, shapes), x, dense)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_convolution(granularity: str) -> None:
    x = np.random.default_rng(6).normal(0, 2, (16, 2, 4, 4)).astype(np.float32)
    check(learned(CONV, granularity, {"a__weight": (3, 2, 2, 2), "a__bias": (3,)}), x, convolution)
