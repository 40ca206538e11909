"""Quantizers and what they cost, function by function, against the float64 reference and qonnx's executor.

A float32 function sees x 2^f as float32 holds it: what underflows is a zero, and what overflows is infinite. Apart from
that its numbers equal those of the reference, bit for bit. Gradients before any sum are good to four roundings; a sum
of n terms adds n roundings of the sum of their sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

import reference
import reference_quant as ref
from pqc import engine, library
from pqc.functions.costs import DENSE_COST, LARGEST, WIDTH
from pqc.functions.fixed_quant import FIXED_QUANT, NEEDED_BITS, NO_OVERFLOW, OVERFLOWS, ROUNDINGS
from pqc.functions.operator import GRADIENT, Operator
from pqc.functions.quant import QUANT, ROUNDING_MODES
from pqc.graph import QONNX

LN2 = ref.LN2
FIND = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without shrinking: an example shows all that matters, and takes long to shrink."""
ROUNDING_ERROR = 2.0**-24
TIES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]


def run(key: tuple[str, str], *inputs: object, **attributes: object) -> list[np.ndarray]:
    """The outputs of one function; all that goes in is float32."""
    return engine.call(library.bodies()[key], [np.asarray(value, np.float32) for value in inputs], attributes)


def forward(operator: Operator, *inputs: object, **attributes: object) -> np.ndarray:
    return run(operator.key, *inputs, **attributes)[0]


def backward(operator: Operator, *inputs: object, **attributes: object) -> list[np.ndarray]:
    """The outputs of the gradient's body on the inputs that it takes."""
    assert operator.gradient is not None
    return run((operator.gradient.opset.domain, operator.gradient.name), *inputs, **attributes)


def assert_same(actual: np.ndarray, expected: object) -> None:
    """Equal float32 numbers, infinities and what is no number too; the sign of a zero is no number."""
    assert actual.dtype == np.float32
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(actual, np.asarray(expected, np.float32))


def assert_within(actual: np.ndarray, expected: np.ndarray, sizes: np.ndarray, terms: int) -> None:
    """Within `terms` + 4 roundings of `sizes`, the sum of the magnitudes of what is summed."""
    assert actual.shape == expected.shape
    unknown = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), unknown)
    error = np.abs(actual.astype(np.float64) - expected)
    assert np.all((error <= (terms + 4) * ROUNDING_ERROR * sizes) | unknown)


# What is quantized


@dataclass(frozen=True)
class Case:
    """Numbers, and bits that some axes share."""

    x: np.ndarray
    i: np.ndarray
    f: np.ndarray
    signed: int
    dy: np.ndarray

    def seen(self) -> np.ndarray:
        """x in float64, with x 2^f as float32 holds it."""
        fraction = np.broadcast_to(np.rint(self.f), self.x.shape).astype(int)
        with np.errstate(over="ignore", under="ignore"):
            steps = np.ldexp(self.x.astype(np.float64), fraction).astype(np.float32)
            return np.ldexp(steps.astype(np.float64), -fraction)

    @property
    def empty(self) -> np.ndarray:
        return np.rint(self.i) + np.rint(self.f) <= 0


