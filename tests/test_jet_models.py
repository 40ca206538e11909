"""The reference models on jet constituents: their data, their networks as exported, and a short run to the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from pqc import engine, graph, library, models, pipeline, workflows
from pqc.models.jet_constituents import generate

DATA = models.TABLE["deep_sets"].data_path()
NAMES = ("deep_sets", "mlp_mixer", "particle_transformer")


def split(name: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return arrays["x"][:count].astype(np.float32), arrays["y"][:count]


def accuracy(model: ir.Model, count: int) -> float:
    x, y = split("test", count)
    return float((engine.evaluate(model, {"x": x})["probabilities"].argmax(axis=1) == y).mean())


# The data


def test_constituents_of_a_jet_by_hand() -> None:
    """Two particles at pseudorapidity 0, at azimuth 0 and 0.2, of 3 and 1 GeV."""
    azimuth, pt = np.array([0.0, 0.2]), np.array([1.0, 3.0])
    jet = np.stack([pt * np.cos(azimuth), pt * np.sin(azimuth), 0 * pt, pt], axis=1)
    total = jet.sum(axis=0)
    axis = np.arctan2(total[1], total[0])
    expected = np.zeros((5, 1, 32))
    expected[0, 0, :2] = np.log(np.array([3, 1]) / np.hypot(total[0], total[1]))
    expected[2, 0, :2] = [0.2 - axis, -axis]
    expected[3, 0, :2] = [0.2 - axis, axis]
    expected[4, 0, :2] = 1
    np.testing.assert_allclose(generate.constituents(jet), expected, rtol=1e-12, atol=1e-15)


def test_azimuth_goes_round() -> None:
    azimuth = np.array([np.pi - 0.1, -np.pi + 0.1])
    jet = np.stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth, np.ones(2)], axis=1)
    np.testing.assert_allclose(generate.constituents(jet)[2, 0, :2], [-0.1, 0.1], atol=1e-12)


def test_only_the_leading_particles_are_kept() -> None:
    pt = np.arange(1.0, 41.0)
    jet = np.stack([pt, 0 * pt, 0 * pt, pt], axis=1)
    found = generate.constituents(jet)
    np.testing.assert_allclose(np.exp(found[0, 0]) * pt.sum(), np.arange(40.0, 8.0, -1.0))
    assert found[4].all()


def test_standardized_particles_and_zeros_elsewhere() -> None:
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (50, 5, 1, 32))
    x[:, 4] = np.arange(32) < random.integers(1, 33, (50, 1, 1))
    x *= x[:, 4:]
    mean, std = generate.moments(x)
    found = generate.standardize(x, mean, std).astype(np.float64)
    present = x[:, 4] > 0
    for channel in range(4):
        assert found[:, channel][present].mean() == pytest.approx(0, abs=2**-7)
        assert found[:, channel][present].std() == pytest.approx(1, abs=2**-7)
    assert not found[np.broadcast_to(~present[:, None], found.shape)].any()
    np.testing.assert_array_equal(found[:, 4], x[:, 4])


def test_the_committed_sample_is_what_its_datasheet_says() -> None:
    record = json.loads((DATA / "standardization.json").read_text())
    assert tuple(record["features"]) == generate.FEATURES
    for name, per_class in (("train", 3600), ("test", 1600)):
        x, y = split(name)
        assert x.shape == (5 * per_class, 5, 1, 32)
        assert np.bincount(y).tolist() == [per_class] * 5
        np.testing.assert_array_equal(x * 128, np.rint(x * 128))
        present = x[:, 4:] > 0
        assert not x[np.broadcast_to(~present, x.shape)].any()
        physical = x[:, 0] * record["std"][0] + record["mean"][0]
        falling = np.diff(np.where(present[:, 0], physical, -20.0), axis=-1)
        assert falling.max() <= 0
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 5_000_000


@pytest.mark.slow
def test_the_sample_is_made_again(tmp_path: Path) -> None:
    """The generator gives the same jets for a seed; a part has 2,000 jets of a class, whatever is asked for."""
    pytest.importorskip("pythia8mc")
    first, second = (generate.simulate_constituents("w", 12_000, count) for count in (3, 5))
    np.testing.assert_array_equal(first, second[:3])
    record = json.loads((DATA / "standardization.json").read_text())
    made = generate.standardize(first, np.array(record["mean"]), np.array(record["std"]))
    x, y = split("train")
    for jet in made.astype(np.float32):
        assert np.any(np.all(x[y == 2] == jet, axis=(1, 2, 3)))


# The networks


@pytest.mark.parametrize(("name", "lowest"), [("deep_sets", 0.59), ("mlp_mixer", 0.53), ("particle_transformer", 0.6)])
def test_the_committed_network_tells_jets_apart(name: str, lowest: float) -> None:
    model = graph.load(models.TABLE[name].path())
    assert accuracy(model, 2000) > lowest


@pytest.mark.parametrize("name", ["deep_sets", "particle_transformer"])
def test_the_order_of_particles_is_forgotten(name: str) -> None:
    model = graph.load(models.TABLE[name].path())
    x, _ = split("test", 200)
    turned = x[..., np.random.default_rng(0).permutation(32)]
    found, same = (engine.evaluate(model, {"x": given})["probabilities"] for given in (x, turned))
    np.testing.assert_allclose(found, same, rtol=0, atol=1e-5)
    assert found.std(axis=0).min() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_definition_is_that_of_the_file(name: str) -> None:
    """With the file's parameters the network in PyTorch gives the file's results."""
    torch = pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    module = pytest.importorskip(f"pqc.models.{name}.export")
    network = module.build_model().eval()
    proto = onnx.load(str(models.TABLE[name].path()))
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    wanted = {key for key in network.state_dict() if "num_batches" not in key}
    assert wanted <= set(stored)
    network.load_state_dict({key: torch.tensor(stored[key]) for key in wanted}, strict=False)
    x, _ = split("test", 100)
    with torch.no_grad():
        expected = network(torch.tensor(x)).softmax(dim=1).numpy()
    found = engine.evaluate(graph.load(models.TABLE[name].path()), {"x": x})["probabilities"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_sizes_have_as_many_parameters_as_the_page_says() -> None:
    pytest.importorskip("torch")
    from pqc.models.particle_transformer import export, network

    assert network.count(export.build_model("SMALL")) == 10_927
    assert network.count(export.build_model("PUBLISHED")) == 2_139_853


def test_pair_features_are_those_of_the_four_momenta() -> None:
    """Against sums and products of four-vectors in float64."""
    torch = pytest.importorskip("torch")
    from pqc.models.particle_transformer import network

    record = json.loads((DATA / "standardization.json").read_text())
    x, _ = split("test", 20)
    mean, std = np.array(record["mean"]), np.array(record["std"])
    found = network.PairFeatures(record["mean"], record["std"])(torch.tensor(x)).numpy()
    log_pt, eta, phi = (x[:, i, 0].astype(np.float64) * std[i] + mean[i] for i in range(3))
    pt = np.exp(log_pt)
    p = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)])
    total = p[:, :, :, None] + p[:, :, None, :]
    mass = total[3] ** 2 - (total[:3] ** 2).sum(axis=0)
    distance = np.hypot(eta[:, :, None] - eta[:, None, :], phi[:, :, None] - phi[:, None, :])
    lower, both = np.minimum(pt[:, :, None], pt[:, None, :]), pt[:, :, None] + pt[:, None, :]
    far = (distance > 0.05) & (x[:, 4, 0, :, None] * x[:, 4, 0, None, :] > 0)
    distance, mass = np.where(far, distance, 1.0), np.where(far, mass, 1.0)
    expected = [np.log(lower * distance), np.log(lower / both), np.log(distance), np.log(mass)]
    assert far.mean() > 0.3
    for channel, values in enumerate(expected):
        scaled = (values - network.PAIR_MEAN[channel]) / network.PAIR_STD[channel]
        np.testing.assert_allclose(found[:, channel][far], scaled[far], rtol=0, atol=1e-3)
    padded = np.broadcast_to((x[:, 4] * x[:, 4].transpose(0, 2, 1) == 0)[:, None], found.shape)
    assert not found[padded].any()


# Short runs


SHORT = {"phases.training.epochs": "1", "phases.fine_tuning.epochs": "1", "training.batch": "64"}


def run(name: str, data: Path, out: Path, options: workflows.RunOptions) -> dict[str, Any]:
    source = workflows.resolve(name)
    plan = workflows.load_plan(models.TABLE[name].schedule, source, SHORT)
    return workflows.run(source, plan, data, out, options)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few of the jets."""
    folder = tmp_path_factory.mktemp("few")
    for name, count in (("train", 2000), ("test", 300)):
        x, y = split(name, count)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return folder


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("name", ["deep_sets", pytest.param("mlp_mixer", marks=pytest.mark.slow)])
def test_a_short_run_ends_in_firmware_that_computes_the_same(name: str, few: Path, tmp_path: Path) -> None:
    summary = run(name, few, tmp_path, workflows.RunOptions())
    assert summary["clean_equals_trained"] is True
    assert (summary["hls"]["mismatches"], summary["hls"]["samples"]) == (0, 300)
    clean = graph.load(tmp_path / "clean.onnx")
    assert accuracy(clean, 300) > 0.3


