"""The jet tagger in HGQ2 on JAX, and its training step as a pure function. Runs under the peers' Python.

Import it before jax, keras or numpy: it fixes the backend and one thread. XLA's Eigen pool is switched off and the
process is bound to one core, so that neither XLA's own threads nor the runtime's run beside each other.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
    os.environ[_name] = "1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(os.environ.get("PEER_CORE", max(os.sched_getaffinity(0))))})

from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from importlib.metadata import version  # noqa: E402
from itertools import pairwise  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from hgq.config import QuantizerConfig  # noqa: E402
from hgq.layers import QDense  # noqa: E402

WIDTHS = (16, 64, 32, 32, 5)
PACKAGES = ("hgq2", "quantizers", "keras", "jax", "jaxlib", "numpy")
State = tuple[list[jax.Array], list[jax.Array], list[jax.Array]]
"""Values of the trainable, the other and the optimizer's variables."""


@dataclass(frozen=True)
class Bits:
    """First values of the quantizers; None is HGQ2's default.

    Args:
        weight: bits without sign of each weight and each bias.
        weight_integer: integer bits of each weight.
        data: fractional bits of each element that enters a layer.
        data_integer: integer bits of the same, which follow the data.
        saturate_input: the jets' quantizer saturates with trained integer bits, instead of wrapping.
        regularizer: strength of the L1 on the bits themselves.
    """

    weight: float | None = None
    weight_integer: float | None = None
    data: float | None = None
    data_integer: float | None = None
    saturate_input: bool = False
    regularizer: float | None = None

    def quantizer(self, place: str, **more: Any) -> QuantizerConfig:
        """HGQ2's configuration for weight, bias or datalane."""
        if place == "datalane":
            found = {"f0": self.data, "i0": self.data_integer}
        else:
            found = {"b0": self.weight, "i0": self.weight_integer if place == "weight" else None}
        found = {name: value for name, value in found.items() if value is not None} | more
        if self.regularizer is not None:
            from hgq.regularizers import MonoL1

            own = MonoL1(self.regularizer) if self.regularizer else None
            found |= dict.fromkeys(("ir", "fr") if place == "datalane" else ("br",), own)
        return QuantizerConfig("default", place, **found)


def build(bits: Bits, *, beta: float = 1e-6, seed: int = 0) -> keras.Model:
    """The network from jets to logits: bits per weight, per bias and per element of each layer's input."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((WIDTHS[0],))
    for place, (_, units) in enumerate(pairwise(WIDTHS), start=1):
        saturate = {"overflow_mode": "SAT"} if place == 1 and bits.saturate_input else {}
        x = QDense(
            units,
            activation="relu" if place < len(WIDTHS) - 1 else None,
            kq_conf=bits.quantizer("weight"),
            bq_conf=bits.quantizer("bias"),
            iq_conf=bits.quantizer("datalane", **saturate),
            beta0=beta,
            name=f"fc{place}",
        )(x)
    return keras.Model(inputs, x)


def adam(model: keras.Model, rate: float) -> keras.Optimizer:
    """Adam with Keras's other defaults, built for the model."""
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(model.trainable_variables)
    return optimizer


def state_of(model: keras.Model, optimizer: keras.Optimizer) -> State:
    """Copies of all values, which a step may take over."""
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    return tuple([jnp.array(variable.value) for variable in group] for group in groups)  # type: ignore[return-value]


def pure_step(
    model: keras.Model, optimizer: keras.Optimizer
) -> Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """A pure function from state, inputs and labels to the next state and the loss."""

    def loss_of(trainable: list[jax.Array], other: list[jax.Array], x: jax.Array, y: jax.Array) -> Any:
        logits, other, losses = model.stateless_call(trainable, other, x, training=True, return_losses=True)
        chosen = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen) + sum(losses), other

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
        trainable, other, slots = state
        (loss, other), gradients = gradient(trainable, other, x, y)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, other, slots), loss

    return step


def versions() -> dict[str, str]:
    """What was measured."""
    return {name: version(name) for name in PACKAGES}


def threads() -> dict[str, Any]:
    """How one thread is ensured."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"cores": cores, "XLA_FLAGS": os.environ["XLA_FLAGS"]}


def as_numpy(value: Any) -> np.ndarray:
    """A Keras or JAX value as an array."""
    return np.asarray(keras.ops.convert_to_numpy(value))
