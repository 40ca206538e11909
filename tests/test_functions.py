"""Every function body against the float64 reference, and Quant against qonnx's executor."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.custom_op.general.quant import quant as qonnx_quant

import reference as ref
import reference_pruning as pruning
from pqc import engine, library
from pqc.functions.losses import LOSSES, target_of
from pqc.functions.operator import Operator
from pqc.functions.optimizers import OPTIMIZERS
from pqc.functions.quant import QUANT, ROUNDING_MODES
from pqc.functions.standard import GRADIENTS
from pqc.graph import QONNX
from pqc.methods import continuous_sparsification as cs

SIGNS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def run(key: tuple[str, str], inputs: Sequence[object], **attributes: object) -> list[np.ndarray]:
    """The outputs of one of pqc's functions; floats go in as float32."""
    arrays = [np.asarray(value) for value in inputs]
    arrays = [array.astype(np.float32) if array.dtype == np.float64 else array for array in arrays]
    return engine.call(library.bodies()[key], arrays, attributes)


def forward(operator: Operator, *inputs: object, **attributes: object) -> np.ndarray:
    return run(operator.key, inputs, **attributes)[0]


def backward(operator: Operator, dy: object, *inputs: object, **attributes: object) -> np.ndarray:
    """The gradient of the first input: the gradient's body on what the operator's `arguments` name."""
    assert operator.gradient is not None
    known = {"GO": [dy], "I": inputs, "O": run(operator.key, inputs, **attributes)}
    arguments = [known[name][int(index)] for name, index in re.findall(r"(\w+)\((\d+)\)", ",".join(operator.arguments))]
    return run((operator.gradient.opset.domain, operator.gradient.name), arguments, **attributes)[0]


def test_rounding_modes_are_those_of_the_reference() -> None:
    assert set(ROUNDING_MODES) == set(ref.ROUNDING)


# Quant


def lane_values(scale: float, zeropt: float, bits: float, signed: int, narrow: int) -> np.ndarray:
    """Ties and their float neighbours, both bounds and theirs, random values, and extremes; float32."""
    low, high = ref.integer_range(bits, signed, narrow)
    integers = np.concatenate([np.arange(-40, 41) / 2, [low - 0.5, low, low + 0.5, high - 0.5, high, high + 0.5]])
    grid = ((integers - zeropt) * scale).astype(np.float32)
    spread = np.random.default_rng(7).normal(0, min(high + 1, 1e6), 100) * scale
    special = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.2e-38, 1e-7, 3e38, -3e38, np.inf, -np.inf]
    neighbours = [np.nextafter(grid, np.float32(np.inf)), np.nextafter(grid, np.float32(-np.inf))]
    return np.concatenate([grid, *neighbours, spread, special]).astype(np.float32)


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal float32 numbers, NaN and infinities too; the sign of a zero is no number."""
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, np.asarray(expected, np.float32))


def qonnx_of(
    x: np.ndarray, scale: object, zeropt: object, bits: object, signed: int, narrow: int, mode: str
) -> np.ndarray:
    """What qonnx's executor computes, in float32 as it does on a float32 graph."""
    parts = [np.asarray(part, np.float32) for part in (scale, zeropt, bits)]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(qonnx_quant(x, *parts, signed, narrow, mode))


powers_of_two = st.integers(-12, 0).map(lambda exponent: 2.0**exponent)
float_scales = st.floats(float(np.float32(1e-3)), 10.0, width=32)
widths = st.sampled_from([*range(1, 17), 24, 32])
modes = st.sampled_from(ROUNDING_MODES)


@given(powers_of_two, widths, modes, st.sampled_from(SIGNS))
def test_quant_equals_the_reference_at_powers_of_two(scale: float, bits: int, mode: str, sign: tuple[int, int]) -> None:
    x = lane_values(scale, 0.0, bits, *sign)
    if mode.startswith("HALF_") and mode != "HALF_EVEN":
        # |v| + 0.5 and |v| - 0.5 are exact in float32 only for multiples of 2^-8 below 2^15, say.
        v = x.astype(np.float64) / scale
        x = x[(np.abs(v) < 2.0**15) & (v * 256 == np.round(v * 256))]
    attributes = {"signed": sign[0], "narrow": sign[1], "rounding_mode": mode}
    assert_same(forward(QUANT, x, scale, 0.0, float(bits), **attributes), ref.quant(x, scale, 0, bits, *sign, mode))


