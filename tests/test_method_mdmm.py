"""MDMM through the pipeline, against the float64 reference: penalties, gradients, multipliers, masks, options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import SEED, initializers, onnx_model

import reference_pruning as prune
from pqc import data, engine, graph, pipeline, schedule
from pqc.errors import PassError, ScheduleError, UnsupportedError
from pqc.functions.optimizers import make_optimizer
from pqc.methods import make
from pqc.models import TABLE
from pqc.names import layout
from pqc.training.events import Events
from pqc.training.stages import values_of
from pqc.training.stepper import Stepper
from pqc.training.trainer import Trainer
from pqc.workflows.compression import NORMALIZE, compress

EPSILON = 1e-3
PUBLISHED = np.array([[0.0005, 0.2, -0.3, 0.4], [0.0, 0.1, 0.5, -0.6]])

# Weights, outputs first, with the graph that holds them and how they are stored there.
GRAPHS = {
    "matmul": ("(float[n,7] x) => (float[n,5] y) { y = MatMul (x, w) }", (5, 7)),
    "gemm": ("(float[n,7] x) => (float[n,5] y) { y = Gemm <transB: int = 1> (x, w) }", (5, 7)),
    "conv": ("(float[n,3,6,5] x) => (float[n,8,4,4] y) { y = Conv <kernel_shape: ints = [3,2]> (x, w) }", (8, 3, 3, 2)),
    "depthwise": (
        "(float[n,9,5,5] x) => (float[n,9,4,4] y) { y = Conv <group: int = 9, kernel_shape: ints = [2,2]> (x, w) }",
        (9, 1, 2, 2),
    ),
    "conv1d": ("(float[n,6,5] x) => (float[n,4,3] y) { y = Conv <kernel_shape: ints = [3]> (x, w) }", (4, 6, 3)),
}


def draw(shape: tuple[int, ...], scale: float = 0.05) -> np.ndarray:
    """Float32 numbers with zeros, small ones, and a few whole runs of either."""
    random = np.random.default_rng(SEED)
    weight = random.normal(0, scale, shape)
    flat = weight.reshape(-1)
    flat[random.permutation(flat.size)[: flat.size // 3]] *= 1e-3
    flat[random.permutation(flat.size)[: flat.size // 6]] = 0.0
    rows = weight.reshape(shape[0], -1)
    rows[1], rows[2, :4] = 0.0, 1e-4
    return weight.astype(np.float32)


def stored(name: str, weight: np.ndarray) -> np.ndarray:
    """The weight as the graph has it."""
    return np.ascontiguousarray(weight.T) if name == "matmul" else weight


def seen(name: str, array: np.ndarray) -> np.ndarray:
    """What the graph has, outputs first."""
    return array.T if name == "matmul" else array


def written(options: dict[str, object]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def masked(
    name: str, weight: np.ndarray, options: dict[str, object], before: str = "", first: str = "true"
) -> ir.Model:
    """A graph whose weight has a mask of the method."""
    model = onnx_model(GRAPHS[name][0], w=stored(name, weight))
    pipeline.run(
        model, f"normalize,{before}insert-masks{{method=mdmm options={written(options)} pruning-first={first}}}"
    )
    return model


def step(model: ir.Model) -> engine.Session:
    """The graph with its loss, updates and gradient, as training makes it."""
    rest = "expose-parameters,lower-quant,batch-parameters,fix-batch{size=2},differentiate"
    pipeline.run(model, f"attach-loss{{loss=mse}},attach-updates,{rest}")
    return engine.Session(model)


def silent(session: engine.Session) -> dict[str, np.ndarray]:
    """Inputs and targets of zero: the loss of the task and its gradient vanish, and the penalty is left."""
    zeros = {value.name: np.zeros(value.shape, np.float32) for value in session.session.get_inputs()}
    return {name: zeros[name] for name in ("x", "target")}


def penalized(
    name: str, weight: np.ndarray, options: dict[str, object], multiplier: float = 1.0, previous: float = 0.0
) -> tuple[float, np.ndarray, np.ndarray]:
    """The penalty, its gradient outputs first, and the next multiplier and infeasibility."""
    session = step(masked(name, weight, options))
    found = session.run({**silent(session), "buffers": np.array([multiplier, previous], np.float32)})
    return (
        float(found["loss"]),
        seen(name, found["theta_grad"].reshape(stored(name, weight).shape)),
        found["buffers.next"],
    )


@dataclass(frozen=True)
class Metric:
    """A metric as options, and by the reference: its value and gradient."""

    options: dict[str, object]
    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]


def unstructured(mode: str, scale: str) -> Metric:
    return Metric(
        {"l0_mode": mode, "scale_mode": scale, "target_sparsity": 0.8},
        lambda W: prune.mdmm_metric_unstructured(W, EPSILON, 0.8, mode, scale),
        lambda W: prune.mdmm_metric_unstructured_grad(W, EPSILON, 0.8, mode, scale),
    )


def structured(mode: str, rf: int) -> Metric:
    options: dict[str, object] = {"metric": "StructuredSparsity", "l0_mode": mode, "rf": rf}
    if mode == "coarse":
        return Metric(options, lambda W: prune.mdmm_metric_structured(W, rf, EPSILON), np.zeros_like)
    return Metric(
        options,
        lambda W: prune.mdmm_metric_structured_smooth(W, rf),
        lambda W: prune.mdmm_metric_structured_smooth_grad(W, rf),
    )


def fpga(mode: str, rf: int, precision: int, memory: str) -> Metric:
    options = {"metric": "FPGAAwareSparsity", "l0_mode": mode, "rf": rf, "precision": precision, "memory": memory}
    numbers, smooth = (rf, precision, memory), mode == "smooth"
    return Metric(
        options,
        lambda W: prune.mdmm_metric_fpga(W, *numbers, eps=EPSILON, smooth=smooth),
        lambda W: prune.mdmm_metric_fpga_grad(W, *numbers, smooth=smooth),
    )


METRICS = {
    **{f"{mode}-{scale}": unstructured(mode, scale) for mode in ("coarse", "smooth") for scale in ("mean", "sum")},
    **{f"blocks-{mode}-{rf}": structured(mode, rf) for mode in ("coarse", "smooth") for rf in (1, 3, 50)},
    **{
        f"fpga-{mode}-{rf}-{precision}-{memory}": fpga(mode, rf, precision, memory)
        for mode in ("coarse", "smooth")
        for rf, precision, memory in ((2, 16, "DSP"), (1, 18, "BRAM"), (2, 16, "BRAM"))
    },
}


# Penalties and their gradients


@pytest.mark.parametrize("constraint", ["Equality", "LessThanOrEqual", "GreaterThanOrEqual"])
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_penalties_and_gradients(metric: Metric, constraint: str) -> None:
    weight = draw((5, 7))
    W = weight.astype(np.float64)
    g = metric.value(W)
    assert g != 0
    for target in (0.5 * g, 1.5 * g):
        options = {**metric.options, "constraint": constraint, "target_value": float(np.float32(target)), "scale": 4}
        penalty, gradient, following = penalized("matmul", weight, {**options, "constraint_lr": 0.5}, 1.25, 0.25)
        infeasibility = prune.mdmm_infeasibility(g, constraint, target)
        multiplier = prune.mdmm_lambda_step(1.25, 0.25, 0.5, 4.0)
        # rtol, atol: float32 sums of 35 terms, and the difference of the metric to a target half as large.
        wanted = prune.mdmm_penalty(infeasibility, multiplier, 4.0, 1.0)
        np.testing.assert_allclose(penalty, wanted, rtol=5e-6, atol=1e-12)
        expected = prune.mdmm_penalty_grad(metric.gradient(W), g, constraint, target, multiplier, 4.0, 1.0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(following, [multiplier, infeasibility], rtol=5e-6, atol=1e-12)


@pytest.mark.parametrize("metric", ["smooth-mean", "blocks-smooth-3", "fpga-smooth-2-16-BRAM"])
@pytest.mark.parametrize("name", GRAPHS)
def test_layouts(name: str, metric: str) -> None:
    weight = draw(GRAPHS[name][1])
    W, one = weight.astype(np.float64), METRICS[metric]
    g = one.value(W)
    penalty, gradient, _ = penalized(name, weight, {**one.options, "damping": 2})
    wanted = prune.mdmm_penalty(prune.mdmm_infeasibility(g, "Equality", 0.0), 1.0, 10.0, 2.0)
    np.testing.assert_allclose(penalty, wanted, rtol=5e-6)
    expected = prune.mdmm_penalty_grad(one.gradient(W), g, "Equality", 0.0, 1.0, 10.0, 2.0)
    assert np.any(expected != 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


PATTERNS = [(16, 0.75), (16, 0.4), (2, 1.0), (1, 0.75)]


@pytest.mark.parametrize("distance", ["hamming", "valued_hamming", "cosine"])
@pytest.mark.parametrize(("number", "beta"), PATTERNS)
@pytest.mark.parametrize("name", ["conv", "depthwise", "conv1d"])
def test_patterns(name: str, number: int, beta: float, distance: str) -> None:
    weight = draw(GRAPHS[name][1], scale=0.5)
    W = weight.astype(np.float64)
    options = {"metric": "PACAPattern", "num_patterns": number, "beta": beta, "distance": distance}
    penalty, gradient, _ = penalized(name, weight, options)
    g = prune.mdmm_metric_pattern(W, number, beta, distance, EPSILON)
    assert g > 0
    np.testing.assert_allclose(penalty, prune.mdmm_penalty(g, 1.0, 10.0, 1.0), rtol=5e-6)
    dmetric = prune.mdmm_metric_pattern_grad(W, number, beta, distance, EPSILON)
    assert np.any(dmetric != 0) == (distance == "valued_hamming")
    expected = prune.mdmm_penalty_grad(dmetric, g, "Equality", 0.0, 1.0, 10.0, 1.0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    frozen = frozen_mask(name, weight, options)
    np.testing.assert_array_equal(frozen, prune.mdmm_nearest_pattern(W, number, beta, distance, EPSILON))


def test_the_penalty_adds_to_the_loss_and_its_gradient() -> None:
    """With data, beside the same graph without a mask."""
    weight, one = draw((5, 7), scale=0.3), METRICS["smooth-mean"]
    feeds = {
        "x": np.random.default_rng(1).normal(0, 1, (2, 7)),
        "target": np.random.default_rng(2).normal(0, 1, (2, 5)),
    }
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    bare = onnx_model(GRAPHS["matmul"][0], w=stored("matmul", weight))
    pipeline.run(bare, "normalize")
    plain, found = step(bare).run(feeds), step(masked("matmul", weight, one.options)).run(feeds)
    W = weight.astype(np.float64)
    g = one.value(W)
    np.testing.assert_allclose(found["loss"] - plain["loss"], prune.mdmm_penalty(g, 1.0, 10.0, 1.0), rtol=1e-5)
    expected = prune.mdmm_penalty_grad(one.gradient(W), g, "Equality", 0.0, 1.0, 10.0, 1.0)
    difference = (found["theta_grad"] - plain["theta_grad"]).reshape(7, 5).T
    # atol: gradients of order 1 in float32.
    np.testing.assert_allclose(difference, expected, atol=1e-6)


def test_every_layer_has_its_own_multiplier(mlp: ir.Model) -> None:
    pipeline.run(mlp, "normalize,insert-masks{method=mdmm}")
    weights = {name: initializers(mlp)[name] for name in ("fc1.weight", "fc2.weight")}
    session = step(mlp)
    names = [name for name, _, _ in layout(mlp, "buffers")]
    assert sorted(names) == [f"{weight}.{state}" for weight in weights for state in ("lambda_", "previous")]
    now = {"fc1.weight.lambda_": 1.0, "fc1.weight.previous": 0.5, "fc2.weight.lambda_": 2.0, "fc2.weight.previous": 0.0}
    feeds = {"x": np.zeros((2, 4), np.float32), "target": np.zeros((2, 3), np.float32)}
    found = session.run({**feeds, "buffers": np.array([now[name] for name in names], np.float32)})
    following = dict(zip(names, found["buffers.next"], strict=True))
    metrics = {name: prune.mdmm_metric_unstructured(array, EPSILON, 0.9) for name, array in weights.items()}
    for name, multiplier in (("fc1.weight", 1.005), ("fc2.weight", 2.0)):
        assert following[f"{name}.lambda_"] == pytest.approx(multiplier, rel=1e-6)
        assert following[f"{name}.previous"] == pytest.approx(metrics[name], rel=1e-6)


def test_with_pruning_last_the_penalty_sees_rounded_weights() -> None:
    weight = draw((5, 7), scale=0.5)
    quantizer = "insert-quant{weights=1,1,3 inputs=none},"
    session = step(masked("matmul", weight, {}, quantizer, "false"))
    rounded = np.rint(weight.astype(np.float64) * 8) / 8
    g = prune.mdmm_metric_unstructured(rounded, EPSILON, 0.9)
    found = session.run(silent(session))
    np.testing.assert_allclose(found["loss"], prune.mdmm_penalty(g, 1.0, 10.0, 1.0), rtol=1e-6)
    expected = prune.mdmm_penalty_grad(
        prune.mdmm_metric_unstructured_grad(rounded, EPSILON, 0.9), g, "Equality", 0.0, 1.0, 10.0, 1.0
    )
    np.testing.assert_allclose(found["theta_grad"].reshape(7, 5).T, expected, rtol=1e-5)


# The multiplier from step to step


def test_published_penalties_of_three_steps() -> None:
    """The numbers of the reference implementation, measured in float32."""
    model = onnx_model("(float[n,4] x) => (float[n,2] y) { y = MatMul (x, w) }", w=PUBLISHED.T)
    pipeline.run(model, "normalize,insert-masks{method=mdmm}")
    step(model)
    pipeline.run(model, "attach-optimizer{optimizer=sgd}")
    stepper = Stepper(model, make_optimizer("sgd", {}))
    inputs, target = {"x": np.zeros((2, 4), np.float32)}, np.zeros((2, 2), np.float32)
    found, multipliers = [], []
    for number in range(3):
        loss = stepper.step(inputs, target, np.arange(2), number=number + 1, learning_rate=0.0)
        found.append(loss)
        multipliers.append(stepper.state()["buffers"][0])
    np.testing.assert_allclose(found, [2.1552554, 2.1591074, 2.1629593], atol=2.4e-7, rtol=0)
    np.testing.assert_allclose(multipliers[:2], [1.0, 1.0019627], atol=1.2e-7, rtol=0)
    np.testing.assert_array_equal(stepper.state()["theta"].reshape(4, 2).T, PUBLISHED.astype(np.float32))


# Masks


def frozen_mask(name: str, weight: np.ndarray, options: dict[str, object]) -> np.ndarray:
    model = masked(name, weight, options)
    pipeline.run(model, "freeze-masks")
    found = initializers(model)
    assert sorted(found) == ["w", "w.frozen.mask"]
    return seen(name, found["w.frozen.mask"])


def blocks_kept(W: np.ndarray, block: int) -> np.ndarray:
    rows = W.reshape(len(W), -1)
    starts = range(0, rows.shape[1], block)
    parts = [np.linalg.norm(rows[:, start : start + block], axis=1) > EPSILON for start in starts]
    wide = np.repeat(np.stack(parts, axis=1), block, axis=1)[:, : rows.shape[1]]
    return wide.reshape(W.shape).astype(np.float64)


@pytest.mark.parametrize("name", GRAPHS)
def test_hard_masks(name: str) -> None:
    weight = draw(GRAPHS[name][1])
    W = weight.astype(np.float64)
    np.testing.assert_array_equal(frozen_mask(name, weight, {}), prune.mdmm_hard_mask(W, EPSILON))
    for metric, rf, extra, block in (
        ("StructuredSparsity", 3, {}, 3),
        ("FPGAAwareSparsity", 2, {}, 2),
        ("FPGAAwareSparsity", 2, {"memory": "BRAM", "precision": 18}, 4),
    ):
        found = frozen_mask(name, weight, {"metric": metric, "rf": rf, **extra})
        np.testing.assert_array_equal(found, blocks_kept(W, block))
        assert 0 < found.mean() < 1


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_is_masked_while_training(name: str) -> None:
    weight = draw(GRAPHS[name][1])
    model = masked(name, weight, {})
    bare = onnx_model(GRAPHS[name][0], w=stored(name, weight))
    feeds = {"x": np.random.default_rng(3).normal(0, 1, [2, *model.graph.inputs[0].shape.dims[1:]]).astype(np.float32)}
    np.testing.assert_array_equal(engine.evaluate(model, feeds)["y"], engine.evaluate(bare, feeds)["y"])


def test_a_sparsity_target_cuts_exactly_and_whole_blocks() -> None:
    weight = np.random.default_rng(5).normal(0, 1, (6, 8)).astype(np.float32)
    for options, block in (({}, 1), ({"metric": "StructuredSparsity", "rf": 4}, 4)):
        events = Events(_square(weight, options))
        masks, weights = events.harden(values_of(events.model), {}, 0.75)
        mask = masks["w"].T
        assert weights == {} and mask.sum() == 12
        kept = np.linalg.norm(weight.reshape(-1, block), axis=1)
        whole = mask.reshape(-1, block)
        assert np.all(whole == whole[:, :1])
        assert kept[whole[:, 0] == 1].min() > kept[whole[:, 0] == 0].max()


def _square(weight: np.ndarray, options: dict[str, object]) -> ir.Model:
    model = onnx_model("(float[n,8] x) => (float[n,6] y) { y = MatMul (x, w) }", w=weight.T)
    pipeline.run(model, f"normalize,insert-masks{{method=mdmm options={written(options)}}}")
    return model


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "Sparsity"}, "metric is one of UnstructuredSparsity, StructuredSparsity, FPGAAwareSparsity"),
        ({"constraint": "Less"}, "constraint is one of Equality, LessThanOrEqual, GreaterThanOrEqual, not 'Less'"),
        ({"l0_mode": "soft"}, "l0_mode is one of coarse, smooth, not 'soft'"),
        ({"scale_mode": "max"}, "scale_mode is one of mean, sum"),
        ({"memory": "LUT"}, "memory is one of DSP, BRAM"),
        ({"distance": "euclid"}, "distance is one of hamming, valued_hamming, cosine"),
        ({"epsilon": -1e-3}, "epsilon is at least 0, not -0.001"),
        ({"scale": "nan"}, "scale is at least 0, not nan"),
        ({"damping": "inf"}, "damping is at least 0, not inf"),
        ({"constraint_lr": -1}, "constraint_lr is at least 0"),
        ({"target_sparsity": 1.5}, "target_sparsity is between 0 and 1, not 1.5"),
        ({"beta": -0.1}, "beta is between 0 and 1"),
        ({"target_value": "inf"}, "target_value is a finite number"),
        ({"rf": 0}, "rf is at least 1, not 0"),
        ({"num_patterns": 0}, "num_patterns is at least 1"),
        ({"metric": "FPGAAwareSparsity", "memory": "BRAM", "precision": 73}, "73 bits does not fit in two words of 36"),
        ({"metric": "PACAPattern", "target_value": 0.5}, "leave constraint at Equality and target_value at 0"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError) as caught:
        make("mdmm", options)
    assert message in str(caught.value)


def test_patterns_need_kernels(mlp: ir.Model) -> None:
    pipeline.run(mlp, "normalize")
    with pytest.raises(UnsupportedError) as caught:
        pipeline.run(mlp, "insert-masks{method=mdmm options=metric=PACAPattern}")
    assert "PACAPattern needs kernels of more than one weight; this weight has shape [8, 4]" in str(caught.value)


def test_a_sparsity_target_sets_the_options() -> None:
    smooth = {"metric": "StructuredSparsity", "l0_mode": "smooth"}
    assert make("mdmm", {}).aim(0.7) == make("mdmm", {"target_sparsity": 0.7})
    wanted = make("mdmm", {**smooth, "constraint": "GreaterThanOrEqual", "target_value": 0.7})
    assert make("mdmm", {**smooth, "constraint": "GreaterThanOrEqual"}).aim(0.7) == wanted
    upper = make("mdmm", {**smooth, "constraint": "LessThanOrEqual", "target_value": 0.2})
    assert upper.aim(0.7) == upper


def test_patterns_take_no_sparsity_target() -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule.load("mdmm", {"pruning.options.metric": "PACAPattern", "target.sparsity": "0.5"})
    assert "the kernels' patterns decide how much PACAPattern prunes" in str(caught.value)


# Training


def train(folder: Path, **settings: str) -> Trainer:
    """A trainer of the jet tagger that has been through a short schedule on a few jets."""
    short = {"training.batch": "128", "phases.training.epochs": "3", "phases.fine_tuning.epochs": "1"}
    plan = schedule.load("mdmm", {**short, **settings})
    for name in ("train", "test"):
        with np.load(TABLE["jet_tagger"].data_path() / f"{name}.npz") as arrays:
            np.savez(folder / f"{name}.npz", x=arrays["x"][:1500], y=arrays["y"][:1500])
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, NORMALIZE)
    dataset = data.load(folder, model.graph, labels=True)
    compressible, _ = compress(model, plan, dataset.train, folder, verify_each=False)
    trainer = Trainer(compressible, plan, dataset, folder)
    trainer.train()
    return trainer


def test_training_raises_the_multipliers_and_freezes_the_masks(tmp_path: Path) -> None:
    trainer = train(tmp_path, **{"pruning.options.scale": "300", "pruning.options.constraint_lr": "0.01"})
    multipliers = [float(array.max()) for name, array in trainer.state.values.items() if name.endswith(".lambda_")]
    assert multipliers and min(multipliers) > 1.0
    history = trainer.state.history
    assert history[-1]["stage"] == "fine-tuning"
    assert history[-1]["loss"] < history[-2]["loss"], "the penalty ends with training"
    masks = trainer.state.masks
    assert all(set(np.unique(mask)) <= {0.0, 1.0} for mask in masks.values())
    pruned = sum(float((mask == 0).sum()) for mask in masks.values())
    assert pruned / sum(mask.size for mask in masks.values()) == pytest.approx(history[-2]["sparsity"])


def test_training_to_a_sparsity(tmp_path: Path) -> None:
    trainer = train(tmp_path, **{"target.sparsity": "0.8"})
    masks = trainer.state.masks.values()
    total = sum(mask.size for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == round(0.2 * total)
    assert trainer.method is not None and trainer.method.target_sparsity == 0.8  # type: ignore[attr-defined]


def test_names_stay_unique_where_bodies_are_inlined(convnet: ir.Model) -> None:
    pipeline.run(convnet, "normalize,fold-constants,fold-batchnorm,legalize,insert-masks{method=mdmm}")
    step(convnet)
    names = [node.name for node in convnet.graph]
    assert len(names) == len(set(names))
    assert not [node for node in convnet.graph if node.domain == "pqc.penalty"]
