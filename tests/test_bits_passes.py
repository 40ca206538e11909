"""Golden text and meaning of the passes about bits: what each makes of a graph, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import content, initializers, onnx_model, text_of
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

import reference_quant as ref
from pqc import engine, graph, library, pipeline
from pqc.functions.fixed_quant import OVERFLOWS, ROUNDINGS
from pqc.names import BITS_WEIGHT, EBOPS_WEIGHT
from pqc.passes import TABLE
from pqc.quantizer_sites import LEARNS

FIXED = 'pqc.quant.FixedQuant <signed: int = {}, rounding: string = "{}", overflow: string = "{}">'
QUANT = 'qonnx.custom_op.general.Quant <signed: int = {}, narrow: int = {}, rounding_mode: string = "{}">'
MAIN = "(float[n,4] x) => (float[n,4] y)"
DENSE = "(float[n,2] x) => (float[n,2] y)"
W = np.array([[0.3, -0.6], [1.2, 0.1]], np.float32)
PLAIN = FIXED.format(1, "RND_CONV", "SAT")


def one(node: str, i: object, f: object, main: str = MAIN) -> ir.Model:
    return onnx_model(f"{main} {{ y = {node} (x, i, f) }}", i=np.asarray(i, float), f=np.asarray(f, float))


def weighted(node: str, i: object, f: object, learns: str | None = None) -> ir.Model:
    """A dense layer whose weight is quantized."""
    model = onnx_model(
        f"{DENSE} {{ w = {node} (fc__weight, i, f) y = MatMul (x, w) }}",
        fc__weight=W,
        i=np.asarray(i, float),
        f=np.asarray(f, float),
    )
    if learns:
        model.graph.node(0).metadata_props[LEARNS] = learns
    return model


def assert_untouched(model: ir.Model, title: str) -> None:
    before = content(model)
    assert TABLE[title]().rewrite(model) == 0
    assert content(model) == before


def in_qonnx(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What qonnx's executor makes of the graph without bodies of pqc's."""
    clean = graph.copy(model)
    pipeline.run(clean, f"fix-batch{{size={len(feeds['x'])}}}")
    library.unlink(clean)
    assert not clean.functions
    with np.errstate(over="ignore"):
        return np.asarray(execute_onnx(ModelWrapper(graph.to_proto(clean)), feeds)["y"])


# freeze-bits and bypass-quant


@pytest.mark.parametrize("learns", ["bits", "fractional_bits"])
def test_freeze_bits(learns: str) -> None:
    model = weighted(PLAIN, [[1.0]], [[2.6]], learns)
    text, values = text_of(model), initializers(model)
    assert TABLE["freeze-bits"]().rewrite(model) == 1
    assert text_of(model) == text
    assert not model.graph.node(0).metadata_props
    assert all(np.array_equal(array, values[name]) for name, array in initializers(model).items())
    assert_untouched(model, "freeze-bits")


def test_freeze_bits_leaves_quantizers_that_learn_nothing_alone() -> None:
    assert_untouched(weighted(PLAIN, [[1.0]], [[2.0]]), "freeze-bits")


def test_bypass_quant() -> None:
    model = onnx_model(
        f"{DENSE} {{ w = {PLAIN} (fc__weight, i, f) d = {QUANT.format(1, 0, 'ROUND')} (x, s, z, b) y = MatMul (d, w) }}",
        fc__weight=W,
        i=[[1.0]],
        f=[[2.0]],
        s=0.5,
        z=0.0,
        b=4.0,
    )
    assert TABLE["bypass-quant"]().rewrite(model) == 2
    assert text_of(model) == f"{DENSE}\ny = MatMul (x, fc.weight)"
    assert list(initializers(model)) == ["fc.weight"]
    x = np.array([[0.3, 0.7]], np.float32)
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], x @ W)


def test_bypass_quant_leaves_masks_and_floats_alone() -> None:
    masked = f"{DENSE} {{ w = Mul (fc__weight, fc__weight__mask) y = MatMul (x, w) }}"
    assert_untouched(onnx_model(masked, fc__weight=W, fc__weight__mask=[[1.0, 0.0], [1.0, 1.0]]), "bypass-quant")