@given(powers_of_two | float_scales, st.sampled_from([0.0, 3.0, -1.5]), widths, modes, st.sampled_from(SIGNS))
@settings(max_examples=80)
def test_quant_equals_qonnx_bit_for_bit(
    scale: float, zeropt: float, bits: int, mode: str, sign: tuple[int, int]
) -> None:
    x = lane_values(scale, zeropt, bits, *sign)
    actual = forward(QUANT, x, scale, zeropt, float(bits), signed=sign[0], narrow=sign[1], rounding_mode=mode)
    assert_same(actual, qonnx_of(x, scale, zeropt, bits, *sign, mode))


@given(st.data(), modes, st.sampled_from(SIGNS))
@settings(max_examples=30)
def test_quant_takes_a_scale_per_channel(data: st.DataObject, mode: str, sign: tuple[int, int]) -> None:
    shape, lanes = data.draw(
        st.sampled_from(
            [
                ((6, 4), (4,)),
                ((6, 4), (6, 1)),
                ((3, 4, 5), (4, 1)),
                ((2, 3, 4, 4), (1, 3, 1, 1)),
                ((5,), (1,)),
                ((), ()),
            ]
        )
    )
    bits = data.draw(st.integers(1, 16))
    count = int(np.prod(lanes))
    scale = np.array(data.draw(st.lists(float_scales, min_size=count, max_size=count)), np.float32).reshape(lanes)
    zeropt = data.draw(st.sampled_from([0.0, 2.0]))
    x = np.random.default_rng(bits).normal(0, 10, shape).astype(np.float32)
    actual = forward(QUANT, x, scale, zeropt, float(bits), signed=sign[0], narrow=sign[1], rounding_mode=mode)
    assert actual.shape == shape
    assert_same(actual, qonnx_of(x, scale, zeropt, bits, *sign, mode))


@pytest.mark.parametrize("form", [(), (1,), (1, 1)])
def test_quant_takes_parameters_as_scalars_and_vectors(form: tuple[int, ...]) -> None:
    x = lane_values(0.25, 1.0, 4, 1, 0).reshape(1, -1)
    parts = [np.full(form, value, np.float32) for value in (0.25, 1.0, 4.0)]
    assert_same(forward(QUANT, x, *parts), qonnx_of(x, 0.25, 1.0, 4, 1, 0, "ROUND"))


@pytest.mark.parametrize("mode", ROUNDING_MODES)
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("lanes", [(5,), (5, 1)])
def test_quant_takes_a_bit_width_per_channel(mode: str, sign: tuple[int, int], lanes: tuple[int, ...]) -> None:
    bits = np.array([2.0, 3.0, 5.0, 8.0, 16.0]).reshape(lanes)
    shape = (40, 5) if lanes == (5,) else (5, 40)
    x = np.random.default_rng(5).normal(0, 3, shape).round(4).astype(np.float32)
    x = np.ldexp(np.round(np.ldexp(x, 8)), -8)
    attributes = {"signed": sign[0], "narrow": sign[1], "rounding_mode": mode}
    assert_same(forward(QUANT, x, 0.25, 0.0, bits, **attributes), ref.quant(x, 0.25, 0, bits, *sign, mode))
    dy = np.random.default_rng(6).normal(0, 1, shape).astype(np.float32)
    gradient = backward(QUANT, dy, x, 0.25, 0.0, bits, signed=sign[0], narrow=sign[1])
    assert_same(gradient, ref.quant_grad(dy, x, 0.25, 0, bits, *sign))


def test_quant_is_bipolar_in_the_channels_of_one_signed_bit() -> None:
    x = np.array([[-1.5, -1.5], [-0.1, -0.1], [0.0, 0.0], [0.9, 0.9]], np.float32)
    bits = np.array([1.0, 3.0])
    assert_same(forward(QUANT, x, 1.0, 0.0, bits), ref.quant(x, 1.0, 0, bits, 1, 0, "ROUND"))
    dy = np.ones_like(x)
    assert_same(backward(QUANT, dy, x, 1.0, 0.0, bits), ref.quant_grad(dy, x, 1.0, 0, bits, 1, 0))


