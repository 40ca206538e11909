"""Overflow in a training step: what is relaxed, what is not, and what a schedule says about it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import content, onnx_model, text_of

from pqc import engine, graph, pipeline, schedule
from pqc.passes.relax_overflow import RelaxOverflow
from pqc.quantizer_sites import LEARNS
from pqc.training.stages import step_pipeline

QUANT = 'pqc.quant.FixedQuant <signed: int = 1, rounding: string = "RND", overflow: string = "{}">'
MAIN = "(float[n,2] x) => (float[n,2] y)"
X = np.array([[-2.25, 2.0], [3.9, 0.3]], np.float32)


def quantizer(overflow: str, learns: str | None = None) -> ir.Model:
    """One quantizer of type (1, 1, 1)."""
    model = onnx_model(f"{MAIN} {{ y = {QUANT.format(overflow)} (x, i, f) }}", i=[[1.0]], f=[[1.0]])
    if learns:
        model.graph.node(0).metadata_props[LEARNS] = learns
    return model


def rounded(model: ir.Model) -> list[list[float]]:
    found: list[list[float]] = engine.evaluate(model, {"x": X})["y"].tolist()
    return found


@pytest.mark.parametrize(
    ("overflow", "learns", "wrapped"),
    [
        ("WRAP", None, [[-2.0, -2.0], [0.0, 0.5]]),
        ("WRAP", "fractional_bits", [[-2.0, -2.0], [0.0, 0.5]]),
        ("SAT", "fractional_bits", [[-2.0, 1.5], [1.5, 0.5]]),
        ("SAT_SYM", "fractional_bits", [[-1.5, 1.5], [1.5, 0.5]]),
    ],
)
def test_relax_overflow(overflow: str, learns: str | None, wrapped: list[list[float]]) -> None:
    model = quantizer(overflow, learns)
    assert rounded(model) == wrapped
    pipeline.run(model, "relax-overflow", verify_each=True)
    assert text_of(model) == f"{MAIN}\ny = {QUANT.format('NONE')} (x, i, f)"
    assert rounded(model) == [[-2.0, 2.0], [4.0, 0.5]]


@pytest.mark.parametrize("learns", [None, "fractional_bits"])
def test_relax_overflow_of_a_reflecting_quantizer(learns: str | None) -> None:
    model = quantizer("WRAP_SM", learns)
    assert rounded(model)[1] != [4.0, 0.5]
    assert RelaxOverflow().rewrite(model) == 1
    assert rounded(model) == [[-2.0, 2.0], [4.0, 0.5]]


@pytest.mark.parametrize(
    ("overflow", "learns", "keep"),
    [
        ("SAT", None, False),
        ("SAT_SYM", None, False),
        ("SAT", "bits", False),
        ("SAT_SYM", "bits", False),
        ("NONE", None, False),
        ("NONE", "fractional_bits", False),
        ("WRAP", None, True),
        ("WRAP_SM", None, True),
    ],
)
def test_relax_overflow_leaves_alone(overflow: str, learns: str | None, keep: bool) -> None:
    model = quantizer(overflow, learns)
    untouched = content(model)
    assert RelaxOverflow(keep_wraps=keep).rewrite(model) == 0
    assert content(model) == untouched


def test_integer_bits_that_follow_are_relaxed_though_wraps_are_kept() -> None:
    model = quantizer("WRAP", "fractional_bits")
    assert RelaxOverflow(keep_wraps=True).rewrite(model) == 1


@pytest.mark.parametrize(
    ("wrap_in_training", "overflow"), [("false", ["NONE", "NONE", "SAT"]), ("true", ["WRAP", "NONE", "SAT"])]
)
def test_a_schedule_says_whether_a_training_step_wraps(wrap_in_training: str, overflow: list[str]) -> None:
    """A weight that wraps, an activation whose integer bits follow, a bias that saturates."""
    plan = schedule.load("cs", {"quantization.wrap_in_training": wrap_in_training})
    model = onnx_model(
        "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, fc__weight) y = Add (h, fc__bias) }",
        fc__weight=[[0.3, -0.6], [1.2, 0.1]],
        fc__bias=[1.0, 2.0],
    )
    pipeline.run(
        model,
        "insert-quant{weights=1,0,3/WRAP biases=1,1,3/RND inputs=1,1,3/per_channel/WRAP/fractional_bits},"
        "attach-loss{loss=mse}",
    )
    evaluated = graph.copy(model)
    pipeline.run(model, step_pipeline(plan, 4).split(",lower-quant")[0])
    found = {
        node.name: str(node.attributes["overflow"].value)
        for node in model.graph
        if node.op_type == "FixedQuant" and node.domain == "pqc.quant"
    }
    assert [found[f"{name}.quant"] for name in ("fc.weight", "x", "fc.bias")] == overflow
    assert "NONE" not in text_of(evaluated)
