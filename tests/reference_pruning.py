"""Float64 NumPy reference for pruning: rankings, masks, penalties, their gradients, and distillation.

Written from formulas, never from the implementation it judges: the design notes
(`methods.md`, by section) and derivatives taken by hand. Plain and slow on purpose. Every array is
float64, masks hold 0 and 1 (or a soft value between), and weights lie output axis first: dense
(O, I), convolution (O, I/groups, K...). A flat index counts in row-major order.

Functions whose name ends in `grad` take g = dLoss/d(effective weight), the weight that the layer
uses, and return dLoss/d(parameter), unless their docstring names another g.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from reference import FloatArray, _float64, _sum_to_shape, adamw, cross_entropy, mse, sgd, sigmoid

# Rankings


def topk_mask(score: ArrayLike, keep: int) -> FloatArray:
    """1 at exactly `keep` largest scores, else 0; of equal scores the lower flat index is kept."""
    score = _float64(score)
    if not 0 <= keep <= score.size:
        raise ValueError(f"cannot keep {keep} of {score.size}")
    mask = np.zeros(score.size)
    mask[_descending(score)[:keep]] = 1.0
    return mask.reshape(score.shape)


def _descending(score: FloatArray) -> np.ndarray:
    """Flat indices from the largest score to the smallest, the lower index first where equal."""
    return np.argsort(-score.ravel(), kind="stable")


def allocate(weights: Sequence[ArrayLike], sparsity: float) -> list[int]:
    """Return how many weights to prune in each array, by one ranking of |W| over all of them.

    Exactly round(sparsity N) of the N weights go (Python's round: a half goes to the even number),
    the smallest; of equal ones the lower (list index, flat index) is kept.
    Source: §3.10, with the exact count that §11.1 item 5 asks for.
    """
    arrays = [np.abs(_float64(weight)).ravel() for weight in weights]
    ranked = np.concatenate(arrays)
    mask = topk_mask(ranked, ranked.size - round(sparsity * ranked.size))
    ends = np.cumsum([array.size for array in arrays])
    return [int(part.size - part.sum()) for part in np.split(mask, ends[:-1])]


def budget_fractions(weights: Sequence[ArrayLike], sparsity: float) -> list[float]:
    """R_l = #(|w| < thr) / numel_l with thr = v[int((1 - sparsity) N)], v all |W| descending.

    As written: the weight that sets thr stays, and sparsity 0 raises IndexError. Source: §3.10.
    """
    arrays = [np.abs(_float64(weight)).ravel() for weight in weights]
    ranked = np.sort(np.concatenate(arrays))[::-1]
    threshold = ranked[int((1.0 - sparsity) * ranked.size)]
    return [float((array < threshold).mean()) for array in arrays]


# Magnitude pruning


def cubic_sparsity(n: int, start: int, end: int, initial: float, final: float) -> float:
    """final + (initial - final) (1 - (n - start)/(end - start))^3, initial before, final from end on.

    Source: Zhu and Gupta's gradual schedule.
    """
    if n < start:
        return float(initial)
    if n >= end:
        return float(final)
    return float(final + (initial - final) * (1.0 - (n - start) / (end - start)) ** 3)


def magnitude_mask(W: ArrayLike, prune_count: int) -> FloatArray:
    """0 at exactly `prune_count` smallest |w| of the array, else 1. Ties as in `topk_mask`."""
    W = _float64(W)
    return topk_mask(np.abs(W), W.size - prune_count)


def nm_mask(W: ArrayLike, keep_n: int, m: int) -> FloatArray:
    """1 at the `keep_n` largest |w| of each m consecutive weights in row-major order, else 0.

    Of equal ones the lower index is kept. Needs numel divisible by m.
    Source: groups of §3.6, counting the kept ones (§11.1 item 4).
    """
    W = _float64(W)
    return np.stack([topk_mask(group, keep_n) for group in np.abs(_groups_of(W, m))]).reshape(W.shape)


def _groups_of(W: FloatArray, m: int) -> FloatArray:
    if W.size % m:
        raise ValueError(f"{W.size} weights do not divide into groups of {m}")
    return W.reshape(-1, m)


def unit_norms(W: ArrayLike, axis: int) -> FloatArray:
    """L2 norm of each unit: output rows (axis 0) or input channels (axis 1), as a vector.

    In a grouped convolution axis 1 is the place inside the group. Source: §3.5.
    """
    W = _float64(W)
    return _float64(np.sqrt((np.moveaxis(W, axis, 0).reshape(W.shape[axis], -1) ** 2).sum(axis=1)))


def _spread(units: FloatArray, W: FloatArray, axis: int) -> FloatArray:
    """One value per unit, repeated over W's shape."""
    shape = [1] * W.ndim
    shape[axis] = -1
    return _float64(np.broadcast_to(units.reshape(shape), W.shape))


def structured_mask(W: ArrayLike, keep_units: int, axis: int) -> FloatArray:
    """1 in the `keep_units` rows (axis 0) or input channels (axis 1) of largest L2 norm, else 0.

    Ties as in `topk_mask`; in W's shape. Source: structured ranking of §3.5.
    """
    W = _float64(W)
    return _spread(topk_mask(unit_norms(W, axis), keep_units), W, axis)


# Activation pruning (§3.1)


def ap_activity(outputs: ArrayLike) -> FloatArray:
    """Share of rows in which each output of (rows, O) is above 0. Source: §3.1."""
    return _float64((_float64(outputs) > 0.0).mean(axis=0))


def ap_collect(batches: Sequence[ArrayLike]) -> FloatArray:
    """acc/n: the mean of the batches' activities, each batch weighing the same. Source: §3.1."""
    return _float64(np.mean([ap_activity(batch) for batch in batches], axis=0))


def ap_mask(activity: ArrayLike, threshold: float) -> FloatArray:
    """1 per output whose activity is above the threshold, strictly, else 0. Source: §3.1."""
    return _float64(_float64(activity) > threshold)


# AutoSparse (§3.2)


def _threshold_like(T: ArrayLike, W: FloatArray) -> FloatArray:
    """T with as many axes as W, or none: one threshold per layer (1, 1, ...), output (O, 1, ...), or weight."""
    T = _float64(T)
    if T.ndim not in (0, W.ndim) or np.broadcast_shapes(T.shape, W.shape) != W.shape:
        raise ValueError(f"a threshold of shape {T.shape} does not fit weights of shape {W.shape}")
    return T


def autosparse_weight(W: ArrayLike, T: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return (sign(W) max(u, 0), 1[u > 0]) with u = |W| - sigmoid(T). Source: §3.2."""
    W = _float64(W)
    u = np.abs(W) - sigmoid(_threshold_like(T, W))
    return np.sign(W) * np.maximum(u, 0.0), _float64(u > 0.0)


def autosparse_grad(
    g: ArrayLike, W: ArrayLike, T: ArrayLike, alpha: float, backward_sparsity: bool
) -> tuple[FloatArray, FloatArray]:
    """Return (dW, dT): dW = factor sign(W)^2 g, dT = -sum(sign(W) g factor) sigmoid'(T).

    factor = 1 where u > 0, else alpha; with backward sparsity 0 where u is below the smallest of
    the top max(int(n/2), 1) values of u in the layer. A weight of 0 gets and gives nothing.
    True gradients for alpha = 0 without backward sparsity, away from u = 0. Source: §3.2.
    """
    g, W = _float64(g), _float64(W)
    T = _threshold_like(T, W)
    u = np.abs(W) - sigmoid(T)
    factor = np.where(u > 0.0, 1.0, alpha)
    if backward_sparsity:
        top = max(int(0.5 * u.size), 1)
        factor = np.where(u < np.sort(u.ravel())[-top], 0.0, factor)
    through = np.sign(W) * g * factor
    return np.sign(W) * through, -_sum_to_shape(through, T.shape) * sigmoid(T) * sigmoid(-T)


def autosparse_alpha(alpha0: float, e: int, E: int, reset_epoch: int) -> float:
    """The alpha that post_epoch(e, E) sets; 0 if e >= reset_epoch.

    alpha0 max((1 + cos(pi e/E))/2, 1 - sigmoid(-6 + 12 e/E)). Source: §3.2.
    """
    if e >= reset_epoch:
        return 0.0
    done = e / E
    return alpha0 * max((1.0 + float(np.cos(np.pi * done))) / 2.0, 1.0 - float(sigmoid(-6.0 + 12.0 * done)))


# Dynamic sparse training (§3.4)


def dst_step_derivative(x: ArrayLike) -> FloatArray:
    """2 - 4|x| if |x| <= 0.4, 0.4 if 0.4 < |x| <= 1, else 0. Source: §3.4."""
    size = np.abs(_float64(x))
    return np.where(size <= 0.4, 2.0 - 4.0 * size, np.where(size <= 1.0, 0.4, 0.0))


def dst_mask(W: ArrayLike, T: ArrayLike) -> FloatArray:
    """1 where |W| - T > 0, else 0; the effective weight is W times this. Source: §3.4."""
    W = _float64(W)
    return _float64(np.abs(W) - _threshold_like(T, W) > 0.0)


def dst_weight_grad(g: ArrayLike, W: ArrayLike, T: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return (dW, dT) of W mask: dW = g m + g W step' sign(W), dT = -sum(g W step'). Source: §3.4."""
    g, W = _float64(g), _float64(W)
    T = _threshold_like(T, W)
    through = g * W * dst_step_derivative(np.abs(W) - T)
    return g * dst_mask(W, T) + through * np.sign(W), -_sum_to_shape(through, T.shape)


def dst_penalty(T: ArrayLike, alpha: float) -> float:
    """alpha sum exp(-T) over the entries of T. Source: §3.4."""
    return alpha * float(np.exp(-_float64(T)).sum())


def dst_penalty_grad(T: ArrayLike, alpha: float) -> FloatArray:
    """d penalty / dT = -alpha exp(-T). Source: derivative of §3.4."""
    return -alpha * np.exp(-_float64(T))


def dst_reset(W: ArrayLike, T: ArrayLike, max_pruning_pct: float) -> FloatArray:
    """Return T, or zeros in its shape if the pruned share 1 - mean(mask) >= max_pruning_pct. Source: §3.4."""
    T = _float64(T)
    return np.zeros_like(T) if 1.0 - dst_mask(W, T).mean() >= max_pruning_pct else T


# Parameter-free differentiable pruning (§3.5)


def pdp_ratio(e: int, epsilon: float, R: float) -> float:
    """min(1, epsilon (e + 1)) R, the share to prune in epoch e. Source: §3.5."""
    return min(1.0, epsilon * (e + 1)) * R


def pdp_threshold(values_1d: ArrayLike, prune_fraction: float) -> float:
    """(v[i] + v[i+1])/2 of v = |values| descending, i = clip(int((1 - r) n) - 1, 0, n - 2).

    The index rule as written: never fewer than one pruned, never fewer than one kept, and n < 2
    has no threshold (ValueError). Source: §3.5.
    """
    v = np.sort(np.abs(_float64(values_1d)))[::-1]
    if v.size < 2:
        raise ValueError(f"a threshold between two values needs two, got {v.size}")
    index = min(max(int((1.0 - prune_fraction) * v.size) - 1, 0), v.size - 2)
    return float((v[index] + v[index + 1]) / 2.0)


def pdp_threshold_exact(values_1d: ArrayLike, prune_count: int) -> float:
    """Midpoint of the smallest kept and the largest pruned of |values|, `prune_count` of them pruned.

    0 where none is pruned, infinity where all are; the masks below do not need these two, they are
    ones and zeros there. Source: §3.5 with the exact count of §11.1 item 5.
    """
    values = np.abs(_float64(values_1d))
    if prune_count == 0:
        return 0.0
    if prune_count == values.size:
        return float("inf")
    kept, pruned = _boundary(values, prune_count)
    return float((values[kept] + values[pruned]) / 2.0)


def _boundary(values: FloatArray, prune_count: int) -> tuple[int, int]:
    """Indices of the smallest kept and the largest pruned value; of equal ones the lower index is kept."""
    if not 0 < prune_count < values.size:
        raise ValueError(f"no boundary between {prune_count} pruned and {values.size - prune_count} kept")
    order = _descending(values)
    return int(order[-prune_count - 1]), int(order[-prune_count])


def _soft_mask(values: FloatArray, prune_count: int, tau: float) -> FloatArray:
    """sigmoid((v^2 - t^2)/tau) of non-negative values; ones or zeros where none or all are pruned."""
    if prune_count in (0, values.size):
        return np.full(values.shape, 1.0 if prune_count == 0 else 0.0)
    return sigmoid((values**2 - pdp_threshold_exact(values, prune_count) ** 2) / tau)


def _soft_mask_grad(dmask: FloatArray, values: FloatArray, prune_count: int, tau: float) -> FloatArray:
    """Gradient of `_soft_mask` to the values, half of the threshold's to each of the two at the boundary."""
    if prune_count in (0, values.size):
        return np.zeros_like(values)
    kept, pruned = _boundary(values, prune_count)
    t = (values[kept] + values[pruned]) / 2.0
    scaled = (values**2 - t**2) / tau
    slope = dmask * sigmoid(scaled) * sigmoid(-scaled) / tau
    dvalues = 2.0 * values * slope
    dthreshold = -2.0 * t * slope.sum()
    dvalues[[kept, pruned]] += dthreshold / 2.0
    return dvalues


def pdp_mask(W: ArrayLike, prune_count: int, tau: float) -> FloatArray:
    """Soft mask sigmoid((w^2 - t^2)/tau), t = `pdp_threshold_exact` of |W|. Source: §3.5."""
    W = _float64(W)
    return _soft_mask(np.abs(W).ravel(), prune_count, tau).reshape(W.shape)


def pdp_weight(W: ArrayLike, prune_count: int, tau: float) -> FloatArray:
    """mask W. Source: §3.5."""
    return pdp_mask(W, prune_count, tau) * _float64(W)


def pdp_grad(g: ArrayLike, W: ArrayLike, prune_count: int, tau: float) -> FloatArray:
    """dW = g m + sign(w) dv, v = |w|, with dv = 2 v h and, at the two boundary weights, - t sum(h).

    h = g w m (1 - m)/tau. A true gradient where no two |w| swap places. Source: derivative of §3.5.
    """
    g, W = _float64(g), _float64(W)
    dvalues = _soft_mask_grad((g * W).ravel(), np.abs(W).ravel(), prune_count, tau).reshape(W.shape)
    return g * pdp_mask(W, prune_count, tau) + np.sign(W) * dvalues


def pdp_hard_mask(mask: ArrayLike) -> FloatArray:
    """1 where the soft mask is at least 0.5, else 0. Source: §3.5.

    Keeps both sides of the boundary where they are equal, or so close that the soft mask is 0.5 in
    the working precision: the count is exact only for a threshold strictly between the two.
    """
    return _float64(_float64(mask) >= 0.5)


def pdp_structured_mask(W: ArrayLike, prune_units: int, tau: float, axis: int) -> FloatArray:
    """Soft mask of the L2 norms of rows (axis 0) or input channels (axis 1), in W's shape. Source: §3.5."""
    W = _float64(W)
    return _spread(_soft_mask(unit_norms(W, axis), prune_units, tau), W, axis)


def pdp_structured_weight(W: ArrayLike, prune_units: int, tau: float, axis: int) -> FloatArray:
    """mask W. Source: §3.5."""
    return pdp_structured_mask(W, prune_units, tau, axis) * _float64(W)


def pdp_structured_grad(g: ArrayLike, W: ArrayLike, prune_units: int, tau: float, axis: int) -> FloatArray:
    """dW = g m + dr w/r, with dr the gradient to the unit's norm r as in `pdp_grad`, 0 where r = 0.

    Source: derivative of §3.5.
    """
    g, W = _float64(g), _float64(W)
    norms = unit_norms(W, axis)
    dmask = np.moveaxis(g * W, axis, 0).reshape(norms.size, -1).sum(axis=1)
    dnorms = _soft_mask_grad(dmask, norms, prune_units, tau)
    per_weight = np.divide(dnorms, norms, out=np.zeros_like(norms), where=norms > 0.0)
    return g * pdp_structured_mask(W, prune_units, tau, axis) + _spread(per_weight, W, axis) * W


def pdp_nm_mask(W: ArrayLike, keep_n: int, m: int, tau: float) -> FloatArray:
    """Soft mask sigmoid((w^2 - t^2)/tau), t between the keep_n-th and next |w| of each m in row-major order.

    Not in the design notes: §3.5's soft mask over §3.6's groups.
    """
    W = _float64(W)
    rows = [_soft_mask(np.abs(group), m - keep_n, tau) for group in _groups_of(W, m)]
    return np.stack(rows).reshape(W.shape)


def pdp_nm_weight(W: ArrayLike, keep_n: int, m: int, tau: float) -> FloatArray:
    """mask W."""
    return pdp_nm_mask(W, keep_n, m, tau) * _float64(W)


def pdp_nm_grad(g: ArrayLike, W: ArrayLike, keep_n: int, m: int, tau: float) -> FloatArray:
    """`pdp_grad` in each group of m, through that group's own threshold."""
    g, W = _float64(g), _float64(W)
    rows = [pdp_grad(dy, w, m - keep_n, tau) for dy, w in zip(_groups_of(g, m), _groups_of(W, m), strict=True)]
    return np.stack(rows).reshape(W.shape)


# Wanda (§3.6)


def wanda_collect(batches: Sequence[ArrayLike]) -> FloatArray:
    """S_j = sum of x_j^2 over all rows of all batches (rows, C). Source: §3.6."""
    return _float64(np.sum([(_float64(batch) ** 2).sum(axis=0) for batch in batches], axis=0))


def wanda_metric(W: ArrayLike, S: ArrayLike) -> FloatArray:
    """|W| sqrt(S_j), j the input channel that a weight reads. Source: §3.6.

    With C = len(S) and W (O, C/g, K...), row o lies in group o // (O/g) and its channel i is
    j = (C/g) (o // (O/g)) + i.
    """
    W, norms = _float64(W), np.sqrt(_float64(S))
    outputs, group_inputs = W.shape[:2]
    groups = norms.size // group_inputs
    if groups * group_inputs != norms.size or groups == 0 or outputs % groups:
        raise ValueError(f"{norms.size} channels do not feed weights of shape {W.shape}")
    by_row = norms.reshape(groups, group_inputs).repeat(outputs // groups, axis=0)
    return np.abs(W) * by_row.reshape(outputs, group_inputs, *([1] * (W.ndim - 2)))


def wanda_mask(W: ArrayLike, S: ArrayLike, sparsity: float) -> FloatArray:
    """0 at the int(n s) smallest metrics of each ranking group and at weights of exactly 0, else 1.

    One group for a dense layer, one per output row for a convolution; of equal metrics the lower
    index is dropped, which a stable ascending sort does. Source: §3.6.
    """
    W = _float64(W)
    metric = wanda_metric(W, S)
    groups = metric.reshape(1, -1) if W.ndim == 2 else metric.reshape(W.shape[0], -1)
    mask = np.ones_like(groups)
    for row, scores in zip(mask, groups, strict=True):
        row[np.argsort(scores, kind="stable")[: int(scores.size * sparsity)]] = 0.0
    return np.where(W != 0.0, mask.reshape(W.shape), 0.0)


def wanda_mask_count(W: ArrayLike, S: ArrayLike, prune_count: int) -> FloatArray:
    """0 at exactly `prune_count` smallest metrics of the whole layer, else 1. Ties as in `topk_mask`.

    Weights of 0 are not masked beyond the count. Source: metric of §3.6, exact count of §11.1.
    """
    metric = wanda_metric(W, S)
    return topk_mask(metric, metric.size - prune_count)


def wanda_nm_mask(W: ArrayLike, S: ArrayLike, keep_n: int, m: int) -> FloatArray:
    """1 at the `keep_n` largest metrics of each m consecutive weights. Ties as in `topk_mask`. Source: §3.6."""
    return nm_mask(wanda_metric(W, S), keep_n, m)


# Modified differential method of multipliers (§3.7)


def mdmm_l0(W: ArrayLike, eps: float, l0_mode: str) -> float:
    """Zero fraction: coarse mean 1[|w| <= eps], smooth mean exp(-100 w^2). Source: §3.7."""
    W = _float64(W)
    zero = {"coarse": np.abs(W) <= eps, "smooth": np.exp(-100.0 * W**2)}[l0_mode]
    return float(np.mean(zero))


def mdmm_metric_unstructured(
    W: ArrayLike, eps: float, target_sparsity: float, l0_mode: str = "coarse", scale_mode: str = "mean"
) -> float:
    """(ts^2 - l0^2) sum|w|, divided by n in scale mode mean. Source: §3.7."""
    size = np.abs(_float64(W))
    l1 = float({"mean": size.mean(), "sum": size.sum()}[scale_mode])
    return (target_sparsity**2 - mdmm_l0(W, eps, l0_mode) ** 2) * l1


def mdmm_metric_unstructured_grad(
    W: ArrayLike, eps: float, target_sparsity: float, l0_mode: str = "coarse", scale_mode: str = "mean"
) -> FloatArray:
    """d metric / dW = (ts^2 - l0^2) dl1/dw - 2 l0 l1 dl0/dw, the metric's own gradient.

    dl1/dw = sign(w) (/n if mean); dl0/dw = 0 if coarse, -200 w exp(-100 w^2)/n if smooth.
    Source: derivative of §3.7.
    """
    W = _float64(W)
    count = {"mean": W.size, "sum": 1}[scale_mode]
    l0, l1 = mdmm_l0(W, eps, l0_mode), np.abs(W).sum() / count
    dl0 = -200.0 * W * np.exp(-100.0 * W**2) / W.size if l0_mode == "smooth" else np.zeros_like(W)
    return _float64((target_sparsity**2 - l0**2) * np.sign(W) / count - 2.0 * l0 * l1 * dl0)


def _blocks(W: FloatArray, length: int) -> FloatArray:
    """(blocks, length): each output row cut into runs of consecutive inputs, the last filled with zeros."""
    rows = W.reshape(W.shape[0], -1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % length))).reshape(-1, length)


def _unblocked(blocks: FloatArray, W: FloatArray) -> FloatArray:
    """The inverse of `_blocks`, in W's shape."""
    return blocks.reshape(W.shape[0], -1)[:, : W[0].size].reshape(W.shape)


def mdmm_metric_structured(W: ArrayLike, rf: int, eps: float) -> float:
    """Share of groups of rf consecutive inputs of one output whose L2 norm is <= eps. Source: §3.7.

    Rows are filled up with zeros to a multiple of rf. Has no gradient.
    """
    norms = np.sqrt((_blocks(_float64(W), rf) ** 2).sum(axis=1))
    return float((norms <= eps).mean())


def mdmm_metric_structured_smooth(W: ArrayLike, rf: int) -> float:
    """Mean of exp(-100 norm^2) over the groups of `mdmm_metric_structured`. Source: smooth variant, §3.8."""
    return float(np.exp(-100.0 * (_blocks(_float64(W), rf) ** 2).sum(axis=1)).mean())


def mdmm_metric_structured_smooth_grad(W: ArrayLike, rf: int) -> FloatArray:
    """d metric / dW = -200 w exp(-100 norm^2)/groups, the metric's own gradient."""
    W = _float64(W)
    blocks = _blocks(W, rf)
    closeness = np.exp(-100.0 * (blocks**2).sum(axis=1, keepdims=True))
    return _unblocked(-200.0 * blocks * closeness / len(blocks), W)


def mdmm_hard_mask(W: ArrayLike, eps: float) -> FloatArray:
    """1 where |w| > eps, else 0; fine-tuning uses W times this. Source: §3.7."""
    return _float64(np.abs(_float64(W)) > eps)


def mdmm_infeasibility(g: float, constraint: str, target: float) -> float:
    """|g - c| for Equality, max(g - c, 0) for LessThanOrEqual, max(c - g, 0) for GreaterThanOrEqual. Source: §3.7."""
    by_name: dict[str, Callable[[float], float]] = {
        "Equality": abs,
        "LessThanOrEqual": lambda d: max(d, 0.0),
        "GreaterThanOrEqual": lambda d: max(-d, 0.0),
    }
    return float(by_name[constraint](g - target))


def mdmm_infeasibility_grad(g: float, constraint: str, target: float) -> float:
    """dI/dg: sign(g - c), 1[g > c], -1[g < c]; 0 at g = c. Source: derivative of §3.7."""
    side = float(np.sign(g - target))
    return {"Equality": side, "LessThanOrEqual": max(side, 0.0), "GreaterThanOrEqual": min(side, 0.0)}[constraint]


def mdmm_penalty(infeasibility: float, lam: float, scale: float, damping: float) -> float:
    """P = scale (lam I + damping I^2/2). Source: §3.7."""
    return scale * (lam * infeasibility + damping * infeasibility**2 / 2.0)


def mdmm_penalty_grad(
    dmetric: ArrayLike, g: float, constraint: str, target: float, lam: float, scale: float, damping: float
) -> FloatArray:
    """dP/dW = scale (lam + damping I) dI/dg dg/dW for a metric of value g and gradient `dmetric`. Source: §3.7."""
    slope = mdmm_infeasibility_grad(g, constraint, target)
    return scale * (lam + damping * mdmm_infeasibility(g, constraint, target)) * slope * _float64(dmetric)


def mdmm_lambda_step(lam: float, prev: float, lr: float, scale: float) -> float:
    """lam + lr scale prev, prev the infeasibility of the forward before. Source: §3.7."""
    return lam + lr * scale * prev


def mdmm_forwards(
    metrics: Sequence[float], constraint: str, target: float, lr: float, scale: float, damping: float
) -> tuple[FloatArray, FloatArray]:
    """Return (penalties, lambdas) of len(metrics) training forwards, metrics[k] the g of forward k.

    From lambda 1 and prev 0, each forward steps lambda first and uses the new one. Source: §3.7.
    """
    lam, prev = 1.0, 0.0
    penalties, lambdas = [], []
    for g in metrics:
        lam = mdmm_lambda_step(lam, prev, lr, scale)
        prev = mdmm_infeasibility(g, constraint, target)
        penalties.append(mdmm_penalty(prev, lam, scale, damping))
        lambdas.append(lam)
    return _float64(penalties), _float64(lambdas)


# Hardware-aware metrics (§3.8)


def mdmm_fpga_columns(precision: int, target: str, bram_width: int) -> int:
    """Columns per block: 1 for DSP; for BRAM bram_width // precision, doubled width if it does not divide.

    Source: §3.8.
    """
    if target == "DSP":
        return 1
    if target != "BRAM":
        raise ValueError(f"target {target!r} is neither DSP nor BRAM")
    return (2 * bram_width if bram_width % precision else bram_width) // precision


def mdmm_metric_fpga(
    W: ArrayLike,
    rf: int,
    precision: int = 16,
    target: str = "DSP",
    bram_width: int = 36,
    eps: float = 1e-3,
    smooth: bool = False,
) -> float:
    """Share of zero blocks (L2 norm <= eps), or mean exp(-100 norm^2) over the blocks if smooth.

    Reading of §3.8: a column is a group of rf consecutive inputs of one output as in §3.7, and a
    block is c = `mdmm_fpga_columns` neighbouring columns of the same output, that is c rf
    consecutive inputs; no block spans two outputs, and a row is filled up with zeros to whole blocks.
    """
    block = rf * mdmm_fpga_columns(precision, target, bram_width)
    return mdmm_metric_structured_smooth(W, block) if smooth else mdmm_metric_structured(W, block, eps)


def mdmm_metric_fpga_grad(
    W: ArrayLike, rf: int, precision: int = 16, target: str = "DSP", bram_width: int = 36, smooth: bool = False
) -> FloatArray:
    """The gradient of `mdmm_metric_fpga` itself; zeros unless smooth. Source: derivative of §3.8."""
    if not smooth:
        return np.zeros_like(_float64(W))
    return mdmm_metric_structured_smooth_grad(W, rf * mdmm_fpga_columns(precision, target, bram_width))


def _kernels(W: FloatArray) -> FloatArray:
    if W.ndim < 3:
        raise ValueError(f"weights of shape {W.shape} have no kernels")
    return W.reshape(W.shape[0] * W.shape[1], -1)


def mdmm_patterns(W: ArrayLike, num_patterns: int, beta: float, eps: float = 1e-3) -> FloatArray:
    """The dominant binary patterns (patterns, kernel size), most frequent first.

    Reading of §3.8: a kernel is W[o, i] flattened and its pattern 1[|w| > eps]. Distinct patterns
    are ranked by how many kernels have them, first seen first where equal; the fewest that together
    hold at least beta of all kernels are dominant, but never more than num_patterns and never none.
    """
    binary = np.abs(_kernels(_float64(W))) > eps
    counts: dict[tuple[bool, ...], int] = {}
    for row in binary:
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    ranked = sorted(counts, key=lambda pattern: -counts[pattern])
    covered = np.cumsum([counts[pattern] for pattern in ranked])
    enough = 1 + int((covered < beta * len(binary)).sum())
    return _float64(ranked[: min(enough, num_patterns)])


def mdmm_pattern_distances(W: ArrayLike, patterns: ArrayLike, distance: str, eps: float = 1e-3) -> FloatArray:
    """Distance of each kernel (rows) to each pattern (columns), b = 1[|w| > eps] and pattern p.

    Reading of §3.8: hamming counts the places where b != p, valued_hamming sums |w| over them, and
    cosine is 1 - b.p/(|b| |p|) of the two binary vectors, 0 if both are all zero and 1 if one is.
    """
    kernels, patterns = _kernels(_float64(W)), _float64(patterns)
    binary = _float64(np.abs(kernels) > eps)
    differs = _float64(binary[:, np.newaxis] != patterns[np.newaxis])
    if distance == "hamming":
        return _float64(differs.sum(axis=2))
    if distance == "valued_hamming":
        return _float64((differs * np.abs(kernels)[:, np.newaxis]).sum(axis=2))
    if distance != "cosine":
        raise ValueError(f"distance {distance!r} is none of hamming, valued_hamming, cosine")
    lengths = np.sqrt(binary.sum(axis=1))[:, np.newaxis] * np.sqrt(patterns.sum(axis=1))
    similarity = np.divide(binary @ patterns.T, lengths, out=np.zeros_like(lengths), where=lengths > 0.0)
    return np.where(differs.any(axis=2), 1.0 - similarity, 0.0)


def mdmm_metric_pattern(
    W: ArrayLike, num_patterns: int = 16, beta: float = 0.75, distance: str = "hamming", eps: float = 1e-3
) -> float:
    """Mean over kernels of the distance to the nearest dominant pattern of W itself. Source: §3.8."""
    patterns = mdmm_patterns(W, num_patterns, beta, eps)
    return float(mdmm_pattern_distances(W, patterns, distance, eps).min(axis=1).mean())


def mdmm_nearest_pattern(
    W: ArrayLike, num_patterns: int = 16, beta: float = 0.75, distance: str = "hamming", eps: float = 1e-3
) -> FloatArray:
    """The nearest dominant pattern of each kernel as a mask in W's shape; of equally near ones the more frequent."""
    W = _float64(W)
    patterns = mdmm_patterns(W, num_patterns, beta, eps)
    nearest = mdmm_pattern_distances(W, patterns, distance, eps).argmin(axis=1)
    return _float64(patterns[nearest].reshape(W.shape))


def mdmm_metric_pattern_grad(
    W: ArrayLike, num_patterns: int = 16, beta: float = 0.75, distance: str = "hamming", eps: float = 1e-3
) -> FloatArray:
    """The gradient of `mdmm_metric_pattern` itself, its patterns and the nearest of them held.

    sign(w) 1[b != p]/kernels for valued_hamming, else zeros. Source: derivative of the reading above.
    """
    W = _float64(W)
    if distance != "valued_hamming":
        return np.zeros_like(W)
    differs = (np.abs(W) > eps) != mdmm_nearest_pattern(W, num_patterns, beta, distance, eps)
    return _float64(np.sign(W) * differs / len(_kernels(W)))


def mdmm_project_patterns(
    W: ArrayLike, num_patterns: int = 16, beta: float = 0.75, distance: str = "hamming", eps: float = 1e-3
) -> FloatArray:
    """Each kernel times its nearest dominant pattern. Source: §3.8, "finetune projects"."""
    return _float64(W) * mdmm_nearest_pattern(W, num_patterns, beta, distance, eps)


# p-norm decay (§1.6)


def pnorm_decay(theta: FloatArray, theta_old: FloatArray, lr: float, p: float, lambda_p: float) -> FloatArray:
    """theta X/(X + p lr lambda_p) with X = |theta_old|^(2-p), 0 < p <= 2; theta if lambda_p <= 0 or lr = 0.

    For p < 2 a parameter that was 0 before the step has X = 0, hence factor 0/(0 + c) = 0, and
    stays 0 whatever its gradient. For p = 2, X = 1 everywhere. Source: §1.6.
    """
    if not 0.0 < p <= 2.0:
        raise ValueError(f"p = {p} is not in (0, 2]")
    if lambda_p <= 0.0 or lr == 0.0:
        return theta
    x = np.abs(theta_old) ** (2.0 - p)
    return theta * x / (x + p * lr * lambda_p)


def padam_step(
    theta: FloatArray,
    grad: FloatArray,
    m: FloatArray,
    v: FloatArray,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    p: float = 1.0,
    lambda_p: float = 1e-2,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """One `adamw` step, then `pnorm_decay` by the parameters before it; returns (theta, m, v). Source: §1.6."""
    stepped, m, v = adamw(theta, grad, m, v, t, lr, beta1, beta2, eps, weight_decay)
    return pnorm_decay(stepped, theta, lr, p, lambda_p), m, v


def psgd_step(
    theta: FloatArray,
    grad: FloatArray,
    m: FloatArray,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    p: float = 1.0,
    lambda_p: float = 1e-2,
) -> tuple[FloatArray, FloatArray]:
    """One `sgd` step, then `pnorm_decay` by the parameters before it; returns (theta, m). Source: §1.6."""
    stepped, m = sgd(theta, grad, m, lr, momentum, nesterov, weight_decay)
    return pnorm_decay(stepped, theta, lr, p, lambda_p), m


# Distillation (§1.7): (value, gradient with respect to the student)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return _float64(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def kd_loss(
    student_logits: ArrayLike, teacher_logits: ArrayLike, labels: ArrayLike, temperature: float, alpha: float
) -> tuple[float, FloatArray]:
    """alpha T^2 KL(teacher || student) + (1 - alpha) CE, logits (N, C) and integer labels (N,).

    KL of softmax(logits/T), summed over classes, divided by N. CE of the student at T = 1, mean
    over the rows whose label is not -1, 0 if there is none. Gradient to the student's logits:
    alpha T (p_student^T - p_teacher^T)/N + (1 - alpha) (p_student - onehot)/rows with a label.
    Source: §1.7, ModelDistiller's kl_ce.
    """
    student, teacher, labels = _float64(student_logits), _float64(teacher_logits), np.asarray(labels)
    batch = len(student)
    log_student, log_teacher = _log_softmax(student / temperature), _log_softmax(teacher / temperature)
    divergence = float((np.exp(log_teacher) * (log_teacher - log_student)).sum()) / batch
    gradient = alpha * temperature * (np.exp(log_student) - np.exp(log_teacher)) / batch
    labelled = labels != -1
    entropy = 0.0
    if labelled.any():
        entropy, entropy_gradient = cross_entropy(student[labelled], labels[labelled])
        gradient[labelled] += (1.0 - alpha) * entropy_gradient
    return alpha * temperature**2 * divergence + (1.0 - alpha) * entropy, gradient


def layerwise_mse(student: ArrayLike, teacher: ArrayLike) -> tuple[float, FloatArray]:
    """Mean of (student - teacher)^2 over all elements of a layer's outputs. Source: §1.7, LayerwiseDistiller."""
    return mse(student, teacher)
