"""Charge clusters of charged pions in one silicon pixel layer; `DATASHEET.md` has the sources of the numbers.

Coordinates of the sensor: x along the beam and the magnetic field, y in the direction of bending, depth from the
pixels into the silicon. Lengths are in µm, charges in electrons, momenta in GeV, times in ns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TARGETS = ("x_midplane", "y_midplane", "cot_alpha", "cot_beta")


@dataclass(frozen=True)
class Sensor:
    """A flat barrel module and its readout.

    Args:
        rows: pixels in y; `columns` in x, with the pitches in µm.
        thickness: µm; `slices` is how many layers of depth are followed.
        voltage: V, over a uniform field; `temperature` in K; `field` in T.
        radius: of the layer, mm; `half_width` of the module in y, mm.
        noise: electrons, Gaussian, in every pixel and sample.
        threshold: electrons, below which a sample reads zero.
        step: electrons a count; `counts` is the largest.
        unit: counts that the network reads as 1.
        samples: times in ns at which the collected charge is read.
    """

    rows: int = 13
    columns: int = 21
    pitch_y: float = 12.5
    pitch_x: float = 50.0
    thickness: float = 100.0
    slices: int = 50
    voltage: float = 100.0
    temperature: float = 263.0
    field: float = 3.8
    radius: float = 30.0
    half_width: float = 8.0
    noise: float = 80.0
    threshold: float = 400.0
    step: float = 100.0
    counts: int = 255
    unit: int = 32
    samples: tuple[float, float] = (0.5, 4.0)


@dataclass(frozen=True)
class Beam:
    """Where tracks come from: flat in transverse momentum (GeV), pseudorapidity, charge and place.

    Args:
        momentum: range of the transverse momentum.
        pseudorapidity: its largest magnitude.
        spread: largest distance in pixels of the track, at half the depth, from the middle of the array.
    """

    momentum: tuple[float, float] = (0.2, 5.0)
    pseudorapidity: float = 2.0
    spread: float = 1.5


@dataclass(frozen=True)
class Ionization:
    """Collisions of a track with electrons: a Poisson number of them, energies falling as 1 / E².

    Args:
        collisions: a µm, for a particle of speed 1; others have 1 / β² as many.
        least: eV, the least energy of a collision; `most` the largest that stays in a pixel.
        pair: eV for an electron-hole pair.
    """

    collisions: float = 4.0
    least: float = 8.0
    most: float = 1.0e5
    pair: float = 3.62


SENSOR, BEAM, IONIZATION = Sensor(), Beam(), Ionization()
PION_MASS = 0.13957
BOLTZMANN = 8.617e-5  # eV/K, hence V/K for one elementary charge
HALL_FACTOR = 1.15
CURVATURE = 0.3  # GeV / (T m)
# The targets are divided by these: µm, µm, and two slopes.
SCALES = (75.0, 18.75, 4.0, 0.5)


@dataclass(frozen=True)
class Tracks:
    """Tracks, each an array (N,).

    Args:
        momentum: transverse, GeV.
        x: µm from the middle of the array, at half the depth; likewise `y`.
        cot_alpha: slope dx / d(depth).
        cot_beta: slope dy / d(depth).
        speed: in units of c.
    """

    momentum: Floats
    x: Floats
    y: Floats
    cot_alpha: Floats
    cot_beta: Floats
    speed: Floats

    def targets(self) -> NDArray[np.float32]:
        """The four numbers (N, 4) that the network estimates, scaled to about one."""
        columns = (self.x, self.y, self.cot_alpha, self.cot_beta)
        return np.stack([column / scale for column, scale in zip(columns, SCALES, strict=True)], 1).astype(np.float32)


def mobility(sensor: Sensor) -> float:
    """Mobility of electrons in µm²/(V ns), with velocity saturation (Jacoboni et al. 1977)."""
    kelvin = sensor.temperature
    field = sensor.voltage / sensor.thickness * 1e4  # V/cm
    velocity, critical, power = 1.53e9 * kelvin**-0.87, 1.01 * kelvin**1.55, 0.0257 * kelvin**0.66
    in_cm = velocity / critical / (1 + (field / critical) ** power) ** (1 / power)  # cm²/(V s)
    return float(in_cm * 0.1)


def lorentz_slope(sensor: Sensor) -> float:
    """Tangent of the angle at which electrons drift: the Hall mobility (m²/(V s)) times the field (T)."""
    return HALL_FACTOR * mobility(sensor) * 1e-3 * sensor.field


def draw_tracks(rng: np.random.Generator, count: int, sensor: Sensor = SENSOR, beam: Beam = BEAM) -> Tracks:
    """Draw tracks from the beam line through the module.

    In the transverse plane a track meets the module at the angle of the place, atan(y / R), and at half of its bending,
    asin(0.3 B R / (2 pT)), in the direction of its charge.
    """
    momentum = rng.uniform(*beam.momentum, count)
    eta = rng.uniform(-beam.pseudorapidity, beam.pseudorapidity, count)
    charge = rng.choice((-1.0, 1.0), count)
    place = rng.uniform(-sensor.half_width, sensor.half_width, count)
    x = rng.uniform(-1, 1, count) * beam.spread * sensor.pitch_x
    y = rng.uniform(-1, 1, count) * beam.spread * sensor.pitch_y
    bending = np.arcsin(CURVATURE * sensor.field * sensor.radius * 1e-3 / (2 * momentum))
    angle = np.arctan(place / sensor.radius) + charge * bending
    total = momentum * np.cosh(eta)
    speed = total / np.hypot(total, PION_MASS)
    return Tracks(momentum, x, y, np.sinh(eta) / np.cos(angle), np.tan(angle), speed)


def deposit(
    rng: np.random.Generator, tracks: Tracks, sensor: Sensor = SENSOR, ionization: Ionization = IONIZATION
) -> Floats:
    """Electrons (N, slices) that each track frees in each layer of depth."""
    length = sensor.thickness / sensor.slices * np.sqrt(1 + tracks.cot_alpha**2 + tracks.cot_beta**2)
    mean = ionization.collisions * length / tracks.speed**2
    number = rng.poisson(mean[:, None], (len(mean), sensor.slices))
    share = rng.random(int(number.sum()))
    # The inverse of the distribution function of 1 / E² between the least and the most energy.
    energy = ionization.least / (1 - share * (1 - ionization.least / ionization.most))
    place = np.repeat(np.arange(number.size), number.ravel())
    return np.bincount(place, energy, number.size).reshape(number.shape) / ionization.pair


def collect(electrons: Floats, tracks: Tracks, sensor: Sensor = SENSOR) -> Floats:
    """Charge (N, samples, rows, columns) in electrons on every pixel at each sample, without noise.

    Electrons of a layer drift to the pixels, are shifted in y by the Lorentz angle, and spread as a Gaussian of
    variance 2 (kT / q) d / E, for a drift over d. They count when they arrive.
    """
    depth = (np.arange(sensor.slices) + 0.5) * sensor.thickness / sensor.slices
    field = sensor.voltage / sensor.thickness
    sigma = np.sqrt(2 * BOLTZMANN * sensor.temperature * depth / field)
    from_middle = depth - sensor.thickness / 2
    x = tracks.x[:, None] + tracks.cot_alpha[:, None] * from_middle
    # Electrons from half the depth land in the middle: the constant shift is taken out, as an alignment would.
    y = tracks.y[:, None] + (tracks.cot_beta[:, None] + lorentz_slope(sensor)) * from_middle
    in_columns = shares(x, sigma, sensor.columns, sensor.pitch_x)
    in_rows = shares(y, sigma, sensor.rows, sensor.pitch_y)
    arrival = depth / (mobility(sensor) * field)
    images = []
    for time in sensor.samples:
        arrived = electrons * (arrival <= time)
        images.append(np.matmul((arrived[:, :, None] * in_rows).transpose(0, 2, 1), in_columns))
    return np.stack(images, 1)


def shares(middle: Floats, sigma: Floats, pixels: int, pitch: float) -> Floats:
    """The part (N, slices, pixels) of Gaussians around `middle` (N, slices) within each pixel of a centred row."""
    edges = (np.arange(pixels + 1) - pixels / 2) * pitch
    return np.diff(normal((edges - middle[..., None]) / sigma[:, None]), axis=-1)


def normal(z: Floats) -> Floats:
    """The normal distribution function to 1e-7, by Abramowitz and Stegun 26.2.17."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    tail = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail *= np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return np.where(z > 0, 1 - tail, tail)


def read_out(rng: np.random.Generator, charge: Floats, sensor: Sensor = SENSOR) -> NDArray[np.float16]:
    """What the network reads: charge with noise above the threshold, in counts, as multiples of 1 / unit."""
    noisy = charge + rng.normal(0, sensor.noise, charge.shape)
    counts = np.clip(np.floor(noisy / sensor.step), 0, sensor.counts)
    return (np.where(noisy < sensor.threshold, 0, counts) / sensor.unit).astype(np.float16)


def simulate(seed: int, count: int, sensor: Sensor = SENSOR) -> tuple[NDArray[np.float16], Tracks]:
    """Clusters (N, samples, rows, columns) and their tracks; the same seed and count give the same ones."""
    rng = np.random.default_rng(seed)
    tracks = draw_tracks(rng, count, sensor)
    electrons = deposit(rng, tracks, sensor)
    return read_out(rng, collect(electrons, tracks, sensor), sensor), tracks
