"""Golden text: what each pass makes of a tiny graph, and what it leaves alone.

In the texts `Quant<k,i,f> (x)` stands for a Quant node of that fixed point type, rounding half to even.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import numpy as np
import onnx_ir as ir
import pytest
from conftest import content, initializers, onnx_model, text_of

from pqc import engine, graph, layers, masking, pipeline
from pqc.errors import PassError, PqcError, UnsupportedError
from pqc.fixed_point import FixedPoint
from pqc.passes import TABLE
from pqc.rewriting import Pass

W = [[0.3, -0.6], [1.2, 0.1]]
BIAS = [1.0, 2.0]
EPSILON = 1e-5
NORM = {"gamma": [2.0, 1.0], "beta": [0.5, 0.0], "mean": [1.0, -1.0], "var": [4 - EPSILON, 0.25 - EPSILON]}
QUANT = 'qonnx.custom_op.general.Quant <signed: int = {}, narrow: int = 0, rounding_mode: string = "ROUND">'

DENSE = "(float[n,2] x) => (float[n,2] y) { y = MatMul (x, fc__weight) }"
BIASED = "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) y = Add (h, fc__bias) }"


def short(model: ir.Model) -> str:
    """The graph's text with each plain Quant node written as `Quant<k,i,f>`, and masks without attributes."""
    text = re.sub(r"(pqc\.\w+\.ContinuousSparsification\w*) <.*?>", r"\1", text_of(model))
    for node in model.graph:
        if not layers.is_quant(node):
            continue
        grid = layers.grid(node)
        assert grid is not None
        fraction = int(-np.log2(grid.scale))
        kind = FixedPoint(int(grid.signed), int(grid.bits) - fraction - int(grid.signed), fraction)
        names = [value.name for value in node.inputs]
        plain = grid.rounding == "ROUND" and not grid.narrow and not np.any(grid.zero_point)
        if plain:
            inputs = re.escape(f"({', '.join(names)})")
            text = re.sub(rf"qonnx\.custom_op\.general\.Quant <[^>]*> {inputs}", f"Quant<{kind}> ({names[0]})", text)
    return text


def after(before: str, passes: str, **arrays: object) -> ir.Model:
    """The graph of the text `before` after the pipeline."""
    model = onnx_model(before, **arrays)
    pipeline.run(model, passes)
    return model


def assert_becomes(before: str, passes: str, expected: str, **arrays: object) -> ir.Model:
    model = after(before, passes, **arrays)
    assert short(model) == dedent(expected).strip()
    return model


def assert_left_alone(before: str, passes: str, **arrays: object) -> None:
    """The last pass of the pipeline counts nothing and changes not one bit."""
    *earlier, last = pipeline.parse(passes)
    model = onnx_model(before, **arrays)
    pipeline.run(model, earlier)
    untouched = content(model)
    assert last.rewrite(model) == 0
    assert content(model) == untouched


def test_the_table_is_complete() -> None:
    folder = Path(pipeline.__file__).parent.parent / "passes"
    in_files = {path.stem.replace("_", "-") for path in folder.glob("[!_]*.py")}
    assert in_files == set(TABLE)
    assert all(issubclass(kind, Pass) and kind.title == title for title, kind in TABLE.items())


# normalize


def test_normalize() -> None:
    before = """(float[n,2] x) => (float[n,2] y) {
        c = Constant <value = float[2] {1,2}> ()
        i = Identity (x)
        h = Add (i, c)
        y = Relu (h)
    }"""
    model = onnx_model(before, opset=13, named=False)
    pipeline.run(model, "normalize", verify_each=True)
    assert text_of(model) == "(float[n,2] x) => (float[n,2] y)\nh = Add (x, c)\ny = Relu (h)"
    assert [node.name for node in model.graph] == ["Add_h", "Relu_y"]
    assert model.graph.opset_imports == {"": 21}
    assert [str(node.outputs[0].shape) for node in model.graph] == ["[n,2]", "[n,2]"]
    np.testing.assert_array_equal(initializers(model)["c"], [1, 2])


def test_normalize_gives_doubly_named_nodes_names_of_their_own() -> None:
    model = onnx_model("(float[n,2] x) => (float[n,2] y) { a = Relu (x) b = Relu (a) y = Relu (b) }")
    for node in model.graph:
        node.name = "act"
    assert TABLE["normalize"]().rewrite(model)
    assert [node.name for node in model.graph] == ["act", "act_1", "act_2"]


def test_normalize_spells_the_rounding_mode() -> None:
    before = f"(float[n,2] x) => (float[n,2] y) {{ y = {QUANT.format(1)} (x, s, z, b) }}"
    model = after(before.replace("ROUND", "floor"), "normalize", s=0.5, z=0.0, b=4.0)
    assert text_of(model).splitlines()[1] == f"y = {QUANT.format(1)} (x, s, z, b)".replace("ROUND", "FLOOR")
    x = np.array([[0.3, -0.3]], np.float32)
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], [[0.0, -0.5]])


def test_normalize_leaves_a_normal_graph_alone() -> None:
    assert_left_alone(BIASED, "normalize,normalize", fc__weight=W, fc__bias=BIAS)


# fold-constants


def test_fold_constants() -> None:
    before = (
        "(float[3,2] x) => (float[6] y) { s = Shape (x) p = ReduceProd <keepdims: int = 1> (s) y = Reshape (x, p) }"
    )
    model = assert_becomes(before, "normalize,fold-constants", "(float[3,2] x) => (float[6] y)\ny = Reshape (x, p)")
    np.testing.assert_array_equal(initializers(model)["p"], [6])


def test_fold_constants_leaves_quant_and_large_results_alone() -> None:
    quantized = f"(float[n,2] x) => (float[n,2] y) {{ a = {QUANT.format(1)} (p, s, z, b) y = Mul (x, a) }}"
    assert_left_alone(quantized, "fold-constants", p=BIAS, s=0.5, z=0.0, b=4.0)
    summed = "(float[n,2] x) => (float[n,2] y) { a = Add (p, q) y = Mul (x, a) }"
    assert_left_alone(summed, "fold-constants{limit=1}", p=BIAS, q=BIAS)
    assert_becomes(
        summed, "fold-constants{limit=2}", "(float[n,2] x) => (float[n,2] y)\ny = Mul (x, a)", p=BIAS, q=BIAS
    )


TOKEN = (
    "(float[n,4,2] x, int64[1] k) => (float[n,5,2] y) {{ s = Shape (x) b = Gather (s, zero) u = Unsqueeze (b, first)"
    " l = Concat <axis: int = 0> ({}, stays, stays) r = Reshape (l, stays) e = Equal (r, {}) t = Where (e, ones, r)"
    " c = Expand (token, t) y = Concat <axis: int = 1> (c, x) }}"
)
TOKEN_ARRAYS: dict[str, object] = {
    "zero": np.array(0),
    "first": np.array([0]),
    "stays": np.array([-1]),
    "ones": np.array([1, 1, 1]),
    "token": np.array([[[3.0, 4.0]]]),
}


