"""The phase machine, resuming, and what a run leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import reference
from pqc import data, graph, layers, masking, metrics, pipeline, schedule, workflows
from pqc.errors import Interrupted, TrainingError
from pqc.models import TABLE
from pqc.training import state as checkpoints
from pqc.training.segments import segments
from pqc.training.stages import Stage, values_of
from pqc.training.trainer import CHECKPOINT, Trainer
from pqc.workflows.compression import NORMALIZE, compress, finalize

ROWS = 2000
TINY = {
    "training.batch": "128",
    "phases.training.epochs": "3",
    "phases.fine_tuning.epochs": "2",
    "pruning.options.threshold_decay": "1e-4",
}


@pytest.fixture(scope="module")
def jets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few of the shipped jets."""
    folder = tmp_path_factory.mktemp("jets")
    for name in ("train", "test"):
        with np.load(TABLE["jet_tagger"].data_path() / f"{name}.npz") as arrays:
            np.savez(folder / f"{name}.npz", x=arrays["x"][:ROWS], y=arrays["y"][:ROWS])
    return folder


def make_trainer(jets: Path, folder: Path, name: str = "", **settings: str) -> Trainer:
    """A trainer of the jet tagger on a few jets, with the schedule `name` or a short one."""
    plan = schedule.load(name, settings) if name else schedule.load("cs-demo", {**TINY, **settings})
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, NORMALIZE)
    dataset = data.load(jets, model.graph, labels=True)
    folder.mkdir(exist_ok=True)
    compressible, _ = compress(model, plan, dataset.train, folder, verify_each=False)
    return Trainer(compressible, plan, dataset, folder, fingerprint=plan.fingerprint())


def parameters(model: ir.Model) -> dict[str, np.ndarray]:
    """The trained arrays of a model."""
    return values_of(model)


def test_the_loss_falls_and_weights_are_pruned(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, **{"phases.training.epochs": "8"})
    trainer.train()
    history = trainer.state.history
    assert [record["stage"] for record in history] == ["training"] * 8 + ["fine-tuning"] * 2
    assert history[7]["loss"] < history[0]["loss"]
    assert 0.0 < history[-1]["keep_ratio"] < 0.6
    assert history[-1]["accuracy"] > 0.5


