"""Learned scales, binary and ternary weights: functions against the float64 reference, passes, and text."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from conftest import initializers, onnx_model, text_of
from hypothesis import given
from hypothesis import strategies as st
from qonnx.custom_op.general.bipolar_quant import BipolarQuant as QonnxBipolar
from test_quantizers import assert_same, assert_within, backward, forward

import reference_quant as ref
from pqc import engine, graph, layers, metrics, pipeline, scales, schedule
from pqc.errors import PassError, PqcError, UnsupportedError
from pqc.fixed_point import FixedPoint
from pqc.functions.quant import BIPOLAR_QUANT, QUANT
from pqc.functions.scale import LEARNED_SCALE, POWER_OF_TWO_SCALE
from pqc.hardware import legality
from pqc.mask_sites import parameters
from pqc.names import layout, unpacked
from pqc.quantizer import Quantizer
from pqc.schedule_sections import quantizer, written
from pqc.workflows.compression import FINALIZE

STEP = 'qonnx.custom_op.general.Quant <signed: int = 1, narrow: int = {}, rounding_mode: string = "ROUND">'
DENSE = "(float[n,3] x) => (float[n,2] y)"


# Functions


def test_a_learned_scale_is_above_zero() -> None:
    assert_same(forward(LEARNED_SCALE, [0.3, 1e30, 0.0, -2.0]), [0.3, 1e30, 2.0**-40, 2.0**-40])
    assert_same(backward(LEARNED_SCALE, [1, -2, 3, 4], share=0.25)[0], [0.25, -0.5, 0.75, 1])


def test_a_power_of_two_scale_is_one() -> None:
    t = np.array([-3.0, -2.5, -1.5, -0.51, 0.5, 1.49, 39, 41, -41])
    wanted = np.exp2([-3.0, -2, -2, -1, 0, 1, 39, 40, -40])
    assert_same(forward(POWER_OF_TWO_SCALE, t), wanted)
    found = backward(POWER_OF_TWO_SCALE, np.ones(9), wanted, share=0.5)[0]
    assert_within(found, ref.LN2 * wanted / 2, wanted, 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, bool, bool]:
    """x, dy and scales that some axes share; bits, sign and narrow."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lane = tuple(draw(st.sampled_from([1, length])) for length in shape)
    scale = np.exp2(rng.integers(-9, 4, lane)).astype(np.float32)
    signed = draw(st.booleans())
    bits = draw(st.integers(1 + signed, 8))
    narrow = signed and draw(st.booleans())
    spread = rng.choice([0.3, 1, 3], shape) * 2.0**bits
    v = np.where(rng.random(shape) < 0.3, rng.integers(-9, 9, shape) / 2, rng.normal(0, 1, shape) * spread)
    return (v * scale).astype(np.float32), rng.normal(0, 1, shape).astype(np.float32), scale, bits, signed, narrow