# attach-costs


def costed(options: str = "") -> ir.Model:
    """Inputs of 1+1+3 and 1+2+0 bits, weights of 1+1+2 and nothing, or masked away; biases of 1+0+2."""
    model = onnx_model(
        f"{DENSE} {{ d = {PLAIN} (x, di, df) m = Mul (fc__weight, fc__weight__mask) w = {PLAIN} (m, wi, wf) "
        f"b = {PLAIN} (fc__bias, bi, bf) h = MatMul (d, w) y = Add (h, b) }}",
        di=[[1.0, 2.0]],
        df=[[3.0, 0.0]],
        fc__weight=W,
        fc__weight__mask=[[1.0, 0.0], [1.0, 1.0]],
        wi=[[1.0, 1.0], [-3.0, 1.0]],
        wf=[[2.0, 2.0], [3.0, 2.0]],
        fc__bias=[1.0, 2.0],
        bi=[0.0],
        bf=[2.0],
    )
    for node in model.graph:
        if node.op_type == "FixedQuant" and node.name != "FixedQuant_b":
            node.metadata_props[LEARNS] = "bits"
    pipeline.run(model, f"normalize,attach-loss{{loss=mse}},attach-costs{options}")
    return model


def test_attach_costs() -> None:
    """5 x 4 bits for the only weight of the first input, 3 x 4 for that of the second; 2 biases of 3 bits."""
    model = costed()
    feeds = {"x": np.ones((3, 2), np.float32), "target": np.zeros((3, 2), np.float32)}
    prices = {EBOPS_WEIGHT: 0.5, BITS_WEIGHT: 0.25}
    base = engine.evaluate(model, feeds)["loss"]
    for name, price in prices.items():
        graph.set_initializer(model.graph.initializers[name], np.array(price, np.float32))
    priced = engine.evaluate(model, feeds)["loss"]
    ebops, bits = 5 * 4 + 3 * 4 + 2 * 3, (1 + 2 + 3 + 0) + (1 + 1 - 3 + 1) + (2 + 2 + 3 + 2)
    assert base > 0
    assert priced == pytest.approx(float(base) + 0.5 * ebops + 0.25 * bits, rel=1e-6)


def test_attach_costs_without_a_price_for_bits() -> None:
    assert EBOPS_WEIGHT in initializers(costed("{bits=false}"))
    assert BITS_WEIGHT not in initializers(costed("{bits=false}"))


def test_attach_costs_leaves_alone() -> None:
    assert_untouched(costed(), "attach-costs")
    assert_untouched(weighted(PLAIN, [[1.0]], [[2.0]], "bits"), "attach-costs")
    fixed = weighted(PLAIN, [[1.0]], [[2.0]])
    pipeline.run(fixed, "attach-loss{loss=mse}")
    assert_untouched(fixed, "attach-costs")


# lower-bits


def test_lower_bits_of_an_activation() -> None:
    model = one(FIXED.format(1, "TRN", "SAT_SYM"), [[1.0, 2.0, 1.0, 3.0]], [[2.0, 2.0, 1.0, 0.0]])
    assert TABLE["lower-bits"]().rewrite(model) == 1
    names = ", ".join(f"FixedQuant_y.{part}" for part in ("scale", "zeropt", "bitwidth"))
    assert text_of(model) == f"{MAIN}\ny = {QUANT.format(1, 1, 'FLOOR')} (x, {names})"
    stored = initializers(model)
    np.testing.assert_array_equal(stored["FixedQuant_y.scale"], [[0.25, 0.25, 0.5, 1.0]])
    np.testing.assert_array_equal(stored["FixedQuant_y.bitwidth"], [[4, 5, 3, 4]])
    assert not model.functions or all(key[0] != "pqc.quant" for key in model.functions)


