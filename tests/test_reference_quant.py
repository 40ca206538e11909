"""Checks the quantizer reference against the published measurements and against itself."""

import itertools
import math

import numpy as np
import pytest

import reference
import reference_quant as ref
from reference import finite_difference

LN2 = math.log(2.0)
TIES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
AP_MODES = ("TRN", "RND", "RND_CONV", "TRN_ZERO", "RND_ZERO", "RND_MIN_INF", "RND_INF")
SATURATING = ("SAT", "SAT_SYM")


def _samples(size=400, spread=3.0, seed=0):
    return np.random.default_rng(seed).normal(0.0, spread, size)


# Rounding


@pytest.mark.parametrize(
    "mode, rounded",
    [
        ("TRN", [-3, -2, -1, 0, 1, 2]),
        ("RND", [-2, -1, 0, 1, 2, 3]),
        ("RND_CONV", [-2, -2, 0, 0, 2, 2]),
        ("TRN_ZERO", [-2, -1, 0, 0, 1, 2]),
        ("RND_ZERO", [-2, -1, 0, 0, 1, 2]),
        ("RND_MIN_INF", [-3, -2, -1, 0, 1, 2]),
        ("RND_INF", [-3, -2, -1, 1, 2, 3]),
        ("ROUND", [-2, -2, 0, 0, 2, 2]),
        ("HALF_EVEN", [-2, -2, 0, 0, 2, 2]),
        ("CEIL", [-2, -1, 0, 1, 2, 3]),
        ("FLOOR", [-3, -2, -1, 0, 1, 2]),
        ("UP", [-3, -2, -1, 1, 2, 3]),
        ("DOWN", [-2, -1, 0, 0, 1, 2]),
        ("HALF_UP", [-3, -2, -1, 1, 2, 3]),
        ("HALF_DOWN", [-2, -1, 0, 0, 1, 2]),
    ],
)
def test_ties_round_as_published(mode, rounded):
    np.testing.assert_array_equal(ref.round_mode(TIES, mode), rounded)


@pytest.mark.parametrize("mode", [mode for mode in AP_MODES if mode.startswith("RND")])
def test_half_modes_agree_off_ties_even_just_beside_them(mode):
    beside = [np.nextafter(tie, way) for tie in TIES for way in (-np.inf, np.inf)]
    nearest = [math.floor(tie) + (way > 0) for tie in TIES for way in (-1, 1)]
    np.testing.assert_array_equal(ref.round_mode(beside, mode), nearest)
    x = _samples()
    np.testing.assert_array_equal(ref.round_mode(x, mode), np.rint(x))


@pytest.mark.parametrize("mode", [*AP_MODES, "UP", "CEIL"])
def test_integers_of_any_size_stay(mode):
    integers = np.array([-(2.0**60), -3.0, 0.0, 3.0, 2.0**53 - 1.0, 2.0**60])
    np.testing.assert_array_equal(ref.round_mode(integers, mode), integers)


def test_directed_modes_between_ties():
    v = [-1.2, 1.2]
    expected = {"CEIL": [-1, 2], "FLOOR": [-2, 1], "UP": [-2, 2], "DOWN": [-1, 1], "TRN": [-2, 1], "TRN_ZERO": [-1, 1]}
    for mode, rounded in expected.items():
        np.testing.assert_array_equal(ref.round_mode(v, mode), rounded)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'ROUND_TO_ZERO' is none of"):
        ref.round_mode(0.0, "ROUND_TO_ZERO")


def test_stochastic_rounding_is_unbiased():
    v = np.array([-1.25, 0.0, 0.75, 2.0])
    low, high, chance = ref.stochastic_bounds(v)
    np.testing.assert_array_equal(chance, [0.75, 0.0, 0.75, 0.0])
    np.testing.assert_array_equal(low + (high - low) * chance, v)


# Fixed point


OVERFLOW_X = [-3, -2.25, -2, -1.75, -0.3, 0.2, 1.4, 1.6, 1.75, 2, 2.6, 3.9]


@pytest.mark.parametrize(
    "k, overflow, wraps, y",
    [
        (1, "SAT", True, [-2, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]),
        (1, "SAT_SYM", True, [-1.5, -1.5, -1.5, -1.5, -0.5, 0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]),
        (1, "WRAP", True, [1, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, -2, -2, -1.5, 0]),
        (1, "WRAP", False, [-3, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, 2, 2, 2.5, 4]),
        (1, "WRAP_SM_PUBLISHED", True, [-1.5, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, 1.5, 1.5, 1, 0]),
        (1, "WRAP_SM", True, [-1.5, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, 1.5, 1.5, 1, -0.5]),
        (0, "SAT", True, [0] * 6 + [1.5] * 6),
        (0, "WRAP", True, [1, 0, 0, 0.5, 1.5, 0, 1.5, 1.5, 0, 0, 0.5, 0]),
    ],
)
def test_overflow_as_published(k, overflow, wraps, y):
    """WRAP_SM differs from the published row only at 3.9; see `fixed_point`."""
    np.testing.assert_array_equal(ref.fixed_point(OVERFLOW_X, k, 1, 1, "RND", overflow, wraps), y)