def test_quant_is_bipolar_where_every_channel_has_one_signed_bit() -> None:
    x = np.array([[-1.5, -1.5], [-0.1, -0.1], [0.0, 0.0], [0.9, 0.9]], np.float32)
    assert_same(forward(QUANT, x, 1.0, 0.0, np.ones(2)), [[-1, -1], [-1, -1], [1, 1], [1, 1]])


def test_quant_runs_as_the_same_node_in_qonnx() -> None:
    x = np.random.default_rng(3).normal(0, 2, (5, 6)).astype(np.float32)
    node = helper.make_node(
        "Quant", ["x", "scale", "zeropt", "bits"], ["y"], domain=QONNX, signed=1, narrow=1, rounding_mode="HALF_UP"
    )
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in ("x", "y")]
    numbers = {"scale": np.float32(0.125), "zeropt": np.float32(0), "bits": np.float32(6)}
    stored = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1)]
    proto = helper.make_model(
        helper.make_graph([node], "g", info[:1], info[1:], stored), opset_imports=imports, ir_version=10
    )
    expected = execute_onnx(ModelWrapper(proto), {"x": x})["y"]
    actual = forward(QUANT, x, *numbers.values(), signed=1, narrow=1, rounding_mode="HALF_UP")
    assert np.unique(actual).size > 10
    assert_same(actual, expected)


# QuantGrad


@given(powers_of_two, widths, st.sampled_from(SIGNS))
def test_quant_grad_equals_the_reference_at_powers_of_two(scale: float, bits: int, sign: tuple[int, int]) -> None:
    x = lane_values(scale, 0.0, bits, *sign)
    if bits > 24:
        x = x[np.abs(x.astype(np.float64) / scale) < 2.0**31]  # float32 has no 2^31 - 1: the bound itself is 2^31
    dy = np.random.default_rng(bits).normal(0, 1, x.shape).astype(np.float32)
    actual = backward(QUANT, dy, x, scale, 0.0, float(bits), signed=sign[0], narrow=sign[1])
    assert_same(actual, ref.quant_grad(dy, x, scale, 0.0, bits, *sign))


@given(float_scales, st.sampled_from([0.0, 3.0, -1.5]), st.integers(1, 16), st.sampled_from(SIGNS))
@settings(max_examples=40)
def test_quant_grad_equals_the_reference_away_from_the_bounds(
    scale: float, zeropt: float, bits: int, sign: tuple[int, int]
) -> None:
    x = lane_values(scale, zeropt, bits, *sign)
    low, high = (-1.0, 1.0) if bits == 1 and sign[0] else ref.integer_range(bits, *sign)
    with np.errstate(over="ignore"):
        v = x.astype(np.float64) / scale + zeropt
    # x / scale + zeropt rounds in float32, so what lies within 1e-5 of a bound may fall on either side.
    x = x[(np.abs(v - low) > 1e-5 * (1 + abs(low))) & (np.abs(v - high) > 1e-5 * (1 + abs(high)))]
    dy = np.random.default_rng(bits).normal(0, 1, x.shape).astype(np.float32)
    actual = backward(QUANT, dy, x, scale, zeropt, float(bits), signed=sign[0], narrow=sign[1])
    assert_same(actual, ref.quant_grad(dy, x, scale, zeropt, bits, *sign))


# Standard operators


def test_gradients_of_standard_operators() -> None:
    x = np.array([-1e4, -90.0, -1.0, -1e-30, 0.0, 1e-30, 0.5, 90.0, 1e4], np.float32)
    dy = np.linspace(-2, 3, x.size).astype(np.float32)
    by_name = {one.name: (one.gradient.opset.domain, one.gradient.name) for one in GRADIENTS}
    assert_same(run(by_name["Relu"], [dy, np.maximum(x, 0)])[0], np.where(x > 0, dy, 0))
    # rtol: sigmoid and product each round once in float32, and the exponential of the kernel is good to a few ulp.
    np.testing.assert_allclose(run(by_name["Softplus"], [dy, x])[0], dy * ref.sigmoid(x), rtol=2e-6, atol=1e-30)


# Continuous sparsification

GATES = np.concatenate([np.linspace(-3, 3, 31), [0.0, -0.0, 1e-3, -1e-3, 40.0, -40.0]]).astype(np.float32)


