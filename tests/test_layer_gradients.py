"""Layers that pqc rewrites or differentiates itself: forward as before, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import content, initializers, make_mlp, onnx_model, text_of
from layer_cases import CASES, REFUSED, recurrent

from pqc import engine, graph, layers, masking, pipeline
from pqc.errors import UnsupportedError
from pqc.names import layout, unpacked
from pqc.samples import sample

CHAIN = "normalize,fold-constants,fold-batchnorm,lower-gemm,legalize"
EXPOSED = f"{CHAIN},attach-loss{{loss=mse}},expose-parameters"
PLACES, STEP = 12, 1e-3


@pytest.mark.parametrize("name", CASES)
def test_forward_is_that_of_the_operator(name: str) -> None:
    """atol: float32 sums in another order, of outputs of a Tanh."""
    model = CASES[name].model()
    before = graph.copy(model)
    pipeline.run(model, CHAIN)
    feeds = sample(model, 3)
    expected = engine.evaluate(before, feeds)["y"]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(engine.evaluate(model, feeds)["y"], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """Some places of every trained tensor, that of the layer before included, with a batch that has no fixed length.

    Outputs are good to 1e-7 and hundreds of them are averaged in float64, so a difference over 2e-3 is good to 3e-5;
    the bound is 1e-3 of the tensor's largest gradient and 1e-4.
    """
    model = CASES[name].model()
    pipeline.run(model, EXPOSED)
    forward, feeds = engine.Session(model), sample(model, 3)
    pipeline.run(model, "differentiate")
    theta = graph.stored(model.graph.initializers["theta"]).copy()
    found = engine.evaluate(model, {**feeds, "theta": theta})
    np.testing.assert_allclose(found["loss"], loss(forward, feeds, theta), rtol=1e-5)
    slices, start = layout(model), 0
    assert any(piece == "before" for piece, _, _ in slices)
    for piece, shape, _ in slices:
        gradient = found["theta_grad"][start : start + int(np.prod(shape))]
        chosen = np.random.default_rng(4).permutation(gradient.size)[:PLACES]
        numeric = [difference(forward, feeds, theta, start + place) for place in chosen]
        largest = np.abs(gradient).max()
        assert largest > 1e-3, piece
        np.testing.assert_allclose(gradient[chosen], numeric, rtol=0, atol=1e-3 * largest + 1e-4, err_msg=piece)
        start += gradient.size


def loss(session: engine.Session, feeds: dict[str, np.ndarray], theta: np.ndarray) -> float:
    """The mean squared error, in float64."""
    y = session.run({**feeds, "theta": theta})["y"].astype(np.float64)
    return float(np.mean((y - feeds["target"]) ** 2))


def difference(session: engine.Session, feeds: dict[str, np.ndarray], theta: np.ndarray, place: int) -> float:
    """The central difference of the loss along one parameter."""
    losses, moved = [], []
    for sign in (1, -1):
        other = theta.copy()
        other[place] += np.float32(sign * STEP)
        losses.append(loss(session, feeds, other))
        moved.append(float(other[place]))
    return (losses[0] - losses[1]) / (moved[0] - moved[1])


@pytest.mark.parametrize("name", REFUSED)
def test_single_variants_are_refused_by_name(name: str) -> None:
    case, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason) as caught:
        pipeline.run(case.model(), CHAIN)
    assert str(caught.value).startswith("node '")
    assert caught.value.hint


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_a_batch_may_come_first(operator: str, direction: str) -> None:
    """layout=1, which the engine does not run, computes what layout=0 does between transpositions."""
    case = recurrent(operator, "wrb", "yh", direction=direction)
    model = case.model()
    first = graph.copy(model)
    node = next(one for one in first.graph if one.op_type == operator)
    node.attributes["layout"] = ir.AttrInt64("layout", 1)
    for turn in [one for one in first.graph if one.op_type == "Transpose"]:
        order = {"t": [0, 1, 2], "ot": [0, 1, 2, 3], "oht": [0, 1, 2]}[str(turn.outputs[0].name)]
        turn.attributes["perm"] = ir.AttrInt64s("perm", order)
    feeds = sample(model, 3)
    expected = engine.evaluate(model, feeds)["y"]
    pipeline.run(first, CHAIN)
    np.testing.assert_allclose(engine.evaluate(first, feeds)["y"], expected, rtol=0, atol=2e-6)


def test_what_no_weight_reaches_is_left_alone() -> None:
    """A Resize that would be refused behind a layer, before the first one."""
    model = onnx_model(
        """(float[n,2,4,5] x) => (y) {
            r = Resize <mode: string = "linear",
                coordinate_transformation_mode: string = "tf_crop_and_resize"> (x, roi, scales)
            y = Conv (r, w)
        }""",
        w=np.ones((1, 2, 1, 1)),
        roi=np.array([0, 0, 0.1, 0.1, 1, 1, 0.9, 0.9], np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    pipeline.run(model, CHAIN)
    assert [node.op_type for node in model.graph] == ["Resize", "Conv"]


UNROLLED = """(float[n,2] x) => (float[2,n,1] y)
t = Transpose <perm: ints = [1, 0]> (x)
u = Unsqueeze (t, axis)
RNN_o.slice.out = Slice (u, RNN_o.step, RNN_o.step_1, RNN_o.time)
RNN_o.slice_1.out = Slice (u, RNN_o.step_1, RNN_o.step_2, RNN_o.time)
RNN_o.entering.out = Squeeze (RNN_o.slice.out, RNN_o.time)
RNN_o.entering_1.out = Squeeze (RNN_o.slice_1.out, RNN_o.time)
RNN_o.forward.input.out = MatMul (RNN_o.entering.out, RNN_o.forward.input.weight)
RNN_o.forward.biased.out = Add (RNN_o.forward.input.out, RNN_o.forward.input.bias)
RNN_o.forward.hidden.out = Tanh (RNN_o.forward.biased.out)
RNN_o.forward.input_1.out = MatMul (RNN_o.entering_1.out, RNN_o.forward.input.weight)
RNN_o.forward.biased_1.out = Add (RNN_o.forward.input_1.out, RNN_o.forward.input.bias)
RNN_o.forward.state.out = MatMul (RNN_o.forward.hidden.out, RNN_o.forward.state.weight)
RNN_o.forward.sum.out = Add (RNN_o.forward.biased_1.out, RNN_o.forward.state.out)
RNN_o.forward.hidden_1.out = Tanh (RNN_o.forward.sum.out)
RNN_o.steps.out = Unsqueeze (RNN_o.forward.hidden.out, RNN_o.steps.axis)
RNN_o.steps_1.out = Unsqueeze (RNN_o.forward.hidden_1.out, RNN_o.steps.axis)
RNN_o.steps.joined.out = Concat <axis: int = 0> (RNN_o.steps.out, RNN_o.steps_1.out)
RNN_o.sequence.out = Unsqueeze (RNN_o.steps.joined.out, RNN_o.sequence.axis)
y = Squeeze (RNN_o.sequence.out, one)"""


def test_unroll_recurrent() -> None:
    model = onnx_model(
        """(float[n,2] x) => (y) {
            t = Transpose <perm: ints = [1, 0]> (x)
            u = Unsqueeze (t, axis)
            o = RNN <hidden_size: int = 1> (u, w, r, b)
            y = Squeeze (o, one)
        }""",
        axis=np.array([2]),
        one=np.array([1]),
        w=[[[0.5]]],
        r=[[[0.25]]],
        b=[[1.0, 2.0]],
    )
    pipeline.run(model, "normalize,unroll-recurrent")
    assert text_of(model) == UNROLLED
    arrays = initializers(model)
    assert arrays["RNN_o.forward.input.weight"] == 0.5 and arrays["RNN_o.forward.state.weight"] == 0.25
    assert arrays["RNN_o.forward.input.bias"] == 3


def test_unroll_recurrent_leaves_other_layers() -> None:
    model = make_mlp()
    pipeline.run(model, "normalize")
    before = content(model)
    pipeline.run(model, "unroll-recurrent")
    assert text_of(model) == text_of(graph.from_proto(onnx.load_model_from_string(before)))


LEARNED = "insert-quant{weights=1,1,6/per_channel biases=1,1,6 inputs=1,3,6}"
REACHED = {
    "masks": f"{LEARNED},insert-masks{{method=cs}}",
    "learned bits": "insert-quant{weights=1,1,4/per_weight/bits inputs=1,3,4/bits}",
}


CONVOLUTIONS = ("groups", "bias", "plain 1-D")
SEQUENCES = ("LSTM bidirectional states", "GRU forward reset last", "RNN reverse")


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        *((name, "masks") for name in (*CONVOLUTIONS, *SEQUENCES)),
        *((name, "learned bits") for name in (*CONVOLUTIONS, "RNN reverse")),
    ],
)
def test_quantizers_masks_and_bit_operations_reach_the_weights(name: str, compression: str) -> None:
    """Every matrix and kernel has its quantizer, its mask and a count, and the gradient goes through them."""
    model = CASES[name].model()
    pipeline.run(model, f"{CHAIN},{REACHED[compression]}")
    found = {layer.weight: layer for layer in layers.layers(model.graph)}
    assert len(found) > 1
    for weight, layer in found.items():
        assert all(layers.is_quant(reader) or layers.applies_mask(reader) for reader in weight.consumers()), layer.name
    if compression == "masks":
        sites = {site.weight for site in masking.masks(model.graph)}
        assert sites >= found.keys() - {
            layer.weight for layer in found.values() if layer.node in layers.last(model.graph)
        }
    costs = "attach-costs," if compression == "learned bits" else ""
    pipeline.run(model, f"attach-loss{{loss=mse}},{costs}expose-parameters,differentiate")
    gradient = engine.evaluate(model, sample(model, 3))["theta_grad"]
    assert np.isfinite(gradient).all()
    pieces = unpacked(gradient, layout(model))
    assert all(np.any(pieces[str(weight.name)] != 0) for weight in found)
