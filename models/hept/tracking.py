"""Detector hits: helices of charged particles through the barrel layers of a tracker in a solenoid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NOISE, PADDING = -1, -2
"""Cluster numbers of a hit that counts for no particle, and of what is no hit."""
COLUMNS = ("valid", "r / m", "phi / pi", "z / m", "eta", "0.1 m / r cos phi", "0.1 m / r sin phi", "layer / 10")


@dataclass(frozen=True)
class Detector:
    """Barrel layers as of the TrackML detector (Amrouche et al., arXiv:1904.06778), lengths in mm.

    Args:
        radii: of the layers.
        lengths: half lengths of the layers.
        azimuthal: resolution along the circumference: a strip or pixel pitch over √12.
        longitudinal: resolution along the beam, likewise.
        field: of the solenoid in tesla.
        efficiency: how often a crossing leaves a hit.
        noise: mean number of hits of no particle, as a share of the mean number of the others.
    """

    radii: tuple[float, ...] = (32, 72, 116, 172, 260, 360, 500, 660, 820, 1020)
    lengths: tuple[float, ...] = (*(500.0,) * 4, *(1080.0,) * 6)
    azimuthal: tuple[float, ...] = (*(0.0144,) * 4, *(0.0231,) * 4, *(0.0346,) * 2)
    longitudinal: tuple[float, ...] = (*(0.0162,) * 4, *(0.346,) * 4, *(3.12,) * 2)
    field: float = 2.0
    efficiency: float = 0.98
    noise: float = 0.05


@dataclass(frozen=True)
class Beam:
    """What comes from the collisions.

    Args:
        particles: mean number of charged particles.
        lowest: the least transverse momentum in GeV.
        highest: the largest.
        scale: of the spectrum in GeV: dN/dpT goes as (pT + scale)^-power.
        power: see `scale`.
        eta: largest absolute pseudorapidity.
        phi: largest absolute azimuth in radians.
        spread: of the vertices along the beam in mm, one standard deviation (the luminous region of the HL-LHC).
        counted: particles of less transverse momentum in GeV are background, as published.
    """

    particles: float = 24
    lowest: float = 0.5
    highest: float = 20.0
    scale: float = 1.2
    power: float = 6.0
    eta: float = 1.5
    phi: float = np.pi / 4
    spread: float = 50.0
    counted: float = 0.9


DETECTOR, BEAM = Detector(), Beam()


def event(
    random: np.random.Generator, points: int, detector: Detector = DETECTOR, beam: Beam = BEAM
) -> tuple[Floats, Floats]:
    """One event of at most `points` hits in random order, and padding behind: features and target.

    Returns:
        [points, 8], the `COLUMNS`; and [points, 3]: the particle's number, eta and phi in radians. Where there are too
        many hits, those of the last particles are dropped.
    """
    count = random.poisson(beam.particles)
    momentum = _momenta(random, count, beam)
    eta, phi = random.uniform(-beam.eta, beam.eta, count), random.uniform(-beam.phi, beam.phi, count)
    vertex, charge = random.normal(0, beam.spread, count), random.choice([-1.0, 1.0], count)
    hits = [cross(place, momentum, eta, phi, vertex, charge, detector) for place in range(len(detector.radii))]
    rows = [_measure(random, place, *found, detector) for place, found in enumerate(hits)]
    rows += [_noise(random, detector, beam, sum(len(one) for one in rows))]
    table = np.concatenate(rows)
    low = np.flatnonzero(momentum < beam.counted)
    return arrange(random, table, low, points)


def _momenta(random: np.random.Generator, count: int, beam: Beam) -> Floats:
    """Transverse momenta in GeV by the inverse of the distribution between the bounds."""
    ends = np.array([beam.lowest, beam.highest]) + beam.scale
    first, last = ends ** (1 - beam.power)
    share = first + random.uniform(size=count) * (last - first)
    return np.asarray(share ** (1 / (1 - beam.power)) - beam.scale)


def cross(
    place: int, momentum: Floats, eta: Floats, phi: Floats, vertex: Floats, charge: Floats, detector: Detector
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Where helices from the beam line first cross a layer: azimuth, z in mm, and the particles that do.

    The radius of curvature is pT / (0.3 B) in m for GeV and T; at the radius r the direction has turned by
    2 asin(r / 2R), half of which the position has.
    """
    curvature = 1e3 * momentum / (0.299792458 * detector.field)
    sine = detector.radii[place] / (2 * curvature)
    turned = np.arcsin(np.minimum(sine, 1))
    z = vertex + 2 * curvature * turned * np.sinh(eta)
    reached = np.flatnonzero((sine < 1) & (np.abs(z) < detector.lengths[place]))
    return (phi - charge * turned)[reached], z[reached], reached


def _measure(
    random: np.random.Generator, place: int, phi: Floats, z: Floats, particle: NDArray[np.intp], detector: Detector
) -> Floats:
    """Hits [hits, 5] of a layer: radius, azimuth, z, layer, particle."""
    seen = random.uniform(size=len(phi)) < detector.efficiency
    radius = detector.radii[place]
    phi = phi + random.normal(0, detector.azimuthal[place] / radius, len(phi))
    z = z + random.normal(0, detector.longitudinal[place], len(z))
    return np.stack([np.full(len(z), radius), phi, z, np.full(len(z), float(place)), particle], axis=1)[seen]


def _noise(random: np.random.Generator, detector: Detector, beam: Beam, hits: int) -> Floats:
    """Hits of no particle, evenly over layers, azimuth and length."""
    count = random.poisson(detector.noise * hits)
    place = random.integers(0, len(detector.radii), count)
    phi = random.uniform(-beam.phi, beam.phi, count)
    z = random.uniform(-1, 1, count) * np.array(detector.lengths)[place]
    return np.stack([np.array(detector.radii)[place], phi, z, place, np.full(count, NOISE)], axis=1)


def arrange(random: np.random.Generator, table: Floats, low: NDArray[np.intp], points: int) -> tuple[Floats, Floats]:
    """Features and target of hits [hits, 5], shuffled and padded; hits of the particles `low` count for none."""
    table = table[np.argsort(table[:, 4], kind="stable")][:points]
    table = table[random.permutation(len(table))]
    return features(table, np.where(np.isin(table[:, 4], low), NOISE, table[:, 4]), points)


def features(table: Floats, cluster: Floats, points: int) -> tuple[Floats, Floats]:
    """Features and target of hits [hits, 5], of which each is of the given cluster, padded."""
    radius, phi, z, place = table[:, :4].T
    eta = np.arcsinh(z / radius)
    metres = radius / 1e3
    columns = [np.ones(len(z)), metres, phi / np.pi, z / 1e3, eta]
    columns += [0.1 * np.cos(phi) / metres, 0.1 * np.sin(phi) / metres, place / 10]
    found, target = np.zeros((points, len(COLUMNS))), np.zeros((points, 3))
    found[: len(z)] = np.stack(columns, axis=1)
    target[:, 0] = PADDING
    target[: len(z)] = np.stack([cluster, eta, phi], axis=1)
    return found, target