@pytest.mark.parametrize("beta", [1.0, 3.7, 200.0])
@pytest.mark.parametrize("start", [0.0, -0.7, 1.3])
def test_cs_mask_and_gradient(beta: float, start: float) -> None:
    scale = cs.ContinuousSparsificationMethod(threshold_init=start).attributes()["scale"]
    mask = forward(cs.MASK_OPERATOR, GATES, beta, 0.0, scale=scale)
    expected = ref.cs_mask(GATES, beta, start)
    # atol: the engine's sigmoid is a rational approximation with an absolute error of an ulp or two of 1.
    np.testing.assert_allclose(mask, expected, rtol=2e-6, atol=2e-7 * scale)
    dy = np.linspace(-1, 2, GATES.size).astype(np.float32)
    gradient = backward(cs.MASK_OPERATOR, dy, GATES, beta, 0.0, scale=scale)
    # atol: 1 - m / scale cancels where the mask is nearly 1, and leaves a few ulp of 1, times beta scale dy.
    tolerance = 5e-7 * beta * scale
    np.testing.assert_allclose(gradient, ref.cs_mask_grad(dy, GATES, beta, start), rtol=1e-5, atol=tolerance)


def test_cs_hard_mask_prunes_an_untrained_gate() -> None:
    s = np.array([[-1.0, -1e-30, -0.0, 0.0, 1e-30, 2.0]], np.float32)
    score = forward(cs.SCORE_OPERATOR, s)
    assert_same((score > 0).astype(np.float32), ref.cs_hard_mask(s))
    assert_same((score > 0).astype(np.float32), [[0, 0, 0, 0, 1, 1]])


@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.5])
def test_cs_penalty_and_gradient(decay: float) -> None:
    mask = forward(cs.MASK_OPERATOR, GATES.reshape(-1, 1), 2.0, 0.0, scale=2.0)
    value = forward(cs.PENALTY_OPERATOR, mask, decay)
    assert value.shape == ()
    # rtol: a float32 sum of 37 terms.
    np.testing.assert_allclose(value, ref.cs_penalty(mask, decay), rtol=1e-6)
    chained = backward(cs.PENALTY_OPERATOR, 3.0, mask, decay)
    gradient = backward(cs.MASK_OPERATOR, chained, GATES.reshape(-1, 1), 2.0, 0.0, scale=2.0)
    expected = 3.0 * ref.cs_penalty_grad_s(GATES.reshape(-1, 1), 2.0, 0.0, decay)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=4e-6 * max(decay, 1e-30))


@pytest.mark.parametrize(("beta", "start"), [(200.0, 0.0), (200.0, 0.3), (7.5, -0.2)])
def test_cs_end_of_round(beta: float, start: float) -> None:
    actual = forward(cs.END_OF_ROUND_OPERATOR, GATES, beta, threshold_init=start)
    # rtol: one product in float32, and s0 itself.
    np.testing.assert_allclose(actual, ref.cs_end_of_round(GATES, beta, start), rtol=1e-7)
    assert actual.max() <= np.float32(start)


# Losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 2), (7, 5), (3, 4, 6)])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_cross_entropy(rng: np.random.Generator, shape: tuple[int, ...], size: float, smoothing: float) -> None:
    logits = rng.normal(0, size, shape).astype(np.float32)
    labels = rng.integers(0, shape[-1], shape[:-1])
    loss, gradient = ref.cross_entropy(logits.reshape(-1, shape[-1]), labels.ravel(), smoothing)
    # rtol: sums of a few float32 terms; atol: log p near 0 and p - t come from numbers near 1, good to an ulp of 1.
    value = forward(LOSSES["cross-entropy"], logits, labels, smoothing=smoothing)
    np.testing.assert_allclose(value, loss, rtol=1e-5, atol=2e-7)
    actual = backward(LOSSES["cross-entropy"], 2.5, logits, labels, smoothing=smoothing)
    np.testing.assert_allclose(actual, 2.5 * gradient.reshape(shape), rtol=1e-4, atol=1e-6 / labels.size)


def test_cross_entropy_of_one_sure_and_one_wrong_answer() -> None:
    logits, labels = np.array([[1e4, 0.0], [1e4, 0.0]], np.float32), np.array([0, 1])
    assert forward(LOSSES["cross-entropy"], logits, labels) == 5e3
    assert_same(backward(LOSSES["cross-entropy"], 1.0, logits, labels), [[0, 0], [0.5, -0.5]])


