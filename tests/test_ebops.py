"""Bit operations of every operator in every convention against the float64 reference, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from fixed_networks import FixedNetwork
from hypothesis import given
from hypothesis import strategies as st

import reference_quant as ref
from pqc import engine, graph, library, metrics, pipeline
from pqc.conventions import CONVENTIONS, DEFAULT, named
from pqc.ebops import Counter
from pqc.errors import PqcError, UnsupportedError
from pqc.functions.fixed_quant import FIXED_QUANT
from pqc.shapes import infer_shapes

REFERENCE = {
    "products": "multiplications",
    "products+additions": "additions",
    "hgq2": "hgq2",
    "reference": "reference",
}
SHAPE = (3, 4, 4)
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(list(CONVENTIONS))


class Drawn(FixedNetwork):
    """A graph with random bits, and the widths that a convention gives them."""

    def __init__(self, *shape: int, seed: int, convention: str) -> None:
        super().__init__(*shape, seed=seed)
        self.convention = CONVENTIONS[convention]

    def bits(self, shape: tuple[int, ...], signed: int = 1) -> tuple[list[ir.Value], np.ndarray]:
        i, f = self.random.integers(-2, 4, shape), self.random.integers(0, 4, shape)
        magnitude = ref.width(0, i, f)
        counted = signed * (self.convention.signs * ((magnitude > 0) | self.convention.lone_signs))
        return [self.constant(part.astype(np.float32)) for part in (i, f)], magnitude + counted

    def data(self, value: ir.Value, shape: tuple[int, ...]) -> tuple[ir.Value, np.ndarray]:
        bits, widths = self.bits((1, *shape))
        return self.op("FixedQuant", value, *bits, domain=FIXED_QUANT.key[0], overflow="WRAP"), widths[0]

    def parameter(self, *shape: int) -> tuple[ir.Value, np.ndarray, np.ndarray]:
        """A parameter, its widths, and its values, of which some are zero."""
        array = self.constant(self.random.choice([0.0, 0.4, -2.0], shape))
        bits, widths = self.bits(shape)
        rounded = ref.fixed_point(graph.stored(array), 1, *(graph.stored(one) for one in bits), "RND_CONV", "SAT_SYM")
        made = self.op("FixedQuant", array, *bits, domain=FIXED_QUANT.key[0], overflow="SAT_SYM")
        return made, widths * (rounded != 0), rounded

    def cost(self, output: ir.Value) -> float:
        model = self.model(output)
        model.graph.opset_imports[FIXED_QUANT.key[0]] = 1
        library.link(model)
        infer_shapes(model)
        return metrics.ebops(metrics.Probe(model, self.convention).costs({}))


Case = Callable[[Drawn, str], tuple[ir.Value, float]]


def batch_norm(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (x, b), (gamma, g, values), (beta, c, _) = net.data(net.x, SHAPE), net.parameter(3), net.parameter(3)
    constants = [net.constant(array) for array in (np.zeros(3), np.ones(3))]
    expected = ref.batch_norm_ebops(b, g, c, values, SHAPE[1:], convention)
    return net.op("BatchNormalization", x, gamma, beta, *constants), expected


def factors_and_terms(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (x, b), (gamma, g, values) = net.data(net.x, SHAPE), net.parameter(3, 1, 1)
    scaled = net.op("Mul", x, gamma)
    beta, c, _ = net.parameter(3, 1, 1)
    expected = ref.batch_norm_ebops(b, g.ravel(), c.ravel(), values.ravel(), SHAPE[1:], convention)
    return net.op("Add", scaled, beta), expected


def average_pool(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    x, b = net.data(net.x, SHAPE)
    return net.pool("AveragePool", x, 2), ref.average_pool_ebops(b, SHAPE, convention)


def max_pool(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    x, b = net.data(net.x, SHAPE)
    return net.pool("MaxPool", x, 2), b.sum() if convention == "hgq2" else 0


def table(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    x, b = net.data(net.x, SHAPE)
    y, found = net.data(net.op("Tanh", x), SHAPE)
    return y, ref.table_ebops(b, found, SHAPE, convention)


def softmax(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    x, b = net.data(net.x, SHAPE)
    y, found = net.data(net.op("Softmax", x, axis=-1), SHAPE)
    return y, ref.softmax_ebops(b, found, found, SHAPE, convention)


def attention(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (q, bq), (k, bk), (v, bv) = (net.data(net.x, SHAPE) for _ in range(3))
    scores, ba = net.data(net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), SHAPE)
    expected = ref.attention_ebops(bq, bk, ba, bv, *SHAPE, 4, convention)
    return net.op("MatMul", scores, v), expected


def layer_norm(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (x, b), (gamma, g, values), (beta, c, _) = net.data(net.x, SHAPE), net.parameter(4), net.parameter(4)
    expected = ref.layer_norm_ebops(b, g, c, values, SHAPE[:2], convention)
    return net.op("LayerNormalization", x, gamma, beta), expected


def add(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (x, b), (y, c) = net.data(net.x, SHAPE), net.data(net.x, SHAPE)
    return net.op("Add", x, y), ref.add_ebops([b, c], SHAPE, convention)


def subtract(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (x, b), (y, c) = net.data(net.x, SHAPE), net.data(net.x, SHAPE)
    hgq2 = convention == "hgq2"
    expected = ref.subtract_ebops_hgq2(b, c, SHAPE) if hgq2 else ref.add_ebops([b, c], SHAPE, convention)
    return net.op("Sub", x, y), expected


def multiply(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (x, b), (y, c) = net.data(net.x, SHAPE), net.data(net.x, SHAPE)
    return net.op("Mul", x, y), ref.multiply_ebops(b, c, SHAPE)


def reduction(kind: str) -> Case:
    def case(net: Drawn, convention: str) -> tuple[ir.Value, float]:
        x, b = net.data(net.x, SHAPE)
        hgq2 = convention == "hgq2"
        expected = (
            ref.reduce_sum_ebops_hgq2(b, SHAPE) if hgq2 else ref.add_ebops(list(b.T), SHAPE[::-1][1:], convention)
        )
        return net.op(kind, x, net.constant(np.array([-1]))), expected

    return case


def convolution(groups: int) -> Case:
    def case(net: Drawn, convention: str) -> tuple[ir.Value, float]:
        (x, b), (w, bw, values) = net.data(net.x, SHAPE), net.parameter(6, 3 // groups, 2, 3)
        bias, bb, _ = net.parameter(6)
        window = {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 1]}
        y = net.op("Conv", x, w, bias, kernel_shape=[2, 3], group=groups, **window)
        return y, ref.conv_ebops(b, bw, bb, values, SHAPE[1:], convention, **window, groups=groups)

    return case


def dense(net: Drawn, convention: str) -> tuple[ir.Value, float]:
    (x, b), (w, bw, values), (bias, bb, _) = net.data(net.x, SHAPE), net.parameter(4, 5), net.parameter(5)
    y = net.op("Add", net.op("MatMul", x, w), bias)
    return y, ref.dense_ebops(b, bw.T, bb, values.T, convention, SHAPE[:2])


CASES: dict[str, Case] = {
    "add": add,
    "attention": attention,
    "average pool": average_pool,
    "batch norm": batch_norm,
    "convolution": convolution(1),
    "dense": dense,
    "depthwise": convolution(3),
    "factors and terms": factors_and_terms,
    "layer norm": layer_norm,
    "max pool": max_pool,
    "multiply": multiply,
    "reduce mean": reduction("ReduceMean"),
    "reduce sum": reduction("ReduceSum"),
    "softmax": softmax,
    "subtract": subtract,
    "table": table,
}
ROUNDED = {"table", "add", "reduce sum", "reduce mean"}
"""Counts with a factor that float32 does not hold: within its error; all others are equal."""


@pytest.mark.parametrize("case", CASES)
@given(seed=seeds, convention=names)
def test_each_operator_is_counted_as_the_reference_counts(case: str, seed: int, convention: str) -> None:
    net = Drawn(*SHAPE, seed=seed, convention=convention)
    output, expected = CASES[case](net, REFERENCE[convention])
    found = net.cost(output)
    assert found == (pytest.approx(expected, rel=2e-6) if case in ROUNDED else expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_leaves_a_relu_has_no_sign(convention: str) -> None:
    net = Drawn(4, seed=1, convention=convention)
    x = net.op("Relu", net.quant(net.x, 6, 3))
    y = net.op("MatMul", x, net.quant(net.constant(np.ones((4, 2))), 3, 0, signed=0))
    assert net.cost(y) == 8 * 5 * 3


def test_a_head_and_a_table_of_floats_count_nothing() -> None:
    net = Drawn(4, seed=1, convention="products+additions")
    assert net.cost(net.op("Softmax", net.op("Tanh", net.x))) == 0


def test_groups_that_the_published_formula_does_not_know_are_refused() -> None:
    net = Drawn(4, 5, 5, seed=1, convention="reference")
    y = net.op("Conv", net.data(net.x, (4, 5, 5))[0], net.parameter(4, 2, 3, 3)[0], kernel_shape=[3, 3], group=2)
    with pytest.raises(UnsupportedError, match="not depthwise"):
        net.cost(y)


def test_behind_a_token_that_is_expanded_to_the_batch() -> None:
    """Its shape is computed, and known but for the batch: 30 weights of 8 bits on activations of 8."""
    model = onnx_model(
        "(float[n,4,2] x) => (float[n,3] y) { s = Shape (x) b = Gather (s, zero) u = Unsqueeze (b, first)"
        " l = Concat <axis: int = 0> (u, stays, stays) e = Equal (l, stays) t = Where (e, ones, l)"
        " c = Expand (token, t) j = Concat <axis: int = 1> (c, x) f = Reshape (j, rows) y = MatMul (f, fc__weight) }",
        zero=np.array(0),
        first=np.array([0]),
        stays=np.array([-1]),
        ones=np.array([1, 1, 1]),
        token=np.array([[[3.0, 4.0]]]),
        rows=np.array([-1, 10]),
        fc__weight=np.full((10, 3), 0.5),
    )
    pipeline.run(model, "normalize,fold-constants,insert-quant{weights=1,0,7 inputs=1,3,4}")
    (found,) = metrics.Probe(model).costs({})
    assert found.products == 30 * 8 * 8


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(PqcError, match="did you mean 'hgq2'"):
        named("hgq")


GRADIENTS = sorted(CASES.keys() - {"max pool"})


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_of_bits_are_finite_differences(case: str) -> None:
    """One bit more of each data element, where nothing ties: the engine's gradient is the difference that it makes."""
    net = Drawn(*SHAPE, seed=3, convention=DEFAULT.name)
    output, _ = CASES[case](net, "additions")
    model = net.model(output)
    model.graph.opset_imports[FIXED_QUANT.key[0]] = 1
    library.link(model)
    infer_shapes(model)
    bits = [graph.operand(node, 2) for node in model.graph if node.op_type == "FixedQuant"]
    for value in bits:  # apart from each other by more than a step, and above zero
        graph.set_initializer(value, (graph.stored(value) + 4).astype(np.float32))
    values = [graph.stored(value) for value in bits]
    costs = Counter(model.graph, DEFAULT).count(model.graph.outputs)
    scalars = [value for terms in costs.values() for value in terms.costs]
    main = model.graph
    total = scalars[0]
    for scalar in scalars[1:]:
        node = ir.node("Add", [total, scalar], name=f"sum.{scalar.name}")
        node.outputs[0].name = f"sum.{scalar.name}.out"
        main.append(node)
        total = node.outputs[0]
    total.name = "loss"
    total.type, total.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    main.outputs[:] = [total]
    library.link(model, gradients=True)
    graph.remove_unused(main)
    main.inputs[:] = []
    kept = [str(value.name) for value in bits if value.name in main.initializers]
    step = graph.from_proto(engine.gradient_graph(graph.to_proto(model), "loss", kept))
    library.link(step)
    found = engine.evaluate(step, {})
    assert kept
    for value, array in zip(bits, values, strict=True):
        gradient = found.get(f"{value.name}_grad")
        if gradient is None:
            continue
        place = tuple(np.argwhere(np.ones(array.shape))[array.size // 2])
        differences = []
        for change in (1, -1):
            moved = array.copy()
            moved[place] += change
            graph.set_initializer(main.initializers[str(value.name)], moved)
            differences.append(float(engine.evaluate(model, {})["loss"]))
        graph.set_initializer(main.initializers[str(value.name)], array)
        low, high = sorted(abs(one - float(engine.evaluate(model, {})["loss"])) for one in differences)
        assert 0.99 * low <= gradient[place] <= 1.01 * high
