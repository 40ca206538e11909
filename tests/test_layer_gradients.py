"""Layers that pqc rewrites or differentiates itself: forward as before, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import CASES

from pqc import engine, graph, pipeline
from pqc.names import layout
from pqc.samples import sample

CHAIN = "normalize,fold-constants,fold-batchnorm,lower-gemm,legalize"
TRAIN = f"{CHAIN},attach-loss{{loss=mse}},expose-parameters,differentiate"
PLACES, STEP = 12, 2e-3


@pytest.mark.parametrize("name", CASES)
def test_forward_is_that_of_the_operator(name: str) -> None:
    """atol: float32 sums in another order, of outputs of a Tanh."""
    model = CASES[name].model()
    before = graph.copy(model)
    pipeline.run(model, CHAIN)
    feeds = sample(model, 3)
    expected = engine.evaluate(before, feeds)["y"]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(engine.evaluate(model, feeds)["y"], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """Some places of every trained tensor, that of the layer before included, with a batch that has no fixed length.

    The mean squared error is of order 1 and good to 1e-7, a difference over 4e-3 to 5e-5 with its curvature; the bound
    is 2e-3 of the tensor's largest gradient and 1e-4.
    """
    model = CASES[name].model()
    pipeline.run(model, TRAIN)
    session = engine.Session(model)
    feeds = sample(model, 3)
    theta = graph.stored(model.graph.initializers["theta"]).copy()
    gradient = session.run({**feeds, "theta": theta})["theta_grad"]
    slices, start = layout(model), 0
    assert any(piece == "before" for piece, _, _ in slices)
    for piece, shape, _ in slices:
        size = int(np.prod(shape))
        found = gradient[start : start + size]
        chosen = np.random.default_rng(4).permutation(size)[:PLACES]
        numeric = [difference(session, feeds, theta, start + place) for place in chosen]
        assert np.abs(found).max() > 1e-4, piece
        np.testing.assert_allclose(found[chosen], numeric, rtol=0, atol=2e-3 * np.abs(found).max() + 1e-4, err_msg=piece)
        start += size


def difference(session: engine.Session, feeds: dict[str, np.ndarray], theta: np.ndarray, place: int) -> float:
    """The central difference of the loss along one parameter."""
    losses, moved = [], []
    for sign in (1, -1):
        other = theta.copy()
        other[place] += np.float32(sign * STEP)
        losses.append(float(session.run({**feeds, "theta": other})["loss"]))
        moved.append(float(other[place]))
    return (losses[0] - losses[1]) / (moved[0] - moved[1])
