"""The gradient of whole graphs: against backpropagation in float64, and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from conftest import make_mlp, onnx_model, text_of

import reference as ref
from pqc import engine, graph, pipeline
from pqc.errors import GraphError, PassError, PqcError, UnsupportedError
from pqc.names import layout
from pqc.passes.differentiate import check_shapes
from pqc.samples import sample

TRAIN = "attach-loss{loss=mse},expose-parameters,differentiate"


def differentiated(model: ir.Model, passes: str) -> engine.Session:
    pipeline.run(model, passes)
    return engine.Session(model)


def slices(model: ir.Model, theta: np.ndarray) -> dict[str, np.ndarray]:
    """The pieces of theta in float64, by name."""
    pieces, start = {}, 0
    for name, shape, _ in layout(model):
        size = int(np.prod(shape))
        pieces[name] = theta[start : start + size].reshape(shape).astype(np.float64)
        start += size
    assert start == theta.size
    return pieces


def assert_finite_differences(
    model: ir.Model, passes: str, *, batch: int = 3, step: float = 4e-3, size: float = 1.0, places: int = 40
) -> None:
    """Compare theta_grad with central differences of the float32 loss.

    The loss is of order 1 and good to 1e-7, so a difference over 8e-3 is good to 3e-5 and its curvature error is of
    order 1e-5; the bound is 2e-3 of the largest gradient and 2e-4.
    """
    session = differentiated(model, passes)
    feeds = sample(model, batch)
    theta = np.random.default_rng(3).normal(0, size, graph.stored(model.graph.initializers["theta"]).shape)
    theta = theta.astype(np.float32)
    gradient = session.run({**feeds, "theta": theta})["theta_grad"]
    assert np.any(gradient != 0)
    chosen = np.random.default_rng(4).permutation(theta.size)[:places]
    for place in chosen:
        losses = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[place] += np.float32(sign * step)
            losses.append((float(session.run({**feeds, "theta": moved})["loss"]), float(moved[place])))
        numeric = (losses[0][0] - losses[1][0]) / (losses[0][1] - losses[1][1])
        assert abs(numeric - gradient[place]) <= 2e-3 * np.abs(gradient).max() + 2e-4, f"theta[{place}]"


# Closed forms


@pytest.mark.parametrize("pruning_first", [True, False])
@pytest.mark.parametrize("narrowest", [False, True])
def test_gradient_of_the_compressed_mlp(mlp: ir.Model, pruning_first: bool, narrowest: bool) -> None:
    """Every quantizer, mask, penalty and the cross entropy, chained by hand."""
    weights, activations = ("1,0,3", "0,0,4") if narrowest else ("1,1,6", "0,2,6")
    session = differentiated(
        mlp,
        f"normalize,insert-quant{{weights={weights} biases=1,0,5 inputs={activations}}},"
        f"insert-masks{{options=threshold_decay=0.01,threshold_init=0.3 pruning-first={str(pruning_first).lower()}}},"
        "attach-loss{options=smoothing=0.1},expose-parameters,differentiate",
    )
    random = np.random.default_rng(9)
    theta = random.normal(0, 0.8, graph.stored(mlp.graph.initializers["theta"]).shape).astype(np.float32)
    x, target = random.uniform(-0.5, 2, (32, 4)).astype(np.float32), random.integers(0, 3, 32)
    found = session.run({"x": x, "target": target, "beta": np.float32(2.5), "theta": theta})
    loss, expected = backpropagate(slices(mlp, theta), x, target, weights, activations, pruning_first)
    # rtol, atol: a float32 forward and backward pass with sums of up to 256 products.
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    for name, gradient in slices(mlp, found["theta_grad"]).items():
        assert np.any(expected[name] != 0), name
        np.testing.assert_allclose(gradient, expected[name], rtol=2e-4, atol=2e-6, err_msg=name)


Back = Callable[[np.ndarray], np.ndarray]


def quantizer(x: np.ndarray, kind: str) -> tuple[np.ndarray, Back]:
    """A fixed point quantizer's result, and the function from its gradient to that of x."""
    k, i, f = map(int, kind.split(","))
    parameters = (2.0**-f, 0.0, k + i + f, k, 0)
    return ref.quant(x, *parameters, "ROUND"), lambda dy: ref.quant_grad(dy, x, *parameters)


