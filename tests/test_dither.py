"""Stochastic rounding: its noise, its statistics against the reference, its gradients, and that it stays in the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model, text_of
from test_learned_bits import jets, make, plan
from test_quantizers import assert_same, assert_within, backward, forward

import reference_quant as ref
from pqc import engine, graph, library, pipeline
from pqc.errors import Interrupted, PassError
from pqc.functions.dither import DITHER, NOISE, SPAN
from pqc.names import layout, unpacked
from pqc.quantizer import Quantizer
from pqc.quantizer_nodes import QuantizerWriter
from pqc.quantizer_sites import STOCHASTIC
from pqc.training.stages import Stage

__all__ = ["jets"]

DENSE = "(float[n,3] x) => (float[n,2] y) { y = MatMul (x, fc__weight) }"
IDENTITY = "(float[64,5] x) => (float[64,5] y) { y = Identity (x) }"
STEPS = 2000


def noise(places: np.ndarray, number: float) -> np.ndarray:
    return engine.call(library.bodies()[NOISE.key], [places, np.asarray(number, np.float32)], {})[0]


# Noise


def test_noise_is_spread_evenly_over_places_and_over_steps() -> None:
    places = np.random.default_rng(0).integers(0, SPAN, 500).astype(np.float64)
    found = np.array([noise(places, number) for number in range(1, STEPS + 1)])
    for along in (found.reshape(-1), *found[:20], *found.T[:20]):
        ordered = np.sort(along) / 0.9990234375 + 0.5
        distance = np.abs(ordered - (np.arange(along.size) + 0.5) / along.size).max()
        assert distance < 2 / np.sqrt(along.size), "further from even than 1 in 1,400 random samples"
    between_places = np.corrcoef(found.T) - np.eye(500)
    between_steps = np.corrcoef(found[:200]) - np.eye(200)
    assert np.sqrt(np.mean(between_places**2)) < 1.5 / np.sqrt(STEPS)
    assert np.sqrt(np.mean(between_steps**2)) < 1.5 / np.sqrt(500)
    assert np.abs(found).max() < 0.5


def test_noise_is_the_same_for_a_step_and_differs_between_steps() -> None:
    places = np.random.default_rng(0).integers(0, SPAN, 50).astype(np.float64)
    assert_same(noise(places, 7), noise(places, 7))
    assert np.mean(noise(places, 7) == noise(places, 8)) < 0.1


@pytest.mark.parametrize("number", [1, 2**24 - 1])
def test_noise_is_what_it_says(number: int) -> None:
    places = np.array([0.0, 1.0, SPAN - 1, 12345.0])
    draw = np.floor(np.modf(number * 0.6180339887498949)[0] * SPAN)
    whole = [pow(int(place + draw), 2, 16777213) for place in places]
    assert_within(noise(places, number), (np.array(whole) / 16777213 - 0.5) * 0.9990234375, np.ones(4), 1)


# Rounding


@pytest.mark.parametrize("kind", ["1,2,3/S_RND", "1,2,3/S_TRN/WRAP", "1,2,3/per_channel/S_RND_INF/fractional_bits"])
def test_numbers_go_up_as_often_as_their_fraction_says(kind: str) -> None:
    model = onnx_model(IDENTITY)
    QuantizerWriter(model.graph, "ROUND").quantize(model.graph.inputs[0], Quantizer.parse(kind), None)
    library.link(model)
    pipeline.run(model, "dither-quant")
    x = np.random.default_rng(1).uniform(-3, 3, (64, 5)).astype(np.float32)
    x[0] = [0.125, -0.5, 0, 3, -3.875]
    session = engine.Session(model)
    found = np.array([session.run({"x": x, "step_number": np.float32(number)})["y"] for number in range(1, STEPS + 1)])
    low, high, up = ref.stochastic_bounds(x * 8.0)
    assert np.all((found == low / 8) | (found == high / 8))
    share = np.mean(found == high / 8, axis=0)
    moving = high > low
    assert np.all(found[:, ~moving] == x[~moving])
    assert moving.sum() > 300
    error = (share - up)[moving]
    assert np.abs(error).max() < 4 / np.sqrt(STEPS) + 2**-10
    assert np.abs(error.mean()) < 2e-3
    assert np.abs(found.mean(axis=0) - x).max() < 4 / 8 / np.sqrt(STEPS)


def test_gradients_of_dither() -> None:
    rng = np.random.default_rng(2)
    dy, x, random = rng.normal(size=(3, 6, 4)).astype(np.float32)
    f = np.array([[1.4, -2.0, 3.5, 0.0]], np.float32)
    step = np.exp2(-np.rint(f.astype(np.float64)))
    assert_within(forward(DITHER, x, f, random), x + random * step, np.abs(x) + np.abs(random * step), 2)
    dx, df = backward(DITHER, dy, f, random)
    assert_same(dx, dy)
    wanted = -ref.LN2 * (dy * random * step.astype(np.float64)).sum(axis=0, keepdims=True)
    assert_within(df, wanted, np.abs(dy * random * step).sum(axis=0, keepdims=True), 6)


def test_learned_bits_get_the_gradient_of_rounding_without_the_noise() -> None:
    """dy/df = ln 2 (x - y) with the x before the noise, y as it was rounded by chance."""
    weight = np.random.default_rng(3).normal(0, 0.4, (3, 2)).astype(np.float32)
    model = onnx_model(DENSE, fc__weight=weight)
    pipeline.run(model, "insert-quant{weights=1,1,2/per_channel/SAT_SYM/S_RND/bits inputs=none}")
    pipeline.run(model, "attach-loss{loss=mse},fix-batch{size=4},expose-parameters,dither-quant,differentiate")
    x = np.random.default_rng(4).normal(0, 1, (4, 3)).astype(np.float32)
    rounded: ir.Value = next(node.outputs[0] for node in model.graph if node.op_type == "FixedQuant")
    model.graph.outputs.append(rounded)
    rounded.shape = ir.Shape([3, 2])
    found = engine.evaluate(model, {"x": x, "target": np.zeros((4, 2), np.float32), "step_number": np.float32(5)})
    y = found[str(rounded.name)].astype(np.float64)
    assert np.any(y != np.rint(weight * 4) / 4), "chance rounds some weight to the farther number"
    dy = x.T @ (2 * (x @ y) / 8)
    inside = np.abs(y) < 2
    assert inside.all()
    gradients = unpacked(found["theta_grad"], layout(model))
    df = (ref.LN2 * dy * (weight - y)).sum(axis=0, keepdims=True)
    np.testing.assert_allclose(gradients["fc.weight"], dy, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradients["fc.weight.quant.integer_bits"], 0)
    np.testing.assert_allclose(gradients["fc.weight.quant.fractional_bits"], df, rtol=1e-4, atol=1e-6)


# The pass


def test_dither_quant() -> None:
    model = onnx_model(DENSE, fc__weight=np.full((3, 2), 0.3))
    pipeline.run(model, "insert-quant{weights=1,0,2/S_RND_CONV inputs=1,1,1/S_RND/WRAP},fix-batch{size=4},dither-quant")
    quant = 'qonnx.custom_op.general.Quant <signed: int = 1, narrow: int = 0, rounding_mode: string = "ROUND">'
    fixed = 'pqc.quant.FixedQuant <signed: int = 1, rounding: string = "RND_CONV", overflow: string = "WRAP">'
    lines = text_of(model).splitlines()
    assert [line.split(" = ", 1)[1] for line in lines[1:]] == [
        "pqc.quant.Noise (x.quant.places, step_number)",
        "pqc.quant.Dither (x, x.quant.fractional_bits, x.quant.noise.out)",
        f"{fixed} (x.quant.dithered.out, x.quant.integer_bits, x.quant.fractional_bits)",
        "pqc.quant.Noise (fc.weight.quant.places, step_number)",
        "Mul (fc.weight.quant.noise.out, fc.weight.quant.scale)",
        "Add (fc.weight, fc.weight.quant.noise.scaled.out)",
        f"{quant} (fc.weight.quant.dithered.out, fc.weight.quant.scale, fc.weight.quant.zeropt, fc.weight.quant.bitwidth)",
        "MatMul (x.quantized, fc.weight.quantized)",
    ]
    again = text_of(model)
    pipeline.run(model, "dither-quant")
    assert text_of(model) == again


def test_dither_quant_leaves_the_rest() -> None:
    model = onnx_model(DENSE, fc__weight=np.full((3, 2), 0.3))
    pipeline.run(model, "insert-quant{weights=1,0,2/RND_CONV inputs=1,1,1/RND/WRAP},fix-batch{size=4}")
    before = text_of(model)
    pipeline.run(model, "dither-quant")
    assert text_of(model) == before


def test_numbers_must_be_counted() -> None:
    model = onnx_model(DENSE, fc__weight=np.full((3, 2), 0.3))
    with pytest.raises(PassError) as caught:
        pipeline.run(model, "insert-quant{inputs=1,1,1/S_RND},dither-quant")
    assert str(caught.value).startswith(
        "'x.quant': how many numbers are rounded is not known\nhint: run fix-batch first"
    )


def test_a_sign_is_not_rounded() -> None:
    model = onnx_model(DENSE, fc__weight=np.full((3, 2), 0.3))
    pipeline.run(model, "insert-quant{weights=binary/S_RND inputs=none}")
    assert all(STOCHASTIC not in node.metadata_props for node in model.graph)


def test_evaluation_rounds_as_named() -> None:
    x = np.array([[0.25, 0.74, -0.25]], np.float32)
    for word in ("S_RND", "S_TRN", "S_RND_CONV"):
        found = []
        for name in (word, word.removeprefix("S_")):
            model = onnx_model(DENSE, fc__weight=np.eye(3, 2))
            pipeline.run(model, f"insert-quant{{weights=1,1,1 inputs=1,1,1/{name}}}")
            found.append(engine.evaluate(model, {"x": x})["y"])
        assert_same(found[0], found[1])


# Training


KINDS = {
    "quantization.weights": "{bits: [1, 0, 3], rounding: S_RND}",
    "quantization.inputs": "{bits: [1, 1, 3], granularity: per_element, rounding: S_RND_CONV, learns: fractional_bits}",
    "quantization.biases": "[1, 0, 7]",
}


def test_a_step_rounds_by_chance_and_the_trained_network_does_not(jets: Path, tmp_path: Path) -> None:
    chosen = plan(**{name.replace(".", "__"): text for name, text in KINDS.items()})
    trainer = make(jets, tmp_path, chosen)
    state, phase = trainer.state, chosen.phases.training
    stage = Stage(trainer.compressible, "training", chosen, phase, state, batch=64)
    assert sum(node.op_type == "Noise" for node in stage.step_model.graph) == 8
    rows = np.arange(64)
    inputs, target = trainer.data.train.take(rows)
    losses = [_first_loss(trainer.compressible, chosen, state, inputs, target, rows, number) for number in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    assert all(STOCHASTIC not in node.metadata_props for node in stage.step_model.graph)
    trainer.train()
    history = trainer.state.history
    assert history[-1]["loss"] < history[0]["loss"]


def _first_loss(model: ir.Model, chosen: Any, state: Any, inputs: Any, target: Any, rows: Any, number: int) -> float:
    stage = Stage(graph.copy(model), "training", chosen, chosen.phases.training, state, batch=64)
    return stage.stepper.step(inputs, target, rows, number=number, learning_rate=0.0)


def test_resuming_draws_the_same(jets: Path, tmp_path: Path) -> None:
    chosen = plan(**{name.replace(".", "__"): text for name, text in KINDS.items()})
    whole = make(jets, tmp_path / "whole", chosen)
    whole.train()

    class Stop:
        def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
            if done == 1:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        make(jets, tmp_path / "broken", chosen, progress=Stop()).train()
    again = make(jets, tmp_path / "broken", chosen)
    again.resume()
    again.train()
    for name, array in whole.state.values.items():
        np.testing.assert_array_equal(again.state.values[name], array)
