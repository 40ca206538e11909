"""Masks from data alone: calibration batches instead of training, with and without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reference_pruning as reference
from pqc import data, graph, pipeline, schedule, workflows
from pqc.errors import DataError, ScheduleError, TrainingError
from pqc.models import TABLE
from pqc.training.stages import values_of
from pqc.training.trainer import Trainer
from pqc.workflows.compression import NORMALIZE, compress

ROWS = 2000
BATCH = 64


@pytest.fixture(scope="module")
def jets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jets")
    for name in ("train", "test"):
        with np.load(TABLE["jet_tagger"].data_path() / f"{name}.npz") as arrays:
            np.savez(folder / f"{name}.npz", x=arrays["x"][:ROWS], y=arrays["y"][:ROWS])
    return folder


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, jets: Path) -> Path:
    path = tmp_path_factory.mktemp("unlabelled") / "x.npz"
    with np.load(jets / "train.npz") as arrays:
        np.savez(path, x=arrays["x"])
    return path


def make_trainer(jets: Path, folder: Path, **settings: str) -> Trainer:
    plan = schedule.load("wanda-ptq", {"training.batch": str(BATCH), "phases.calibration.batches": "8", **settings})
    model = graph.load(TABLE["jet_tagger"].path())
    pipeline.run(model, NORMALIZE)
    dataset = data.load(jets, model.graph, labels=True, needs_target=plan.trains)
    folder.mkdir(exist_ok=True)
    compressible, _ = compress(model, plan, dataset.train, folder, verify_each=False)
    return Trainer(compressible, plan, dataset, folder)


BATCHES = {"pruning.options.batches": "8"}


def test_wanda_adds_up_the_inputs_of_the_batches_and_leaves_weights_alone(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, **BATCHES)
    start = values_of(trainer.compressible)
    trainer.train()
    rows = [rows for _, rows in zip(range(8), trainer._batches(), strict=False)]
    quantizer = next(node for node in trainer.compressible.graph if node.name == "x.quant")
    scale = float(graph.constant(quantizer.inputs[1]))
    seen = [np.rint(trainer.inputs["x"][index] / scale) * scale for index in rows]
    expected = reference.wanda_collect(seen)
    # rtol: float32 sums over 512 rows.
    np.testing.assert_allclose(trainer.state.values["fc1.weight.squares"], expected, rtol=1e-5)
    assert trainer.state.values["fc1.weight.count"] == 8
    for name, array in start.items():
        if name.endswith((".weight", ".bias")):
            assert np.array_equal(trainer.state.values[name], array), name


@pytest.mark.parametrize("method", ["wanda", "magnitude", "pdp", "mdmm", "dst"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_a_target_is_met_to_one_weight_without_training(
    jets: Path, tmp_path: Path, method: str, sparsity: float
) -> None:
    options = "{batches: 8}" if method == "wanda" else "{}"
    settings = {"pruning.method": method, "pruning.options": options, "target.sparsity": str(sparsity)}
    trainer = make_trainer(jets, tmp_path, **settings)
    trainer.train()
    masks = trainer.state.masks.values()
    pruned, total = sum(int((mask == 0).sum()) for mask in masks), sum(mask.size for mask in masks)
    assert pruned == round(sparsity * total)
    assert {float(value) for mask in masks for value in np.unique(mask)} <= {0.0, 1.0}


def test_activation_pruning_ranks_outputs_on_calibration_data(jets: Path, tmp_path: Path) -> None:
    settings = {"pruning.method": "activation_pruning", "pruning.options": "{batches: 8, scope: layer}"}
    trainer = make_trainer(jets, tmp_path, **settings, **{"target.sparsity": "0.5"})
    trainer.train()
    activity = trainer.state.values["fc1.weight.activity"]
    kept = trainer.state.masks["fc1.weight"].any(axis=0)
    assert activity.min() >= 0 and activity.max() <= 1
    assert kept.sum() == 32
    assert activity[kept].min() >= activity[~kept].max()
    assert "fc4.weight" not in trainer.state.masks, "the model's outputs stay"


def test_fine_tuning_may_follow(jets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(jets, tmp_path, **BATCHES, **{"phases.fine_tuning.epochs": "2"})
    start = values_of(trainer.compressible)
    trainer.train()
    assert [record["stage"] for record in trainer.state.history] == ["fine-tuning"] * 2
    masked = {name: array * trainer.state.masks.get(name, 1) for name, array in trainer.state.values.items()}
    assert not np.array_equal(masked["fc1.weight"], start["fc1.weight"] * trainer.state.masks["fc1.weight"])


def test_a_run_resumed_after_calibration_does_not_calibrate_again(jets: Path, tmp_path: Path) -> None:
    settings = {**BATCHES, "phases.fine_tuning.epochs": "1"}
    whole = make_trainer(jets, tmp_path / "whole", **settings)
    whole.train()
    broken = make_trainer(jets, tmp_path / "broken", **settings)
    broken._segment(0)
    resumed = make_trainer(jets, tmp_path / "broken", **settings)
    resumed.resume()
    resumed.train()
    assert all(np.array_equal(array, resumed.state.values[name]) for name, array in whole.state.values.items())


def test_too_few_batches_and_too_many_are_refused(jets: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="^phases.calibration.batches: 8 batches are too few for the masks to be found"
    ):
        make_trainer(jets, tmp_path, **{"pruning.options.batches": "9"})
    with pytest.raises(TrainingError, match="there are 28 batches to calibrate on, not 50"):
        make_trainer(jets, tmp_path, **{"phases.calibration.batches": "50"})


def test_data_without_labels_are_judged_by_the_float_model(unlabelled: Path, tmp_path: Path) -> None:
    settings = {"training.batch": "64", "phases.calibration.batches": "8", **BATCHES, "target.sparsity": "0.3"}
    plan = schedule.load("wanda-ptq", settings)
    source = workflows.resolve(TABLE["jet_tagger"].path())
    workflows.run(source, plan, unlabelled, tmp_path, workflows.RunOptions(hls=False))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["labels"] == "the float model"
    assert found["float"]["accuracy"] == 1.0
    assert 0.5 < found["clean"]["accuracy"] < 1.0
    assert found["clean_equals_trained"]


def test_training_needs_labels(unlabelled: Path, tmp_path: Path) -> None:
    plan = schedule.load("cs-demo")
    source = workflows.resolve(TABLE["jet_tagger"].path())
    with pytest.raises(DataError, match="no target"):
        workflows.run(source, plan, unlabelled, tmp_path, workflows.RunOptions(hls=False))


def test_gates_that_only_training_moves_are_no_score(jets: Path, tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="without training its masks mean nothing"):
        make_trainer(jets, tmp_path, **{"pruning.method": "cs", "pruning.options": "{}"})


def test_a_step_of_more_batches_than_an_epoch_has_is_refused(jets: Path, tmp_path: Path) -> None:
    settings = {**BATCHES, "training.accumulate": "29", "phases.fine_tuning.epochs": "1"}
    with pytest.raises(TrainingError, match="a step takes 29 batches, and an epoch has 28"):
        make_trainer(jets, tmp_path, **settings)


@pytest.mark.parametrize("ramp", ["2", "linear(0, 1.5)", "-0.1"])
def test_a_ramp_is_a_share(ramp: str) -> None:
    with pytest.raises(ScheduleError, match="ramp is a share from 0 to 1"):
        schedule.load("magnitude", {"controls.ramp": ramp})


@pytest.mark.parametrize("value", [".inf", ".nan", "1.0e+39", "[1]"])
def test_options_are_finite_float32_numbers(value: str) -> None:
    with pytest.raises(ScheduleError):
        schedule.load("cs", {"pruning.options.threshold_init": value})
