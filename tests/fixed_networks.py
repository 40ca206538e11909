"""Small networks whose quantizers have bits of their own for channels, weights and elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from hardware_networks import Network

from pqc import library, pipeline
from pqc.functions.fixed_quant import FIXED_QUANT
from pqc.shapes import infer_shapes


class FixedNetwork(Network):
    """A graph with FixedQuant nodes, bits drawn at random; a sixth of those of activations are none."""

    def fixed(
        self,
        x: ir.Value,
        shape: tuple[int, ...],
        *,
        integer: tuple[int, int] = (0, 3),
        fraction: tuple[int, int] = (0, 4),
        dead: float = 1 / 6,
        **attributes: object,
    ) -> ir.Value:
        """A FixedQuant with bits of `shape`, both ends of their ranges included."""
        i, f = (self.random.integers(low, high + 1, shape) for low, high in (integer, fraction))
        i = np.where(self.random.random(shape) < dead, -f, i)
        bits = [self.constant(array.astype(np.float32)) for array in (i, f)]
        return self.op("FixedQuant", x, *bits, domain=FIXED_QUANT.key[0], **attributes)

    def fixed_weight(self, *shape: int, scales: tuple[int, ...] | None = None) -> ir.Value:
        """Random weights with bits of their own for each, or with bits of the shape `scales`."""
        array = self.constant(self.random.normal(0, 0.7, shape))
        bits = shape if scales is None else scales
        return self.fixed(array, bits, integer=(-1, 1), fraction=(0, 3), overflow="SAT_SYM")

    def fixed_dense(self, x: ir.Value, inputs: int, outputs: int) -> ir.Value:
        """MatMul and Add."""
        product = self.op("MatMul", x, self.fixed_weight(inputs, outputs))
        return self.op("Add", product, self.fixed_weight(outputs))

    def fixed_conv(self, x: ir.Value, shape: tuple[int, ...], **given: object) -> ir.Value:
        """Conv with bits for each filter, and a bias with bits for each element."""
        rank = len(shape) - 2
        defaults: dict[str, object] = {
            "kernel_shape": list(shape[2:]),
            "strides": [1] * rank,
            "pads": [0] * 2 * rank,
            "dilations": [1] * rank,
            "group": 1,
        }
        weight = self.fixed_weight(*shape, scales=(shape[0], *[1] * (rank + 1)))
        return self.op("Conv", x, weight, self.fixed_weight(shape[0]), **(defaults | given))

    def finished(self, *outputs: ir.Value, passes: str = "lower-bits,fold-quant") -> ir.Model:
        """The clean graph: what `pqc` makes of FixedQuant nodes whose bits are fixed."""
        model = self.model(*outputs)
        model.graph.opset_imports[FIXED_QUANT.key[0]] = 1
        library.link(model)
        infer_shapes(model)
        pipeline.run(model, passes)
        return model


def dense(rounding: str = "RND_CONV", overflow: str = "SAT", **given: object) -> ir.Model:
    """A perceptron with a type for every weight, bias and activation."""
    net = FixedNetwork(8)
    modes = {"rounding": rounding, "overflow": overflow, **given}
    x = net.fixed(net.x, (1, 8), **modes)
    x = net.fixed(net.op("Relu", net.fixed_dense(x, 8, 10)), (1, 10), signed=0, **modes)
    x = net.fixed(net.fixed_dense(x, 10, 6), (1, 6), **modes)
    return net.finished(net.fixed_dense(x, 6, 3))


def per_tensor(rounding: str = "RND_CONV", overflow: str = "SAT") -> ir.Model:
    """The same with one type for each activation, small enough to overflow."""
    net = FixedNetwork(8)
    modes = {"rounding": rounding, "overflow": overflow, "dead": 0.0}
    x = net.fixed(net.x, (1, 1), integer=(2, 2), fraction=(3, 3), **modes)
    x = net.fixed(net.op("Relu", net.fixed_dense(x, 8, 10)), (1, 1), integer=(2, 2), fraction=(2, 2), signed=0, **modes)
    x = net.fixed(net.fixed_dense(x, 10, 6), (1, 1), integer=(1, 1), fraction=(2, 2), **modes)
    return net.finished(net.fixed_dense(x, 6, 3))


def weights_only(rank: int) -> ir.Model:
    """Convolutions, depthwise too, with types for each filter or weight between activations of one type."""
    net = FixedNetwork(3, *[8] * rank, seed=9)
    x = net.conv(net.quant(net.x, 8, 4), (3, 1, *[3] * rank), group=3, pads=[1] * 2 * rank)
    x = net.fixed_conv(net.quant(x, 8, 4), (3, 1, *[3] * rank), group=3)
    x = net.relu(net.fixed_conv(net.quant(x, 8, 4), (4, 3, *[1] * rank)), 7, 3)
    return net.finished(net.fixed_dense(net.op("Flatten", x), 4 * 6**rank, 3))


def image(overflow: str = "SAT", rounding: str = "RND") -> ir.Model:
    """Types for every channel and every element of images, without bits for a channel; pools; an uneven order."""
    net = FixedNetwork(4, 6, 6, seed=9)
    modes = {"overflow": overflow, "rounding": rounding, "integer": (1, 3), "fraction": (1, 4)}
    x = net.fixed_conv(net.fixed(net.x, (1, 4, 1, 1), **modes), (5, 4, 3, 3))
    x = net.fixed(net.op("Relu", x), (1, 5, 4, 4), signed=0, **modes)
    x = net.fixed(net.pool("AveragePool", net.pool("MaxPool", x, 2, 1), 3), (1, 5, 1, 1), signed=0, **modes)
    return net.finished(net.fixed_dense(net.op("Flatten", x), 5, 3))


def residual() -> ir.Model:
    """Elements without bits that an Add reads, so that no weight can take the zeros."""
    net = FixedNetwork(6)
    x = net.fixed(net.x, (1, 6))
    y = net.fixed(net.fixed_dense(x, 6, 6), (1, 6), rounding="TRN")
    return net.finished(net.fixed_dense(net.fixed(net.op("Add", x, y), (1, 6)), 6, 3), net.op("Sub", x, y))


def equal() -> ir.Model:
    """Elements of one type or none: what a stream can hold once the zeros are in the weights."""
    net = FixedNetwork(8)
    x = net.fixed(net.x, (1, 8), integer=(2, 2), fraction=(3, 3), dead=0.4)
    x = net.fixed(net.op("Relu", net.fixed_dense(x, 8, 6)), (1, 6), integer=(3, 3), fraction=(2, 2), signed=0, dead=0.4)
    return net.finished(net.fixed_dense(x, 6, 3))


ROUNDINGS_OF_ELEMENTS = ("TRN", "RND", "RND_CONV", "TRN_ZERO", "RND_ZERO", "RND_MIN_INF", "RND_INF")
FIXED_NETWORKS: dict[str, Callable[[], ir.Model]] = {
    **{f"dense-{mode}": lambda mode=mode: dense(mode) for mode in ROUNDINGS_OF_ELEMENTS},
    "dense-symmetric": lambda: dense("RND", "SAT_SYM"),
    "dense-wrap": lambda: dense("TRN", "WRAP"),
    "dense-round-wrap": lambda: dense("RND", "WRAP"),
    **{f"tensor-{mode}": lambda mode=mode: per_tensor(mode) for mode in ROUNDINGS_OF_ELEMENTS},
    "tensor-wrap": lambda: per_tensor("TRN", "WRAP"),
    "tensor-round-wrap": lambda: per_tensor("RND", "WRAP"),
    "weights-1d": lambda: weights_only(1),
    "weights-2d": lambda: weights_only(2),
    "image": image,
    "image-wrap": lambda: image("WRAP", "RND_CONV"),
    "residual": residual,
    "equal": equal,
}
STREAMS = tuple(name for name in FIXED_NETWORKS if name.split("-")[0] in ("tensor", "weights", "equal"))