@pytest.mark.parametrize("k, mode, overflow", list(itertools.product((0, 1), AP_MODES, SATURATING)))
def test_saturation_equals_round_then_clip(k, mode, overflow):
    x = np.concatenate([_samples(), np.arange(-40, 41) / 16.0])
    for i, f in [(1, 2), (3, 0), (-1, 3), (2, -1), (0, 0), (-2, 2)]:
        np.testing.assert_array_equal(
            ref.fixed_point(x, k, i, f, mode, overflow, zero_empty=False),
            ref.round_then_clip(x, k, i, f, mode, overflow),
        )


@pytest.mark.parametrize("mode, overflow", list(itertools.product(AP_MODES, (*SATURATING, "WRAP"))))
def test_quantizing_twice_changes_nothing(mode, overflow):
    once = ref.fixed_point(_samples(), 1, 1, 2, mode, overflow)
    np.testing.assert_array_equal(ref.fixed_point(once, 1, 1, 2, mode, overflow), once)


@pytest.mark.parametrize("k, i, f", [(1, 1, 2), (0, 2, 1), (1, -1, 3), (0, 0, 2)])
def test_wrap_is_periodic_and_reaches_every_level(k, i, f):
    x = np.arange(-64, 64) / 2.0**f
    y = ref.fixed_point(x, k, i, f, "TRN", "WRAP")
    np.testing.assert_array_equal(y, ref.fixed_point(x + 2.0 ** (i + k), k, i, f, "TRN", "WRAP"))
    low, high = ref.range_of(k, i, f, "WRAP")
    np.testing.assert_array_equal(np.unique(y), np.arange(low, high + 2.0**-f, 2.0**-f))
    inside = (low <= x) & (x <= high)
    np.testing.assert_array_equal(y[inside], x[inside])


def _wrap_sm_bits(n, width):
    """AP_WRAP_SM on integers: invert the kept bits if the lowest cut bit differs from the kept sign."""
    kept = n & (2**width - 1)
    cut, sign = (n >> width) & 1, kept >> (width - 1)
    kept = kept ^ (2**width - 1) if cut != sign else kept
    return kept - 2**width if kept >> (width - 1) else kept


def test_sign_magnitude_wrap_is_what_registers_do():
    integers = np.arange(-40, 41)
    expected = [_wrap_sm_bits(int(n), 3) / 2.0 for n in integers]
    np.testing.assert_array_equal(ref.fixed_point(integers / 2.0, 1, 1, 1, "RND", "WRAP_SM"), expected)
    np.testing.assert_array_equal(ref.fixed_point(integers / 2.0, 1, 1, 1, "RND", "WRAP_SM_PUBLISHED"), expected)


def test_sign_magnitude_wrap_is_refused_where_it_has_no_meaning():
    with pytest.raises(ValueError, match="needs a sign"):
        ref.fixed_point(1.0, 0, 1, 1, "RND", "WRAP_SM")
    with pytest.raises(ValueError, match="takes RND or RND_CONV, not TRN"):
        ref.fixed_point(1.0, 1, 1, 1, "TRN", "WRAP_SM")


def test_empty_and_one_bit_lanes():
    x = [-3.0, -0.4, 0.0, 0.4, 3.0]
    assert not ref.fixed_point(x, 1, -3, 2, "RND", "SAT").any()
    assert not ref.fixed_point(x, 0, -2, 2, "RND", "WRAP").any()
    np.testing.assert_array_equal(ref.fixed_point(x, 1, -2, 2, "TRN", "SAT"), [-0.25, -0.25, 0, 0, 0])
    np.testing.assert_array_equal(ref.fixed_point(x, 1, -3, 2, "TRN", "SAT", zero_empty=False), [-0.25, -0.25, 0, 0, 0])
    assert not ref.fixed_point(x, 1, -2, 2, "TRN", "SAT_SYM").any()
    np.testing.assert_array_equal(ref.fixed_point(x, 1, -2, 2, "TRN", "WRAP"), [0, 0, 0, -0.25, 0])


@pytest.mark.parametrize("k, mode", list(itertools.product((0, 1), AP_MODES)))
def test_saturation_agrees_with_the_older_reference(k, mode):
    x = np.concatenate([_samples(), np.arange(-40, 41) / 16.0])
    np.testing.assert_array_equal(ref.fixed_point(x, k, 1, 2, mode, "SAT"), reference.fixed_point(x, k, 1, 2, mode))