def backpropagate(
    parts: dict[str, np.ndarray],
    x: np.ndarray,
    target: np.ndarray,
    weights: str,
    activations: str,
    pruning_first: bool,
) -> tuple[float, dict[str, np.ndarray]]:
    beta, start, decay = 2.5, float(np.float32(0.3)), float(np.float32(0.01))
    gradients: dict[str, np.ndarray] = {}

    def masked(name: str) -> tuple[np.ndarray, Callable[[np.ndarray], None], float]:
        weight, s = parts[name], parts[f"{name}.s"]
        mask = ref.cs_mask(s, beta, start)
        if pruning_first:
            result, through = quantizer(weight * mask, weights)
        else:
            rounded, through_weight = quantizer(weight, weights)
            result = rounded * mask

        def back(dy: np.ndarray) -> None:
            if pruning_first:
                product = through(dy)
                dweight, dmask = product * mask, product * weight
            else:
                dweight, dmask = through_weight(dy * mask), dy * rounded
            gradients[name] = dweight
            gradients[f"{name}.s"] = ref.cs_mask_grad(dmask, s, beta, start) + ref.cs_penalty_grad_s(
                s, beta, start, decay
            )

        return result, back, ref.cs_penalty(mask, decay)

    w1, back_w1, penalty1 = masked("fc1.weight")
    w2, back_w2, penalty2 = masked("fc2.weight")
    b1, back_b1 = quantizer(parts["fc1.bias"], "1,0,5")
    b2, back_b2 = quantizer(parts["fc2.bias"], "1,0,5")
    xq, _ = quantizer(x, activations)
    hidden = xq @ w1.T + b1
    relu = np.maximum(hidden, 0)
    a, back_a = quantizer(relu, activations)
    task, dz = ref.cross_entropy(a @ w2 + b2, target, float(np.float32(0.1)))
    back_w2(a.T @ dz)
    gradients["fc2.bias"] = back_b2(dz.sum(axis=0))
    dhidden = back_a(dz @ w2.T) * (hidden > 0)
    back_w1(dhidden.T @ xq)
    gradients["fc1.bias"] = back_b1(dhidden.sum(axis=0))
    return task + penalty1 + penalty2, gradients


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
def test_gradient_nodes_inherit_attributes(signed: int, narrow: int) -> None:
    """Two bits around a Tanh: signed they end at -2 and 1, unsigned at 0 and 3 quarters."""
    model = onnx_model(
        f"""(float[n,3] x) => (float[n,4] y) {{
            h = MatMul (x, w)
            t = Tanh (h)
            y = qonnx.custom_op.general.Quant <signed: int = {signed}, narrow: int = {narrow},
                rounding_mode: string = "FLOOR"> (t, scale, zero, bits)
        }}""",
        w=np.random.default_rng(1).normal(0, 0.7, (3, 4)),
        scale=0.25,
        zero=0.0,
        bits=2.0,
    )
    w = graph.stored(model.graph.initializers["w"]).astype(np.float64)
    session = differentiated(model, f"normalize,{TRAIN}")
    feeds = sample(model, 16)
    h = feeds["x"].astype(np.float64) @ w
    t = np.tanh(h)
    y = ref.quant(t, 0.25, 0, 2, signed, narrow, "FLOOR")
    loss, dy = ref.mse(y, feeds["target"])
    through = ref.quant_grad(dy, t, 0.25, 0, 2, signed, narrow)
    other = ref.quant_grad(dy, t, 0.25, 0, 2, 1 - signed, narrow)
    assert np.any(through != other)
    expected = feeds["x"].T @ (through * (1 - t**2))
    found = session.run(feeds)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    # atol: sums of 16 float32 products of order 0.1.
    np.testing.assert_allclose(found["theta_grad"].reshape(3, 4), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("operator", "slope"), [("Relu", lambda h: h > 0), ("Softplus", ref.sigmoid)])
def test_overridden_gradients(operator: str, slope: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx_model(
        f"(float[n,2] x) => (float[n,3] y) {{ h = MatMul (x, w) y = {operator} (h) }}",
        w=[[0.5, -1.0, 2.0], [0.25, 0.5, -1.0]],
    )
    session = differentiated(model, f"normalize,legalize,{TRAIN}")
    assert f"pqc.gradient.{operator}Grad" in text_of(model)
    x = np.array([[1.0, 2.0], [-2.0, 4.0], [0.0, 0.0], [2.0, -1.0], [60.0, -60.0]], np.float32)
    target = np.full((5, 3), 0.25, np.float32)
    w = np.array([[0.5, -1.0, 2.0], [0.25, 0.5, -1.0]])
    h = x.astype(np.float64) @ w
    assert np.any(h == 0)
    y = np.maximum(h, 0) if operator == "Relu" else np.logaddexp(h, 0)
    _, dy = ref.mse(y, target)
    expected = x.T.astype(np.float64) @ (dy * slope(h))
    found = session.run({"x": x, "target": target})["theta_grad"].reshape(2, 3)
    # rtol: the kernel's Softplus and sigmoid are good to a few ulp; sums of five products.
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-6)


