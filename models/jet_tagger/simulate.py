"""Simulated jets of one class: Pythia 8 events, a simple detector, FastJet clustering."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .observables import FEATURES, Floats, observables

Integers = NDArray[np.int64]

CLASSES = ("g", "q", "w", "z", "t")

COMMON = (
    "Beams:eCM = 13000.",
    "Tune:pp = 14",
    "23:onMode = off",
    "23:onIfAny = 1 2 3 4 5",
    "24:onMode = off",
    "24:onIfAny = 1 2 3 4 5",
    "13:mayDecay = off",
)
HARD_SCATTER = ("PhaseSpace:pTHatMin = 990.", "PhaseSpace:pTHatMax = 1010.")
# A resonance of 2.05 TeV that decays to longitudinal bosons gives each of them a pT near 1 TeV.
GRAVITON = (
    "ExtraDimensionsG*:gg2G* = on",
    "ExtraDimensionsG*:ffbar2G* = on",
    "ExtraDimensionsG*:SMinBulk = on",
    "ExtraDimensionsG*:VLVL = on",
    "5100039:m0 = 2050.",
    "5100039:doForceWidth = on",
    "5100039:mWidth = 20.",
    "5100039:mMin = 1950.",
    "5100039:mMax = 2150.",
    "5100039:onMode = off",
)
PROCESSES = {
    "g": ("HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on", *HARD_SCATTER),
    "q": (
        "HardQCD:qq2qq = on",
        "HardQCD:gg2qqbar = on",
        "HardQCD:qqbar2qqbarNew = on",
        *HARD_SCATTER,
    ),
    "w": (*GRAVITON, "5100039:onIfAny = 24"),
    "z": (*GRAVITON, "5100039:onIfAny = 23"),
    "t": ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on", *HARD_SCATTER),
}
# Batches bound the memory: about 1,500 particles an event.
EVENTS_PER_BATCH = 200

NEUTRINOS = (12, 14, 16)
ELECTROMAGNETIC = (11, 22)
CHARGED = (13, 211, 321, 2212, 3112, 3222, 3312, 3334)


@dataclass(frozen=True)
class Detector:
    """Acceptance, tracker and calorimeters; momenta and energies in GeV."""

    max_pseudorapidity: float = 4.0
    min_pt: float = 0.05
    track_min_pt: float = 0.2
    # The momentum of a stiffer track is measured worse than its energy, so it becomes a tower.
    track_max_pt: float = 220.0
    # Relative pT resolution: hypot(slope * pT, floor).
    track_slope: float = 1.5e-4
    track_floor: float = 0.006
    ecal_cell: float = 0.0175
    hcal_cell: float = 0.022
    cell_min_energy: float = 0.3


@dataclass(frozen=True)
class Selection:
    """Clustering radius, grooming cut, and which jets are kept; momenta in GeV."""

    radius: float = 0.8
    zcut: float = 0.1
    jets_per_event: int = 2
    min_pt: float = 800.0
    max_pt: float = 1200.0
    max_rapidity: float = 2.5


DETECTOR = Detector()
SELECTION = Selection()


@dataclass(frozen=True)
class Objects:
    """Flat (n,) arrays of massless objects: event number, pT in GeV, pseudorapidity, azimuth."""

    event: Integers
    pt: Floats
    eta: Floats
    phi: Floats


@dataclass(frozen=True)
class Particles(Objects):
    """Generated particles: also the absolute PDG identity, and the energy in GeV."""

    identity: Integers
    energy: Floats


def simulate_jets(label: str, seed: int, count: int) -> Floats:
    """Simulate `count` jets of class `label`, (count, 16) in the order of `FEATURES`."""
    rows = [observables(jet, groomed) for jet, groomed in islice(jets(label, seed), count)]
    return np.array(rows).reshape(count, len(FEATURES))


def jets(label: str, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield jets of class `label` without end, as (n, 4) constituents before and after grooming.

    `seed` (1 to 900,000,000, Pythia's range) fixes both the events and the detector's noise.
    """
    pythia = start_pythia(label, seed)
    noise = np.random.default_rng(seed)
    while True:
        yield from find_jets(detect(generate(pythia, EVENTS_PER_BATCH), noise))


