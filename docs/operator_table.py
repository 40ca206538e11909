"""The page of the operators: what pqc does with each that ONNX defines."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from pqc import ebops, grids, layers, quantization_check, unary
from pqc import operator_table as treatment
from pqc.graph import OPSET
from pqc.hardware import rules
from pqc.passes.normalize import RANDOM

INTRODUCTION = """# Operators

What happens to each operator of ONNX's opset 21; those of other opsets are converted first, and functions of a file's
own are written out. An operator that is not in the table, or is refused, is named with its node before anything runs.

- **imports**: `pqc import` and every other verb read it.
- **trains**: a gradient passes it: `yes` by the engine's own gradient, `own` by one of pqc's, `rewritten` by `legalize`
  into others, `dropped` by `normalize`, `none needed` where its results are whole numbers or truth values, `zero`
  where its derivative is zero wherever there is one. Each is compared with finite differences in every form that it has
  (tests/operator_cases.py, tests/layer_cases.py). `no` is refused where a trained weight reaches it.
- **quantizes**: `inputs` get a quantizer each; `function`: it is part of a function of one number, which gets one on
  each side; `keeps the grid`: what is on a grid before it is on one behind it, so it needs none.
- **prunes**: its weights get masks.
- **hls4ml**: exact firmware, under the conditions of [hardware.md](hardware.md); `table`: as a table of all its inputs.
- **EBOPs**: its bit operations are counted; `free`: it computes nothing.

| operator | imports | trains | quantizes | prunes | hls4ml | EBOPs |
|---|---|---|---|---|---|---|"""
LOWERED = {
    "Gemm": "lower-gemm",
    "GlobalAveragePool": "lower-pool",
    "GlobalMaxPool": "lower-pool",
    "Reshape": "lower-reshape",
    "BatchNormalization": "fold-batchnorm, or legalize and lower-affine",
}
"""What a pass turns into operators that hls4ml takes."""


def operator_page() -> Iterator[str]:
    """The page, a row for each operator that is not deprecated."""
    yield INTRODUCTION
    for name in names():
        cells = (trains(name), quantizes(name), "yes" if name in layers.OUTPUT_AXIS else "", hls4ml(name), counts(name))
        imports = "no: it gives other numbers each time" if name in RANDOM else "" if foreign(name) else "yes"
        yield f"| {name} | {imports} | {' | '.join(cells)} |"


def names() -> list[str]:
    """The operators of ONNX's own domain at pqc's opset."""
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    found = {name for name in known if onnx.defs.has(name, OPSET, "")}
    return sorted(name for name in found if not onnx.defs.get_schema(name, OPSET, "").deprecated)


def foreign(name: str) -> bool:
    """Whether it takes or gives sequences or text, which no network here has: not tried."""
    reason = treatment.REFUSED.get(name, "")
    return reason.startswith(("values that are not tensors", "text"))


def trains(name: str) -> str:
    """How a gradient passes."""
    table = {
        "yes": treatment.ENGINE,
        "own": treatment.OWN,
        "rewritten": treatment.REWRITTEN,
        "zero": treatment.STEPS,
        "none needed": treatment.NO_GRADIENT,
        "dropped": treatment.NORMALIZED,
    }
    found = next((word for word, operators in table.items() if name in operators), None)
    limit = treatment.LIMITS.get(name)
    if found is None:
        return f"no: {treatment.REFUSED[name]}"
    return f"{found}: {limit}" if limit else found


def quantizes(name: str) -> str:
    """Where quantizers go."""
    if name in unary.ACTIVATIONS | unary.PARTS:
        return "function"
    if name in quantization_check.SENSITIVE:
        return "inputs"
    return "keeps the grid" if name in layers.MOVES | quantization_check.KEEPS | grids.PICKS else ""


def hls4ml(name: str) -> str:
    """Whether firmware is made of it."""
    if name in rules.KNOWN - {"Sigmoid", "Tanh"}:
        return "yes"
    if name in unary.ACTIVATIONS | unary.PARTS:
        return "table"
    return f"by {LOWERED[name]}" if name in LOWERED else ""


def counts(name: str) -> str:
    """Whether its bit operations are counted."""
    if name in ebops.OPERATORS or name in layers.OUTPUT_AXIS:
        return "yes"
    if name in unary.ACTIVATIONS:
        return "yes"
    return "free" if name in layers.MOVES | {"Relu"} else ""