ELEMENTWISE = {
    "binary-cross-entropy": ref.binary_cross_entropy_with_logits,
    "mse": ref.mse,
    "l1": ref.l1,
    "huber": ref.huber,
}


IN_TEST_HEPT = {"focal", "info-nce"}


def test_every_loss_is_tested_here() -> None:
    assert set(LOSSES) == {"cross-entropy", "gaussian", *ELEMENTWISE, *IN_TEST_HEPT}


@pytest.mark.parametrize("values", [1, 2, 4])
def test_gaussian_likelihood(rng: np.random.Generator, values: int) -> None:
    prediction = rng.normal(0, 0.7, (6, values + values * (values + 1) // 2)).astype(np.float32)
    target = rng.normal(0, 1, (6, values)).astype(np.float32)
    loss, gradient = ref.gaussian(prediction, target)
    assert target_of("gaussian").shape(("rows", prediction.shape[1])) == ("rows", values)
    # rtol: sums of a few dozen float32 terms; atol: differences of step 1e-5 in float64, and terms that cancel.
    np.testing.assert_allclose(forward(LOSSES["gaussian"], prediction, target), loss, rtol=2e-6, atol=1e-6)
    actual = backward(LOSSES["gaussian"], 2.5, prediction, target)
    np.testing.assert_allclose(actual, 2.5 * gradient, rtol=1e-5, atol=2e-6)


def test_gaussian_likelihood_by_hand() -> None:
    """Two values, variances 1/4 and 1, no correlation: |z|² = 4 + 9."""
    prediction = np.array([[1, 2, np.log(2), 0, 0]], np.float32)
    target = np.array([[2, 5]], np.float32)
    expected = 6.5 - np.log(2) + np.log(2 * np.pi)
    # rtol: float32.
    np.testing.assert_allclose(forward(LOSSES["gaussian"], prediction, target), expected, rtol=1e-6)
    actual = backward(LOSSES["gaussian"], 1.0, prediction, target)
    np.testing.assert_allclose(actual, [[-4, -3, 3, 3, 8]], rtol=1e-6)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(1,), (9, 3), (2, 3, 4)])
@pytest.mark.parametrize("size", [0.5, 40.0, 1e4])
def test_elementwise_losses(rng: np.random.Generator, name: str, shape: tuple[int, ...], size: float) -> None:
    prediction = rng.normal(0, size, shape).astype(np.float32)
    binary = name == "binary-cross-entropy"
    target = (rng.integers(0, 2, shape) if binary else rng.normal(0, size, shape)).astype(np.float32)
    if not binary:
        target.flat[0] = prediction.flat[0]  # a kink of l1, where the gradient is 0
    loss, gradient = ELEMENTWISE[name](prediction, target)
    # rtol: float32 sums of at most 27 terms; atol: log(1 + e) is 0 below an ulp of 1.
    np.testing.assert_allclose(forward(LOSSES[name], prediction, target), loss, rtol=2e-6, atol=2e-7)
    actual = backward(LOSSES[name], 2.5, prediction, target)
    np.testing.assert_allclose(actual, 2.5 * gradient, rtol=2e-6, atol=3e-7 / prediction.size)


@pytest.mark.parametrize("delta", [0.3, 1.0, 4.0])
def test_huber_with_its_delta(rng: np.random.Generator, delta: float) -> None:
    prediction, target = rng.normal(0, 2, (2, 40)).astype(np.float32)
    loss, gradient = ref.huber(prediction, target, delta)
    np.testing.assert_allclose(forward(LOSSES["huber"], prediction, target, delta=delta), loss, rtol=2e-6)
    actual = backward(LOSSES["huber"], 1.0, prediction, target, delta=delta)
    np.testing.assert_allclose(actual, gradient, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1e4, 3e4])
def test_binary_cross_entropy_stays_finite(size: float) -> None:
    logits = np.array([size, -size, size, -size], np.float32)
    target = np.array([0, 0, 1, 1], np.float32)
    assert forward(LOSSES["binary-cross-entropy"], logits, target) == size / 2
    assert_same(backward(LOSSES["binary-cross-entropy"], 1.0, logits, target), [0.25, 0, 0, -0.25])


