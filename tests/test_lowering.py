"""The forms that train fastest compute what the plain ones do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from hypothesis import given
from hypothesis import strategies as st

from pqc import engine, graph, library, pipeline, schedule
from pqc.functions.fixed import MAX_BITS
from pqc.models import TABLE
from pqc.passes.lower_quant import LowerQuant
from pqc.samples import sample
from pqc.workflows.compression import NORMALIZE, compress_pipeline

MAIN = "(float[n,40] x) => (float[n,40] y)"
QUANT = "qonnx.custom_op.general.Quant <signed: int = {signed}, narrow: int = {narrow}, rounding_mode: string = {mode}>"


def quantizer(
    scale: object, bits: object, signed: int, narrow: int, *, mode: str = '"ROUND"', relu: bool = False
) -> ir.Model:
    """One Quant, behind a Relu if asked for."""
    node = QUANT.format(signed=int(signed), narrow=int(narrow), mode=mode)
    body = f"r = Relu (x) y = {node} (r, s, z, b)" if relu else f"y = {node} (x, s, z, b)"
    model = onnx_model(f"{MAIN} {{ {body} }}", s=scale, z=0.0, b=bits)
    library.link(model)
    return model


def around_the_grid(scale: float, levels: float, rng: np.random.Generator) -> np.ndarray:
    """Random numbers, ties, bounds and their float neighbours, beyond the range and at zero, [40, 40]."""
    steps = rng.integers(-2 * int(levels), 2 * int(levels) + 1, 400) / 2 * scale
    near = np.concatenate(
        [steps, np.nextafter(steps, np.inf, dtype=np.float32), np.nextafter(steps, -np.inf, dtype=np.float32)]
    )
    rest = [0.0, -0.0, 1e30, -1e30, 1e-40, levels * scale, -levels * scale]
    return np.resize(np.concatenate([near, rest, rng.normal(0, levels * scale, 393)]), (40, 40)).astype(np.float32)


@given(st.integers(2, 12), st.integers(-4, 10), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_lowered_quantizer_gives_the_same_numbers(
    bits: int, fraction: int, signed: bool, narrow: bool, relu: bool, seed: int
) -> None:
    scale = float(np.ldexp(1.0, -fraction))
    model = quantizer(scale, float(bits), signed, narrow, relu=relu)
    x = around_the_grid(scale, 2.0**bits, np.random.default_rng(seed))
    expected = engine.evaluate(model, {"x": x})["y"]
    assert LowerQuant().rewrite(model) == 1
    assert [node.op_type for node in model.graph] == (["Relu", "FixedPoint"] if relu and signed else ["FixedPoint"])
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], expected)


@pytest.mark.parametrize("bits", [2.0, 8.0, float(MAX_BITS)])
def test_the_lowered_gradient_is_the_same(bits: float) -> None:
    scale, levels = 0.25, 2.0 ** (bits - 1)
    x = around_the_grid(scale, levels, np.random.default_rng(3))
    bodies, dy = library.bodies(), np.random.default_rng(4).normal(size=x.shape).astype(np.float32)
    parameters = [np.float32(scale), np.float32(0), np.float32(bits)]
    plain = engine.call(bodies["pqc.gradient", "QuantGrad"], [dy, x, *parameters], {"signed": 1, "narrow": 0})[0]
    bounds = [np.float32(-levels * scale), np.float32((levels - 1) * scale)]
    np.testing.assert_array_equal(engine.call(bodies["pqc.gradient", "FixedPointGrad"], [dy, x, *bounds], {})[0], plain)
    assert 0 < np.count_nonzero(plain) < plain.size


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (quantizer(np.full(40, 0.5), 4.0, 1, 0), "per channel"),
        (quantizer(0.5, np.full(40, 4.0), 1, 0), "per channel"),
        (quantizer(0.3, 4.0, 1, 0), "no power of two"),
        (quantizer(0.5, 1.0, 1, 0), "bipolar"),
        (quantizer(0.5, 23.0, 1, 0), "too wide"),
        (quantizer(0.5, 4.0, 1, 0, mode='"FLOOR"'), "another rounding"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_other_grids_are_left_alone(model: ir.Model, why: str) -> None:
    assert LowerQuant().rewrite(model) == 0
    assert [node.op_type for node in model.graph] == ["Quant"]


def relu_inputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What enters each Relu."""
    trial = graph.copy(model)
    trial.graph.outputs[:] = [graph.operand(node, 0) for node in trial.graph if node.op_type == "Relu"]
    return list(engine.evaluate(trial, feeds).values())


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, np.ndarray]]:
    """What one training step of the jet tagger gives, plain, lowered, and lowered and batched.

    The inputs are such that no value before a Relu is exactly zero, where the forms choose another subgradient.
    """
    plan = schedule.load("cs", {"pruning.options.threshold_decay": "1e-4"})
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, f"{NORMALIZE},{compress_pipeline(plan, None)},calibrate-quant,attach-loss,expose-parameters")
    candidates = (sample(model, 64, seed) for seed in range(100))
    feeds = next(feeds for feeds in candidates if all(map(np.all, relu_inputs(model, feeds))))
    found = {}
    for name, passes in {"plain": "", "lowered": "lower-quant,", "batched": "lower-quant,batch-parameters,"}.items():
        step = graph.copy(model)
        pipeline.run(step, f"{passes}fix-batch{{size=64}},differentiate")
        found[name] = engine.evaluate(step, feeds)
        found[name]["quantizers"] = np.array(sum(node.op_type in ("Quant", "FixedPoint") for node in step.graph))
    return found


def test_batching_gives_the_gradient_bit_for_bit(steps: dict[str, dict[str, np.ndarray]]) -> None:
    np.testing.assert_array_equal(steps["batched"]["theta_grad"], steps["lowered"]["theta_grad"])
    np.testing.assert_allclose(steps["batched"]["loss"], steps["lowered"]["loss"], rtol=1e-6)


def test_batching_leaves_one_quantizer_for_all_weights_and_one_for_all_biases(
    steps: dict[str, dict[str, np.ndarray]],
) -> None:
    assert {name: int(step["quantizers"]) for name, step in steps.items()} == {"plain": 12, "lowered": 12, "batched": 6}


def test_lowering_gives_the_gradient_bit_for_bit(steps: dict[str, dict[str, np.ndarray]]) -> None:
    assert steps["lowered"]["loss"] == steps["plain"]["loss"]
    assert np.abs(steps["plain"]["theta_grad"]).max() > 1e-3
    np.testing.assert_array_equal(steps["lowered"]["theta_grad"], steps["plain"]["theta_grad"])
