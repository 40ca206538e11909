"""HEPT: its hashing and attention against NumPy, its data, its losses and metrics, and a run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from test_differentiation import TRAIN, assert_finite_differences
from test_functions import backward, forward

import reference_hept as ref
from pqc import data, engine, graph, layers, pipeline, schedule, workflows
from pqc.errors import DataError
from pqc.functions.losses import LOSSES, target_of
from pqc.metrics import metric, metric_name
from pqc.models import TABLE
from pqc.models.hept import pileup, tracking
from pqc.models.hept.convert import clusters
from pqc.models.hept.generate import simulate, write
from pqc.models.hept.sizes import SMALL, TASKS
from pqc.workflows.compression import NORMALIZE

TRACKER = tracking.DETECTOR
PUBLISHED_SHARE = {"tracking": 168461 / 329400, "pileup": 137833 / 313979}
"""The weights that the published networks keep; the schedules keep at most as many."""


def network(task: str) -> ir.Model:
    """A committed network, normalized."""
    model = graph.load(TABLE[f"hept_{task}"].path())
    pipeline.run(model, NORMALIZE)
    return model


def rows(task: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Events of the committed test sample."""
    with np.load(TABLE[f"hept_{task}"].data_path() / "test.npz") as arrays:
        return arrays["x"][:count].astype(np.float32), arrays["y"][:count].astype(np.float32)