def test_fold_constants_replaces_marks_among_lengths() -> None:
    """PyTorch's `token.expand(len(x), -1, -1)`, of which the length of the row is then known."""
    model = assert_becomes(
        TOKEN.format("u", "marks"),
        "normalize,fold-constants",
        """
        (float[n,4,2] x, int64[1] k) => (float[n,5,2] y)
        s = Shape (x)
        b = Gather (s, zero)
        u = Unsqueeze (b, first)
        Where_t.lengths = Concat <axis: int = 0> (u, Where_t.length, Where_t.length_1)
        c = Expand (token, Where_t.lengths)
        y = Concat <axis: int = 1> (c, x)""",
        marks=np.array([-1, -1, -1]),
        **TOKEN_ARRAYS,
    )
    token = next(node.outputs[0] for node in model.graph if node.op_type == "Expand")
    assert graph.row_shape(token) == (1, 1, 2) and list(token.shape)[1:] == [1, 2]
    x = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    found = engine.evaluate(model, {"x": x, "k": np.array([3])})["y"]
    np.testing.assert_array_equal(found, np.concatenate([np.full((3, 1, 2), [3, 4]), x], axis=1))


@pytest.mark.parametrize(("length", "marks"), [("k", [-1, -1, -1]), ("u", [3, -1, -1])])
def test_fold_constants_leaves_marks_that_may_be_met(length: str, marks: list[int]) -> None:
    """A number that the user gives may be -1, and a positive mark may be a length."""
    text = TOKEN.format(length, "marks")
    assert_left_alone(text, "normalize,fold-constants", marks=np.array(marks), **TOKEN_ARRAYS)


# fold-batchnorm

BEFORE_NORM = (
    "(float[n,2] x) => (float[n,2] y) {{ {} b = BatchNormalization (h, gamma, beta, mean, var) y = Relu (b) }}"
)


def test_fold_batchnorm_into_matmul() -> None:
    model = assert_becomes(
        BEFORE_NORM.format("h = MatMul (x, fc__weight)"),
        "normalize,fold-batchnorm",
        """
        (float[n,2] x) => (float[n,2] y)
        h = MatMul (x, fc.weight)
        MatMul_h.bias.out = Add (h, fc.bias)
        y = Relu (MatMul_h.bias.out)""",
        fc__weight=W,
        **NORM,
    )
    # gain = gamma / sqrt(var + eps) = (1, 2); bias = beta - mean gain
    np.testing.assert_allclose(initializers(model)["fc.weight"], np.multiply(W, [1, 2]), rtol=1e-6)
    np.testing.assert_allclose(initializers(model)["fc.bias"], [-0.5, 2], rtol=1e-6)


def test_fold_batchnorm_into_matmul_and_add() -> None:
    model = assert_becomes(
        BEFORE_NORM.format("p = MatMul (x, fc__weight) h = Add (p, fc__bias)"),
        "normalize,fold-batchnorm",
        """
        (float[n,2] x) => (float[n,2] y)
        p = MatMul (x, fc.weight)
        h = Add (p, fc.bias)
        y = Relu (h)""",
        fc__weight=W,
        fc__bias=BIAS,
        **NORM,
    )
    np.testing.assert_allclose(initializers(model)["fc.bias"], [0.5, 6], rtol=1e-6)


def test_fold_batchnorm_into_gemm() -> None:
    model = assert_becomes(
        BEFORE_NORM.format("h = Gemm <transB: int = 1> (x, fc__weight)"),
        "normalize,fold-batchnorm",
        """
        (float[n,2] x) => (float[n,2] y)
        h = Gemm <transB: int = 1> (x, fc.weight, fc.bias)
        y = Relu (h)""",
        fc__weight=W,
        **NORM,
    )
    np.testing.assert_allclose(initializers(model)["fc.weight"], np.multiply(W, [[1], [2]]), rtol=1e-6)


@pytest.mark.parametrize("factors", ["alpha: float = 0.5", "beta: float = 3.0"])
def test_fold_batchnorm_heeds_the_factors_of_gemm(factors: str) -> None:
    before = BEFORE_NORM.format(f"h = Gemm <{factors}> (x, fc__weight, fc__bias)")
    model = onnx_model(before, fc__weight=W, fc__bias=BIAS, **NORM)
    pipeline.run(model, "normalize,fold-batchnorm", verify_each=True)
    assert "Gemm" in text_of(model)


def test_fold_batchnorm_into_conv() -> None:
    model = assert_becomes(
        """(float[n,1,2,2] x) => (float[n,2,2,2] y) {
            h = Conv (x, c__weight, c__bias)
            b = BatchNormalization (h, gamma, beta, mean, var)
            y = Relu (b)
        }""",
        "normalize,fold-batchnorm",
        """
        (float[n,1,2,2] x) => (float[n,2,2,2] y)
        h = Conv (x, c.weight, c.bias)
        y = Relu (h)""",
        c__weight=np.ones((2, 1, 1, 1)),
        c__bias=BIAS,
        **NORM,
    )
    np.testing.assert_allclose(initializers(model)["c.weight"].ravel(), [1, 2], rtol=1e-6)


def test_fold_batchnorm_keeps_the_name_of_an_output() -> None:
    assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { h = Gemm (x, w) y = BatchNormalization (h, gamma, beta, mean, var) }",
        "normalize,fold-batchnorm",
        "(float[n,2] x) => (float[n,2] y)\ny = Gemm (x, w, w.bias)",
        w=W,
        **NORM,
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "h = Gemm (x, w) b = BatchNormalization (h, gamma, beta, mean, var) y = Add (b, h)",
        "h = MatMul (x, w) b = BatchNormalization (h, gamma, beta, mean, var) y = MatMul (b, w)",
        "h = Relu (x) y = BatchNormalization (h, gamma, beta, mean, var)",
        "h = Gemm (x, w, gamma) y = BatchNormalization (h, gamma, beta, mean, var)",
    ],
    ids=["shared output", "shared weight", "no layer", "shared bias"],
)
def test_fold_batchnorm_leaves_alone(nodes: str) -> None:
    used = {"w": W, **NORM} if ", w" in nodes else NORM
    assert_left_alone(f"(float[n,2] x) => (float[n,2] y) {{ {nodes} }}", "normalize,fold-batchnorm", **used)


# expand-softmax

INNER_SOFTMAX = "(float[n,2] x) => (float[n,2] y) { p = Softmax (x) y = MatMul (p, fc__weight) }"


