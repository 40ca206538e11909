"""The Smart Pixels model: its simulation, its sample, its network, and the chain from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pqc import engine, files, graph, workflows
from pqc.errors import DataError
from pqc.models import TABLE
from pqc.models.smart_pixels import convert, generate
from pqc.models.smart_pixels.simulate import (
    SENSOR,
    Tracks,
    collect,
    deposit,
    draw_tracks,
    lorentz_slope,
    mobility,
    normal,
    read_out,
    simulate,
)

MODEL = TABLE["smart_pixels"]


def tracks(count: int, *, cot_alpha: float = 0.0, cot_beta: float = 0.0, x: float = 0.0, y: float = 0.0) -> Tracks:
    """Equal tracks at the speed of light."""
    return Tracks(*(np.full(count, value) for value in (5.0, x, y, cot_alpha, cot_beta, 1.0)))


def test_the_sample_is_what_the_generator_makes() -> None:
    """The first chunk of each split, from the seed that `settings.json` records."""
    seed = json.loads((MODEL.data_path() / "settings.json").read_text())["seed"]
    for split in generate.SPLITS:
        made = generate.sample(split, generate.CHUNK, seed)
        with np.load(MODEL.data_path() / f"{split}.npz") as stored:
            for name, array in made.items():
                assert stored[name].dtype == array.dtype
                assert np.array_equal(stored[name][: generate.CHUNK], array)


def test_the_sample_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.data_path().iterdir()) <= 3_000_000


def test_seeds_matter_and_repeat() -> None:
    first, again, other = (simulate(seed, 50)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_normal_distribution() -> None:
    from math import erfc, sqrt

    z = np.linspace(-6, 6, 241)
    expected = [0.5 * erfc(-value / sqrt(2)) for value in z]
    # atol: the error that Abramowitz and Stegun give for 26.2.17.
    np.testing.assert_allclose(normal(z), expected, rtol=0, atol=7.5e-8)


def test_clusters_grow_with_the_angles(rng: np.random.Generator) -> None:
    """A track crosses thickness * slope / pitch pixels more; in y the Lorentz drift adds to the slope."""
    quiet = replace(SENSOR, noise=0.0, threshold=100.0)
    for name, axis, pitch, drift in (
        ("cot_alpha", 1, SENSOR.pitch_x, 0.0),
        ("cot_beta", 2, SENSOR.pitch_y, lorentz_slope(SENSOR)),
    ):
        lengths = []
        for slope in (0.0, 0.4, 0.8) if axis == 2 else (0.0, 2.0, 4.0):
            made = tracks(300, **{name: slope})
            made = replace(
                made, x=rng.uniform(-0.5, 0.5, 300) * SENSOR.pitch_x, y=rng.uniform(-0.5, 0.5, 300) * SENSOR.pitch_y
            )
            image = read_out(rng, collect(deposit(rng, made, quiet), made, quiet), quiet)[:, 1]
            size = float((image.sum(axis=axis) > 0).sum(axis=1).mean())
            expected = 1 + SENSOR.thickness * (slope + drift) / pitch
            # Diffusion adds, the threshold takes away, less than a pixel.
            assert expected - 0.5 < size < expected + 1.0
            lengths.append(size)
        assert lengths[0] + 1 < lengths[1] < lengths[2] - 1


def test_drift_cancels_where_the_track_follows_it(rng: np.random.Generator) -> None:
    """At a slope of minus the Lorentz angle all electrons land in one row of pixels."""
    made = tracks(200, cot_beta=-lorentz_slope(SENSOR))
    charge = collect(deposit(rng, made), made)[:, 1].sum(axis=(0, 2))
    assert charge[SENSOR.rows // 2] > 0.99 * charge.sum()


def test_charge_is_kept_and_follows_the_path(rng: np.random.Generator) -> None:
    straight, inclined = tracks(2000), tracks(2000, cot_alpha=2.0)
    freed = [deposit(rng, made) for made in (straight, inclined)]
    image = collect(freed[0], straight)[:, 1].sum(axis=(1, 2))
    # rtol: the normal distribution function, good to 1e-7, of 21 + 13 pixels; the array holds all of the charge.
    np.testing.assert_allclose(image, freed[0].sum(axis=1), rtol=1e-5)
    most = [float(np.median(charge.sum(axis=1))) for charge in freed]
    # The most probable charge of a minimum-ionizing particle in 100 µm is some 70 to 75 electrons a µm.
    assert 60 < most[0] / SENSOR.thickness < 80
    # Straggling makes the median grow a little faster than the path.
    assert np.sqrt(5) < most[1] / most[0] < 1.15 * np.sqrt(5)


def test_straggling_has_a_tail(rng: np.random.Generator) -> None:
    charge = deposit(rng, tracks(4000)).sum(axis=1)
    low, middle, high = np.percentile(charge, [5, 50, 95])
    assert high - middle > 2 * (middle - low)


def test_slow_particles_ionize_more(rng: np.random.Generator) -> None:
    fast = tracks(2000)
    slow = replace(fast, speed=np.full(2000, 0.8))
    ratio = np.median(deposit(rng, slow).sum(axis=1)) / np.median(deposit(rng, fast).sum(axis=1))
    assert 1.4 < ratio < 1.8


def test_the_first_sample_has_the_charge_near_the_pixels(rng: np.random.Generator) -> None:
    made = tracks(100)
    early, late = np.moveaxis(collect(deposit(rng, made), made), 1, 0).sum(axis=(2, 3))
    share = SENSOR.samples[0] * mobility(SENSOR) * SENSOR.voltage / SENSOR.thickness**2
    assert 0 < early.sum() < late.sum()
    assert abs(early.sum() / late.sum() - share) < 0.05


def test_slow_tracks_bend(rng: np.random.Generator) -> None:
    """At half of its bending a track of pT has turned by asin(0.3 B R / (2 pT)), to either side."""
    flat = replace(SENSOR, half_width=0.0)
    made = draw_tracks(rng, 1000, flat)
    expected = 0.3 * SENSOR.field * SENSOR.radius * 1e-3 / (2 * made.momentum)
    np.testing.assert_allclose(np.sin(np.arctan(np.abs(made.cot_beta))), expected, rtol=1e-12)
    assert 0.4 < (made.cot_beta > 0).mean() < 0.6


def test_what_is_read(rng: np.random.Generator) -> None:
    quiet = replace(SENSOR, noise=0.0)
    charge = np.array([399.0, 400.0, 3299.0, 1e6]).reshape(1, 1, 1, 4)
    assert read_out(rng, charge, quiet).ravel().tolist() == [0, 4 / 32, 32 / 32, 255 / 32]


def test_noise_alone_reads_nothing(rng: np.random.Generator) -> None:
    assert (read_out(rng, np.zeros((100, 2, 13, 21))) > 0).mean() < 1e-5


def test_the_network_equals_the_committed_file(tmp_path: Path) -> None:
    """The definition with the file's weights gives the file's numbers and its graph."""
    torch = pytest.importorskip("torch")
    from pqc.models.smart_pixels.export import TASKS, build_model, export

    stored = graph.load(MODEL.path())
    weights = {str(value.name): graph.stored(value) for value in stored.graph.initializers.values()}
    network = build_model(TASKS["track"])
    network.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in network.state_dict()})
    export(network, TASKS["track"], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == MODEL.path().read_bytes()
    assert sum(parameter.numel() for parameter in network.parameters()) == 2029
    x = simulate(9, 20)[0].astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(x)).numpy()
    # Two programs' float32 sums of at most 90 terms.
    np.testing.assert_allclose(engine.evaluate(stored, {"x": x})["track"], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_of_the_export_is_that_of_the_schedule(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from pqc.models.smart_pixels.export import loss_of
    from tests import reference

    prediction, target = rng.normal(0, 0.7, (8, 14)), rng.normal(0, 1, (8, 4))
    found = loss_of("track", torch.from_numpy(prediction).float(), torch.from_numpy(target).float())
    # float32
    np.testing.assert_allclose(float(found), reference.gaussian(prediction, target)[0], rtol=1e-5)


def real(path: Path, rng: np.random.Generator, **changes: Any) -> Path:
    """A file in the format of the real clusters; the signal's charge lies in more columns."""
    labels = rng.integers(0, 2, 60)
    cluster = np.zeros((60, 13, 21, 1), np.float16)
    cluster[:, 6, 10, 0] = 1.5
    cluster[labels == 1, 6, 8:13, 0] = 0.75
    arrays = {"cluster": cluster, "y": labels[:, None].astype(np.float32), "z_global": np.zeros((60, 1)), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_convert(tmp_path: Path, rng: np.random.Generator) -> None:
    from click.testing import CliRunner

    train, test = (real(tmp_path / f"{name}.npz", rng) for name in ("a", "b"))
    result = CliRunner().invoke(convert.main, [str(train), str(test), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    for source, name in ((train, "train"), (test, "test")):
        with np.load(source) as before, np.load(tmp_path / "out" / f"{name}.npz") as after:
            assert after["x"].shape == (60, 1, 13, 21)
            assert np.array_equal(after["x"][:, 0], before["cluster"][..., 0])
            assert np.array_equal(after["y"], before["y"][:, 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": None}, "no array cluster"),
        ({"cluster": np.zeros((60, 21, 13, 1))}, "the clusters have the shape [60, 21, 13, 1], not [60, 13, 21, 1]"),
        ({"y": np.full((60, 1), 0.5)}, "the labels are not 0 and 1"),
    ],
)
def test_convert_refuses(tmp_path: Path, rng: np.random.Generator, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words.replace("[", "\\[").replace("]", "\\]")):
        convert.convert(real(tmp_path / "broken.npz", rng, **changes))


def test_a_short_run_is_exact_in_firmware(tmp_path: Path) -> None:
    """The schedule with one epoch a phase and the whole share pruned in it, on a part of the sample."""
    for split, count in (("train", 3000), ("test", 500)):
        with np.load(MODEL.data_path() / f"{split}.npz") as arrays:
            files.write_compressed(tmp_path / f"{split}.npz", {name: arrays[name][:count] for name in ("x", "y")})
    source = workflows.resolve("smart_pixels")
    settings = {f"phases.{phase}.epochs": "1" for phase in ("pretraining", "training", "fine_tuning")}
    plan = workflows.load_plan(None, source, {**settings, "pruning.options.epsilon": "1.0"})
    assert plan.name == "smart-pixels"
    summary = workflows.run(source, plan, tmp_path, tmp_path / "out", workflows.RunOptions())
    assert summary["hls"]["mismatches"] == 0
    assert summary["hls"]["samples"] == 500
    assert summary["clean_equals_trained"]
    assert 0.25 < summary["keep_ratio"] <= 0.31
    bits = {layer["name"]: layer["bits_weight"] for layer in summary["layers"] if layer["weights"]}
    assert bits == {"depthwise": 4, "pointwise": 4, "conv": 4, "fc1": 8, "fc2": 8, "fc3": 8}
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    pruned, tuned = (record["validation_loss"] for record in history[-2:])
    # Everything was pruned at once, in a dozen steps; fine-tuning regains a good part.
    assert tuned < pruned - 1