# Finite differences


@pytest.mark.parametrize("batch", [2])
def test_gradient_of_the_convnet(convnet: ir.Model, batch: int) -> None:
    passes = f"normalize,fold-batchnorm,legalize,attach-loss{{loss=mse}},fix-batch{{size={batch}}},expose-parameters"
    assert_finite_differences(convnet, f"{passes},differentiate", batch=batch, size=0.4)


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse", "l1", "huber"])
def test_gradient_of_every_loss_through_tanh(loss: str) -> None:
    model = onnx_model(
        "(float[n,3] x) => (float[n,4] y) { h = MatMul (x, w) a = Add (h, b) t = Tanh (a) y = MatMul (t, v) }",
        w=np.zeros((3, 5)),
        b=np.zeros(5),
        v=np.zeros((5, 4)),
    )
    assert_finite_differences(
        model, f"normalize,legalize,attach-loss{{loss={loss}}},expose-parameters,differentiate", step=2e-3
    )


def test_gradient_of_a_shared_weight() -> None:
    model = onnx_model(
        "(float[n,3] x) => (float[n,3] y) { h = MatMul (x, w) t = Tanh (h) u = MatMul (t, w) y = Add (u, h) }",
        w=np.zeros((3, 3)),
    )
    assert_finite_differences(model, f"normalize,legalize,{TRAIN}")


SPREAD = np.random.default_rng(2).normal(0, 1, (1, 6))
CHOICE = np.random.default_rng(2).integers(0, 2, (1, 6)).astype(bool)

REWRITES = {
    "sum": "s = Sum (h, x, h)",
    "sum of one": "s = Sum (h)",
    "sum with broadcast": "r = ReduceMean <keepdims: int = 1> (h, axis) s = Sum (x, r, c)",
    "mean": "s = Mean (h, x, h)",
    "mean with broadcast": "r = ReduceMean <keepdims: int = 1> (h, axis) s = Mean (x, r)",
    "split, last unread": "s, unread = Split <axis: int = 1> (h, four)",
    "split, first unread": "unread, s = Split <axis: int = 1> (h, four)",
    "split, negative axis": "unread, s, u2 = Split <axis: int = -1, num_outputs: int = 3> (h)",
    "split, one of three unread": "p, unread, q = Split <axis: int = 1, num_outputs: int = 3> (h) s = Mul (p, q)",
    "where, broadcast scalar": "g = Greater (x, zero) s = Where (g, h, zero)",
    "where, broadcast column": "r = ReduceMean <keepdims: int = 1> (h, axis) g = Greater (x, zero) s = Where (g, r, h)",
    "where, broadcast condition": "s = Where (choice, h, x)",
    "where, broadcast row": "g = Greater (x, zero) m = Mul (h, h) s = Where (g, row, m)",
    "pow, broadcast base": "r = ReduceMean <keepdims: int = 1> (h, axis) e = Exp (r) s = Pow (e, x)",
    "pow, number": "s = Pow (h, two)",
}
OPERANDS = {
    "axis": np.array([1]),
    "four": np.array([4, 2]),
    "zero": 0.0,
    "two": 2.0,
    "c": SPREAD,
    "row": SPREAD,
    "choice": CHOICE,
}


def rewrite_model(nodes: str) -> ir.Model:
    """A layer, the operators under test, and a Tanh whose result is the output."""
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return onnx_model(
        f"(float[n,6] x) => (y) {{ h = MatMul (x, w) {nodes} y = Tanh (s) }}",
        w=np.random.default_rng(8).normal(0, 0.5, (6, 6)),
        **{name: value for name, value in OPERANDS.items() if name in words},
    )


@pytest.mark.parametrize("name", REWRITES)
def test_legalize_keeps_the_output(name: str) -> None:
    model = rewrite_model(REWRITES[name])
    pipeline.run(model, "normalize")
    before = graph.copy(model)
    pipeline.run(model, "legalize")
    feeds = sample(model, 5)
    # rtol: additions in another order.
    np.testing.assert_allclose(engine.evaluate(model, feeds)["y"], engine.evaluate(before, feeds)["y"], rtol=1e-5)
    operators = {node.op_type for node in model.graph}
    assert not operators & {"Sum", "Mean"}
    assert not any(not output.uses() for node in model.graph if node.op_type == "Split" for output in node.outputs)


