"""Training through every operator, against finite differences of ONNX's reference evaluation in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from operator_cases import CASES
from reference_operators import OPERATORS

from pqc import engine, graph, masking, pipeline
from pqc.names import layout

CHAIN = "normalize,fold-constants,legalize,attach-loss{loss=mse},expose-parameters,differentiate"
STEP = 1e-5


def double(model: ir.Model) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The model by ONNX's reference evaluation, its initializers those given, all in float64."""
    proto = graph.to_proto(model)
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    del proto.graph.initializer[:]
    for node in proto.graph.node:
        if node.op_type == "Cast":
            node.attribute[0].i = onnx.TensorProto.DOUBLE
    proto.graph.input.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in stored)
    evaluator = ReferenceEvaluator(proto, new_ops=list(OPERATORS))

    def run(given: Mapping[str, np.ndarray]) -> np.ndarray:
        feeds = {**stored, **given}
        wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
        return np.asarray(evaluator.run(["y"], wide)[0])

    return run


def numeric_gradient(
    run: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    given: Mapping[str, np.ndarray],
    target: np.ndarray,
    name: str,
) -> np.ndarray:
    """Central differences of the mean squared error with respect to the array `name`."""
    array = given[name].astype(np.float64)
    found = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        losses = []
        for sign in (1, -1):
            moved = array.copy()
            moved[place] += sign * STEP
            losses.append(np.mean((run({**given, name: moved}) - target) ** 2))
        found[place] = (losses[0] - losses[1]) / (2 * STEP)
    return found


@pytest.mark.parametrize("name", CASES)
def test_operator_trains(name: str) -> None:
    """Weight and bias of the layer before the operator, each in full; the forward pass too."""
    case = CASES[name]
    model, feeds = case.build(), case.inputs()
    run = double(model)
    expected = run(feeds)
    target = np.random.default_rng(6).normal(0, 1, expected.shape).astype(np.float32)
    pipeline.run(model, "normalize,fold-constants,legalize")
    found = engine.evaluate(model, feeds)["y"]
    # rtol, atol: float32, and sums of up to 64 products.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    assert found.shape == expected.shape
    trained = {one.value.name: graph.stored(one.value) for one in masking.parameters(model.graph)}
    pipeline.run(model, CHAIN.split("legalize,")[1])
    theta = engine.evaluate(model, {**feeds, "target": target})["theta_grad"]
    assert np.any(theta != 0)
    numeric = {name: numeric_gradient(run, {**feeds, **trained}, target, name) for name in trained}
    largest = max(np.abs(gradient).max() for gradient in numeric.values())
    start = 0
    for name, shape, _ in layout(model):
        size = int(np.prod(shape))
        piece, start = theta[start : start + size].reshape(shape), start + size
        np.testing.assert_allclose(piece, numeric[name], rtol=0, atol=case.bound * largest, err_msg=name)
    assert start == theta.size
