"""Train the float autoencoder on gluon and light-quark jets: `python -m pqc.models.autoencoder.export`."""

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from pqc import data
from pqc.models.exporting import descend, require_packages, steps, write
from pqc.workflows import anomaly

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
WIDTHS = (16, 32, 16, 3, 16, 32, 16)
NORMAL = (0, 1)


@click.command()
@click.option(
    "--data",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=HERE.parent / "jet_tagger/data",
    help="Folder of train.npz and test.npz  [default: the jet tagger's]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=HERE / "autoencoder.onnx",
    help="File to write  [default: the committed model]",
)
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True)
@click.option("--rate", type=float, default=3e-3, show_default=True, help="First learning rate.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def main(folder: Path, out: Path, epochs: int, batch: int, rate: float, seed: int) -> None:
    """Train the network in float32, print its errors and how well they tell anomalies, and export it."""
    require_packages()
    import torch

    # One thread and a fixed seed: the same machine and torch give the same weights.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    x, normal = load_split(folder / "train.npz")
    model = build_model()
    fit(model, x[normal], epochs=epochs, batch=batch, rate=rate)

    x, normal = load_split(folder / "test.npz")
    with torch.no_grad():
        output = model(x)
    error = torch.nn.functional.mse_loss(output[normal], x[normal])
    click.echo(f"test mean squared error {float(error):.4f} of {int(normal.sum())} normal jets")
    area = anomaly.area(output.numpy(), x.numpy(), ~normal.numpy())
    click.echo(f"test area under the curve {area:.4f} for {int((~normal).sum())} anomalies")
    export(model, out)
    click.echo(f"wrote {out}")


def load_split(path: Path) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the observables (N, 16) as float32, and which jets are normal (N,)."""
    import torch

    arrays = data.read(path)
    return torch.from_numpy(data.as_float(arrays["x"])), torch.from_numpy(np.isin(arrays["y"], NORMAL))


def build_model() -> "torch.nn.Sequential":
    """Return the untrained network from (N, 16) to (N, 16): dense layers, ReLU between them."""
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    half = len(WIDTHS) // 2
    for place, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        name = f"encoder{place + 1}" if place < half else f"decoder{place - half + 1}"
        if place:
            layers[f"relu{place}"] = nn.ReLU()
        layers[name] = nn.Linear(inputs, outputs)
    return nn.Sequential(layers)


def fit(model: "torch.nn.Sequential", x: "torch.Tensor", *, epochs: int, batch: int, rate: float) -> None:
    """Train in place: Adam, mean squared error, a cosine from `rate` to zero over all the steps."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps(len(x), epochs=epochs, batch=batch))
    loss = torch.nn.MSELoss()
    descend(
        model,
        lambda chosen: loss(model(x[chosen]), x[chosen]),
        len(x),
        epochs=epochs,
        batch=batch,
        optimizer=optimizer,
        schedule=schedule,
    )


def export(model: "torch.nn.Sequential", out: Path) -> None:
    """Write the network: `x` (batch, 16) to `reconstruction` (batch, 16)."""
    import torch

    write(model.eval(), torch.zeros(1, WIDTHS[0]), out, "reconstruction")


if __name__ == "__main__":
    main()