def test_bits_round_half_to_even_and_broadcast():
    x = np.full((2, 3), 5.3)
    y = ref.fixed_point(x, 1, [[1.4], [2.5]], [0.5, 1.5, 2.0], "RND", "SAT")
    np.testing.assert_array_equal(y, [[1.0, 1.75, 1.75], [3.0, 3.75, 3.75]])


# Gradients


def _slopes(x, overflow="SAT", k=1, i=1, f=2):
    return [gradient.item() for gradient in ref.fixed_point_gradients(1.0, x, k, i, f, "RND", overflow)]


def test_gradients_as_published():
    assert _slopes(0.3) == pytest.approx([1, 0, 0.034657], abs=5e-7)
    assert _slopes(5.0) == pytest.approx([0, 1.386294, 0.173287], abs=5e-7)
    assert _slopes(-5.0) == pytest.approx([0, -1.386294, 0], abs=5e-7)
    assert [ref.fixed_point(x, 1, 1, 2, "RND", "SAT").item() for x in (0.3, 5.0, -5.0)] == [0.25, 1.75, -2.0]


def test_gradients_below_symmetric_and_unsigned_bounds():
    assert _slopes(-5.0, "SAT_SYM") == pytest.approx([0, -2 * LN2, -0.25 * LN2])
    assert _slopes(-5.0, "SAT", k=0) == [0, 0, 0]
    assert _slopes(-5.0, "SAT_SYM", k=0) == [0, 0, 0]


@pytest.mark.parametrize("overflow", SATURATING)
def test_bounds_are_inside(overflow):
    for bound in ref.range_of(1, 1, 2, overflow):
        assert _slopes(bound, overflow) == [1, 0, 0]


def test_wrap_is_straight_through_and_does_not_train_i():
    assert _slopes(5.3, "WRAP") == pytest.approx([1, 0, LN2 * (5.3 - 5.25)])


def test_clamped_lane_sends_di_to_i():
    assert _slopes(5.0, i=-4, f=2) == pytest.approx([0, 0.25 * LN2, 0.25 * LN2])


def _surrogate(x, k, i, f, overflow, i0, f0):
    """y as a smooth function of real x, i, f: clip with real bounds, R(v) as v + a constant."""
    symmetric = overflow == "SAT_SYM"
    high = 2.0**i - 2.0**-f
    clipped = np.clip(x, -k * (high if symmetric else 2.0**i), high)
    low0, high0 = ref.range_of(k, i0, f0, overflow)
    v0 = np.clip(x, low0, high0) * 2.0**f0
    return (clipped * 2.0**f + ref.round_mode(v0, "RND") - v0) * 2.0**-f


@pytest.mark.parametrize("k, overflow", list(itertools.product((0, 1), SATURATING)))
def test_gradients_match_differences_of_the_smooth_form(k, overflow):
    x, i0, f0 = _samples(60), 1.0, 2.0
    dy = _samples(60, 1.0, 1)
    dx, di, df = ref.fixed_point_gradients(dy, x, k, i0, f0, "RND", overflow)
    eps = 1e-5

    def slope(i, f):
        high, low = (_surrogate(x, k, i0 + s * i, f0 + s * f, overflow, i0, f0) for s in (eps, -eps))
        return (high - low) / (2.0 * eps)

    np.testing.assert_allclose(dy * slope(1, 0), di, atol=1e-8)
    np.testing.assert_allclose(dy * slope(0, 1), df, atol=1e-8)
    low, high = ref.range_of(k, i0, f0, overflow)
    np.testing.assert_array_equal(dx, dy * ((low < x) & (x < high)))
    np.testing.assert_allclose(ref.reduce_to(di, ()), di.sum())


@pytest.mark.parametrize("overflow", ["WRAP_SM", "WRAP_SM_PUBLISHED"])
def test_reflected_slopes_follow_the_sawtooth(overflow):
    x, i, f = np.arange(-40, 40) / 4.0 + 0.01, 1.0, 1.0
    dx, di, df = ref.fixed_point_gradients(1.0, x, 1, i, f, "RND", overflow)
    y = ref.fixed_point(x, 1, i, f, "RND", overflow)
    assert set(np.unique(dx)) == {-1.0, 1.0}
    # y = dx q + a 2^i + b e with b = -1 where reflected: both gradients follow from that.
    q = ref.round_to_grid(x, f, "RND")
    e = np.where(dx < 0, -0.5, 0.0)
    np.testing.assert_allclose(di, LN2 * (y - dx * q - e), atol=1e-12)
    np.testing.assert_allclose(df, LN2 * (dx * (x - q) - e), atol=1e-12)


def test_reduce_to_sums_shared_axes():
    gradient = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(ref.reduce_to(gradient, (3, 1)), gradient.sum(axis=(0, 2))[:, np.newaxis])
    assert ref.reduce_to(gradient, ()).item() == gradient.sum()


# Integer bits


