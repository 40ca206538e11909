"""The derived types: lossless, narrow, and the lookup tables behind tanh and sigmoid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hardware_networks import NETWORKS, Network, mlp

from pqc.errors import UnsupportedError
from pqc.hardware import layout
from pqc.hardware.handover import lower, prepare
from pqc.hardware.intervals import Interval
from pqc.hardware.precision import derive
from pqc.hardware.quantizer import FixedType
from pqc.hardware.ranges import propagate
from pqc.hardware.tables import Table, check_table, reference, table_for


def test_types_of_a_small_network() -> None:
    net = Network(2)
    weights = net.quant(net.constant(np.array([[0.5, -0.25], [1.0, 0.0]])), 4, 2)
    x = net.op("MatMul", net.quant(net.x, 5, 2), weights)
    x = net.op("Add", x, net.quant(net.constant(np.array([0.125, -2.0])), 6, 3))
    model = net.model(net.op("MatMul", net.relu(x, 4, 1), net.quant(net.constant(np.array([[1.0], [-1.0]])), 2, 0)))
    rows = [f"{r.layer} {r.tensor} {r.type} [{r.low:g}, {r.high:g}]" for r in derive(model, propagate(model))]
    # 0.5 [-4, 3.75] + 1 [-4, 3.75] + 0.125 and -0.25 [-4, 3.75] - 2
    assert rows == [
        "x result fixed<5,3,RND_CONV,SAT> [-4, 3.75]",
        "Dense_matmul2 accum fixed<8,4> [-5.875, 5.75]",
        "Dense_matmul2 weight fixed<4,2,RND_CONV,SAT> [-0.25, 1]",
        "Dense_matmul2 result fixed<8,4> [-5.875, 5.75]",
        "Dense_matmul2 bias fixed<6,3,RND_CONV,SAT> [-2, 0.125]",
        "relu5 result ufixed<4,3,RND_CONV,SAT> [0, 6]",
        "Dense_matmul8 accum ufixed<4,3> [0, 6]",
        "Dense_matmul8 weight fixed<2,2,RND_CONV,SAT> [-1, 1]",
        "Dense_matmul8 result ufixed<4,3> [0, 6]",
        "Dense_matmul8 bias ufixed<1,1> [0, 0]",
    ]


def test_accumulators_are_narrower_than_worst_case() -> None:
    model = mlp(16, 64, 32, 32, 5)
    widths = [r.type.width for r in derive(model, propagate(model)) if r.tensor == "accum"]
    worst = [12 + 5 + 4 + 1, 8 + 5 + 6 + 1, 8 + 5 + 5 + 1, 8 + 5 + 5 + 1]
    assert all(found <= bound - 1 for found, bound in zip(widths, worst, strict=True))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_type_loses_a_value(name: str) -> None:
    model = lower(prepare(NETWORKS[name]())[0])
    for record in derive(model, propagate(model)):
        assert np.ldexp(record.type.low, -record.type.fraction) <= record.low, record
        assert record.high <= np.ldexp(record.type.high, -record.type.fraction), record


def test_accumulator_of_a_max_pool_holds_what_it_compares() -> None:
    """Padding and a bias of 4 make one place of every window positive; the others are negative."""
    net = Network(1, 2, 2)
    x = net.quant(net.x, 4, 0)
    weight = net.quant(net.constant(np.array([[[[1.0, 0.0], [0.0, 0.0]]]])), 2, 0)
    x = net.op("Conv", x, weight, kernel_shape=[2, 2], strides=[1, 1], pads=[1, 1, 0, 0], dilations=[1, 1], group=1)
    model = net.model(net.pool("MaxPool", x, 2))
    types = {r.tensor: str(r.type) for r in derive(model, propagate(model)) if r.op == "MaxPool"}
    assert types == {"accum": "fixed<4,4>", "result": "ufixed<3,3>"}


def test_types_reach_the_next_grid() -> None:
    net = Network(2)
    x = net.op("MatMul", net.quant(net.x, 2, 4), net.quant(net.constant(np.ones((2, 1))), 2, 0))
    model = net.model(net.quant(net.op("Relu", x), 4, -3, signed=0))
    types = {r.tensor: r.type for r in derive(model, propagate(model)) if r.op == "MatMul"}
    assert types["accum"].integer == 1 + 3 and types["accum"].fraction == 4


def test_plain_names() -> None:
    net = Network(2)
    x = net.op("Relu", net.quant(net.x, 8, 4))
    y = net.op("Relu", x)
    model = net.model(net.op("Relu", y))
    names = ["/block.0/act", "Block_0_act", "3d", "input"]
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    model.graph.inputs[0].name = "input"
    layout.rename(model)
    assert [node.name for node in model.graph] == ["block_0_act", "Block_0_act_1", "Relu_3d", "input"]
    assert model.graph.inputs[0].name == "network_in"
    everything = [value.name for node in model.graph for value in (*node.outputs, *node.inputs)]
    assert all(name is not None and name.isidentifier() for name in everything)


@pytest.mark.parametrize(("function", "fraction", "size"), [("Tanh", 5, 256), ("Sigmoid", 5, 512), ("Tanh", -2, 8)])
def test_table_has_an_entry_for_every_input(function: str, fraction: int, size: int) -> None:
    net = Network(1)
    net.op(function, net.x)
    x = Interval(np.array([-8]), np.array([7]), fraction)
    assert table_for(net.nodes[0], x) == Table(function, size)
    assert Table(function, size).fraction == max(fraction, 0)


def test_table_values() -> None:
    entries = Table("Tanh", 8).entries()
    assert entries.tolist() == [int(np.floor(np.tanh(x) * 2**32)) for x in (-4, -3, -2, -1, 0, 1, 2, 3)]
    assert Table("Sigmoid", 16).entries()[8] == 2**31


def _function(kind: str, fraction: int) -> tuple[Network, Interval]:
    net = Network(1)
    net.op(kind, net.x)
    return net, Interval(np.array([-512]), np.array([511]), fraction)


@pytest.mark.parametrize(
    ("function", "given", "wanted", "rounding"),
    [("Tanh", 5, 7, "RND_CONV"), ("Tanh", 7, 9, "RND_CONV"), ("Sigmoid", 5, 8, "RND_CONV"), ("Tanh", 7, 7, "TRN")],
)
def test_tables_that_agree_for_every_input(function: str, given: int, wanted: int, rounding: str) -> None:
    net, x = _function(function, given)
    kind = FixedType(wanted + 1, 1, True, rounding, "SAT")
    check_table(net.nodes[0], x, kind)
    middle = 0 if function == "Tanh" else 2 ** (wanted - 1)
    assert reference(function, np.array([0]), given, kind).tolist() == [middle]


def test_tables_that_differ_are_refused() -> None:
    """hls4ml cuts tanh off at 4, where it is 0.99933: three units of 2^-12 short of 1."""
    net, x = _function("Tanh", 5)
    with pytest.raises(UnsupportedError) as caught:
        check_table(net.nodes[0], x, FixedType(13, 1, True, "RND_CONV", "SAT"))
    assert str(caught.value) == (
        "Tanh 'tanh0': for 765 of 1024 inputs hls4ml's table differs from the network, first at -16: "
        "-4093 instead of -4096 units of 2^-12\n"
        "hint: give the Quant behind it fewer fraction bits (9 at most for Tanh), and round with ROUND"
    )
    fine = replace(x, fraction=12)
    with pytest.raises(UnsupportedError, match="takes a table of 32768 entries, above 16384"):
        check_table(net.nodes[0], fine, FixedType(8, 1, True, "RND_CONV", "SAT"))
