"""Every legality rule: what it refuses, in full words, and that good graphs pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hardware_networks import NETWORKS, Network

from pqc import graph
from pqc.errors import UnsupportedError
from pqc.hardware.handover import lower, prepare
from pqc.hardware.legality import HINTS, RULES, STREAM_RULES, check, check_learned, problems
from pqc.quantizer_sites import LEARNS

Build = Callable[[Network, ir.Value], ir.Value]


def image(build: Build) -> ir.Model:
    """A graph on 4 x 6 x 6 whose input is rounded."""
    net = Network(4, 6, 6)
    return net.model(build(net, net.quant(net.x, 8, 4)))


def vector(build: Build) -> ir.Model:
    """A graph on 4 numbers whose input is rounded."""
    net = Network(4)
    return net.model(build(net, net.quant(net.x, 8, 4)))


def rounded(scale: Any = 0.25, zero: Any = 0.0, bits: Any = 8.0, **given: Any) -> Build:
    """A second Quant behind the first, with these parameters."""
    options = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"} | given

    def build(net: Network, x: ir.Value) -> ir.Value:
        parts = [
            part if isinstance(part, ir.Value) else net.constant(np.asarray(part, np.float32))
            for part in (scale, zero, bits)
        ]
        return net.op("Quant", net.op("Relu", x), *parts, domain=graph.QONNX, **options)

    return build


def computed_scale(net: Network, x: ir.Value) -> ir.Value:
    scale = net.op("Exp", net.constant(np.float32(1)))
    return rounded(scale=scale)(net, x)


def weight(scale: Any = 0.25, bits: Any = 8.0) -> Build:
    """A MatMul whose weights have these parameters."""

    def build(net: Network, x: ir.Value) -> ir.Value:
        parts = [net.constant(np.asarray(part, np.float32)) for part in (np.ones((4, 2)), scale, 0.0, bits)]
        given = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
        return net.op("MatMul", x, net.op("Quant", *parts, domain=graph.QONNX, **given))

    return build


def fixed(integer: Any = 3.0, fraction: Any = 4.0, **given: Any) -> Build:
    """A FixedQuant with these bits."""

    def build(net: Network, x: ir.Value) -> ir.Value:
        bits = [net.constant(np.asarray(part, np.float32)) for part in (integer, fraction)]
        return net.op("FixedQuant", x, *bits, domain="pqc.quant", **given)

    return build


def conv(*shape: int, **given: Any) -> Build:
    return lambda net, x: net.conv(x, shape, **given)


def pool(kind: str, **given: Any) -> Build:
    defaults = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}
    return lambda net, x: net.op(kind, x, **(defaults | given))


def sequence_pool() -> ir.Model:
    net = Network(4, 6)
    return net.model(net.op("MaxPool", net.quant(net.x, 8, 4), kernel_shape=[2], strides=[2], pads=[0, 0]))


def volume() -> ir.Model:
    net = Network(1, 3, 3, 3)
    return net.model(net.conv(net.quant(net.x, 8, 4), (2, 1, 2, 2, 2)))


def fork(net: Network, x: ir.Value) -> ir.Value:
    y = net.op("Relu", net.dense(x, 4, 4))
    return net.op("Mul", net.quant(y, 4, 2), y)


def off_grid(net: Network, x: ir.Value) -> ir.Value:
    return net.op("MatMul", x, net.quant(net.constant(np.array([[0.3], [0.25], [9.0], [-2.0]])), 4, 2))


CASES: list[tuple[str, ir.Model, str]] = [
    (
        "operator",
        vector(lambda net, x: net.op("Softmax", x)),
        "Softmax 'softmax1': operator Softmax: hls4ml has no exact form of it\n"
        "hint: end the network at its logits: run the pass strip-softmax before insert-quant",
    ),
    (
        "operator",
        vector(lambda net, x: net.op("Erf", x)),
        "Erf 'erf1': operator Erf: hls4ml has no exact form of it\nhint: put one quantizer before it, of at most 14 bits, "
        "and one right behind it (insert-quant does): it becomes a table",
    ),
    (
        "operator",
        vector(lambda net, x: net.op("ReduceMax", x, net.constant(np.array([-1])))),
        "ReduceMax 'reducemax1': operator ReduceMax: hls4ml has no exact form of it\n"
        "hint: leave out a softmax inside the network (the largest score is the largest probability), or keep it and what "
        "follows out of the firmware",
    ),
    (
        "operator",
        vector(lambda net, x: net.op("ReduceMean", x, net.constant(np.array([-1])))),
        "ReduceMean 'reducemean1': operator ReduceMean: hls4ml has no exact form of it\n"
        "hint: use batch normalization, which folds into the weights, in place of layer normalization",
    ),
    (
        "operator",
        vector(lambda net, x: net.op("IntQuant", x, *[net.constant(1.0)] * 3, domain=graph.QONNX)),
        "IntQuant 'intquant1': operator qonnx.custom_op.general::IntQuant: hls4ml has no exact form of it\n"
        "hint: name the operator Quant; hls4ml loses the type otherwise",
    ),
    (
        "quant-scale",
        vector(rounded(scale=0.3)),
        "Quant 'quant2': scale 0.3: hls4ml multiplies by it in its default type and is off by an LSB\n"
        "hint: train with powers of two; learn them with `learns: power_of_two_scale`",
    ),
    (
        "quant-scales",
        vector(weight(scale=[[0.5, 0.25]])),
        "Quant 'quant1': 2 scales: hls4ml takes one scale a weight or bias, and fails or is off by an LSB otherwise\n"
        "hint: run the pass lower-scales",
    ),
    (
        "quant-zero-point",
        vector(rounded(zero=3)),
        "Quant 'quant2': zero point 3: hls4ml adds it in its default type and is off by LSBs\n"
        "hint: use symmetric types",
    ),
    (
        "quant-widths",
        vector(weight(bits=[[4, 5]])),
        "Quant 'quant1': 2 bit widths: hls4ml takes one width a weight or bias\nhint: run the pass lower-scales",
    ),
    (
        "quant-fraction",
        vector(rounded(bits=4.5)),
        "Quant 'quant2': 4.5 bits: hls4ml rounds them up and the network does not\nhint: round the bit width",
    ),
    (
        "quant-bits",
        vector(rounded(bits=1)),
        "Quant 'quant2': a signed type of 1 bits: hls4ml has 0 and -1 where QONNX has +1 and -1\n"
        "hint: use 2 bits, with narrow=1 for -1, 0 and 1",
    ),
    (
        "quant-rounding",
        vector(rounded(rounding_mode="CEIL")),
        "Quant 'quant2': rounding mode CEIL: ap_fixed has no such rounding\nhint: train with ROUND or FLOOR",
    ),
    (
        "quant-overflow",
        vector(fixed(overflow="WRAP_SM")),
        "FixedQuant 'fixedquant1': overflow WRAP_SM: ap_fixed folds back otherwise than pqc\n"
        "hint: use SAT, SAT_SYM or WRAP for activations",
    ),
    (
        "quant-batch",
        vector(rounded(scale=[[0.5], [0.25]])),
        "Quant 'quant2': bits or scales of shape [2, 1]: hls4ml has one type for all samples\n"
        "hint: let them start with 1",
    ),
    (
        "quant-parameter",
        vector(lambda net, x: net.op("MatMul", x, fixed()(net, net.constant(np.ones((4, 2)))))),
        "FixedQuant 'fixedquant1': a weight or bias in FixedQuant: hls4ml wants it on its grid\n"
        "hint: run the pass lower-bits",
    ),
    (
        "table-types",
        vector(lambda net, x: fixed(integer=[[1, 2, 3, 4]])(net, net.op("Tanh", x))),
        "Tanh 'tanh1': a result that is rounded to many types: hls4ml's table has one\n"
        "hint: use per_tensor for what is right behind it",
    ),
    (
        "quant-narrow",
        vector(rounded(signed=0, narrow=1)),
        "Quant 'quant2': narrow and unsigned: hls4ml has no such type\nhint: set narrow to 0",
    ),
    (
        "on-grid",
        vector(off_grid),
        "Quant 'quant1': 2 of 4 constants off its grid: hls4ml may take the unrounded values\n"
        "hint: run the pass fold-quant",
    ),
    (
        "same-tensor",
        vector(lambda net, x: net.op("Add", x, x)),
        "Add 'add1': the same tensor twice: hls4ml cannot tell its inputs apart\n"
        "hint: multiply by 2 in the weights instead",
    ),
    (
        "constant-data",
        vector(lambda net, x: net.op("MatMul", net.weight(2, 4), x)),
        "MatMul 'matmul2': a first input that is constant: hls4ml makes a layer of the other input only\n"
        "hint: put the weight second",
    ),
    (
        "constant-weight",
        vector(lambda net, x: net.op("MatMul", x, net.op("Relu", x))),
        "MatMul 'matmul2': a second input that is computed: hls4ml computes a product of two activations wrongly\n"
        "hint: use constant weights",
    ),
    (
        "missing-quant",
        vector(lambda net, x: net.op("MatMul", x, net.constant(np.ones((4, 2))))),
        "MatMul 'matmul1': a constant without a Quant, 'c3': hls4ml would cut it off to its default type\n"
        "hint: put a Quant behind it (insert-quant does)",
    ),
    (
        "missing-quant",
        vector(lambda net, x: net.op("Add", net.op("MatMul", x, net.weight(4, 2)), net.constant(np.ones(2)))),
        "Add 'add3': a constant without a Quant, 'c7': hls4ml would cut it off to its default type\n"
        "hint: put a Quant behind it (insert-quant does)",
    ),
    (
        "matmul-rank",
        image(lambda net, x: net.op("MatMul", x, net.weight(6, 2))),
        "MatMul 'matmul2': data of 4 dimensions: hls4ml computes it wrongly\nhint: use a Conv with a kernel of 1",
    ),
    (
        "conv-rank",
        volume(),
        "Conv 'conv3': 3 spatial dimensions: hls4ml has one or two\nhint: use Conv of one or two dimensions",
    ),
    (
        "auto-pad",
        image(conv(2, 4, 3, 3, auto_pad="SAME_UPPER")),
        "Conv 'conv3': auto_pad SAME_UPPER: hls4ml ignores it\nhint: run the pass legalize, which writes pads",
    ),
    (
        "conv-attributes",
        image(lambda net, x: net.op("Conv", x, net.weight(2, 4, 3, 3))),
        "Conv 'conv2': no attribute kernel_shape: hls4ml stops at it\nhint: run the pass lower-conv",
    ),
    (
        "conv-groups",
        image(conv(8, 1, 3, 3, group=4)),
        "Conv 'conv3': 4 groups of 1 channels for 8 filters: hls4ml aborts\n"
        "hint: run the pass lower-conv, which fills in zeros",
    ),
    (
        "dilation",
        image(conv(2, 4, 3, 3, dilations=[2, 2])),
        "Conv 'conv3': dilations [2, 2]: hls4ml gets the output's size wrong\n"
        "hint: run the pass lower-conv, which fills in zeros",
    ),
    (
        "pool-rank",
        sequence_pool(),
        "MaxPool 'maxpool1': an image of 1 dimensions: hls4ml pools two dimensions only\n"
        "hint: lift the network to two dimensions with a height of 1",
    ),
    (
        "pool-attributes",
        image(lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2])),
        "MaxPool 'maxpool1': no attribute strides: hls4ml stops at it\nhint: run the pass lower-pool",
    ),
    (
        "pool-pads",
        image(pool("AveragePool", pads=[1, 0, 0, 0])),
        "AveragePool 'averagepool1': pads [1, 0, 0, 0]: hls4ml counts what it pads otherwise\n"
        "hint: pad in the Conv before it",
    ),
    (
        "pool-ceil",
        image(pool("MaxPool", ceil_mode=1)),
        "MaxPool 'maxpool1': ceil_mode: hls4ml drops the last window\nhint: set ceil_mode to 0 and pad before",
    ),
    (
        "unrounded",
        image(pool("AveragePool", kernel_shape=[3, 3])),
        "AveragePool 'averagepool1': a result that no Quant of its own rounds: its exact value has no end, "
        "and hls4ml cuts it off somewhere\nhint: put a Quant right behind it",
    ),
    (
        "unrounded",
        vector(lambda net, x: net.op("Tanh", x)),
        "Tanh 'tanh1': a result that no Quant of its own rounds: its exact value has no end, "
        "and hls4ml cuts it off somewhere\nhint: put a Quant right behind it",
    ),
    (
        "fork",
        vector(fork),
        "Relu 'relu5': a result that a Quant and something else take: hls4ml rounds it for all of them\n"
        "hint: let all of them take the Quant's result",
    ),
    (
        "constant-join",
        vector(lambda net, x: net.op("Mul", x, net.weight(4))),
        "Mul 'mul2': a constant operand that is not the bias right behind a MatMul: "
        "hls4ml makes a layer of its own that pqc has not checked\n"
        "hint: fold it into the weights or the bias of the layer before",
    ),
    (
        "transpose-batch",
        image(lambda net, x: net.op("Transpose", x, perm=[1, 0, 2, 3])),
        "Transpose 'transpose1': axes [1, 0, 2, 3]: hls4ml leaves the batch where it is\nhint: keep the batch first",
    ),
    (
        "transpose-flatten",
        image(lambda net, x: net.op("Flatten", net.op("Transpose", x, perm=[0, 3, 1, 2]), axis=1)),
        "Flatten 'flatten2': the result of a Transpose: hls4ml stops at it\n"
        "hint: flatten before, or put a layer between",
    ),
    (
        "flatten-axis",
        image(lambda net, x: net.op("Flatten", x, axis=2)),
        "Flatten 'flatten1': axis 2: hls4ml flattens all but the batch\nhint: use axis 1",
    ),
]


@pytest.mark.parametrize(("name", "model", "message"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)])
def test_rule(name: str, model: ir.Model, message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check(model)
    assert str(caught.value) == message


def test_computed_quant_parameters() -> None:
    found = [str(problem) for problem in problems(vector(computed_scale))]
    assert found[1] == "Quant 'quant3': its scale is computed: hls4ml needs constants\nhint: fold constants first"


def test_overlapping_pools_do_not_stream() -> None:
    model = image(pool("MaxPool", strides=[1, 1]))
    check(model, "io_parallel")
    with pytest.raises(UnsupportedError) as caught:
        check(model, "io_stream")
    assert str(caught.value) == (
        "MaxPool 'maxpool1': kernel [2, 2] with strides [1, 1]: "
        "hls4ml's streaming pools take windows side by side only\nhint: use io_parallel"
    )


def test_transposes_do_not_stream() -> None:
    model = image(lambda net, x: net.op("Transpose", x, perm=[0, 2, 3, 1]))
    check(model, "io_parallel")
    with pytest.raises(UnsupportedError) as caught:
        check(model, "io_stream")
    assert str(caught.value) == (
        "Transpose 'transpose1': a Transpose: pqc has not checked it in streams\nhint: use io_parallel"
    )


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (fixed(integer=[[1, 2, 2, 2]]), "FixedQuant 'fixedquant1': 2 types in one tensor"),
        (fixed(integer=[[-4, 2, 2, 2]]), "FixedQuant 'fixedquant1': 2 types in one tensor"),
        (fixed(integer=-4), "FixedQuant 'fixedquant1': no bits at all"),
        (rounded(scale=[0.5, 0.25, 0.5, 1]), "Quant 'quant2': 3 types in one tensor"),
        (rounded(bits=[[4, 5, 6, 7]]), "Quant 'quant2': 4 types in one tensor"),
    ],
)
def test_many_types_do_not_stream(build: Build, found: str) -> None:
    model = vector(build)
    check(model, "io_parallel")
    with pytest.raises(UnsupportedError) as caught:
        check(model, "io_stream")
    assert str(caught.value) == (
        f"{found}: hls4ml's streams carry one type a tensor\n"
        "hint: use granularity per_tensor for activations, or io_parallel"
    )


@pytest.mark.parametrize("build", [fixed(overflow="WRAP"), fixed(integer=[[3, 3, 3, 3]]), rounded(bits=[[4] * 4])])
def test_one_type_streams(build: Build) -> None:
    check(vector(build), "io_stream")


@pytest.mark.parametrize(
    ("learns", "operator", "io_type", "shape", "message"),
    [
        ("bits", "Relu", "io_stream", (1, 4), "many types are learned: hls4ml's streams carry one type a tensor"),
        ("fractional_bits", "Tanh", "io_parallel", (1, 4), "many types are learned: hls4ml's table has one"),
        ("bits", "Relu", "io_parallel", (1, 4), None),
        ("bits", "Tanh", "io_stream", (1, 1), None),
        (None, "Relu", "io_stream", (1, 4), None),
    ],
)
def test_many_types_are_refused_before_they_are_learned(
    learns: str | None, operator: str, io_type: str, shape: tuple[int, ...], message: str | None
) -> None:
    model = vector(lambda net, x: fixed(np.full(shape, 3.0), np.full(shape, 4.0))(net, net.op(operator, x)))
    node = next(node for node in model.graph if node.op_type == "FixedQuant")
    if learns is not None:
        node.metadata_props[LEARNS] = learns
    if message is None:
        check_learned(model.graph, io_type)
        return
    with pytest.raises(UnsupportedError) as caught:
        check_learned(model.graph, io_type)
    assert (caught.value.message, caught.value.at) == (message, "FixedQuant 'fixedquant2'")


def test_every_rule_has_a_case() -> None:
    tested = {name for name, _, _ in CASES} | {"quant-computed", "stream-pool", "stream-transpose", "stream-types"}
    assert tested == {rule.name for rule in RULES + STREAM_RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_good_networks_pass(name: str) -> None:
    model = lower(prepare(NETWORKS[name]())[0])
    check(model)
    assert not list(problems(model))


def test_raw_input_is_refused() -> None:
    net = Network(4)
    model = net.model(net.op("MatMul", net.x, net.weight(4, 2)))
    with pytest.raises(UnsupportedError) as caught:
        check(model)
    assert str(caught.value) == (
        "input 'x': the input is not rounded by one Quant for all: "
        "hls4ml would cut raw inputs off to its default type\n"
        "hint: put one Quant right behind it (insert-quant does)"
    )


def test_input_shape_must_be_static() -> None:
    net = Network(4)
    net.x.shape = ir.Shape(["batch", "width"])
    x = net.quant(net.x, 8, 4)
    main = ir.Graph([net.x], [x], nodes=net.nodes, initializers=net.constants, opset_imports={"": 21, graph.QONNX: 1})
    with pytest.raises(UnsupportedError, match="input 'x' has no static shape\nhint: export it with fixed dimensions"):
        check(ir.Model(main, ir_version=10))


def test_several_inputs_are_refused() -> None:
    net = Network(4)
    model = net.model(net.op("Relu", net.quant(net.x, 8, 4)))
    model.graph.inputs.append(ir.val("mask", ir.DataType.FLOAT, [1, 4]))
    with pytest.raises(UnsupportedError, match=r"2 inputs \(x, mask\): only one is supported"):
        check(model)


def test_all_problems_are_counted() -> None:
    net = Network(4)
    y = net.op("Erf", net.op("Cos", net.quant(net.x, 8, 4)))
    with pytest.raises(UnsupportedError, match=r"Cos 'cos1': operator Cos: .* \(1 more\)"):
        check(net.model(y))


def test_hints_name_passes_that_exist() -> None:
    from importlib import import_module

    words = " ".join([*HINTS.values(), *(rule.hint for rule in RULES)]).replace(",", " ").replace(";", " ").split()
    named = {words[index + 1] for index, word in enumerate(words) if word == "pass"}
    assert len(named) >= 6
    for name in named:
        module = import_module(f"pqc.passes.{name.replace('-', '_')}")
        assert any(getattr(found, "title", None) == name for found in vars(module).values())
