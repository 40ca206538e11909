"""What the export scripts of the reference models share: their packages, the loop of training, the ONNX file."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pqc import files

if TYPE_CHECKING:
    import torch

OPSET = 17


def require_packages() -> None:
    """End with one line that names the extra when a package for the export is missing."""
    missing = [name for name in ("torch", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"the export needs {' and '.join(missing)}: pip install 'pqc[export]'")


def descend(
    model: "torch.nn.Module",
    loss: Callable[["torch.Tensor"], "torch.Tensor"],
    rows: int,
    *,
    epochs: int,
    batch: int,
    optimizer: "torch.optim.Optimizer",
    schedule: "torch.optim.lr_scheduler.LRScheduler",
    clip: float | None = None,
) -> None:
    """Train in place.

    Args:
        model: in training mode already.
        loss: of the rows with these numbers.
        rows: how many there are, shuffled for every epoch.
        epochs: how often each is taken.
        batch: rows a step.
        optimizer: of the model's parameters.
        schedule: of its rate, moved on after each step.
        clip: the largest norm of a gradient, or None.
    """
    import torch
    from rich.progress import track

    for _ in track(range(epochs), description="epochs"):
        for chosen in torch.randperm(rows).split(batch):
            optimizer.zero_grad()
            loss(chosen).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()


def steps(rows: int, *, epochs: int, batch: int) -> int:
    """How many steps `descend` takes."""
    return epochs * -(-rows // batch)


def write(model: "torch.nn.Module", sample: "torch.Tensor", out: Path, output: str, **options: Any) -> None:
    """Write `model` to `out` as ONNX: `x` (batch, …), in the form of `sample`, to `output` (batch, …).

    `options` go to PyTorch's TorchScript exporter, which is deprecated, but keeps the parameters' names as they are.
    """
    import onnx
    import torch

    with warnings.catch_warnings(), files.replacing(out) as temporary:
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (sample,),
            str(temporary),
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=[output],
            dynamic_axes={"x": {0: "batch"}, output: {0: "batch"}},
            **options,
        )
        onnx.checker.check_model(str(temporary), full_check=True)
