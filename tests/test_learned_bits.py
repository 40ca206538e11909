"""Training with learned bits: the graphs of a step, what moves between steps, targets, the front, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import onnx_model

from pqc import data, engine, graph, layers, metrics, pipeline, schedule
from pqc.errors import Interrupted, PqcError
from pqc.models import TABLE as MODELS
from pqc.quantizer_sites import sites
from pqc.training.front import Front, Point, front, thinned
from pqc.training.stages import Stage, values_of
from pqc.training.state import TrainingState
from pqc.training.trainer import Trainer
from pqc.workflows.compression import NORMALIZE, compress, finalize

SETTINGS = {
    "quantization.calibrate": "true",
    "phases.training.epochs": "3",
    "controls.ebops_weight": "1e-5",
    "training.batch": "256",
    "distill": "null",
}


@pytest.fixture(scope="module")
def jets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few of the shipped jets."""
    folder = tmp_path_factory.mktemp("jets")
    for part, rows in (("train", 3000), ("test", 1000)):
        with np.load(MODELS["jet_tagger"].data_path() / f"{part}.npz") as arrays:
            np.savez(folder / f"{part}.npz", **{name: arrays[name][:rows] for name in arrays.files})
    return folder


def plan(**settings: str) -> schedule.Schedule:
    return schedule.load("hgq", {**SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}})


def make(jets: Path, folder: Path, chosen: schedule.Schedule, **options: Any) -> Trainer:
    model = graph.load(MODELS["jet_tagger"].path())
    pipeline.run(model, NORMALIZE)
    dataset = data.load(jets, model.graph, labels=True)
    folder.mkdir(parents=True, exist_ok=True)
    compressible, _ = compress(model, chosen, dataset.train, folder, verify_each=False)
    return Trainer(compressible, chosen, dataset, folder, **options)


# A step


@pytest.mark.parametrize("learns", ["bits", "fractional_bits"])
def test_the_lowered_step_is_the_plain_one(jets: Path, tmp_path: Path, learns: str) -> None:
    """One step with fast functions on all layers at once, and one with a FixedQuant node for each quantizer."""
    kind = f"{{bits: [1, 1, 3], granularity: per_weight, overflow: SAT_SYM, learns: {learns}}}"
    trainer = make(jets, tmp_path, plan(quantization__weights=kind, quantization__biases=kind))
    stage = Stage(
        trainer.compressible, "training", trainer.schedule, trainer.schedule.phases.training, trainer.state, batch=64
    )
    plain = graph.copy(trainer.compressible)
    pipeline.run(plain, "attach-loss,attach-costs{bits=false},attach-updates,expose-parameters,relax-overflow")
    pipeline.run(plain, "fix-batch{size=64},differentiate")
    lowered = graph.copy(trainer.compressible)
    pipeline.run(lowered, "attach-loss,attach-costs{bits=false},attach-updates,expose-parameters,relax-overflow")
    pipeline.run(lowered, "fix-batch{size=64},lower-quant,lower-learned,batch-parameters,differentiate")
    counts = [
        sum(node.domain.startswith(("pqc.quant", "pqc.learned")) for node in one.graph) for one in (plain, lowered)
    ]
    assert counts == [
        16,
        7 if learns == "bits" else 8,
    ]  # 12 quantizers and 4 ranges; 4 activations and the rest at once
    assert len(list(stage.step_model.graph)) < 160
    rows = np.arange(64)
    inputs, target = trainer.data.train.take(rows)
    feeds = {**inputs, "target": target, "ebops_weight": np.float32(1e-4)}
    found, wanted = engine.evaluate(lowered, feeds), engine.evaluate(plain, feeds)
    assert found.keys() == wanted.keys() == {"loss", "theta_grad", "buffers.next"}
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-6)
    np.testing.assert_array_equal(found["buffers.next"], wanted["buffers.next"])
    scale = np.abs(wanted["theta_grad"]).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found["theta_grad"], wanted["theta_grad"], rtol=1e-4, atol=2e-6 * scale)


def test_the_price_in_the_loss_is_the_bit_operations(jets: Path, tmp_path: Path) -> None:
    trainer = make(jets, tmp_path, plan())
    stage = Stage(
        trainer.compressible, "training", trainer.schedule, trainer.schedule.phases.training, trainer.state, batch=64
    )
    losses = {}
    for weight in (0.0, 1e-3):
        stage.set_controls({"ebops_weight": weight, "bits_weight": 0.0})
        losses[weight] = stage.evaluate(trainer.data.validation).loss
    counted = metrics.ebops(metrics.Probe(trainer.compressible).costs({}))
    zeros = 1 - metrics.keep_ratio(metrics.Probe(trainer.compressible).costs({}))
    price = (losses[1e-3] - losses[0.0]) / 1e-3
    assert (
        counted <= price <= counted / (1 - zeros) * 1.2
    )  # weights that are zero cost in the loss, and not in hardware
    assert zeros < 0.5


