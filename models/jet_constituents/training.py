"""Train a float tagger on the jet constituents and export it to ONNX: what the models' export scripts share."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pqc.models.exporting import descend, require_packages, steps, write
from pqc.models.jet_constituents.generate import FEATURES, PARTICLES
from pqc.models.jet_tagger.export import accuracy, load_split

if TYPE_CHECKING:
    import torch

DATA = Path(__file__).parent / "data"
SHAPE = (len(FEATURES), 1, PARTICLES)


def export_command(build: Callable[[], "torch.nn.Module"], file: Path, *, epochs: int, rate: float) -> click.Command:
    """The command line that trains what `build` returns and exports it, by default to `file`."""

    @click.command(help=f"Train the network in float32, print its accuracies, and export it to {file.name}.")
    @click.option(
        "--data",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=DATA,
        help="Folder of the splits.",
    )
    @click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=file, help="File to write.")
    @click.option("--epochs", type=click.IntRange(1), default=epochs, show_default=True)
    @click.option("--batch", type=click.IntRange(1), default=256, show_default=True)
    @click.option("--rate", type=float, default=rate, show_default=True, help="Largest learning rate.")
    @click.option("--seed", type=int, default=1, show_default=True)
    def main(data: Path, out: Path, epochs: int, batch: int, rate: float, seed: int) -> None:
        require_packages()
        import torch

        # One thread and a fixed seed: the same machine and torch give the same weights.
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        train, test = load_split(data / "train.npz"), load_split(data / "test.npz")
        model = build()
        fit(model, *train, epochs=epochs, batch=batch, rate=rate)
        model.eval()
        for name, split in (("train", train), ("test", test)):
            click.echo(f"{name} accuracy {accuracy(model, *split):.2%} of {len(split[0])} jets")
        export(model, out)
        click.echo(f"wrote {out}")

    return main


def fit(
    model: "torch.nn.Module", x: "torch.Tensor", y: "torch.Tensor", *, epochs: int, batch: int, rate: float
) -> None:
    """Train in place: AdamW, cross-entropy, a short rise to `rate` and a cosine to zero over all the steps."""
    import torch

    total = steps(len(x), epochs=epochs, batch=batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total, pct_start=0.1)
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


def export(model: "torch.nn.Module", out: Path, particles: int = PARTICLES) -> None:
    """Write the network with a softmax head: `x` (batch, 5, 1, particles) to `probabilities` (batch, 5)."""
    import torch

    model.eval()
    # Of the outermost module alone: or the exporter would make one parameter of all that hold equal numbers.
    model.training = True
    # A hook, where a module around the network would put its name before those of all parameters.
    softmax = model.register_forward_hook(lambda _module, _inputs, logits: logits.softmax(dim=1))
    with warnings.catch_warnings():
        # It warns that folding constants may change parameters; nothing here computes with parameters alone.
        warnings.simplefilter("ignore")
        # Batch normalization stays, and parameters their names.
        write(
            model,
            torch.zeros(2, *SHAPE[:2], particles),
            out,
            "probabilities",
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    softmax.remove()
    model.eval()