def test_expand_softmax() -> None:
    expected = """
        (float[n,2] x) => (float[n,2] y)
        Softmax_p.max.out = ReduceMax (x, Softmax_p.axes)
        Softmax_p.difference.out = Sub (Softmax_p.max.out, x)
        Softmax_p.exponent.out = Neg (Softmax_p.difference.out)
        Softmax_p.exp.out = Exp (Softmax_p.exponent.out)
        Softmax_p.sum.out = ReduceSum (Softmax_p.exp.out, Softmax_p.axes)
        Softmax_p.divisor.out = Max (Softmax_p.sum.out, Softmax_p.least)
        Softmax_p.inverse.out = Reciprocal (Softmax_p.divisor.out)
        Softmax_p.result.out = Mul (Softmax_p.exp.out, Softmax_p.inverse.out)
        y = MatMul (Softmax_p.result.out, fc.weight)"""
    assert_becomes(INNER_SOFTMAX, "expand-softmax", expected, fc__weight=W)


@pytest.mark.parametrize(
    "before",
    [
        "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) y = Softmax (h) }",
        "(float[n,2] x) => (float[2,n] y) { h = MatMul (x, fc__weight) p = Softmax (h) y = Transpose (p) }",
        "(float[n,2] x) => (float[n,2] p, float[n,2] y) { p = Softmax (x) y = MatMul (p, fc__weight) }",
        "(float[n,2] x) => (float[n,2] y) { p = LogSoftmax (x) y = MatMul (p, fc__weight) }",
    ],
)
def test_expand_softmax_leaves_heads_and_logarithms_alone(before: str) -> None:
    assert_left_alone(before, "normalize,expand-softmax", fc__weight=W)


# expand-layernorm

NORMED = """
    (float[n,2] x) => (float[n,2] y)
    {0}.mean.out = ReduceMean (x, {0}.axes)
    {0}.centered.out = Sub (x, {0}.mean.out)
    {0}.square.out = Mul ({0}.centered.out, {0}.centered.out)
    {0}.variance.out = ReduceMean ({0}.square.out, {0}.axes)
    {0}.widened.out = Add ({0}.variance.out, {0}.epsilon)
    {0}.inverse.out = Pow ({0}.widened.out, {0}.power)
    {0}.normalized.out = Mul ({0}.centered.out, {0}.inverse.out)
"""
AFFINE = """    {0}.gain.out = Mul ({0}.normalized.out, gain)
    y = Add ({0}.gain.out, shift)
"""
SQUARES = ("s = Mul (c, c)", "s = Pow (c, two)")
EXPORTED = """(float[n,2] x) => (float[n,2] y) {
    m = ReduceMean (x, last) c = Sub (x, m) SQUARE v = ReduceMean (s, last) e = Add (v, epsilon) r = Sqrt (e)
    d = Div (c, r) g = Mul (d, gain) y = Add (g, shift)
}"""
NORM_CONSTANTS = {"gain": [1.5, 0.5], "shift": [0.1, -0.1], "epsilon": 0.01, "two": 2.0, "last": np.array([-1])}


def test_expand_layernorm() -> None:
    before = "(float[n,2] x) => (float[n,2] y) { y = LayerNormalization <epsilon: float = 0.01> (x, gain, shift) }"
    model = assert_becomes(
        before, "normalize,expand-layernorm", (NORMED + AFFINE).format("LayerNormalization_y"), **NORM_CONSTANTS
    )
    assert [one.role for one in masking.parameters(model.graph)] == ["gain", "shift"]


@pytest.mark.parametrize("square", SQUARES)
def test_expand_layernorm_knows_what_exporters_write(square: str) -> None:
    before = EXPORTED.replace("SQUARE", square)
    assert_becomes(before, "normalize,expand-layernorm", (NORMED + AFFINE).format("Add_y"), **NORM_CONSTANTS)


def test_expand_layernorm_without_gain_and_shift() -> None:
    before = EXPORTED.replace("SQUARE", SQUARES[0]).replace("d = Div (c, r) g = Mul (d, gain) y = Add (g, shift)", "")
    before = before.replace("r = Sqrt (e)", "r = Sqrt (e) y = Div (c, r)")
    expected = NORMED.format("Div_y").replace("Div_y.normalized.out =", "y =")
    assert_becomes(before, "normalize,expand-layernorm", expected, **NORM_CONSTANTS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("c = Sub (x, m)", "c = Sub (m, x)"),
        ("v = ReduceMean (s, last)", "v = ReduceMean (s, first)"),
        ("s = Mul (c, c)", "s = Mul (c, x)"),
        ("s = Mul (c, c)", "s = Pow (c, epsilon)"),
        ("r = Sqrt (e)", "r = Exp (e)"),
    ],
)
def test_expand_layernorm_leaves_other_quotients_alone(old: str, new: str) -> None:
    before = EXPORTED.replace("SQUARE", SQUARES[0]).replace(old, new)
    assert_left_alone(before, "normalize,expand-layernorm", first=np.array([0]), **NORM_CONSTANTS)


def test_expand_layernorm_takes_no_factor_for_a_gain() -> None:
    before = EXPORTED.replace("SQUARE", SQUARES[0]).replace("gain", "two").replace("shift", "epsilon")
    model = after(before, "normalize,expand-layernorm", **NORM_CONSTANTS)
    assert masking.parameters(model.graph) == []
    assert text_of(model).endswith("g = Mul (Div_d.normalized.out, two)\ny = Add (g, epsilon)")


def test_expand_layernorm_leaves_one_whose_mean_is_read_alone() -> None:
    before = """(float[n,2] x) => (float[n,2] y) {
        h, mean = LayerNormalization (x, gain, shift) y = Add (h, mean)
    }"""
    assert_left_alone(before, "normalize,expand-layernorm", gain=[1.5, 0.5], shift=[0.1, -0.1])


# legalize: the rewrites' values and gradients are tested with differentiation


def test_legalize() -> None:
    assert_becomes(
        """(float[n,2] x) => (float[n,2] y) {
            a = MatMul (x, w)
            b = Relu (x)
            s = Sum (a, b, x)
            y = Tanh (s)
        }""",
        "normalize,legalize",
        """
        (float[n,2] x) => (float[n,2] y)
        a = MatMul (x, w)
        b = Relu (x)
        Sum_s.add.out = Add (a, b)
        Sum_s.add_1.out = Add (Sum_s.add.out, x)
        y = Tanh (Sum_s.add_1.out)""",
        w=W,
    )


def test_legalize_keeps_the_axes_of_a_maximum() -> None:
    assert_becomes(
        "(float[n,3,2] x) => (float[n,2] y) { h = MatMul (x, w) y = ReduceMax <keepdims: int = 0> (h, tokens) }",
        "normalize,legalize",
        """
        (float[n,3,2] x) => (float[n,2] y)
        h = MatMul (x, w)
        ReduceMax_y.reducemax.out = ReduceMax (h, tokens)
        y = Squeeze (ReduceMax_y.reducemax.out, tokens)""",
        w=W,
        tokens=np.array([1]),
    )


