"""Float64 NumPy reference for quantizers, masks, penalties, losses, optimizers and EBOPs.

Written from formulas, never from the implementation it judges: the design notes
(`methods.md`, by section), the QONNX operator pages, and the PyTorch documentation.
Plain and slow on purpose. Every result is float64.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def _float64(x: ArrayLike) -> FloatArray:
    return np.asarray(x, dtype=np.float64)


def _sum_to_shape(gradient: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Sum `gradient` over the axes along which `shape` was broadcast to it."""
    added = gradient.ndim - len(shape)
    stretched = tuple(
        added + axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[added + axis] != 1
    )
    return _float64(gradient.sum(axis=(*range(added), *stretched)).reshape(shape))


def sigmoid(x: ArrayLike) -> FloatArray:
    """1 / (1 + exp(-x)), without overflow for any finite x."""
    x = _float64(x)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


# Rounding to integers. The half modes add or subtract 0.5 before floor or ceil, as qonnx does,
# so the float just below 0.5 rounds to 1 under HALF_UP.

ROUNDING: dict[str, Callable[[FloatArray], FloatArray]] = {
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "DOWN": lambda x: np.sign(x) * np.floor(np.abs(x)),
    "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
    "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5),
}
ROUNDING["ROUND"] = ROUNDING["HALF_EVEN"]

FIXED_POINT_ROUNDING: dict[str, Callable[[FloatArray], FloatArray]] = {
    "TRN": np.floor,
    "RND": lambda x: np.floor(x + 0.5),
    "RND_CONV": np.rint,
    "TRN_ZERO": lambda x: np.sign(x) * np.floor(np.abs(x)),
    "RND_ZERO": lambda x: -np.sign(x) * np.floor(-np.abs(x) + 0.5),
    "RND_MIN_INF": lambda x: -np.floor(-x + 0.5),
    "RND_INF": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
}


def integer_range(bitwidth: ArrayLike, signed: bool | int, narrow: bool | int) -> tuple[FloatArray, FloatArray]:
    """Return the (lowest, highest) integer of a width.

    Signed: [-2^(b-1) + narrow, 2^(b-1) - 1]. Unsigned: [0, 2^b - 1 - narrow].
    Source: QONNX IntQuant page, `min_int` and `max_int`.
    """
    bits = _float64(bitwidth)
    if signed:
        half = np.exp2(bits - 1.0)
        return -half + bool(narrow), half - 1.0
    return np.zeros_like(bits), np.exp2(bits) - 1.0 - bool(narrow)


def quant(
    x: ArrayLike,
    scale: ArrayLike,
    zeropt: ArrayLike,
    bitwidth: ArrayLike,
    signed: bool | int,
    narrow: bool | int,
    rounding_mode: str,
) -> FloatArray:
    """Quantize as a QONNX Quant node: (R(clip(x/scale + zeropt, low, high)) - zeropt) * scale.

    Where signed and 1 bit wide the integer is +1 if x/scale + zeropt >= 0, else -1, whatever
    `narrow` and the rounding mode say. All arrays broadcast, bit widths too (the qonnx executor
    takes only one bit width per call). Raises ValueError for a mode that qonnx lacks, which
    includes ROUND_TO_ZERO (its name there is DOWN). A float32 evaluation agrees exactly where
    x/scale + zeropt is exact in float32, e.g. power-of-two scales with zero point 0.
    Source: QONNX IntQuant page; modes and the 1-bit case measured on qonnx 1.0.0.
    """
    mode = rounding_mode.upper()
    if mode not in ROUNDING:
        raise ValueError(f"rounding mode {rounding_mode!r} is none of {', '.join(ROUNDING)}")
    scale, zeropt, bitwidth = _float64(scale), _float64(zeropt), _float64(bitwidth)
    low, high = integer_range(bitwidth, signed, narrow)
    shifted = _float64(x) / scale + zeropt
    integer = ROUNDING[mode](np.clip(shifted, low, high))
    if signed:
        integer = np.where(bitwidth == 1.0, np.where(shifted >= 0.0, 1.0, -1.0), integer)
    return _float64((integer - zeropt) * scale)


