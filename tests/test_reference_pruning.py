"""Judge the pruning reference itself: published numbers, acceptance cases, finite differences, worked examples."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import ArrayLike

import reference as ref
import reference_pruning as prune

SEED = 20241
SHAPES = [(4, 6), (3, 4, 2), (4, 3, 2, 2)]


def draw(*shape: int, seed: int = SEED, scale: float = 1.0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(scale=scale, size=shape))


def evenly_spread(*shape: int) -> np.ndarray:
    """Shuffled values from -1 to 1."""
    values = np.linspace(-1.0, 1.0, int(np.prod(shape)))
    return np.random.default_rng(SEED).permutation(values).reshape(shape)


def thresholds(W: np.ndarray, kind: str, value: float) -> np.ndarray:
    shapes = {
        "layerwise": (1,) * W.ndim,
        "channelwise": (len(W), *(1,) * (W.ndim - 1)),
        "weightwise": W.shape,
        "scalar": (),
    }
    return np.asarray(value + 0.05 * np.abs(draw(*shapes[kind], seed=1)))


def assert_true_gradient(
    actual: np.ndarray, f: Callable[[np.ndarray], float], x: ArrayLike, eps: float = 1e-6, rtol: float = 1e-6
) -> None:
    assert actual.dtype == np.float64
    numeric = ref.finite_difference(f, x, eps)
    np.testing.assert_allclose(actual, numeric, rtol=rtol, atol=rtol * float(np.abs(numeric).max()) + 1e-12)


def assert_binary(mask: np.ndarray, W: np.ndarray) -> None:
    assert mask.dtype == np.float64 and mask.shape == W.shape
    assert set(np.unique(mask)) <= {0.0, 1.0}


# Rankings


def test_topk_keeps_the_lower_index_of_equal_scores() -> None:
    np.testing.assert_array_equal(prune.topk_mask([2.0, 1.0, 2.0, 2.0], 2), [1, 0, 1, 0])
    np.testing.assert_array_equal(prune.topk_mask([[1.0, 1.0], [1.0, 1.0]], 3), [[1, 1], [1, 0]])
    np.testing.assert_array_equal(prune.topk_mask([0.0, -0.0], 1), [1, 0])


@pytest.mark.parametrize("keep", range(7))
def test_topk_keeps_exactly_as_many_as_told(keep: int) -> None:
    score = np.array([[0.5, 0.5, -1.0], [0.5, 3.0, 0.0]])
    mask = prune.topk_mask(score, keep)
    assert_binary(mask, score)
    assert mask.sum() == keep
    if 0 < keep < 6:
        assert score[mask == 1.0].min() >= score[mask == 0.0].max()


@pytest.mark.parametrize("keep", [-1, 5])
def test_topk_refuses_counts_that_are_not_there(keep: int) -> None:
    with pytest.raises(ValueError, match="cannot keep"):
        prune.topk_mask(np.ones(4), keep)


def test_budget_of_two_layers() -> None:
    half = np.concatenate([np.full(512, 0.001), np.ones(512)]).reshape(32, 32)
    spread = np.linspace(0.01, 0.99, 1024).reshape(32, 32)
    assert prune.allocate([half, spread], 0.75) == [512, 1024]
    first, second = prune.budget_fractions([half, spread], 0.75)
    assert first == 0.5
    assert 1.0 - (first + second) / 2.0 == pytest.approx(0.25, abs=1e-3)


def test_budget_keeps_earlier_entries_of_equal_size() -> None:
    assert prune.allocate([[1.0, -1.0], [[1.0], [-1.0]]], 0.25) == [0, 1]
    assert prune.allocate([[1.0, -1.0], [1.0, -1.0]], 0.75) == [1, 2]
    assert prune.allocate([[1.0, 3.0], [2.0, 0.5]], 0.5) == [1, 1]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.8, 0.999, 1.0])
def test_budget_is_exact(sparsity: float) -> None:
    weights = [draw(8, 5), draw(3, 2, 3, seed=2, scale=0.1), draw(7, 9, seed=3)]
    total = sum(weight.size for weight in weights)
    counts = prune.allocate(weights, sparsity)
    assert sum(counts) == round(sparsity * total)
    masks = [prune.magnitude_mask(weight, count) for weight, count in zip(weights, counts, strict=True)]
    sizes = np.concatenate([np.abs(weight).ravel() for weight in weights])
    kept = np.concatenate([mask.ravel() for mask in masks])
    np.testing.assert_array_equal(kept, prune.topk_mask(sizes, total - round(sparsity * total)))


def test_budget_as_written_keeps_the_weight_that_sets_the_threshold() -> None:
    weights = [draw(8, 5), draw(4, 15, seed=3)]
    literal = sum(
        fraction * weight.size for fraction, weight in zip(prune.budget_fractions(weights, 0.75), weights, strict=True)
    )
    assert round(literal) == sum(prune.allocate(weights, 0.75)) - 1 == 74
    with pytest.raises(IndexError):
        prune.budget_fractions(weights, 0.0)


# Magnitude


def test_cubic_sparsity() -> None:
    ramp = [prune.cubic_sparsity(n, 10, 20, 0.1, 0.9) for n in range(40)]
    assert ramp[:10] == [0.1] * 10
    assert ramp[10] == pytest.approx(0.1, rel=1e-14)
    assert ramp[20:] == [0.9] * 20
    assert ramp[15] == pytest.approx(0.9 - 0.8 / 8.0, rel=1e-14)
    assert all(before < after for before, after in pairwise(ramp[10:21]))
    assert [prune.cubic_sparsity(n, 5, 5, 0.2, 0.7) for n in (4, 5, 6)] == [0.2, 0.7, 0.7]


@pytest.mark.parametrize("shape", SHAPES)
def test_magnitude_mask_drops_the_smallest(shape: tuple[int, ...]) -> None:
    W = draw(*shape)
    for count in range(W.size + 1):
        mask = prune.magnitude_mask(W, count)
        assert_binary(mask, W)
        assert (mask == 0.0).sum() == count
        smallest = np.sort(np.abs(W).ravel())[:count]
        np.testing.assert_array_equal(np.sort(np.abs(W[mask == 0.0])), smallest)


def test_nm_mask_keeps_the_largest_of_each_group() -> None:
    W = np.array([[0.1, -0.4, 0.2, 0.3], [-1.0, 1.0, 1.0, -1.0]])
    np.testing.assert_array_equal(prune.nm_mask(W, 2, 4), [[0, 1, 0, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(prune.nm_mask(W, 1, 2), [[0, 1, 0, 1], [1, 0, 1, 0]])


def test_nm_groups_run_across_rows() -> None:
    np.testing.assert_array_equal(prune.nm_mask([[1.0, 2.0, 3.0], [4.0, 0.5, 0.1]], 1, 2), [[0, 1, 0], [1, 1, 0]])
    with pytest.raises(ValueError, match="groups of 4"):
        prune.nm_mask(np.ones((2, 3)), 2, 4)


@pytest.mark.parametrize(("keep_n", "m"), [(0, 4), (2, 4), (4, 8), (7, 8), (8, 8)])
def test_nm_mask_counts(keep_n: int, m: int) -> None:
    mask = prune.nm_mask(draw(4, 2, 2, 2), keep_n, m)
    np.testing.assert_array_equal(mask.reshape(-1, m).sum(axis=1), keep_n)


def test_structured_mask_keeps_whole_units() -> None:
    W = np.array([[3.0, 0.0, 0.1], [1.0, 2.0, 0.0], [0.0, 0.0, 2.9]])
    np.testing.assert_array_equal(prune.structured_mask(W, 1, 0), [[1, 1, 1], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(prune.structured_mask(W, 2, 1), [[1, 0, 1]] * 3)


def test_structured_mask_of_a_convolution() -> None:
    W = draw(4, 3, 2, 2)
    norms = np.array([np.linalg.norm(W[:, channel]) for channel in range(3)])
    np.testing.assert_allclose(prune.unit_norms(W, 1), norms, rtol=1e-14)
    mask = prune.structured_mask(W, 2, 1)
    assert_binary(mask, W)
    np.testing.assert_array_equal(mask[:, norms.argmin()], 0.0)
    assert mask.sum() == 2 * 16


# Activation pruning


@pytest.mark.parametrize("threshold", [0.2, 0.3])
def test_activation_pruning_of_a_sweep(threshold: float) -> None:
    outputs = np.tile(np.linspace(-0.5, 1.0, 16), (4, 1))
    mask = prune.ap_mask(prune.ap_collect([outputs, outputs]), threshold)
    np.testing.assert_array_equal(mask, outputs[0] > 0.0)
    assert 1.0 - mask.mean() == 6 / 16


def test_activity_counts_rows_and_weighs_batches_alike() -> None:
    first = [[1.0, -1.0], [0.0, 2.0], [3.0, -1.0], [-1.0, -2.0]]
    np.testing.assert_array_equal(prune.ap_activity(first), [0.5, 0.25])
    np.testing.assert_array_equal(prune.ap_collect([first, [[1.0, 1.0]]]), [0.75, 0.625])
    np.testing.assert_array_equal(prune.ap_mask([0.3, 0.30001, 1.0], 0.3), [0, 1, 1])


# AutoSparse


def test_autosparse_alpha_matches_the_published_factors() -> None:
    published = [1, 0.9918, 0.9734, 0.9168, 0.7685, 0.5, 0.3455, 0.2061, 0.0955, 0.0245, 0.0025]
    factors = [prune.autosparse_alpha(1.0, e, 10, 90) for e in range(11)]
    np.testing.assert_allclose(factors, published, atol=0.5e-4 + 1e-12, rtol=0)


def test_autosparse_alpha_scales_and_ends() -> None:
    factor = prune.autosparse_alpha(1.0, 3, 10, 90)
    assert prune.autosparse_alpha(0.5, 3, 10, 90) == pytest.approx(0.5 * factor, rel=1e-15)
    assert prune.autosparse_alpha(0.5, 89, 100, 90) > 0.0
    assert prune.autosparse_alpha(0.5, 90, 100, 90) == prune.autosparse_alpha(0.5, 95, 100, 90) == 0.0


def test_autosparse_initial_threshold() -> None:
    out, mask = prune.autosparse_weight([[0.5, -0.5, 0.006, 0.0]], -5.0)
    np.testing.assert_allclose(out, [[0.5 - 0.00669, -0.5 + 0.00669, 0.0, 0.0]], atol=5e-6)
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0]])


@pytest.mark.parametrize("kind", ["layerwise", "channelwise", "weightwise", "scalar"])
@pytest.mark.parametrize("shape", SHAPES)
def test_autosparse_true_gradient_without_annealing(kind: str, shape: tuple[int, ...]) -> None:
    W, g = draw(*shape), draw(*shape, seed=2)
    T = thresholds(W, kind, -1.0)
    dW, dT = prune.autosparse_grad(g, W, T, 0.0, False)
    assert_true_gradient(dW, lambda w: float((g * prune.autosparse_weight(w, T)[0]).sum()), W)
    assert_true_gradient(dT, lambda t: float((g * prune.autosparse_weight(W, t)[0]).sum()), T)


def test_autosparse_gradient_below_the_threshold() -> None:
    W, g, T = np.array([[0.9, -0.7, 0.2, 0.0]]), np.array([[2.0, 3.0, 5.0, 7.0]]), np.zeros((1, 1))
    dW, dT = prune.autosparse_grad(g, W, T, 0.25, False)
    np.testing.assert_array_equal(dW, [[2.0, 3.0, 1.25, 0.0]])
    np.testing.assert_allclose(dT, [[-(2.0 - 3.0 + 1.25) * 0.25]], rtol=1e-15)


def test_autosparse_backward_sparsity_keeps_the_top_half() -> None:
    W, g, T = np.array([[0.9, -0.7], [0.2, 0.1], [0.6, -0.3]]), np.ones((3, 2)), np.full((3, 1), -1.0)
    dense, _ = prune.autosparse_grad(g, W, T, 0.5, False)
    sparse, dT = prune.autosparse_grad(g, W, T, 0.5, True)
    np.testing.assert_array_equal(dense, [[1, 1], [0.5, 0.5], [1, 1]])
    np.testing.assert_array_equal(sparse, [[1, 1], [0, 0], [1, 0]])
    slope = ref.sigmoid(-1.0) * ref.sigmoid(1.0)
    np.testing.assert_allclose(dT, np.array([[0.0], [0.0], [-float(slope)]]), rtol=1e-15)
    alone, _ = prune.autosparse_grad([[3.0]], [[0.1]], [[0.0]], 0.5, True)
    np.testing.assert_array_equal(alone, [[1.5]])


@pytest.mark.parametrize("function", [prune.autosparse_weight, prune.dst_mask])
def test_thresholds_must_line_up_with_the_weights(function: Callable[[np.ndarray, np.ndarray], object]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        function(np.ones((3, 3, 3)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="does not fit"):
        function(np.ones((1, 3)), np.ones((3, 1)))


# Dynamic sparse training


def test_dst_step_derivative_table() -> None:
    x = [-1.2, -0.8, -0.4, -0.1, 0, 0.2, 0.4, 0.7, 1, 1.3]
    np.testing.assert_allclose(prune.dst_step_derivative(x), [0, 0.4, 0.4, 1.6, 2, 1.2, 0.4, 0.4, 0.4, 0], rtol=1e-14)


def test_dst_weight_gradient_by_hand() -> None:
    W, T, g = np.array([[0.5, -0.4, 0.0], [1.0, -2.0, 0.2]]), np.array([[0.3], [0.8]]), np.full((2, 3), 2.0)
    np.testing.assert_array_equal(prune.dst_mask(W, T), [[1, 1, 0], [1, 1, 0]])
    dW, dT = prune.dst_weight_grad(g, W, T)
    # step' at |W| - T = .2, .1, -.3 and .2, 1.2, -.6
    np.testing.assert_allclose(dW, [[2 + 1.2, 2 + 1.28, 0], [2 + 2.4, 2, 0.16]], rtol=1e-13)
    np.testing.assert_allclose(dT, [[-(1.2 - 1.28)], [-(2.4 + 0.16)]], rtol=1e-12)


@pytest.mark.parametrize("kind", ["layerwise", "channelwise", "weightwise", "scalar"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dst_gradient_shapes_and_sums(kind: str, shape: tuple[int, ...]) -> None:
    W, g = draw(*shape), draw(*shape, seed=2)
    T = thresholds(W, kind, 0.3)
    full = np.broadcast_to(T, W.shape)
    dW, dT = prune.dst_weight_grad(g, W, T)
    expected_dW, per_weight = prune.dst_weight_grad(g, W, full)
    assert dT.shape == T.shape
    np.testing.assert_array_equal(dW, expected_dW)
    axes = {"layerwise": None, "scalar": None, "channelwise": tuple(range(1, W.ndim)), "weightwise": ()}[kind]
    np.testing.assert_allclose(dT.ravel(), np.ravel(per_weight.sum(axis=axes)), rtol=1e-12, atol=1e-14)


def test_dst_true_gradient_where_the_step_is_flat() -> None:
    W, T, g = np.array([[2.0, -1.7], [0.1, -0.2]]), np.array([[0.2], [1.4]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    dW, dT = prune.dst_weight_grad(g, W, T)
    assert_true_gradient(dW, lambda w: float((g * w * prune.dst_mask(w, T)).sum()), W)
    assert_true_gradient(dT, lambda t: float((g * W * prune.dst_mask(W, t)).sum()), T)


def test_dst_penalty() -> None:
    T = draw(3, 4)
    assert prune.dst_penalty(np.zeros((3, 1)), 5e-6) == pytest.approx(15e-6, rel=1e-15)
    assert_true_gradient(prune.dst_penalty_grad(T, 0.3), lambda t: prune.dst_penalty(t, 0.3), T)


def test_dst_reset() -> None:
    W = np.array([[0.5, -0.4, 0.0, 0.1]])
    np.testing.assert_array_equal(prune.dst_reset(W, [[0.3]], 0.75), [[0.3]])
    np.testing.assert_array_equal(prune.dst_reset(W, [[0.45]], 0.75), [[0.0]])
    np.testing.assert_array_equal(prune.dst_mask(W, prune.dst_reset(W, [[0.45]], 0.75)), [[1, 1, 0, 1]])


# Parameter-free differentiable pruning


def test_pdp_published_numbers() -> None:
    W = np.array([0.1, -0.2, 0.3, 0.4])
    assert prune.pdp_threshold(W, 0.5) == prune.pdp_threshold_exact(W, 2) == pytest.approx(0.25, rel=1e-15)
    np.testing.assert_allclose(prune.pdp_weight(W, 2, 1e-2), [0.000522, -0.01907, 0.28197, 0.39998], rtol=3e-4)
    gradient = prune.pdp_grad(np.ones(4), W, 2, 1e-2)
    np.testing.assert_allclose(gradient, [0.01561, 0.79126, 1.95064, 1.00181], atol=0.5e-5 + 1e-12, rtol=0)


def test_pdp_ratio() -> None:
    assert prune.pdp_ratio(0, 0.015, 0.8) == pytest.approx(0.012, rel=1e-15)
    assert prune.pdp_ratio(65, 0.015, 0.8) < 0.8
    assert prune.pdp_ratio(66, 0.015, 0.8) == prune.pdp_ratio(500, 0.015, 0.8) == 0.8
    assert prune.pdp_ratio(0, 1.0, 0.75) == 0.75


def test_pdp_index_rule_is_off_by_one_at_the_ends() -> None:
    values = np.arange(1.0, 21.0)

    def pruned(fraction: float) -> int:
        return int((values < prune.pdp_threshold(values, fraction)).sum())

    assert pruned(0.0) == 1
    assert pruned(1.0) == 19
    assert pruned(0.1) == 2
    assert pruned(float(np.float32(0.1))) == 3
    with pytest.raises(ValueError, match="needs two"):
        prune.pdp_threshold([1.0], 0.5)


def test_pdp_thresholds_agree_away_from_the_ends() -> None:
    values = draw(40)
    for count in range(1, 40):
        assert prune.pdp_threshold(values, (count - 0.5) / 40) == prune.pdp_threshold_exact(values, count)


@pytest.mark.parametrize("shape", [(16, 8), (8, 4, 4), (16, 8, 3, 3)])
def test_pdp_prunes_exactly(shape: tuple[int, ...]) -> None:
    W = evenly_spread(*shape)
    hard = prune.pdp_hard_mask(prune.pdp_mask(W, 3 * W.size // 4, 1e-5))
    np.testing.assert_array_equal(hard, np.abs(W) > np.quantile(np.abs(W), 0.75))
    assert hard.mean() == 0.25


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(16, 8), (8, 4, 4), (16, 8, 3, 3)])
def test_pdp_prunes_whole_units_exactly(shape: tuple[int, ...], axis: int) -> None:
    W = evenly_spread(*shape)
    units = shape[axis]
    hard = prune.pdp_hard_mask(prune.pdp_structured_mask(W, 3 * units // 4, 1e-5, axis))
    np.testing.assert_array_equal(hard, prune.structured_mask(W, units // 4, axis))
    assert hard.mean() == 0.25


def test_pdp_ends() -> None:
    W, g = draw(4, 6), draw(4, 6, seed=2)
    W[0, 0] = 0.0
    assert prune.pdp_threshold_exact(W, 0) == 0.0
    assert prune.pdp_threshold_exact(W, 24) == np.inf
    for mask, gradient in [
        (prune.pdp_mask(W, 0, 0.1), prune.pdp_grad(g, W, 0, 0.1)),
        (prune.pdp_structured_mask(W, 0, 0.1, 0), prune.pdp_structured_grad(g, W, 0, 0.1, 0)),
        (prune.pdp_nm_mask(W, 4, 4, 0.1), prune.pdp_nm_grad(g, W, 4, 4, 0.1)),
    ]:
        np.testing.assert_array_equal(mask, np.ones_like(W))
        np.testing.assert_array_equal(gradient, g)
    for mask, gradient in [
        (prune.pdp_mask(W, 24, 0.1), prune.pdp_grad(g, W, 24, 0.1)),
        (prune.pdp_structured_mask(W, 6, 0.1, 1), prune.pdp_structured_grad(g, W, 6, 0.1, 1)),
        (prune.pdp_nm_mask(W, 0, 4, 0.1), prune.pdp_nm_grad(g, W, 0, 4, 0.1)),
    ]:
        np.testing.assert_array_equal(mask, np.zeros_like(W))
        np.testing.assert_array_equal(gradient, np.zeros_like(W))
    np.testing.assert_array_equal(prune.pdp_mask([0.3], 0, 0.1), [1.0])
    np.testing.assert_array_equal(prune.pdp_mask([0.3], 1, 0.1), [0.0])
    with pytest.raises(ValueError, match="no boundary"):
        prune.pdp_mask(W, 25, 0.1)


def test_pdp_equal_weights_at_the_boundary_are_half_masked() -> None:
    np.testing.assert_array_equal(prune.pdp_mask([0.5, -0.5, 0.5], 1, 1e-2), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(prune.pdp_hard_mask([0.5, 0.4999, 0.6]), [1, 0, 1])


@pytest.mark.parametrize("tau", [1e-2, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_pdp_gradient(shape: tuple[int, ...], tau: float) -> None:
    W, g = draw(*shape, scale=0.5), draw(*shape, seed=2)
    for count in range(W.size + 1):
        loss = lambda w, count=count: float((g * prune.pdp_weight(w, count, tau)).sum())  # noqa: E731
        assert_true_gradient(prune.pdp_grad(g, W, count, tau), loss, W)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tau", [0.05, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_pdp_structured_gradient(shape: tuple[int, ...], tau: float, axis: int) -> None:
    W, g = draw(*shape, scale=0.5), draw(*shape, seed=2)
    for count in range(shape[axis] + 1):
        loss = lambda w, count=count: float((g * prune.pdp_structured_weight(w, count, tau, axis)).sum())  # noqa: E731
        assert_true_gradient(prune.pdp_structured_grad(g, W, count, tau, axis), loss, W)


def test_pdp_structured_gradient_of_a_unit_of_zeros() -> None:
    W = draw(3, 4)
    W[1] = 0.0
    gradient = prune.pdp_structured_grad(np.ones((3, 4)), W, 1, 0.5, 0)
    np.testing.assert_array_equal(gradient[1], prune.pdp_structured_mask(W, 1, 0.5, 0)[1])


@pytest.mark.parametrize(("keep_n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (3, 6)])
@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 2), (4, 3, 2, 2)])
def test_pdp_nm_gradient(shape: tuple[int, ...], keep_n: int, m: int) -> None:
    W, g = draw(*shape, scale=0.5), draw(*shape, seed=2)
    loss = lambda w: float((g * prune.pdp_nm_weight(w, keep_n, m, 0.1)).sum())  # noqa: E731
    assert_true_gradient(prune.pdp_nm_grad(g, W, keep_n, m, 0.1), loss, W)


def test_pdp_nm_mask_hardens_to_the_ranking() -> None:
    W = draw(4, 2, 2, 2)
    np.testing.assert_array_equal(prune.pdp_hard_mask(prune.pdp_nm_mask(W, 4, 8, 1e-5)), prune.nm_mask(W, 4, 8))


# Wanda


def test_wanda_survivors_sit_at_both_ends() -> None:
    W = np.ones((16, 8))
    inputs = np.tile(np.linspace(-1.0, 1.0, 8), (4, 1))
    mask = prune.wanda_mask(W, prune.wanda_collect([inputs, inputs]), 0.75)
    np.testing.assert_array_equal(mask, np.tile([1, 0, 0, 0, 0, 0, 0, 1], (16, 1)))
    assert mask.sum() == 0.25 * W.size


def test_wanda_sums_squares_over_batches() -> None:
    first, second = draw(5, 3), draw(2, 3, seed=2)
    expected = (np.concatenate([first, second]) ** 2).sum(axis=0)
    np.testing.assert_allclose(prune.wanda_collect([first, second]), expected, rtol=1e-14)


def test_wanda_convolution_ranks_each_output() -> None:
    W, S = draw(16, 8, 3, 3), draw(8, seed=2) ** 2
    mask = prune.wanda_mask(W, S, 0.75)
    np.testing.assert_array_equal(mask.reshape(16, -1).sum(axis=1), 18)
    by_count = prune.wanda_mask_count(W, S, 3 * W.size // 4)
    assert by_count.sum() == 288
    metric = prune.wanda_metric(W, S)
    assert metric[by_count == 1.0].min() > metric[by_count == 0.0].max()


def test_wanda_drops_int_of_the_share() -> None:
    assert prune.wanda_mask(draw(3, 3), np.ones(3), 0.5).sum() == 5
    np.testing.assert_array_equal(prune.wanda_mask(np.ones((2, 2)), np.ones(2), 0.5), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(prune.wanda_mask_count(np.ones((2, 2)), np.ones(2), 2), [[1, 1], [0, 0]])
    for sparsity, kept in [(0.0, 9), (1.0, 0)]:
        assert prune.wanda_mask(draw(3, 3), np.ones(3), sparsity).sum() == kept


def test_wanda_masks_zero_weights_too() -> None:
    W = np.array([[0.0, 0.0, 0.0, 2.0], [0.0, 3.0, 1.0, 1.0]])
    np.testing.assert_array_equal(prune.wanda_mask(W, np.ones(4), 0.25), [[0, 0, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(prune.wanda_mask_count(W, np.ones(4), 2), [[1, 1, 0, 1], [0, 1, 1, 1]])


def test_wanda_metric_of_grouped_convolutions() -> None:
    S = np.array([1.0, 4.0, 9.0, 16.0])
    np.testing.assert_array_equal(prune.wanda_metric(-np.ones((2, 4)), S), [[1, 2, 3, 4]] * 2)
    np.testing.assert_array_equal(prune.wanda_metric(np.ones((4, 2, 1)), S)[..., 0], [[1, 2], [1, 2], [3, 4], [3, 4]])
    depthwise = prune.wanda_metric(np.ones((8, 1, 2, 2)), S)
    np.testing.assert_array_equal(depthwise[:, 0, 1, 1], [1, 1, 2, 2, 3, 3, 4, 4])
    with pytest.raises(ValueError, match="do not feed"):
        prune.wanda_metric(np.ones((4, 3)), S)


@pytest.mark.parametrize("shape", [(16, 8), (16, 8, 3, 3)])
def test_wanda_four_of_eight(shape: tuple[int, ...]) -> None:
    W, S = draw(*shape), draw(8, seed=2) ** 2
    mask = prune.wanda_nm_mask(W, S, 4, 8)
    np.testing.assert_array_equal((W * mask != 0.0).reshape(-1, 8).sum(axis=1), 4)
    assert mask.mean() == 0.5


# Modified differential method of multipliers

PUBLISHED_W = np.array([[0.0005, 0.2, -0.3, 0.4], [0.0, 0.1, 0.5, -0.6]])


def test_mdmm_published_numbers() -> None:
    assert prune.mdmm_l0(PUBLISHED_W, 1e-3, "coarse") == 0.25
    g = prune.mdmm_metric_unstructured(PUBLISHED_W, 1e-3, 0.9)
    assert round(g, 7) == 0.1962655
    penalties, lambdas = prune.mdmm_forwards([g] * 3, "Equality", 0.0, 1e-3, 10.0, 1.0)
    np.testing.assert_allclose(penalties, [2.1552554, 2.1591074, 2.1629593], atol=1.2e-7, rtol=0)  # measured in float32
    assert lambdas[0] == 1.0 and round(lambdas[1], 7) == 1.0019627
    dmetric = prune.mdmm_metric_unstructured_grad(PUBLISHED_W, 1e-3, 0.9)
    dP = prune.mdmm_penalty_grad(dmetric, g, "Equality", 0.0, 1.0, 10.0, 1.0)
    np.testing.assert_allclose(dP, 1.11776 * np.sign(PUBLISHED_W), atol=0.5e-5 + 1e-12)
    np.testing.assert_array_equal(prune.mdmm_hard_mask(PUBLISHED_W, 1e-3), [[0, 1, 1, 1], [0, 1, 1, 1]])


@pytest.mark.parametrize("l0_mode", ["coarse", "smooth"])
@pytest.mark.parametrize("scale_mode", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_mdmm_unstructured_gradient(shape: tuple[int, ...], l0_mode: str, scale_mode: str) -> None:
    W = draw(*shape, scale=0.1)
    gradient = prune.mdmm_metric_unstructured_grad(W, 1e-3, 0.4, l0_mode, scale_mode)
    metric = lambda w: prune.mdmm_metric_unstructured(w, 1e-3, 0.4, l0_mode, scale_mode)  # noqa: E731
    assert_true_gradient(gradient, metric, W)


def test_mdmm_scale_modes_differ_by_the_size() -> None:
    W = draw(3, 4)
    mean, total = (prune.mdmm_metric_unstructured(W, 1e-3, 0.9, "smooth", mode) for mode in ("mean", "sum"))
    assert total == pytest.approx(12 * mean, rel=1e-14)


@pytest.mark.parametrize("constraint", ["Equality", "LessThanOrEqual", "GreaterThanOrEqual"])
@pytest.mark.parametrize("target", [-0.5, 0.0, 0.5])
def test_mdmm_penalty_gradient(constraint: str, target: float) -> None:
    W = draw(3, 4, scale=0.2)

    def penalty(w: np.ndarray) -> float:
        g = prune.mdmm_metric_unstructured(w, 1e-3, 0.4, "smooth")
        return prune.mdmm_penalty(prune.mdmm_infeasibility(g, constraint, target), 1.3, 10.0, 0.7)

    g = prune.mdmm_metric_unstructured(W, 1e-3, 0.4, "smooth")
    dmetric = prune.mdmm_metric_unstructured_grad(W, 1e-3, 0.4, "smooth")
    gradient = prune.mdmm_penalty_grad(dmetric, g, constraint, target, 1.3, 10.0, 0.7)
    assert_true_gradient(gradient, penalty, W)


def test_mdmm_infeasibility() -> None:
    for g, equality, less, greater in [(0.7, 0.2, 0.2, 0.0), (0.3, 0.2, 0.0, 0.2), (0.5, 0.0, 0.0, 0.0)]:
        for constraint, expected in [
            ("Equality", equality),
            ("LessThanOrEqual", less),
            ("GreaterThanOrEqual", greater),
        ]:
            assert prune.mdmm_infeasibility(g, constraint, 0.5) == pytest.approx(expected, abs=1e-15)
            slope = prune.mdmm_infeasibility_grad(g, constraint, 0.5)
            assert slope == (np.sign(g - 0.5) if expected else 0.0)


def test_mdmm_constraints_past_the_target() -> None:
    W = np.array([[0.0, 0.0, 0.0, 0.5]])
    g = prune.mdmm_metric_unstructured(W, 1e-3, 0.5)
    dmetric = prune.mdmm_metric_unstructured_grad(W, 1e-3, 0.5)
    assert g < 0.0
    assert prune.mdmm_infeasibility(g, "LessThanOrEqual", 0.0) == 0.0
    assert prune.mdmm_infeasibility(g, "GreaterThanOrEqual", 0.0) == -g
    shrinks = prune.mdmm_penalty_grad(dmetric, g, "Equality", 0.0, 1.0, 10.0, 1.0)
    assert shrinks[0, 3] > 0.0


def test_mdmm_lambda_follows_the_infeasibility_of_the_forward_before() -> None:
    penalties, lambdas = prune.mdmm_forwards([0.5, 0.25, 0.125], "Equality", 0.0, 0.25, 2.0, 1.0)
    np.testing.assert_array_equal(lambdas, [1.0, 1.25, 1.375])
    np.testing.assert_array_equal(penalties, [2 * (0.5 + 0.125), 2 * (0.3125 + 0.03125), 2 * (0.171875 + 0.0078125)])
    assert prune.mdmm_lambda_step(1.25, 0.25, 0.25, 2.0) == 1.375


@pytest.mark.parametrize(("rf", "groups"), [(1, 84), (4, 24), (5, 24), (7, 12), (8, 12)])
def test_mdmm_structured_metric_pads_rows(rf: int, groups: int) -> None:
    W = draw(12, 7)
    W[0] = 0.0
    W[1, -1] = 5e-4
    zero_in_last_row = 1 if rf == 1 else 0
    expected = (-(-7 // rf) + zero_in_last_row) / groups
    assert prune.mdmm_metric_structured(W, rf, 1e-3) == pytest.approx(expected, rel=1e-14)


def test_mdmm_structured_metric_counts_the_short_last_group() -> None:
    W = np.array([[1.0, 1.0, 1.0, 3e-4, 4e-4]])
    assert prune.mdmm_metric_structured(W, 3, 6e-4) == 0.5
    assert prune.mdmm_metric_structured(W, 3, 4.5e-4) == 0.0


@pytest.mark.parametrize("rf", [1, 3, 4, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_mdmm_structured_smooth_gradient(shape: tuple[int, ...], rf: int) -> None:
    W = draw(*shape, scale=0.05)
    gradient = prune.mdmm_metric_structured_smooth_grad(W, rf)
    assert gradient.shape == W.shape
    assert_true_gradient(gradient, lambda w: prune.mdmm_metric_structured_smooth(w, rf), W)


def test_mdmm_structured_smooth_of_single_weights_is_the_smooth_zero_fraction() -> None:
    W = draw(3, 4, scale=0.1)
    assert prune.mdmm_metric_structured_smooth(W, 1) == pytest.approx(prune.mdmm_l0(W, 0.0, "smooth"), rel=1e-14)


# Hardware-aware metrics


@pytest.mark.parametrize(
    ("precision", "target", "width", "columns"),
    [(16, "DSP", 36, 1), (18, "BRAM", 36, 2), (12, "BRAM", 36, 3), (16, "BRAM", 36, 4), (8, "BRAM", 36, 9)],
)
def test_fpga_columns(precision: int, target: str, width: int, columns: int) -> None:
    assert prune.mdmm_fpga_columns(precision, target, width) == columns


def test_fpga_metric_counts_zero_blocks() -> None:
    W = np.ones((2, 8))
    W[0, :4] = 0.0
    W[1, 2:6] = 0.0
    assert prune.mdmm_metric_fpga(W, 2, 16, "DSP") == 4 / 8
    assert prune.mdmm_metric_fpga(W, 2, 18, "BRAM") == 1 / 4
    assert prune.mdmm_metric_fpga(W, 2, 16, "BRAM") == 0.0
    with pytest.raises(ValueError, match="neither DSP nor BRAM"):
        prune.mdmm_metric_fpga(W, 2, 16, "LUT")


@pytest.mark.parametrize("target", ["DSP", "BRAM"])
def test_fpga_gradient(target: str) -> None:
    W = draw(3, 4, 2, scale=0.05)
    gradient = prune.mdmm_metric_fpga_grad(W, 2, 12, target, 36, smooth=True)
    assert_true_gradient(gradient, lambda w: prune.mdmm_metric_fpga(w, 2, 12, target, 36, smooth=True), W)
    np.testing.assert_array_equal(prune.mdmm_metric_fpga_grad(W, 2, 12, target), np.zeros_like(W))


KERNELS = np.array(
    [
        [1.0, 1.0, 0.0, 0.0],
        [0.5, 2.0, 0.0, 0.0],
        [-1.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 1.0],
        [0.0, 0.0, -2.0, 3.0],
        [4.0, 1.0, 0.25, 0.0],
    ]
).reshape(3, 2, 2, 2)


def test_dominant_patterns() -> None:
    both = [[1, 1, 0, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(prune.mdmm_patterns(KERNELS, 16, 0.75), both)
    np.testing.assert_array_equal(prune.mdmm_patterns(KERNELS, 16, 0.5), both[:1])
    np.testing.assert_array_equal(prune.mdmm_patterns(KERNELS, 1, 0.75), both[:1])
    np.testing.assert_array_equal(prune.mdmm_patterns(KERNELS, 16, 1.0), [*both, [1, 1, 1, 0]])
    np.testing.assert_array_equal(prune.mdmm_patterns(KERNELS, 16, 0.75, eps=0.3), both)
    with pytest.raises(ValueError, match="no kernels"):
        prune.mdmm_patterns(np.ones((3, 4)), 16, 0.75)


@pytest.mark.parametrize(
    ("distance", "nearest"), [("hamming", 1.0), ("valued_hamming", 0.25), ("cosine", 1.0 - 2.0 / np.sqrt(6.0))]
)
def test_pattern_metric_and_projection(distance: str, nearest: float) -> None:
    metric = prune.mdmm_metric_pattern(KERNELS, 16, 0.75, distance)
    assert metric == pytest.approx(nearest / 6.0, rel=1e-14)
    projected = KERNELS.copy()
    projected[2, 1, 1, 0] = 0.0
    np.testing.assert_array_equal(prune.mdmm_project_patterns(KERNELS, 16, 0.75, distance), projected)
    assert prune.mdmm_metric_pattern(projected, 16, 0.75, distance) == 0.0
    assert prune.mdmm_metric_pattern(KERNELS, 16, 1.0, distance) == 0.0


def test_pattern_distances_of_empty_kernels() -> None:
    W = np.array([[[0.0, 0.0], [1.0, 2.0]]])
    patterns = [[0.0, 0.0], [1.0, 1.0]]
    np.testing.assert_allclose(prune.mdmm_pattern_distances(W, patterns, "cosine"), [[0, 1], [1, 0]], atol=1e-15)
    np.testing.assert_array_equal(prune.mdmm_pattern_distances(W, patterns, "valued_hamming"), [[0, 0], [3, 0]])
    with pytest.raises(ValueError, match="none of hamming"):
        prune.mdmm_pattern_distances(W, patterns, "euclidean")


@pytest.mark.parametrize("distance", ["hamming", "valued_hamming", "cosine"])
def test_pattern_gradient(distance: str) -> None:
    gradient = prune.mdmm_metric_pattern_grad(KERNELS, 16, 0.75, distance)
    assert gradient.any() == (distance == "valued_hamming")
    assert_true_gradient(gradient, lambda w: prune.mdmm_metric_pattern(w, 16, 0.75, distance), KERNELS)


def test_pattern_of_full_kernels_is_free_for_values() -> None:
    W = np.array([[[1.0, 1.0], [2.0, 2.0], [3.0, 0.0]]])
    assert prune.mdmm_metric_pattern(W, 1, 1.0, "hamming") == 1 / 3
    assert prune.mdmm_metric_pattern(W, 1, 1.0, "valued_hamming") == 0.0


# p-norm decay


def test_pnorm_factor_by_hand() -> None:
    theta, old = np.array([1.0, -2.0, 3.0, 0.5]), np.array([0.5, -0.25, 0.0, 1.0])
    np.testing.assert_allclose(
        prune.pnorm_decay(theta, old, 0.1, 1.0, 2.5), [0.5 / 0.75, -2.0 * 0.25 / 0.5, 0.0, 0.5 * 0.8], rtol=1e-14
    )
    np.testing.assert_allclose(prune.pnorm_decay(theta, old, 0.1, 2.0, 2.5), theta / 1.5, rtol=1e-14)
    np.testing.assert_array_equal(prune.pnorm_decay(theta, old, 0.1, 1.0, 0.0), theta)
    np.testing.assert_array_equal(prune.pnorm_decay(theta, old, 0.0, 1.0, 2.5), theta)
    with pytest.raises(ValueError, match=r"not in \(0, 2\]"):
        prune.pnorm_decay(theta, old, 0.1, 3.0, 2.5)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0])
def test_pnorm_steps_decay_the_base_step(p: float) -> None:
    theta, grad = draw(6), draw(6, seed=2)
    theta[0] = 0.0
    zero = np.zeros(6)
    factor = np.abs(theta) ** (2 - p) / (np.abs(theta) ** (2 - p) + p * 0.01 * 0.3)
    base, m, v = ref.adamw(theta, grad, zero, zero, 1, 0.01, 0.9, 0.999, 1e-8, 0.0)
    stepped, new_m, new_v = prune.padam_step(theta, grad, zero, zero, 1, 0.01, p=p, lambda_p=0.3)
    np.testing.assert_allclose(stepped, base * factor, rtol=1e-14)
    np.testing.assert_array_equal([new_m, new_v], [m, v])
    base, m = ref.sgd(theta, grad, zero, 0.01, 0.9, False, 0.0)
    stepped, new_m = prune.psgd_step(theta, grad, zero, 0.01, p=p, lambda_p=0.3)
    np.testing.assert_allclose(stepped, base * factor, rtol=1e-14)
    np.testing.assert_array_equal(new_m, m)
    assert (stepped[0] == 0.0) == (p < 2.0)


# Distillation


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("labels", [[0, 3, 1, 2, 2], [0, -1, 1, -1, 2], [-1] * 5])
def test_kd_gradient(temperature: float, alpha: float, labels: list[int]) -> None:
    student, teacher = draw(5, 4), draw(5, 4, seed=2)
    _, gradient = prune.kd_loss(student, teacher, labels, temperature, alpha)
    assert_true_gradient(gradient, lambda z: prune.kd_loss(z, teacher, labels, temperature, alpha)[0], student)


def test_kd_by_hand() -> None:
    student, teacher = np.log([[0.5, 0.5]]), np.log([[0.8, 0.2]])
    divergence = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    value, gradient = prune.kd_loss(student, teacher, [0], 1.0, 0.25)
    assert value == pytest.approx(0.25 * divergence + 0.75 * np.log(2.0), rel=1e-14)
    np.testing.assert_allclose(gradient, [[0.25 * -0.3 + 0.75 * -0.5, 0.25 * 0.3 + 0.75 * 0.5]], rtol=1e-13)


def test_kd_ends() -> None:
    student, teacher, labels = draw(5, 4), draw(5, 4, seed=2), [0, 3, 1, 2, 2]
    value, gradient = prune.kd_loss(student, teacher, labels, 4.0, 0.0)
    expected, expected_gradient = ref.cross_entropy(student, labels)
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-13)
    same, gradient = prune.kd_loss(teacher + 3.0, teacher, labels, 4.0, 1.0)
    assert same == pytest.approx(0.0, abs=1e-14)
    np.testing.assert_allclose(gradient, np.zeros((5, 4)), atol=1e-15)
    halved, _ = prune.kd_loss(student / 2.0, teacher / 2.0, labels, 1.0, 1.0)
    assert prune.kd_loss(student, teacher, labels, 2.0, 1.0)[0] == pytest.approx(4.0 * halved, rel=1e-13)


def test_layerwise_mse() -> None:
    student, teacher = draw(5, 4), draw(5, 4, seed=2)
    value, gradient = prune.layerwise_mse(student, teacher)
    assert value == pytest.approx(((student - teacher) ** 2).mean(), rel=1e-14)
    assert_true_gradient(gradient, lambda y: prune.layerwise_mse(y, teacher)[0], student)