@given(cases())
def test_the_gradient_of_a_scale_equals_the_reference(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, int, bool, bool],
) -> None:
    x, dy, scale, bits, signed, narrow = case
    flags = {"signed": int(signed), "narrow": int(narrow)}
    levels = ref.lsq_levels(bits, signed, narrow)
    y = forward(QUANT, x, scale, 0.0, float(bits), **flags)
    assert_same(y, ref.lsq(x, scale, *levels))
    dx, ds = backward(QUANT, dy, x, scale, 0.0, float(bits), y, **flags)
    full = np.broadcast_to(scale, x.shape)
    wanted, slopes = ref.lsq_gradients(dy, x, full, *levels, scaled=False, inclusive=True)
    assert_same(dx, wanted)
    sums, sizes = (ref.reduce_to(part, scale.shape) for part in (slopes, np.abs(slopes)))
    assert_within(ds, sums, sizes, x.size // sums.size + 2)


def test_the_gradient_of_a_scale_where_there_is_only_a_sign() -> None:
    rng = np.random.default_rng(5)
    x, dy = rng.normal(0, 1, (7, 3)).astype(np.float32), rng.normal(0, 1, (7, 3)).astype(np.float32)
    x[0] = [0.0, 0.5, -0.5]
    scale = np.array([[0.5, 0.5, 0.5]], np.float32)
    y = forward(QUANT, x, scale, 0.0, 1.0)
    assert_same(y, ref.bipolar(x, scale))
    dx, ds = backward(QUANT, dy, x, scale, 0.0, 1.0, y)
    wanted, sums = ref.bipolar_gradients(dy, x, scale)
    assert_same(dx, wanted)
    assert_within(ds, sums, np.abs(dy).sum(axis=0, keepdims=True), 8)


def test_ternary_is_two_bits_without_the_lowest() -> None:
    x = np.array([-3, -0.51, -0.5, -0.25, 0, 0.25, 0.26, 0.5, 9], np.float32)
    y = forward(QUANT, x, 0.5, 0.0, 2.0, narrow=1)
    assert_same(y, ref.ternary(x, 0.5))
    assert sorted(set(y.tolist())) == [-0.5, 0, 0.5]
    dx, ds = backward(QUANT, np.ones(9), x, [0.5], 0.0, 2.0, y, narrow=1)
    wanted, slope = ref.ternary_gradients(np.ones(9), x, np.array([0.5]))
    assert_same(dx, wanted)
    assert_within(ds, slope, np.full(1, 9.0), 9)


def test_infinities_leave_the_scale_a_number() -> None:
    x = np.array([np.inf, -np.inf, 0.2], np.float32)
    y = forward(QUANT, x, [0.25], 0.0, 3.0)
    dx, ds = backward(QUANT, np.ones(3), x, [0.25], 0.0, 3.0, y)
    assert_same(dx, [0, 0, 1])
    assert_within(ds, np.array([3 - 4 + (0.25 - np.float32(0.2)) / 0.25]), np.full(1, 8.0), 3)


def test_bipolar_quant_is_qonnx_s_and_has_its_gradient() -> None:
    x = np.array([-1.5, -0.25, -0.0, 0.0, 1e-45, 0.25, 0.3], np.float32)
    found = forward(BIPOLAR_QUANT, x, 0.25)
    assert_same(found, ref.bipolar(x, 0.25))
    import onnx

    node = onnx.helper.make_node("BipolarQuant", ["x", "s"], ["y"], domain=graph.QONNX)
    context = {"x": x, "s": np.float32(0.25)}
    QonnxBipolar(node, 1).execute_node(context, None)
    assert_same(found, context["y"])
    assert_same(found, forward(QUANT, x, 0.25, 0.0, 1.0))
    dy = np.arange(1.0, 8)
    assert_same(backward(BIPOLAR_QUANT, dy, x, 0.25)[0], ref.bipolar_gradients(dy, x, 0.25)[0])


# What a scale starts from


def test_scales_start_as_published() -> None:
    x = np.random.default_rng(0).normal(0, 2, (40, 3)).astype(np.float32)
    assert scales.first_scale(x, (1, 1), 3).shape == (1, 1)
    np.testing.assert_allclose(scales.first_scale(x, (1, 1), 3)[0, 0], ref.lsq_initial_scale(x, 7.0), rtol=1e-12)
    each = [ref.lsq_initial_scale(column, 7.0) for column in x.T]
    np.testing.assert_allclose(scales.first_scale(x, (1, 3), 3)[0], each, rtol=1e-12)


def test_signs_start_from_the_least_squares() -> None:
    x = np.random.default_rng(1).normal(0, 2, 500)
    mean = float(scales.first_scale(x, (1,), 0)[0])
    errors = {scale: np.square(ref.bipolar(x, scale) - x).sum() for scale in (mean * 0.99, mean, mean * 1.01)}
    assert min(errors, key=lambda scale: errors[scale]) == mean
    powers = np.exp2(np.arange(-6, 6))
    best = min(powers, key=lambda scale: float(np.square(ref.bipolar(x, scale) - x).sum()))
    assert scales.nearest_power_of_two(np.array([mean])) == [best]
    assert_same(scales.nearest_power_of_two(np.array([1.5, 1.51, 0.7, 3])).astype(np.float32), [1, 2, 0.5, 2])


def test_calibration_sets_sign_and_scale_of_activations(mlp: ir.Model) -> None:
    pipeline.run(
        mlp,
        "normalize,lower-gemm,legalize,insert-quant{weights=1,0,3/per_channel/scale inputs=0,3,4/power_of_two_scale}",
    )
    before = {site.node.name: graph.stored(site.trained) for site in scales.sites(mlp.graph)}
    assert {array.flat[0] for array in before.values()} == {np.float32(0.125), np.float32(-4)}
    pipeline.run(mlp, "calibrate-quant")
    signs = {site.node.name: site.node.attributes.get_int("signed") for site in scales.sites(mlp.graph)}
    assert signs == {"x.quant": 1, "a.quant": 0, "fc1.weight.quant": 1, "fc2.weight.quant": 1}
    for site in scales.sites(mlp.graph):
        bits = layers.widths(site.node)
        assert bits is not None
        assert int(bits) == (3 + 1 if "weight" in str(site.node.name) else 7 + signs[str(site.node.name)])
        weight = graph.constant(site.node.inputs[0])
        if weight is not None:
            axes = tuple(np.flatnonzero(np.array(site.trained.shape) == 1))
            wanted = np.mean(2 * np.abs(weight.astype(np.float64)), axis=axes, keepdims=True) / np.sqrt(7)
            np.testing.assert_allclose(graph.stored(site.trained), wanted, rtol=1e-6)


# In the graph


def test_insert_quant_learns_a_scale_of_each_channel() -> None:
    model = onnx_model(f"{DENSE} {{ y = MatMul (x, fc__weight) }}", fc__weight=np.ones((3, 2)))
    pipeline.run(model, "insert-quant{weights=1,0,3/per_channel/scale inputs=1,2,5/power_of_two_scale}")
    share = {"weight": 1 / np.sqrt(3 * 7), "x": 1 / np.sqrt(3 * 127)}
    text = re.sub(r"share: float = [\d.]+", "share: float = _", text_of(model))
    assert text == (
        f"{DENSE}\n"
        "x.quant.scale.learned.out = pqc.quant.PowerOfTwoScale <share: float = _> (x.quant.scale)\n"
        f"x.quantized = {STEP.format(0)} (x, x.quant.scale.learned.out, x.quant.zeropt, x.quant.bitwidth)\n"
        "fc.weight.quant.scale.learned.out = pqc.quant.LearnedScale <share: float = _> (fc.weight.quant.scale)\n"
        f"fc.weight.quantized = {STEP.format(0)} (fc.weight, fc.weight.quant.scale.learned.out, "
        "fc.weight.quant.zeropt, fc.weight.quant.bitwidth)\n"
        "y = MatMul (x.quantized, fc.weight.quantized)"
    )
    stored = initializers(model)
    np.testing.assert_array_equal(stored["x.quant.scale"], [[-5]])
    np.testing.assert_array_equal(stored["fc.weight.quant.scale"], [[0.125, 0.125]])
    found = {
        str(site.node.name).split(".")[-2]: site.scale.attributes.get_float("share")
        for site in scales.sites(model.graph)
    }
    assert found == {name: np.float32(number) for name, number in share.items()}
    assert [(one.value.name, one.role) for one in parameters(model.graph)] == [
        ("fc.weight", "weight"),
        ("x.quant.scale", "scale"),
        ("fc.weight.quant.scale", "scale"),
    ]


def test_freeze_bits_leaves_plain_qonnx() -> None:
    model = onnx_model(f"{DENSE} {{ y = MatMul (x, fc__weight) }}", fc__weight=np.ones((3, 2)))
    pipeline.run(model, "insert-quant{weights=1,0,3/per_channel/scale inputs=1,2,5/power_of_two_scale}")
    graph.set_initializer(model.graph.initializers["x.quant.scale"], np.array([[-4.6]], np.float32))
    graph.set_initializer(model.graph.initializers["fc.weight.quant.scale"], np.array([[0.3, -1]], np.float32))
    pipeline.run(model, "freeze-bits")
    assert {node.op_type for node in model.graph} == {"Quant", "MatMul"}
    assert {key[0] for key in model.functions} == {graph.QONNX}
    scale = {str(node.inputs[0].name): graph.constant(node.inputs[1]) for node in model.graph if layers.is_quant(node)}  # type: ignore[union-attr]
    np.testing.assert_array_equal(scale["x"], np.float32(2.0**-5))  # type: ignore[arg-type]
    np.testing.assert_array_equal(scale["fc.weight"], np.float32([[0.3, 2.0**-40]]))  # type: ignore[arg-type]
    assert scale["x"].shape == ()  # type: ignore[union-attr]


KINDS = [
    ("1,0,3/scale", "0,2,5/scale"),
    ("1,0,3/per_channel/power_of_two_scale", "1,2,5/per_channel/power_of_two_scale"),
    ("ternary/per_channel/scale", "1,2,5"),
    ("binary/per_channel/power_of_two_scale", "1,2,5"),
    ("binary/scale", "1,2,5"),
    ("binary/per_channel", "1,2,5/TRN"),
    ("ternary", "1,2,5"),
]


@pytest.mark.parametrize(("weights", "inputs"), KINDS)
@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_clean_model_computes_what_the_learning_one_does(
    weights: str, inputs: str, network: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(network)
    pipeline.run(model, "normalize,fold-batchnorm,lower-gemm,legalize")
    pipeline.run(model, f"insert-quant{{weights={weights} biases=1,0,6/scale inputs={inputs}}},calibrate-quant")
    rng = np.random.default_rng(0)
    for site in scales.sites(model.graph):
        graph.set_initializer(site.trained, graph.stored(site.trained) * np.float32(rng.uniform(0.8, 1.2)))
    x = rng.normal(size=(64, *list(model.graph.inputs[0].shape)[1:])).astype(np.float32)  # type: ignore[arg-type]
    wanted = engine.evaluate(model, {"x": x})["y"]
    counted = metrics.ebops(metrics.Probe(model).costs({}))
    pipeline.run(model, FINALIZE)
    found = engine.evaluate(model, {"x": x})["y"]
    np.testing.assert_array_equal(found, wanted)
    assert np.unique(wanted).size > 30
    assert {node.domain for node in model.graph} == {"", graph.QONNX}
    assert any(node.op_type == "BipolarQuant" for node in model.graph) == ("binary" in weights)
    assert metrics.ebops(metrics.Probe(model).costs({})) == counted < 32 * 32 * 100


# Training


@pytest.mark.parametrize("learned", ["scale", "power_of_two_scale"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", ["1,1,2", "ternary", "binary"])
def test_the_backward_pass_equals_the_reference(learned: str, granularity: str, bits: str) -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 0.4, (3, 2)).astype(np.float32)
    model = onnx_model(f"{DENSE} {{ y = MatMul (x, fc__weight) }}", fc__weight=weight)
    pipeline.run(model, f"insert-quant{{weights={bits}/{granularity}/{learned} inputs=1,1,1/{granularity}/{learned}}}")
    start = {"scale": lambda s: s, "power_of_two_scale": np.log2}[learned]
    for site in scales.sites(model.graph):
        chosen = rng.uniform(0.2, 0.4, site.trained.shape)
        graph.set_initializer(site.trained, start(chosen).astype(np.float32))
    pipeline.run(model, "attach-loss{loss=mse},fix-batch{size=16},expose-parameters,differentiate")
    x, target = rng.normal(0, 1, (16, 3)).astype(np.float32), rng.normal(0, 1, (16, 2)).astype(np.float32)
    theta = unpacked(graph.stored(model.graph.initializers["theta"]), layout(model))
    found = engine.evaluate(model, {"x": x, "target": target})
    found_gradients = unpacked(found["theta_grad"], layout(model))

    t_x, t_w = theta["x.quant.scale"].astype(np.float64), theta["fc.weight.quant.scale"].astype(np.float64)
    s_x, s_w = (np.exp2(np.rint(t)) if learned.startswith("power") else t for t in (t_x, t_w))
    levels = {"1,1,2": (8.0, 7.0), "ternary": (1.0, 1.0)}.get(bits)
    xq = ref.lsq(x, s_x, 4, 3)
    wq = ref.bipolar(weight, s_w) if levels is None else ref.lsq(weight, s_w, *levels)
    dy = 2 * (xq @ wq - target) / target.size
    _, ds_x = ref.lsq_gradients(dy @ wq.T, x, s_x, 4, 3, scaled=False, inclusive=True)
    if levels is None:
        dw, ds_w = ref.bipolar_gradients(xq.T @ dy, weight, s_w)
    else:
        dw, ds_w = ref.lsq_gradients(xq.T @ dy, weight, s_w, *levels, scaled=False, inclusive=True)
    through = (ref.LN2 * s_x, ref.LN2 * s_w) if learned.startswith("power") else (1.0, 1.0)
    top = 1.0 if levels is None else levels[1]
    ds_x = ds_x * through[0] / np.sqrt(3 / s_x.size * 3)
    ds_w = ds_w * through[1] / np.sqrt(weight.size / s_w.size * top)
    np.testing.assert_allclose(found_gradients["fc.weight"], dw, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(found_gradients["fc.weight.quant.scale"], ds_w, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(found_gradients["x.quant.scale"], ds_x, rtol=2e-5, atol=1e-7)
    assert min(np.abs(ds_x).max(), np.abs(ds_w).max(), np.abs(dw).max()) > 1e-4


def test_what_learns_no_scale_computes_no_gradient_of_it() -> None:
    for kind, wanted in (("1,0,3/per_channel", "QuantGrad"), ("1,0,3/per_channel/scale", "QuantScaleGrad")):
        model = onnx_model(f"{DENSE} {{ y = MatMul (x, fc__weight) }}", fc__weight=np.ones((3, 2)))
        pipeline.run(model, f"insert-quant{{weights={kind} inputs=1,1,3}},attach-loss{{loss=mse}},fix-batch{{size=2}}")
        pipeline.run(model, "expose-parameters,differentiate")
        found = [
            node.op_type for node in model.graph if node.op_type.startswith("Quant") and node.domain == "pqc.gradient"
        ]
        assert found == [wanted]


def test_a_bipolar_quant_of_a_file_is_trained() -> None:
    rng = np.random.default_rng(4)
    weight = rng.normal(0, 0.4, (3, 2)).astype(np.float32)
    text = f"{DENSE} {{ w = qonnx.custom_op.general.BipolarQuant (fc__weight, s) y = MatMul (x, w) }}"
    model = onnx_model(text, fc__weight=weight, s=0.5)
    pipeline.run(model, "normalize")
    assert [(one.value.name, one.role) for one in parameters(model.graph)] == [("fc.weight", "weight")]
    x, target = rng.normal(0, 1, (8, 3)).astype(np.float32), np.zeros((8, 2), np.float32)
    np.testing.assert_allclose(engine.evaluate(model, {"x": x})["y"], x @ ref.bipolar(weight, 0.5), atol=1e-6)
    pipeline.run(model, "attach-loss{loss=mse},fix-batch{size=8},expose-parameters,lower-quant,differentiate")
    found = engine.evaluate(model, {"x": x, "target": target})["theta_grad"].reshape(3, 2)
    dy = 2 * (x @ ref.bipolar(weight, 0.5)) / 16
    wanted, _ = ref.bipolar_gradients(x.T @ dy, weight, 0.5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert 0 < np.count_nonzero(wanted) < 6


# Binary for hardware


BINARY = "(float[n,2] x) => (float[n,2] y) { w = qonnx.custom_op.general.Quant <signed: int = 1> (p, s, z, b) y = Mul (x, w) }"


def test_write_bipolar_and_lower_bipolar() -> None:
    model = onnx_model(BINARY, p=[0.25, -0.25], s=0.25, z=0.0, b=1.0)
    pipeline.run(model, "write-bipolar")
    bipolar = "qonnx.custom_op.general.BipolarQuant"
    assert text_of(model).splitlines()[1:] == [f"w = {bipolar} (p, s)", "y = Mul (x, w)"]
    pipeline.run(model, "lower-bipolar")
    assert text_of(model).splitlines()[1] == f"w = {STEP.format(1)} (p, s, Quant_w.zeropt, Quant_w.bitwidth)"
    assert initializers(model)["Quant_w.bitwidth"] == 2


@pytest.mark.parametrize(
    "arrays",
    [
        {"p": [0.25, -0.5]},
        {"b": 2.0},
        {"z": 1.0},
        {"b": [1.0, 2.0]},
    ],
    ids=["off its grid", "two bits", "a zero point", "more bits in one channel"],
)
def test_lower_bipolar_leaves_the_rest(arrays: dict[str, object]) -> None:
    model = onnx_model(BINARY, **{"p": [0.25, -0.25], "s": 0.25, "z": 0.0, "b": 1.0, **arrays})
    before = text_of(model)
    pipeline.run(model, "lower-bipolar" if "p" in arrays else "lower-bipolar,write-bipolar")
    assert text_of(model) == before


def test_binary_weights_are_not_pruned(mlp: ir.Model) -> None:
    pipeline.run(mlp, "normalize,lower-gemm,legalize,insert-quant{weights=binary}")
    with pytest.raises(UnsupportedError) as caught:
        pipeline.run(mlp, "insert-masks")
    assert str(caught.value).startswith("weight 'fc1.weight': binary weights are never zero, so none can be pruned\n")


def test_gates_stay_before_binary_weights() -> None:
    text = f"{DENSE} {{ h = Mul (x, g) w = qonnx.custom_op.general.BipolarQuant (fc__weight, s) y = MatMul (h, w) }}"
    model = onnx_model(text, fc__weight=np.full((3, 2), 0.5), g=[1.0, 0.0, 1.0], s=0.5)
    before = text_of(model)
    pipeline.run(model, "fold-gates")
    assert text_of(model) == before
    pipeline.run(model, "lower-bipolar,fold-gates")
    np.testing.assert_array_equal(initializers(model)["fc.weight"], [[0.5, 0.5], [0, 0], [0.5, 0.5]])


def test_merge_quant_leaves_two_signs() -> None:
    bipolar = "qonnx.custom_op.general.BipolarQuant"
    text = f"(float[n,2] x) => (float[n,2] y) {{ a = {bipolar} (x, s) b = {bipolar} (a, t) y = Relu (b) }}"
    model = onnx_model(text, s=0.5, t=0.25)
    before = text_of(model)
    pipeline.run(model, "merge-quant")
    assert text_of(model) == before


# What hardware takes


def learning(kind: str) -> ir.Model:
    model = onnx_model(f"{DENSE} {{ y = MatMul (x, fc__weight) }}", fc__weight=np.full((3, 2), 0.3))
    pipeline.run(model, f"insert-quant{{weights={kind} inputs=1,1,3}},calibrate-quant")
    return model


def test_hardware_takes_powers_of_two_only() -> None:
    legality.check_learned(learning("1,0,3/per_channel/power_of_two_scale").graph)
    with pytest.raises(UnsupportedError) as caught:
        legality.check_learned(learning("1,0,3/scale").graph)
    told = (
        "hls4ml multiplies by it in its default type and is off by an LSB\n"
        "hint: train with powers of two; learn them with `learns: power_of_two_scale`"
    )
    assert str(caught.value) == f"Quant 'fc.weight.quant': any scale is learned: {told}"
    model = learning("1,0,3/scale")
    pipeline.run(model, FINALIZE)
    with pytest.raises(UnsupportedError) as caught:
        legality.check(model)
    assert re.sub(r"scale [\d.]+", "scale S", str(caught.value)) == f"Quant 'fc.weight.quant': scale S: {told}"


# Text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("binary", Quantizer(FixedPoint(1, 0, 0))),
        ("ternary/per_channel", Quantizer(FixedPoint(1, 0, 1), "per_channel", overflow="SAT_SYM")),
        ("1,0,3/scale", Quantizer(FixedPoint(1, 0, 3), learns="scale")),
        (
            "binary/per_channel:1/power_of_two_scale",
            Quantizer(FixedPoint(1, 0, 0), "per_channel", axis=1, learns="power_of_two_scale"),
        ),
    ],
)
def test_text_round_trips(text: str, kind: Quantizer) -> None:
    assert Quantizer.parse(text) == kind
    assert Quantizer.parse(str(kind)) == kind
    assert quantizer(yaml.safe_load(yaml.safe_dump(written(kind)))) == kind


def test_yaml_knows_the_names() -> None:
    assert quantizer("ternary") == Quantizer(FixedPoint(1, 0, 1), overflow="SAT_SYM")
    given = {"bits": "binary", "granularity": "per_channel", "learns": "scale"}
    assert quantizer(given) == Quantizer(FixedPoint(1, 0, 0), "per_channel", learns="scale")
    base = Quantizer(FixedPoint(1, 1, 3), "per_channel", overflow="SAT_SYM")
    assert quantizer("binary", base) == Quantizer(FixedPoint(1, 0, 0), "per_channel")
    plan = schedule.load(
        "quantize-only", {"quantization.weights": "{bits: ternary, learns: scale}", "training.rates": "{scale: 0.1}"}
    )
    assert schedule.Schedule.model_validate(yaml.safe_load(plan.text())) == plan


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"quantization.weights": "binry"}, "bits are three integers: [k, i, f], or binary or ternary"),
        ({"training.rates": "{scale: 0.1}"}, "no role 'scale'"),
        (
            {"quantization.weights": "{bits: [1,0,3], granularity: per_weight, learns: scale}"},
            "per_tensor or per_channel, not per_weight",
        ),
        ({"quantization.weights": "{bits: [1,0,3], overflow: WRAP, learns: scale}"}, "a learned scale saturates; WRAP"),
        ({"quantization.weights": "{bits: binary, learns: bits}"}, "(1,0,0) has one bit"),
        ({"quantization.weights": "{bits: binary, overflow: WRAP}"}, "(1,0,0) has one bit"),
        ({"quantization.weights": "[0, 0, 0]"}, "1 to 32 with one of magnitude are needed"),
        (
            {"quantization.weights": "{bits: [1,0,3], learns: scale}", "target.ebops": "9"},
            "needs a quantizer that learns bits",
        ),
        ({"quantization.weights": "{bits: [1,0,3], learns: scle}"}, "did you mean 'scale'?"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, str], what: str) -> None:
    with pytest.raises(PqcError) as caught:
        schedule.load("quantize-only", settings)
    assert what in str(caught.value)


def test_a_scale_wants_a_rounding_of_qonnx(mlp: ir.Model) -> None:
    with pytest.raises(PassError) as caught:
        pipeline.run(mlp, "normalize,lower-gemm,legalize,insert-quant{weights=1,0,3/scale/RND}")
    assert "tensor 'fc1.weight': no scale is learned under RND\nhint: roundings: ROUND, " in str(caught.value)


def test_binary_weights_take_any_rounding(mlp: ir.Model) -> None:
    pipeline.run(mlp, "normalize,lower-gemm,legalize,insert-quant{weights=binary rounding=RND inputs=1,2,5}")
    kinds = {node.op_type for node in mlp.graph if layers.is_quant(node) and "weight" in str(node.name)}
    assert kinds == {"Quant"}
