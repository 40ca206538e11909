"""One dense and one convolutional network in PyTorch, Keras and JAX, from the same arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


def torch_mlp(arrays: Arrays) -> Any:
    """16-64-32-5, ReLU between."""
    from torch import nn

    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5), nn.Softmax(-1))
    return _filled(model, {f"{2 * n}.{part}": arrays[f"fc{n}.{part}"] for n in range(3) for part in ("weight", "bias")})


def keras_mlp(arrays: Arrays) -> Any:
    """The same; Keras stores dense weights inputs first."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16,), name="x"),
            layers.Dense(64, activation="relu"),
            layers.Dense(32, activation="relu"),
            layers.Dense(5, activation="softmax"),
        ]
    )
    model.set_weights([part for n in range(3) for part in (arrays[f"fc{n}.weight"].T, arrays[f"fc{n}.bias"])])
    return model


def jax_mlp(arrays: Arrays) -> Callable[[Any], Any]:
    """The same as a function."""
    import jax

    def network(x: Any) -> Any:
        for n in range(2):
            x = jax.nn.relu(x @ arrays[f"fc{n}.weight"].T + arrays[f"fc{n}.bias"])
        return jax.nn.softmax(x @ arrays["fc2.weight"].T + arrays["fc2.bias"])

    return network


def torch_cnn(arrays: Arrays) -> Any:
    """Images [2, 8, 8] through a convolution, ReLU, a second with a stride, ReLU, and a dense layer."""
    from torch import nn

    convolutions = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2, stride=2), nn.ReLU()
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 5))
    places = {"0": "conv0", "2": "conv1", "5": "fc"}
    return _filled(
        model, {f"{k}.{part}": arrays[f"{v}.{part}"] for k, v in places.items() for part in ("weight", "bias")}
    )


def keras_cnn(arrays: Arrays) -> Any:
    """The same; Keras stores convolutions' weights [height, width, in, out]."""
    import keras

    layers = keras.layers
    options = {"activation": "relu", "data_format": "channels_first"}
    model = keras.Sequential(
        [
            keras.Input((2, 8, 8), name="x"),
            layers.Conv2D(4, 3, padding="same", **options),
            layers.Conv2D(4, 2, strides=2, **options),
            layers.Flatten(data_format="channels_last"),
            layers.Dense(5),
        ]
    )
    kernels = [
        part for n in range(2) for part in (arrays[f"conv{n}.weight"].transpose(2, 3, 1, 0), arrays[f"conv{n}.bias"])
    ]
    model.set_weights([*kernels, arrays["fc.weight"].T, arrays["fc.bias"]])
    return model


def jax_cnn(arrays: Arrays) -> Callable[[Any], Any]:
    """The same as a function."""
    import jax

    def network(x: Any) -> Any:
        for n, (stride, padding) in enumerate([((1, 1), "SAME"), ((2, 2), "VALID")]):
            x = jax.lax.conv_general_dilated(x, arrays[f"conv{n}.weight"], stride, padding)
            x = jax.nn.relu(x + arrays[f"conv{n}.bias"].reshape(1, -1, 1, 1))
        return x.reshape(x.shape[0], -1) @ arrays["fc.weight"].T + arrays["fc.bias"]

    return network


def _filled(model: Any, arrays: Arrays) -> Any:
    import torch

    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model