def start_pythia(label: str, seed: int) -> Any:
    """Return an initialized Pythia for class `label`; its events follow from `seed`."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    seeding = ("Print:quiet = on", "Random:setSeed = on", f"Random:seed = {seed}")
    for setting in (*seeding, *COMMON, *PROCESSES[label]):
        if not pythia.readString(setting):
            raise RuntimeError(f"Pythia does not know the setting '{setting}'")
    if not pythia.init():
        raise RuntimeError(f"Pythia did not start for class '{label}'")
    return pythia


def generate(pythia: Any, events: int) -> Particles:
    """Generate `events` events and return their visible final particles in the acceptance."""
    import awkward

    record = pythia.nextBatch(events)["prt"]
    record = record[record["status"] > 0]
    event = np.repeat(np.arange(len(record)), awkward.to_numpy(awkward.num(record["id"])))
    identity = np.abs(_flat(record["id"])).astype(np.int64)
    px, py, pz, energy = (_flat(record["p"][axis]) for axis in ("px", "py", "pz", "e"))

    pt = np.hypot(px, py)
    with np.errstate(divide="ignore"):
        # Beam remnants have no pT; their infinite pseudorapidity drops them below.
        eta = np.arcsinh(np.divide(pz, pt))
    seen = (pt > DETECTOR.min_pt) & (np.abs(eta) < DETECTOR.max_pseudorapidity)
    seen &= ~np.isin(identity, NEUTRINOS)
    columns = (event, pt, eta, np.arctan2(py, px), identity, energy)
    return Particles(*(column[seen] for column in columns))


def detect(particles: Particles, noise: np.random.Generator) -> Objects:
    """Turn particles into tracks and calorimeter cells.

    Charged particles in the tracker's range become tracks, electrons and photons fill the
    electromagnetic calorimeter, and all else the hadronic one.
    """
    electromagnetic = np.isin(particles.identity, ELECTROMAGNETIC)
    tracked = np.isin(particles.identity, CHARGED)
    tracked &= (particles.pt > DETECTOR.track_min_pt) & (particles.pt < DETECTOR.track_max_pt)
    parts = (
        _tracks(particles, tracked, noise),
        _cells(particles, electromagnetic, DETECTOR.ecal_cell),
        _cells(particles, ~electromagnetic & ~tracked, DETECTOR.hcal_cell),
    )
    columns = (np.concatenate(column) for column in zip(*map(astuple, parts), strict=True))
    return Objects(*columns)


def find_jets(objects: Objects) -> Iterator[tuple[Floats, Floats]]:
    """Cluster and groom; yield the (n, 4) constituents px, py, pz, E of each jet, both ways."""
    import awkward
    import fastjet

    events = _four_momenta(objects)
    anti_kt = fastjet.JetDefinition(fastjet.antikt_algorithm, SELECTION.radius)
    clusters = fastjet.ClusterSequence(events, anti_kt)
    chosen = _choose(clusters.inclusive_jets(SELECTION.min_pt))
    constituents = awkward.flatten(clusters.constituents(SELECTION.min_pt)[chosen])

    # The large radius makes one tree of the whole jet; no constituent is left to the beam.
    cambridge = fastjet.JetDefinition(fastjet.cambridge_algorithm, 10.0)
    trees = fastjet.ClusterSequence(constituents, cambridge)
    # Soft drop with beta = 0 is the modified mass-drop tagger (arXiv:1402.2657).
    groomed = trees.exclusive_jets_softdrop_grooming(
        njets=1, beta=0.0, symmetry_cut=SELECTION.zcut, R0=SELECTION.radius
    )
    yield from zip(_arrays(constituents), _arrays(groomed["constituents"]), strict=True)


def _choose(jets: Any) -> Any:
    """Return per event the places of the leading jets that pass the selection.

    `jets` already lacks the jets below the lower cut; no leading jet is passed over for that.
    """
    import awkward

    pt = np.hypot(jets.px, jets.py)
    rapidity = np.arctanh(jets.pz / jets.E)
    leading = awkward.argsort(pt, ascending=False)[:, : SELECTION.jets_per_event]
    kept = (pt < SELECTION.max_pt) & (np.abs(rapidity) < SELECTION.max_rapidity)
    return leading[kept[leading]]


def _tracks(particles: Particles, tracked: NDArray[np.bool_], noise: np.random.Generator) -> Objects:
    pt = particles.pt[tracked]
    resolution = np.hypot(DETECTOR.track_slope * pt, DETECTOR.track_floor)
    measured = np.abs(pt * (1.0 + resolution * noise.normal(size=len(pt))))
    return Objects(particles.event[tracked], measured, particles.eta[tracked], particles.phi[tracked])


def _cells(particles: Particles, chosen: NDArray[np.bool_], width: float) -> Objects:
    """Sum the energy in cells of `width` in pseudorapidity and azimuth, read at their centre."""
    rows = np.floor(particles.eta[chosen] / width).astype(np.int64)
    columns = np.floor((particles.phi[chosen] + np.pi) / width).astype(np.int64)
    places = np.stack([particles.event[chosen], rows, columns])
    (event, row, column), cell = np.unique(places, axis=1, return_inverse=True)
    energy = np.bincount(cell.ravel(), particles.energy[chosen], len(event))

    read = energy > DETECTOR.cell_min_energy
    eta = (row[read] + 0.5) * width
    phi = (column[read] + 0.5) * width - np.pi
    return Objects(event[read], energy[read] / np.cosh(eta), eta, phi)


def _four_momenta(objects: Objects) -> Any:
    """Return one list of records px, py, pz, E per event."""
    import awkward

    order = np.argsort(objects.event, kind="stable")
    pt, eta, phi = objects.pt[order], objects.eta[order], objects.phi[order]
    momenta = {
        "px": pt * np.cos(phi),
        "py": pt * np.sin(phi),
        "pz": pt * np.sinh(eta),
        "E": pt * np.cosh(eta),
    }
    # Events without an object do not occur, and dropping them would do no harm.
    counts = np.bincount(objects.event)
    return awkward.unflatten(awkward.zip(momenta), counts[counts > 0])


def _arrays(jets: Any) -> Iterator[Floats]:
    """Yield each jet's constituents as (n, 4): px, py, pz, E."""
    import awkward

    flat = awkward.flatten(jets)
    table = np.stack([awkward.to_numpy(flat[axis]) for axis in ("px", "py", "pz", "E")], axis=1)
    ends = np.cumsum(awkward.to_numpy(awkward.num(jets)))
    yield from np.split(table, ends[:-1])


def _flat(column: Any) -> NDArray[Any]:
    import awkward

    flat: NDArray[Any] = awkward.to_numpy(awkward.flatten(column))
    return flat
