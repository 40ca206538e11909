"""Make a data folder from files of real clusters: `python -m pqc.models.smart_pixels.convert TRAIN TEST --out DIR`.

Each file is an .npz with `cluster` (N, 13, 21, 1), charges, and `y` (N, 1), 1 for signal and 0 for background. The
folder gets `train.npz` and `test.npz` with `x` (N, 1, 13, 21), float16, and the classes `y` (N,), uint8: one sample in
time and two classes, for the network of `export --task filter`.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pqc import data, files
from pqc.errors import DataError

from .simulate import SENSOR

SHAPE = (SENSOR.rows, SENSOR.columns, 1)
PATH = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("train", type=PATH)
@click.argument("test", type=PATH)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(train: Path, test: Path, out: Path) -> None:
    """Convert the clusters of TRAIN and TEST and write them to --out."""
    out.mkdir(parents=True, exist_ok=True)
    for name, source in (("train", train), ("test", test)):
        try:
            arrays = convert(source)
        except DataError as error:
            raise click.ClickException(str(error)) from error
        files.write_compressed(out / f"{name}.npz", arrays)
        click.echo(f"{name}: {len(arrays['y'])} clusters, {arrays['y'].mean():.1%} signal")


def convert(path: Path) -> dict[str, NDArray[Any]]:
    """The clusters and classes of a file, as pqc reads them.

    Raises:
        DataError: the file is broken, an array is missing or has another shape, or the labels are not 0 and 1.
    """
    arrays = data.read(path)
    missing = [name for name in ("cluster", "y") if name not in arrays]
    if missing:
        raise DataError(f"no array {' or '.join(missing)}", at=str(path), hint="it needs cluster and y")
    clusters, labels = arrays["cluster"], arrays["y"].ravel()
    if clusters.shape != (len(labels), *SHAPE):
        wanted = ", ".join(map(str, (len(labels), *SHAPE)))
        raise DataError(
            f"the clusters have the shape {list(clusters.shape)}, not [{wanted}]", at=str(path), hint="reshape them"
        )
    if not np.isin(labels, (0, 1)).all():
        raise DataError("the labels are not 0 and 1", at=str(path), hint="1 is signal, 0 is background")
    return {"x": clusters.transpose(0, 3, 1, 2).astype(np.float16), "y": labels.astype(np.uint8)}


if __name__ == "__main__":
    main()