def quant_grad(
    dy: ArrayLike,
    x: ArrayLike,
    scale: ArrayLike,
    zeropt: ArrayLike,
    bitwidth: ArrayLike,
    signed: bool | int,
    narrow: bool | int,
) -> FloatArray:
    """Return the straight-through gradient of `quant` with respect to x, in the shape of x.

    dx = dy where low <= x/scale + zeropt <= high (bounds included), else 0; where signed and
    1 bit wide, dy where |x/scale + zeropt| <= 1. Source: §4.2, column dy/dx.
    """
    x, bitwidth = _float64(x), _float64(bitwidth)
    low, high = integer_range(bitwidth, signed, narrow)
    shifted = x / _float64(scale) + _float64(zeropt)
    passes = (low <= shifted) & (shifted <= high)
    if signed:
        passes = np.where(bitwidth == 1.0, np.abs(shifted) <= 1.0, passes)
    return _sum_to_shape(np.where(passes, _float64(dy), 0.0), x.shape)


def fixed_point(x: ArrayLike, k: ArrayLike, i: ArrayLike, f: ArrayLike, rounding: str) -> FloatArray:
    """Saturating fixed point: R(clip(x, -k 2^i, 2^i - 2^-f) 2^f) 2^-f, with i := max(i, -f).

    k sign bits (0 or 1), i integer bits without the sign, f fractional bits. Equals `quant` at
    scale 2^-f, zero point 0, width k+i+f >= 2 (or unsigned), signed=k, for TRN = FLOOR,
    RND_CONV = ROUND, TRN_ZERO = DOWN, RND_ZERO = HALF_DOWN, RND_INF = HALF_UP; QONNX has no name
    for RND and RND_MIN_INF. One bit signed differs: {-1, 0} here, {-1, 1} in QONNX. Source: §4.1.
    """
    sign_bits, f = _float64(k), np.asarray(f, dtype=np.int64)
    i = np.maximum(np.asarray(i, dtype=np.int64), -f)
    top = np.ldexp(1.0, i)
    clipped = np.clip(_float64(x), -sign_bits * top, top - np.ldexp(1.0, -f))
    return _float64(np.ldexp(FIXED_POINT_ROUNDING[rounding](np.ldexp(clipped, f)), -f))


# Continuous sparsification (§3.3)


def cs_mask(s: ArrayLike, beta: float, s0: float) -> FloatArray:
    """Soft mask M = sigmoid(beta s) / sigmoid(s0). Source: §3.3."""
    return sigmoid(beta * _float64(s)) / sigmoid(s0)


def cs_mask_grad(dy: ArrayLike, s: ArrayLike, beta: float, s0: float) -> FloatArray:
    """ds = dy beta sigmoid(beta s) sigmoid(-beta s) / sigmoid(s0). Source: derivative of §3.3."""
    scaled = beta * _float64(s)
    return _float64(dy) * beta * sigmoid(scaled) * sigmoid(-scaled) / sigmoid(s0)


def cs_hard_mask(s: ArrayLike) -> FloatArray:
    """1 where s > 0, strictly, else 0. Source: §3.3."""
    return _float64(_float64(s) > 0.0)


def cs_penalty(mask: ArrayLike, threshold_decay: float) -> float:
    """threshold_decay * sum |M|. Source: §3.3."""
    return threshold_decay * float(np.abs(_float64(mask)).sum())


def cs_penalty_grad_s(s: ArrayLike, beta: float, s0: float, threshold_decay: float) -> FloatArray:
    """threshold_decay * dM/ds: M is never negative, so |M| = M. Source: derivative of §3.3."""
    return cs_mask_grad(threshold_decay, s, beta, s0)


def cs_beta(epochs_done: int, epochs: int, final_temp: float) -> float:
    """beta = final_temp^(done / (epochs - 1)), final_temp^done if epochs <= 1. Source: §3.3.

    1 at the start of a round; reaches final_temp one epoch before its end.
    """
    return float(np.power(float(final_temp), epochs_done / max(epochs - 1, 1)))


def cs_end_of_round(s: ArrayLike, beta: float, s0: float) -> FloatArray:
    """Return s for the next round, min(beta s, s0); beta itself restarts at 1. Source: §3.3."""
    return np.minimum(beta * _float64(s), s0)


# Losses: (value, gradient with respect to the first argument)