@pytest.mark.parametrize("name", REWRITES)
def test_gradient_after_legalize(name: str) -> None:
    assert_finite_differences(rewrite_model(REWRITES[name]), f"normalize,legalize,{TRAIN}", step=2e-3, size=0.5)


@pytest.mark.parametrize("operator", ["Sum", "Mean", "Split"])
def test_legalize_keeps_the_name_of_an_output(operator: str) -> None:
    nodes = {
        "Sum": "y = Sum (h, x)",
        "Mean": "y = Mean (h, x)",
        "Split": "y, unread = Split <axis: int = 1> (h, four)",
    }
    used = {"four": OPERANDS["four"]} if operator == "Split" else {}
    model = onnx_model(f"(float[n,6] x) => (y) {{ h = MatMul (x, w) {nodes[operator]} }}", w=np.eye(6), **used)
    pipeline.run(model, "normalize,legalize")
    assert [value.name for value in model.graph.outputs] == ["y"]


IMAGES = {
    "Conv": 'p = Conv <auto_pad: string = "{}", strides: ints = [{}]> (h, k)',
    "MaxPool": 'p = MaxPool <auto_pad: string = "{}", strides: ints = [{}], kernel_shape: ints = [3,2]> (h)',
    "AveragePool": 'p = AveragePool <auto_pad: string = "{}", strides: ints = [{}], kernel_shape: ints = [3,2]> (h)',
}


def image_model(operator: str, mode: str, strides: str) -> ir.Model:
    random = np.random.default_rng(6)
    used = {"k": random.normal(0, 0.5, (1, 2, 3, 2))} if "Conv" in operator else {}
    return onnx_model(
        f"""(float[2,1,6,5] x) => (y) {{
            h = Conv (x, c)
            {IMAGES[operator].format(mode, strides)}
            y = Tanh (p)
        }}""",
        c=random.normal(0, 0.7, (2, 1, 1, 1)),
        **used,
    )


@pytest.mark.parametrize("operator", IMAGES)
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", ["1,1", "2,2"])
def test_legalize_of_auto_pad(operator: str, mode: str, strides: str) -> None:
    model = image_model(operator, mode, strides)
    pipeline.run(model, "normalize")
    before = graph.copy(model)
    pipeline.run(model, "legalize")
    assert "auto_pad" not in text_of(model)
    feeds = sample(model, 2)
    expected = engine.evaluate(before, feeds)["y"]
    np.testing.assert_allclose(engine.evaluate(model, feeds)["y"], expected, rtol=1e-6, atol=1e-7)
    assert_finite_differences(model, TRAIN, batch=2, size=0.7, places=8)


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", [2, 0, 2, 1]), ("SAME_LOWER", [2, 1, 2, 0])])
def test_legalize_of_auto_pad_with_dilation(mode: str, pads: list[int]) -> None:
    """The kernel itself refuses SAME with dilation, so the pads are compared with those worked out by hand."""
    model = onnx_model(
        f"""(float[2,1,6,5] x) => (y) {{
            y = Conv <auto_pad: string = "{mode}", dilations: ints = [2,1]> (x, k)
        }}""",
        k=np.ones((1, 1, 3, 2)),
    )
    pipeline.run(model, "normalize,legalize")
    assert list(model.graph.node(0).attributes.get_ints("pads")) == pads
    assert engine.evaluate(model, sample(model))["y"].shape == (2, 1, 6, 5)


# Refusals


def test_average_pool_with_a_symbolic_batch_is_trained(convnet: ir.Model) -> None:
    assert_finite_differences(convnet, f"normalize,fold-batchnorm,legalize,{TRAIN}", size=0.4)


@pytest.mark.parametrize(
    "nodes",
    [
        "r = MatMul (x, v) g = Greater (x, zero) y = Where (g, r, x)",
        "r = MatMul (x, v) y = Pow (r, x)",
    ],
    ids=["where", "pow"],
)
def test_a_form_with_a_wrong_gradient_is_refused_without_legalize(nodes: str) -> None:
    arrays = {"v": np.ones((6, 1)), "zero": 0.0}
    used = {name: value for name, value in arrays.items() if f"{name})" in nodes}
    model = onnx_model(f"(float[n,6] x) => (y) {{ {nodes} }}", **used)
    with pytest.raises(UnsupportedError) as caught:
        pipeline.run(model, f"normalize,{TRAIN}")
    assert "the engine computes the gradient of this form wrongly" in caught.value.message
    assert caught.value.hint == "run legalize first, which rewrites it"


