"""Generate the sample of charge clusters: `python -m pqc.models.smart_pixels.generate --out DIR`.

Writes `train.npz`, `test.npz` and `settings.json`; see `DATASHEET.md`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pqc import files

from .simulate import BEAM, IONIZATION, SCALES, SENSOR, TARGETS, lorentz_slope, mobility, simulate

CHUNK = 2_000
SPLITS = ("train", "test")
# Seeds are seed * 10,000 + split * 5,000 + chunk: no two chunks share one.
MAX_CHUNKS = 5_000


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--train", type=click.IntRange(1, CHUNK * MAX_CHUNKS), default=40_000, show_default=True)
@click.option("--test", type=click.IntRange(1, CHUNK * MAX_CHUNKS), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def main(out: Path, train: int, test: int, seed: int) -> None:
    """Simulate --train and --test clusters and write them to --out."""
    out.mkdir(parents=True, exist_ok=True)
    for split, count in zip(SPLITS, (train, test), strict=True):
        files.write_compressed(out / f"{split}.npz", sample(split, count, seed))
    record = {
        "targets": list(TARGETS),
        "scales": list(SCALES),
        "clusters": {"train": train, "test": test},
        "seed": seed,
    }
    record |= {"sensor": asdict(SENSOR), "beam": asdict(BEAM), "ionization": asdict(IONIZATION)}
    record |= {"mobility_um2_per_v_ns": mobility(SENSOR), "lorentz_slope": lorentz_slope(SENSOR)}
    text = json.dumps(record, indent=2) + "\n"
    files.write_text(out / "settings.json", text)
    click.echo(f"{train} training and {test} test clusters in {out}")


def sample(split: str, count: int, seed: int) -> dict[str, NDArray[Any]]:
    """The arrays of a split: `x` (N, 2, 13, 21), the scaled targets `y` (N, 4)."""
    first = seed * 10_000 + SPLITS.index(split) * 5_000
    starts = range(0, count, CHUNK)
    parts = [simulate(first + number, min(CHUNK, count - start)) for number, start in enumerate(starts)]
    x = np.concatenate([clusters for clusters, _ in parts])
    return {"x": x, "y": np.concatenate([tracks.targets() for _, tracks in parts])}


if __name__ == "__main__":
    main()
