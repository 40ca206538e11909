"""Generate the constituents of simulated jets, standardized and split.

`python -m pqc.models.jet_constituents.generate --out DIR` writes `train.npz`, `test.npz` and `standardization.json`;
see `DATASHEET.md`. The jets are those of `pqc.models.jet_tagger`; an interrupted run goes on where it stopped.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pqc import files
from pqc.models.jet_tagger.generate import (
    MAX_JETS,
    MAX_SEED,
    drop_parts,
    join,
    plan,
    require_packages,
    simulate_parts,
    write_record,
)
from pqc.models.jet_tagger.observables import Floats
from pqc.models.jet_tagger.simulate import CLASSES, jets

PARTICLES = 32
FEATURES = ("log_relative_pt", "delta_eta", "delta_phi", "delta_r", "is_particle")
MASK = FEATURES.index("is_particle")
# The networks round their inputs more coarsely, and a file of rounded numbers is smaller by a third.
STEPS_PER_UNIT = 128


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--train", type=click.IntRange(5, MAX_JETS), default=18_000, show_default=True)
@click.option("--test", type=click.IntRange(5, MAX_JETS), default=8_000, show_default=True)
@click.option("--seed", type=click.IntRange(1, MAX_SEED), default=1, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
def main(out: Path, train: int, test: int, seed: int, jobs: int) -> None:
    """Simulate --train and --test jets, a fifth of each class, and write their constituents to --out."""
    require_packages()
    parts = plan("train", train, seed) + plan("test", test, seed)
    directory = out / "parts"
    directory.mkdir(parents=True, exist_ok=True)
    simulate_parts(parts, directory, jobs, simulate_constituents)

    splits = {split: join(parts, split, directory, seed) for split in ("train", "test")}
    mean, std = moments(splits["train"][0])
    for split, (x, y) in splits.items():
        files.write_compressed(out / f"{split}.npz", {"x": standardize(x, mean, std), "y": y})
    record = {"features": list(FEATURES), "classes": list(CLASSES), "mean": mean.tolist(), "std": std.tolist()}
    write_record({**record, "steps_per_unit": STEPS_PER_UNIT}, parts, out, seed)
    drop_parts(parts, directory)
    click.echo(f"{train} training and {test} test jets in {out}")


def simulate_constituents(label: str, seed: int, count: int) -> Floats:
    """Simulate `count` jets of class `label` from `seed`: (count, 5, 1, 32), see `constituents`."""
    return np.stack([constituents(jet) for jet, _ in islice(jets(label, seed), count)])


def constituents(jet: Floats) -> Floats:
    """Describe the leading constituents of one jet by `FEATURES`, in falling pT: (5, 1, 32).

    `jet` is (n, 4), the massless constituents as px, py, pz, E in GeV. The momentum is relative to the jet's, the
    angles to its axis: ln(pT / pT of the jet), the differences in pseudorapidity and azimuth, their quadratic sum, and
    a one. What is missing of 32 is filled up with zeros.
    """
    pt, eta, phi = _cylinder(jet)
    jet_pt, jet_eta, jet_phi = (float(part[0]) for part in _cylinder(jet.sum(axis=0, keepdims=True)))
    leading = np.argsort(-pt, kind="stable")[:PARTICLES]
    delta_eta = eta[leading] - jet_eta
    delta_phi = (phi[leading] - jet_phi + np.pi) % (2 * np.pi) - np.pi
    found = np.zeros((len(FEATURES), 1, PARTICLES))
    found[:, 0, : len(leading)] = [
        np.log(pt[leading] / jet_pt),
        delta_eta,
        delta_phi,
        np.hypot(delta_eta, delta_phi),
        np.ones(len(leading)),
    ]
    return found


def _cylinder(momenta: Floats) -> tuple[Floats, Floats, Floats]:
    """Transverse momentum, pseudorapidity and azimuth of (n, 4) momenta."""
    pt = np.hypot(momenta[:, 0], momenta[:, 1])
    return pt, np.arcsinh(momenta[:, 2] / pt), np.arctan2(momenta[:, 1], momenta[:, 0])


def moments(x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (5,) of every feature over the particles of (N, 5, 1, 32); 0 and 1 for the mask."""
    particles = np.moveaxis(x, 1, -1)[x[:, MASK] > 0]
    mean, std = particles.mean(axis=0), particles.std(axis=0)
    mean[MASK], std[MASK] = 0.0, 1.0
    return mean, std


def standardize(x: Floats, mean: Floats, std: Floats) -> NDArray[Any]:
    """Return (N, 5, 1, 32) in standard deviations, float16 on a grid of 1 / 128; what is no particle stays zero."""
    scaled = (x - mean[:, None, None]) / std[:, None, None] * x[:, MASK : MASK + 1]
    return np.asarray(np.rint(scaled * STEPS_PER_UNIT) / STEPS_PER_UNIT, dtype=np.float16)


if __name__ == "__main__":
    main()
