"""Train the float ResNet-20 on the committed digits and export it: `python -m pqc.models.resnet20.export`.

`--width 16` is the published size (He et al., arXiv:1512.03385, section 4.2); `--data` takes what `convert` writes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from pqc import data
from pqc.models.exporting import descend, require_packages, steps, write

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
CLASSES = 10


@click.command()
@click.option(
    "--data",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=HERE / "data",
    help="Folder with train and test  [default: the committed digits]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=HERE / "resnet20.onnx",
    help="File to write  [default: the committed model]",
)
@click.option("--width", type=click.IntRange(1), default=4, show_default=True, help="Channels of the first stage.")
@click.option("--classes", type=click.IntRange(2), default=CLASSES, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=40, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rate", type=float, default=1e-2, show_default=True, help="First learning rate.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def main(folder: Path, out: Path, width: int, classes: int, epochs: int, batch: int, rate: float, seed: int) -> None:
    """Train the network in float32, print its accuracies, and export it."""
    require_packages()
    import torch

    from .network import build

    # One thread and a fixed seed: the same machine and torch give the same weights.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    parts = {name: load_split(folder, name) for name in ("train", "test")}
    model = build(parts["train"][0].shape[1], classes, width)
    fit(model, *parts["train"], epochs=epochs, batch=batch, rate=rate)
    for name, (x, y) in parts.items():
        click.echo(f"{name} accuracy {accuracy(model, x, y):.2%} of {len(x)} images")
    export(model, parts["test"][0][:1], out)
    click.echo(f"wrote {out}")


def load_split(folder: Path, name: str) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the images (N, channels, height, width) as float32 and the classes (N,) as int64."""
    import torch

    single = folder / f"{name}.npz"
    arrays = data.read(single if single.exists() else folder / name)
    return torch.from_numpy(data.as_float(arrays["x"])), torch.from_numpy(arrays["y"].astype(np.int64))


def fit(
    model: "torch.nn.Module", x: "torch.Tensor", y: "torch.Tensor", *, epochs: int, batch: int, rate: float
) -> None:
    """Train in place: Adam, cross-entropy, weight decay of 1e-4, a cosine from `rate` to zero over all the steps."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps(len(x), epochs=epochs, batch=batch))
    loss = torch.nn.CrossEntropyLoss()
    model.train()
    descend(
        model,
        lambda chosen: loss(model(x[chosen]), y[chosen]),
        len(x),
        epochs=epochs,
        batch=batch,
        optimizer=optimizer,
        schedule=schedule,
    )
    model.eval()


def accuracy(model: "torch.nn.Module", x: "torch.Tensor", y: "torch.Tensor") -> float:
    """Return the fraction of images whose largest output is their class."""
    import torch

    with torch.no_grad():
        answers = torch.cat([model(part).argmax(dim=1) for part in x.split(1000)])
    return float((answers == y).double().mean())


def export(model: "torch.nn.Module", image: "torch.Tensor", out: Path) -> None:
    """Write the network with a softmax head: `x` (batch, channels, height, width) to `probabilities`.

    Batch normalization stays in the file, as frameworks write it; pqc folds it.
    """
    import torch

    head = torch.nn.Sequential()
    for name, module in model.named_children():
        head.add_module(name, module)
    head.add_module("softmax", torch.nn.Softmax(dim=1))
    preserved = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    write(head.eval(), image, out, "probabilities", **preserved)


if __name__ == "__main__":
    main()
