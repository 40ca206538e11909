"""What shares its bits: channels along any axis, and groups of a weight's inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import initializers, onnx_model

from pqc import engine, pipeline
from pqc.errors import PqcError
from pqc.fixed_point import FixedPoint
from pqc.quantizer import Quantizer
from pqc.schedule_sections import Quantization, quantizer, written
from reference_quant import calibrate_mse, fixed_point

GEMM = "(float[n,4] x) => (float[n,3] y) { y = Gemm <transB: int = 1> (x, fc__weight) }"
MATMUL = "(float[n,4] x) => (float[n,3] y) { y = MatMul (x, fc__weight) }"
CONV = "(float[n,4,5,5] x) => (float[n,3,5,5] y) { y = Conv <kernel_shape: ints = [1,1]> (x, fc__weight) }"
SHAPES = {GEMM: (3, 4), MATMUL: (4, 3), CONV: (3, 4, 1, 1)}
FLOAT = "biases=none inputs=none"


def quantized(text: str, kinds: str) -> ir.Model:
    """The network with weights from 0.01 to 8 that differ in size along every axis."""
    shape = SHAPES[text]
    sizes = np.exp2(np.random.default_rng(2).uniform(-6, 3, shape))
    signs = np.random.default_rng(3).choice([-1.0, 1.0], shape)
    model = onnx_model(text, fc__weight=sizes * signs)
    pipeline.run(model, f"insert-quant{{{kinds}}}", verify_each=True)
    return model


@pytest.mark.parametrize(
    ("text", "word", "shape"),
    [
        (GEMM, "per_channel", (3, 1)),
        (GEMM, "per_channel:1", (1, 4)),
        (GEMM, "per_channel:-1", (1, 4)),
        (MATMUL, "per_channel", (1, 3)),
        (MATMUL, "per_channel:0", (4, 1)),
        (CONV, "per_channel", (3, 1, 1, 1)),
        (CONV, "per_channel:1", (1, 4, 1, 1)),
        (CONV, "per_channel:-4", (3, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("overflow", ["", "/WRAP"])
def test_weights_share_bits_along_every_axis_but_one(
    text: str, word: str, shape: tuple[int, ...], overflow: str
) -> None:
    stored = initializers(quantized(text, f"weights=1,3,4/{word}{overflow} {FLOAT}"))
    names = ("integer_bits", "fractional_bits") if overflow else ("scale", "bitwidth")
    assert [stored[f"fc.weight.quant.{name}"].shape for name in names] == [shape, shape]


@pytest.mark.parametrize(
    ("word", "shape"),
    [("per_channel", (1, 4, 1, 1)), ("per_channel:2", (1, 1, 5, 1)), ("per_channel:-1", (1, 1, 1, 5))],
)
def test_activations_share_bits_along_every_axis_but_one(word: str, shape: tuple[int, ...]) -> None:
    stored = initializers(quantized(CONV, f"weights=none biases=none inputs=1,3,4/{word}"))
    assert stored["x.quant.scale"].shape == shape


@pytest.mark.parametrize("text", SHAPES)
@pytest.mark.parametrize("words", ["", "/RND"])
def test_a_group_has_the_integer_bits_that_its_weights_need(text: str, words: str) -> None:
    model = quantized(text, f"weights=1,0,4/per_group:2{words} {FLOAT}")
    stored = initializers(model)
    weight, axis = stored["fc.weight"], 0 if text == MATMUL else 1
    expected, types = np.empty_like(weight), set()
    for start in (0, 2):
        for output in range(3):
            place = [slice(None)] * weight.ndim
            place[axis], place[1 - axis] = slice(start, start + 2), slice(output, output + 1)
            group, rounding = weight[tuple(place)], words.removeprefix("/") or "RND_CONV"
            bits = calibrate_mse(group, 4, 1, rounding)
            types.add(bits)
            expected[tuple(place)] = fixed_point(group, 1, bits, 4 - bits, rounding, "SAT")
    assert len(types) > 1
    model.graph.outputs[:] = [model.graph.node(0).outputs[0]]
    model.graph.inputs[:] = []
    name = str(model.graph.outputs[0].name)
    np.testing.assert_array_equal(engine.evaluate(_alone(model), {})[name], expected)


def _alone(model: ir.Model) -> ir.Model:
    """The quantizer of the weight and nothing else."""
    for node in reversed(list(model.graph)[1:]):
        model.graph.remove(node, safe=True)
    return model


def test_a_group_of_zeros_keeps_the_type() -> None:
    model = onnx_model(MATMUL, fc__weight=np.zeros((4, 3)))
    pipeline.run(model, f"insert-quant{{weights=1,2,3/per_group:4 {FLOAT}}}")
    np.testing.assert_array_equal(initializers(model)["fc.weight.quant.scale"], np.full((4, 3), 0.125))


REFUSALS = {
    f"weights=1,0,4/per_group:3 {FLOAT}": "tensor 'fc.weight': groups of 3 do not divide its 4 inputs",
    "weights=none biases=none inputs=1,0,4/per_group:2": "tensor 'x': groups are for weights",
    f"weights=1,0,4/per_channel:2 {FLOAT}": "tensor 'fc.weight': it has no axis 2",
    f"weights=1,0,4/per_channel:-3 {FLOAT}": "tensor 'fc.weight': it has no axis -3",
    "weights=none biases=none inputs=1,0,4/per_channel:0": "tensor 'x': axis 0 of an activation counts rows",
    "weights=none biases=none inputs=1,0,4/per_channel:-2": "tensor 'x': axis 0 of an activation counts rows",
    f"weights=0,1,4/WRAP_SM {FLOAT}": "WRAP_SM turns back at a sign, which (0,1,4) has not; use WRAP, or k = 1",
    f"weights=1,1,4/per_channel:x {FLOAT}": "the axis is a whole number, not 'x'",
    f"weights=1,1,4/per_group:x {FLOAT}": "the size of a group is a whole number, not 'x'",
    f"weights=1,1,4/per_group {FLOAT}": "per_group needs the size of a group: per_group:16",
    f"weights=1,1,4/per_group:2/SAT_SYM/bits {FLOAT}": "bits are not learned per group",
}


@pytest.mark.parametrize("kinds", REFUSALS)
def test_refusals(kinds: str) -> None:
    with pytest.raises(PqcError) as caught:
        quantized(MATMUL, kinds)
    assert REFUSALS[kinds] in f"{caught.value.at}: {caught.value.message}"


KINDS = ["1,0,7/per_channel:1", "1,0,7/per_channel:-2/RND", "1,0,7/per_channel", "1,0,7/per_group:16", "1,0,7"]


@pytest.mark.parametrize("text", KINDS)
def test_text_and_yaml_round_trip(text: str) -> None:
    kind = Quantizer.parse(text)
    assert str(kind) == text
    assert quantizer(written(kind)) == kind


def test_yaml_sets_an_axis_and_layers_set_it_anew() -> None:
    section = Quantization(
        weights={"bits": [1, 0, 3], "granularity": "per_channel:1"},
        layers={
            "a*": {"weight": {"rounding": "RND"}},
            "b*": {"weight": {"granularity": "per_channel"}},
            "c*": {"weight": {"granularity": "per_group:8"}},
        },
    )
    kind = Quantizer(FixedPoint(1, 0, 3), "per_channel", axis=1)
    assert section.weights == kind
    own = {pattern: kinds["weight"] for pattern, kinds in section.overrides().items()}
    assert own["a*"] == Quantizer(FixedPoint(1, 0, 3), "per_channel", rounding="RND", axis=1)
    assert own["b*"] == Quantizer(FixedPoint(1, 0, 3), "per_channel")
    assert own["c*"] == Quantizer(FixedPoint(1, 0, 3), "per_group", 8)