def test_the_same_seed_gives_the_same_weights(jets: Path, tmp_path: Path) -> None:
    first, second, other = (
        parameters(make_trainer(jets, tmp_path / name, **{"training.seed": seed}).train())
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_rounds_prepare_the_next_and_beta_restarts(jets: Path, tmp_path: Path) -> None:
    rounds = {"phases.training.rounds": "2", "phases.training.epochs": "2", "phases.fine_tuning.epochs": "0"}
    alone = make_trainer(jets, tmp_path / "one", **{**rounds, "phases.training.rounds": "1"})
    alone.train()
    trainer = make_trainer(jets, tmp_path / "two", **rounds)
    trainer.train()
    assert [record["beta"] for record in trainer.state.history] == pytest.approx([1.0, 200.0, 1.0, 200.0])
    beta = reference.cs_beta(2, 2, 200.0)
    trainer.state.values = {name: array.copy() for name, array in alone.state.values.items()}
    trainer.state.advance(segment=0, epochs=2)
    trainer.frozen = None
    trainer._end_of_segment(trainer.segments[0])
    for name, array in alone.state.values.items():
        wanted = reference.cs_end_of_round(array.astype(float), beta, 0.0) if name.endswith(".s") else array
        np.testing.assert_allclose(trainer.state.values[name], wanted, rtol=1e-6)


@pytest.mark.parametrize(("rewind", "rewound"), [("post-training-stage", True), ("never", False)])
def test_rewinding_restores_the_weights_alone(jets: Path, tmp_path: Path, rewind: str, rewound: bool) -> None:
    settings = {"phases.training.rewind": rewind, "phases.training.save_weights_epoch": "1"}
    trainer = make_trainer(jets, tmp_path, **settings)
    trainer._segment(0)
    snapshot = {name: array.copy() for name, array in trainer.state.snapshot.items()}
    before = {name: array.copy() for name, array in trainer.state.values.items()}
    trainer._end_of_segment(trainer.segments[0])
    weights = {p.value.name for p in masking.parameters(trainer.compressible.graph) if p.role == "weight"}
    assert set(snapshot) == weights
    for name, array in trainer.state.values.items():
        expected = snapshot[name] if rewound and name in weights else before[name]
        assert np.array_equal(array, expected), name
    assert any(not np.array_equal(before[name], snapshot[name]) for name in weights)


def test_rewinding_happens_without_fine_tuning_too(jets: Path, tmp_path: Path) -> None:
    settings = {
        "phases.training.rewind": "post-training-stage",
        "phases.training.save_weights_epoch": "1",
        "phases.fine_tuning.epochs": "0",
    }
    trainer = make_trainer(jets, tmp_path, **settings)
    trained = parameters(trainer.train())
    assert trainer.state.snapshot
    assert all(np.array_equal(trained[name], array) for name, array in trainer.state.snapshot.items())


def test_moments_restart_where_pretraining_ends(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, **{"phases.pretraining.epochs": "1"})
    trainer._segment(0)
    assert trainer.state.position.step == 14
    trainer._restart_moments("training")
    assert (trainer.state.position.step, trainer.state.moments) == (0, {})


def test_every_round_can_rewind(jets: Path, tmp_path: Path) -> None:
    settings = {
        "phases.training.rewind": "every-round",
        "phases.training.save_weights_epoch": "0",
        "phases.training.rounds": "2",
    }
    trainer = make_trainer(jets, tmp_path, **settings)
    start = {name: array.copy() for name, array in trainer.state.values.items()}
    trainer._segment(0)
    trainer._end_of_segment(trainer.segments[0])
    assert all(np.array_equal(trainer.state.values[name], start[name]) for name in trainer.state.snapshot)


def test_phases_without_epochs_are_left_out() -> None:
    plan = schedule.load("cs-demo", {"phases.fine_tuning.epochs": "0", "phases.pretraining.epochs": "3"})
    assert [(one.stage, one.epochs) for one in segments(plan)] == [("pretraining", 3), ("training", 40)]


def test_pretraining_leaves_the_masks_alone(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, **{"phases.pretraining.epochs": "1"})
    start = {name: array.copy() for name, array in trainer.state.values.items()}
    trainer._segment(0)
    for name, array in trainer.state.values.items():
        assert np.array_equal(array, start[name]) == name.endswith(".s"), name


def test_fine_tuning_keeps_the_mask(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path)
    trainer._segment(0)
    masks = {name: array > 0 for name, array in trainer.state.values.items() if name.endswith(".s")}
    trainer._segment(1)
    for name, mask in masks.items():
        assert np.array_equal(trainer.state.values[name] > 0, mask)
    clean, _ = finalize(trainer.train())
    for layer in layers.layers(clean.graph):
        dropped = ~masks[f"{layer.weight.name}.s"]
        assert not graph.stored(layer.weight)[dropped].any()


def test_the_graphs_follow_the_annealed_controls(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path)
    stage = Stage(
        trainer.compressible, "training", trainer.schedule, trainer.schedule.phases.training, trainer.state, batch=64
    )
    losses = []
    for beta in (1.0, 50.0):
        stage.set_controls({"beta": beta})
        assert stage.stepper.batch_arrays()["beta"] == np.float32(beta)
        trainer.state.values["fc1.weight.s"][:] = 0.1
        stage.load(trainer.state)
        losses.append(stage.evaluate(trainer.data.validation).loss)
    assert losses[0] != losses[1]


def test_a_rate_of_zero_freezes_a_group(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, **{"training.rates": "{bias: 0.0}"})
    start = {name: array.copy() for name, array in trainer.state.values.items()}
    trainer._segment(0)
    for name, array in trainer.state.values.items():
        assert np.array_equal(array, start[name]) == name.endswith(".bias"), name


def test_the_clean_model_computes_what_was_trained(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path)
    trained = trainer.train()
    clean, _ = finalize(trained)
    test = trainer.data.test
    a, b = (workflows.checks.outputs(model, test) for model in (trained, clean))
    assert np.array_equal(a, b)
    assert not clean.functions


VARIANTS = {
    "masks after quantizers": {"pruning.pruning_first": "false"},
    "no pruning": {"pruning": "{}"},
    "no quantization": {"quantization": "null"},
    "neither": {"pruning": "{}", "quantization": "null"},
    "a layer left alone": {"pruning.exclude": "[fc4]", "quantization.exclude": "[fc1]"},
    "only weights quantized": {"quantization.inputs": "null", "quantization.biases": "null"},
    "rounded outputs": {"quantization.outputs": "[1, 4, 3]"},
    "floor": {"quantization.rounding": "FLOOR"},
    "adamw": {"training.optimizer": "{name: adamw, options: {weight_decay: 0.01}}"},
    "sgd": {"training.optimizer": "{name: sgd, options: {nesterov: 1}}", "training.learning_rate": "0.05"},
    "smoothing": {"training.loss_options": "{smoothing: 0.1}"},
    "rounds": {"phases.training.rounds": "2"},
    "uncalibrated": {"quantization.calibrate": "false"},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_ends_in_a_clean_model_that_computes_what_was_trained(
    jets: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    trainer = make_trainer(jets, tmp_path, **settings)
    start = {name: array.copy() for name, array in trainer.state.values.items()}
    trained = trainer.train()
    clean, _ = finalize(trained)
    a, b = (workflows.checks.outputs(model, trainer.data.test) for model in (trained, clean))
    assert np.array_equal(a, b)
    assert {node.domain for node in clean.graph} <= {"", graph.QONNX}
    assert any(not np.array_equal(trainer.state.values[name], start[name]) for name in start)
    costs = metrics.Probe(clean).costs({})
    assert [cost.record() for cost in costs] == [cost.record() for cost in metrics.Probe(trained).costs({})]


def test_divergence_says_when_and_where(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, quantization="null", **{"training.learning_rate": "1e30"})
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    assert caught.value.at == "epoch 1 (training), step 2 of 14"
    assert "the first value that is not finite comes from MatMul" in caught.value.message


def test_weights_that_run_away_behind_a_quantizer_are_an_error(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, **{"training.learning_rate": "1e30"})
    with pytest.raises(TrainingError, match="'fc1.weight' has run away"):
        trainer.train()


def test_a_checkpoint_of_another_run_is_refused(jets: Path, tmp_path: Path) -> None:
    make_trainer(jets, tmp_path).train()
    other = make_trainer(jets, tmp_path, **{"training.seed": "5"})
    with pytest.raises(TrainingError, match="another schedule, model or data"):
        other.resume()


def test_interrupting_leaves_a_checkpoint(jets: Path, tmp_path: Path) -> None:
    class Impatient:
        def epoch(self, record: dict[str, object], done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

    trainer = make_trainer(jets, tmp_path)
    trainer.progress = Impatient()
    with pytest.raises(Interrupted, match="stopped after 1 of 5 epochs"):
        trainer.train()
    assert checkpoints.load(tmp_path / CHECKPOINT).position.epochs == 1


@pytest.mark.parametrize("name", ["magnitude", "cs-demo"])
def test_interrupted_and_resumed_equals_uninterrupted(name: str, jets: Path, tmp_path: Path) -> None:
    """Also where a method has states that the optimizer does not move, so that they have no moments."""

    class Impatient:
        def epoch(self, record: dict[str, object], done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

    settings = {"training.batch": "128", "phases.training.epochs": "3", "phases.fine_tuning.epochs": "1"}
    settings |= {"phases.training.rounds": "2"}
    whole, broken, resumed = (
        make_trainer(jets, tmp_path / folder, name, **settings) for folder in ("whole", "broken", "broken")
    )
    whole.train()
    broken.progress = Impatient()
    with pytest.raises(Interrupted):
        broken.train()
    resumed.resume()
    resumed.train()
    assert resumed.state.position == whole.state.position
    assert all(array.tobytes() == resumed.state.values[name].tobytes() for name, array in whole.state.values.items())


COMMAND = [sys.executable, "-m", "pqc", "-q", "train", "jet_tagger", "--schedule", "cs-demo", "--no-verify-each"]


def command(jets: Path, out: Path) -> list[str]:
    """A training run of its own, long enough to be killed."""
    settings = {
        **TINY,
        "phases.training.epochs": "30",
        "phases.training.rounds": "2",
        "phases.fine_tuning.epochs": "20",
    }
    words = [*COMMAND, "--data", str(jets), "--out", str(out)]
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    return words


def kill_at(jets: Path, out: Path, epochs: int, delay: float) -> None:
    """Start or resume a run and kill it a moment after its checkpoint has `epochs` epochs."""
    resume = ["--resume"] if (out / CHECKPOINT).exists() else []
    process = subprocess.Popen([*command(jets, out), *resume])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (out / CHECKPOINT).exists() and len(checkpoints.load(out / CHECKPOINT).history) >= epochs:
            break
        time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_and_resumed_equals_uninterrupted(jets: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(jets, whole), check=True, stdout=subprocess.DEVNULL)
    rng = np.random.default_rng(11)  # when exactly the kill comes differs from run to run all the same
    for epochs in (int(rng.integers(1, 25)), int(rng.integers(31, 55))):
        kill_at(jets, broken, epochs, float(rng.uniform(0, 0.02)))
    subprocess.run([*command(jets, broken), "--resume"], check=True, stdout=subprocess.DEVNULL)
    one, two = (checkpoints.load(folder / CHECKPOINT) for folder in (whole, broken))
    assert len(one.history) == len(two.history) == 80
    for first, second in ((one.values, two.values), *zip(one.moments.values(), two.moments.values(), strict=True)):
        assert first.keys() == second.keys()
        assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    final = [parameters(graph.load(folder / "trained.onnx")) for folder in (whole, broken)]
    assert all(final[0][name].tobytes() == final[1][name].tobytes() for name in final[0])


def test_masks_freeze_as_they_were_in_the_best_epoch(jets: Path, tmp_path: Path) -> None:
    settings = {
        "pruning.method": "pdp",
        "pruning.options": "{epsilon: 0.2, sparsity: 0.9}",
        "phases.training.epochs": "5",
        "phases.training.select": "best",
        "phases.fine_tuning.epochs": "0",
    }
    trainer = make_trainer(jets, tmp_path, **settings)
    trainer.train()
    best = int(np.argmax([record["accuracy"] + 1e-9 * record["epoch"] for record in trainer.state.history]))
    masks = trainer.state.masks.values()
    pruned = sum(int((mask == 0).sum()) for mask in masks) / sum(mask.size for mask in masks)
    # The ramp prunes a fifth of the share more in every epoch; each layer's number is rounded.
    assert pruned == pytest.approx(0.9 * 0.2 * (best + 1), abs=1e-3)


def test_a_constraint_that_no_epoch_keeps_is_noted(
    jets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"phases.training.select": "best", "phases.training.constraint": "{ebops: 1}"}
    with caplog.at_level("INFO", logger="pqc.notes"):
        make_trainer(jets, tmp_path, **settings).train()
    assert "training: no epoch kept the constraint; it ends with the last" in caplog.messages


def test_epochs_without_a_mask_are_neither_the_best_nor_a_reason_to_stop(jets: Path, tmp_path: Path) -> None:
    settings = {
        "pruning.method": "wanda",
        "pruning.options": "{sparsity: 0.9, batches: 5, start_epoch: 2}",
        "phases.training.epochs": "5",
        "phases.training.select": "best",
        "phases.training.early_stopping": "{patience: 1}",
        "phases.fine_tuning.epochs": "0",
        "training.learning_rate": "1e-6",
    }
    trainer = make_trainer(jets, tmp_path, **settings)
    trainer.train()
    assert [record["keep_ratio"] > 0.5 for record in trainer.state.history[:3]] == [True, True, False]
    masks = trainer.state.masks.values()
    assert sum(int((mask == 0).sum()) for mask in masks) == round(0.9 * sum(mask.size for mask in masks))