@pytest.mark.slow
def test_a_short_run_of_the_particle_transformer(few: Path, tmp_path: Path) -> None:
    """Pruned to the published share, and what qonnx computes is what the training graph does, bit for bit."""
    summary = run("particle_transformer", few, tmp_path, workflows.RunOptions(hls=False, verify_each=False))
    assert summary["clean_equals_trained"] is True
    assert summary["keep_ratio"] <= 0.385
    assert "Slice" in summary["hls"]["skipped"] and "Slice" in (tmp_path / "report.html").read_text()
    trained, clean = (graph.load(tmp_path / f"{name}.onnx") for name in ("trained", "clean"))
    x, _ = split("test", 16)
    library.link(clean)
    pipeline.run(clean, "fix-batch{size=16}")
    assert all(graph.dims(value) for node in clean.graph for value in node.outputs if value.shape)
    library.unlink(clean)
    found = execute_onnx(ModelWrapper(graph.to_proto(clean)), {"x": x})["probabilities"]
    np.testing.assert_array_equal(found, engine.evaluate(trained, {"x": x})["probabilities"])
    assert found.std(axis=0).min() > 0.01


@pytest.mark.slow
def test_the_published_size_trains() -> None:
    pytest.importorskip("torch")
    script = Path(__file__).parent / "benchmarks" / "particle_transformer_published.py"
    command = [sys.executable, str(script), "--particles", "32", "--batch", "4", "--steps", "3"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert (found["trained"], found["prunable"]) == (2_139_341, 2_107_392)
    assert np.isfinite(found["losses"]).all() and len(set(found["losses"])) == 3
