"""Make a data folder for pqc of hit graphs: `python -m pqc.models.hept.convert GRAPHS.npz --out DIR`.

GRAPHS.npz holds all events end to end: `x` [hits, 3], r in m, azimuth over pi, z in m; `pid` [hits], the particles;
`node_off` [events + 1], where each event begins.
"""

from itertools import pairwise
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pqc import data

from . import tracking
from .generate import write
from .sizes import SMALL

Floats = NDArray[np.float64]


@click.command()
@click.argument("graphs", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--sectors", type=click.IntRange(1), default=8, show_default=True, help="An event is cut in azimuth.")
@click.option("--test", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.2, show_default=True)
def main(graphs: Path, out: Path, sectors: int, test: float) -> None:
    """Write train.npz and test.npz: each event cut into sectors, turned to azimuth zero and padded."""
    arrays = data.read(graphs)
    starts = arrays["node_off"]
    events = [cut(arrays["x"][a:b], arrays["pid"][a:b], sectors) for a, b in pairwise(starts)]
    first = max(1, round(test * len(events)))
    for split, chosen in (("test", events[:first]), ("train", events[first:])):
        found = [one for event in chosen for one in event]
        write(out / f"{split}.npz", *(np.stack(part) for part in zip(*found, strict=True)))
        click.echo(f"{len(found)} sectors of {len(chosen)} events: {out / f'{split}.npz'}")


def cut(hits: Floats, particle: NDArray[np.int64], sectors: int) -> list[tuple[Floats, Floats]]:
    """The sectors of one event; a particle that crosses a border is a cluster in each."""
    place = np.floor((hits[:, 1] + 1) / 2 * sectors).astype(int) % sectors
    found = []
    for sector in range(sectors):
        own = hits[place == sector].astype(np.float64)
        own[:, 1] -= (2 * sector + 1) / sectors - 1
        found.append(clusters(own, particle[place == sector], SMALL["tracking"].points))
    return found


def clusters(hits: Floats, particle: NDArray[np.int64], points: int) -> tuple[Floats, Floats]:
    """Features and target of hits [hits, 3] in their order; the layer is the nearest, particles count from 0."""
    radius = 1e3 * hits[:, 0]
    layer = np.abs(radius[:, None] - np.array(tracking.DETECTOR.radii)).argmin(axis=1)
    _, number = np.unique(particle, return_inverse=True)
    table = np.stack([radius, np.pi * hits[:, 1], 1e3 * hits[:, 2], layer, number], axis=1)
    return tracking.features(table[:points], table[:points, 4], points)


if __name__ == "__main__":
    main()