# Optimizers

STEPS = 6
FROZEN = 3


def trajectory(name: str, **options: float) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Thetas by pqc and by the reference, step by step, with the last elements frozen by rate 0."""
    random = np.random.default_rng(11)
    optimizer = OPTIMIZERS[name](**options)
    theta = random.normal(0, 1, 20).astype(np.float32)
    theta[1] = 0
    rate = np.ones(20, np.float32)
    rate[-FROZEN:] = 0
    rate[0] = 0.1
    slots = [np.zeros(20, np.float32) for _ in optimizer.slots]
    ours, theirs, lr = [theta], [theta.astype(np.float64)], 0.02
    state = [slot.astype(np.float64) for slot in slots]
    for step in range(1, STEPS + 1):
        gradient = random.normal(0, 10.0 ** random.integers(-4, 2, 20)).astype(np.float32)
        scalars = list(optimizer.scalars(step).values())
        rates = [rate, np.float32(lr), np.float32(optimizer.decay)]
        inputs = [ours[-1], gradient, *rates, *map(np.float32, scalars), *slots]
        updated, *slots = run(optimizer.operator.key, inputs, **optimizer.attributes())
        if optimizer.pull is not None:
            updated = run(optimizer.pull.key, [ours[-1], updated, *rates], p=optimizer.p)[0]
        ours.append(updated)
        stepped, *state = reference_step(name, optimizer, theirs[-1], gradient, state, step, lr * rate)
        theirs.append(stepped)
    return ours, theirs, rate


def reference_step(
    name: str,
    optimizer: object,
    theta: np.ndarray,
    gradient: np.ndarray,
    state: list[np.ndarray],
    step: int,
    lr: np.ndarray,
) -> tuple[np.ndarray, ...]:
    gradient = gradient.astype(np.float64)
    decay = float(np.float32(optimizer.weight_decay))
    if name in ("sgd", "psgd"):
        momentum = float(np.float32(optimizer.momentum))
        moved, *state = ref.sgd(theta, gradient, *state, lr, momentum, optimizer.nesterov, decay)
    else:
        betas = [float(np.float32(beta)) for beta in (optimizer.beta1, optimizer.beta2)]  # as the graph stores them
        update = ref.adamw if name == "adamw" else ref.adam
        moved, *state = update(theta, gradient, *state, step, lr, *betas, optimizer.epsilon, decay)
    if name in ("padam", "psgd"):
        pulled = [
            float(
                pruning.pnorm_decay(np.array([new]), np.array([old]), float(rate), optimizer.p, optimizer.lambda_p)[0]
            )
            for new, old, rate in zip(moved, theta, lr, strict=True)
        ]
        moved = np.array(pulled)
    return moved, *state


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {}),
        ("adam", {"weight_decay": 0.1}),
        ("adam", {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}),
        ("adamw", {}),
        ("adamw", {"weight_decay": 0.3}),
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
        ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ("padam", {}),
        ("padam", {"p": 0.5, "lambda_p": 0.3}),
        ("padam", {"p": 2.0, "lambda_p": 0.1}),
        ("psgd", {"momentum": 0.0, "lambda_p": 1.0}),
        ("psgd", {"p": 1.5, "nesterov": True}),
    ],
)
def test_optimizers_follow_the_reference(name: str, options: dict[str, float]) -> None:
    ours, theirs, rate = trajectory(name, **options)
    for actual, expected in zip(ours, theirs, strict=True):
        # rtol: about ten float32 roundings a step over six steps; atol: theta is of order 1, and moves may cancel.
        np.testing.assert_allclose(actual, expected, rtol=5e-6, atol=5e-6 if "sgd" in name else 1e-6)
    np.testing.assert_array_equal(ours[-1][rate == 0], ours[0][rate == 0])
    pulled_to_zero = name[0] == "p" and optimizer_power(options) < 2
    assert np.all((ours[-1] != ours[0])[(rate > 0) & ((ours[0] != 0) | (not pulled_to_zero))])
    assert not pulled_to_zero or ours[-1][1] == 0, "a weight at zero stays there"


def optimizer_power(options: dict[str, float]) -> float:
    """The p of the p-norm."""
    return options.get("p", 1.0)
