"""Write small HGQ2 networks as arrays: weights, bits, and the bit operations that HGQ2 counts for each layer.

    .venv-hgq/bin/python tests/benchmarks/peers/hgq2_ebops.py build/hgq2_ebops.npz

Runs under the peers' Python. Bits are drawn at random, element by element; names are `network/layer/array`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hgq2_model import as_numpy  # isort: skip

import keras
import numpy as np
from hgq.config import QuantizerConfig
from hgq.layers import (
    QAdd,
    QAvgPool2D,
    QBatchNormalization,
    QConv1D,
    QConv2D,
    QDense,
    QEinsum,
    QMaxPool2D,
    QMultiply,
    QSoftmax,
    QSubtract,
    QSum,
)
from hgq.quantizer import Quantizer

RANDOM = np.random.default_rng(20240229)
Arrays = dict[str, np.ndarray]


def data() -> QuantizerConfig:
    """Activations with bits for each element."""
    return QuantizerConfig("kif", "datalane")


def draw(quantizer: Quantizer, low: int = 0, high: int = 4) -> None:
    """Random integer and fractional bits; the sum of some is not above zero."""
    inner = quantizer.quantizer
    inner._i.assign(RANDOM.integers(low - 1, high, inner._i.shape))
    second = inner._f if hasattr(inner, "_f") else inner._b
    second.assign(RANDOM.integers(low, high, second.shape))


def parts(quantizer: Quantizer, shape: tuple[int, ...]) -> Arrays:
    """Integer and fractional bits of each element."""
    inner = quantizer.quantizer
    return {name: as_numpy(inner.bw_mapper.bw_to_x(getattr(inner, name), shape)) for name in ("i", "f")}


def single(layer: Any, shape: tuple[int, ...]) -> Arrays:
    """A layer of one input, its quantizers drawn."""
    layer.build((None, *shape))
    found: Arrays = {}
    for place, name in (("iq", "data"), ("kq", "weight"), ("bq", "bias"), ("oq", "result")):
        if getattr(layer, f"enable_{place}", place in ("kq", "bq")) and getattr(layer, f"_{place}", None) is not None:
            quantizer = getattr(layer, place)
            draw(quantizer)
            widths = {"iq": (1, *shape), "oq": (1, *shape)}.get(place, tuple(quantizer.quantizer._i.shape))
            found |= {f"{name}.{part}": array for part, array in parts(quantizer, widths).items()}
    return found | {"ebops": as_numpy(layer._compute_ebops((1, *shape)))}


def several(layer: Any, *shapes: tuple[int, ...]) -> Arrays:
    """A layer of several inputs, its quantizers drawn."""
    layer.build([(None, *shape) for shape in shapes])
    found: Arrays = {}
    for number, (quantizer, shape) in enumerate(zip(layer.iq.quantizers, shapes, strict=True)):
        draw(quantizer)
        found |= {f"data{number}.{part}": array for part, array in parts(quantizer, (1, *shape)).items()}
    return found | {"ebops": as_numpy(layer._compute_ebops(*((1, *shape) for shape in shapes)))}


def softmax(rows: int, length: int) -> Arrays:
    """Tables of the exponential and the reciprocal as wide as the result."""
    layer = QSoftmax(axis=-1, enable_iq=True, iq_conf=data(), allow_heterogeneous_table=False)
    layer.build((None, rows, length))
    draw(layer.iq)
    for table in (layer.exp_table, layer.inv_table):
        table.oq.quantizer._i.assign(np.full(table.oq.quantizer._i.shape, 1))
        inner = table.oq.quantizer
        second, bits = (inner._f, 5) if hasattr(inner, "_f") else (inner._b, 6)
        second.assign(np.full(second.shape, bits))
    shape = (1, rows, length)
    found = {f"data.{part}": array for part, array in parts(layer.iq, shape).items()}
    return found | {"result.bits": as_numpy(layer.exp_table.oq.bits), "ebops": as_numpy(layer._compute_ebops(shape))}


def main() -> None:
    """Build each network and write it."""
    d = {"iq_conf": data()}
    networks = {
        "dense": single(QDense(4, **d), (6,)),
        "dense_positions": single(QDense(4, **d), (3, 6)),
        "conv1d": single(QConv1D(4, 3, strides=2, **d), (9, 2)),
        "conv2d": single(QConv2D(4, 3, **d), (6, 5, 2)),
        "conv2d_same": single(QConv2D(4, 3, padding="same", **d), (6, 5, 2)),
        "conv2d_groups": single(QConv2D(4, 3, groups=2, **d), (6, 5, 4)),
        "batch_norm": single(QBatchNormalization(**d), (3, 5)),
        "average_pool": single(QAvgPool2D(2, **d), (4, 4, 3)),
        "max_pool": single(QMaxPool2D(2, **d), (4, 4, 3)),
        "sum": single(QSum(axes=1, **d), (4, 3)),
        "add": several(QAdd(), (4, 3), (4, 3)),
        "subtract": several(QSubtract(), (4, 3), (4, 3)),
        "multiply": several(QMultiply(), (4, 3), (4, 3)),
        "attention": several(QEinsum("bhtd,bhds->bhts"), (2, 5, 4), (2, 4, 3)),
        "softmax": softmax(3, 5),
    }
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{f"{name}/{part}": array for name, found in networks.items() for part, array in found.items()})
    print({name: float(found["ebops"]) for name, found in networks.items()}, keras.__version__)


if __name__ == "__main__":
    main()
