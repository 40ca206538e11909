"""Small quantized networks for the hardware tests, built node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from pqc import graph, library
from pqc.passes.normalize import infer_shapes


class Network:
    """A graph under construction; every method returns the new value.

    Args:
        shape: of the input, without the batch dimension.
        seed: of the random weights.
    """

    def __init__(self, *shape: int, seed: int = 7) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.random = np.random.default_rng(seed)
        self.x = ir.Value(name="x", shape=ir.Shape(["batch", *shape]), type=ir.TensorType(ir.DataType.FLOAT))

    def constant(self, array: ArrayLike) -> ir.Value:
        """An initializer; floats become float32."""
        values = np.asarray(array)
        values = values.astype(np.float32) if values.dtype.kind == "f" else values
        name = f"c{len(self.constants)}"
        value = ir.Value(name=name, const_value=ir.tensor(values, name=name), shape=ir.Shape(values.shape))
        value.dtype = ir.DataType.from_numpy(values.dtype)
        self.constants.append(value)
        return value

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        """A node named after its operator and place."""
        node = ir.node(kind, list(inputs), attributes, domain=domain, name=f"{kind.lower()}{len(self.nodes)}")
        node.outputs[0].name = f"t{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def quant(self, x: ir.Value, bits: float, fraction: int, *, signed: int = 1, **options: object) -> ir.Value:
        """A Quant of `bits` bits, `fraction` of them behind the point."""
        given = {"narrow": 0, "rounding_mode": "ROUND", **options}
        parts = [self.constant(part) for part in (2.0**-fraction, 0.0, float(bits))]
        return self.op("Quant", x, *parts, domain=graph.QONNX, signed=signed, **given)

    def weight(self, *shape: int, bits: int = 5, fraction: int = 4) -> ir.Value:
        """Random weights on their grid, behind their Quant."""
        limit = 2 ** (bits - 1) - 1
        integers = np.clip(np.round(self.random.normal(0, 0.4, shape) * 2**fraction), -limit, limit)
        return self.quant(self.constant(integers / 2**fraction), bits, fraction, narrow=1)

    def dense(self, x: ir.Value, inputs: int, outputs: int) -> ir.Value:
        """MatMul and Add."""
        product = self.op("MatMul", x, self.weight(inputs, outputs))
        return self.op("Add", product, self.weight(outputs, bits=6))

    def relu(self, x: ir.Value, bits: int = 8, fraction: int = 4) -> ir.Value:
        """Relu and its unsigned Quant."""
        return self.quant(self.op("Relu", x), bits, fraction, signed=0)

    def conv(self, x: ir.Value, shape: Sequence[int], *, bias: bool = True, **given: object) -> ir.Value:
        """Conv with weights of `shape`, every attribute written out."""
        rank = len(shape) - 2
        defaults: dict[str, object] = {
            "kernel_shape": list(shape[2:]),
            "strides": [1] * rank,
            "pads": [0] * 2 * rank,
            "dilations": [1] * rank,
            "group": 1,
        }
        biases = [self.weight(shape[0], bits=6)] if bias else []
        return self.op("Conv", x, self.weight(*shape), *biases, **(defaults | given))

    def pool(self, kind: str, x: ir.Value, size: int, stride: int | None = None) -> ir.Value:
        """A square pool, every attribute written out."""
        steps = [stride or size] * 2
        return self.op(kind, x, kernel_shape=[size, size], strides=steps, pads=[0, 0, 0, 0])

    def model(self, *outputs: ir.Value) -> ir.Model:
        """The finished graph with outputs `out0`, `out1`, …"""
        for index, value in enumerate(outputs):
            value.name, value.type = f"out{index}", ir.TensorType(ir.DataType.FLOAT)
        main = ir.Graph(
            [self.x],
            list(outputs),
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": graph.OPSET, graph.QONNX: 1},
            name="network",
        )
        model = ir.Model(main, ir_version=graph.IR_VERSION)
        library.link(model)
        infer_shapes(model)
        model.functions.clear()
        return model


def mlp(*sizes: int, head: str | None = None) -> ir.Model:
    """A quantized multilayer perceptron: 12 bit inputs, Relu between layers, 10 bit outputs."""
    net = Network(sizes[0])
    x = net.quant(net.x, 12, 8)
    for inputs, outputs in pairwise(sizes[:-1]):
        x = net.relu(net.dense(x, inputs, outputs))
    x = net.quant(net.dense(x, sizes[-2], sizes[-1]), 10, 5)
    return net.model(x if head is None else net.op(head, x))


def cnn(activation: str) -> ir.Model:
    """Depthwise 3x3, pointwise, activation, pools, dense, on 2 x 8 x 8; the first Conv pads unevenly.

    With Relu the pools stand side by side, as hls4ml's streams need; with Tanh their windows overlap.
    """
    net = Network(2, 8, 8)
    x = net.conv(net.quant(net.x, 10, 6), (2, 1, 3, 3), group=2, pads=[1, 0, 0, 1])
    x = net.conv(net.quant(x, 8, 4), (5, 2, 1, 1))
    if activation == "Relu":
        x, places = net.pool("MaxPool", net.relu(x), 2), 1
    else:
        x, places = net.quant(net.op(activation, net.quant(x, 8, 5)), 8, 7), 9
    x = net.quant(net.pool("AveragePool", x, 3, None if activation == "Relu" else 2), 8, 6)
    return net.model(net.dense(net.op("Flatten", x, axis=1), 5 * places, 5))


def residual() -> ir.Model:
    """Add, Sub and Mul of activations, a sigmoid gate and forks."""
    net = Network(8)
    x = net.relu(net.dense(net.quant(net.x, 8, 4), 8, 8))
    y = net.op("Relu", net.op("Add", x, net.quant(net.dense(x, 8, 8), 8, 3)))
    y = net.quant(y, 8, 3, signed=0)
    gate = net.quant(net.op("Sigmoid", net.quant(net.dense(y, 8, 8), 7, 4)), 7, 6, signed=0)
    y = net.quant(net.op("Sub", net.op("Mul", gate, y), x), 8, 4)
    return net.model(net.dense(y, 8, 3))


def images() -> ir.Model:
    """What the lowering passes take: dilation, groups, missing attributes, a global pool, a Gemm, a Reshape."""
    net = Network(3, 9, 9)
    x = net.quant(net.x, 8, 4)
    x = net.relu(net.op("Conv", x, net.weight(6, 1, 3, 3), net.weight(6, bits=6), group=3, dilations=[2, 2]))
    x = net.relu(net.op("Conv", x, net.weight(4, 3, 2, 2), group=2, strides=[2, 1], pads=[1, 0, 1, 1]))
    x = net.quant(net.op("GlobalAveragePool", x), 8, 5, signed=0, rounding_mode="FLOOR")
    x = net.op("Reshape", x, net.constant(np.array([-1, 4], np.int64)))
    return net.model(net.op("Softmax", net.op("Gemm", x, net.weight(3, 4), net.weight(3, bits=6), transB=1)))


def sequence() -> ir.Model:
    """One-dimensional convolutions."""
    net = Network(3, 12)
    x = net.conv(net.quant(net.x, 8, 4), (3, 1, 3), group=3, pads=[1, 1])
    x = net.relu(net.conv(net.quant(x, 8, 4), (4, 3, 1), bias=False))
    return net.model(net.dense(net.op("Flatten", x), 48, 3))


def mixer() -> ir.Model:
    """Dense layers over particles, between transposes, and over features, each added to what came in."""
    net = Network(3, 1, 6)
    x = net.relu(net.conv(net.quant(net.x, 8, 4), (4, 3, 1, 1)))
    turned = net.op("Transpose", x, perm=[0, 3, 2, 1])
    mixed = net.quant(net.conv(net.relu(net.conv(turned, (5, 6, 1, 1))), (6, 5, 1, 1)), 8, 4)
    x = net.quant(net.op("Add", net.op("Transpose", mixed, perm=[0, 3, 2, 1]), x), 8, 4)
    x = net.op("GlobalAveragePool", x)
    return net.model(net.dense(net.op("Flatten", net.quant(x, 8, 5)), 4, 3))


def rotated() -> ir.Model:
    """Transposes that are not their own inverse, of three axes and of two, and one that ends the network."""
    net = Network(2, 3, 4)
    x = net.op("Transpose", net.quant(net.x, 8, 4), perm=[0, 3, 1, 2])
    x = net.relu(net.conv(x, (5, 4, 1, 1)))
    return net.model(net.op("Transpose", x, perm=[0, 2, 3, 1]))


def two_outputs() -> ir.Model:
    """Two outputs whose order is not that of the nodes, the second one an image."""
    net = Network(2, 5, 5)
    image = net.conv(net.quant(net.x, 8, 4), (3, 2, 3, 3))
    vector = net.dense(net.op("Flatten", net.relu(image)), 27, 4)
    return net.model(vector, image)


def odd() -> ir.Model:
    """Scales above 1, weights of two bits, no bias, one scale a channel."""
    net = Network(8)
    x = net.quant(net.op("Relu", net.quant(net.x, 12, 8)), 3, 0, signed=0)
    x = net.op("Relu", net.op("MatMul", x, net.weight(8, 6, bits=2, fraction=1)))
    scales = np.ldexp(1.0, -np.arange(6, dtype=np.int64)).reshape(6, 1)
    integers = net.random.integers(-15, 16, (6, 3))
    parts = [net.constant(part) for part in (integers * scales, scales, 0.0, 5.0)]
    weight = net.op("Quant", *parts, domain=graph.QONNX, signed=1, narrow=1, rounding_mode="ROUND")
    return net.model(net.quant(net.op("MatMul", net.quant(x, 4, -2, signed=0), weight), 6, 0, narrow=1))


def faint() -> ir.Model:
    """One bit activations, and sums that end below the half of the grid that they are rounded to."""
    net = Network(8)
    x = net.quant(net.op("Relu", net.quant(net.x, 12, 8)), 1, 0, signed=0)
    x = net.op("Relu", net.op("MatMul", x, net.weight(8, 6, bits=5, fraction=9)))
    return net.model(net.dense(net.quant(x, 4, -2, signed=0), 6, 3))


def wrapping() -> ir.Model:
    """Sums that are never negative of products that are, so that partial sums leave the accumulator's type."""
    net = Network(2)
    x = net.quant(net.op("Relu", net.quant(net.x, 8, 4)), 6, 3, signed=0)
    weight = net.quant(net.constant(np.array([[-1.0, 1.0, -0.5], [0.5, -1.0, -0.5]])), 3, 1)
    return net.model(net.op("Add", net.op("MatMul", x, weight), net.quant(net.constant(np.full(3, 8.0)), 6, 1)))


NETWORKS: dict[str, Callable[[], ir.Model]] = {
    "mlp": lambda: mlp(16, 64, 32, 32, 5),
    "relu": lambda: cnn("Relu"),
    "tanh": lambda: cnn("Tanh"),
    "residual": residual,
    "images": images,
    "sequence": sequence,
    "two_outputs": two_outputs,
    "odd": odd,
    "mixer": mixer,
    "rotated": rotated,
}