@pytest.mark.parametrize(("rounding", "mode", "half"), [("RND", "FLOOR", 0.125), ("RND_MIN_INF", "CEIL", -0.125)])
def test_lower_bits_adds_half_a_bit_to_a_layers_output(rounding: str, mode: str, half: float) -> None:
    node = FIXED.format(1, rounding, "SAT")
    model = onnx_model(
        f"{DENSE} {{ h = MatMul (x, fc__weight) r = Relu (h) y = {node} (r, i, f) }}",
        fc__weight=W,
        i=[[1.0]],
        f=[[2.0]],
    )
    assert TABLE["lower-bits"]().rewrite(model) == 1
    assert [one.op_type for one in model.graph] == ["MatMul", "Relu", "Quant", "Add", "Quant"]
    assert str(model.graph.node(4).attributes["rounding_mode"].value) == mode
    assert initializers(model)["FixedQuant_y.half.by"] == half


def test_lower_bits_multiplies_what_has_no_bits_by_zero() -> None:
    model = one(PLAIN, [[1.0, -2.0, 0.0, -3.0]], [[2.0, 2.0, 1.0, 2.0]])
    x = np.random.default_rng(1).normal(0, 2, (9, 4)).astype(np.float32)
    before = engine.evaluate(model, {"x": x})["y"]
    assert TABLE["lower-bits"]().rewrite(model) == 1
    assert [node.op_type for node in model.graph] == ["Quant", "Mul"]
    np.testing.assert_array_equal(initializers(model)["FixedQuant_y.alive.by"], [[1, 0, 1, 0]])
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], before)
    assert before.any(axis=0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("lane", [(1, 1), (1, 4)])
def test_lower_bits_of_activations_is_exact(signed: int, rounding: str, overflow: str, lane: tuple[int, int]) -> None:
    """Also just beside ties, where x + half a bit rounds; widths from none and a lone sign to 22 bits."""
    rng = np.random.default_rng(len(rounding))
    for low, high in ((-1, 5), (5, 11)):
        f = rng.integers(low, high, lane)
        i = rng.integers(-2, 5, lane) if low < 0 else rng.integers(6, 12, lane)
        step = np.exp2(-f.astype(float))
        ties = (rng.integers(-40, 40, (300, 4)) / 2 * step).astype(np.float32)
        beside = [np.nextafter(ties, np.float32(way)) for way in (-np.inf, np.inf)]
        spread = rng.normal(0, 2, (300, 4)) * np.exp2(i.astype(float))
        x = np.concatenate([ties, *beside, spread, [[0.0, -0.0, 3e38, -3e38]]]).astype(np.float32)
        x = np.where(np.abs(x) < 1e-36, 0, x)  # half a denormal is zero
        model = one(FIXED.format(signed, rounding, overflow), i, f)
        before = engine.evaluate(model, {"x": x})["y"]
        empty = np.broadcast_to(i + f <= 0, x.shape)
        with np.errstate(over="ignore"):
            wanted = ref.fixed_point(x, signed, i, f, rounding, overflow, zero_empty=False) * ~empty
        np.testing.assert_array_equal(before, wanted.astype(np.float32))
        assert TABLE["lower-bits"]().rewrite(model) == 1
        assert all(node.domain in ("", graph.QONNX) for node in model.graph)
        np.testing.assert_array_equal(engine.evaluate(model, {"x": x}, fuse=False)["y"], before)
        if lane == (1, 1):
            np.testing.assert_array_equal(in_qonnx(model, {"x": x}), before)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("lane", [(1, 1), (1, 6), (8, 6)])
def test_lower_bits_of_weights_is_exact(signed: int, rounding: str, overflow: str, lane: tuple[int, int]) -> None:
    """Whatever put it there, the weight that is left lies on the grid of a Quant that no longer moves it."""
    if overflow == "WRAP_SM" and not signed:
        return
    rng = np.random.default_rng(len(rounding))
    f, i = rng.integers(-1, 5, lane), rng.integers(-2, 4, lane)
    if lane == (1, 1):
        f, i = np.full(lane, 3), np.full(lane, 1)
    weight = (rng.integers(-99, 99, (8, 6)) / 2 * np.exp2(-f.astype(float))).astype(np.float32)
    model = onnx_model(
        f"(float[n,8] x) => (float[n,6] y) {{ w = {FIXED.format(signed, rounding, overflow)} (fc__weight, i, f) "
        "y = MatMul (x, w) }",
        fc__weight=weight,
        i=i.astype(float),
        f=f.astype(float),
    )
    x = np.eye(8, dtype=np.float32)
    before = engine.evaluate(model, {"x": x})["y"]
    assert np.unique(before).size > 2
    assert TABLE["lower-bits"]().rewrite(model) == 1
    assert [node.op_type for node in model.graph] == ["Quant", "MatMul"]
    np.testing.assert_array_equal(initializers(model)["fc.weight"], before)
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], before)
    if lane == (1, 1):
        np.testing.assert_array_equal(in_qonnx(model, {"x": x}), before)