def test_split_as_published():
    i, f = ref.split_bits([0.3, 1, 2, 100], 8, 1)
    np.testing.assert_array_equal(i, [0, 1, 2, 7])
    np.testing.assert_array_equal(f, [7, 6, 5, 0])


def test_split_in_float32_loses_the_margin_from_16_on():
    np.testing.assert_array_equal(ref.split_bits([2, 4, 16, 32], 12, 1)[0], [2, 3, 5, 6])
    np.testing.assert_array_equal(ref.split_bits([2, 4, 16, 32], 12, 1, np.float32)[0], [2, 3, 4, 5])


def test_exact_split_holds_minus_but_not_plus_a_power_of_two():
    low, high = [-1.0, -0.5, -2.0, 0.0], [0.9, 1.0, 0.0, 0.0]
    i, f = ref.split_bits_exact(low, high, 8, 1)
    np.testing.assert_array_equal(i, [0, 1, 1, 0])
    np.testing.assert_array_equal(f, [7, 6, 6, 7])


@pytest.mark.parametrize("k", [0, 1])
def test_exact_integer_bits_are_enough_and_least(k):
    for low, high in np.sort(_samples(80).reshape(40, 2), axis=1):
        i = ref.integer_bits_exact(low, high, k, 3, "RND")
        ends = np.array([low, high]) if k else np.maximum([low, high], 0.0)
        np.testing.assert_array_equal(
            ref.fixed_point(ends, k, i, 3, "RND", "SAT", zero_empty=False), ref.round_to_grid(ends, 3, "RND")
        )
        fits = ref.fixed_point(ends, k, i - 1, 3, "RND", "SAT") == ref.round_to_grid(ends, 3, "RND")
        assert i == -3 or not fits.all()


def test_tracking_forgets_by_decay():
    x = np.array([[0.3, -6.0], [0.1, 1.0]])
    np.testing.assert_array_equal(ref.tracked([[2.0, 2.0]], x, 2, math.inf, (0,)), [[0, 3]])
    np.testing.assert_array_equal(ref.tracked([[2.0, 2.0]], x, 2, 0.01, (0,)), [[1.99, 3]])
    np.testing.assert_array_equal(ref.tracked([[2.0, 2.0]], x, 2, 0.0, (0, 1)), [[3, 3]])
    assert ref.tracked(np.array(5.0), np.zeros(3), 40, math.inf, (0,)).item() == -23.0


def test_tracked_powers_of_two_depend_on_the_precision():
    assert ref.integer_bits(1.5, 1).item() == 2.0
    assert ref.integer_bits(1.5, 1, np.float32).item() == 1.0
    assert ref.integer_bits_exact(-1.5, 1.5, 1, 1, "RND").item() == 1.0


# Learned scales


def test_lsq_levels():
    assert ref.lsq_levels(3, True) == (4.0, 3.0)
    assert ref.lsq_levels(3, True, narrow=True) == (3.0, 3.0)
    assert ref.lsq_levels(3, False) == (0.0, 7.0)


def test_lsq_by_hand():
    x, s = np.array([-9.0, -2.0, 0.6, 1.5, 2.0]), 0.5
    np.testing.assert_array_equal(ref.lsq(x, s, 4, 3), [-2, -2, 0.5, 1.5, 1.5])
    dx, ds = ref.lsq_gradients(np.ones(5), x, s, 4, 3, scaled=False)
    np.testing.assert_array_equal(dx, [0, 0, 1, 0, 0])
    assert ds.item() == pytest.approx(-4 - 4 + (1 - 1.2) + 3 + 3)
    dx, ds = ref.lsq_gradients(np.ones(5), x, s, 4, 3, scaled=True, inclusive=True)
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 0])
    assert ds.item() == pytest.approx((-4 + (1 - 1.2) + 3) / math.sqrt(5 * 3))


def test_lsq_scale_gradient_matches_differences_of_the_smooth_form():
    x, dy, s0 = _samples(30).reshape(3, 10), _samples(30, 1.0, 2).reshape(3, 10), np.array([[0.3], [0.7], [1.1]])
    v0 = np.clip(x / s0, -4, 3)
    residue = np.rint(v0) - v0

    def loss(s):
        return float((dy * (np.clip(x / s, -4, 3) + residue) * s).sum())

    _, ds = ref.lsq_gradients(dy, x, s0, 4, 3, scaled=False)
    np.testing.assert_allclose(ds, finite_difference(loss, s0), rtol=1e-5, atol=1e-7)
    _, scaled = ref.lsq_gradients(dy, x, s0, 4, 3)
    np.testing.assert_allclose(scaled, ds / math.sqrt(10 * 3))


