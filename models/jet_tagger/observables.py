"""The sixteen high-level observables of a jet, from its constituents."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

FEATURES = (
    "zlogz",
    "c1_b0_mmdt",
    "c1_b1_mmdt",
    "c1_b2_mmdt",
    "c2_b1_mmdt",
    "c2_b2_mmdt",
    "d2_b1_mmdt",
    "d2_b2_mmdt",
    "d2_a1_b1_mmdt",
    "d2_a1_b2_mmdt",
    "m2_b1_mmdt",
    "m2_b2_mmdt",
    "n2_b1_mmdt",
    "n2_b2_mmdt",
    "mass_mmdt",
    "multiplicity",
)


def observables(jet: Floats, groomed: Floats) -> Floats:
    """Compute the observables of one jet, in the order of `FEATURES`.

    `jet` and `groomed` are (n, 4) arrays of massless constituents as px, py, pz, E in GeV, before
    and after grooming. Returns (16,): all without unit but the groomed mass, in GeV.

    Energy correlations: Larkoski, Salam, Thaler, arXiv:1305.0007 (C); Larkoski, Moult, Neill,
    arXiv:1409.6298 (D); Moult, Necib, Thaler, arXiv:1609.07483 (M, N).
    """
    pt = np.hypot(jet[:, 0], jet[:, 1])
    z = pt / pt.sum()
    return np.array([z @ np.log(z), *correlations(groomed), mass(groomed), len(jet)])


def mass(constituents: Floats) -> float:
    """Return the invariant mass in GeV of (n, 4) constituents px, py, pz, E."""
    px, py, pz, energy = constituents.sum(axis=0)
    return float(np.sqrt(max(energy**2 - px**2 - py**2 - pz**2, 0.0)))


def correlations(constituents: Floats) -> list[float]:
    """Compute the observables made of energy correlations, `c1_b0_mmdt` to `n2_b2_mmdt`.

    `constituents` is (n, 4): px, py, pz, E in GeV. A ratio whose denominator vanishes is 0, as
    for a jet groomed down to one constituent.
    """
    z, weight, angle = _pairs(constituents)
    ij, ik, jk, k = _triples(len(z))
    e2 = [float(weight.sum()), float(weight @ angle), float(weight @ angle**2)]

    weights = weight[ij] * z[k]
    small, middle, large = _sorted_angles(angle[ij], angle[ik], angle[jk])
    product = small * middle
    v1 = [_moment(weights, small, beta) for beta in (1, 2)]
    v2 = [_moment(weights, product, beta) for beta in (1, 2)]
    v3 = [_moment(weights, product * large, beta) for beta in (1, 2)]
    return [
        *e2,
        _ratio(v3[0], e2[1] ** 2),
        _ratio(v3[1], e2[2] ** 2),
        _ratio(v3[0], e2[1] ** 3),
        _ratio(v3[1], e2[2] ** 3),
        # D2(alpha, beta) = e3(alpha) / e2(beta)^(3 alpha / beta); at (1, 1) it is D2(1) again.
        _ratio(v3[0], e2[1] ** 3),
        _ratio(v3[0], e2[2] ** 1.5),
        _ratio(v1[0], e2[1]),
        _ratio(v1[1], e2[2]),
        _ratio(v2[0], e2[1] ** 2),
        _ratio(v2[1], e2[2] ** 2),
    ]


def _pairs(constituents: Floats) -> tuple[Floats, Floats, Floats]:
    """Return momentum fractions z (n,), and z_i z_j and the distance of every pair i < j."""
    px, py, pz, _ = constituents.T
    pt = np.hypot(px, py)
    z = pt / pt.sum()
    rapidity, phi = np.arcsinh(pz / pt), np.arctan2(py, px)
    j, i = np.tril_indices(len(z), -1)
    turn = np.abs(phi[i] - phi[j])
    distance = np.hypot(rapidity[i] - rapidity[j], np.minimum(turn, 2 * np.pi - turn))
    return z, z[i] * z[j], distance


def _triples(n: int) -> tuple[Indices, Indices, Indices, Indices]:
    """Return for every triple i < j < k < n the places of its three pairs, and k.

    Ordered by k, so that the triples of n constituents open the table of any larger number.
    """
    size = 64
    while size < n:
        size *= 2
    count = n * (n - 1) * (n - 2) // 6
    ij, ik, jk, k = _triple_table(size)
    return ij[:count], ik[:count], jk[:count], k[:count]


@lru_cache(maxsize=4)
def _triple_table(size: int) -> tuple[Indices, Indices, Indices, Indices]:
    columns: list[tuple[Indices, ...]] = []
    for k in range(2, size):
        # Pair (i, j) with i < j stands at j (j - 1) / 2 + i, the order of tril_indices.
        j, i = np.tril_indices(k, -1)
        row = k * (k - 1) // 2
        columns.append((np.arange(len(i)), row + i, row + j, np.full(len(i), k)))
    ij, ik, jk, last = (np.concatenate(column) for column in zip(*columns, strict=True))
    return ij, ik, jk, last


def _sorted_angles(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats, Floats]:
    low, high = np.minimum(a, b), np.maximum(a, b)
    return np.minimum(low, c), np.maximum(low, np.minimum(high, c)), np.maximum(high, c)


def _moment(weights: Floats, angles: Floats, beta: int) -> float:
    powers: NDArray[Any] = angles if beta == 1 else angles**beta
    return float(weights @ powers)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0.0 else 0.0