# Between steps


def test_integer_bits_hold_what_is_met(jets: Path, tmp_path: Path) -> None:
    kind = "{bits: [1, 0, 4], granularity: per_weight, overflow: SAT_SYM, learns: fractional_bits}"
    trainer = make(jets, tmp_path, plan(quantization__weights=kind, quantization__biases=kind))
    trained = trainer.train()
    checked = 0
    for site in sites(trained.graph):
        grid, x = layers.grid(site.node), graph.constant(site.x)
        if x is None:
            continue
        assert grid is not None
        largest = grid.scale * (2.0 ** (grid.bits - 1) - 1)
        rounded = np.rint(x / grid.scale) * grid.scale
        assert np.all(np.abs(rounded) <= np.where(grid.bits > 1, largest, 0))
        least = (grid.bits > 2) & (np.abs(rounded) <= grid.scale * (2.0 ** (grid.bits - 2) - 1))
        assert not least.any(), "one bit less would do"
        checked += x.size
    assert checked == 4256 + 133


def test_clean_equals_trained_for_learned_bits(jets: Path, tmp_path: Path) -> None:
    trainer = make(jets, tmp_path, plan(controls__ebops_weight="3e-4"))
    trained = trainer.train()
    clean, _ = finalize(trained)
    assert not [node for node in clean.graph if node.domain.startswith("pqc")]
    inputs, _ = trainer.data.test.all()
    found, wanted = engine.evaluate(clean, inputs), engine.evaluate(trained, inputs)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    assert metrics.keep_ratio(metrics.Probe(clean).costs({})) < 0.9
    assert metrics.Probe(clean).costs({}) == metrics.Probe(trained).costs({})
    assert any(np.any(graph.constant(layer.bias) == 0) for layer in layers.layers(clean.graph))


def test_bits_stay_in_fine_tuning_and_move_before(jets: Path, tmp_path: Path) -> None:
    trainer = make(jets, tmp_path, plan(phases__training__epochs="1", phases__fine_tuning__epochs="1"))
    names = trainer.bits.trained
    start = {name: trainer.state.values[name].copy() for name in names}
    seen = []
    trainer.progress = type(
        "", (), {"epoch": lambda self, *_: seen.append({n: trainer.state.values[n].copy() for n in names})}
    )()
    trainer.train()
    assert any(not np.array_equal(seen[0][name], start[name]) for name in names)
    assert all(np.array_equal(seen[1][name], seen[0][name]) for name in names)


@pytest.mark.parametrize("phase", ["pretraining", "training"])
def test_a_phase_without_quantizers_trains_in_float(jets: Path, tmp_path: Path, phase: str) -> None:
    trainer = make(jets, tmp_path, plan(**{f"phases__{phase}__epochs": "1", f"phases__{phase}__quantize": "false"}))
    trainer.train()
    record = next(record for record in trainer.state.history if record["stage"] == phase)
    assert "on_front" not in record
    assert "ebops_weight" not in record


# Targets and the front


def test_a_target_of_bit_operations_is_met(jets: Path, tmp_path: Path) -> None:
    settings = {"target.ebops": "20000", "phases.training.epochs": "30", "training.batch": "64"}
    trainer = make(jets, tmp_path, plan(**{name.replace(".", "__"): value for name, value in settings.items()}))
    trained = trainer.train()
    first, last = trainer.state.history[0]["ebops"], trainer.state.history[-1]["ebops"]
    assert first > 40_000
    assert 10_000 < last < 30_000
    assert metrics.ebops(metrics.Probe(trained).costs({})) <= 20_000


def test_the_front_holds_what_nothing_beats() -> None:
    points = [Point(1, 0.5, 100), Point(2, 0.6, 200), Point(3, 0.5, 90), Point(4, 0.6, 200), Point(5, 0.4, 95)]
    assert front(points) == [Point(3, 0.5, 90), Point(4, 0.6, 200)]
    many = [Point(n, n / 100, 2**n) for n in range(40)]
    assert front(many) == many
    few = thinned(many, 8)
    assert len(few) == 8
    assert few[-1] == many[-1]
    assert set(few) <= set(many)


def test_files_follow_the_front(tmp_path: Path) -> None:
    kept = Front(tmp_path, "accuracy")
    records = [{"epoch": n, "accuracy": a, "ebops": e} for n, a, e in [(1, 0.5, 100), (2, 0.6, 90), (3, 0.4, 95)]]
    found = [kept.add(record, {"x": np.full(2, record["epoch"], np.float32)}) for record in records]
    assert found == [True, True, False]
    assert [path.name for path in (tmp_path / "front").glob("*")] == ["epoch-00002.npz"]
    again = Front(tmp_path, "accuracy")
    again.restart([{**record, "on_front": on} for record, on in zip(records, found, strict=True)])
    assert again.points == [Point(2, 0.6, 90)]