def test_power_of_two_lsq_is_lsq_at_the_rounded_scale():
    x, dy = _samples(30), _samples(30, 1.0, 2)
    np.testing.assert_array_equal(ref.power_of_two_lsq(x, -1.4, 4, 3), ref.lsq(x, 0.5, 4, 3))
    np.testing.assert_array_equal(ref.power_of_two_lsq(x, -1.4, 4, 3), ref.fixed_point(x, 1, 1, 1, "RND_CONV", "SAT"))
    dx, dt = ref.power_of_two_lsq_gradients(dy, x, -1.4, 4, 3)
    expected_dx, ds = ref.lsq_gradients(dy, x, 0.5, 4, 3)
    np.testing.assert_array_equal(dx, expected_dx)
    assert dt.item() == pytest.approx(LN2 * 0.5 * ds.item())


def test_power_of_two_lsq_gradient_follows_the_fixed_point_table():
    """t moves both bounds: s = 2^-f at constant width, so dt = di - df, i = width - f."""
    x = _samples(60)
    _, dt = ref.power_of_two_lsq_gradients(np.ones(60), x, -1.0, 4, 3, scaled=False, inclusive=True)
    _, di, df = ref.fixed_point_gradients(1.0, x, 1, 1, 1, "RND_CONV", "SAT")
    assert dt.item() == pytest.approx((di - df).sum())


def test_initial_scale():
    assert ref.lsq_initial_scale([-1.0, 3.0], 4.0) == 2.0


def test_bipolar_and_ternary():
    x = np.array([-2.0, -0.5, 0.0, 0.2, 0.5, 0.9])
    np.testing.assert_array_equal(ref.bipolar(x, 0.5), [-0.5, -0.5, 0.5, 0.5, 0.5, 0.5])
    dx, dscale = ref.bipolar_gradients(np.ones(6), x, 0.5)
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 1, 0])
    assert dscale.item() == 2.0
    np.testing.assert_array_equal(ref.ternary(x, 0.5), [-0.5, -0.5, 0, 0, 0.5, 0.5])
    dx, dscale = ref.ternary_gradients(np.ones(6), x, 0.5)
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 1, 0])
    assert dscale.item() == pytest.approx(-1 + 0 + 0 - 0.4 + 0 + 1)


# Widths, loss


def test_widths_of_empty_lanes():
    i, f = [-3.0, 0.0, 1.5], [2.0, 0.0, 2.5]
    np.testing.assert_array_equal(ref.width(1, i, f), [1, 1, 5])
    np.testing.assert_array_equal(ref.width_without_floor(1, i, f), [0, 1, 5])
    np.testing.assert_array_equal(ref.width_hgq2(1, i, f, "WRAP"), [0, 0, 4])
    np.testing.assert_array_equal(ref.width_hgq2(1, i, f, "SAT"), [1, 1, 5])
    np.testing.assert_array_equal(ref.width_slope(i, f), [0, 0, 1])


def test_layer_loss_as_published():
    fractional = {"weight": np.full((4, 16), 7.0), "bias": np.full(4, 7.0), "input": np.full((1, 16), 7.0)}
    regularizers = [ref.regularizer(np.zeros_like(f), f, 3e-4, "SAT") for f in fractional.values()]
    ebops = ref.dense_ebops(7, 8, 8, np.ones((4, 16)), "reference", masked=False)
    assert ref.hgq_loss(ebops, 1e-5, regularizers) == pytest.approx(0.21256, abs=1e-12)


def test_regularizer_leaves_tracked_bits_out():
    i, f = np.array([1.0, 2.0]), np.array([3.0, -1.0])
    assert ref.regularizer(i, f, 0.5, "SAT") == 2.5
    assert ref.regularizer(i, f, 0.5, "WRAP") == 1.0
    np.testing.assert_array_equal(ref.regularizer_gradients(i, f, 0.5, "WRAP"), [[0, 0], [0.5, 0.5]])


# EBOPs


@pytest.mark.parametrize("convention", ["additions", "reference", "hgq2"])
def test_dense_as_published(convention):
    weight = np.ones((4, 16))
    assert ref.dense_ebops(7, 8, 8, weight, convention) == 3616
    assert ref.dense_ebops(7, 8, 8, weight, convention, positions=(5,)) == 18080
    assert ref.dense_ebops(7, 8, 8, weight, "multiplications", positions=(5,)) == 5 * 3584


def test_conv_as_published():
    weight = np.ones((4, 3, 3, 3))
    assert ref.conv_ebops(7, 8, 8, weight, (8, 8), "reference", pads=(1, 1, 1, 1)) == 7584
    assert ref.conv_ebops(7, 8, 8, weight, (8, 8), "multiplications", pads=(1, 1, 1, 1)) == 6048
    assert ref.conv_ebops(7, 8, 8, weight, (8, 8), "additions", pads=(1, 1, 1, 1)) == 6048 + 8 * 64 * 4
    assert ref.conv_ebops(7, 8, 8, weight, (8, 8), "additions") == 6048 + 8 * 36 * 4


