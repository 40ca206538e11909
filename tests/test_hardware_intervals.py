"""Interval arithmetic against brute force, and the proof that float32 is exact."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hardware_networks import NETWORKS, Network
from hypothesis import given
from hypothesis import strategies as st
from qonnx.custom_op.general.quant import quant as qonnx_quant

from pqc.errors import UnsupportedError
from pqc.hardware import intervals, ranges
from pqc.hardware.compare import random_samples, reference
from pqc.hardware.handover import lower, prepare
from pqc.hardware.intervals import Interval, TooWide
from pqc.hardware.quantizer import FixedType, power_of_two
from pqc.hardware.ranges import propagate


def points(low: object, high: object, fraction: int = 0) -> Interval:
    return Interval(np.array(low, np.int64), np.array(high, np.int64), fraction)


@pytest.mark.parametrize(
    ("kind", "text", "low", "high"),
    [
        (FixedType(8, 3), "fixed<8,3>", -128, 127),
        (FixedType(8, 3, False, "RND_CONV", "SAT"), "ufixed<8,3,RND_CONV,SAT>", 0, 255),
        (FixedType(4, -2, True, "TRN", "SAT_SYM"), "fixed<4,-2,TRN,SAT_SYM>", -7, 7),
    ],
)
def test_fixed_type(kind: FixedType, text: str, low: int, high: int) -> None:
    assert (str(kind), kind.low, kind.high) == (text, low, high)


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**40), st.integers(-5, 30))
def test_covering_type_is_the_narrowest(low: int, span: int, fraction: int) -> None:
    kind = FixedType.covering(low, low + span, fraction)
    assert kind.low <= low and low + span <= kind.high and kind.fraction == fraction
    narrower = FixedType(kind.width - 1, kind.integer - 1, kind.signed)
    assert kind.width == 1 or not (narrower.low <= low and low + span <= narrower.high)
    assert kind.signed == (low < 0)


def test_covers() -> None:
    assert FixedType(8, 4).covers(FixedType(7, 4)) and FixedType(8, 4).covers(FixedType(7, 3, signed=False))
    assert not FixedType(8, 4).covers(FixedType(8, 4, signed=False))
    assert not FixedType(8, 4).covers(FixedType(5, 0))


@pytest.mark.parametrize(
    ("value", "exponent"), [(0.25, -2), (1.0, 0), (8.0, 3), (0.3, None), (0.0, None), (-2.0, None)]
)
def test_power_of_two(value: float, exponent: int | None) -> None:
    assert power_of_two(value) == exponent


@given(st.lists(st.floats(-(2.0**10), 2.0**10, width=16), min_size=1, max_size=8))
def test_constants_keep_their_values_in_the_coarsest_unit(numbers: list[float]) -> None:
    found = intervals.of_constant(np.array(numbers, np.float32))
    np.testing.assert_array_equal(np.ldexp(found.low.astype(np.float64), -found.fraction), numbers)
    assert np.any(found.low & 1) or not found.low.any()


def test_constants_without_a_common_grid_are_refused() -> None:
    with pytest.raises(TooWide):
        intervals.of_constant(np.array([1e30, 1e-30], np.float32))


@pytest.mark.parametrize("rounding", ["ROUND", "FLOOR"])
@pytest.mark.parametrize("kind", [(5, 1, 1, 0), (5, 1, 1, 1), (4, 3, 0, 0), (3, -1, 1, 0), (8, 6, 1, 0), (2, -3, 0, 0)])
def test_quantize_is_qonnx_quant(kind: tuple[int, int, int, int], rounding: str) -> None:
    bits, fraction, signed, narrow = kind
    modes = {"ROUND": "RND_CONV", "FLOOR": "TRN"}[rounding], "SAT_SYM" if narrow else "SAT"
    values = np.arange(-300, 301)
    found = intervals.quantize(points(values, values, 3), FixedType(bits, bits - fraction, bool(signed), *modes))
    scale = np.float32(2.0**-fraction)
    wanted = qonnx_quant(np.float32(values / 8), scale, np.float32(0), np.float32(bits), signed, narrow, rounding)
    np.testing.assert_array_equal(np.ldexp(found.low.astype(np.float64), -fraction), wanted)
    np.testing.assert_array_equal(found.low, found.high)


def test_quantize_takes_shifts_beyond_the_word() -> None:
    kind = FixedType(8, 100, True, "RND_CONV", "SAT")
    assert intervals.quantize(points([-9], [9], 30), kind).bounds() == (0, 0)
    assert intervals.quantize(points([-9], [9], 30), FixedType(8, 100, True, "TRN", "SAT")).bounds() == (-1, 0)


def test_dense_bounds_are_those_of_all_inputs() -> None:
    rng = np.random.default_rng(1)
    x = points([-2, 0, -3, 1], [1, 3, -1, 2], 2)
    weights = rng.integers(-5, 6, (6, 4))
    bias = rng.integers(-9, 10, 6)
    total = intervals.weighted(Interval(x.low[:, None], x.high[:, None], 2), points(weights, weights, 3))
    total = total.plus(points(bias, bias, 6))
    inputs = np.array(list(product(*(range(a, b + 1) for a, b in zip(x.low, x.high, strict=True)))))
    sums = (inputs @ weights.T << 1) + bias
    np.testing.assert_array_equal(total.value.low[:, 0], sums.min(axis=0))
    np.testing.assert_array_equal(total.value.high[:, 0], sums.max(axis=0))
    assert total.value.fraction == 6
    largest = (np.abs(weights) @ np.array([2, 3, 3, 2]) << 1) + np.abs(bias)
    np.testing.assert_array_equal(total.partial[:, 0], largest)


@pytest.mark.parametrize(("groups", "strides", "pads"), [(1, [1, 1], [0] * 4), (2, [2, 1], [1, 0, 0, 2])])
def test_convolution_bounds_are_those_of_all_inputs(groups: int, strides: list[int], pads: list[int]) -> None:
    rng = np.random.default_rng(2)
    low = rng.integers(-3, 1, (2, 3, 3))
    high = low + rng.integers(0, 2, low.shape) * (rng.random(low.shape) < 0.5)
    weights = rng.integers(-4, 5, (4, 2 // groups, 2, 2))
    total = intervals.convolve(points(low, high), points(weights, weights), strides, pads, groups)
    free = np.argwhere(low != high)
    sums = []
    for bits in product((0, 1), repeat=len(free)):
        image = low.copy()
        for (channel, row, column), bit in zip(free, bits, strict=True):
            image[channel, row, column] += bit
        sums.append(_convolve(image, weights, groups, strides, pads))
    np.testing.assert_array_equal(total.value.low, np.min(sums, axis=0))
    np.testing.assert_array_equal(total.value.high, np.max(sums, axis=0))


def _convolve(image: np.ndarray, weights: np.ndarray, groups: int, strides: list[int], pads: list[int]) -> np.ndarray:
    """A convolution written as loops."""
    padded = np.pad(image, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    rows = (padded.shape[1] - weights.shape[2]) // strides[0] + 1
    columns = (padded.shape[2] - weights.shape[3]) // strides[1] + 1
    out = np.zeros((len(weights), rows, columns), np.int64)
    channels, filters = len(image) // groups, len(weights) // groups
    for f, i, j in np.ndindex(*out.shape):
        start = f // filters * channels
        patch = padded[
            start : start + channels,
            i * strides[0] : i * strides[0] + weights.shape[2],
            j * strides[1] : j * strides[1] + weights.shape[3],
        ]
        out[f, i, j] = (patch * weights[f]).sum()
    return out


def test_products_take_all_corners() -> None:
    found = intervals.multiply(points([-3, -2], [2, -1], 1), points([-5, 4], [1, 6], 2))
    assert (found.low.tolist(), found.high.tolist(), found.fraction) == ([-10, -12], [15, -4], 3)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_output_leaves_its_interval(name: str) -> None:
    network, _ = prepare(NETWORKS[name]())
    lowered = lower(network)
    found = propagate(lowered)
    for value, wanted in zip(lowered.graph.outputs, reference(network, random_samples(network)), strict=True):
        integers = np.ldexp(wanted.astype(np.float64), found[value].fraction)
        assert np.all(integers == np.rint(integers)), "off the grid"
        assert np.all(integers >= found[value].low) and np.all(integers <= found[value].high)


def test_all_inputs_of_a_small_network_fill_the_intervals() -> None:
    net = Network(2)
    x = net.quant(net.op("MatMul", net.quant(net.x, 4, 1), net.weight(2, 3)), 6, 2, rounding_mode="FLOOR")
    model = net.model(net.op("Relu", x))
    found = propagate(model)[model.graph.outputs[0]]
    inputs = np.array(list(product(range(-8, 8), repeat=2)), np.float32) / 2
    outputs = reference(model, inputs)[0] * 4
    np.testing.assert_array_equal(outputs.min(axis=0), found.low)
    np.testing.assert_array_equal(outputs.max(axis=0), found.high)


def _one_output(*weights: float, bias: float | None = None) -> Network:
    net = Network(len(weights))
    column = net.quant(net.constant(np.array(weights)[:, None]), 15, 0)
    x = net.op("MatMul", net.quant(net.x, 13, 0), column)
    net.x.meta["result"] = x if bias is None else net.op("Add", x, net.quant(net.constant(np.array([bias])), 26, 0))
    return net


def _bounds(net: Network) -> tuple[int, int]:
    model = net.model(net.x.meta["result"])
    return propagate(model)[model.graph.outputs[0]].bounds()


def test_the_largest_sum_that_float32_holds_is_taken() -> None:
    """Inputs reach 2^12, so the partial sums reach 2^24 - 2^12."""
    assert _bounds(_one_output(4095.0, 0.0)) == (-4096 * 4095, 4095 * 4095)


def test_common_factors_of_the_weights_do_not_count() -> None:
    assert _bounds(_one_output(8190.0, 0.0)) == (-4096 * 8190, 4095 * 8190)


@pytest.mark.parametrize(("weights", "unit"), [((4095.0, 1.0), 0), ((4095.0, -1.0), 0), ((8190.0, 2.0), 0)])
def test_sums_that_float32_would_round_are_refused(weights: tuple[float, float], unit: int) -> None:
    with pytest.raises(UnsupportedError) as caught:
        _bounds(_one_output(*weights))
    assert str(caught.value) == (
        f"MatMul 'matmul2': partial sums reach 16777216 units of 2^-{unit}, and float32 is exact below 16777216\n"
        "hint: take 1 bits in all from its inputs, weights or bias"
    )


def test_a_bias_counts() -> None:
    with pytest.raises(UnsupportedError, match="Add 'add4': partial sums reach 16777217 units"):
        _bounds(_one_output(4095.0, 0.0, bias=-4097.0))
    assert _bounds(_one_output(4095.0, 0.0, bias=-4095.0))[0] == -(2**24) + 1


def test_unbounded_values_are_refused() -> None:
    net = Network(3)
    with pytest.raises(UnsupportedError, match="has no bounds\nhint: put a Quant on the graph's input"):
        propagate(net.model(net.op("Relu", net.x)))
    other = Network(3)
    with pytest.raises(UnsupportedError, match="Erf 'erf1': there is no interval rule for this operator"):
        propagate(other.model(other.op("Erf", other.quant(other.x, 8, 4))))


@pytest.mark.parametrize(("area", "given", "fraction"), [(4, 4, 6), (9, 4, 11), (3, 9, 11)])
def test_means_get_the_fraction_bits_that_rounding_needs(area: int, given: int, fraction: int) -> None:
    """Exact for a power of two; else max(4, 6 + 1) + ceil(log2 9) = 11 and max(9, 7) + ceil(log2 3) = 11."""
    net = Network(1, 3, 4)
    kernel = {4: [2, 2], 9: [3, 3], 3: [3, 1]}[area]
    x = net.op("AveragePool", net.quant(net.x, 10, given), kernel_shape=kernel, strides=[3, 3], pads=[0] * 4)
    model = net.model(net.quant(x, 8, 6))
    means = propagate(model)[x]
    assert means.fraction == fraction
    assert np.all(np.ldexp(means.low.astype(float), -fraction) <= -(2.0 ** (9 - given)))


@pytest.mark.parametrize("rounding", ["ROUND", "FLOOR"])
@pytest.mark.parametrize("area", [3, 5, 6, 7, 9])
def test_cut_off_means_round_like_exact_ones(area: int, rounding: str) -> None:
    """The bound of `pool_fraction`, tried on every sum of `area` values of 5 bits."""
    given, wanted = 3, 4
    fraction = max(given, wanted + 1) + (area - 1).bit_length()
    sums = np.arange(-16 * area, 15 * area + 1)
    cut = np.trunc((sums << (fraction - given)) / area).astype(np.int64)  # ap_fixed divides towards zero
    mode = {"ROUND": "RND_CONV", "FLOOR": "TRN"}[rounding]
    found = intervals.shift_right(cut, fraction - wanted, mode)
    whole, rest = np.divmod(sums << (wanted - given), area)
    up = (2 * rest > area) | ((2 * rest == area) & (whole & 1 == 1))
    np.testing.assert_array_equal(found, whole + (up if rounding == "ROUND" else 0))


def test_rules_cover_what_legality_lets_through() -> None:
    from pqc.hardware.rules import KNOWN

    assert KNOWN | {"Quant", "FixedQuant", "Lookup"} == set(ranges.RULES)