def test_legalize_leaves_a_legal_graph_alone() -> None:
    before = """(float[n,2,4,4] x) => (float[n,2,4,4] y) {
        h = Conv <pads: ints = [0,0,0,0]> (x, w)
        y = Pow (h, two)
    }"""
    assert_left_alone(before, "normalize,legalize", w=np.ones((2, 2, 1, 1)), two=2.0)


# insert-quant


def test_insert_quant_on_a_layer() -> None:
    model = assert_becomes(
        BIASED,
        "insert-quant{weights=1,0,7 biases=1,2,5 inputs=0,3,5}",
        """
        (float[n,2] x) => (float[n,2] y)
        x.quantized = Quant<0,3,5> (x)
        fc.bias.quantized = Quant<1,2,5> (fc.bias)
        fc.weight.quantized = Quant<1,0,7> (fc.weight)
        h = MatMul (x.quantized, fc.weight.quantized)
        y = Add (h, fc.bias.quantized)""",
        fc__weight=W,
        fc__bias=BIAS,
    )
    np.testing.assert_array_equal(initializers(model)["fc.weight"], np.float32(W))


def test_insert_quant_goes_before_what_only_moves_values() -> None:
    assert_becomes(
        """(float[n,2,4,4] x) => (float[n,2] y) {
            r = Relu (x)
            m = MaxPool <kernel_shape: ints = [4,4]> (r)
            f = Flatten (m)
            y = Gemm (f, w)
        }""",
        "insert-quant{weights=none}",
        """
        (float[n,2,4,4] x) => (float[n,2] y)
        r = Relu (x)
        r.quantized = Quant<0,0,7> (r)
        m = MaxPool <kernel_shape: ints = [4, 4]> (r.quantized)
        f = Flatten (m)
        y = Gemm (f, w)""",
        w=W,
    )


def test_insert_quant_puts_one_quantizer_on_a_value_for_all_readers() -> None:
    assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { a = MatMul (x, v) b = Tanh (x) y = Add (a, b) }",
        "insert-quant{weights=none inputs=1,2,3}",
        """
        (float[n,2] x) => (float[n,2] y)
        x.quantized = Quant<1,2,3> (x)
        a = MatMul (x.quantized, v)
        a.quantized = Quant<1,2,3> (a)
        b = Tanh (x.quantized)
        b.quantized = Quant<1,2,3> (b)
        y = Add (a.quantized, b.quantized)""",
        v=W,
    )


def test_insert_quant_leaves_excluded_layers_alone() -> None:
    assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, body__weight) y = MatMul (h, head__weight) }",
        "insert-quant{exclude=head*}",
        """
        (float[n,2] x) => (float[n,2] y)
        x.quantized = Quant<0,0,7> (x)
        body.weight.quantized = Quant<1,0,7> (body.weight)
        h = MatMul (x.quantized, body.weight.quantized)
        y = MatMul (h, head.weight)""",
        body__weight=W,
        head__weight=W,
    )


def test_insert_quant_leaves_excluded_nodes_alone_by_their_names() -> None:
    assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { a_ready = Mul (x, x) b_ready = Log (a_ready) y = MatMul (b_ready, fc__weight) }",
        "insert-quant{weights=none exclude=*_ready}",
        """
        (float[n,2] x) => (float[n,2] y)
        a_ready = Mul (x, x)
        b_ready = Log (a_ready)
        b_ready.quantized = Quant<0,0,7> (b_ready)
        y = MatMul (b_ready.quantized, fc.weight)""",
        fc__weight=W,
    )
    assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { a = Mul (x, x) b = Log (a) y = MatMul (b, fc__weight) }",
        "insert-quant{weights=none}",
        """
        (float[n,2] x) => (float[n,2] y)
        x.quantized = Quant<0,0,7> (x)
        a = Mul (x.quantized, x.quantized)
        b = Log (a)
        b.quantized = Quant<0,0,7> (b)
        y = MatMul (b.quantized, fc.weight)""",
        fc__weight=W,
    )


OUTPUT_QUANTIZED = """
(float[n,2] x) => (float[n,2] y)
y.quantized = MatMul (x, fc.weight)
y = Quant<1,2,3> (y.quantized)"""


def test_insert_quant_on_outputs_keeps_their_names() -> None:
    before = "(float[n,2] x) => (float[n,2] y) { y = Relu (x) }"
    expected = "(float[n,2] x) => (float[n,2] y)\ny.quantized = Relu (x)\ny = Quant<1,2,3> (y.quantized)"
    assert_becomes(before, "insert-quant{outputs=1,2,3}", expected)


def test_insert_quant_on_outputs_alone() -> None:
    assert_becomes(DENSE, "insert-quant{weights=none inputs=none outputs=1,2,3}", OUTPUT_QUANTIZED, fc__weight=W)


def test_insert_quant_leaves_quantized_layers_alone() -> None:
    assert_left_alone(BIASED, "insert-quant{outputs=1,2,3},insert-quant{outputs=1,2,3}", fc__weight=W, fc__bias=BIAS)


# calibrate-quant


def test_calibrate_quant(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).uniform(0, 7.9, (500, 2)).astype(np.float32))
    model = assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) y = Tanh (h) }",
        f"insert-quant{{inputs=0,0,8}},calibrate-quant{{data={tmp_path / 'd.npz'}}}",
        """
        (float[n,2] x) => (float[n,2] y)
        x.quantized = Quant<0,3,5> (x)
        fc.weight.quantized = Quant<1,1,6> (fc.weight)
        h = MatMul (x.quantized, fc.weight.quantized)
        h.quantized = Quant<1,4,4> (h)
        y = Tanh (h.quantized)""",
        fc__weight=W,
    )
    assert layers.grid(model.graph.node(3)).bits == 9  # eight of magnitude, and a sign where h is negative


def test_calibrate_quant_leaves_other_grids_alone() -> None:
    node = QUANT.format(1)
    scaled = f"(float[n,2] x) => (float[n,2] y) {{ q = {node} (x, s, z, b) y = Tanh (q) }}"
    assert_left_alone(scaled, "calibrate-quant", s=0.3, z=0.0, b=4.0)
    assert_left_alone(scaled, "calibrate-quant", s=0.5, z=1.0, b=4.0)
    assert_left_alone(scaled, "calibrate-quant", s=[0.5, 0.3], z=0.0, b=4.0)


RELU = "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) y = Relu (h) }"


def test_insert_relu_multiplier() -> None:
    model = assert_becomes(
        RELU,
        "insert-relu-multiplier",
        """
        (float[n,2] x) => (float[n,2] y)
        h = MatMul (x, fc.weight)
        Relu_y.multiplier.out = pqc.quant.Multiplier (h, Relu_y.multiplier.m)
        y = Relu (Relu_y.multiplier.out)""",
        fc__weight=W,
    )
    assert initializers(model)["Relu_y.multiplier.m"] == -1