def numbers(rng: np.random.Generator, shape: tuple[int, ...], i: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Ties, bounds and their neighbours, periods, random numbers, zeros, denormals, huge numbers and infinities."""
    step, bound = (np.broadcast_to(np.exp2(part), shape) for part in (-np.rint(f), np.rint(i)))
    halves = rng.integers(-9, 10, shape) / 2
    near = rng.choice([-1.0, 1.0], shape) * bound - rng.integers(-1, 3, shape) * step / 2
    special = [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 3e38, -3e38, np.inf, -np.inf]
    kinds = [
        halves * step,
        near,
        near + rng.integers(-5, 6, shape) * bound,
        rng.normal(0, 1, shape) * bound * 2,
        rng.normal(0, 1, shape) * step * 3,
        rng.normal(0, 1, shape) * bound * 2.0**25,
        rng.choice(special, shape),
    ]
    with np.errstate(over="ignore"):
        chosen = np.choose(rng.integers(0, len(kinds), shape), kinds).astype(np.float32)
        moved = np.nextafter(chosen, np.float32(np.inf) * rng.choice([-1, 1], shape).astype(np.float32))
    return np.where((rng.random(shape) < 0.3) & np.isfinite(moved), moved, chosen)


@st.composite
def cases(draw: st.DrawFn, widest: int = 48, finite: bool = False) -> Case:
    """Bits between -24 and 24, whole or not, with i + f up to `widest`."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lanes = [tuple(draw(st.sampled_from([1, length])) for length in shape) for _ in range(2)]
    spread, whole = draw(st.sampled_from([0.0, 4.0, 24.0])), draw(st.booleans())
    i, f = (np.clip(rng.normal(draw(st.integers(-3, 6)), spread, lane), -24, 24) for lane in lanes)
    if whole:
        i, f = np.rint(i), np.rint(f)
    i = np.minimum(i, widest - f.max())
    i, f = i.astype(np.float32), f.astype(np.float32)
    x = numbers(rng, shape, i, f)
    if finite:
        x = np.where(np.abs(x) < 1e30, x, np.float32(0))
    return Case(x, i, f, draw(st.sampled_from([0, 1])), rng.normal(0, 1, shape).astype(np.float32))


roundings, overflows = st.sampled_from(ROUNDINGS), st.sampled_from((*OVERFLOWS, NO_OVERFLOW))


def expected(case: Case, rounding: str, overflow: str) -> np.ndarray:
    """FixedQuant by the reference."""
    x, k = case.seen(), case.signed
    with np.errstate(invalid="ignore"):
        if overflow.startswith("WRAP"):
            i, f = np.maximum(np.rint(case.i), -np.rint(case.f)), np.rint(case.f)
            # Eight bounds are whole periods of both; the reference adds a bound, which float64 may lose in a huge q.
            q = np.fmod(ref.round_to_grid(x, f, rounding), 8 * np.exp2(i.astype(np.float64)))
            y = ref.wrap(q, k, i) if overflow == "WRAP" else ref.wrap_sm(q, k, i, f)
        elif overflow == NO_OVERFLOW:
            y = ref.round_to_grid(x, case.f, rounding)
        else:
            y = ref.fixed_point(x, k, case.i, case.f, rounding, overflow, zero_empty=False)
        return y if overflow == NO_OVERFLOW else y * ~case.empty


# FixedQuant


@settings(phases=FIND, max_examples=60)
@given(cases(), roundings, overflows)
def test_fixed_quant_equals_the_reference(case: Case, rounding: str, overflow: str) -> None:
    signed = 1 if overflow == "WRAP_SM" else case.signed
    case = Case(case.x, case.i, case.f, signed, case.dy)
    attributes = {"signed": signed, "rounding": rounding, "overflow": overflow}
    assert_same(forward(FIXED_QUANT, case.x, case.i, case.f, **attributes), expected(case, rounding, overflow))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", [*OVERFLOWS, NO_OVERFLOW])
@pytest.mark.parametrize("signed", [0, 1])
def test_fixed_quant_on_a_fine_grid(rounding: str, overflow: str, signed: int) -> None:
    """Every eighth of a step over five periods of many types, those without bits included; i by rows, f by columns."""
    if overflow == "WRAP_SM" and not signed:
        return
    f = np.array([-2.0, 0.0, 0.5, 1.0, 2.5, 3.0]).reshape(1, -1, 1)
    i = np.array([-4.0, -1.0, 0.0, 1.5, 2.0]).reshape(-1, 1, 1)
    x = (np.arange(-160, 161).reshape(1, 1, -1) / 8 * np.exp2(-np.rint(f)) * np.ones_like(i)).astype(np.float32)
    case = Case(x, i, f, signed, x)
    attributes = {"signed": signed, "rounding": rounding, "overflow": overflow}
    actual = forward(FIXED_QUANT, x, i, f, **attributes)
    assert_same(actual, expected(case, rounding, overflow))
    assert np.unique(actual).size > 10


PUBLISHED_TIES = {
    "TRN": [-3, -2, -1, 0, 1, 2],
    "RND": [-2, -1, 0, 1, 2, 3],
    "RND_CONV": [-2, -2, 0, 0, 2, 2],
    "TRN_ZERO": [-2, -1, 0, 0, 1, 2],
    "RND_ZERO": [-2, -1, 0, 0, 1, 2],
    "RND_MIN_INF": [-3, -2, -1, 0, 1, 2],
    "RND_INF": [-3, -2, -1, 1, 2, 3],
}


def test_every_rounding_has_a_published_row() -> None:
    assert set(PUBLISHED_TIES) == set(ROUNDINGS)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_ties_as_published(rounding: str) -> None:
    assert_same(run(("pqc.quant", "Rounded"), TIES, rounding=rounding)[0], PUBLISHED_TIES[rounding])
    assert_same(forward(FIXED_QUANT, TIES, [4], [0], rounding=rounding), PUBLISHED_TIES[rounding])


@settings(phases=FIND, max_examples=40)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40), roundings)
def test_rounded_equals_the_reference_everywhere(x: list[float], rounding: str) -> None:
    beside = [np.nextafter(np.float32(tie), np.float32(way)) for tie in TIES for way in (-9, 9)]
    v = np.array([*x, *beside, 2.0**23 + 1, -(2.0**24), np.inf, -np.inf, -0.0], np.float32)
    with np.errstate(invalid="ignore"):
        rounded = ref.round_mode(v, rounding)
    # Infinity minus infinity is compared with a half, so infinities stay what they are.
    assert_same(run(("pqc.quant", "Rounded"), v, rounding=rounding)[0], np.where(np.isinf(v), v, rounded))


