"""Optimizers on one flat parameter vector, with PyTorch's definitions.

`rate` multiplies the learning rate element by element: 0 freezes, so groups need no graph of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.errors import PassError
from pqc.functions.operator import OPTIMIZER, Operator
from pqc.options import check_options, field_types, nearest, read


@script(OPTIMIZER, default_opset=op)
def Adam(
    theta: FLOAT,
    gradient: FLOAT,
    rate: FLOAT,
    learning_rate: FLOAT,
    decay: FLOAT,
    correction1: FLOAT,
    correction2: FLOAT,
    first: FLOAT,
    second: FLOAT,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decays: int = 0,
    decoupled: int = 0,
):
    """theta - lr/c1 * m / (sqrt(v/c2) + eps), the decay added to the gradient or, decoupled, taken off theta.

    What is scalar is computed as a scalar first: the vectors are as long as all parameters together. Moments lose what
    is smaller than 1e-37: those of parameters without gradients would linger as denormal numbers, which are slow.
    """
    b1 = op.Constant(value_float=beta1)
    b2 = op.Constant(value_float=beta2)
    if op.Constant(value_int=decays) == 0:
        g = op.Identity(gradient)
        start = op.Identity(theta)
    else:
        if op.Constant(value_int=decoupled) == 1:
            g = op.Identity(gradient)
            start = theta - theta * (rate * (learning_rate * decay))
        else:
            g = gradient + theta * decay
            start = op.Identity(theta)
    m = (b1 * first + (1.0 - b1) * g + 1.0e-30) - 1.0e-30
    v = (b2 * second + (1.0 - b2) * (g * g) + 1.0e-30) - 1.0e-30
    root = op.Sqrt(v) * (1.0 / op.Sqrt(correction2)) + op.Constant(value_float=epsilon)
    return start - (rate * (learning_rate / correction1)) * (m / root), m, v


@script(OPTIMIZER, default_opset=op)
def SGD(
    theta: FLOAT,
    gradient: FLOAT,
    rate: FLOAT,
    learning_rate: FLOAT,
    decay: FLOAT,
    first: FLOAT,
    momentum: float = 0.0,
    nesterov: int = 0,
    decays: int = 0,
):
    """theta - lr * m with m = momentum m + g; Nesterov's look-ahead uses g + momentum m."""
    mu = op.Constant(value_float=momentum)
    if op.Constant(value_int=decays) == 0:
        g = op.Identity(gradient)
    else:
        g = gradient + theta * decay
    m = mu * first + g
    if op.Constant(value_int=nesterov) == 1:
        direction = g + mu * m
    else:
        direction = op.Identity(m)
    return theta - (learning_rate * rate) * direction, m


@script(OPTIMIZER, default_opset=op)
def Proximal(theta: FLOAT, moved: FLOAT, rate: FLOAT, learning_rate: FLOAT, decay: FLOAT, p: float = 1.0) -> FLOAT:
    """moved * X / (X + p lr decay) with X = |theta|^(2 - p): the p-norm's pull; a weight at zero stays there.

    Written as 1 - c / (X + c), so that nothing moves where the decay is zero, whatever X is.
    """
    exponent = op.Constant(value_float=p)
    pull = (exponent * learning_rate) * (rate * decay)
    x = op.Pow(op.Abs(theta), 2.0 - exponent)
    return moved - moved * (pull / (x + pull + op.Constant(value_float=1e-38)))


@script(OPTIMIZER, default_opset=op)
def ClipByNorm(gradient: FLOAT, bound: float = 1.0) -> FLOAT:
    """gradient * min(1, bound / |gradient|) with the Euclidean norm over all parameters."""
    norm = op.Sqrt(op.ReduceSumSquare(gradient, keepdims=0))
    return gradient * op.Min(1.0, op.Constant(value_float=bound) / (norm + 1e-12))


CLIP_BY_NORM = Operator(ClipByNorm)