def test_insert_relu_multiplier_leaves_alone() -> None:
    assert_left_alone(RELU, "insert-relu-multiplier,insert-relu-multiplier", fc__weight=W)
    assert_left_alone("(float[n,2] x) => (float[n,2] y) { y = Tanh (x) }", "insert-relu-multiplier")


def test_fold_relu_multiplier_into_a_weight_and_its_grid() -> None:
    model = assert_becomes(
        RELU,
        "insert-relu-multiplier{start=-1.6},insert-quant{inputs=none},fold-relu-multiplier",
        """
        (float[n,2] x) => (float[n,2] y)
        fc.weight.quantized = Quant<1,-2,9> (fc.weight)
        h = MatMul (x, fc.weight.quantized)
        y = Relu (h)""",
        fc__weight=W,
    )
    np.testing.assert_array_equal(initializers(model)["fc.weight"], np.float32(W) / 4)


def test_fold_relu_multiplier_into_a_product_where_others_read_the_same() -> None:
    model = assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) a = Relu (h) y = Add (a, h) }",
        "insert-relu-multiplier{start=3},fold-relu-multiplier",
        """
        (float[n,2] x) => (float[n,2] y)
        h = MatMul (x, fc.weight)
        Relu_a.multiplier.product = Mul (h, Relu_a.multiplier.by)
        a = Relu (Relu_a.multiplier.product)
        y = Add (a, h)""",
        fc__weight=W,
    )
    assert initializers(model)["Relu_a.multiplier.by"] == 8


def test_fold_relu_multiplier_leaves_alone() -> None:
    assert_left_alone(RELU, "fold-relu-multiplier", fc__weight=W)


# masks

MASKED = """
(float[n,2] x) => (float[n,2] y)
fc.weight.mask.out = pqc.mask.ContinuousSparsification (fc.weight.s, beta, threshold_decay)
fc.weight.masked = Mul (fc.weight, fc.weight.mask.out)
{}"""


def test_insert_masks() -> None:
    model = assert_becomes(DENSE, "insert-masks", MASKED.format("y = MatMul (x, fc.weight.masked)"), fc__weight=W)
    np.testing.assert_array_equal(initializers(model)["fc.weight.s"], np.zeros((2, 2)))
    assert initializers(model)["beta"] == 1


def test_insert_masks_prunes_first() -> None:
    assert_becomes(
        DENSE,
        "insert-quant{inputs=none},insert-masks",
        MASKED.format("fc.weight.quantized = Quant<1,0,7> (fc.weight.masked)\ny = MatMul (x, fc.weight.quantized)"),
        fc__weight=W,
    )


def test_insert_masks_prunes_last() -> None:
    assert_becomes(
        DENSE,
        "insert-quant{inputs=none},insert-masks{pruning-first=false}",
        """
        (float[n,2] x) => (float[n,2] y)
        fc.weight.quantized = Quant<1,0,7> (fc.weight)
        fc.weight.mask.out = pqc.mask.ContinuousSparsification (fc.weight.s, beta, threshold_decay)
        fc.weight.masked = Mul (fc.weight.quantized, fc.weight.mask.out)
        y = MatMul (x, fc.weight.masked)""",
        fc__weight=W,
    )


def test_insert_masks_shares_a_control_and_masks_a_shared_weight_once() -> None:
    model = assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, a) z = MatMul (h, a) y = MatMul (z, b) }",
        "insert-masks",
        """
        (float[n,2] x) => (float[n,2] y)
        b.mask.out = pqc.mask.ContinuousSparsification (b.s, beta, threshold_decay)
        b.masked = Mul (b, b.mask.out)
        a.mask.out = pqc.mask.ContinuousSparsification (a.s, beta, threshold_decay)
        a.masked = Mul (a, a.mask.out)
        h = MatMul (x, a.masked)
        z = MatMul (h, a.masked)
        y = MatMul (z, b.masked)""",
        a=W,
        b=W,
    )
    assert set(model.graph.initializers) == {"a", "b", "a.s", "b.s", "beta", "threshold_decay"}


def test_insert_masks_leaves_masked_and_excluded_weights_alone() -> None:
    assert_left_alone(DENSE, "insert-masks{exclude=fc}", fc__weight=W)
    for order in ("true", "false"):
        masked = f"insert-quant,insert-masks{{pruning-first={order}}}"
        assert_left_alone(DENSE, f"{masked},insert-masks", fc__weight=W)
        assert_left_alone(DENSE, f"{masked},freeze-masks,insert-masks", fc__weight=W)


def test_bypass_masks() -> None:
    for order in ("true", "false"):
        assert_becomes(
            DENSE,
            f"insert-quant{{inputs=none}},insert-masks{{pruning-first={order}}},bypass-masks",
            """
            (float[n,2] x) => (float[n,2] y)
            fc.weight.quantized = Quant<1,0,7> (fc.weight)
            y = MatMul (x, fc.weight.quantized)""",
            fc__weight=W,
        )


def test_bypass_masks_leaves_frozen_masks_alone() -> None:
    assert_left_alone(DENSE, "insert-masks,freeze-masks,bypass-masks", fc__weight=W)


def with_gates(passes: str, gates: object) -> ir.Model:
    """The layer with a learned mask whose state is `gates`."""
    model = after(DENSE, passes, fc__weight=W)
    graph.set_initializer(model.graph.initializers["fc.weight.s"], np.asarray(gates, np.float32))
    return model


def test_freeze_masks() -> None:
    model = with_gates("insert-masks", [[0.5, -1], [0, 2]])
    pipeline.run(model, "freeze-masks")
    assert short(model).splitlines() == [
        "(float[n,2] x) => (float[n,2] y)",
        "fc.weight.masked = Mul (fc.weight, fc.weight.frozen.mask)",
        "y = MatMul (x, fc.weight.masked)",
    ]
    assert set(model.graph.initializers) == {"fc.weight", "fc.weight.frozen.mask"}
    np.testing.assert_array_equal(initializers(model)["fc.weight.frozen.mask"], [[1, 0], [0, 1]])
    assert model.graph.opset_imports == {"": 21}
    assert not model.functions


def test_freeze_masks_leaves_frozen_masks_alone() -> None:
    assert_left_alone(DENSE, "insert-masks,freeze-masks,freeze-masks", fc__weight=W)


PRUNED = """
(float[n,2] x) => (float[n,2] y)
fc.weight.quantized = Quant<1,1,6> (fc.weight)
y = MatMul (x, fc.weight.quantized)"""


@pytest.mark.parametrize("order", ["true", "false"])
def test_fold_masks_before_and_behind_a_quantizer(order: str) -> None:
    passes = f"insert-quant{{weights=1,1,6 inputs=none}},insert-masks{{pruning-first={order}}}"
    model = with_gates(passes, [[1, -1], [1, 1]])
    pipeline.run(model, "freeze-masks,fold-masks", verify_each=True)
    assert short(model) == PRUNED.strip()
    np.testing.assert_array_equal(initializers(model)["fc.weight"], np.float32([[0.3, 0], [1.2, 0.1]]))