def test_depthwise_as_published():
    weight = np.ones((4, 1, 3, 3))
    assert ref.conv_ebops(7, 8, 0, weight, (8, 8), "reference", groups=4) == 8064
    assert ref.conv_ebops(7, 8, 0, weight, (8, 8), "multiplications", groups=4) == 2016


def test_published_count_fails_for_other_groups():
    weight = np.ones((4, 2, 3))
    assert ref.conv_ebops(7, 8, 0, weight, (8,), "multiplications", groups=2) == 4 * 2 * 3 * 56
    with pytest.raises(ValueError, match="not depthwise"):
        ref.conv_ebops(7, 8, 0, weight, (8,), "reference", groups=2)


def test_other_layers_as_published():
    gamma = np.ones(4)
    for convention in ("additions", "reference", "hgq2"):
        assert ref.batch_norm_ebops(7, 8, 8, gamma, (5, 5), convention) == 6400
        assert ref.average_pool_ebops(7, (4, 6, 6), convention) == 1008
        assert ref.table_ebops(7, 7, (10,), convention) == pytest.approx(0.896)
        assert ref.softmax_ebops(7, 7, 7, (6,), convention) == 371
        assert ref.attention_ebops(7, 7, 7, 7, 2, 5, 5, 4, convention) == 19600
    assert ref.layer_norm_ebops(7, 8, 8, gamma, (3,), "reference") == 0
    assert ref.layer_norm_ebops(7, 8, 8, gamma, (3,), "additions") == 12 * 64


def test_multiplications_leave_sums_and_tables_out():
    assert ref.batch_norm_ebops(7, 8, 8, np.ones(4), (5, 5), "multiplications") == 5600
    assert ref.average_pool_ebops(7, (4, 6, 6), "multiplications") == 0
    assert ref.table_ebops(7, 7, (10,), "multiplications") == 0
    assert ref.softmax_ebops(7, 7, 7, (6,), "multiplications") == 294
    assert ref.softmax_ebops(7, 7, 7, (6,), "reference", stable=False) == pytest.approx(329 + 1e-4 * 6 * 128 * 7)
    assert ref.softmax_ebops(7, 7, 7, (4, 6), "hgq2", parallelization=1) == 371


def test_zero_weights_cost_nothing_unless_unmasked():
    weight = np.array([[1.0, 0.0], [0.0, 0.5]])
    assert ref.dense_ebops([3, 5], [[2, 4], [6, 8]], 0, weight, "multiplications") == 3 * 2 + 5 * 8
    assert ref.dense_ebops([3, 5], [[2, 4], [6, 8]], 0, weight, "reference", masked=False) == 3 * 8 + 5 * 12


def test_published_mask_drops_half_a_step_that_rounding_keeps():
    weight, f = np.array([0.125, -0.125, 0.126]), 2
    np.testing.assert_array_equal(ref.published_mask(weight, f), [0, 0, 1])
    np.testing.assert_array_equal(ref.fixed_point(weight, 1, 0, f, "RND", "SAT") != 0, [True, False, True])


