"""Train the float jet tagger on the committed sample and export it to ONNX.

Run as `python -m pqc.models.jet_tagger.export`.
"""

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from pqc.models.exporting import descend, require_packages, steps, write

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
WIDTHS = (16, 64, 32, 32, 5)


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=HERE / "data",
    help="Folder of train.npz and test.npz  [default: the committed sample]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=HERE / "jet_tagger.onnx",
    help="File to write  [default: the committed model]",
)
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--rate", type=float, default=3e-3, show_default=True, help="First learning rate.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(data: Path, out: Path, epochs: int, batch: int, rate: float, seed: int) -> None:
    """Train the 16-64-32-32-5 network in float32, print its accuracies, and export it."""
    require_packages()
    import torch

    # One thread and a fixed seed: the same machine and torch give the same weights.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train, test = load_split(data / "train.npz"), load_split(data / "test.npz")
    model = build_model()
    fit(model, *train, epochs=epochs, batch=batch, rate=rate)

    for name, split in (("train", train), ("test", test)):
        click.echo(f"{name} accuracy {accuracy(model, *split):.2%} of {len(split[0])} jets")
    export(model, out)
    click.echo(f"wrote {out}")


def load_split(path: Path) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the standardized observables (N, 16) as float32 and the classes (N,) as int64."""
    import torch

    with np.load(path) as arrays:
        x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    return torch.from_numpy(x), torch.from_numpy(y)


def build_model() -> "torch.nn.Sequential":
    """Return the untrained network from (N, 16) to logits (N, 5): layers fc1 to fc4 and ReLU."""
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, (inputs, outputs) in enumerate(pairwise(WIDTHS), start=1):
        if place > 1:
            layers[f"relu{place - 1}"] = nn.ReLU()
        layers[f"fc{place}"] = nn.Linear(inputs, outputs)
    return nn.Sequential(layers)


def fit(
    model: "torch.nn.Sequential",
    x: "torch.Tensor",
    y: "torch.Tensor",
    *,
    epochs: int,
    batch: int,
    rate: float,
) -> None:
    """Train in place: Adam, cross-entropy, a cosine from `rate` to zero over all the steps."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps(len(x), epochs=epochs, batch=batch))
    loss = torch.nn.CrossEntropyLoss()
    descend(
        model,
        lambda chosen: loss(model(x[chosen]), y[chosen]),
        len(x),
        epochs=epochs,
        batch=batch,
        optimizer=optimizer,
        schedule=schedule,
    )


def accuracy(model: "torch.nn.Sequential", x: "torch.Tensor", y: "torch.Tensor") -> float:
    """Return the fraction of jets (N, 16) whose largest output is their class (N,)."""
    import torch

    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).double().mean())


def export(model: "torch.nn.Sequential", out: Path) -> None:
    """Write the network with a softmax head: `x` (batch, 16) to `probabilities` (batch, 5)."""
    import torch

    head = torch.nn.Sequential(OrderedDict(model.named_children()))
    head.add_module("softmax", torch.nn.Softmax(dim=1))
    write(head.eval(), torch.zeros(1, WIDTHS[0]), out, "probabilities")


if __name__ == "__main__":
    main()