def without_ties(task: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Events moved a little off the numbers of half precision, so that no two points have equal coordinates."""
    x, _ = rows(task, count)
    moved = x[..., 1:] + x[..., :1] * rng.normal(0, 1e-3, (*x.shape[:2], x.shape[2] - 1)).astype(np.float32)
    return np.concatenate([x[..., :1], moved], axis=-1)


def inner(model: ir.Model, x: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Values inside a network, by name."""
    found = graph.copy(model)
    values = {value.name: value for value in graph.values(found.graph)}
    found.graph.outputs[:] = [values[name] for name in names]
    graph.remove_unused(found.graph)
    result = engine.evaluate(found, {"x": x})
    return [result[name] for name in names]


def attention_parts(model: ir.Model) -> dict[str, str]:
    """The names of what goes into the first layer's sorts and comes out."""
    nodes = list(model.graph)
    first = next(
        place for place, node in enumerate(nodes) if node.op_type == "TopK" and "attention.0" in str(node.name)
    )
    topk = [node for node in nodes[first:] if node.op_type == "TopK" and "attention.0" in str(node.name)]
    gathers = [node for node in nodes if node.op_type == "GatherElements" and "attention.0" in str(node.name)]
    by_query, by_key, _ = topk
    parts = {"by_query": by_query.outputs[1], "by_key": by_key.outputs[1]}
    parts |= {"query_sum": by_query.inputs[0], "key_sum": by_key.inputs[0]}
    for name, node in zip(("query", "both", "mixed"), gathers, strict=True):
        parts[name] = node.inputs[0]
    add = by_query.inputs[0].producer()
    parts |= {"query_hash": add.inputs[0], "shift": add.inputs[1], "key_hash": by_key.inputs[0].producer().inputs[0]}
    parts["summed"] = gathers[2].outputs[0]
    return {name: str(value.name) for name, value in parts.items()}


@pytest.mark.parametrize("task", TASKS)
def test_hashes_sorts_and_blocks_equal_the_reference(task: str) -> None:
    """Orders by region and hash, then block attention, of every head and table of the first layer."""
    model, size = network(task), SMALL[task]
    x, _ = rows(task, 3)
    parts = attention_parts(model)
    found = dict(zip(parts, inner(model, x, list(parts.values())), strict=True))
    stored = {name: graph.stored(value) for name, value in model.graph.initializers.items()}
    shape = (size.heads, size.tables, size.width + len(size.coordinates))
    projections = next(array for array in stored.values() if array.shape == shape)
    for event, head in np.ndindex(len(x), size.heads):
        real = x[event, :, 0] > 0
        query, both = found["query"][event, head], found["both"][event, head]
        key, value = both[:, : query.shape[1]], both[:, query.shape[1] :]
        orders = []
        for table in range(size.tables):
            # atol: float32 products of at most 16 terms.
            expected = query.astype(np.float64) @ projections[head, table]
            np.testing.assert_allclose(found["query_hash"][event, head, table], expected, rtol=1e-4, atol=1e-4)
            pair = []
            for which in ("query", "key"):
                order = found[f"by_{which}"][event, head, table]
                assert sorted(order) == list(range(size.points))
                sums = found[f"{which}_sum"][event, head, table]
                assert np.array_equal(order, np.argsort(sums, kind="stable"))
                assert not real[order[real.sum() :]].any()  # padding comes last
                pair.append(order)
            orders.append((pair[0], pair[1]))
        expected = ref.block_attention(query.astype(np.float64), key.astype(np.float64), value, orders, size.block)
        summed = found["summed"].reshape(len(x), size.heads, size.tables, size.points, -1).sum(axis=2)
        # float32 exponentials of differences of squares: points that count for a query are about as long as it is.
        squares = np.square(query[real].astype(np.float64)).sum(axis=-1, keepdims=True)
        bound = (2e-3 + 2 * np.finfo(np.float32).eps * squares) * (1 + np.abs(expected[real]))
        assert (np.abs(summed[event, head][real] - expected[real]) <= bound).all()
        assert np.median(squares) < 1e4  # most are held to a few thousandths
        assert np.abs(expected[real]).max() > 0.1


@pytest.mark.parametrize("task", TASKS)
def test_regions_equal_the_reference_and_come_before_hashes(task: str, rng: np.random.Generator) -> None:
    model, size = network(task), SMALL[task]
    x = without_ties(task, 3, rng)
    scaled = next(node for node in model.graph if any(value and value.name == "stride" for value in node.inputs))
    numbers = scaled.outputs[0].consumers()[0].outputs[0]
    divisions = [node for node in model.graph if node.op_type == "Div"][:2]
    lengths = np.stack([graph.stored(node.inputs[1])[0, ..., 0] for node in divisions])
    stride = graph.stored(model.graph.initializers["stride"])[0, ..., 0]
    parts = attention_parts(model)
    names = [str(numbers.name), parts["query_hash"], parts["by_query"]]
    found, hashes, orders = inner(model, x, names)
    padding = 1e6 * (1 - x[..., :1])
    for event, head, table in np.ndindex(len(x), size.heads, size.tables):
        place = (x[event][:, size.coordinates[:2]] + padding[event]).astype(np.float32)
        expected = ref.regions(place, lengths[:, head, table], stride[head, table])
        np.testing.assert_array_equal(found[event, head, table], expected)
        real = int(x[event, :, 0].sum())
        wanted = ref.order(hashes[event, head, table], expected + 1e6 * (1 - x[event, :, 0]))
        # The graph sorts float32 sums of hash and region: a few neighbours of nearly equal hashes may change places.
        assert np.mean(orders[event, head, table][:real] == wanted[:real]) > 0.98
        assert len(np.unique(expected[x[event, :, 0] > 0])) > 3


@pytest.mark.parametrize("task", TASKS)
def test_embeddings_follow_a_permutation_of_the_points(task: str, rng: np.random.Generator) -> None:
    model = network(task)
    x = without_ties(task, 4, rng)
    order = rng.permutation(x.shape[1])
    output = str(model.graph.outputs[0].name)
    first, second = engine.evaluate(model, {"x": x})[output], engine.evaluate(model, {"x": x[:, order]})[output]
    real = x[..., 0] > 0
    close = np.isclose(first[:, order], second, rtol=1e-3, atol=1e-3).reshape(len(x), x.shape[1], -1).all(axis=-1)
    # A rounding of a hash may move a point across the border of a block: they are few.
    assert close[real[:, order]].mean() > 0.98
    assert first[real].std() > 0.05


@pytest.mark.parametrize("task", TASKS)
def test_padding_changes_nothing(task: str) -> None:
    """What stands in the columns of padding does not reach the points."""
    model = network(task)
    x, _ = rows(task, 4)
    output = str(model.graph.outputs[0].name)
    real = x[..., 0] > 0
    filled = np.where(real[..., None], x, np.float32(0.7))
    filled[..., 0] = x[..., 0]
    first, second = (engine.evaluate(model, {"x": one})[output][real] for one in (x, filled))
    np.testing.assert_array_equal(first, second)


def test_gradient_through_a_gather_by_a_sort() -> None:
    """Values follow the order; the operators that only make indices need no gradient of their own."""
    model = onnx_model(
        "(float[n,6] x) => (float[n,6] y) { h = MatMul (x, w) m = ReduceMin <keepdims: int = 1> (h, axis)"
        " k = Sub (h, m) unread, i = TopK <axis: int = 1> (k, six) t = GatherElements <axis: int = 1> (h, i)"
        " y = Tanh (t) }",
        w=np.random.default_rng(8).normal(0, 0.5, (6, 6)),
        axis=np.array([1]),
        six=np.array([6]),
    )
    assert_finite_differences(model, f"normalize,legalize,{TRAIN}", step=2e-4, size=0.5)


# Losses and metrics


def numeric(loss: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """Central differences in float64."""
    gradient = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = x.astype(np.float64)
            moved[place] += step
            ends.append(loss(moved))
        gradient[place] = (ends[0] - ends[1]) / 2e-6
    return gradient


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "width": 1.5, "radius": 0.4}])
def test_info_nce(rng: np.random.Generator, options: dict[str, float]) -> None:
    x = rng.normal(0, 0.5, (2, 14, 3)).astype(np.float32)
    target = np.concatenate([rng.integers(-2, 4, (2, 14, 1)), rng.normal(0, 0.7, (2, 14, 2))], axis=-1)
    target = target.astype(np.float32)
    # rtol, atol: float32 sums of some ten exponentials of numbers up to 20.
    np.testing.assert_allclose(
        forward(LOSSES["info-nce"], x, target, **options), ref.info_nce(x, target, **options), rtol=1e-5
    )
    expected = numeric(lambda moved: ref.info_nce(moved, target, **options), x)
    found = backward(LOSSES["info-nce"], 2.5, x, target, **options)
    np.testing.assert_allclose(found, 2.5 * expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    assert np.all(found[target[..., 0] == -2] == 0)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal(rng: np.random.Generator, gamma: float) -> None:
    x = rng.normal(0, 3, (3, 9)).astype(np.float32)
    target = rng.integers(-1, 2, (3, 9)).astype(np.float32)
    np.testing.assert_allclose(forward(LOSSES["focal"], x, target, gamma=gamma), ref.focal(x, target, gamma), rtol=1e-5)
    expected = numeric(lambda moved: ref.focal(moved, target, gamma), x)
    found = backward(LOSSES["focal"], 2.5, x, target, gamma=gamma)
    np.testing.assert_allclose(found, 2.5 * expected, rtol=1e-4, atol=1e-7)
    assert np.all(found[target == -1] == 0)


@pytest.mark.parametrize("loss", ["info-nce", "focal"])
def test_nothing_that_counts_is_no_loss(loss: str) -> None:
    x = np.random.default_rng(0).normal(0, 40, (2, 5, 3) if loss == "info-nce" else (2, 5)).astype(np.float32)
    target = np.full(x.shape, -1, np.float32)
    assert forward(LOSSES[loss], x, target) == 0
    assert np.all(backward(LOSSES[loss], 1.0, x, target) == 0)


def test_neighbour_accuracy_by_hand() -> None:
    """Two clusters of three and two on a line, a point of none between, one of padding on top of them all."""
    place = np.array([0.0, 1.0, 2.0, 1.6, 5.0, 5.5, 0.1])[None, :, None]
    cluster = np.array([0, 0, 0, -1, 1, 1, -2.0])
    target = np.stack([cluster, cluster * 0, cluster * 0], axis=-1)[None]
    # 0: its two nearest are 1 and 1.6; 1: 1.6 and then 0 or 2; 2: 1.6 and 1; the pair finds itself.
    assert metric("info-nce", place, target) == pytest.approx((0.5 + 0.5 + 0.5 + 1 + 1) / 5)
    assert metric_name("info-nce") == "neighbour_accuracy"


def test_average_precision_by_hand() -> None:
    scores = np.array([[4.0, 3.0, 3.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    target = np.array([[1.0, 0.0, 1.0, 1.0, -1.0], [0.0, 0.0, -1.0, -1.0, -1.0]])
    # One at 1/1; the tie: one more of three at 2/3; the last at 3/4. The second event has no one.
    assert metric("focal", scores, target) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_the_target_of_a_contrastive_loss_has_three_columns(tmp_path: Path) -> None:
    model = onnx_model("(float[n,4,3] x) => (float[n,4,2] y) { y = MatMul (x, w) }", w=np.ones((3, 2)))
    x = np.zeros((10, 4, 3), np.float32)
    np.savez(tmp_path / "right.npz", x=x, y=np.zeros((10, 4, 3)))
    np.savez(tmp_path / "wrong.npz", x=x, y=np.zeros((10, 4, 2)))
    shape = target_of("info-nce").shape
    found = data.load(tmp_path / "right.npz", model.graph, labels=False, target_dims=shape)
    assert found.train.target.shape == (10, 4, 3)
    with pytest.raises(DataError, match=r"the target needs numbers of the shape \[rows, 4, 3\]"):
        data.load(tmp_path / "wrong.npz", model.graph, labels=False, target_dims=shape)


# Data


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_sample_is_what_the_generator_writes(task: str, tmp_path: Path) -> None:
    folder = TABLE[f"hept_{task}"].data_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    write(tmp_path / "test.npz", *simulate(task, "test", 100, 1))
    assert (tmp_path / "test.npz").read_bytes() == (folder / "test.npz").read_bytes()
    x, _ = rows(task, 100)
    assert not np.array_equal(simulate(task, "train", 1, 1)[0], x[:1])


def test_helices_cross_their_layers() -> None:
    """Every crossing lies on the circle of its radius of curvature, through the beam line, and on the line in z."""
    momentum, eta, phi = np.array([0.7, 2.0, 9.0]), np.array([0.3, -0.8, 0.1]), np.array([0.1, -0.5, 0.4])
    vertex, charge = np.array([10.0, -20.0, 0.0]), np.array([1.0, -1.0, 1.0])
    for place, radius in enumerate(TRACKER.radii):
        azimuth, z, seen = tracking.cross(place, momentum, eta, phi, vertex, charge, TRACKER)
        curvature = 1e3 * momentum[seen] / (0.299792458 * TRACKER.field)
        centre = curvature * np.exp(1j * (phi[seen] - charge[seen] * np.pi / 2))
        np.testing.assert_allclose(np.abs(radius * np.exp(1j * azimuth) - centre), curvature, rtol=1e-12)
        arc = 2 * curvature * np.arcsin(radius / (2 * curvature))
        np.testing.assert_allclose(z - vertex[seen], arc * np.sinh(eta[seen]), rtol=1e-9)


def test_events_of_hits_are_sane() -> None:
    x, y = (part[:50] for part in rows("tracking", 50))
    real, cluster = x[..., 0] == 1, y[..., 0]
    assert np.array_equal(real, cluster >= -1)
    assert set(np.unique(x[real][:, 7] * 10).round(1)) <= set(range(10))
    sizes = [np.bincount(one[one >= 0].astype(int)) for one in cluster]
    assert 5 < np.mean(np.concatenate([size[size > 0] for size in sizes])) <= 10
    # A particle has at most one hit a layer.
    for features, labels in zip(x, cluster, strict=True):
        for number in np.unique(labels[labels >= 0]):
            places = features[labels == number][:, 7]
            assert len(np.unique(places)) == len(places)


def test_events_of_particles_are_sane() -> None:
    x, y = rows("pileup", 100)
    kind = x[..., 5:]
    real = x[..., 0] == 1
    assert np.array_equal(kind.sum(axis=-1), real)
    asked = y >= 0
    assert np.all(kind[asked][:, 2:].sum(axis=1) == 1)  # only neutral particles are asked for
    assert np.all(x[asked][:, 3] > np.log(0.9) - 1e-3)
    assert 0.15 < y[asked].mean() < 0.4
    assert np.all(np.abs(x[..., 1]) <= 2.5)
    assert np.all(np.abs(x[..., 2]) <= np.pi + 1e-3)
    assert pileup.KINDS[2] == "photon"


def test_hits_of_real_graphs_become_events() -> None:
    hits = np.array([[0.03, 0.1, -0.05], [0.07, 0.1, -0.1], [0.03, -0.4, 0.2], [1.0, 0.2, 0.3]])
    features, target = clusters(hits, np.array([7, 7, 9, 9]), 6)
    assert features.shape == (6, 8) and target.shape == (6, 3)
    assert np.array_equal(features[:, 0], [1, 1, 1, 1, 0, 0])
    assert np.array_equal(target[:, 0], [0, 0, 1, 1, -2, -2])
    np.testing.assert_allclose(features[:4, 7] * 10, [0, 1, 0, 9], atol=1e-6)
    np.testing.assert_allclose(target[0, 1], np.arcsinh(-0.05 / 0.03))


# End to end


@pytest.mark.parametrize("task", TASKS)
def test_a_short_run(task: str, tmp_path: Path) -> None:
    """Pruned to the published share, clean, equal to the trained one bit for bit, and the same in qonnx."""
    settings = {"phases.training.epochs": "2", "phases.fine_tuning.epochs": "1", "training.batch": "80"}
    source = workflows.resolve(f"hept_{task}")
    plan = workflows.load_plan(None, source, settings)
    summary = workflows.run(source, plan, None, tmp_path, workflows.RunOptions(hls=False))
    assert PUBLISHED_SHARE[task] - 2e-3 < summary["keep_ratio"] <= PUBLISHED_SHARE[task]
    assert summary["clean_equals_trained"]
    assert summary["metric"] == metric_name(plan.training.loss)
    assert "TopK" in summary["hls"]["skipped"] and "GatherElements" in summary["hls"]["skipped"]
    assert "TopK" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["hls"] == summary["hls"]
    x, _ = rows(task, 2)
    clean = graph.load(tmp_path / "clean.onnx")
    pipeline.run(clean, "fix-batch{size=2}")
    output = str(clean.graph.outputs[0].name)
    found = execute_onnx(ModelWrapper(graph.to_proto(clean)), {"x": x})[output]
    expected = engine.evaluate(clean, {"x": x})[output]
    # rtol, atol: float32 without fixed point, node by node in qonnx and fused in the engine.
    assert np.isclose(found, expected, rtol=1e-4, atol=1e-5)[x[..., 0] > 0].mean() > 0.98
    assert np.abs(expected).max() > 0.1
    names = {layer.name for layer in layers.layers(graph.load(tmp_path / "clean.onnx").graph)}
    assert not any("projections" in name for name in names)


@pytest.mark.parametrize("task", TASKS)
def test_the_schedule_prunes_to_the_published_share(task: str) -> None:
    plan, _ = schedule.read(f"hept-{task}", {})
    assert PUBLISHED_SHARE[task] - 3e-3 < 1 - plan.target.sparsity <= PUBLISHED_SHARE[task]


@pytest.mark.parametrize("task", TASKS)
def test_the_network_equals_its_export(task: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from pqc.models.hept.network import Hept

    path = TABLE[f"hept_{task}"].path()
    stored = {name: graph.stored(value) for name, value in graph.load(path).graph.initializers.items()}
    model = Hept(SMALL[task], seed=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(stored[name])))
        x = without_ties(task, 3, rng)
        expected = model(torch.from_numpy(x)).numpy()
    found = next(iter(engine.evaluate(graph.load(path), {"x": x}).values()))
    real = x[..., 0] > 0
    # rtol, atol: two implementations of float32, and a point on the border of a block may move to the next.
    close = np.isclose(found, expected, rtol=1e-3, atol=1e-3).reshape(*real.shape, -1).all(axis=-1)
    assert close[real].mean() > 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("task", "trained"), [("tracking", 325_692), ("pileup", 310_463)])
def test_the_published_sizes_train(task: str, trained: int) -> None:
    pytest.importorskip("torch")
    script = Path(__file__).parent / "benchmarks" / "hept_published.py"
    command = [sys.executable, str(script), "--task", task, "--steps", "3"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert found["trained"] == trained
    assert np.isfinite(found["losses"]).all() and len(set(found["losses"])) == 3