def cross_entropy(logits: ArrayLike, labels: ArrayLike, smoothing: float = 0.0) -> tuple[float, FloatArray]:
    """Softmax cross entropy of logits (N, C) and integer labels (N,), mean over N.

    -sum_c t_c log p_c with t = (1 - smoothing) onehot + smoothing / C; gradient (p - t) / N.
    Source: torch.nn.CrossEntropyLoss.
    """
    logits, labels = _float64(logits), np.asarray(labels)
    batch, classes = logits.shape
    target = np.full((batch, classes), smoothing / classes)
    target[np.arange(batch), labels] += 1.0 - smoothing
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(target * log_p).sum() / batch), (np.exp(log_p) - target) / batch


def binary_cross_entropy_with_logits(logits: ArrayLike, targets: ArrayLike) -> tuple[float, FloatArray]:
    """Mean of max(z, 0) - z t + log(1 + exp(-|z|)) over all elements; gradient (sigmoid(z) - t) / n.

    Source: torch.nn.BCEWithLogitsLoss.
    """
    z, t = _same_shape(logits, targets)
    value = np.maximum(z, 0.0) - z * t + np.log1p(np.exp(-np.abs(z)))
    return float(value.mean()), (sigmoid(z) - t) / z.size


def mse(pred: ArrayLike, target: ArrayLike) -> tuple[float, FloatArray]:
    """Mean of (p - t)^2 over all elements; gradient 2 (p - t) / n. Source: torch.nn.MSELoss."""
    p, t = _same_shape(pred, target)
    return float(((p - t) ** 2).mean()), 2.0 * (p - t) / p.size


def l1(pred: ArrayLike, target: ArrayLike) -> tuple[float, FloatArray]:
    """Mean of |p - t| over all elements; gradient sign(p - t) / n, 0 at 0. Source: torch.nn.L1Loss."""
    p, t = _same_shape(pred, target)
    return float(np.abs(p - t).mean()), np.sign(p - t) / p.size


def huber(pred: ArrayLike, target: ArrayLike, delta: float = 1.0) -> tuple[float, FloatArray]:
    """Mean over all elements of d^2/2 if |d| <= delta, else delta (|d| - delta/2), d = p - t.

    Gradient clip(d, -delta, delta) / n. Source: torch.nn.HuberLoss.
    """
    p, t = _same_shape(pred, target)
    d = p - t
    value = np.where(np.abs(d) <= delta, 0.5 * d**2, delta * (np.abs(d) - 0.5 * delta))
    return float(value.mean()), np.clip(d, -delta, delta) / p.size


def gaussian(pred: ArrayLike, target: ArrayLike) -> tuple[float, FloatArray]:
    """Mean over the rows of -log N(t; m, C) for predictions (N, k + k (k + 1) / 2) and targets (N, k).

    C is the inverse of L' L; the prediction is m and the lower triangle of L row by row, log L_ii on its diagonal. The
    density comes from C, its determinant and its inverse, and the gradient from central differences.
    """
    p, t = _float64(pred), _float64(target)
    k = t.shape[-1]
    rows, columns = np.tril_indices(k)

    def value(p: FloatArray) -> float:
        factor = np.zeros((len(p), k, k))
        factor[:, rows, columns] = np.where(rows == columns, np.exp(p[:, k:]), p[:, k:])
        covariance = np.linalg.inv(factor.transpose(0, 2, 1) @ factor)
        error = t - p[:, :k]
        distance = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)
        logarithms = np.log(np.linalg.det(covariance))
        return float(0.5 * (distance + logarithms + k * np.log(2 * np.pi)).mean())

    return value(p), finite_difference(value, p, 1e-5)


