"""The reference models on jet constituents: their data, their networks as exported, and a short run to the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pqc import engine, graph, models, workflows
from pqc.models.jet_constituents import generate

DATA = models.TABLE["deep_sets"].data_path()
NAMES = ("deep_sets", "mlp_mixer")


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


@pytest.mark.parametrize(("name", "lowest"), [("deep_sets", 0.59), ("mlp_mixer", 0.53)])
def test_the_committed_network_tells_jets_apart(name: str, lowest: float) -> None:
    model = graph.load(models.TABLE[name].path())
    assert accuracy(model, 2000) > lowest


def test_deep_sets_forget_the_order_of_particles() -> None:
    model = graph.load(models.TABLE["deep_sets"].path())
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


# Short runs


SHORT = {"phases.training.epochs": "1", "phases.fine_tuning.epochs": "1", "training.batch": "64"}


def run(name: str, data: Path, out: Path) -> dict[str, Any]:
    source = workflows.resolve(name)
    plan = workflows.load_plan(models.TABLE[name].schedule, source, SHORT)
    return workflows.run(source, plan, data, out, workflows.RunOptions())


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
    summary = run(name, few, tmp_path)
    assert summary["clean_equals_trained"] is True
    assert (summary["hls"]["mismatches"], summary["hls"]["samples"]) == (0, 300)
    clean = graph.load(tmp_path / "clean.onnx")
    assert accuracy(clean, 300) > 0.3
