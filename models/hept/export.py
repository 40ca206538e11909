"""Export HEPT to ONNX, and train the small one with pqc itself: `python -m pqc.models.hept.export --task tracking`."""

import tempfile
import warnings
from pathlib import Path

import click

from pqc import graph, pipeline, workflows
from pqc.models.exporting import require_packages, write
from pqc.schedule import Schedule
from pqc.training.stages import set_values, values_of
from pqc.workflows.compression import NORMALIZE

from .sizes import PUBLISHED, SMALL, TASKS, Size

HERE = Path(__file__).parent
OUTPUT = {"tracking": "embedding", "pileup": "logit"}
TRAINING = {
    "tracking": {"loss": "info-nce", "learning_rate": "cosine(1e-2, 1e-4)"},
    "pileup": {"loss": "focal", "learning_rate": "cosine(1e-2, 1e-4)"},
}


@click.command()
@click.option("--task", type=click.Choice(TASKS), required=True)
@click.option("--size", type=click.Choice(["small", "published"]), default="small", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: the committed model]")
@click.option(
    "--epochs", type=click.IntRange(0), default=160, show_default=True, help="0 exports an untrained network."
)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def main(task: str, size: str, out: Path | None, epochs: int, batch: int, seed: int) -> None:
    """Export a network, trained on the committed sample without masks and quantizers."""
    require_packages()
    chosen = (SMALL if size == "small" else PUBLISHED)[task]
    out = out or HERE / f"{task}.onnx"
    export(chosen, out, OUTPUT[task], seed)
    if epochs:
        train(out, task, epochs, batch, seed)
    click.echo(f"wrote {out}")


def export(size: Size, out: Path, output: str, seed: int) -> None:
    """Write an untrained network: `x` [batch, points, features] to `output`, one row for each point."""
    import torch

    from .network import Hept

    # One thread and a fixed seed: the same machine and torch give the same weights.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    # In evaluation mode the exporter would make one parameter of all that start with equal numbers.
    model = Hept(size, seed).train()
    with warnings.catch_warnings():
        # Folding, of which it warns, touches no parameter here.
        warnings.simplefilter("ignore", UserWarning)
        write(
            model,
            torch.ones(1, size.points, size.features),
            out,
            output,
            training=torch.onnx.TrainingMode.TRAINING,
        )


def train(path: Path, task: str, epochs: int, batch: int, seed: int) -> None:
    """Train the network of a file on the committed sample, print its metrics, and store it in the file."""
    plan = Schedule.model_validate(
        {
            "pruning": {"method": None},
            "quantization": None,
            "training": {**TRAINING[task], "optimizer": {"name": "adam"}, "batch": batch, "clip": 1.0, "seed": seed},
            "phases": {"training": {"epochs": epochs}, "fine_tuning": {"epochs": 0}},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        source = workflows.Source(task, path)
        trained, history = workflows.train(source, plan, HERE / "data" / task, Path(folder))
    model = graph.load(path)
    pipeline.run(model, NORMALIZE)
    set_values(model, values_of(trained))
    graph.save(model, path)
    click.echo(f"after {epochs} epochs: {history[-1]}")


if __name__ == "__main__":
    main()