OVERFLOW_X = [-3, -2.25, -2, -1.75, -0.3, 0.2, 1.4, 1.6, 1.75, 2, 2.6, 3.9]


@pytest.mark.parametrize(
    ("k", "overflow", "y"),
    [
        (1, "SAT", [-2, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]),
        (1, "SAT_SYM", [-1.5, -1.5, -1.5, -1.5, -0.5, 0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]),
        (1, "WRAP", [1, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, -2, -2, -1.5, 0]),
        (1, "NONE", [-3, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, 2, 2, 2.5, 4]),
        # Published is 0 at 3.9: its second reflection goes by x, which is below 4, where q = 4 turns back once more.
        (1, "WRAP_SM", [-1.5, -2, -2, -1.5, -0.5, 0, 1.5, 1.5, 1.5, 1.5, 1, -0.5]),
        (0, "SAT", [0] * 6 + [1.5] * 6),
        (0, "WRAP", [1, 0, 0, 0.5, 1.5, 0, 1.5, 1.5, 0, 0, 0.5, 0]),
    ],
)
def test_overflow_as_published(k: int, overflow: str, y: list[float]) -> None:
    assert_same(forward(FIXED_QUANT, OVERFLOW_X, [1], [1], signed=k, rounding="RND", overflow=overflow), y)


def kept_bits(n: int, width: int) -> int:
    """AP_WRAP_SM of an integer: all kept bits are inverted where the lowest bit that goes differs from their sign."""
    kept, gone = n & (2**width - 1), (n >> width) & 1
    sign = kept >> (width - 1)
    kept ^= (2**width - 1) if gone != sign else 0
    return kept - 2**width if kept >> (width - 1) else kept


@pytest.mark.parametrize("width", [2, 3, 5])
def test_sign_magnitude_wrap_is_what_a_register_does(width: int) -> None:
    n = np.arange(-(2 ** (width + 2)), 2 ** (width + 2) + 1)
    found = forward(FIXED_QUANT, n / 4, [width - 3], [2], overflow="WRAP_SM")
    assert_same(found, [kept_bits(int(one), width) / 4 for one in n])


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_infinities_and_what_is_no_number(overflow: str) -> None:
    x = [np.inf, -np.inf, np.nan, 3e38, -3e38]
    y = forward(FIXED_QUANT, x, [2], [3], overflow=overflow)
    saturated = {"SAT": [3.875, -4, np.nan, 3.875, -4], "SAT_SYM": [3.875, -3.875, np.nan, 3.875, -3.875]}
    assert_same(y, saturated.get(overflow, [np.nan] * 5))


