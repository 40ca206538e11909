"""What a schedule says about training beside the methods: optimizers, rates, decays, stopping, choosing, rewinding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model
from method_networks import (
    NETWORKS,
    Arrays,
    Impatient,
    differentiated,
    feeds_of,
    inserted,
    plan,
    same_run,
    split,
    trainer_of,
)

import reference as ref
import reference_pruning as prune
from pqc import data, graph, pipeline, schedule
from pqc.errors import Interrupted
from pqc.functions.optimizers import make_optimizer
from pqc.models import TABLE
from pqc.training.stepper import Stepper
from pqc.training.trainer import Trainer
from pqc.workflows.compression import NORMALIZE, compress

SMOOTH = """(float[n,5] x) => (float[n,3] y) {
    h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias) a = Tanh (h)
    y = Gemm <transB: int = 1> (a, fc2__weight, fc2__bias) }"""


def smooth() -> ir.Model:
    rng = np.random.default_rng(12)
    shapes = {"fc1__weight": (6, 5), "fc1__bias": (6,), "fc2__weight": (3, 6), "fc2__bias": (3,)}
    return onnx_model(SMOOTH, **{name: rng.normal(0, 0.6, shape) for name, shape in shapes.items()})


class Steps:
    """Steps of a graph under attach-optimizer with options of its own."""

    def __init__(self, model: ir.Model, attach: str, batch: int, optimizer: str = "sgd", **options: str) -> None:
        self.model = model
        pipeline.run(model, "normalize")
        differentiated(model, batch)
        written = ",".join(f"{key}={value}" for key, value in options.items())
        options_text = f" options={written}" if options else ""
        pipeline.run(model, f"attach-optimizer{{optimizer={optimizer}{options_text}{attach}}}")
        self.stepper = Stepper(model, make_optimizer(optimizer, options))
        self.batch = batch

    def theta(self) -> np.ndarray:
        return self.stepper.state()["theta"]

    def step(self, feeds: Arrays, first: int = 0, number: int = 1, rate: float = 1.0, last: bool = True) -> float:
        rows = np.arange(first, first + self.batch)
        inputs = {"x": feeds["x"]}
        return self.stepper.step(inputs, feeds["target"], rows, number=number, learning_rate=rate, last=last)


PLAIN = {"momentum": "0"}


def gradient_of(model: ir.Model, feeds: Arrays, batch: int) -> np.ndarray:
    """theta_grad, as the difference that a plain step of one makes."""
    steps = Steps(model, "", batch, **PLAIN)
    before = steps.theta().astype(np.float64)
    steps.step(feeds)
    return before - steps.theta()


# The gradient: clipped, accumulated


@pytest.mark.parametrize("share", [0.25, 0.999, 1.001, 10.0])
def test_clipping_shortens_long_gradients_only(share: float) -> None:
    feeds = feeds_of(smooth(), 4)
    gradient = gradient_of(smooth(), feeds, 4)
    norm = float(np.linalg.norm(gradient))
    steps = Steps(smooth(), f" clip={norm * share}", 4, **PLAIN)
    before = steps.theta().astype(np.float64)
    steps.step(feeds)
    expected = gradient * min(1.0, share)
    # atol: theta of order 1 rounds in float32.
    np.testing.assert_allclose(before - steps.theta(), expected, atol=3e-7)


def test_a_gradient_of_zero_is_clipped_to_zero() -> None:
    model = onnx_model("(float[n,2] x) => (float[n,2] y) { y = MatMul (x, w) }", w=np.eye(2))
    steps = Steps(model, " clip=1", 2, **PLAIN)
    before = steps.theta()
    steps.step({"x": np.zeros((2, 2), np.float32), "target": np.zeros((2, 2), np.float32)})
    np.testing.assert_array_equal(steps.theta(), before)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.1), ("adam", 0.01)])
@pytest.mark.parametrize("clip", ["", " clip=0.05"])
def test_small_batches_add_up_to_a_large_one(optimizer: str, rate: float, clip: str) -> None:
    feeds = feeds_of(smooth(), 24)
    small = Steps(smooth(), f"{clip} accumulate=4", 3, optimizer)
    large = Steps(smooth(), clip, 12, optimizer)
    for number in (1, 2):
        first = 12 * (number - 1)
        before = small.theta()
        losses = []
        for part in range(4):
            assert np.array_equal(small.theta(), before), "nothing moves until the last batch"
            losses.append(small.step(feeds, first + 3 * part, number, rate, last=part == 3))
        loss = large.step(feeds, first, number, rate)
        # rtol, atol: float32 sums in another order; Adam divides by the gradient's size.
        assert np.mean(losses) == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(small.theta(), large.theta(), rtol=0, atol=1e-5 if optimizer == "adam" else 5e-7)
        assert not np.array_equal(small.theta(), before)


def test_buffers_go_on_with_every_small_batch() -> None:
    network = NETWORKS["matmul"]
    model = network.model()
    pipeline.run(model, f"normalize,{inserted('wanda', {'batches': 5}, more={'exclude': 'fc'})}")
    feeds = feeds_of(model, 8)
    steps = Steps(model, " accumulate=4", 2)
    for part in range(4):
        steps.step(feeds, 2 * part, rate=0.0, last=part == 3)
        values = split(steps.stepper.state()["buffers"], model, "buffers")
        assert values["w.count"] == part + 1
        expected = (feeds["x"][: 2 * part + 2].astype(float) ** 2).sum(axis=0)
        np.testing.assert_allclose(values["w.squares"], expected, rtol=1e-6)


def test_a_schedule_accumulates(tmp_path: Path) -> None:
    """The same training as with batches four times as large."""
    runs = []
    for name, sizes in (("small", {"batch": 2, "accumulate": 4}), ("large", {"batch": 8})):
        trainer = trainer_of(smooth(), plan(None, quantization=None, training=sizes), tmp_path / name)
        trainer.train()
        assert trainer.state.position.step == 8
        runs.append(trainer)
    for name, array in runs[0].state.values.items():
        # atol: eight steps of Adam in float32, with sums in another order.
        np.testing.assert_allclose(array, runs[1].state.values[name], atol=2e-5)


# Rates and decays by role


def test_decays_by_role(tmp_path: Path) -> None:
    """One step of plain descent: weight, bias and threshold are pulled by their own decay."""
    decays = {"weight": 0.5, "threshold": 0.25}
    found: list[Arrays] = []
    training = {"batch": 32, "learning_rate": 0.1, "optimizer": {"name": "sgd", "options": {"momentum": 0}}}
    for name, given in (("with", decays), ("without", {})):
        schedule_ = plan("autosparse", {}, 1, training={**training, "decays": given}, quantization=None)
        trainer = trainer_of(smooth(), schedule_, tmp_path / name)
        start = {key: array.astype(np.float64) for key, array in trainer.state.values.items()}
        trainer._segment(0)
        found.append(trainer.state.values)
    for key, array in start.items():
        role = "threshold" if key.endswith(".threshold") else "bias" if key.endswith("bias") else "weight"
        pulled = found[1][key].astype(np.float64) - found[0][key]
        np.testing.assert_allclose(pulled, 0.1 * decays.get(role, 0.0) * array, atol=5e-7)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_decays_follow_the_reference(optimizer: str) -> None:
    feeds = feeds_of(smooth(), 4)
    gradient = gradient_of(smooth(), feeds, 4)
    steps = Steps(smooth(), " decays=true", 4, optimizer)
    theta = steps.theta().astype(np.float64)
    decay = np.random.default_rng(3).uniform(0, 0.5, theta.size).astype(np.float32)
    steps.stepper.set_decays(decay)
    steps.step(feeds, rate=0.05)
    zeros = np.zeros_like(theta)
    for place, amount in enumerate(decay.astype(float)):
        arguments = (theta[place], gradient[place], zeros[place])
        if optimizer == "sgd":
            expected = ref.sgd(*arguments, 0.05, 0.9, False, amount)[0]
        else:
            update = ref.adamw if optimizer == "adamw" else ref.adam
            expected = update(*arguments, zeros[place], 1, 0.05, 0.9, 0.999, 1e-8, amount)[0]
        # atol: theta and the gradient's estimate are of order 1 in float32.
        assert steps.theta()[place] == pytest.approx(expected, abs=3e-6)


def test_rates_are_curves_by_role(tmp_path: Path) -> None:
    training = {"rates": {"bias": "linear(1, 0)", "weight": 0.5}, "learning_rate": 0.05}
    schedule_ = plan(None, epochs=3, training=training, phases={"training": {"epochs": 3, "rates": None}})
    trainer = trainer_of(smooth(), schedule_, tmp_path)
    seen: list[Arrays] = []

    class Watch:
        def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
            seen.append({name: array.copy() for name, array in trainer.state.values.items()})

    trainer.progress = Watch()
    trainer.train()
    for name in seen[0]:
        moved = not np.array_equal(seen[1][name], seen[2][name])
        assert moved == name.endswith("weight"), "the biases' rate ends at zero"
        assert not np.array_equal(seen[0][name], seen[1][name])


def test_a_phase_has_rates_of_its_own(tmp_path: Path) -> None:
    phases = {"training": {"epochs": 1}, "fine_tuning": {"epochs": 1, "rates": {"weight": 0}}}
    trainer = trainer_of(smooth(), plan("dst", phases=phases, training={"rates": {"bias": 0}}), tmp_path)
    start = {name: array.copy() for name, array in trainer.state.values.items()}
    trainer._segment(0)
    middle = {name: array.copy() for name, array in trainer.state.values.items()}
    trainer._segment(1)
    for name in ("fc1.bias", "fc1.weight"):
        moved = [not np.array_equal(a[name], b[name]) for a, b in ((start, middle), (middle, trainer.state.values))]
        assert moved == ([True, False] if name.endswith("weight") else [False, True])


@pytest.mark.parametrize("place", ["training", "phases"])
def test_a_rate_of_no_role_is_an_error(place: str) -> None:
    rates = {"rates": {"thresholds": 1}}
    more = {"training": rates} if place == "training" else {"phases": {"training": {"epochs": 1, **rates}}}
    with pytest.raises(ValueError, match="rates: no role 'thresholds'; did you mean 'threshold'"):
        plan("dst", **more)


# The best epoch


def watched(trainer: Trainer) -> list[Arrays]:
    """Where the values of each epoch will be."""
    seen: list[Arrays] = []

    class Watch:
        def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
            seen.append({name: array.copy() for name, array in trainer.state.values.items()})

    trainer.progress = Watch()
    return seen


def choose(folder: Path, constraint: dict[str, float], epochs: int = 12) -> tuple[Trainer, list[Arrays]]:
    """A training whose best epoch comes before the masks are as sparse as they get."""
    phases = {"training": {"epochs": epochs, "select": "best", "constraint": constraint}}
    rates = {"learning_rate": 0.1, "seed": 3}
    options = {"sparsity": 0.95}
    trainer = trainer_of(smooth(), plan("magnitude", options, phases=phases, training=rates), folder)
    seen = watched(trainer)
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize("constraint", ["", "sparsity", "ebops", "both", "none keeps it"])
def test_the_best_epoch_that_keeps_the_constraint_is_kept(constraint: str, tmp_path: Path) -> None:
    free, _ = choose(tmp_path / "free", {})
    records = free.state.history
    # Limits that some epochs keep and the best of all does not.
    sparsity = 1 - sorted(record["keep_ratio"] for record in records)[2]
    ebops = sorted(record["ebops"] for record in records)[5]
    limits = {
        "": {},
        "sparsity": {"sparsity": sparsity},
        "ebops": {"ebops": ebops},
        "both": {"sparsity": sparsity, "ebops": ebops},
        "none keeps it": {"ebops": 1},
    }[constraint]
    trainer, seen = choose(tmp_path / "bound", limits)
    assert [record["negative_mse"] for record in trainer.state.history] == [one["negative_mse"] for one in records]
    eligible = [
        number
        for number, record in enumerate(records)
        if 1 - record["keep_ratio"] >= limits.get("sparsity", 0) and record["ebops"] <= limits.get("ebops", np.inf)
    ]
    best = max(eligible, key=lambda number: records[number]["negative_mse"], default=len(records) - 1)
    overall = max(range(len(records)), key=lambda number: records[number]["negative_mse"])
    assert (best == overall) == (constraint == "")
    for name, array in trainer.state.values.items():
        assert np.array_equal(array, seen[best][name]) or name.endswith((".mask", ".prune")), name
    assert trainer.state.best == {}


# Early stopping


def stopping(folder: Path, patience: int = 2, min_delta: float = 0.0) -> Trainer:
    """Learning ends after a third of the epochs, and the losses repeat from then on."""
    early = {"patience": patience, "min_delta": min_delta}
    phases = {"training": {"epochs": 9, "early_stopping": early}, "fine_tuning": {"epochs": 2}}
    rates = {"learning_rate": "step(0.02, 0, 0.34)"}
    return trainer_of(smooth(), plan("dst", {"alpha": 0}, phases=phases, training=rates), folder)


@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (2, 0.0), (3, 0.0), (2, 100.0)])
def test_training_stops_when_the_loss_no_longer_falls(patience: int, min_delta: float, tmp_path: Path) -> None:
    trainer = stopping(tmp_path, patience, min_delta)
    trainer.train()
    records = [record for record in trainer.state.history if record["stage"] == "training"]
    losses = [record["validation_loss"] for record in records]
    best, waited, wanted = losses[0], 0, 1
    for loss in losses[1:]:
        wanted += 1
        best, waited = (loss, 0) if loss < best - min_delta else (best, waited + 1)
        if waited == patience:
            break
    assert len(records) == wanted < 9
    assert [record["stage"] for record in trainer.state.history[wanted:]] == ["fine-tuning"] * 2


@pytest.mark.parametrize("after", [1, 3, 5, 6])
def test_resuming_a_training_that_stopped_early(after: int, tmp_path: Path) -> None:
    whole = stopping(tmp_path / "whole")
    whole.train()
    assert 5 <= len(whole.state.history) < 11
    broken = stopping(tmp_path / "broken")
    broken.progress = Impatient(after)
    with pytest.raises(Interrupted):
        broken.train()
    again = stopping(tmp_path / "broken")
    again.resume()
    again.train()
    same_run(whole, again)


# Rewinding


KINDS = {"weights": ("weight",), "biases": ("bias",), "states": ("threshold",)}


@pytest.mark.parametrize(
    "what", [("weights",), ("biases",), ("states",), ("weights", "biases"), ("weights", "states", "moments"), ()]
)
@pytest.mark.parametrize("last", [False, True])
def test_rewinding_what_is_told(what: tuple[str, ...], last: bool, tmp_path: Path) -> None:
    rounds = {"epochs": 2, "rounds": 2, "rewind": "every-round", "save_weights_epoch": 1, "rewind_what": what}
    trainer = trainer_of(smooth(), plan("dst", {"alpha": 1e-2}, phases={"training": rounds}), tmp_path)
    trainer._segment(0)
    snapshot = {name: array.copy() for name, array in trainer.state.snapshot.items()}
    if last:
        trainer._segment(1)
    before = {name: array.copy() for name, array in trainer.state.values.items()}
    step = trainer.state.position.step
    trainer._end_of_segment(trainer.segments[int(last)])
    endings = [ending for kind in what if kind in KINDS for ending in KINDS[kind]]
    for name, array in trainer.state.values.items():
        back = name.endswith(tuple(endings)) if endings else False
        assert (name in snapshot) == back
        assert np.array_equal(array, snapshot[name] if back else before[name])
        assert not back or not np.array_equal(before[name], array)
    assert (trainer.state.moments == {}) == ("moments" in what)
    assert trainer.state.position.step == (0 if "moments" in what else step)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "dst"])
def test_moments_go_on_from_round_to_round(method: str, tmp_path: Path) -> None:
    phases = {"pretraining": {"epochs": 1}, "training": {"epochs": 2, "rounds": 2}, "fine_tuning": {"epochs": 1}}
    options = {"batches": 3} if method == "wanda" else {}
    trainer = trainer_of(smooth(), plan(method, options, phases=phases), tmp_path)
    trainer.train()
    # Thresholds that pretraining lacks start the moments anew; masks are not trained and have none.
    assert trainer.state.position.step == (20 if method == "dst" else 24)


def test_ramps_run_over_a_round_or_over_all(tmp_path: Path) -> None:
    found = {}
    for ramps in ("phase", "global"):
        rounds = {"epochs": 2, "rounds": 3, "ramps": ramps}
        trainer = trainer_of(smooth(), plan("cs", {"final_temp": 32}, phases={"training": rounds}), tmp_path / ramps)
        trainer.train()
        found[ramps] = [record["beta"] for record in trainer.state.history]
    np.testing.assert_allclose(found["phase"], [1, 32] * 3)
    np.testing.assert_allclose(found["global"], [1, 2, 4, 8, 16, 32])


# Optimizers with a p-norm


@pytest.mark.parametrize("name", ["padam", "psgd"])
@pytest.mark.parametrize("options", [{}, {"p": 0.5, "lambda_p": 0.2}, {"p": 2, "lambda_p": 0.1, "weight_decay": 0.05}])
def test_a_step_with_a_pull_follows_the_reference(name: str, options: dict[str, float]) -> None:
    """Weights are pulled, biases are not; a weight decay of the optimizer's own is for all."""
    feeds = feeds_of(smooth(), 4)
    gradient = gradient_of(smooth(), feeds, 4)
    model = smooth()
    steps = Steps(model, "", 4, name, **{key: str(value) for key, value in options.items()})
    theta = steps.theta().astype(np.float64)
    steps.step(feeds, rate=0.05)
    roles = {key: "bias" if key.endswith("bias") else "weight" for key in split(theta, model, "theta")}
    strength = options.get("lambda_p", 0.01)
    pull = np.concatenate(
        [np.full(part.size, strength * (roles[key] == "weight")) for key, part in split(theta, model, "theta").items()]
    )
    zeros, decay, p = np.zeros_like(theta), options.get("weight_decay", 0.0), options.get("p", 1.0)
    for place in range(theta.size):
        one = [np.array([array[place]]) for array in (theta, gradient, zeros, zeros)]
        if name == "padam":
            expected = prune.padam_step(*one, 1, 0.05, weight_decay=decay, p=p, lambda_p=pull[place])[0]
        else:
            expected = prune.psgd_step(*one[:3], 0.05, weight_decay=decay, p=p, lambda_p=pull[place])[0]
        # atol: theta is of order 1 in float32, and Adam's first step divides the gradient by its own size.
        assert steps.theta()[place] == pytest.approx(float(expected[0]), abs=3e-6)