def test_resuming_ends_bit_for_bit_as_without_a_break(jets: Path, tmp_path: Path) -> None:
    chosen = plan(target__ebops="30000", phases__training__epochs="4")
    whole = make(jets, tmp_path / "whole", chosen)
    whole.train()

    class Stop:
        def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

    broken = make(jets, tmp_path / "broken", chosen, progress=Stop())
    with pytest.raises(Interrupted):
        broken.train()
    again = make(jets, tmp_path / "broken", chosen)
    again.resume()
    again.train()
    assert again.state.values.keys() == whole.state.values.keys()
    for name, array in whole.state.values.items():
        np.testing.assert_array_equal(again.state.values[name], array)
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in again.state.history] == [
        {k: v for k, v in r.items() if k not in drop} for r in whole.state.history
    ]
    assert again.front.points == whole.front.points
    names = [sorted(path.name for path in (tmp_path / side / "front").iterdir()) for side in ("whole", "broken")]
    assert names[0] == names[1]


# Schedules


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"target.ebops": "5000", "quantization.weights": "[1, 0, 7]"}, ""),
        ({"controls.ebops_wight": "1"}, "did you mean 'ebops_weight'?"),
        ({"training.rates": "{integer_bit: 1}"}, "did you mean 'integer_bits'?"),
        ({"quantization.weights": "{bits: [1, 0, 3], overflow: WRAP, learns: bits}"}, "no gradient under WRAP"),
        ({"quantization.weights": "{bits: [1, 0, 3], granularity: per_wieght}"}, "did you mean 'per_weight'?"),
        ({"quantization.layers": "{fc1: {weihgt: [1, 0, 3]}}"}, "did you mean 'weight'?"),
        ({"quantization.layers": "{fc1: {output: {overflow: SAT}}}"}, "a quantizer needs bits"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings: dict[str, str], what: str) -> None:
    if not what:
        assert schedule.load("hgq", settings).target.ebops == 5000
        return
    with pytest.raises(PqcError) as caught:
        schedule.load("hgq", settings)
    assert what in str(caught.value)


def test_a_target_of_bit_operations_needs_learned_bits() -> None:
    with pytest.raises(PqcError, match="needs a quantizer that learns bits"):
        schedule.load("cs", {"target.ebops": "5000"})


def test_quantizers_of_layers_build_on_those_of_all() -> None:
    chosen = schedule.load("hgq", {"quantization.layers": "{fc1: {weight: {bits: [1, 0, 2]}, input: null}}"})
    assert chosen.quantization is not None
    own = chosen.quantization.overrides()["fc1"]
    assert str(own["weight"]) == "1,0,2/per_weight/SAT_SYM/bits"
    assert own["input"] is None
    text = chosen.text()
    assert schedule.Schedule.model_validate(__import__("yaml").safe_load(text)) == chosen


def test_the_front_of_a_run_is_written(jets: Path, tmp_path: Path) -> None:
    from pqc.workflows import running
    from pqc.workflows.job import RunOptions
    from pqc.workflows.sources import resolve

    summary = running.run(resolve("jet_tagger"), plan(), jets, tmp_path, RunOptions(hls=False, verify_each=False))
    points = json.loads((tmp_path / "front.json").read_text())
    assert summary["front"] == points
    assert points
    for point in points:
        clean = graph.load(tmp_path / point["model"])
        assert metrics.ebops(metrics.Probe(clean).costs({})) == point["clean_ebops"]
    assert [point["ebops"] for point in points] == sorted(point["ebops"] for point in points)


def test_per_channel_bits_of_a_convolution_train(tmp_path: Path) -> None:
    text = "(float[n,2,4,4] x) => (float[n,3] y) { h = Conv (x, c__weight, c__bias) r = Relu (h) f = Flatten (r) y = MatMul (f, d__weight) }"
    rng = np.random.default_rng(0)
    arrays = {
        "c__weight": rng.normal(size=(3, 2, 3, 3)),
        "c__bias": rng.normal(size=3),
        "d__weight": rng.normal(size=(12, 3)),
    }
    model = onnx_model(text, **arrays)
    pipeline.run(model, NORMALIZE)
    kind = "1,1,4/per_channel/SAT_SYM/bits"
    pipeline.run(
        model, f"legalize,insert-quant{{weights={kind} biases={kind} inputs=1,3,4/per_channel/fractional_bits}}"
    )
    start = values_of(model)
    chosen = plan(training__loss="mse")
    stage = Stage(model, "training", chosen, chosen.phases.training, TrainingState(start, {}), batch=8)
    stage.set_controls({"ebops_weight": 1e-3, "bits_weight": 0.0})
    x, y = rng.normal(size=(8, 2, 4, 4)).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    losses = [stage.stepper.step({"x": x}, y, np.arange(8), number=n + 1, learning_rate=0.02) for n in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    after = TrainingState({}, {})
    stage.unpack(after)
    moved = [name for name, array in after.values.items() if not np.array_equal(array, start[name])]
    assert sum("fractional_bits" in name for name in moved) == 5
