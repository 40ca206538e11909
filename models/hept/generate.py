"""Generate the data of both tasks: `python -m pqc.models.hept.generate --out DIR`; see `DATASHEET.md`."""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pqc import files

from . import pileup, tracking
from .sizes import SMALL, TASKS

Event = tuple[NDArray[np.float64], NDArray[np.float64]]
EVENTS: dict[str, Callable[[np.random.Generator, int], Event]] = {"tracking": tracking.event, "pileup": pileup.event}
SPLITS = ("train", "test")


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--train", type=click.IntRange(1, 1_000_000), default=400, show_default=True, help="Events.")
@click.option("--test", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="Events.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def main(out: Path, train: int, test: int, seed: int) -> None:
    """Simulate --train and --test events of each task, and write them to folders of --out."""
    for task in TASKS:
        for split, count in zip(SPLITS, (train, test), strict=True):
            path = out / task / f"{split}.npz"
            write(path, *simulate(task, split, count, seed))
            click.echo(f"{count} events, {path.stat().st_size:,} bytes: {path}")


def simulate(task: str, split: str, count: int, seed: int) -> Event:
    """Features [events, points, columns] and targets of a task; each event has a seed of its own."""
    key = (seed, TASKS.index(task), SPLITS.index(split))
    points = SMALL[task].points
    events = [EVENTS[task](np.random.default_rng((*key, number)), points) for number in range(count)]
    features, targets = (np.stack(parts) for parts in zip(*events, strict=True))
    return features, targets


def write(path: Path, features: NDArray[np.float64], targets: NDArray[np.float64]) -> None:
    """Write `x` and `y` in half precision, atomically; numbers of clusters up to 2,048 are exact in it."""
    files.write_compressed(path, {"x": features.astype(np.float16), "y": targets.astype(np.float16)})


if __name__ == "__main__":
    main()