def test_fold_masks_gives_a_shared_weight_a_copy() -> None:
    model = onnx_model(
        "(float[n,2] x) => (float[n,2] y) { p = Mul (w, w__mask) h = MatMul (x, p) y = MatMul (h, w) }",
        w=W,
        w__mask=[[1.0, 0.0], [0.0, 1.0]],
    )
    pipeline.run(model, "fold-masks", verify_each=True)
    assert short(model).splitlines()[1:] == ["h = MatMul (x, w.pruned)", "y = MatMul (h, w)"]
    np.testing.assert_array_equal(initializers(model)["w"], np.float32(W))
    np.testing.assert_array_equal(initializers(model)["w.pruned"], np.float32([[0.3, 0], [0, 0.1]]))


def test_fold_masks_gives_a_shared_quantized_weight_a_copy() -> None:
    model = onnx_model(
        f"""(float[n,2] x) => (float[n,2] y) {{
            q = {QUANT.format(1)} (w, s, z, b)
            p = Mul (q, w__mask)
            h = MatMul (x, p)
            y = MatMul (h, q)
        }}""",
        w=W,
        s=0.125,
        z=0.0,
        b=5.0,
        w__mask=[[1.0, 0.0], [0.0, 1.0]],
    )
    pipeline.run(model, "fold-masks", verify_each=True)
    assert short(model).splitlines()[1:] == [
        "q = Quant<1,1,3> (w)",
        "w.pruned.quantized = Quant<1,1,3> (w.pruned)",
        "h = MatMul (x, w.pruned.quantized)",
        "y = MatMul (h, q)",
    ]


def test_fold_masks_leaves_quantizers_that_move_zero_alone() -> None:
    before = f"""(float[n,2] x) => (float[n,2] y) {{
        q = {QUANT.format(1)} (w, s, z, b)
        p = Mul (q, w__mask)
        y = MatMul (x, p)
    }}"""
    mask = {"w": W, "s": 0.5, "w__mask": [[1.0, 0.0], [0.0, 1.0]]}
    assert_left_alone(before, "fold-masks", z=0.0, b=1.0, **mask)
    assert_left_alone(before, "fold-masks", z=1.0, b=4.0, **mask)


def test_fold_masks_leaves_learned_masks_alone() -> None:
    assert_left_alone(DENSE, "insert-masks,fold-masks", fc__weight=W)


def test_fold_masks_leaves_a_product_that_is_no_mask_alone() -> None:
    before = "(float[n,2] x) => (float[n,2] y) { p = Mul (x, input__mask) y = MatMul (p, w) }"
    assert_left_alone(before, "fold-masks", w=W, input__mask=[1.0, 0.0])


# fold-quant


def test_fold_quant() -> None:
    model = after(BIASED, "insert-quant{weights=1,1,1 biases=1,1,1}", fc__weight=W, fc__bias=[-0.1, 9.0])
    before = text_of(model)
    assert TABLE["fold-quant"]().rewrite(model) == 2
    assert text_of(model) == before
    np.testing.assert_array_equal(initializers(model)["fc.weight"], [[0.5, -0.5], [1.0, 0.0]])
    np.testing.assert_array_equal(initializers(model)["fc.bias"], [0.0, 1.5])
    assert not np.signbit(initializers(model)["fc.bias"]).any()


def test_fold_quant_leaves_alone() -> None:
    assert_left_alone(BIASED, "insert-quant,fold-quant,fold-quant", fc__weight=W, fc__bias=BIAS)
    two_readers = f"""(float[n,2] x) => (float[n,2] y) {{
        q = {QUANT.format(1)} (w, s, z, b)
        h = MatMul (x, q)
        y = MatMul (h, w)
    }}"""
    assert_left_alone(two_readers, "fold-quant", w=W, s=0.5, z=0.0, b=4.0)


@pytest.mark.parametrize("mode", ["ROUND", "FLOOR", "CEIL", "UP", "DOWN", "HALF_UP"])
def test_fold_quant_is_exact_with_a_scale_that_is_no_power_of_two(mode: str) -> None:
    node = QUANT.format(1).replace("ROUND", mode)
    before = f"(float[n,40] x) => (float[n,40] y) {{ q = {node} (w, s, z, b) y = MatMul (x, q) }}"
    model = onnx_model(before, w=np.random.default_rng(0).normal(0, 1, (40, 40)), s=0.1, z=0.0, b=6.0)
    expected = engine.evaluate(model, {"x": np.eye(40, dtype=np.float32)})["y"]
    # Where rounding twice is not rounding once, the weight stays as it is.
    assert TABLE["fold-quant"]().rewrite(model) == (0 if mode in ("FLOOR", "CEIL", "UP") else 1)
    np.testing.assert_array_equal(engine.evaluate(model, {"x": np.eye(40, dtype=np.float32)})["y"], expected)
    assert TABLE["fold-quant"]().rewrite(model) == 0


# Training


def test_attach_loss_takes_the_logits_of_a_softmax() -> None:
    before = "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) y = Softmax (h) }"
    model = after(before, "normalize,attach-loss", fc__weight=W)
    *network, loss = text_of(model).splitlines()
    assert network == [
        "(float[n,2] x, int64[n] target) => (float[n,2] y, float loss)",
        "h = MatMul (x, fc.weight)",
        "y = Softmax (h)",
    ]
    # What else the loss gives out is between it and its gradient.
    assert re.fullmatch(r"loss(, loss\.task\.\w+)* = pqc\.loss\.CrossEntropy \(h, target\)", loss)
    assert model.metadata_props["pqc.outputs"] == '["y"]'


def test_attach_loss_with_options_and_penalties() -> None:
    assert_becomes(
        DENSE,
        "insert-masks{options=threshold_decay=0.5},attach-loss{loss=huber options=delta=0.25}",
        """
        (float[n,2] x, float[n,2] target) => (float[n,2] y, float loss)
        fc.weight.mask.out = pqc.mask.ContinuousSparsification (fc.weight.s, beta, threshold_decay)
        fc.weight.masked = Mul (fc.weight, fc.weight.mask.out)
        y = MatMul (x, fc.weight.masked)
        loss.task.out = pqc.loss.Huber <delta: float = 0.25> (y, target)
        fc.weight.penalty.out = pqc.penalty.ContinuousSparsificationPenalty (fc.weight.mask.out, threshold_decay)
        loss = Add (loss.task.out, fc.weight.penalty.out)""",
        fc__weight=W,
    )


def test_attach_loss_leaves_a_graph_with_a_loss_alone() -> None:
    assert_left_alone(DENSE, "attach-loss,attach-loss{loss=mse}", fc__weight=W)