# FixedQuantGrad


def gradients(case: Case, rounding: str, overflow: str) -> list[np.ndarray]:
    """dx, di and df by the reference, before sums."""
    name = "WRAP" if overflow == NO_OVERFLOW else overflow
    with np.errstate(invalid="ignore"):
        if overflow == "WRAP_SM":
            i = np.broadcast_to(np.maximum(np.rint(case.i), -np.rint(case.f)), case.x.shape).astype(np.float64)
            f = np.broadcast_to(np.rint(case.f), case.x.shape).astype(np.float64)
            q = ref.round_to_grid(case.x, f, rounding)
            found = ref._wrap_sm_slopes(q, (np.ones_like(q), np.zeros_like(q), LN2 * (case.x - q)), i, f)
            return [np.asarray(case.dy * slope) for slope in found]
        return list(ref.fixed_point_gradients(case.dy, case.x, case.signed, case.i, case.f, rounding, name))


@settings(phases=FIND, max_examples=60)
@given(cases(widest=22), roundings, st.sampled_from(["SAT", "SAT_SYM"]))
def test_gradients_of_saturation_equal_the_reference(case: Case, rounding: str, overflow: str) -> None:
    check_gradients(case, rounding, overflow)


@settings(phases=FIND, max_examples=60)
@given(cases(widest=22, finite=True), roundings, st.sampled_from(["WRAP", "WRAP_SM", NO_OVERFLOW]))
def test_gradients_of_wraps_equal_the_reference(case: Case, rounding: str, overflow: str) -> None:
    check_gradients(case, rounding, overflow)


