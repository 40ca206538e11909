"""Judge the reference itself: published numbers, finite differences, qonnx, worked examples."""

import doctest
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike
from qonnx.custom_op.general.quant import quant as qonnx_quant

import reference as ref

SEED = 20240
ROUNDING_TO_QONNX = {
    "TRN": "FLOOR",
    "RND_CONV": "ROUND",
    "TRN_ZERO": "DOWN",
    "RND_ZERO": "HALF_DOWN",
    "RND_INF": "HALF_UP",
}


def assert_same_bits(actual: ArrayLike, expected: ArrayLike) -> None:
    """Equal float64 bit patterns: tells -0.0 from 0.0, and compares NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == np.float64
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.view(np.int64), expected.view(np.int64))


def values_to_quantize(scale: float, zeropt: float) -> np.ndarray:
    """Random values, every half step of the grid with its two float neighbours, and specials."""
    random = np.random.default_rng(SEED).normal(scale=20.0 * scale, size=2000)
    halves = (np.arange(-80, 81) / 2.0 - zeropt) * scale
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 1e300])
    neighbours = [np.nextafter(halves, np.inf), np.nextafter(halves, -np.inf)]
    return np.concatenate([random, halves, *neighbours, special])


def test_docstring_examples() -> None:
    results = doctest.testmod(ref)
    assert results.attempted == 3 and results.failed == 0


# Quantizers


@pytest.mark.parametrize("mode", sorted(ref.ROUNDING))
@pytest.mark.parametrize(("signed", "narrow"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bits", [1.0, 2.0, 3.0, 5.0, 8.0, 2.5])
@pytest.mark.parametrize(("scale", "zeropt"), [(1.0, 0.0), (2.0**-5, 0.0), (0.1, 0.0), (0.5, 3.0), (0.3, -1.5)])
def test_quant_matches_qonnx_bit_for_bit(
    mode: str, signed: int, narrow: int, bits: float, scale: float, zeropt: float
) -> None:
    x = values_to_quantize(scale, zeropt)
    expected = qonnx_quant(x, np.float64(scale), np.float64(zeropt), np.float64(bits), signed, narrow, mode)
    assert_same_bits(ref.quant(x, scale, zeropt, bits, signed, narrow, mode), expected)
    lower_case = ref.quant(x, scale, zeropt, bits, signed, narrow, mode.lower())
    assert_same_bits(lower_case, expected)


@pytest.mark.parametrize("mode", sorted(ref.ROUNDING))
def test_quant_broadcasts_like_qonnx(mode: str) -> None:
    x = np.random.default_rng(SEED).normal(size=(3, 4, 5))
    scale = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
    zeropt = np.array([-1.0, 0.0, 1.0, 2.0])[:, np.newaxis]
    expected = qonnx_quant(x, scale, zeropt, np.float64(4), 1, 0, mode)
    assert_same_bits(ref.quant(x, scale, zeropt, 4, 1, 0, mode), expected)
    grown = ref.quant(0.3, scale, 0.0, 4, 1, 0, mode)
    assert_same_bits(grown, qonnx_quant(np.float64(0.3), scale, 0.0, np.float64(4), 1, 0, mode))


@pytest.mark.parametrize("signed", [0, 1])
def test_quant_takes_a_bit_width_per_lane(signed: int) -> None:
    x = np.random.default_rng(SEED).normal(scale=3.0, size=(50, 5))
    bits = np.array([1.0, 2.0, 3.0, 4.0, 7.0])
    expected = np.stack(
        [
            qonnx_quant(x[:, lane], np.float64(0.25), np.float64(0), width, signed, 0, "ROUND")
            for lane, width in enumerate(bits)
        ],
        axis=1,
    )
    assert_same_bits(ref.quant(x, 0.25, 0.0, bits, signed, 0, "ROUND"), expected)


@pytest.mark.parametrize("mode", ["ROUND_TO_ZERO", "RND", ""])
def test_quant_refuses_the_modes_that_qonnx_refuses(mode: str) -> None:
    with pytest.raises(ValueError, match="rounding mode"):
        qonnx_quant(np.ones(1), np.float64(1), np.float64(0), np.float64(4), 1, 0, mode)
    with pytest.raises(ValueError, match="rounding mode"):
        ref.quant(1.0, 1.0, 0.0, 4, 1, 0, mode)


# Rows: the table of the QONNX IntQuant page.
QONNX_TABLE_X = [5.5, 2.5, 1.6, 1.1, 1.0, -1.0, -1.1, -1.6, -2.5, -5.5]
QONNX_TABLE = {
    "ROUND": [6, 2, 2, 1, 1, -1, -1, -2, -2, -6],
    "HALF_EVEN": [6, 2, 2, 1, 1, -1, -1, -2, -2, -6],
    "CEIL": [6, 3, 2, 2, 1, -1, -1, -1, -2, -5],
    "FLOOR": [5, 2, 1, 1, 1, -1, -2, -2, -3, -6],
    "UP": [6, 3, 2, 2, 1, -1, -2, -2, -3, -6],
    "DOWN": [5, 2, 1, 1, 1, -1, -1, -1, -2, -5],
    "HALF_UP": [6, 3, 2, 1, 1, -1, -1, -2, -3, -6],
    "HALF_DOWN": [5, 2, 2, 1, 1, -1, -1, -2, -2, -5],
}


@pytest.mark.parametrize("mode", sorted(QONNX_TABLE))
def test_documented_qonnx_rounding_table(mode: str) -> None:
    rounded = ref.quant(QONNX_TABLE_X, 1.0, 0.0, 8, 1, 0, mode)
    np.testing.assert_array_equal(rounded, QONNX_TABLE[mode])


def test_integer_range_is_exact() -> None:
    bits = np.arange(2, 53)
    low, high = ref.integer_range(bits, signed=True, narrow=False)
    np.testing.assert_array_equal(low, -np.ldexp(1.0, bits - 1))
    np.testing.assert_array_equal(high, np.ldexp(1.0, bits - 1) - 1)
    low, high = ref.integer_range(bits, signed=False, narrow=True)
    np.testing.assert_array_equal(low, 0)
    np.testing.assert_array_equal(high, np.ldexp(1.0, bits) - 2)


@pytest.mark.parametrize(("signed", "narrow"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize(("scale", "zeropt"), [(0.25, 0.0), (0.1, 2.0)])
def test_quant_grad_is_the_gradient_of_the_clip(signed: int, narrow: int, scale: float, zeropt: float) -> None:
    rng = np.random.default_rng(SEED)
    x, dy = rng.normal(scale=8 * scale, size=(6, 5)), rng.normal(size=(6, 5))
    low, high = ref.integer_range(4, signed, narrow)

    def clipped(x: np.ndarray) -> float:
        return float((dy * (np.clip(x / scale + zeropt, low, high) - zeropt) * scale).sum())

    gradient = ref.quant_grad(dy, x, scale, zeropt, 4, signed, narrow)
    assert 0 < np.count_nonzero(gradient) < gradient.size
    np.testing.assert_allclose(gradient, ref.finite_difference(clipped, x), rtol=1e-7, atol=1e-9)


def test_quant_grad_passes_at_the_bounds_and_stops_beyond() -> None:
    low, high = -2.0, 1.75
    x = [np.nextafter(low, -9), low, 0.3, high, np.nextafter(high, 9)]
    gradient = ref.quant_grad(np.full(5, 3.0), x, 0.25, 0.0, 4, 1, 0)
    np.testing.assert_array_equal(gradient, [0, 3, 3, 3, 0])
    narrow = ref.quant_grad(np.ones(3), [-2.0, -1.75, 1.75], 0.25, 0.0, 4, 1, 1)
    np.testing.assert_array_equal(narrow, [0, 1, 1])


def test_quant_grad_of_the_bipolar_case() -> None:
    x = [-0.51, -0.5, -0.1, 0.0, 0.5, 0.51]
    signs = ref.quant(x, 0.5, 0, 1, 1, 0, "ROUND")
    np.testing.assert_array_equal(signs, [-0.5, -0.5, -0.5, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(ref.quant_grad(np.ones(6), x, 0.5, 0, 1, 1, 0), [0, 1, 1, 1, 1, 0])
    one_and_two_bits = ref.quant_grad(np.ones(2), [-1.5, -1.5], 1.0, 0.0, [1, 2], 1, 0)
    np.testing.assert_array_equal(one_and_two_bits, [0, 1])


def test_quant_grad_sums_over_broadcast_axes() -> None:
    gradient = ref.quant_grad(np.ones((3, 4)), [[0.0], [1.0], [9.0]], np.ones(4), 0, 3, 1, 0)
    np.testing.assert_array_equal(gradient, [[4.0], [4.0], [0.0]])


TIES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
TIE_TABLE = {
    "TRN": [-3, -2, -1, 0, 1, 2],
    "RND": [-2, -1, 0, 1, 2, 3],
    "RND_CONV": [-2, -2, 0, 0, 2, 2],
    "TRN_ZERO": [-2, -1, 0, 0, 1, 2],
    "RND_ZERO": [-2, -1, 0, 0, 1, 2],
    "RND_MIN_INF": [-3, -2, -1, 0, 1, 2],
    "RND_INF": [-3, -2, -1, 1, 2, 3],
}


@pytest.mark.parametrize("rounding", sorted(TIE_TABLE))
def test_published_tie_table(rounding: str) -> None:
    np.testing.assert_array_equal(ref.fixed_point(TIES, 1, 3, 0, rounding), TIE_TABLE[rounding])


def test_published_overflow_table() -> None:
    x = [-3, -2.25, -2, -1.75, -0.3, 0.2, 1.4, 1.6, 1.75, 2, 2.6, 3.9]
    saturated = [-2, -2, -2, -1.5, -0.5, 0] + [1.5] * 6
    np.testing.assert_array_equal(ref.fixed_point(x, 1, 1, 1, "RND"), saturated)
    np.testing.assert_array_equal(ref.fixed_point(x, 0, 1, 1, "RND"), [0] * 6 + [1.5] * 6)
    # Symmetric saturation is narrow=1; no tie is left inside the range, so half-even will do.
    symmetric = [-1.5] * 4 + [-0.5, 0] + [1.5] * 6
    np.testing.assert_array_equal(ref.quant(x, 0.5, 0.0, 3, 1, 1, "ROUND"), symmetric)


def test_published_gradient_example() -> None:
    x = [0.3, 5.0, -5.0]
    np.testing.assert_array_equal(ref.fixed_point(x, 1, 1, 2, "RND"), [0.25, 1.75, -2.0])
    np.testing.assert_array_equal(ref.quant_grad(np.ones(3), x, 0.25, 0, 4, 1, 0), [1, 0, 0])


@pytest.mark.parametrize(("k", "i", "f"), [(1, 1, 2), (1, 0, 7), (0, 0, 7), (1, 5, -2), (0, -2, 6)])
@pytest.mark.parametrize("rounding", sorted(ROUNDING_TO_QONNX))
def test_fixed_point_equals_quant(k: int, i: int, f: int, rounding: str) -> None:
    x = values_to_quantize(2.0**-f, 0.0)
    expected = ref.quant(x, 2.0**-f, 0.0, k + i + f, k, 0, ROUNDING_TO_QONNX[rounding])
    np.testing.assert_array_equal(ref.fixed_point(x, k, i, f, rounding), expected)


@pytest.mark.parametrize(("k", "i", "f"), [(1, 1, 2), (0, 0, 4), (1, 3, -1)])
def test_rounding_half_up_is_a_shifted_floor(k: int, i: int, f: int) -> None:
    step = 2.0**-f
    x = np.random.default_rng(SEED).integers(-2000, 2000, size=4000) * step / 16
    shifted_floor = ref.quant(x + step / 2, step, 0.0, k + i + f, k, 0, "FLOOR")
    np.testing.assert_array_equal(ref.fixed_point(x, k, i, f, "RND"), shifted_floor)


def test_fixed_point_keeps_the_range_at_least_one_step_wide() -> None:
    x = [-3.0, -0.5, 0.0, 0.5, 3.0]
    np.testing.assert_array_equal(ref.fixed_point(x, 1, -9, 1, "RND_CONV"), ref.fixed_point(x, 1, -1, 1, "RND_CONV"))
    np.testing.assert_array_equal(ref.fixed_point(x, 1, -1, 1, "RND_CONV"), [-0.5, -0.5, 0, 0, 0])


# Continuous sparsification


def test_cs_mask_starts_at_one() -> None:
    for s0 in (-3.0, -0.1, 0.0, 2.0):
        assert ref.cs_mask(s0, 1.0, s0) == 1.0
    np.testing.assert_array_equal(ref.cs_mask([-1e9, 0.0, 1e9], 200.0, 0.0), [0, 1, 2])


@pytest.mark.parametrize("s0", [-0.1, 0.0, 1.5])
@pytest.mark.parametrize("beta", [1.0, 7.0])
def test_cs_gradients(beta: float, s0: float) -> None:
    rng = np.random.default_rng(SEED)
    s, dy = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    numeric = ref.finite_difference(lambda s: float((dy * ref.cs_mask(s, beta, s0)).sum()), s)
    np.testing.assert_allclose(ref.cs_mask_grad(dy, s, beta, s0), numeric, rtol=1e-6, atol=1e-9)
    numeric = ref.finite_difference(lambda s: ref.cs_penalty(ref.cs_mask(s, beta, s0), 0.3), s)
    np.testing.assert_allclose(ref.cs_penalty_grad_s(s, beta, s0, 0.3), numeric, rtol=1e-6, atol=1e-9)


def test_cs_published_numbers() -> None:
    beta = ref.cs_beta(5, 5, 200)
    assert round(beta, 2) == 752.12
    by_epoch = 1.0
    for epoch in range(6):
        assert ref.cs_beta(epoch, 5, 200) == pytest.approx(by_epoch, rel=1e-14)
        by_epoch *= 200 ** (1 / 4)
    assert ref.cs_beta(0, 1, 200) == 1.0 and ref.cs_beta(1, 1, 200) == 200.0
    s = [0.1, -0.1, 0.0, 2.0]
    np.testing.assert_allclose(ref.cs_end_of_round(s, beta, 0.0), [0, -75.2, 0, 0], rtol=2e-4)
    np.testing.assert_array_equal(ref.cs_hard_mask(s), [1, 0, 0, 1])


# Losses


def loss_cases() -> list[tuple[str, Callable[[np.ndarray], tuple[float, np.ndarray]]]]:
    rng = np.random.default_rng(SEED)
    labels, targets = rng.integers(0, 5, size=6), rng.uniform(size=(6, 5))
    return [
        ("cross_entropy", lambda z: ref.cross_entropy(z, labels)),
        ("smoothed", lambda z: ref.cross_entropy(z, labels, smoothing=0.1)),
        ("binary", lambda z: ref.binary_cross_entropy_with_logits(z, targets)),
        ("mse", lambda z: ref.mse(z, targets)),
        ("l1", lambda z: ref.l1(z, targets)),
        ("huber", lambda z: ref.huber(z, targets)),
        ("huber_delta", lambda z: ref.huber(z, targets, delta=0.4)),
    ]


@pytest.mark.parametrize(("name", "loss"), loss_cases(), ids=[name for name, _ in loss_cases()])
def test_loss_gradients(name: str, loss: Callable[[np.ndarray], tuple[float, np.ndarray]]) -> None:
    z = np.random.default_rng(SEED + 1).normal(scale=2.0, size=(6, 5))
    numeric = ref.finite_difference(lambda z: loss(z)[0], z)
    np.testing.assert_allclose(loss(z)[1], numeric, rtol=1e-6, atol=1e-9)


def test_cross_entropy_by_hand() -> None:
    value, gradient = ref.cross_entropy([[0.0, np.log(3.0)], [0.0, 0.0]], [1, 0])
    assert value == pytest.approx((np.log(4 / 3) + np.log(2)) / 2, rel=1e-15)
    np.testing.assert_allclose(gradient, [[0.125, -0.125], [-0.25, 0.25]], rtol=1e-14)
    # Smoothing .2 over 2 classes: t = (.1, .9) on p = (1/4, 3/4).
    value, gradient = ref.cross_entropy([[0.0, np.log(3.0)]], [1], smoothing=0.2)
    assert value == pytest.approx(-0.1 * np.log(0.25) - 0.9 * np.log(0.75), rel=1e-15)
    np.testing.assert_allclose(gradient, [[0.15, -0.15]], rtol=1e-14)


def test_losses_by_hand() -> None:
    value, gradient = ref.binary_cross_entropy_with_logits([0.0, np.log(3.0)], [1.0, 0.0])
    assert value == pytest.approx((np.log(2) + np.log(4)) / 2, rel=1e-15)
    np.testing.assert_allclose(gradient, [-0.25, 0.375], rtol=1e-15)
    pred, target = [3.0, 1.0, 0.0, 0.5], [0.0, 1.0, 0.5, 0.5]
    assert ref.mse(pred, target)[0] == 9.25 / 4
    assert ref.l1(pred, target)[0] == 3.5 / 4
    np.testing.assert_array_equal(ref.l1(pred, target)[1], [0.25, 0, -0.25, 0])
    assert ref.huber(pred, target)[0] == (2.5 + 0.125) / 4
    np.testing.assert_array_equal(ref.huber(pred, target)[1], [0.25, 0, -0.125, 0])


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_losses_are_stable_for_large_logits(size: float) -> None:
    value, gradient = ref.cross_entropy([[size, -size], [size, -size]], [0, 1])
    assert value == size
    np.testing.assert_allclose(gradient, [[0, 0], [0.5, -0.5]], rtol=0, atol=1e-40)
    value, gradient = ref.binary_cross_entropy_with_logits([size, size, -size, -size], [1, 0, 1, 0])
    assert value == pytest.approx(size / 2, rel=1e-15)
    np.testing.assert_allclose(gradient, [0, 0.25, -0.25, 0], rtol=0, atol=1e-40)


def test_elementwise_losses_refuse_broadcasting() -> None:
    for loss in (ref.mse, ref.l1, ref.huber, ref.binary_cross_entropy_with_logits):
        with pytest.raises(ValueError, match="equal shapes"):
            loss(np.ones((3, 1)), np.ones(3))


# Optimizers. With beta1 = 1/2, beta2 = 3/4 and gradients 2 then 1: m = 1, 1; v = 1, 1;
# corrected m = 2, 4/3; corrected v = 4, 16/7; so the steps are lr and lr sqrt(7)/3.


def zeros() -> np.ndarray:
    return np.zeros(1)


def test_adam_by_hand() -> None:
    # weight_decay .5: gradients 1 + .5 * 2 = 2, then .05 + .5 * 1.9 = 1.
    theta, m, v = ref.adam(2 * np.ones(1), np.ones(1), zeros(), zeros(), 1, 0.1, 0.5, 0.75, 0.0, 0.5)
    np.testing.assert_allclose([theta[0], m[0], v[0]], [1.9, 1, 1], rtol=1e-15)
    theta, m, v = ref.adam(theta, np.array([0.05]), m, v, 2, 0.1, 0.5, 0.75, 0.0, 0.5)
    np.testing.assert_allclose([theta[0], m[0], v[0]], [1.9 - np.sqrt(7) / 30, 1, 1], rtol=1e-15)


def test_adam_adds_eps_after_the_bias_correction() -> None:
    theta, _, _ = ref.adam(zeros(), np.array([2.0]), zeros(), zeros(), 1, 0.1, 0.5, 0.75, 1.0, 0.0)
    np.testing.assert_allclose(theta, -0.1 * 2 / (2 + 1), rtol=1e-15)


def test_adamw_by_hand() -> None:
    # theta is multiplied by 1 - .1 * .5 = .95 and the gradient stays clean.
    theta, m, v = ref.adamw(np.ones(1), np.array([2.0]), zeros(), zeros(), 1, 0.1, 0.5, 0.75, 0.0, 0.5)
    np.testing.assert_allclose([theta[0], m[0], v[0]], [0.85, 1, 1], rtol=1e-15)
    theta, m, v = ref.adamw(theta, np.ones(1), m, v, 2, 0.1, 0.5, 0.75, 0.0, 0.5)
    np.testing.assert_allclose([theta[0], m[0], v[0]], [0.8075 - np.sqrt(7) / 30, 1, 1], rtol=1e-15)


def test_sgd_by_hand() -> None:
    # Gradients 1 + .5 * 1 = 1.5, then .575 + .5 * .85 = 1; m = 1.5, .9 * 1.5 + 1 = 2.35.
    theta, m = ref.sgd(np.ones(1), np.ones(1), zeros(), 0.1, 0.9, False, 0.5)
    np.testing.assert_allclose([theta[0], m[0]], [0.85, 1.5], rtol=1e-15)
    theta, m = ref.sgd(theta, np.array([0.575]), m, 0.1, 0.9, False, 0.5)
    np.testing.assert_allclose([theta[0], m[0]], [0.615, 2.35], rtol=1e-15)


def test_nesterov_sgd_by_hand() -> None:
    # Steps 1.5 + .9 * 1.5 = 2.85, then (.6425 + .5 * .715) + .9 * 2.35 = 3.115.
    theta, m = ref.sgd(np.ones(1), np.ones(1), zeros(), 0.1, 0.9, True, 0.5)
    np.testing.assert_allclose([theta[0], m[0]], [0.715, 1.5], rtol=1e-15)
    theta, m = ref.sgd(theta, np.array([0.6425]), m, 0.1, 0.9, True, 0.5)
    np.testing.assert_allclose([theta[0], m[0]], [0.4035, 2.35], rtol=1e-15)


def test_optimizers_leave_their_arguments_alone() -> None:
    theta, grad, m, v = np.ones(3), np.ones(3), np.ones(3), np.ones(3)
    ref.adam(theta, grad, m, v, 1, 0.1, 0.9, 0.999, 1e-8, 0.1)
    ref.adamw(theta, grad, m, v, 1, 0.1, 0.9, 0.999, 1e-8, 0.1)
    ref.sgd(theta, grad, m, 0.1, 0.9, True, 0.1)
    for array in (theta, grad, m, v):
        np.testing.assert_array_equal(array, 1.0)


# EBOPs


def test_dense_ebops_counts_only_non_zero_weights() -> None:
    weight = np.ones((4, 16))
    assert ref.dense_ebops(7, 8, 8, weight) == 3616
    assert ref.dense_ebops(7, 8, 8, weight, positions=5) == 18080
    weight[1, :4] = 0.0
    assert ref.dense_ebops(7, 8, 8, weight) == 3616 - 4 * 7 * 8
    assert ref.dense_ebops(7, 8, 0, np.zeros((4, 16))) == 0
    bits_in, bits_w = np.arange(16), np.array([[1], [2], [3], [4]])
    expected = sum(float(bits_in[j] * bits_w[o, 0]) for o in range(4) for j in range(16) if weight[o, j])
    assert ref.dense_ebops(bits_in, bits_w, [1, 2, 3, 4], weight) == expected + 10


def test_conv2d_ebops() -> None:
    weight = np.ones((4, 3, 3, 3))
    assert ref.conv2d_ebops(7, 8, 8, weight, output_pixels=36) == 6048 + 8 * 36 * 4
    weight[0, 1] = 0.0
    assert ref.conv2d_ebops([1, 10, 100], 2, 0, weight, output_pixels=36) == 2 * 9 * (4 * 111 - 10)
    by_pixel = np.ones((3, 8, 8))
    by_pixel[:, 2, 5] = [1, 10, 100]
    assert ref.conv2d_ebops(by_pixel, 2, 0, weight, 36) == 2 * 9 * (4 * 111 - 10)


def test_conv2d_ebops_of_groups() -> None:
    assert ref.conv2d_ebops(7, 8, 0, np.ones((4, 1, 3, 3)), 64, groups=4) == 2016
    weight = np.ones((6, 2, 1, 1))
    weight[5, 0] = 0.0
    two_groups = ref.conv2d_ebops([1, 2, 30, 40], 1, 0, weight, 64, groups=2)
    assert two_groups == 3 * (1 + 2) + 3 * (30 + 40) - 30


def test_finite_difference() -> None:
    x = np.array([[1.0, -2.0], [3.0, 0.5]])
    numeric = ref.finite_difference(lambda x: float((x**3).sum()), x)
    np.testing.assert_allclose(numeric, 3 * x**2, rtol=1e-8)
