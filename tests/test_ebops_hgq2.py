"""Bit operations in HGQ2's way against HGQ2's own numbers, which it counts in an environment of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fixed_networks import FixedNetwork

from pqc import library, metrics
from pqc.conventions import HGQ2
from pqc.functions.fixed_quant import FIXED_QUANT
from pqc.shapes import infer_shapes

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("HGQ2_PYTHON", ROOT / ".venv-hgq" / "bin" / "python"))
Arrays = Mapping[str, np.ndarray]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="HGQ2 is not installed: run make check-hgq2"),
]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arrays]:
    """What HGQ2 counts, by network."""
    path = tmp_path_factory.mktemp("hgq2") / "ebops.npz"
    script = ROOT / "tests" / "benchmarks" / "peers" / "hgq2_ebops.py"
    subprocess.run([PYTHON, script, path], check=True, capture_output=True)
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            network, part = name.split("/")
            found.setdefault(network, {})[part] = arrays[name]
    return found


class Rebuilt(FixedNetwork):
    """A graph with the bits of an HGQ2 network; images become [1, channels, ...]."""

    def __init__(self, arrays: Arrays, *shape: int) -> None:
        super().__init__(*shape)
        self.arrays = arrays

    def bits(self, name: str, turn: Callable[[np.ndarray], np.ndarray] = np.asarray) -> list[ir.Value]:
        return [self.constant(turn(self.arrays[f"{name}.{part}"]).astype(np.float32)) for part in ("i", "f")]

    def entering(self, name: str = "data", turn: Callable[[np.ndarray], np.ndarray] = np.asarray) -> ir.Value:
        return self.op("FixedQuant", self.x, *self.bits(name, turn), domain=FIXED_QUANT.key[0], overflow="WRAP")

    def parameter(self, name: str, turn: Callable[[np.ndarray], np.ndarray] = np.asarray) -> ir.Value:
        """Parameters that are the smallest number of their type, so that none with bits is zero."""
        step = self.constant(np.ldexp(1.0, -turn(self.arrays[f"{name}.f"]).astype(int)))
        return self.op("FixedQuant", step, *self.bits(name, turn), domain=FIXED_QUANT.key[0], overflow="SAT_SYM")

    def cost(self, output: ir.Value) -> float:
        model = self.model(output)
        model.graph.opset_imports[FIXED_QUANT.key[0]] = 1
        library.link(model)
        infer_shapes(model)
        return metrics.ebops(metrics.Probe(model, HGQ2).costs({}))


def channels_first(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -1, 1)


def filters_first(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (-1, -2), (0, 1))


def dense(net: Rebuilt) -> ir.Value:
    return net.op("Add", net.op("MatMul", net.entering(), net.parameter("weight")), net.parameter("bias"))


def conv(net: Rebuilt, **given: object) -> ir.Value:
    x, weight = net.entering(turn=channels_first), net.parameter("weight", filters_first)
    kernel = list(net.arrays["weight.i"].shape[:-2])
    return net.op("Conv", x, weight, net.parameter("bias"), kernel_shape=kernel, **given)


def norm(net: Rebuilt) -> ir.Value:
    constants = [net.constant(array) for array in (np.zeros(5), np.ones(5))]
    x = net.entering(turn=channels_first)
    return net.op("BatchNormalization", x, net.parameter("weight"), net.parameter("bias"), *constants)


def pool(kind: str) -> Callable[[Rebuilt], ir.Value]:
    return lambda net: net.op(kind, net.entering(turn=channels_first), kernel_shape=[2, 2], strides=[2, 2])


def merge(kind: str) -> Callable[[Rebuilt], ir.Value]:
    return lambda net: net.op(kind, net.entering("data0"), net.entering("data1"))


def attention(net: Rebuilt) -> ir.Value:
    keys = net.op("Slice", net.x, *(net.constant(np.array([n])) for n in (0, 3, 3)))
    keys = net.op("Slice", keys, *(net.constant(np.array([n])) for n in (0, 4, 2)))
    narrow = net.op("FixedQuant", keys, *net.bits("data1"), domain=FIXED_QUANT.key[0], overflow="WRAP")
    return net.op("MatMul", net.entering("data0"), narrow)


def softmax(net: Rebuilt) -> ir.Value:
    y = net.op("Softmax", net.entering(), axis=-1)
    return net.quant(y, float(net.arrays["result.bits"].flat[0]), 5, signed=0)


NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[Rebuilt], ir.Value]]] = {
    "dense": ((6,), dense),
    "dense_positions": ((3, 6), dense),
    "conv1d": ((2, 9), lambda net: conv(net, strides=[2])),
    "conv2d": ((2, 6, 5), conv),
    "conv2d_same": ((2, 6, 5), lambda net: conv(net, pads=[1, 1, 1, 1])),
    "conv2d_groups": ((4, 6, 5), lambda net: conv(net, group=2)),
    "batch_norm": ((5, 3), norm),
    "average_pool": ((3, 4, 4), pool("AveragePool")),
    "max_pool": ((3, 4, 4), pool("MaxPool")),
    "sum": ((4, 3), lambda net: net.op("ReduceSum", net.entering(), net.constant(np.array([1])))),
    "add": ((4, 3), merge("Add")),
    "subtract": ((4, 3), merge("Sub")),
    "multiply": ((4, 3), merge("Mul")),
    "attention": ((2, 5, 4), attention),
    "softmax": ((3, 5), softmax),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_count_is_the_one_of_hgq2(counted: dict[str, Arrays], name: str) -> None:
    shape, build = NETWORKS[name]
    found = build_cost(counted[name], shape, build)
    assert np.float32(found) == np.float32(counted[name]["ebops"])


def build_cost(arrays: Arrays, shape: tuple[int, ...], build: Callable[[Rebuilt], ir.Value]) -> float:
    net = Rebuilt(arrays, *shape)
    return net.cost(build(net))
