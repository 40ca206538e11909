"""The learned power of two before a ReLU: its gradient, its training, and where it goes afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import initializers, onnx_model
from hypothesis import given, settings
from hypothesis import strategies as st
from method_networks import plan, trainer_of

import reference as ref
import reference_quant as quant
from pqc import engine, graph, pipeline
from pqc.hardware.handover import hls
from pqc.names import layout
from pqc.workflows.compression import finalize

TRAIN = "attach-loss{loss=mse},expose-parameters,differentiate"
CHAIN = """(float[n,4] x) => (float[n,3] y) {
    h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias) a = Relu (h)
    y = Gemm <transB: int = 1> (a, fc2__weight, fc2__bias) }"""
FORK = """(float[n,4] x) => (float[n,3] y) {
    h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias) a = Relu (h) s = Add (a, h)
    y = Gemm <transB: int = 1> (s, fc2__weight, fc2__bias) }"""


def network(text: str) -> ir.Model:
    rng = np.random.default_rng(5)
    shapes = {"fc1__weight": (6, 4), "fc1__bias": (6,), "fc2__weight": (3, 6), "fc2__bias": (3,)}
    return onnx_model(text, **{name: rng.normal(0, 0.6, shape) for name, shape in shapes.items()})


@settings(max_examples=20)
@given(m=st.sampled_from([-2.5, -1.2, -1.0, -0.5, 0.0, 0.5, 1.5, 3.4]), seed=st.integers(0, 2**16))
def test_gradients(m: float, seed: int) -> None:
    """Halves go to even; the gradient of m is that without the rounding, ln 2 x 2^round(m)."""
    random = np.random.default_rng(seed)
    model = onnx_model("(float[n,3] x) => (float[n,3] y) { h = MatMul (x, w) y = Relu (h) }", w=np.eye(3))
    pipeline.run(model, f"insert-relu-multiplier{{start={m}}},{TRAIN}")
    names = {name: role for name, _, role in layout(model)}
    assert list(names.values()) == ["weight", "relu_multiplier"]
    x = random.normal(0, 1, (5, 3)).astype(np.float32)
    target = random.normal(0, 1, (5, 3)).astype(np.float32)
    found = engine.evaluate(model, {"x": x, "target": target})
    result = np.maximum(quant.relu_multiplier(x, m), 0)
    loss, dy = ref.mse(result, target)
    dx, dm = quant.relu_multiplier_gradients(dy * (result > 0), x, m)
    assert found["loss"] == pytest.approx(loss, rel=2e-6)
    # rtol, atol: float32 sums of 15 products of order 1, times up to 8^2.
    np.testing.assert_allclose(found["theta_grad"][:9].reshape(3, 3), x.T @ dx, rtol=1e-5, atol=2e-5)
    assert found["theta_grad"][9] == pytest.approx(dm, rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("text", [CHAIN, FORK], ids=["chain", "fork"])
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_it_is_trained_and_handed_over_exactly(text: str, tmp_path: Path) -> None:
    schedule = plan(
        None,
        epochs=3,
        quantization={"relu_multiplier": True, "weights": [1, 0, 5], "inputs": [1, 2, 4]},
        training={"rates": {"relu_multiplier": 0.5}},
    )
    trainer = trainer_of(network(text), schedule, tmp_path)
    (name,) = [name for name in trainer.state.values if name.endswith(".m")]
    assert trainer.state.values[name] == -1
    trained = trainer.train()
    moved = float(initializers(trained)[name])
    assert moved != -1
    clean, _ = finalize(trained)
    assert {node.domain for node in clean.graph} == {"", graph.QONNX}
    x = np.random.default_rng(1).normal(0, 2, (500, 4)).astype(np.float32)
    assert np.array_equal(engine.evaluate(clean, {"x": x})["y"], engine.evaluate(trained, {"x": x})["y"])
    result = hls(clean, tmp_path / "hls")
    assert result.mismatches == 0
    assert len(np.unique(result.outputs)) > 20


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    trainer = trainer_of(network(CHAIN), plan(None), tmp_path)
    assert not [name for name in trainer.state.values if name.endswith(".m")]