def _conv_slowly(bits_in, bits_w, weight, groups, stride, pad, dilation):
    """Visit every product of a 1-D convolution; return (one kernel at the widest inputs, all positions)."""
    outputs, group_inputs, kernel = weight.shape
    length = bits_in.shape[1]
    positions = (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    unrolled = total = 0.0
    for o, c, n in itertools.product(range(outputs), range(group_inputs), range(kernel)):
        channel = (o // (outputs // groups)) * group_inputs + c
        bits = bits_w[o, c, n] * (weight[o, c, n] != 0)
        unrolled += bits * bits_in[channel].max()
        for place in range(positions):
            source = place * stride - pad + n * dilation
            total += bits * (bits_in[channel, source] if 0 <= source < length else 0.0)
    return unrolled, total, positions


@pytest.mark.parametrize("groups, outputs, stride, pad, dilation", [(1, 4, 1, 0, 1), (2, 4, 2, 1, 1), (4, 8, 1, 2, 2)])
def test_grouped_convolutions_per_element(groups, outputs, stride, pad, dilation):
    random = np.random.default_rng(3)
    bits_in, shape = random.integers(0, 9, (4, 10)), (outputs, 4 // groups, 3)
    bits_w, weight, bits_b = random.integers(0, 9, shape), random.integers(-1, 2, shape), random.integers(0, 9, outputs)
    unrolled, total, positions = _conv_slowly(bits_in, bits_w, weight, groups, stride, pad, dilation)
    window = {"strides": (stride,), "pads": (pad, pad), "dilations": (dilation,), "groups": groups}
    args = (bits_in, bits_w, bits_b, weight, (10,))
    assert ref.conv_ebops(*args, "multiplications", **window) == unrolled
    assert ref.conv_ebops(*args, "additions", **window) == unrolled + positions * bits_b.sum()
    assert ref.conv_ebops(*args, "hgq2", **window) == pytest.approx(total + 10 * bits_b.sum())
    serial = ref.conv_ebops(*args, "hgq2", **window, parallelization=1)
    assert serial == pytest.approx(total / positions + 10 * bits_b.sum())


def test_hgq2_of_an_unpadded_convolution_is_every_position():
    weight = np.ones((4, 3, 3, 3))
    assert ref.conv_ebops(7, 8, 8, weight, (8, 8), "hgq2", parallelization=1) == 6048 + 8 * 64 * 4
    assert ref.conv_ebops(7, 8, 8, weight, (8, 8), "hgq2") == 36 * 6048 + 8 * 64 * 4


def test_pointwise_convolution_is_a_dense_layer():
    random = np.random.default_rng(4)
    bits_in, bits_w, bits_b = random.integers(1, 9, 3), random.integers(1, 9, (5, 3)), random.integers(1, 9, 5)
    dense = ref.dense_ebops(bits_in, bits_w, bits_b, np.ones((5, 3)), "additions")
    weight = np.ones((5, 3, 1, 1))
    args = (bits_in[:, None, None], bits_w[:, :, None, None], bits_b, weight, (1, 1))
    for convention in ("additions", "hgq2"):
        assert ref.conv_ebops(*args, convention) == dense


def test_counts_agree_with_the_older_reference():
    random = np.random.default_rng(5)
    bits_in, bits_b, weight = (
        random.integers(0, 9, (4, 6, 6)),
        random.integers(0, 9, 4),
        random.integers(-1, 2, (4, 2, 3, 3)),
    )
    bits_w = random.integers(0, 9, weight.shape)
    older = reference.conv2d_ebops(bits_in, bits_w, bits_b, weight, output_pixels=16, groups=2)
    assert ref.conv_ebops(bits_in, bits_w, bits_b, weight, (6, 6), "additions", groups=2) == older
    dense = (bits_in[0, 0], bits_w[:, 0].reshape(6, 6), 3, weight[:, 0].reshape(6, 6))
    assert ref.dense_ebops(*dense, "additions", (5,)) == reference.dense_ebops(*dense, positions=5)


def test_elementwise_layers():
    a, b = [1, 5, 3], [4, 2, 3]
    assert ref.add_ebops([a, b], (3,), "additions") == 1 + 2 + 3
    assert ref.add_ebops([a, b], (3,), "hgq2") == pytest.approx(0.65 * 12)
    assert ref.add_ebops([a, b], (3,), "reference") == 0
    assert ref.subtract_ebops_hgq2(a, b, (3,)) == 4 + 5 + 3
    assert ref.multiply_ebops(a, b, (3,)) == 4 + 10 + 9
    assert ref.reduce_sum_ebops_hgq2(a, (3,)) == pytest.approx(0.65 * 8)


def test_significant_bits():
    np.testing.assert_array_equal(ref.significant_bits([0.0, 0.25, -0.75, 1.25, 2.0], 2), [0, 1, 2, 3, 1])


def test_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="'qonnx' is none of"):
        ref.average_pool_ebops(7, (1,), "qonnx")


# Activations


def test_activation_functions_at_known_points():
    x = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    np.testing.assert_array_equal(ref.leaky_relu(x), [-0.203125, -0.05078125, 0, 0.5, 2])
    np.testing.assert_array_equal(ref.prelu(x, 0.25), [-0.5, -0.125, 0, 0.5, 2])
    np.testing.assert_array_equal(ref.hard_sigmoid(x), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(ref.hard_tanh(x), 2.0 * ref.hard_sigmoid(x) - 1.0)
    np.testing.assert_allclose(ref.gelu([1.0, -1.0]), [0.8413447460685429, -0.15865525393145707])
    np.testing.assert_allclose(ref.silu([1.0, -1.0]), [0.7310585786300049, -0.2689414213699951])


def test_relu_multiplier_comes_before_the_input_quantizer():
    quantizer = ref.Fixed(0, 0, 2)
    y = ref.activation([-1.0, 0.3, 1.0, 3.0], ref.relu, quantizer, quantizer, m=-1.0)
    np.testing.assert_array_equal(y, [0, 0.25, 0.5, 0.75])
    dx, dm = ref.relu_multiplier_gradients([1.0, 2.0], [3.0, 5.0], -1.2)
    np.testing.assert_array_equal(dx, [0.5, 1.0])
    assert dm == pytest.approx(LN2 * 0.5 * (3 + 10))


@pytest.mark.parametrize("stable", [True, False])
def test_softmax_without_quantizers_is_softmax(stable):
    x = _samples(12, 1.0).reshape(3, 4)
    exact = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ref.softmax(x, ref.SoftmaxQuantizers(), stable), exact, atol=1e-6)


def test_default_softmax_saturates():
    """exp and the sum stop at 127/128 and the inverse too, whatever the row: the published default."""
    default = ref.Fixed(0, 0, 7)
    y = ref.softmax(np.zeros((1, 4)), ref.SoftmaxQuantizers(*[default] * 6))
    np.testing.assert_array_equal(y, np.full((1, 4), 126 / 128))
    sane = ref.SoftmaxQuantizers(default, default, ref.Fixed(0, 1, 7), ref.Fixed(0, 3, 7), default, default)
    np.testing.assert_array_equal(ref.softmax(np.zeros((1, 4)), sane), np.full((1, 4), 0.25))


def test_attention_ignores_masked_keys():
    q, k, v = (_samples(24, 1.0, seed).reshape(2, 3, 4) for seed in (1, 2, 3))
    keep = np.array([1.0, 1.0, 0.0])
    context, weights = ref.attention(q, k, v, ref.SoftmaxQuantizers(), keep=keep)
    shorter, _ = ref.attention(q, k[:, :2], v[:, :2], ref.SoftmaxQuantizers())
    np.testing.assert_allclose(context, shorter, atol=1e-6)
    assert not weights[:, :, 2].any()
    masked, _ = ref.attention(q, k, v, ref.SoftmaxQuantizers(), attn_mask=np.where(keep, 0.0, -1e9))
    np.testing.assert_allclose(masked, shorter, atol=1e-6)


def test_layer_norm_quantizes_its_affine_part():
    x, gamma, beta = _samples(8).reshape(2, 4), np.full(4, 1.3), np.full(4, 0.1)
    y = ref.layer_norm(x, gamma, beta, quantize_gamma=ref.Fixed(1, 1, 1), quantize_beta=ref.Fixed(1, 0, 2))
    np.testing.assert_allclose(y.mean(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=1), 1.5, rtol=1e-4)


# Calibration


def test_minmax_holds_minus_a_power_of_two():
    assert ref.calibrate_minmax([-2.0, 1.9], 1) == 1
    assert ref.calibrate_minmax([-2.0, 2.0], 1) == 2
    assert ref.calibrate_minmax([-2.0, 0.2], 0) == -2
    assert ref.calibrate_minmax([0.0, 0.0], 1) == 0


def test_percentile_ignores_outliers():
    x = np.append(np.linspace(-1.9, 1.9, 999), 100.0)
    assert ref.calibrate_minmax(x, 1) == 7
    assert ref.calibrate_percentile(x, 1, 99.0) == 1
    assert ref.calibrate_percentile(x, 1, 100.0) == 7


def test_least_error_is_the_least_of_all_and_clips_rare_outliers():
    x = np.append(_samples(5000, 1.0), 40.0)
    best = ref.calibrate_mse(x, 3, 1)
    errors = {i: ref.mean_squared_error(x, 1, i, 3 - i, "RND") for i in range(-4, 10)}
    assert best == min(errors, key=errors.__getitem__) < ref.calibrate_minmax(x, 1)


def test_equal_errors_take_the_largest_range():
    assert ref.calibrate_mse(np.zeros(5), 3, 1) == 0
    assert ref.calibrate_mse([0.0, 1.0, -1.0], 4, 1) == 1


@pytest.mark.parametrize("k", [0, 1])
def test_entropy_is_a_divergence(k):
    x = _samples(5000, 1.0)
    costs = [ref.quantization_divergence(x, k, i, 4 - i, "RND") for i in range(-4, 8)]
    assert min(costs) >= -1e-12
    assert ref.quantization_divergence(x, 1, 3, 20, "RND") == pytest.approx(0.0, abs=1e-12)
    assert ref.calibrate_entropy(x, 4, 1) <= ref.calibrate_minmax(x, 1)


def test_entropy_of_four_bins_by_hand():
    """Counts 3, 1, 0, 2 in bins centred at .5, 1.5, 2.5, 3.5; steps of 2 by TRN join the first two."""
    x = [0.0, 0.1, 0.2, 1.5, 3.2, 4.0]
    joined = [(3 / 6, 2 / 6), (1 / 6, 2 / 6), (2 / 6, 2 / 6)]
    clipped = [(3 / 6, 3 / 6), (1 / 6, 3 / 6), (2 / 6, 0.0)]
    for i, pairs in ((2, joined), (1, clipped)):
        divergence = sum(p * math.log(p / (0.99 * q + 0.01 * p)) for p, q in pairs)
        assert ref.quantization_divergence(x, 0, i, -1, "TRN", bins=4) == pytest.approx(divergence)


@pytest.mark.parametrize("k", [0, 1])
def test_entropy_clips_outliers_but_not_the_bulk(k):
    x = np.append(_samples(20000, 1.0), 100.0)
    assert ref.calibrate_minmax(x, k) == 7
    assert 1 <= ref.calibrate_entropy(x, 4, k) <= 2