def test_lower_bits_gives_a_weight_with_other_readers_a_rounded_copy() -> None:
    model = onnx_model(
        f"{DENSE} {{ w = {FIXED.format(1, 'RND', 'WRAP')} (fc__weight, i, f) h = MatMul (x, w) "
        "y = MatMul (h, fc__weight) }",
        fc__weight=W,
        i=[[0.0]],
        f=[[2.0]],
    )
    x = np.eye(2, dtype=np.float32)
    before = engine.evaluate(model, {"x": x})["y"]
    assert TABLE["lower-bits"]().rewrite(model) == 1
    np.testing.assert_array_equal(initializers(model)["fc.weight"], W)
    np.testing.assert_array_equal(initializers(model)["fc.weight.rounded"], [[0.25, -0.5], [-0.75, 0.0]])
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], before)


def test_lower_bits_of_a_weight_that_two_layers_read_through_one_quantizer() -> None:
    model = onnx_model(
        f"{DENSE} {{ w = {PLAIN} (fc__weight, i, f) h = MatMul (x, w) y = MatMul (h, w) }}",
        fc__weight=W,
        i=[[0.0]],
        f=[[2.0]],
    )
    x = np.array([[1.5, -0.25]], np.float32)
    before = engine.evaluate(model, {"x": x})["y"]
    assert TABLE["lower-bits"]().rewrite(model) == 1
    assert [node.op_type for node in model.graph] == ["Quant", "MatMul", "MatMul"]
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], before)
    np.testing.assert_array_equal(in_qonnx(model, {"x": x}), before)


def test_one_unsigned_bit() -> None:
    """One bit is 0 or 1, where QONNX's one signed bit would be -1 or 1."""
    model = one(FIXED.format(0, "RND_CONV", "SAT"), [[1.0]], [[0.0]])
    x = np.array([[-2.0, 0.5, 0.6, 7.0]], np.float32)
    assert TABLE["lower-bits"]().rewrite(model) == 1
    assert initializers(model)["FixedQuant_y.bitwidth"] == 1
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], [[0, 0, 1, 1]])
    np.testing.assert_array_equal(in_qonnx(model, {"x": x}), [[0, 0, 1, 1]])


def test_a_lone_sign_is_zero() -> None:
    model = one(PLAIN, [[-1.0]], [[1.0]])
    x = np.array([[-2.0, 0.5, 0.6, 7.0]], np.float32)
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], np.zeros((1, 4)))
    assert TABLE["lower-bits"]().rewrite(model) == 1
    np.testing.assert_array_equal(in_qonnx(model, {"x": x}), np.zeros((1, 4)))


@pytest.mark.parametrize("overflow", ["WRAP", "WRAP_SM", "NONE"])
def test_lower_bits_leaves_activations_that_wrap_alone(overflow: str) -> None:
    assert_untouched(one(FIXED.format(1, "RND", overflow), [[1.0]], [[2.0]]), "lower-bits")


def test_lower_bits_leaves_learned_bits_and_masked_weights_alone() -> None:
    assert_untouched(weighted(PLAIN, [[1.0]], [[2.0]], "bits"), "lower-bits")
    masked = f"{DENSE} {{ m = Mul (fc__weight, fc__weight__mask) w = {PLAIN} (m, i, f) y = MatMul (x, w) }}"
    mask = [[1.0, 0.0], [1.0, 1.0]]
    assert_untouched(onnx_model(masked, fc__weight=W, fc__weight__mask=mask, i=[[1.0]], f=[[2.0]]), "lower-bits")
    assert_untouched(
        onnx_model(f"{DENSE} {{ y = {QUANT.format(1, 0, 'ROUND')} (x, s, z, b) }}", s=0.5, z=0.0, b=4.0), "lower-bits"
    )
