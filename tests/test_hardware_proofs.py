"""What intervals prove about quantizers that wrap."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from fixed_networks import FixedNetwork

from pqc import engine, graph, pipeline
from pqc.hardware import intervals
from pqc.hardware.intervals import Interval
from pqc.hardware.quantizer import FixedType, FixedTypes
from pqc.passes.drop_wraps import DropWraps


def wrapping(integer: object, *, rounding: str = "TRN", head: str | None = None) -> ir.Model:
    """Two sums of inputs between -1 and 0.75 under weights 1 and ±0.5, rounded to halves with WRAP.

    They reach from -1.5 to 1.125 and from -1.375 to 1.25.
    """
    net = FixedNetwork(2)
    weight = net.quant(net.constant(np.array([[1.0, 1.0], [0.5, -0.5]])), 4, 2)
    x = net.op("MatMul", net.quant(net.x, 3, 2), weight)
    bits = [net.constant(np.asarray(part, np.float32)) for part in (integer, 1.0)]
    y = net.op("FixedQuant", x, *bits, domain="pqc.quant", rounding=rounding, overflow="WRAP")
    return net.finished(y if head is None else net.op(head, y), passes="fold-quant")


def overflow(model: ir.Model) -> str:
    return next(str(node.attributes.get_string("overflow", "")) for node in model.graph if node.op_type == "FixedQuant")


@pytest.mark.parametrize(
    ("integer", "rounding", "proved"),
    [
        (1.0, "TRN", True),
        (1.0, "RND", True),
        (0.0, "TRN", False),
        ([[1.0, 1.0]], "TRN", True),
        ([[1.0, 0.0]], "TRN", False),
        ([[0.0, 1.0]], "TRN", False),
    ],
)
def test_drop_wraps(integer: object, rounding: str, proved: bool) -> None:
    model = wrapping(integer, rounding=rounding)
    grid = np.array(list(itertools.product(np.arange(-4, 4) / 4, repeat=2)), np.float32)
    before = engine.evaluate(model, {"x": grid})["out0"]
    free = engine.evaluate(wrapping(20.0, rounding=rounding), {"x": grid})["out0"]
    assert np.array_equal(before, free) == proved, "all inputs there are tell whether the proof is right"
    assert DropWraps().rewrite(model) == int(proved)
    assert DropWraps().rewrite(model) == 0
    assert overflow(model) == ("SAT" if proved else "WRAP")
    np.testing.assert_array_equal(engine.evaluate(model, {"x": grid})["out0"], before)


def test_what_is_proved_becomes_plain_qonnx() -> None:
    model = wrapping(1.0, head="Relu")
    pipeline.run(model, "drop-wraps,lower-bits")
    assert {node.domain for node in model.graph} == {"", graph.QONNX}


def test_rounding_up_may_overflow() -> None:
    """1.75 is below the bound of 2, and is rounded to it."""
    x = Interval(np.array([0]), np.array([7]), 2)
    kinds = [FixedTypes(np.array(3), np.array(2), True, mode, "WRAP") for mode in ("TRN", "RND")]
    assert [intervals.overflows(x, kind) for kind in kinds] == [False, True]


def test_unknown_operators_prove_nothing_but_quantizers_behind_them_do() -> None:
    """Erf has no rule; the Quant behind it holds values below 2, and twice that is below 4."""
    net = FixedNetwork(2)
    x = net.quant(net.op("Erf", net.quant(net.x, 6, 2)), 4, 2)
    two = net.quant(net.constant(2 * np.eye(2)), 3, 0)
    wide, narrow = (
        net.op(
            "FixedQuant",
            net.op("MatMul", x, two),
            net.constant(bits),
            net.constant(1.0),
            domain="pqc.quant",
            overflow="WRAP",
        )
        for bits in (2.0, 1.0)
    )
    model = net.finished(wide, narrow, passes="drop-wraps")
    assert [node.attributes["overflow"].as_string() for node in model.graph if node.op_type == "FixedQuant"] == [
        "SAT",
        "WRAP",
    ]


@pytest.mark.parametrize("mode", ["TRN", "RND", "RND_CONV", "TRN_ZERO", "RND_ZERO", "RND_MIN_INF", "RND_INF"])
@pytest.mark.parametrize("signed", [True, False])
def test_wrapped_and_rounded_bounds_are_those_of_all_values(mode: str, signed: bool) -> None:
    """Against the function's body, for every interval of a few values around the bounds and the ties."""
    from pqc import library

    kind = FixedType(3, 2, signed, mode, "WRAP")
    values = np.arange(-80, 81)
    given = [np.ldexp(values.astype(np.float32), -4), np.float32(2 - signed), np.float32(1)]
    attributes = {"signed": int(signed), "rounding": mode, "overflow": "WRAP"}
    rounded = engine.call(library.bodies()["pqc.quant", "FixedQuant"], given, attributes)[0] * 2
    points = intervals.quantize(Interval(values, values, 4), kind)
    inside = points.low == points.high
    np.testing.assert_array_equal(points.low[inside], rounded[inside])
    assert np.array_equal(~inside, intervals_leave(values, mode, kind))
    assert np.all((points.low <= rounded) & (rounded <= points.high))


def intervals_leave(values: np.ndarray, mode: str, kind: FixedType) -> np.ndarray:
    """Whether v / 8 rounded to an integer leaves the type, by exact arithmetic on fractions."""
    whole = {
        "TRN": lambda v: v // 8,
        "RND": lambda v: (v + 4) // 8,
        "RND_CONV": lambda v: int(np.rint(v / 8)),
        "TRN_ZERO": lambda v: int(v / 8),
        "RND_ZERO": lambda v: int(np.sign(v)) * ((abs(v) + 3) // 8),
        "RND_MIN_INF": lambda v: -((-v + 4) // 8),
        "RND_INF": lambda v: int(np.sign(v)) * ((abs(v) + 4) // 8),
    }[mode]
    return np.array([not kind.low <= whole(int(v)) <= kind.high for v in values])
