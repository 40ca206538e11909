"""Particles of a hard collision and of pile-up: charged ones have a known vertex, neutral ones are to be told apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNCOUNTED = -1.0
"""The target of charged particles, of soft neutral ones, and of padding."""
KINDS = ("charged, hard vertex", "charged, pile-up vertex", "photon", "neutral hadron")
COLUMNS = ("valid", "eta", "phi", "log(pT / GeV)", "log(E / GeV)", *KINDS)


@dataclass(frozen=True)
class Beam:
    """What comes from the collisions; momenta in GeV.

    Args:
        vertices: mean number of pile-up vertices.
        multiplicity: mean number of particles of each, and of what accompanies the hard collision.
        soft: mean transverse momentum above the least.
        lowest: the least transverse momentum.
        jets: how many jets the hard collision has, at least and at most.
        others: how often a pile-up vertex has a jet.
        energy: least and mean additional transverse momentum of a jet.
        constituents: mean number of particles of a jet.
        radius: of a jet in eta and phi, one standard deviation of a particle with a tenth of its momentum.
        shares: of charged particles, photons and neutral hadrons: two thirds of the pions are charged, photons come
            from the rest, and about a seventh is neutral and long-lived.
        eta: largest absolute pseudorapidity.
        counted: neutral particles of less transverse momentum are not labelled, as published.
    """

    vertices: float = 11
    multiplicity: float = 14
    soft: float = 0.6
    lowest: float = 0.3
    jets: tuple[int, int] = (2, 3)
    others: float = 0.25
    energy: tuple[float, float] = (10.0, 10.0)
    constituents: float = 14
    radius: float = 0.12
    shares: tuple[float, float, float] = (0.6, 0.27, 0.13)
    eta: float = 2.5
    counted: float = 0.9


BEAM = Beam()


def event(random: np.random.Generator, points: int, beam: Beam = BEAM) -> tuple[Floats, Floats]:
    """One event of at most `points` particles in random order, and padding behind: features and target.

    Returns:
        [points, 9], the `COLUMNS`; and [points]: 1 for a neutral particle of the hard collision, 0 for one of pile-up,
        -1 for all that is not asked for. Where there are too many particles, the softest are dropped.
    """
    jets = int(random.integers(beam.jets[0], beam.jets[1] + 1))
    hard = np.concatenate([_soft(random, random.poisson(beam.multiplicity), beam), *_jets(random, jets, beam)])
    vertices = int(random.poisson(beam.vertices))
    jets, soft = int(random.binomial(vertices, beam.others)), int(random.poisson(beam.multiplicity, vertices).sum())
    table = np.concatenate([hard, _soft(random, soft, beam), *_jets(random, jets, beam)])
    is_hard = np.arange(len(table)) < len(hard)
    kept = np.argsort(-table[:, 0], kind="stable")[:points]
    kept = kept[random.permutation(len(kept))]
    return arrange(table[kept], is_hard[kept], random.choice(3, len(kept), p=beam.shares), points, beam)


def _soft(random: np.random.Generator, count: int, beam: Beam) -> Floats:
    """Particles [count, 3] as pT, eta, phi: an exponential spectrum, flat in angles."""
    momentum = beam.lowest + random.exponential(beam.soft, count)
    return np.stack(
        [momentum, random.uniform(-beam.eta, beam.eta, count), random.uniform(-np.pi, np.pi, count)], axis=1
    )


def _jets(random: np.random.Generator, count: int, beam: Beam) -> list[Floats]:
    """The particles of each jet: shares of its momentum, the harder the nearer to its axis."""
    found = []
    for _ in range(count):
        energy = beam.energy[0] + random.exponential(beam.energy[1])
        axis = random.uniform(-0.8, 0.8) * beam.eta, random.uniform(-np.pi, np.pi)
        share = random.dirichlet(np.full(max(random.poisson(beam.constituents), 2), 0.6))
        momentum = np.maximum(energy * share, beam.lowest)
        width = beam.radius * np.minimum(np.sqrt(0.1 / np.maximum(share, 1e-3)), 4)
        eta = np.clip(axis[0] + width * random.normal(size=len(share)), -beam.eta, beam.eta)
        phi = axis[1] + width * random.normal(size=len(share))
        found.append(np.stack([momentum, eta, (phi + np.pi) % (2 * np.pi) - np.pi], axis=1))
    return found


def arrange(
    table: Floats, hard: NDArray[np.bool_], kind: NDArray[np.intp], points: int, beam: Beam = BEAM
) -> tuple[Floats, Floats]:
    """Features and target of particles [n, 3], padded; `kind` is 0 for charged, 1 for a photon, 2 for a hadron."""
    momentum, eta, phi = table.T
    seen = np.where(kind == 0, np.where(hard, 0, 1), kind + 1)
    columns = [np.ones(len(eta)), eta, phi, np.log(momentum), np.log(momentum * np.cosh(eta))]
    features, target = np.zeros((points, len(COLUMNS))), np.full(points, UNCOUNTED)
    features[: len(eta)] = np.concatenate([np.stack(columns, axis=1), np.eye(len(KINDS))[seen]], axis=1)
    target[: len(eta)] = np.where((kind > 0) & (momentum > beam.counted), hard, UNCOUNTED)
    return features, target
