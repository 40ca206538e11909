"""Quantizers with bits of their own in real firmware, and the passes that carry them there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fixed_networks import FIXED_NETWORKS, STREAMS, FixedNetwork, dense, equal, per_tensor, residual
from hardware_networks import Network
from test_hardware_passes import apply, listing

from pqc import engine, graph
from pqc.errors import UnsupportedError
from pqc.hardware.compare import random_samples, reference
from pqc.hardware.handover import hls, lower, prepare
from pqc.hardware.precision import derive, port_type
from pqc.hardware.project import IoType
from pqc.hardware.quantizer import FixedTypes, fixed_types
from pqc.hardware.ranges import propagate
from pqc.passes.fold_gates import FoldGates
from pqc.passes.lower_bits import LowerBits
from pqc.passes.raise_bits import RaiseBits

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
QUICK = [
    ("dense-RND_CONV", "io_parallel"),
    ("dense-round-wrap", "io_parallel"),
    ("image", "io_parallel"),
    ("residual", "io_parallel"),
    ("equal", "io_stream"),
    ("tensor-RND", "io_stream"),
    ("tensor-wrap", "io_stream"),
    ("weights-2d", "io_stream"),
]
ALL = [(name, "io_parallel") for name in FIXED_NETWORKS] + [(name, "io_stream") for name in STREAMS]


@COMPILER
@pytest.mark.parametrize(
    ("name", "io_type"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in ALL]
)
def test_firmware_equals_network(name: str, io_type: IoType, tmp_path: Path) -> None:
    result = hls(FIXED_NETWORKS[name](), tmp_path / "hls", io_type=io_type)
    assert result.samples == 1000
    assert result.mismatches == 0, result.comparison.first
    assert len(np.unique(result.outputs)) > 20, "a constant network proves nothing"


@pytest.mark.parametrize("name", list(FIXED_NETWORKS))
def test_qonnx_and_onnx_runtime_agree_before_and_after_lowering(name: str) -> None:
    network, _ = prepare(FIXED_NETWORKS[name]())
    lowered = lower(network)
    samples = random_samples(lowered, 200)
    wanted = list(engine.evaluate(network, {"x": samples}).values())
    for model in (network, lowered):
        for found, array in zip(reference(model, samples), wanted, strict=True):
            np.testing.assert_array_equal(found, array)
    for found, array in zip(engine.evaluate(lowered, {"x": samples}).values(), wanted, strict=True):
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", list(FIXED_NETWORKS))
def test_no_output_leaves_its_interval_and_no_type_loses_a_value(name: str) -> None:
    lowered = lower(prepare(FIXED_NETWORKS[name]())[0])
    ranges = propagate(lowered)
    found = reference(lowered, random_samples(lowered, 200))
    for value, array in zip(lowered.graph.outputs, found, strict=True):
        low, high = (
            np.ldexp(side.astype(float), -ranges[value].fraction) for side in (ranges[value].low, ranges[value].high)
        )
        assert np.all((low <= array) & (array <= high))
    for record in derive(lowered, ranges):
        if record.layer != "x":
            assert np.ldexp(record.type.low, -record.type.fraction) <= record.low, record
            assert record.high <= np.ldexp(record.type.high, -record.type.fraction), record


def test_wrapping_and_rounding_change_what_the_networks_compute() -> None:
    samples = random_samples(lower(prepare(per_tensor())[0]), 200)
    found = [
        engine.evaluate(per_tensor(*modes), {"x": samples})["out0"]
        for modes in (("TRN", "SAT"), ("TRN", "WRAP"), ("RND", "SAT"), ("RND_CONV", "SAT"))
    ]
    for index, one in enumerate(found):
        assert all(np.mean(one != other) > 0.05 for other in found[:index])


@pytest.mark.parametrize("make", [dense, residual])
def test_many_types_are_refused_in_streams_before_anything_is_written(make: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"types in one tensor: hls4ml's streams carry one type a tensor"):
        hls(make(), tmp_path / "hls", io_type="io_stream")  # type: ignore[operator]
    assert not (tmp_path / "hls").exists()


@pytest.mark.parametrize(
    ("rounding", "overflow", "text"),
    [
        ("TRN", "SAT", "fixed<8,4,TRN,SAT>"),
        ("RND", "WRAP", "fixed<9,4>"),
        ("RND_CONV", "SAT_SYM", "fixed<33,4,TRN,SAT>"),
    ],
)
def test_port_type(rounding: str, overflow: str, text: str) -> None:
    kinds = FixedTypes(np.array([5, 4, 0]), np.array([1, 4, 30]), True, rounding, overflow)
    assert str(port_type(kinds)) == text


@pytest.mark.parametrize("rounding", ["RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF", "RND", "TRN", "TRN_ZERO"])
def test_the_port_moves_no_number_past_a_tie(rounding: str) -> None:
    """float32 numbers next to every tie, cut off by the port and rounded in exact integers."""
    from pqc import library
    from pqc.hardware.intervals import Interval, quantize_each

    kinds = FixedTypes(np.array(4), np.array(2), True, rounding, "SAT")
    ties = np.ldexp(np.arange(-20, 21, dtype=np.float32), -3)
    x = np.concatenate([ties, np.nextafter(ties, np.float32(9)), np.nextafter(ties, np.float32(-9))])
    port = port_type(kinds)
    cut = np.clip(np.floor(np.ldexp(x.astype(np.float64), port.fraction)), port.low, port.high).astype(np.int64)
    found = quantize_each(Interval(cut, cut, port.fraction), kinds)
    body = library.bodies()["pqc.quant", "FixedQuant"]
    wanted = engine.call(body, [x, np.float32(1), np.float32(2)], {"rounding": rounding})[0]
    np.testing.assert_array_equal(np.ldexp(found.low.astype(np.float32), -2), wanted)


def fixed(i: object, f: object, **attributes: object) -> ir.Model:
    net = FixedNetwork(3)
    bits = [net.constant(np.asarray(part, np.float32)) for part in (i, f)]
    y = net.op("FixedQuant", net.x, *bits, domain="pqc.quant", **attributes)
    return net.finished(y, passes="normalize")


def constants(model: ir.Model) -> list[list[float]]:
    """The constant inputs of every node, in order."""
    return [
        np.ravel(array).tolist()
        for node in model.graph
        for value in node.inputs
        if (array := graph.constant(value)) is not None
    ]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_half_up_is_floor_of_halves_and_half_a_step() -> None:
    """0.49999997 + 0.5 is 1 in float32, so that adding a half to x itself would round it up."""
    model = fixed(2.0, 0.0, rounding="RND")
    x = np.array([[0.49999997, 0.5, -0.5], [2.4999998, 9, -9], [-2.5, -2.5000002, 1e-30]], np.float32)
    before = engine.evaluate(model, {"x": x})["out0"]
    assert before.tolist() == [[0, 1, 0], [2, 3, -4], [-2, -3, 0]]
    assert apply(LowerBits(), model) == 1
    assert kinds(model) == ["Quant", "Add", "Quant"]
    assert constants(model) == [[0.5], [0], [4], [0.5], [1], [0], [3]]
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["out0"], before)
    np.testing.assert_array_equal(reference(model, x)[0], before)


def test_raise_bits_undoes_lower_bits() -> None:
    model = fixed([[1, 0, -3]], [[2, 3, 3]], rounding="RND", overflow="SAT_SYM")
    wanted = fixed_types(model.graph.node(0))
    LowerBits().rewrite(model)
    assert kinds(model) == ["Quant", "Add", "Quant", "Mul"]
    assert apply(RaiseBits(), model) == 1
    assert kinds(model) == ["FixedQuant"]
    assert [value.name for value in model.graph.outputs] == ["out0"]
    found = fixed_types(model.graph.node(0))
    assert (found.rounding, found.overflow, found.signed) == ("RND", "SAT_SYM", True)
    np.testing.assert_array_equal(found.width, wanted.width)
    assert found.width.tolist() == [4, 4, 0]
    np.testing.assert_array_equal(found.integer[:2], wanted.integer[:2])


@pytest.mark.parametrize("change", ["half", "width", "rounding", "reader"])
def test_raise_bits_leaves_alone(change: str) -> None:
    net = Network(3)
    first = net.quant(net.x, 7 if change == "width" else 6, 3, rounding_mode="FLOOR")
    added = net.op("Add", first, net.constant(0.25 if change == "half" else 0.125))
    last = net.quant(added, 5, 2, rounding_mode="ROUND" if change == "rounding" else "FLOOR")
    model = net.model(last, *([net.op("Relu", added)] if change == "reader" else []))
    before = listing(model)
    assert apply(RaiseBits(), model) == 0
    assert listing(model) == before


def test_elements_without_bits_get_a_type_that_another_has() -> None:
    model = fixed([[-9, 2, 2]], [[9, 1, 1]])
    assert apply(LowerBits(), model) == 1
    assert kinds(model) == ["Quant", "Mul"]
    assert constants(model) == [[0.5], [0], [4], [0, 1, 1]]


GATE = np.array([[1, 0, 1]], np.float32)


def test_fold_gates() -> None:
    net = Network(3)
    gated = net.op("Mul", net.quant(net.x, 6, 2), net.constant(GATE))
    model = net.model(net.dense(gated, 3, 2), net.op("MatMul", gated, net.weight(3, 4)))
    samples = random_samples(model, 100)
    before = reference(model, samples)
    assert apply(FoldGates(), model) == 1
    assert "Mul" not in kinds(model)
    weights = [graph.constant(node.inputs[0]) for node in model.graph if graph.constant(node.inputs[0]) is not None]
    for weight in weights:
        assert weight is not None and (weight.ndim == 1 or (not weight[1].any() and weight[0].any()))
    for found, wanted in zip(reference(model, samples), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("groups", [1, 3])
def test_fold_gates_into_convolutions_and_through_flatten(groups: int) -> None:
    net = Network(3, 4, 4)
    gated = net.op("Mul", net.quant(net.x, 6, 2), net.constant(GATE.reshape(1, 3, 1, 1)))
    conv = net.conv(gated, (3, 3 // groups, 2, 2), group=groups)
    model = net.model(conv, net.dense(net.op("Flatten", gated), 48, 2))
    samples = random_samples(model, 60)
    before = reference(model, samples)
    assert apply(FoldGates(), model) == 1
    assert "Mul" not in kinds(model)
    for found, wanted in zip(reference(model, samples), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_fold_gates_keeps_a_shared_weight_for_its_other_readers() -> None:
    net = Network(3)
    x, weight = net.quant(net.x, 6, 2), net.weight(3, 3)
    model = net.model(net.op("MatMul", net.op("Mul", x, net.constant(GATE)), weight), net.op("MatMul", x, weight))
    samples = random_samples(model, 60)
    before = reference(model, samples)
    assert apply(FoldGates(), model) == 1
    for found, wanted in zip(reference(model, samples), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_fold_gates_leaves_alone() -> None:
    """A factor of two, a gate that an output gives out, one that differs along an image, one an Add reads."""
    for gate in (2 * GATE, GATE):
        net = Network(3)
        gated = net.op("Mul", net.quant(net.x, 6, 2), net.constant(gate))
        extra = [net.op("Relu", gated)] if gate is GATE else []
        model = net.model(net.dense(gated, 3, 2), *extra)
        before = listing(model)
        assert apply(FoldGates(), model) == 0
        assert listing(model) == before
    net = Network(1, 3, 3)
    gated = net.op("Mul", net.quant(net.x, 6, 2), net.constant(np.eye(3).reshape(1, 1, 3, 3)))
    assert apply(FoldGates(), net.model(net.conv(gated, (1, 1, 2, 2)))) == 0


def test_dead_elements_that_an_add_reads_need_no_multiplier() -> None:
    network, _ = prepare(residual())
    assert "Mul" in kinds(network) and "Mul" not in kinds(lower(network))


def test_types_of_streams_become_one_when_the_rest_is_dead() -> None:
    found = lower(prepare(equal())[0])
    assert all(node.op_type != "Mul" for node in found.graph)
    assert all(fixed_types(node).one is not None for node in found.graph if node.op_type == "Quant")
