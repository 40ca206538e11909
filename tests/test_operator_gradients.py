"""Training through every operator, against finite differences of ONNX's reference evaluation in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import onnx_model
from layer_cases import CASES as LAYERS
from onnx.reference import ReferenceEvaluator
from operator_cases import CASES
from reference_operators import OPERATORS

from pqc import engine, graph, masking, operator_table, pipeline, workflows
from pqc.errors import UnsupportedError
from pqc.functions.standard import GRADIENTS
from pqc.names import layout
from pqc.trained_constants import GAIN, TRAINS

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
        for attribute in node.attribute:
            if attribute.name == "sorted":
                attribute.i = 1  # the evaluation knows no other, and the case does not look at the order
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


# Where a derivative has a jump, an infinity or a zero divisor

ROW = [1.0, 1.0, 0.0, 0.0]
ZEROS = [0.0, 0.0, 0.0, 0.0]
EDGES = {
    "ReduceMax": ("y = ReduceMax (h, axes)", ROW, [0.5, 0.5, 0, 0]),
    "ReduceMin": ("y = ReduceMin (h, axes)", [0, 0, 0, 2], [1 / 3, 1 / 3, 1 / 3, 0]),
    "ReduceL1": ("y = ReduceL1 (h, axes)", ROW, [1, 1, 0, 0]),
    "ReduceL2": ("y = ReduceL2 (h, axes)", ZEROS, ZEROS),
    "ReduceL2, some": ("y = ReduceL2 (h, axes)", [3, 4, 0, 0], [0.6, 0.8, 0, 0]),
    "ReduceProd": ("y = ReduceProd (h, axes)", [0, 2, 3, 1], [6, 0, 0, 0]),
    "ReduceProd, two zeros": ("y = ReduceProd (h, axes)", [0, 2, 0, 1], ZEROS),
    "LpNormalization": ("y = LpNormalization (h)", ZEROS, [1, 1, 1, 1]),
    "TopK": ("y, i = TopK (h, one)", ROW, [1, 0, 0, 0]),
    "Max": ("y = Max (h, zero)", [0, 1, -1, 0], [0.5, 1, 0, 0.5]),
    "Min": ("y = Min (h, zero)", [0, 1, -1, 0], [0.5, 0, 1, 0.5]),
    "Clip": ("y = Clip (h, zero, half)", [0, 0.5, 1, -1], [1, 1, 0, 0]),
    "Abs": ("y = Abs (h)", [0, 1, -1, 0], [0, 1, -1, 0]),
    "Relu": ("y = Relu (h)", [0, 1, -1, 0], [0, 1, 0, 0]),
    "LeakyRelu": ("y = LeakyRelu <alpha: float = 0.5> (h)", [0, 1, -1, 0], [1, 1, 0.5, 1]),
    "Elu": ("y = Elu <alpha: float = 0.5> (h)", [0, 1, 2, 0], [0.5, 1, 1, 0.5]),
    "Celu": ("y = Celu <alpha: float = 0.5> (h)", [0, 1, 2, 0], [1, 1, 1, 1]),
    "Selu": ("y = Selu <alpha: float = 2.0, gamma: float = 0.5> (h)", [0, 1, 2, 0], [1, 0.5, 0.5, 1]),
    "ThresholdedRelu": ("y = ThresholdedRelu (h)", [0, 1, 2, -1], [0, 0, 1, 0]),
    "Shrink": ("y = Shrink (h)", [0.5, 1, -0.5, -2], [0, 1, 0, 1]),
    "HardSigmoid": ("y = HardSigmoid <alpha: float = 0.25> (h)", [9, -9, 0, 1], [0, 0, 0.25, 0.25]),
    "Pow": ("y = Pow (h, two)", [0, 1, -1, 0], [0, 2, -2, 0]),
    "Round": ("y = Round (h)", [0.5, 1.2, -1, 0], ZEROS),
    "Floor": ("y = Floor (h)", [0.5, 1.2, -1, 0], ZEROS),
    "Ceil": ("y = Ceil (h)", [0.5, 1.2, -1, 0], ZEROS),
    "Sign": ("y = Sign (h)", [0.5, 1.2, -1, 0], ZEROS),
    "ScatterElements, the same place twice": (
        'y = ScatterElements <axis: int = 1, reduction: string = "add"> (zeros, places, h)',
        [1, 2, 3, 4],
        [1, 1, 1, 1],
    ),
    "GatherElements, the same place thrice": (
        "y = GatherElements <axis: int = 1> (h, places)",
        [1, 2, 3, 4],
        [1, 0, 3, 0],
    ),
}
NUMBERS = {
    "axes": np.array([1]),
    "one": np.array([1]),
    "zero": 0.0,
    "half": 0.5,
    "two": 2.0,
    "zeros": np.zeros((1, 4)),
    "places": np.array([[0, 2, 2, -2]]),
    "e": np.ones(4),
}


def small(text: str, row: list[float]) -> ir.Model:
    """`text` after a layer whose result is `row` where the input is a one."""
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in NUMBERS.items() if name in words}
    return onnx_model(f"(float[1,1] x) => (y) {{ h = MatMul (x, w) {text} }}", w=np.array([row], np.float32), **used)


@pytest.mark.parametrize("name", EDGES)
def test_gradient_at_an_edge(name: str) -> None:
    """The gradient of the sum of the results, equal to what is written here."""
    text, row, expected = EDGES[name]
    model = small(text, row)
    x = np.ones((1, 1), np.float32)
    y = engine.evaluate(model, {"x": x})["y"]
    pipeline.run(model, CHAIN)
    # Half the size below the result, the mean squared error has the gradient one.
    found = engine.evaluate(model, {"x": x, "target": y - np.float32(y.size / 2)})["theta_grad"]
    # rtol: the results are a few float32 operations.
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6)


def test_trained_exponent() -> None:
    """One exponent for each column, of a base that is computed too; zero where the base is zero or negative."""
    row, exponents = [2.0, 0.5, 0.0, -2.0], np.array([1.5, -1.0, 2.0, 2.0], np.float32)
    model = small("y = Pow (h, e)", row)
    node = next(node for node in model.graph if node.op_type == "Pow")
    node.metadata_props[TRAINS] = GAIN
    graph.set_initializer(model.graph.initializers["e"], exponents)
    x = np.ones((1, 1), np.float32)
    y = engine.evaluate(model, {"x": x})["y"]
    pipeline.run(model, CHAIN)
    found = engine.evaluate(model, {"x": x, "target": y - np.float32(y.size / 2)})["theta_grad"]
    base = np.array([1.5 * 2**0.5, -4.0, 0, -4.0])
    exponent = np.array([2**1.5 * np.log(2), 2 * np.log(0.5), 0, 0])
    # rtol: powers and logarithms of the kernels are good to a few ulp.
    np.testing.assert_allclose(found, [*base, *exponent], rtol=2e-6)


# The table


def test_every_operator_has_one_treatment() -> None:
    entries = Counter(name for group in operator_table.TREATMENTS.values() for name in group)
    assert not [name for name, count in entries.items() if count > 1]
    schemas = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    current = {name for name in schemas if onnx.defs.has(name, graph.OPSET, "")}
    living = {name for name in current if not onnx.defs.get_schema(name, graph.OPSET, "").deprecated}
    assert living == set(entries)


def test_every_gradient_of_pqc_is_in_the_table() -> None:
    own = {one.name for one in GRADIENTS}
    assert own == operator_table.OWN | operator_table.STEPS


def test_what_trains_has_a_case() -> None:
    tested = {name.split(",")[0] for name in (*CASES, *EDGES)}
    trains = operator_table.ENGINE | operator_table.OWN | operator_table.STEPS | operator_table.REWRITTEN
    elsewhere = {"Conv", "Gemm", "MatMul", "BatchNormalization"}  # test_differentiation.py, test_batch_norm.py
    in_layers = {word for case in LAYERS.values() for word in case.nodes.replace("(", " ").split()} & trains
    assert trains - tested == elsewhere | (in_layers - tested)


REFUSALS = {
    "Hardmax": ("y = Hardmax (h)", "nothing before it would be trained"),
    "Compress": ("y = Compress <axis: int = 1> (h, flags)", "depends on the data"),
    "Det": ("y = Det (h)", "neither the engine nor pqc"),
    "OneHot": ("v = Slice (h, axes0, two0, axes) u = Squeeze (v) y = OneHot (index, four, u)", "its values"),
    "Pad": ("m = ReduceMean <keepdims: int = 0> (h) y = Pad (x, pads, m)", "computed padding value"),
    "ScatterElements": (
        'y = ScatterElements <axis: int = 1, reduction: string = "mul"> (h, places, row)',
        "replaces or adds",
    ),
}
REFUSED_WITH = {
    "flags": np.array([True, False, True, True]),
    "axes0": np.array([0]),
    "two0": np.array([2]),
    "axes": np.array([1]),
    "index": np.array([1]),
    "four": np.array(4),
    "pads": np.array([0, 1, 0, 1]),
    "places": np.array([[0, 2, 2, -2]]),
    "row": np.ones((1, 4)),
}


@pytest.mark.parametrize("operator", REFUSALS)
def test_what_cannot_be_trained_through_is_refused_by_name(operator: str) -> None:
    text, reason = REFUSALS[operator]
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in REFUSED_WITH.items() if name in words}
    width = 4 if operator != "Det" else 1
    model = onnx_model(f"(float[1,1] x) => (y) {{ h = MatMul (x, w) {text} }}", w=np.ones((1, width)), **used)
    with pytest.raises(UnsupportedError, match=reason) as caught:
        pipeline.run(model, "normalize,fold-constants,legalize")
    assert operator in caught.value.message


def test_a_step_trains_under_quantizers_and_masks(tmp_path: Path) -> None:
    """The gradient of a step is zero, and the layer behind it is trained."""
    random = np.random.default_rng(0)
    text = "(float[n,4] x) => (float[n,3] y) { h = MatMul (x, w) s = Sign (h) y = MatMul (s, v) }"
    graph.save(onnx_model(text, w=random.normal(size=(4, 3)), v=random.normal(size=(3, 3))), tmp_path / "m.onnx")
    x = random.normal(size=(300, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=x[:, :3].argmax(1))
    plan = workflows.load_plan("cs-demo", None, {"phases.training.epochs": "2"})
    source = workflows.resolve(str(tmp_path / "m.onnx"))
    summary = workflows.run(source, plan, tmp_path / "d.npz", tmp_path / "out", workflows.RunOptions(hls=False))
    assert summary["clean_equals_trained"]