def test_check_shapes_takes_a_right_gradient() -> None:
    model = make_mlp()
    pipeline.run(model, "normalize,attach-loss,expose-parameters,differentiate")
    check_shapes(model)
    gradient = next(value for value in model.graph.outputs if value.name == "theta_grad")
    lying = ir.node("Concat", [gradient, gradient], {"axis": 0}, name="lie", outputs=[ir.val("twice")])
    model.graph.append(lying)
    gradient.name, lying.outputs[0].name = "once", "theta_grad"
    model.graph.outputs[1] = lying.outputs[0]
    with pytest.raises(PassError, match=r"gradient of 'theta' has shape \[134\] instead of \[67\]"):
        check_shapes(model)


@pytest.mark.parametrize("operator", ["Conv", "MaxPool"])
def test_auto_pad_without_legalize_is_refused_or_right(operator: str) -> None:
    model = image_model(operator, "SAME_UPPER", "1,1")
    try:
        pipeline.run(model, "normalize")
        assert_finite_differences(model, TRAIN, batch=2, size=0.7)
    except (PassError, UnsupportedError):
        pass


UNSUPPORTED = {
    "CumSum": "s = CumSum (h, one)",
    "ReduceMax": "s = ReduceMax <keepdims: int = 0> (h)",
    "ThresholdedRelu": "s = ThresholdedRelu (h)",
}


@pytest.mark.parametrize("operator", UNSUPPORTED)
def test_legalize_refuses_an_operator_without_a_gradient(operator: str) -> None:
    used = {"one": np.array(1)} if "one" in UNSUPPORTED[operator] else {}
    model = onnx_model(
        f"(float[n,6] x) => (y) {{ h = MatMul (x, w) {UNSUPPORTED[operator]} y = Tanh (s) }}", w=np.eye(6), **used
    )
    with pytest.raises(UnsupportedError) as caught:
        pipeline.run(model, "normalize,legalize")
    assert str(caught.value) == (
        f"node '{operator}_s': {operator} has no gradient that pqc has checked (it feeds 'Tanh_y')\n"
        "hint: replace the operator in the source model, or fold it: fold-batchnorm takes batch normalization"
    )


def test_legalize_takes_any_operator_that_no_weight_reaches() -> None:
    model = onnx_model("(float[n,6] x) => (y) { s = CumSum (x, one) y = MatMul (s, w) }", w=np.eye(6), one=np.array(1))
    assert_finite_differences(model, f"normalize,legalize,{TRAIN}")


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_legalize_refuses_a_pad_that_mirrors(mode: str) -> None:
    model = onnx_model(
        f'(float[n,6] x) => (y) {{ h = MatMul (x, w) y = Pad <mode: string = "{mode}"> (h, pads) }}',
        w=np.eye(6),
        pads=np.array([0, 1, 0, 1]),
    )
    with pytest.raises(UnsupportedError, match="Pad has no gradient that pqc has checked"):
        pipeline.run(model, "normalize,legalize")


def test_differentiate_refuses_what_legalize_would_have(mlp: ir.Model) -> None:
    model = onnx_model("(float[n,6] x) => (y) { h = MatMul (x, w) y = Round (h) }", w=np.eye(6))
    with pytest.raises(GraphError, match="Round has no gradient that pqc has checked"):
        pipeline.run(model, f"normalize,{TRAIN}")


def test_a_weight_that_does_not_reach_the_loss_gets_a_gradient_of_zero() -> None:
    model = onnx_model(
        "(float[n,2] x) => (float[n,2] y, float[n,2] z) { y = MatMul (x, w) z = MatMul (x, v) }",
        w=np.eye(2),
        v=np.eye(2),
    )
    session = differentiated(model, f"normalize,legalize,{TRAIN}")
    pieces = slices(model, session.run(sample(model, 4))["theta_grad"])
    assert np.all(pieces["v"] == 0) and np.any(pieces["w"] != 0)


@pytest.mark.parametrize("name", ["h_grad", "loss_grad", "theta", "target"])
def test_a_tensor_with_a_name_that_training_uses(name: str) -> None:
    """It is trained all the same, or refused in words of pqc's own."""
    model = onnx_model(f"(float[n,2] x) => (y) {{ {name} = MatMul (x, w) y = Tanh ({name}) }}", w=np.eye(2))
    try:
        pipeline.run(model, "normalize,legalize")
        assert_finite_differences(model, TRAIN)
    except PqcError as error:
        assert name in error.message
        assert "defect" not in str(error)