@dataclass(frozen=True)
class AdamOptimizer:
    """Adam (Kingma & Ba, 2015), with L2 decay in the gradient as in `torch.optim.Adam`.

    Args:
        beta1: how much of the gradient's mean stays in a step.
        beta2: how much of its mean square stays.
        epsilon: keeps the quotient finite.
        weight_decay: the strength of the L2 decay.
    """

    operator: ClassVar[Operator] = Operator(Adam)
    slots: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    decayed: ClassVar[tuple[str, ...] | None] = None
    """The roles that the decay pulls; None: all."""
    pull: ClassVar[Operator | None] = None
    """What moves the parameters once more after the step; it has the attribute `p`."""
    decoupled: ClassVar[int] = 0

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    @property
    def decay(self) -> float:
        """What pulls every parameter, where there are no decays of their own."""
        return self.weight_decay

    def attributes(self) -> dict[str, float | int]:
        """The node's attributes."""
        return {
            "beta1": self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
            "decoupled": self.decoupled,
            "decays": int(self.weight_decay != 0),
        }

    def scalars(self, step: int) -> dict[str, float]:
        """The bias corrections 1 - beta^step at the 1-based `step`, from the float32 betas that the graph holds."""
        beta1, beta2 = float(np.float32(self.beta1)), float(np.float32(self.beta2))
        return {"correction1": 1.0 - beta1**step, "correction2": 1.0 - beta2**step}


@dataclass(frozen=True)
class AdamWOptimizer(AdamOptimizer):
    """Adam with decoupled decay (Loshchilov & Hutter, 2019), as in `torch.optim.AdamW`."""

    decoupled: ClassVar[int] = 1

    weight_decay: float = 0.01


@dataclass(frozen=True)
class SGDOptimizer:
    """Stochastic gradient descent with momentum, as in `torch.optim.SGD` without dampening.

    Args:
        momentum: how much of the last direction stays in a step.
        nesterov: look ahead by one step.
        weight_decay: the strength of the L2 decay.
    """

    operator: ClassVar[Operator] = Operator(SGD)
    slots: ClassVar[tuple[str, ...]] = ("first_moment",)
    decayed: ClassVar[tuple[str, ...] | None] = None
    pull: ClassVar[Operator | None] = None

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    @property
    def decay(self) -> float:
        """What pulls every parameter, where there are no decays of their own."""
        return self.weight_decay

    def attributes(self) -> dict[str, float | int]:
        """The node's attributes."""
        decays = int(self.weight_decay != 0)
        return {"momentum": self.momentum, "nesterov": int(self.nesterov), "decays": decays}

    def scalars(self, step: int) -> dict[str, float]:
        """None: the step number does not matter."""
        return {}


PULL = Operator(Proximal)


@dataclass(frozen=True)
class _PNorm:
    """What the optimizers with a p-norm's pull on the weights have in common (arXiv 2404.10824).

    Args:
        weight_decay: the step's own decay of all parameters, beside the pull.
        p: which norm: 2 is the usual decay, 1 a soft shrinkage, less is harder on small weights.
        lambda_p: the strength of the pull.
    """

    decayed: ClassVar[tuple[str, ...] | None] = ("weight",)
    pull: ClassVar[Operator | None] = PULL

    weight_decay: float = 0.0
    p: float = 1.0
    lambda_p: float = 0.01

    @property
    def decay(self) -> float:
        """The strength of the pull."""
        return self.lambda_p


@dataclass(frozen=True)
class PAdamOptimizer(_PNorm, AdamOptimizer):
    """AdamW, then the p-norm's pull on the weights (arXiv 2404.10824)."""

    decoupled: ClassVar[int] = 1


@dataclass(frozen=True)
class PSGDOptimizer(_PNorm, SGDOptimizer):
    """Stochastic gradient descent with momentum, then the p-norm's pull on the weights (arXiv 2404.10824)."""


Optimizer = AdamOptimizer | SGDOptimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": AdamOptimizer,
    "adamw": AdamWOptimizer,
    "sgd": SGDOptimizer,
    "padam": PAdamOptimizer,
    "psgd": PSGDOptimizer,
}


def make_optimizer(name: str, options: dict[str, str]) -> Optimizer:
    """The optimizer `name` with its options, given as text.

    Raises:
        PassError: no such optimizer or option, or a value that is not a number.
    """
    if name not in OPTIMIZERS:
        raise PassError(
            f"no optimizer '{name}'{nearest(name, OPTIMIZERS)}", hint=f"optimizers: {', '.join(OPTIMIZERS)}"
        )
    kind = OPTIMIZERS[name]
    check_options(f"optimizer '{name}'", options, [one.name for one in fields(kind)])
    try:
        kinds = field_types(kind)
        values: dict[str, Any] = {option: _value(text, kinds[option]) for option, text in options.items()}
        return kind(**values)
    except ValueError as error:
        raise PassError(f"optimizer '{name}': {error}", hint="its options are numbers") from error


def _value(text: str, kind: object) -> object:
    """An option's value; a flag may be a number too, as all options of a schedule are."""
    return bool(float(text)) if kind is bool and text not in ("true", "false") else read(text, kind)