def test_expose_parameters() -> None:
    model = assert_becomes(
        BIASED,
        "insert-masks,expose-parameters",
        """
        (float[n,2] x, float beta, float threshold_decay, float[10] theta) => (float[n,2] y)
        fc.weight.flat, fc.bias, fc.weight.s.flat = Split <axis: int = 0> (theta, theta.sizes)
        fc.weight = Reshape (fc.weight.flat, fc.weight.shape)
        fc.weight.s = Reshape (fc.weight.s.flat, fc.weight.s.shape)
        fc.weight.mask.out = pqc.mask.ContinuousSparsification (fc.weight.s, beta, threshold_decay)
        fc.weight.masked = Mul (fc.weight, fc.weight.mask.out)
        h = MatMul (x, fc.weight.masked)
        y = Add (h, fc.bias)""",
        fc__weight=W,
        fc__bias=BIAS,
    )
    np.testing.assert_array_equal(initializers(model)["theta"], np.float32([0.3, -0.6, 1.2, 0.1, 1, 2, 0, 0, 0, 0]))


def test_attach_updates_and_what_crosses_from_step_to_step() -> None:
    options = "method=wanda options=batches=3"
    model = after(DENSE, f"insert-masks{{{options}}},attach-loss{{loss=mse}},attach-updates", fc__weight=W)
    # Three states change in a step; the budget and the count of epochs do not.
    assert [value.name for value in model.graph.outputs[2:]] == [
        "fc.weight.update.out",
        "fc.weight.update.total",
        "fc.weight.update.after",
    ]
    pipeline.run(model, "expose-parameters")
    lines = text_of(model).splitlines()
    assert lines[0] == (
        "(float[n,2] x, float[n,2] target, float[4] theta, float[9] buffers)"
        " => (float[n,2] y, float loss, float[9] buffers.next)"
    )
    assert lines[-1].startswith("buffers.next = Concat <axis: int = 0> (fc.weight.mask")


def test_attach_updates_sets_what_the_optimizer_starts_from() -> None:
    passes = "insert-masks{method=dst},attach-loss{loss=mse},attach-updates,expose-parameters"
    model = after(DENSE, passes, fc__weight=W)
    assert [value.name for value in model.graph.outputs] == ["y", "loss", "theta.base"]
    pipeline.run(model, "differentiate,attach-optimizer{optimizer=sgd}")
    assert [value.name for value in model.graph.outputs] == ["loss", "theta.next", "first_moment.next"]
    assert "pqc.optimizer.SGD" in text_of(model)
    assert "(theta.base, theta_grad, rate" in text_of(model)


def test_attach_updates_leaves_methods_without_one_alone() -> None:
    assert_left_alone(DENSE, "insert-masks,attach-loss{loss=mse},attach-updates", fc__weight=W)


def test_expose_parameters_leaves_alone() -> None:
    assert_left_alone("(float[n,2] x) => (float[n,2] y) { y = Relu (x) }", "expose-parameters")
    assert_left_alone(DENSE, "expose-parameters,expose-parameters", fc__weight=W)


def test_fix_batch() -> None:
    model = assert_becomes(
        "(float[n,2] x) => (float[n,2] y) { h = Relu (x) y = Relu (h) }",
        "normalize,attach-loss{loss=mse},fix-batch{size=5}",
        """
        (float[5,2] x, float[5,2] target) => (float[5,2] y, float loss)
        h = Relu (x)
        y = Relu (h)
        loss = pqc.loss.MeanSquaredError (y, target)""",
    )
    assert str(model.graph.node(0).outputs[0].shape) == "[5,2]"


def test_fix_batch_leaves_numbers_and_scalars_alone() -> None:
    before = "(float[3,2] x, float s) => (float[3,2] y) { y = Mul (x, s) }"
    assert_left_alone(before, "normalize,fix-batch{size=7}")


TRAINING = "attach-loss{loss=mse},expose-parameters,differentiate"
BACKWARD = """
(float[n,2] x, float[n,2] target, float[4] theta) => (float loss, float[4] {})
fc.weight.flat = Split <axis: int = 0> (theta, theta.sizes)
fc.weight = Reshape <allowzero: int = 0> (fc.weight.flat, fc.weight.shape)
y = MatMul (x, fc.weight)
y_grad = pqc.gradient.MeanSquaredErrorGrad (loss_grad, y, target)
fc.weight_grad = Gemm <transB: int = 0, alpha: float = 1, transA: int = 1, beta: float = 0> (x, y_grad)
fc.weight.flat_grad = Reshape <allowzero: int = 0> (fc.weight_grad, fc.weight.slice_Grad/x_shape)
theta_grad = Concat <axis: int = 0> (fc.weight.flat_grad)
loss = pqc.loss.MeanSquaredError (y, target)"""


def attributes_sorted(text: str) -> list[str]:
    """Lines with the attributes of each node in alphabetical order; the engine writes them in any."""
    order = lambda match: f"<{', '.join(sorted(match[1].split(', ')))}>"  # noqa: E731
    return [re.sub(r"<([^>]*)>", order, line) for line in text.strip().splitlines()]


def test_differentiate() -> None:
    model = after(DENSE, TRAINING, fc__weight=W)
    assert attributes_sorted(text_of(model)) == attributes_sorted(BACKWARD.format("theta_grad"))


def test_differentiate_leaves_a_differentiated_graph_alone() -> None:
    assert_left_alone(DENSE, f"{TRAINING},differentiate", fc__weight=W)


def test_attach_optimizer() -> None:
    model = after(DENSE, f"{TRAINING},attach-optimizer{{optimizer=sgd options=momentum=0.5}}", fc__weight=W)
    lines = text_of(model).splitlines()
    assert lines[0] == (
        "(float[n,2] x, float[n,2] target, float[4] theta, float[4] rate, float learning_rate, "
        "float decay, float[4] first_moment)"
        " => (float loss, float[4] theta.next, float[4] first_moment.next)"
    )
    assert lines[-1] == (
        "theta.next, first_moment.next = pqc.optimizer.SGD <momentum: float = 0.5, nesterov: int = 0, "
        "decays: int = 0> (theta, theta_grad, rate, learning_rate, decay, first_moment)"
    )


def test_attach_optimizer_leaves_a_graph_with_an_optimizer_alone() -> None:
    assert_left_alone(DENSE, f"{TRAINING},attach-optimizer{{optimizer=sgd}},attach-optimizer", fc__weight=W)


@pytest.mark.parametrize("training", [TRAINING, f"{TRAINING},attach-optimizer", "attach-loss"])
def test_strip_training(training: str) -> None:
    model = assert_becomes(
        DENSE,
        f"insert-quant{{inputs=none}},{training},strip-training",
        """
        (float[n,2] x) => (float[n,2] y)
        fc.weight.quantized = Quant<1,0,7> (fc.weight)
        y = MatMul (x, fc.weight.quantized)""",
        fc__weight=W,
    )
    assert set(model.metadata_props) == {"pqc.pipeline"}
    assert not model.functions
    assert set(model.graph.opset_imports) == {"", graph.QONNX}
    np.testing.assert_array_equal(initializers(model)["fc.weight"], np.float32(W))


