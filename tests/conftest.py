"""Models, seeds and settings that all tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import hypothesis
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pqc import graph, library, pipeline

SEED = 20240229

hypothesis.settings.register_profile("pqc", deadline=None, derandomize=True, print_blob=True, max_examples=50)
hypothesis.settings.load_profile("pqc")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run; a failure shows their seed."""
    print(f"seed: {SEED}")
    return np.random.default_rng(SEED)


def onnx_model(text: str, *, opset: int = 21, named: bool = True, **arrays: object) -> ir.Model:
    """The graph written as ONNX text, with `arrays` as its initializers.

    Args:
        text: from `(inputs) => (outputs)` on.
        opset: of the standard domain.
        named: name each node as `<operator>_<first output>`, as normalize would.
        arrays: initializers; floats become float32, and `fc__weight` stands for `fc.weight`.
    """
    domains = {"": opset, **{name: 1 for name in (graph.QONNX, "pqc.mask", "pqc.quant", "test") if f"{name}." in text}}
    imports = ", ".join(f'"{name}" : {version}' for name, version in domains.items())
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]>\ng {text}")
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}" if named else ""
        node.input[:] = [name.replace("__", ".") for name in node.input]
    for name, value in arrays.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name.replace("__", ".")))
    model = graph.from_proto(proto)
    library.link(model)
    return model


def text_of(model: ir.Model) -> str:
    """Inputs, outputs and nodes as ONNX text, without header, types of inner values and function bodies."""
    lines = [line.strip() for line in pipeline.to_text(model).splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("g ("))
    signature = lines[start].removeprefix("g ").removesuffix("{").strip()
    first = next(number for number in range(start, len(lines)) if lines[number].endswith("{")) + 1
    return "\n".join([signature, *lines[first : lines.index("}", first)]])


def content(model: ir.Model) -> bytes:
    """Everything that a file of the model holds."""
    return graph.to_proto(model).SerializeToString(deterministic=True)


def initializers(model: ir.Model) -> dict[str, np.ndarray]:
    """The stored arrays by name."""
    return {str(name): graph.stored(value) for name, value in model.graph.initializers.items()}


MLP = """(float[batch,4] x) => (float[batch,3] y) {
    h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias)
    a = Relu (h)
    z = Gemm (a, fc2__weight, fc2__bias)
    y = Softmax <axis: int = -1> (z)
}"""

CONVNET = """(float[batch,2,8,8] x) => (float[batch,3] y) {
    d = Conv <group: int = 2, kernel_shape: ints = [3,3], pads: ints = [1,1,1,1]> (x, dw__weight)
    n = BatchNormalization (d, bn__gamma, bn__beta, bn__mean, bn__var)
    p = Conv <kernel_shape: ints = [1,1]> (n, pw__weight, pw__bias)
    t = Tanh (p)
    q = AveragePool <kernel_shape: ints = [2,2], strides: ints = [2,2]> (t)
    f = Flatten (q)
    y = Gemm <transB: int = 1> (f, fc__weight, fc__bias)
}"""


def make_mlp() -> ir.Model:
    """4 inputs, 8 hidden units, 3 classes; the first weight lies output first, the second input first."""
    rng = np.random.default_rng(SEED)
    return onnx_model(
        MLP,
        fc1__weight=rng.normal(0, 0.5, (8, 4)),
        fc1__bias=rng.normal(0, 0.1, 8),
        fc2__weight=rng.normal(0, 0.5, (8, 3)),
        fc2__bias=rng.normal(0, 0.1, 3),
    )


def make_convnet() -> ir.Model:
    """A 2x8x8 image through a separable convolution with batch normalization, a pool, and a layer of 3."""
    rng = np.random.default_rng(SEED)
    return onnx_model(
        CONVNET,
        dw__weight=rng.normal(0, 0.4, (2, 1, 3, 3)),
        bn__gamma=rng.uniform(0.5, 1.5, 2),
        bn__beta=rng.normal(0, 0.2, 2),
        bn__mean=rng.normal(0, 0.2, 2),
        bn__var=rng.uniform(0.5, 1.5, 2),
        pw__weight=rng.normal(0, 0.5, (4, 2, 1, 1)),
        pw__bias=rng.normal(0, 0.1, 4),
        fc__weight=rng.normal(0, 0.2, (3, 64)),
        fc__bias=rng.normal(0, 0.1, 3),
    )


@pytest.fixture
def mlp() -> ir.Model:
    """Gemm, Relu, Gemm, Softmax."""
    return make_mlp()


@pytest.fixture
def convnet() -> ir.Model:
    """Depthwise Conv, BatchNormalization, pointwise Conv, Tanh, AveragePool, Flatten, Gemm."""
    return make_convnet()


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """Take away what a command line that ran in this process has made listen."""
    yield
    for name in ("pqc.explain", "pqc.notes"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
