"""Layers that pqc rewrites or differentiates itself: forward as before, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import CASES, REFUSED

from pqc import engine, graph, pipeline
from pqc.errors import UnsupportedError
from pqc.names import layout
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