def _same_shape(a: ArrayLike, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    a, b = _float64(a), _float64(b)
    if a.shape != b.shape:
        raise ValueError(f"expected equal shapes, got {a.shape} and {b.shape}")
    return a, b


# Optimizers on flat vectors: state in, (parameters, *state) out; t is the 1-based step


def adam(
    theta: FloatArray,
    grad: FloatArray,
    m: FloatArray,
    v: FloatArray,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """One step of Adam with weight decay added to the gradient; returns (theta, m, v).

    g = grad + weight_decay theta; m = beta1 m + (1-beta1) g; v = beta2 v + (1-beta2) g^2;
    theta -= lr m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps). Source: torch.optim.Adam.
    """
    grad = grad + weight_decay * theta
    m = beta1 * m + (1.0 - beta1) * grad
    v = beta2 * v + (1.0 - beta2) * grad**2
    corrected_m, corrected_v = m / (1.0 - beta1**t), v / (1.0 - beta2**t)
    return theta - lr * corrected_m / (np.sqrt(corrected_v) + eps), m, v


def adamw(
    theta: FloatArray,
    grad: FloatArray,
    m: FloatArray,
    v: FloatArray,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """One step of Adam after theta *= 1 - lr weight_decay; returns (theta, m, v).

    Source: torch.optim.AdamW.
    """
    decayed = theta * (1.0 - lr * weight_decay)
    return adam(decayed, grad, m, v, t, lr, beta1, beta2, eps, weight_decay=0.0)


def sgd(
    theta: FloatArray,
    grad: FloatArray,
    m: FloatArray,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[FloatArray, FloatArray]:
    """One step of SGD with momentum, dampening 0, m starting at zero; returns (theta, m).

    g = grad + weight_decay theta; m = momentum m + g; theta -= lr (g + momentum m if nesterov
    else m). Source: torch.optim.SGD.
    """
    grad = grad + weight_decay * theta
    m = momentum * m + grad
    return theta - lr * (grad + momentum * m if nesterov else m), m


# Effective bit operations (§4.6), weights output axis first, only non-zero weights counted


def dense_ebops(
    bits_in: ArrayLike,
    bits_w: ArrayLike,
    bits_b: ArrayLike,
    effective_weight: ArrayLike,
    positions: int = 1,
) -> float:
    """positions * (sum_{o,j} B_in[j] B_w[o,j] 1[W[o,j] != 0] + sum_o B_b[o]). Source: §4.6.

    `effective_weight` is (O, I), masked and quantized. `bits_in` broadcasts to (I,), `bits_w` to
    (O, I), `bits_b` to (O,), 0 without a bias. Published checks, 16 -> 4, 7-bit input, 8-bit
    weights and biases, then the same on a (5, 16) input:

    >>> dense_ebops(7, 8, 8, np.ones((4, 16)))
    3616.0
    >>> dense_ebops(7, 8, 8, np.ones((4, 16)), positions=5)
    18080.0
    """
    weight = _float64(effective_weight)
    products = _float64(bits_in) * _float64(bits_w) * (weight != 0.0)
    biases = np.broadcast_to(_float64(bits_b), weight.shape[:1])
    return float(positions * (products.sum() + biases.sum()))


def conv2d_ebops(
    bits_in: ArrayLike,
    bits_w: ArrayLike,
    bits_b: ArrayLike,
    effective_weight: ArrayLike,
    output_pixels: int,
    groups: int = 1,
) -> float:
    """sum_{o,c,kh,kw} B_in[c] B_w 1[W != 0] + output_pixels sum_o B_b[o]. Source: §4.6.

    One multiplier per weight, whatever the image size. `effective_weight` is (O, C/groups, Kh, Kw).
    `bits_in` is a scalar, (C,), or (C, H, W), of which each channel's largest counts. The bias
    counts once per output pixel, where §4.6 reports input elements as upstream's defect; hence of
    the published 3 -> 4, 3x3, 8x8 check only the weight term holds:

    >>> conv2d_ebops(7, 8, 0, np.ones((4, 3, 3, 3)), output_pixels=64)
    6048.0
    """
    weight = _float64(effective_weight)
    outputs, group_inputs = weight.shape[:2]
    channel_bits = _float64(bits_in)
    if channel_bits.ndim == 3:
        channel_bits = channel_bits.max(axis=(1, 2))
    by_group = np.broadcast_to(channel_bits, groups * group_inputs).reshape(groups, group_inputs)
    by_output = by_group.repeat(outputs // groups, axis=0)[:, :, np.newaxis, np.newaxis]
    products = by_output * _float64(bits_w) * (weight != 0.0)
    biases = np.broadcast_to(_float64(bits_b), (outputs,))
    return float(products.sum() + output_pixels * biases.sum())


def finite_difference(f: Callable[[FloatArray], float], x: ArrayLike, eps: float = 1e-6) -> FloatArray:
    """Gradient of a scalar function by central differences, (f(x + eps) - f(x - eps)) / 2 eps."""
    x = _float64(x)
    gradient = np.empty_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = eps
        gradient[place] = (f(x + step) - f(x - step)) / (2.0 * eps)
    return gradient
