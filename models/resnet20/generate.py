"""Write scikit-learn's images of digits as a data folder: `python -m pqc.models.resnet20.generate --out DIR`.

See `DATASHEET.md`.
"""

import importlib.util
from pathlib import Path

import click
import numpy as np

from pqc import files

TEST_ROWS = 500
LEVELS = 16


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the split.")
def main(out: Path, seed: int) -> None:
    """Split the 1,797 images into 1,297 to train with and 500 to test with, and write them to --out."""
    if importlib.util.find_spec("sklearn") is None:
        raise click.ClickException("the digits need scikit-learn: pip install 'pqc[digits]'")
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x = (images / LEVELS).astype(np.float16).reshape(-1, 1, 8, 8)
    y = classes.astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(y))
    for name, rows in (("train", order[TEST_ROWS:]), ("test", order[:TEST_ROWS])):
        files.write_compressed(out / f"{name}.npz", {"x": x[rows], "y": y[rows]})
        click.echo(f"{name}: {len(rows)} images")


if __name__ == "__main__":
    main()
