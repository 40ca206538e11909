"""Train the float Smart Pixels network and export it to ONNX.

Run as `python -m pqc.models.smart_pixels.export`. With `--task filter` the network tells two classes apart in
clusters of one sample, as `pqc.models.smart_pixels.convert` writes them.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from pqc.models.exporting import descend, require_packages, steps, write

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
ROWS, COLUMNS = 13, 21
VALUES = 4
FEATURES = 5


@dataclass(frozen=True)
class Task:
    """What the network is for.

    Args:
        samples: input channels.
        outputs: of the last layer.
        output: the name of the model's output.
    """

    samples: int
    outputs: int
    output: str


TASKS = {
    # Four means, then the lower triangle of a 4x4 matrix row by row: see pqc.functions.losses.GaussianLikelihood.
    "track": Task(samples=2, outputs=VALUES + VALUES * (VALUES + 1) // 2, output="track"),
    "filter": Task(samples=1, outputs=2, output="probabilities"),
}


@click.command()
@click.option("--task", type=click.Choice(list(TASKS)), default="track", show_default=True)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=HERE / "data",
    help="Folder of train.npz and test.npz  [default: the committed sample]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=HERE / "smart_pixels.onnx",
    help="File to write  [default: the committed model]",
)
@click.option("--epochs", type=click.IntRange(1), default=40, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True)
@click.option("--rate", type=float, default=5e-3, show_default=True, help="First learning rate.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(task: str, data: Path, out: Path, epochs: int, batch: int, rate: float, seed: int) -> None:
    """Train the network in float32, print its losses on both splits, and export it."""
    require_packages()
    import torch

    # One thread and a fixed seed: the same machine and torch give the same weights.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train, test = load_split(data / "train.npz", task), load_split(data / "test.npz", task)
    model = build_model(TASKS[task])
    fit(model, *train, task=task, epochs=epochs, batch=batch, rate=rate)
    with torch.no_grad():
        for name, (x, y) in (("train", train), ("test", test)):
            click.echo(f"{name} loss {float(loss_of(task, model(x), y)):.4f} over {len(x)} clusters")
    export(model, TASKS[task], out)
    click.echo(f"wrote {out}")


def load_split(path: Path, task: str) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the clusters (N, samples, 13, 21) as float32 and the targets, (N, 4) or classes (N,)."""
    import torch

    with np.load(path) as arrays:
        y = arrays["y"].astype(np.int64 if task == "filter" else np.float32)
        return torch.from_numpy(arrays["x"].astype(np.float32)), torch.from_numpy(y)


def build_model(task: Task) -> "torch.nn.Sequential":
    """Return the untrained network from (N, samples, 13, 21) to (N, outputs)."""
    from torch import nn

    pooled = FEATURES * ((ROWS - 2) // 3) * ((COLUMNS - 2) // 3)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        depthwise=nn.Conv2d(task.samples, task.samples, 3, groups=task.samples, bias=False),
        pointwise=nn.Conv2d(task.samples, FEATURES, 1),
        tanh1=nn.Tanh(),
        conv=nn.Conv2d(FEATURES, FEATURES, 1),
        tanh2=nn.Tanh(),
        pool=nn.AvgPool2d(3),
        tanh3=nn.Tanh(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(pooled, 16),
        tanh4=nn.Tanh(),
        fc2=nn.Linear(16, 16),
        tanh5=nn.Tanh(),
        fc3=nn.Linear(16, task.outputs),
    )
    return nn.Sequential(layers)


def loss_of(task: str, output: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """The negative logarithm of the likelihood: of Gaussians (N, 14) with targets (N, 4), or of classes."""
    import torch

    if task == "filter":
        return torch.nn.functional.cross_entropy(output, target)
    rows, columns = torch.tril_indices(VALUES, VALUES)
    factor = torch.zeros(len(output), VALUES, VALUES)
    entries = output[:, VALUES:]
    factor[:, rows, columns] = torch.where(rows == columns, entries.exp(), entries)
    pulls = (factor @ (target - output[:, :VALUES])[:, :, None])[:, :, 0]
    logarithms = entries[:, rows == columns]
    return (0.5 * pulls.square() - logarithms).sum(1).mean() + VALUES / 2 * np.log(2 * np.pi)


def fit(
    model: "torch.nn.Sequential",
    x: "torch.Tensor",
    y: "torch.Tensor",
    *,
    task: str,
    epochs: int,
    batch: int,
    rate: float,
) -> None:
    """Train in place: Adam, a cosine from `rate` to zero over all the steps."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps(len(x), epochs=epochs, batch=batch))
    descend(
        model,
        lambda chosen: loss_of(task, model(x[chosen]), y[chosen]),
        len(x),
        epochs=epochs,
        batch=batch,
        optimizer=optimizer,
        schedule=schedule,
        clip=1.0,
    )


def export(model: "torch.nn.Sequential", task: Task, out: Path) -> None:
    """Write the network: `x` (batch, samples, 13, 21) to the task's output; the filter ends in a softmax."""
    import torch

    head = torch.nn.Sequential(OrderedDict(model.named_children()))
    if task.output == "probabilities":
        head.add_module("softmax", torch.nn.Softmax(dim=1))
    write(head.eval(), torch.zeros(1, task.samples, ROWS, COLUMNS), out, task.output)


if __name__ == "__main__":
    main()