def check_gradients(case: Case, rounding: str, overflow: str) -> None:
    """Before sums with bits for each element, and after sums with the case's own."""
    signed = 1 if overflow == "WRAP_SM" else case.signed
    attributes = {"signed": signed, "rounding": rounding, "overflow": overflow}
    case = Case(np.where(case.seen() == 0, np.float32(0), case.x), case.i, case.f, signed, case.dy)
    dx, di, df = gradients(case, rounding, overflow)
    full = [np.broadcast_to(part, case.x.shape) for part in (case.i, case.f)]
    found = backward(FIXED_QUANT, case.dy, case.x, *full, **attributes)
    assert_same(found[0], dx)
    # A residue below the least normal number loses more than its roundings.
    assert_within(found[1], di, np.abs(di) + 1e-30, 1)
    assert_within(found[2], df, np.abs(df) + 1e-30, 1)
    found = backward(FIXED_QUANT, case.dy, case.x, case.i, case.f, **attributes)
    assert_same(found[0], dx)
    for actual, gradient, lane in ((found[1], di, case.i), (found[2], df, case.f)):
        sums, sizes = (ref.reduce_to(part, lane.shape) for part in (gradient, np.abs(gradient)))
        assert_within(actual, sums, sizes + 1e-30, gradient.size // sums.size)


def test_gradients_as_published() -> None:
    x, dy, one = [0.3, 5.0, -5.0], [1.0, 1.0, 1.0], np.ones(3)
    dx, di, df = backward(FIXED_QUANT, dy, x, one, 2 * one, rounding="RND")
    assert_same(dx, [1, 0, 0])
    np.testing.assert_allclose(di, [0, 1.386294, -1.386294], atol=5e-7)
    np.testing.assert_allclose(df, [0.034657, 0.173287, 0], atol=5e-7)


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("signed", [0, 1])
def test_bounds_are_inside_and_infinities_beyond(overflow: str, signed: int) -> None:
    low, high = (float(bound) for bound in ref.range_of(signed, 1, 2, overflow))
    x = np.array(
        [low, high, np.nextafter(np.float32(low), -np.inf), np.nextafter(np.float32(high), 9), np.inf, -np.inf]
    )
    dx, di, df = backward(FIXED_QUANT, np.ones(6), x, np.ones(6), 2 * np.ones(6), signed=signed, overflow=overflow)
    assert_same(dx, [1, 1, 0, 0, 0, 0])
    below = -signed * np.float32(2 * LN2)
    assert_same(di, [0, 0, below, 2 * LN2, 2 * LN2, below])
    least = -signed * np.float32(LN2 / 4) if overflow == "SAT_SYM" else 0
    assert_same(df, [0, 0, least, LN2 / 4, LN2 / 4, least])


# Integer bits that follow


@settings(phases=FIND, max_examples=60)
@given(cases(finite=True), st.sampled_from(OVERFLOWS), st.sampled_from([0.0, 0.01, 1.0, 1e6]))
def test_needed_bits_equal_the_reference(case: Case, overflow: str, decay: float) -> None:
    fraction = np.broadcast_to(np.rint(case.f), case.x.shape).astype(np.float64)
    # 2^24 steps are what float32 counts to.
    x = np.where(np.abs(case.x * np.exp2(fraction)) < 2**23, case.x, np.float32(0)).astype(np.float32)
    seen = Case(x, case.i, case.f, case.signed, case.dy).seen()
    high, low = seen, np.minimum(seen, -seen) if overflow == "SAT_SYM" and case.signed else seen
    high = np.maximum(seen, -seen) if overflow == "SAT_SYM" and case.signed else high
    needs = ref.integer_bits_exact(low, high, case.signed, fraction, "RND_CONV")
    axes = tuple(axis for axis, length in enumerate(case.i.shape) if length == 1)
    largest = needs.max(axis=axes, keepdims=True) if axes else needs
    wanted = np.clip(np.maximum(case.i - np.float32(decay), largest), -23, 23)
    found = forward(NEEDED_BITS, x, case.i, case.f, signed=case.signed, overflow=overflow, decay=decay)
    assert_same(found, wanted)


def test_needed_bits_at_powers_of_two() -> None:
    """A signed type holds -2^i and not 2^i, a symmetric one neither."""
    x = [[-4.0], [4.0], [3.75], [3.9], [0.0], [-3.75]]
    lanes = [np.full((6, 1), -20.0), np.full((6, 1), 2.0)]
    assert_same(forward(NEEDED_BITS, x, *lanes, decay=0.0).ravel(), [2, 3, 2, 3, -2, 2])
    assert_same(forward(NEEDED_BITS, x, *lanes, decay=0.0, overflow="SAT_SYM").ravel(), [3, 3, 2, 3, -2, 2])
    assert_same(forward(NEEDED_BITS, x, *lanes, decay=0.0, signed=0).ravel(), [-2, 3, 2, 3, -2, -2])


# Costs


@settings(phases=FIND, max_examples=80)
@given(cases())
def test_width_equals_the_reference(case: Case) -> None:
    found = forward(WIDTH, case.i, case.f, signed=case.signed)
    magnitude = np.rint(case.i.astype(np.float64)) + np.rint(case.f.astype(np.float64))
    assert_same(found, np.where(magnitude > 0, magnitude + case.signed, 0))
    dy = np.random.default_rng(1).normal(0, 1, found.shape).astype(np.float32)
    alive = dy.astype(np.float64) * (magnitude > 0)
    for actual, lane in zip(backward(WIDTH, dy, case.i, case.f, found), (case.i, case.f), strict=True):
        sums, sizes = ref.reduce_to(alive, lane.shape), ref.reduce_to(np.abs(alive), lane.shape)
        assert_within(actual, sums, sizes, alive.size // sums.size)


@settings(phases=FIND, max_examples=60)
@given(st.lists(st.integers(1, 4), max_size=2), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_dense_cost_counts_every_product(positions: list[int], inputs: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data, weight = rng.integers(0, 12, (1, *positions, inputs)), rng.integers(0, 12, (inputs, outputs))
    counted = ref.dense_ebops(data[0], weight.T, 0, np.ones((outputs, inputs)), "multiplications", tuple(positions))
    assert_same(forward(DENSE_COST, data, weight), counted)
    d_data, d_weight = backward(DENSE_COST, 3.0, data, weight)
    assert_same(d_data, 3.0 * np.broadcast_to(weight.sum(axis=1), data.shape))
    column = data.reshape(-1, inputs).sum(axis=0)
    assert_same(d_weight, 3.0 * np.broadcast_to(column[:, np.newaxis], weight.shape))


@settings(phases=FIND, max_examples=60)
@given(st.integers(1, 5), st.lists(st.integers(1, 5), max_size=3), st.integers(0, 99))
def test_largest_shares_its_gradient_among_the_largest(channels: int, positions: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (1, channels, *positions)).astype(np.float64)
    flat = x.reshape(1, channels, -1)
    y = forward(LARGEST, x)
    assert_same(y, flat.max(axis=2))
    dy = rng.normal(0, 1, y.shape).astype(np.float32)
    first = flat == flat.max(axis=2, keepdims=True)
    shares = (first / first.sum(axis=2, keepdims=True) * dy[..., np.newaxis]).reshape(x.shape)
    assert_within(backward(LARGEST, dy, x, y)[0], shares, np.abs(shares), 1)


# QONNX's Quant with scales and widths of any shape


def lanes_of(rng: np.random.Generator, form: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a quantizer's parts."""
    channel = tuple(length if axis == 1 else 1 for axis, length in enumerate(shape))
    return {"tensor": (), "channel": channel, "element": shape}[form]


@pytest.mark.parametrize("mode", ROUNDING_MODES)
@pytest.mark.parametrize("form", ["tensor", "channel", "element"])
@pytest.mark.parametrize("sign", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_quant_with_scales_and_widths_of_any_shape(mode: str, form: str, sign: tuple[int, int]) -> None:
    """Against the reference, and as a node in qonnx, which takes one scale and one width a call."""
    rng = np.random.default_rng(5)
    shape = (4, 3, 5, 2)
    lane = lanes_of(rng, form, shape)
    fraction, bits = rng.integers(-2, 5, lane), rng.integers(2, 9, lane)
    scale = np.ldexp(1.0, -fraction)
    halves = rng.integers(-40, 41, shape) / 4 * scale
    x = np.where(rng.random(shape) < 0.7, halves, rng.choice([0.0, -0.0, 3e38, -3e38, np.inf, -np.inf], shape))
    attributes = {"signed": sign[0], "narrow": sign[1], "rounding_mode": mode}
    actual = forward(QUANT, x, scale, 0.0, bits, **attributes)
    assert_same(actual, reference.quant(x, scale, 0, bits, *sign, mode))
    dy = rng.normal(0, 1, shape).astype(np.float32)
    of_data = (GRADIENT.domain, "QuantGrad")
    gradient = run(of_data, dy, x, scale, 0.0, bits, signed=sign[0], narrow=sign[1])[0]
    assert_same(gradient, reference.quant_grad(dy, x, scale, 0, bits, *sign))
    assert 0 < np.count_nonzero(gradient) < gradient.size
    for one in np.ndindex(lane):
        places = tuple(slice(None) if length == 1 else index for length, index in zip(lane, one, strict=True))
        part = x[places].astype(np.float32)
        theirs = in_qonnx(part, scale[one], bits[one], attributes)
        np.testing.assert_array_equal(np.asarray(actual[places]).reshape(theirs.shape), theirs)
        if form == "element" and one[0] > 0:
            break


def in_qonnx(x: np.ndarray, scale: float, bits: float, attributes: dict[str, object]) -> np.ndarray:
    """What qonnx's executor makes of one Quant node."""
    x = np.atleast_1d(x)
    node = helper.make_node("Quant", ["x", "scale", "zeropt", "bits"], ["y"], domain=QONNX, **attributes)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in ("x", "y")]
    parts = {"scale": scale, "zeropt": 0.0, "bits": bits}
    stored = [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in parts.items()]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1)]
    body = helper.make_graph([node], "g", info[:1], info[1:], stored)
    model = ModelWrapper(helper.make_model(body, opset_imports=imports, ir_version=10))
    with np.errstate(over="ignore"):
        return np.asarray(execute_onnx(model, {"x": x})["y"])
