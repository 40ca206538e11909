"""Structured pruning that really removes: each structure with channels zeroed, its exact new shapes, equal outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import content, initializers, onnx_model, text_of
from hardware_networks import Network
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from test_laws import FLOAT, QUANTIZED, assert_lawful, networks, prepare

from pqc import constants, engine, graph, layers, library
from pqc.passes.shrink import Shrink
from pqc.samples import sample
from pqc.verifier import verify

BATCH = 4
ROUNDING = 1e-6
QUANT = 'qonnx.custom_op.general.Quant <signed: int = {}, narrow: int = 0, rounding_mode: string = "ROUND">'


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers but zero: sums of them are exact in float32."""
    return (rng.integers(1, 4, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


def without(array: np.ndarray, axis: int, places: ArrayLike) -> np.ndarray:
    """`array` with zeros at `places` of `axis`."""
    array = array.copy()
    np.moveaxis(array, axis, 0)[np.asarray(places)] = 0
    return array


def run(model: ir.Model) -> dict[str, np.ndarray]:
    feeds = {name: np.round(array * 2).astype(array.dtype) for name, array in sample(model, BATCH).items()}
    return engine.evaluate(model, feeds, fuse=False)


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in initializers(model).items()}


def shrunk(
    model: ir.Model, removed: int, expected: Mapping[str, tuple[int, ...]] | None = None, *, bound: float = 0.0
) -> ir.Model:
    """Run the pass and check everything that holds in general; outputs move by `bound` of the largest at most."""
    before, sides = graph.copy(model), [[str(v) for v in s] for s in (model.graph.inputs, model.graph.outputs)]
    assert Shrink().rewrite(model) == removed
    verify(model)
    onnx.shape_inference.infer_shapes(graph.to_proto(model), check_type=True, strict_mode=True)
    assert [[str(v) for v in s] for s in (model.graph.inputs, model.graph.outputs)] == sides
    for name, old in run(before).items():
        np.testing.assert_allclose(run(model)[name], old, rtol=0, atol=bound * np.abs(old).max())
    found = shapes(model)
    assert {name: found.get(name.replace("__", ".")) for name in expected or {}} == dict(expected or {})
    after = content(model)
    assert Shrink().rewrite(model) == 0
    assert content(model) == after
    return model


# Golden text

PAIR = """(float[n,3] x) => (float[n,2] y) {
    h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias)
    a = Relu (h)
    y = MatMul (a, fc2__weight)
}"""


def test_shrink() -> None:
    arrays = {
        "fc1__weight": [[1, 2, 3], [0, 0, 0], [4, 5, 6], [0, 0, 0], [7, 8, 9.0]],
        "fc1__bias": [1, 0.5, 2, -0.5, 3],
        "fc2__weight": [[1, 2], [3, 4], [0, 0], [5, 6], [7, 8.0]],
    }
    model = shrunk(onnx_model(PAIR, **arrays), 3)
    assert text_of(model) == (
        "(float[n,3] x) => (float[n,2] y)\n"
        "h = Gemm <transB: int = 1> (x, fc1.weight, fc1.bias)\n"
        "a = Relu (h)\n"
        "y.replaced = MatMul (a, fc2.weight)\n"
        "y = Add (y.replaced, fc2.bias)"
    )
    found = {name: array.tolist() for name, array in initializers(model).items()}
    assert found == {
        "fc1.weight": [[1, 2, 3], [7, 8, 9]],
        "fc1.bias": [1, 3],
        "fc2.weight": [[1, 2], [7, 8]],
        "fc2.bias": [1.5, 2],
    }


def test_shrink_leaves_alone_what_is_read(rng: np.random.Generator) -> None:
    dead = without(whole(rng, 3, 4), 1, [0, 2])
    for text in (
        "(float[n,3] x) => (float[n,4] y) { y = MatMul (x, fc__weight) }",
        "(float[n,3] x) => (float[n,4] y) { h = MatMul (x, fc__weight) y = Softmax (h) }",
        "(float[n,3] x) => (float[n,4] y, float[n,4] h) { h = MatMul (x, fc__weight) y = MatMul (h, last__weight) }",
        "(float[n,3] x) => (float[n,4] y) { h = MatMul (x, fc__weight) t = CumSum (h, one) y = MatMul (t, last__weight) }",
    ):
        model = onnx_model(text, fc__weight=dead, last__weight=whole(rng, 4, 4), one=np.array(1))
        before = content(model)
        assert Shrink().rewrite(model) == 0
        assert content(model) == before


# Dense networks


def test_neurons_that_nobody_reads_go_in_a_chain(rng: np.random.Generator) -> None:
    """Without neuron 1 of the third layer nothing reads neuron 4 of the second, and then neuron 0 of the first."""
    text = """(float[n,3] x) => (float[n,2] y) {
        a = MatMul (x, one__weight) b = Add (a, one__bias) c = Tanh (b)
        d = Gemm (c, two__weight, two__bias) e = Sigmoid (d)
        f = Gemm <transB: int = 1> (e, three__weight) g = LeakyRelu (f)
        y = MatMul (g, last__weight)
    }"""
    two, three = whole(rng, 5, 6), whole(rng, 4, 6)
    two[0, [0, 1, 2, 3, 5]] = 0
    three[[0, 2, 3], 4] = 0
    arrays = {
        "one__weight": whole(rng, 3, 5),
        "one__bias": whole(rng, 5),
        "two__weight": two,
        "two__bias": whole(rng, 6),
        "three__weight": three,
        "last__weight": without(whole(rng, 4, 2), 0, 1),
    }
    expected = {"one__weight": (3, 4), "two__weight": (4, 5), "three__weight": (3, 5), "last__weight": (3, 2)}
    shrunk(onnx_model(text, **arrays), 3, expected, bound=ROUNDING)


def test_a_layer_never_becomes_empty(rng: np.random.Generator) -> None:
    arrays = {"fc1__weight": whole(rng, 5, 3), "fc1__bias": whole(rng, 5), "fc2__weight": np.zeros((5, 2))}
    shrunk(onnx_model(PAIR, **arrays), 4, {"fc1__weight": (1, 3), "fc1__bias": (1,), "fc2__weight": (1, 2)})


def test_positions_of_a_matrix_product_are_left(rng: np.random.Generator) -> None:
    text = """(float[n,6,3] x) => (float[n,2,6] y) {
        h = MatMul (x, fc1__weight) a = Relu (h) b = MatMul (a, fc2__weight) c = Add (b, fc2__bias)
        y = Transpose <perm: ints = [0,2,1]> (c)
    }"""
    arrays = {
        "fc1__weight": without(whole(rng, 3, 5), 1, [1, 3]),
        "fc2__weight": without(whole(rng, 5, 2), 0, [2]),
        "fc2__bias": whole(rng, 2),
    }
    shrunk(onnx_model(text, **arrays), 3, {"fc1__weight": (3, 2), "fc2__weight": (2, 2), "fc2__bias": (2,)})


def test_mixers_shrink_along_both_axes(rng: np.random.Generator) -> None:
    text = """(float[n,6,3] x) => (float[n,4,2] y) {
        a = MatMul (x, fc1__weight) b = Relu (a) t = Transpose <perm: ints = [0,2,1]> (b)
        c = MatMul (t, fc2__weight) d = Relu (c) e = MatMul (d, fc3__weight)
        u = Transpose <perm: ints = [0,2,1]> (e) y = MatMul (u, fc4__weight)
    }"""
    arrays = {
        "fc1__weight": without(whole(rng, 3, 5), 1, [1, 3]),
        "fc2__weight": without(whole(rng, 6, 7), 1, [0, 6]),
        "fc3__weight": without(whole(rng, 7, 4), 0, [5]),
        "fc4__weight": whole(rng, 5, 2),
    }
    expected = {"fc1__weight": (3, 3), "fc2__weight": (6, 4), "fc3__weight": (4, 4), "fc4__weight": (3, 2)}
    shrunk(onnx_model(text, **arrays), 5, expected)


def test_shared_weights_must_agree(rng: np.random.Generator) -> None:
    text = """(float[n,5] x, float[n,5] z) => (float[n,2] y) {
        a = MatMul (x, shared__weight) b = Relu (a) c = MatMul (b, one__weight)
        d = MatMul (z, shared__weight) e = Relu (d) f = MatMul (e, two__weight)
        y = Add (c, f)
    }"""
    arrays = {
        "shared__weight": without(whole(rng, 5, 6), 1, [5]),
        "one__weight": without(whole(rng, 6, 2), 0, [0, 1, 2]),
        "two__weight": without(whole(rng, 6, 2), 0, [1, 2, 3]),
    }
    shrunk(onnx_model(text, **arrays), 3, {"shared__weight": (5, 3), "one__weight": (3, 2), "two__weight": (3, 2)})


def test_a_weight_used_again_ties_its_own_axes(rng: np.random.Generator) -> None:
    text = """(float[n,3] x) => (float[n,2] y) {
        a = MatMul (x, in__weight) b = Relu (a) c = MatMul (b, again__weight) d = Relu (c)
        e = MatMul (d, again__weight) y = MatMul (e, out__weight)
    }"""
    again = without(without(whole(rng, 6, 6), 0, [1, 4]), 1, [4])
    out = without(whole(rng, 6, 2), 0, [1, 4])
    shrunk(
        onnx_model(text, in__weight=whole(rng, 3, 6), again__weight=again, out__weight=out),
        2,
        {"in__weight": (3, 4), "again__weight": (4, 4), "out__weight": (4, 2)},
    )


def test_a_decoder_with_the_encoders_weight_shrinks_with_it(rng: np.random.Generator) -> None:
    text = """(float[n,5] x) => (float[n,5] y) {
        a = MatMul (x, fc__weight) r = Relu (a) t = Transpose (fc__weight) y = MatMul (r, t)
    }"""
    weight = without(whole(rng, 5, 4), 1, [1, 2])
    shrunk(onnx_model(text, fc__weight=weight), 2, {"fc__weight": (5, 2)})


def test_branches_keep_what_they_read(rng: np.random.Generator) -> None:
    text = """(float[n,3] x, bool flag) => (float[n,4] y) {
        a = MatMul (x, one__weight) b = MatMul (x, two__weight) c = MatMul (b, three__weight)
        d = If (flag) <then_branch = g1 () => (float[n,4] t) { t = Relu (a) },
                       else_branch = g2 () => (float[n,4] e) { e = Neg (c) }>
        y = Add (d, c)
    }"""
    arrays = {
        "one__weight": without(whole(rng, 3, 4), 1, [0]),
        "two__weight": without(whole(rng, 3, 5), 1, [1, 2]),
        "three__weight": whole(rng, 5, 4),
    }
    shrunk(onnx_model(text, **arrays), 2, {"one__weight": (3, 4), "two__weight": (3, 3), "three__weight": (3, 4)})


def test_constants_do_not_pass_factors(rng: np.random.Generator) -> None:
    """A Gemm with factors of its own adds its constants scaled; those stay, and zeros go."""
    text = """(float[n,3] x) => (float[n,2] y) {
        h = Gemm (x, fc1__weight, fc1__bias) y = Gemm <alpha: float = 0.5, transB: int = 1> (h, fc2__weight, fc2__bias)
    }"""
    arrays = {
        "fc1__weight": without(whole(rng, 3, 4), 1, [0, 1]),
        "fc1__bias": [[0.0, 2, 3, 4]],
        "fc2__weight": whole(rng, 2, 4),
        "fc2__bias": np.array(0.5, np.float32),
    }
    shrunk(onnx_model(text, **arrays), 1, {"fc1__weight": (3, 3), "fc1__bias": (1, 3), "fc2__weight": (2, 3)})


# Convolutions


def test_filters_go_through_norm_pool_and_flatten(rng: np.random.Generator) -> None:
    text = """(float[n,2,6,6] x) => (float[n,3] y) {
        c = Conv <kernel_shape: ints = [3,3], pads: ints = [1,1,1,1]> (x, conv__weight, conv__bias)
        k = BatchNormalization (c, gamma, beta, mean, var)
        r = PRelu (k, slope)
        p = MaxPool <kernel_shape: ints = [2,2], strides: ints = [2,2]> (r)
        f = Flatten (p)
        y = Gemm <transB: int = 1> (f, fc__weight, fc__bias)
    }"""
    fc = without(whole(rng, 3, 5, 3, 3), 1, [0, 4]).reshape(3, 45)
    arrays = {
        "conv__weight": without(whole(rng, 5, 2, 3, 3), 0, [2]),
        "conv__bias": whole(rng, 5),
        "gamma": whole(rng, 5),
        "beta": whole(rng, 5),
        "mean": whole(rng, 5),
        "var": np.full(5, 1 - 1e-5),
        "slope": whole(rng, 5, 1, 1),
        "fc__weight": fc,
        "fc__bias": whole(rng, 3),
    }
    expected = {
        "conv__weight": (2, 2, 3, 3),
        "conv__bias": (2,),
        "gamma": (2,),
        "slope": (2, 1, 1),
        "fc__weight": (3, 18),
    }
    shrunk(onnx_model(text, **arrays), 3, expected, bound=ROUNDING)


def test_a_norm_without_gain_makes_a_constant(rng: np.random.Generator) -> None:
    text = """(float[n,2,4,4] x) => (float[n,3,1,1] y) {
        c = Conv (x, conv__weight) k = BatchNormalization (c, gamma, beta, mean, var) r = Relu (k)
        p = GlobalAveragePool (r) y = Conv (p, last__weight, last__bias)
    }"""
    arrays = {
        "conv__weight": whole(rng, 4, 2, 1, 1),
        "gamma": [1.0, 0, 1, 0],
        "beta": [0.0, 2, 0, -1],
        "mean": np.ones(4),
        "var": np.full(4, 1 - 1e-5),
        "last__weight": whole(rng, 3, 4, 1, 1),
        "last__bias": whole(rng, 3),
    }
    bias = arrays["last__bias"] + 2 * arrays["last__weight"][:, 1, 0, 0]
    expected = {"conv__weight": (2, 2, 1, 1), "last__weight": (3, 2, 1, 1)}
    model = shrunk(onnx_model(text, **arrays), 2, expected, bound=ROUNDING)
    np.testing.assert_array_equal(initializers(model)["last.bias"], bias)


@pytest.mark.parametrize("pads", [[0, 0], [1, 1]])
def test_constants_do_not_pass_zero_padding(rng: np.random.Generator, pads: list[int]) -> None:
    text = f"""(float[n,2,6] x) => (float[n,2,{4 + sum(pads)}] y) {{
        a = Conv (x, one__weight, one__bias) b = Relu (a)
        y = Conv <kernel_shape: ints = [3], pads: ints = {pads}> (b, two__weight, two__bias)
    }}"""
    arrays = {
        "one__weight": without(whole(rng, 4, 2, 1), 0, [0, 1, 2]),
        "one__bias": [2.0, 0, -3, 1],
        "two__weight": whole(rng, 2, 4, 3),
        "two__bias": whole(rng, 2),
    }
    left = 2 if any(pads) else 1
    shrunk(onnx_model(text, **arrays), 4 - left, {"one__weight": (left, 2, 1), "two__weight": (2, left, 3)})


def test_residuals_tie_channels(rng: np.random.Generator) -> None:
    """Channel 1 is dead everywhere, 2 in one branch only, 3 is read by nobody."""
    text = """(float[n,2,5,5] x) => (float[n,3,5,5] y) {
        a = Conv (x, stem__weight, stem__bias) r = Relu (a)
        b = Conv <kernel_shape: ints = [3,3], pads: ints = [1,1,1,1]> (r, one__weight)
        s = Relu (b)
        c = Conv (s, two__weight, two__bias)
        t = Add (c, r) u = Relu (t)
        y = Conv (u, head__weight)
    }"""
    bias = without(whole(rng, 4), 0, [1])
    arrays = {
        "stem__weight": without(whole(rng, 4, 2, 1, 1), 0, [1]),
        "stem__bias": bias,
        "one__weight": without(without(whole(rng, 6, 4, 3, 3), 1, [3]), 0, [5]),
        "two__weight": without(without(whole(rng, 4, 6, 1, 1), 0, [1, 2]), 1, [0]),
        "two__bias": without(whole(rng, 4), 0, [1, 2]),
        "head__weight": without(whole(rng, 3, 4, 1, 1), 1, [3]),
    }
    expected = {
        "stem__weight": (2, 2, 1, 1),
        "stem__bias": (2,),
        "one__weight": (4, 2, 3, 3),
        "two__weight": (2, 4, 1, 1),
        "two__bias": (2,),
        "head__weight": (3, 2, 1, 1),
    }
    shrunk(onnx_model(text, **arrays), 4, expected)


def test_gates_with_a_zero_close_a_channel(rng: np.random.Generator) -> None:
    text = """(float[n,3] x) => (float[n,2] y) {
        a = MatMul (x, one__weight) g = Mul (a, gate) b = MatMul (x, two__weight) s = Sub (b, shift) m = Mul (g, s)
        y = MatMul (m, last__weight)
    }"""
    arrays = {
        "one__weight": whole(rng, 3, 4),
        "two__weight": without(whole(rng, 3, 4), 1, [2]),
        "gate": [[1.0, 0, 1, 1]],
        "shift": [0.0, 1, 0, 1],
        "last__weight": whole(rng, 4, 2),
    }
    expected = {"one__weight": (3, 2), "two__weight": (3, 2), "gate": (1, 2), "shift": (2,), "last__weight": (2, 2)}
    shrunk(onnx_model(text, **arrays), 2, expected)


def test_concat_along_channels_and_along_space(rng: np.random.Generator) -> None:
    text = """(float[n,2,4,4] x) => (float[n,2,8,4] y) {
        a = Conv (x, one__weight) b = Conv (x, two__weight, two__bias)
        c = Concat <axis: int = 1> (a, b) r = Relu (c)
        d = Conv (r, three__weight) e = Conv (x, four__weight)
        s = Concat <axis: int = 2> (d, e)
        y = Conv (s, last__weight)
    }"""
    arrays = {
        "one__weight": without(whole(rng, 3, 2, 1, 1), 0, [1]),
        "two__weight": without(whole(rng, 4, 2, 1, 1), 0, [0, 3]),
        "two__bias": without(whole(rng, 4), 0, [0]),
        "three__weight": without(without(whole(rng, 5, 7, 1, 1), 0, [0, 1]), 1, [4]),
        "four__weight": without(whole(rng, 5, 2, 1, 1), 0, [1, 2]),
        "last__weight": without(whole(rng, 2, 5, 1, 1), 1, [4]),
    }
    expected = {
        "one__weight": (2, 2, 1, 1),
        "two__weight": (1, 2, 1, 1),
        "three__weight": (3, 3, 1, 1),
        "four__weight": (3, 2, 1, 1),
        "last__weight": (2, 3, 1, 1),
    }
    arrays["two__bias"] = np.abs(arrays["two__bias"])
    shrunk(onnx_model(text, **arrays), 6, expected)


def test_split_and_slice(rng: np.random.Generator) -> None:
    text = """(float[n,3] x) => (float[n,2] y) {
        h = MatMul (x, fc__weight) r = Relu (h)
        a, b = Split <axis: int = 1, num_outputs: int = 2> (r)
        c = Slice (r, start, end, axes)
        d = MatMul (a, one__weight) e = MatMul (b, two__weight) f = MatMul (c, three__weight)
        g = Add (d, e) y = Add (g, f)
    }"""
    fc = without(whole(rng, 3, 8), 1, [0, 5])
    one, two, three = (without(whole(rng, 4, 2), 0, place) for place in ([1], [2], [0]))
    three = without(three, 0, [3])
    model = onnx_model(
        text,
        fc__weight=fc,
        one__weight=one,
        two__weight=two,
        three__weight=three,
        start=np.array([-5]),
        end=np.array([7]),
        axes=np.array([1]),
    )
    shrunk(
        model,
        4,
        {"fc__weight": (3, 4), "one__weight": (2, 2), "two__weight": (2, 2), "three__weight": (2, 2)},
    )
    assert initializers(model)["Split_a.sizes"].tolist() == [2, 2]


def test_slices_with_steps_keep_all(rng: np.random.Generator) -> None:
    text = """(float[n,3] x) => (float[n,2] y) {
        h = MatMul (x, fc__weight) c = Slice (h, start, end, axes, steps) y = MatMul (c, last__weight)
    }"""
    for start, end, step in ((0, 8, 2), (7, -9, -2)):
        numbers = {"start": start, "end": end, "axes": -1, "steps": step}
        arrays = {name: np.array([number]) for name, number in numbers.items()}
        weight = without(whole(rng, 3, 8), 1, [0, 1])
        model = onnx_model(text, fc__weight=weight, last__weight=whole(rng, 4, 2), **arrays)
        assert Shrink().rewrite(model) == 0
        run(model)


def test_depthwise_separable(rng: np.random.Generator) -> None:
    text = """(float[n,2,6,6] x) => (float[n,3,6,6] y) {
        a = Conv (x, stem__weight)
        b = Conv <group: int = 6, kernel_shape: ints = [3,3], pads: ints = [1,1,1,1]> (a, dw__weight, dw__bias)
        c = Relu (b)
        y = Conv (c, pw__weight)
    }"""
    arrays = {
        "stem__weight": without(whole(rng, 6, 2, 1, 1), 0, [0]),
        "dw__weight": without(whole(rng, 6, 1, 3, 3), 0, [1, 2]),
        "dw__bias": np.array([0, 0, -1, 1, 1, 1.0]),
        "pw__weight": without(whole(rng, 3, 6, 1, 1), 1, [5]),
    }
    expected = {"stem__weight": (2, 2, 1, 1), "dw__weight": (2, 1, 3, 3), "dw__bias": (2,), "pw__weight": (3, 2, 1, 1)}
    model = shrunk(onnx_model(text, **arrays), 4, expected)
    assert [node.attributes["group"].as_int() for node in model.graph if "group" in node.attributes] == [2]


def test_groups_go_as_a_whole_and_the_last_one_is_a_plain_conv(rng: np.random.Generator) -> None:
    text = """(float[n,2,4,4] x) => (float[n,3,4,4] y) {
        a = Conv (x, stem__weight) b = Conv <group: int = 3> (a, group__weight) y = Conv (b, last__weight)
    }"""
    stem, last = whole(rng, 6, 2, 1, 1), whole(rng, 3, 12, 1, 1)
    arrays = {"stem__weight": stem, "group__weight": whole(rng, 12, 2, 1, 1)}
    arrays["last__weight"] = without(last, 1, [0, 1, 2, 3, 5, 9])
    expected = {"stem__weight": (4, 2, 1, 1), "group__weight": (8, 2, 1, 1), "last__weight": (3, 8, 1, 1)}
    shrunk(onnx_model(text, **arrays), 1, expected)
    arrays["last__weight"] = without(last, 1, [0, 1, 2, 3, 4, 5, 6, 7, 9])
    arrays["group__weight"][:, 1] = 0
    expected = {"stem__weight": (1, 2, 1, 1), "group__weight": (3, 1, 1, 1), "last__weight": (3, 3, 1, 1)}
    shrunk(onnx_model(text, **arrays), 4, expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_transposed_convolutions(rng: np.random.Generator, groups: int) -> None:
    text = f"""(float[n,2,4,4] x) => (float[n,3,8,8] y) {{
        a = Conv (x, stem__weight, stem__bias)
        b = ConvTranspose <group: int = {groups}, kernel_shape: ints = [2,2], strides: ints = [2,2]> (a, up__weight, up__bias)
        y = Conv (b, last__weight, last__bias)
    }}"""
    arrays = {
        "stem__weight": without(whole(rng, 6, 2, 1, 1), 0, [0, 1, 2]),
        "stem__bias": without(whole(rng, 6), 0, [0, 1, 2]),
        "up__weight": whole(rng, 6, 6 // groups, 2, 2),
        "up__bias": without(whole(rng, 6), 0, [0, 1, 2]),
        "last__weight": without(whole(rng, 3, 6, 1, 1), 1, [4]),
        "last__bias": whole(rng, 3),
    }
    left = {1: (3, 5), 2: (3, 2), 6: (3, 3)}[groups]
    removed = {1: 4, 2: 2, 6: 3}[groups]
    if groups == 6:
        arrays["stem__weight"] = without(arrays["stem__weight"], 0, [4])
        arrays["stem__bias"][4], removed, left = 0, 4, (2, 2)
    expected = {
        "stem__weight": (left[0], 2, 1, 1),
        "up__weight": (left[0], 1 if groups == 6 else left[1], 2, 2),
        "last__weight": (3, left[1], 1, 1),
    }
    shrunk(onnx_model(text, **arrays), removed, expected)


# Reshapes and what else moves values


@pytest.mark.parametrize("target", [[-1, 36], [0, -1], [0, 36], [-1, 4, 9], [0, 0, -1]])
def test_reshapes_that_merge(rng: np.random.Generator, target: list[int]) -> None:
    text = """(float[n,2,3,3] x) => (float[n,2] y) {
        a = Conv (x, conv__weight) r = Relu (a) f = Reshape (r, target) g = Flatten (f)
        y = MatMul (g, fc__weight)
    }"""
    fc = without(whole(rng, 4, 9, 2), 0, [1]).reshape(36, 2)
    conv = without(whole(rng, 4, 2, 1, 1), 0, [3])
    shrunk(
        onnx_model(text, conv__weight=conv, fc__weight=fc, target=np.array(target)),
        2,
        {"conv__weight": (2, 2, 1, 1), "fc__weight": (18, 2)},
    )


@pytest.mark.parametrize("target", [[-1, 4, 3, 3], [0, 4, 9, 1]])
def test_reshapes_that_split(rng: np.random.Generator, target: list[int]) -> None:
    """Of a dense layer whose result becomes an image, the neurons of one channel go together."""
    text = """(float[n,2] x) => (float[n,2,h,w] y) {
        a = MatMul (x, fc__weight) r = Reshape (a, target) y = Conv (r, conv__weight)
    }"""
    fc = without(whole(rng, 2, 4, 9), 1, [0]).reshape(2, 36)
    fc[:, 10] = 0
    conv = without(whole(rng, 2, 4, 1, 1), 1, [2])
    shrunk(
        onnx_model(text, fc__weight=fc, conv__weight=conv, target=np.array(target)),
        2,
        {"fc__weight": (2, 18), "conv__weight": (2, 2, 1, 1)},
    )


def test_channels_last_survive_a_round_trip(rng: np.random.Generator) -> None:
    text = """(float[n,6,3] x) => (float[n,2] y) {
        a = MatMul (x, fc1__weight) f = Reshape (a, flat) r = Relu (f) b = Reshape (r, deep)
        u = Unsqueeze (b, places) s = Squeeze (u, places) m = ReduceMean <keepdims: int = 0> (s, middle)
        y = MatMul (m, fc2__weight)
    }"""
    numbers = {"flat": [0, 24], "deep": [-1, 6, 4], "places": [1, 4], "middle": [1]}
    arrays = {name: np.array(given) for name, given in numbers.items()}
    weights = {"fc1__weight": without(whole(rng, 3, 4), 1, [0]), "fc2__weight": without(whole(rng, 4, 2), 0, [3])}
    model = onnx_model(text, **weights, **arrays)
    shrunk(model, 2, {"fc1__weight": (3, 2), "fc2__weight": (2, 2)}, bound=ROUNDING)


def test_reshapes_of_one_target_part_ways(rng: np.random.Generator) -> None:
    text = """(float[n,2,3] x) => (float[n,1] y) {
        a = Conv (x, one__weight) b = Conv (x, two__weight) f = Reshape (a, target) g = Reshape (b, target)
        c = MatMul (f, three__weight) d = MatMul (g, four__weight) y = Add (c, d)
    }"""
    arrays = {
        "one__weight": without(whole(rng, 4, 2, 1), 0, [3]),
        "two__weight": without(whole(rng, 4, 2, 1), 0, [0, 2]),
        "three__weight": whole(rng, 12, 1),
        "four__weight": whole(rng, 12, 1),
        "target": np.array([-1, 12]),
    }
    shrunk(onnx_model(text, **arrays), 3, {"three__weight": (9, 1), "four__weight": (6, 1)})


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zero_padding_beside_the_layer(rng: np.random.Generator, value: float) -> None:
    text = """(float[n,2,4,4] x) => (float[n,3,6,6] y) {
        a = Conv (x, one__weight, one__bias) p = Pad (a, pads, value) y = Conv (p, two__weight)
    }"""
    arrays = {
        "one__weight": without(whole(rng, 4, 2, 1, 1), 0, [0, 1]),
        "one__bias": np.array([0, 1, 2, 3.0]),
        "two__weight": without(whole(rng, 3, 4, 1, 1), 1, [3]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "value": np.array(value, np.float32),
    }
    shrunk(onnx_model(text, **arrays), 2, {"one__weight": (2, 2, 1, 1), "two__weight": (3, 2, 1, 1)})


def test_ambiguous_shapes_are_left(rng: np.random.Generator) -> None:
    """A reshape across the batch, and a product of two activations."""
    dead = without(whole(rng, 3, 4), 1, [0])
    text = """(float[2,6,3] x) => (float[4,2] y) {
        a = MatMul (x, fc__weight) r = Reshape (a, target) y = MatMul (r, last__weight)
    }"""
    model = onnx_model(text, fc__weight=dead, last__weight=whole(rng, 12, 2), target=np.array([4, 12]))
    assert Shrink().rewrite(model) == 1
    text = """(float[n,4,3] x) => (float[n,4,4] y) {
        a = MatMul (x, fc__weight) t = Transpose <perm: ints = [0,2,1]> (a) y = MatMul (a, t)
    }"""
    assert Shrink().rewrite(onnx_model(text, fc__weight=dead)) == 0


# Quantized networks


def quant_of(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None and layers.is_quant(node)
    return node


def quantized(shape: ArrayLike, zero: ArrayLike, axis: int, net: Network, bits: int = 5, fraction: int = 4) -> ir.Value:
    """A quantized weight with zeros at some places of an axis."""
    value = net.weight(*np.asarray(shape).tolist(), bits=bits, fraction=fraction)
    stored = graph.operand(quant_of(value), 0)
    graph.set_initializer(stored, without(graph.stored(stored), axis, zero))
    return value


def effective(model: ir.Model, node: ir.Node, index: int) -> np.ndarray:
    """What a node reads as its constant input `index`, through Quant."""
    copy = graph.copy(model)
    operand = next(one for one in copy.graph if one.name == node.name).inputs[index]
    copy.graph.outputs[:] = [operand]
    graph.remove_unused(copy.graph)
    copy.graph.inputs.clear()
    return next(iter(engine.evaluate(copy, {}).values()))


def dense_pair(bias: ArrayLike, *, second_bias: bool = True, dead: ArrayLike = (1, 3)) -> ir.Model:
    """Six neurons of which some only give what their bias says, and a layer of three behind them."""
    net = Network(4)
    x = net.quant(net.x, 8, 4)
    first = net.quant(net.constant(np.asarray(bias, np.float64)), 8, 5)
    x = net.relu(net.op("Add", net.op("MatMul", x, quantized((4, 6), dead, 1, net)), first))
    x = net.op("MatMul", x, net.weight(6, 3))
    return net.model(net.op("Add", x, net.quant(net.constant([0.25, -0.5, 0.0]), 3, 2)) if second_bias else x)


@pytest.mark.parametrize("second_bias", [True, False])
def test_constants_through_relu_and_quant_go_into_the_bias(second_bias: bool) -> None:
    """relu(1.53125) lies between two numbers of the grid of 1/16, and relu(-1) is zero."""
    model = dense_pair([0.5, 1.53125, 0.25, -1, 0.125, 0], second_bias=second_bias)
    weight = effective(model, [node for node in model.graph if node.op_type == "MatMul"][1], 1)
    shrunk(model, 2)
    first, last = (node for node in model.graph if node.op_type == "MatMul")
    assert [effective(model, node, 1).shape for node in (first, last)] == [(4, 4), (4, 3)]
    (add,) = last.outputs[0].consumers()
    old = np.array([0.25, -0.5, 0]) if second_bias else np.zeros(3)
    np.testing.assert_array_equal(effective(model, add, 1), old + 1.5 * weight[1])
    grid = layers.grid(quant_of(graph.operand(add, 1)))
    assert grid is not None and grid.scale.shape == () and grid.bits <= 9


def test_a_bias_that_fits_keeps_its_grid() -> None:
    model = dense_pair([0.5, 0, 0.25, -1, 0.125, 0])
    before = [str(node) for node in model.graph if layers.is_quant(node)][-1]
    shrunk(model, 2)
    assert [str(node) for node in model.graph if layers.is_quant(node)][-1] == before


def test_constants_off_every_grid_stay() -> None:
    """0.1 times anything has no end, and rounding a sum otherwise could move a Quant behind it."""
    model = dense_pair([0.5, 0.6875, 0.25, -1, 0.125, 0])
    for node in model.graph:
        if layers.is_quant(node) and node.attributes.get_int("signed", 1) == 0:
            graph.set_initializer(graph.operand(node, 1), np.array(0.1, np.float32))
    shrunk(model, 1)


@pytest.mark.parametrize("shape", [(6,), (1, 6)])
def test_scales_and_widths_per_channel_shrink_too(shape: tuple[int, ...]) -> None:
    net = Network(4)
    x = net.quant(net.x, 8, 4)
    scales, bits = np.ldexp(1.0, -np.arange(6)).reshape(shape), np.arange(3, 9.0).reshape(shape)
    parts = [without(np.ones((4, 6)), 1, [2]) * scales * 3, scales, np.zeros(shape), bits]
    options = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
    weight = net.op("Quant", *(net.constant(part) for part in parts), domain=graph.QONNX, **options)
    x = net.op("Relu", net.op("MatMul", x, weight))
    own = [net.constant(part) for part in (scales, 0.0, bits)]
    x = net.op("Quant", x, *own, domain=graph.QONNX, **options)
    rows = [net.constant(part) for part in (scales.reshape(6, 1), 0.0, 5.0)]
    values = net.constant(without(scales.reshape(6, 1) * np.ones((6, 3)), 0, [5]))
    model = net.model(net.op("MatMul", x, net.op("Quant", values, *rows, domain=graph.QONNX, **options)))
    names = [str(value.name) for value in (*own, *rows, values)]
    shrunk(model, 2)
    assert [shapes(model)[name] for name in names] == [(*shape[:-1], 4), (), (*shape[:-1], 4), (4, 1), (), (), (4, 3)]


def test_layers_that_share_a_bias_part_ways() -> None:
    """The one that takes a constant over gets a bias of its own."""
    net = Network(2, 5, 5)
    x = net.quant(net.x, 6, 2)
    own = net.quant(net.constant(np.array([0.5, 0, 1, -1])), 6, 2)
    shared = net.quant(net.constant([0.5, 0.25, 0.0]), 5, 3)
    options = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
    a = net.relu(net.op("Conv", x, quantized((4, 2, 1, 1), [0, 1], 0, net), own, **options))
    left = net.op("Conv", a, net.weight(3, 4, 1, 1), shared, **options)
    right = net.op("Conv", x, net.weight(3, 2, 1, 1), shared, **options)
    total = net.quant(net.op("Add", left, right), 8, 4)
    model = net.model(net.dense(net.op("Flatten", net.pool("AveragePool", total, 2)), 12, 3))
    shrunk(model, 2)
    convs = [node for node in model.graph if node.op_type == "Conv"]
    assert [effective(model, node, 1).shape[:2] for node in convs] == [(2, 2), (3, 2), (3, 2)]
    np.testing.assert_array_equal(effective(model, convs[2], 2), [0.5, 0.25, 0.0])


def test_frozen_masks_need_no_folding(rng: np.random.Generator) -> None:
    model = onnx_model(
        "(float[n,3] x) => (float[n,2] y) { w = Mul (fc1__weight, fc1__mask) a = MatMul (x, w) y = MatMul (a, fc2__weight) }",
        fc1__weight=whole(rng, 3, 5),
        fc1__mask=without(np.ones((3, 5), np.float32), 1, [0, 4]),
        fc2__weight=whole(rng, 5, 2),
    )
    shrunk(model, 2, {"fc1__weight": (3, 3), "fc1__mask": (3, 3), "fc2__weight": (3, 2)})


# What constants become


@pytest.mark.parametrize("mode", sorted(constants.ROUNDING))
@pytest.mark.parametrize(
    ("signed", "narrow", "bits"), [(1, 0, 4), (1, 1, 5), (0, 0, 3), (0, 1, 3), (1, 0, 1), (0, 0, 1)]
)
def test_quant_of_constants_is_the_engines(mode: str, signed: int, narrow: int, bits: int) -> None:
    x = np.concatenate([np.arange(-80, 81) / 16, np.linspace(-3, 3, 40)]).astype(np.float32)
    parameters = [np.float32(0.3), np.float32(1.0), np.float32(bits)]
    attributes = {"signed": signed, "narrow": narrow, "rounding_mode": mode}
    node = ir.node("Quant", [None] * 4, attributes, domain=graph.QONNX)
    expected = engine.call(library.bodies()[graph.QONNX, "Quant"], [x, *map(np.asarray, parameters)], attributes)[0]
    np.testing.assert_array_equal(constants.evaluate(node, [x, *map(np.asarray, parameters)]), expected)


OPERATORS = {
    "Identity (x)", "Relu (x)", "Neg (x)", "Abs (x)", "LeakyRelu <alpha: float = 0.3> (x)", "PRelu (x, c)",
    "Clip (x, low, high)", "Add (x, c)", "Sub (x, c)", "Mul (x, c)", "Max (x, c)", "Min (x, c)",
    "Transpose <perm: ints = [1,0]> (x)", "Tanh (x)", "Sigmoid (x)", "Softplus (x)", "Softsign (x)",
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(OPERATORS))
def test_operators_on_constants_are_the_engines(text: str, rng: np.random.Generator) -> None:
    x = rng.normal(0, 2, (5, 4)).astype(np.float32)
    arrays = {"c": rng.normal(0, 2, 4), "low": np.float32(-1), "high": np.float32(0.5)}
    model = onnx_model(f"(float[5,4] x) => (float[a,b] y) {{ y = {text} }}", **arrays)
    (node,) = model.graph
    inputs = [x, *(graph.constant(value) for value in node.inputs[1:])]
    found, expected = constants.evaluate(node, inputs, exact=False), engine.evaluate(model, {"x": x})["y"]
    if node.op_type in constants.EXACT:
        np.testing.assert_array_equal(found, expected)
        return
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(constants.evaluate(node, inputs)).all()


def test_every_operator_on_constants_is_tested() -> None:
    assert {text.split()[0] for text in OPERATORS} == {*constants.EXACT, *constants.ROUNDED}


def test_lowest_bit() -> None:
    found = constants.lowest_bit(np.array([0, 1, -6, 0.375, 2.0**-130, -(2.0**100) * 3]))
    assert found.tolist() == [np.inf, 1, 2, 0.125, 2.0**-130, 2.0**100]
    terms = np.array([[1.0, 2.0**22, 0.1], [2.0**-23, 2.0**-1, 1.0]])
    assert constants.sums_exactly(terms).tolist() == [True, True, False]


# Random networks

# A network that breaks a law is small already; making it smaller would take minutes.
FIND = (Phase.explicit, Phase.reuse, Phase.generate)


class Grower:
    """Draws an image network of whole numbers, with channels of zeros everywhere."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.lines: list[str] = []
        self.arrays: dict[str, object] = {"one": 1.0, "z": 0.0, "b": 8.0, "first": np.array(1)}
        self.values = {"x": 2}

    def add(self, text: str, channels: int) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        self.values[name] = channels
        return name

    def weight(self, *shape: int) -> str:
        """Zeros in a third of the slices of the first two axes, and in a fifth of the rest."""
        array = whole(self.random, *shape)
        for axis in range(min(len(shape), 2)):
            array = without(array, axis, np.flatnonzero(self.random.random(shape[axis]) < 0.35))
        name = f"w{len(self.arrays)}"
        self.arrays[name] = np.where(self.random.random(shape) < 0.2, 0, array)
        return name

    def pick(self) -> tuple[str, int]:
        return self.draw(st.sampled_from(sorted(self.values.items())[-4:]))

    def grow(self) -> None:
        value, channels = self.pick()
        kind = self.draw(
            st.sampled_from(["layer", "layer", "layer", "own", "join", "Concat", "Split", "shuffle", "barrier"])
        )
        if kind == "layer":
            self.layer(value, channels)
        elif kind == "own":
            operator = self.draw(st.sampled_from(["Mul", "Add", "Sub", "PRelu", "Max"]))
            self.add(f"{operator} ({value}, {self.weight(channels, 1, 1)})", channels)
        elif kind == "join":
            other = self.draw(st.sampled_from(sorted(name for name, count in self.values.items() if count == channels)))
            self.add(f"{self.draw(st.sampled_from(['Add', 'Sub', 'Mul']))} ({value}, {other})", channels)
        elif kind == "Concat":
            other, more = self.pick()
            self.add(f"Concat <axis: int = 1> ({value}, {other})", channels + more)
        elif kind == "barrier":
            self.add(f"CumSum ({value}, first)", channels)
        elif channels % 2 == 0:
            self.halves(value, channels, kind)
        self.after()

    def layer(self, value: str, channels: int) -> None:
        size = self.draw(st.sampled_from([1, 3]))
        groups = self.draw(st.sampled_from([1, 1, 2, channels]))
        groups = groups if channels % groups == 0 else 1
        outputs = groups * self.draw(st.sampled_from([1, 2, 4] if groups > 1 else [4, 6]))
        operator = self.draw(st.sampled_from(["Conv", "Conv", "ConvTranspose"]))
        sides = (channels, outputs // groups) if operator == "ConvTranspose" else (outputs, channels // groups)
        shape = (*sides, size, size)
        used = [name for name, array in self.arrays.items() if np.shape(array) == shape]
        weight = self.draw(st.sampled_from([*used, self.weight(*shape)]))
        bias = f", {self.weight(outputs)}" if self.draw(st.booleans()) else ""
        pads = [size // 2] * 4
        options = f"group: int = {groups}, kernel_shape: ints = [{size},{size}], pads: ints = {pads}"
        self.add(f"{operator} <{options}> ({value}, {weight}{bias})", outputs)

    def halves(self, value: str, channels: int, kind: str) -> None:
        if kind == "Split":
            left, right = f"s{len(self.lines)}", f"t{len(self.lines)}"
            self.lines.append(f"{left}, {right} = Split <axis: int = 1, num_outputs: int = 2> ({value})")
            self.values |= {left: channels // 2, right: channels // 2}
            return
        self.arrays[f"apart{channels}"] = np.array([0, 2, channels // 2, 4, 4])
        self.arrays[f"together{channels}"] = np.array([-1, channels, 4, 4])
        apart = self.add(f"Reshape ({value}, apart{channels})", channels)
        turned = self.add(f"Transpose <perm: ints = [0,2,1,3,4]> ({apart})", channels)
        del self.values[apart], self.values[turned]
        self.add(f"Reshape ({turned}, together{channels})", channels)

    def after(self) -> None:
        """Perhaps a Relu, and always a Quant, so that numbers stay small."""
        value, channels = list(self.values.items())[-1]
        if self.draw(st.booleans()):
            value = self.add(f"Relu ({value})", channels)
        bits = "b" if self.draw(st.booleans()) else self.per_channel(channels)
        self.add(f"{QUANT.format(1)} ({value}, one, z, {bits})", channels)

    def per_channel(self, channels: int) -> str:
        name = f"bits{len(self.arrays)}"
        self.arrays[name] = self.random.integers(3, 6, (1, channels, 1, 1)).astype(np.float32)
        return name

    def model(self) -> ir.Model:
        value, channels = list(self.values.items())[-1]
        kind = self.draw(st.sampled_from(["Flatten", "Reshape", "GlobalMaxPool", "ReduceMax", "AveragePool"]))
        size = 16
        if kind in ("GlobalMaxPool", "AveragePool"):
            options = "<kernel_shape: ints = [2,2], strides: ints = [2,2]>" if kind == "AveragePool" else ""
            value, size = self.add(f"{kind} {options} ({value})", channels), 4 if options else 1
        if kind == "ReduceMax":
            self.arrays["space"] = np.array([2, 3])
            value, size = self.add(f"ReduceMax <keepdims: int = 0> ({value}, space)", channels), 1
        elif kind == "Reshape":
            self.arrays["flat"] = np.array([-1, channels * size])
            value = self.add(f"Reshape ({value}, flat)", channels)
        else:
            value = self.add(f"Flatten ({value})", channels)
        weight = whole(self.random, channels, size, 3) * (self.random.random((channels, 1, 1)) < 0.7)
        self.arrays["last"] = weight.reshape(channels * size, 3)
        self.lines.append(f"y = MatMul ({value}, last)")
        return onnx_model(f"(float[n,2,4,4] x) => (float[n,3] y) {{ {' '.join(self.lines)} }}", **self.arrays)


@st.composite
def grown(draw: st.DrawFn) -> ir.Model:
    grower = Grower(draw)
    for _ in range(draw(st.integers(2, 8))):
        grower.grow()
    return grower.model()


@given(grown())
@settings(max_examples=30, phases=FIND)
def test_random_images_keep_every_bit(model: ir.Model) -> None:
    before = graph.copy(model)
    removed = Shrink().rewrite(model)
    verify(model)
    onnx.shape_inference.infer_shapes(graph.to_proto(model), check_type=True, strict_mode=True)
    sizes = [sum(array.size for array in initializers(one).values()) for one in (before, model)]
    assert (sizes[1] < sizes[0]) == (removed > 0)
    np.testing.assert_array_equal(run(model)["y"], run(before)["y"])
    assert Shrink().rewrite(model) == 0


@given(networks, st.sampled_from(["normalize", FLOAT, f"{QUANTIZED},fold-quant"]), st.integers(0, 2**16))
@settings(max_examples=15, phases=FIND)
def test_laws_with_dead_channels(model: ir.Model, place: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        array = graph.stored(value)
        for axis in range(min(array.ndim, 2)):
            array = without(array, axis, np.flatnonzero(random.random(array.shape[axis]) < 0.3))
        if not str(value.name).startswith("n"):
            graph.set_initializer(value, array)
    prepare(model, place)
    assert_lawful(model, Shrink())


# The way to hardware


@pytest.mark.slow
def test_a_shrunk_network_is_the_firmware(tmp_path: Path) -> None:
    pytest.importorskip("hls4ml")
    from pqc.hardware.handover import hls

    model = dense_pair([0.5, 1.53125, 0.25, -1, 0.125, 0], second_bias=False)
    shrunk(model, 2)
    result = hls(model, tmp_path / "hls")
    assert result.mismatches == 0 and len(np.unique(result.outputs)) > 20