@pytest.mark.parametrize("name", ["padam", "psgd"])
def test_a_p_norm_draws_weights_to_zero_and_leaves_zeros(name: str, tmp_path: Path) -> None:
    sizes = {}
    for strength in (0.0, 0.5):
        model = smooth()
        weight = graph.stored(model.graph.initializers["fc1.weight"]).copy()
        weight[0] = 0
        graph.set_initializer(model.graph.initializers["fc1.weight"], weight)
        optimizer = {"name": name, "options": {"lambda_p": strength, "p": 1}}
        schedule_ = plan(None, epochs=5, quantization=None, training={"optimizer": optimizer})
        trainer = trainer_of(model, schedule_, tmp_path / str(strength))
        zero = trainer.state.values["fc1.weight"] == 0
        trainer.train()
        sizes[strength] = sum(
            float(np.abs(array).sum()) for key, array in trainer.state.values.items() if "weight" in key
        )
        assert trainer.state.values["fc1.weight"][zero].any() == (strength == 0)
    assert sizes[0.5] < 0.7 * sizes[0.0]


# Targets, on jets


TARGETS = {
    "cs": {},
    "dst": {},
    "autosparse": {"training.rates": "{threshold: 10}", "training.decays": "{weight: 3e-4}"},
}


# Half a percent of the weights; where it is more, gates swing about the threshold or the last rates are too small.
WITHIN = {("cs", 0.6): 0.015, ("autosparse", 0.9): 0.01}


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("method", TARGETS)
def test_a_target_is_met_before_the_cut_and_exact_after(method: str, sparsity: float, tmp_path: Path) -> None:
    settings = {
        "pruning": f"{{method: {method}}}",
        "target.sparsity": str(sparsity),
        "training.batch": "1024",
        "training.learning_rate": "cosine(5e-3, 1e-4)",
        "phases.training.epochs": "40",
        "phases.fine_tuning.epochs": "0",
        **TARGETS[method],
    }
    schedule_ = schedule.load("cs-demo", settings)
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, NORMALIZE)
    jets = data.load(TABLE["jet_tagger"].data_path(), model.graph, labels=True)
    compressible, _ = compress(model, schedule_, jets.train, tmp_path, verify_each=False)
    trainer = Trainer(compressible, schedule_, jets, tmp_path)
    trainer.train()
    within = WITHIN.get((method, sparsity), 0.005)
    assert trainer.state.history[-1]["sparsity"] == pytest.approx(sparsity, abs=within)
    total = sum(mask.size for mask in trainer.state.masks.values())
    kept = sum(int(mask.sum()) for mask in trainer.state.masks.values())
    assert total - kept == round(sparsity * total)