@pytest.mark.parametrize(
    ("head", "loss"),
    [("Softmax <axis: int = -1>", "cross-entropy"), ("Softmax", "cross-entropy"), ("Sigmoid", "binary-cross-entropy")],
)
def test_strip_training_puts_back_the_head_that_the_loss_contains(head: str, loss: str) -> None:
    text = f"(float[n,2] x) => (float[n,2] y) {{ h = MatMul (x, fc__weight) y = {head} (h) }}"
    plain = after(text, "normalize", fc__weight=W)
    stripped = after(text, f"normalize,{TRAINING.replace('mse', loss)},attach-optimizer,strip-training", fc__weight=W)
    assert short(stripped) == short(plain)
    assert initializers(stripped).keys() == {"fc.weight"}
    assert set(stripped.metadata_props) == {"pqc.pipeline"}


def test_strip_training_refuses_what_cannot_be_put_back() -> None:
    text = "(float[n,2] x) => (float[n,2] y, float[n,2] z) { y = MatMul (x, fc__weight) z = Relu (y) }"
    with pytest.raises(PassError) as caught:
        after(text, f"{TRAINING},strip-training", fc__weight=W)
    assert str(caught.value).startswith("the training step does not have 'z' of the network any more\nhint: ")
    deep = "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, a__weight) y = MatMul (h, b__weight) }"
    batched = (
        "insert-quant{inputs=none},insert-masks,attach-loss{loss=mse},expose-parameters,lower-quant,batch-parameters"
    )
    with pytest.raises(PassError, match="any more"):
        after(deep, f"{batched},strip-training", a__weight=W, b__weight=W)


def test_strip_training_leaves_a_plain_network_alone() -> None:
    assert_left_alone(BIASED, "normalize,strip-training", fc__weight=W, fc__bias=BIAS)


# Refusals, as whole text

REFUSALS = {
    "insert-masks{method=sc}": (
        PassError,
        "no pruning method 'sc'; did you mean 'cs'?\nhint: see `pqc list methods`",
    ),
    "insert-masks{options=final_tmp=3}": (
        PassError,
        "method 'cs' has no option 'final_tmp'; did you mean 'final_temp'?\n"
        "hint: it has: final_temp, threshold_init, threshold_decay",
    ),
    "insert-masks{options=final_temp=hot}": (
        PassError,
        "method 'cs': final_temp: could not convert string to float: 'hot'\nhint: docs/methods.md lists its options",
    ),
    "attach-loss{loss=mce}": (
        PassError,
        "no loss 'mce'; did you mean 'mse'?\nhint: losses: cross-entropy, binary-cross-entropy, mse, l1, huber, gaussian, focal, info-nce",
    ),
    "differentiate": (PassError, "there is no loss or no theta\nhint: run attach-loss,expose-parameters first"),
    "attach-optimizer": (PassError, "there is no gradient\nhint: run differentiate first"),
    f"{TRAINING},attach-optimizer{{optimizer=adan}}": (
        PassError,
        "no optimizer 'adan'; did you mean 'adam'?\nhint: optimizers: adam, adamw, sgd, padam, psgd",
    ),
    f"{TRAINING},attach-optimizer{{optimizer=sgd options=momentun=1}}": (
        PassError,
        "optimizer 'sgd' has no option 'momentun'; did you mean 'momentum'?\n"
        "hint: it has: momentum, nesterov, weight_decay",
    ),
    "attach-loss{loss=huber options=dlta=1}": (PassError, None),
    "attach-loss{loss=huber options=delta=much}": (PassError, None),
}


@pytest.mark.parametrize("passes", REFUSALS)
def test_refusals(passes: str) -> None:
    kind, text = REFUSALS[passes]
    with pytest.raises(PqcError) as caught:
        after(DENSE, passes, fc__weight=W)
    assert type(caught.value) is kind
    assert text is None or str(caught.value) == text
    assert "defect of pqc" not in str(caught.value)


def test_attach_loss_refuses_an_output_of_unknown_rank() -> None:
    model = onnx_model("(float[n,2] x) => (y) { y = MatMul (x, w) }", w=W)
    with pytest.raises(UnsupportedError) as caught:
        TABLE["attach-loss"]().rewrite(model)
    assert str(caught.value) == (
        "output 'y': the first output is not a float tensor of known rank\nhint: export the model without it"
    )


# Found by reading


def test_calibration_leaves_parameters_their_sign() -> None:
    model = after(BIASED, "insert-quant,calibrate-quant", fc__weight=np.abs(W) + 0.5, fc__bias=[0.0, 0.0])
    quants = {node.name: layers.grid(node) for node in model.graph if layers.is_quant(node)}
    assert quants["fc.weight.quant"] is not None and quants["fc.weight.quant"].signed
    assert quants["fc.bias.quant"] is not None and quants["fc.bias.quant"].signed


def test_calibration_leaves_other_quantizers_alone() -> None:
    for bits in (1.0, 3.5, 40.0):
        body = f"(float[n,2] x) => (float[n,2] y) {{ q = {QUANT.format(1)} (w, s, z, b) y = MatMul (x, q) }}"
        assert_left_alone(body, "calibrate-quant", w=W, s=0.5, z=0.0, b=bits)


def test_two_batch_normalizations_fold_one_after_the_other() -> None:
    body = """(float[n,2,4,4] x) => (float[n,2,4,4] y) {
        c = Conv <kernel_shape = [1, 1]> (x, w)
        h = BatchNormalization (c, g1, b1, m1, v1)
        y = BatchNormalization (h, g2, b2, m2, v2)
    }"""
    rng = np.random.default_rng(0)
    names = {f"{kind}{i}": np.abs(rng.normal(size=2)) + 0.5 for kind in "gbmv" for i in (1, 2)}
    model = onnx_model(body, w=rng.normal(size=(2, 2, 1, 1)), **names)
    steps = pipeline.run(model, "normalize,fold-batchnorm,fold-batchnorm", verify_each=True)
    assert [step.changed for step in steps[1:]] == [2, 0]


def test_batch_normalization_over_another_axis_is_left_alone() -> None:
    body = "(float[n,4,3] x) => (float[n,4,4] y) { h = MatMul (x, w) y = BatchNormalization (h, g, b, m, v) }"
    arrays = {name: np.arange(1.0, 5.0) for name in "gbmv"}
    assert_left_alone(body, "fold-batchnorm", w=np.ones((3, 4)), **arrays)


def test_a_head_that_is_not_last_is_refused() -> None:
    model = onnx_model(
        "(float[n,2] x) => (y) { h = MatMul (x, w) s = Sigmoid (h) y = Squeeze (s, one) }",
        w=np.ones((2, 1)),
        one=np.array([1]),
    )
    with pytest.raises(UnsupportedError, match="Sigmoid is not the last operator"):
        pipeline.run(model, "normalize,attach-loss{loss=binary-cross-entropy}")
