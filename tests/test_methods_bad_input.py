"""Methods, schedules and runs with bad and unusual input: one error with a place, or the right result."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import MLP, onnx_model

from pqc import cli, curves, files, graph, interrupts, mask_sites, masking, pipeline, schedule, workflows
from pqc.errors import GraphError, Interrupted, PassError, PqcError, ScheduleError, TrainingError, UnsupportedError
from pqc.methods import TABLE, make
from pqc.training import state as checkpoints
from pqc.training.trainer import CHECKPOINT
from pqc.workflows import schedules

Settings = dict[str, str]
Train = Callable[..., dict[str, Any]]
BATCH = 16
BASE = {
    "training.batch": str(BATCH),
    "phases.training.epochs": "2",
    "phases.fine_tuning.epochs": "1",
    "quantization": "null",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of 20, 35 and 21 weights, so that groups of two and four do not fit all of them."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    text = """(float[batch,4] x) => (float[batch,3] y) {
        h = Gemm <transB: int = 1> (x, fc1__weight, fc1__bias)
        a = Relu (h)
        i = Gemm <transB: int = 1> (a, fc2__weight, fc2__bias)
        b = Relu (i)
        y = Gemm <transB: int = 1> (b, fc3__weight, fc3__bias)
    }"""
    sizes = {"fc1": (5, 4), "fc2": (7, 5), "fc3": (3, 7)}
    arrays: dict[str, Any] = {f"{name}__weight": rng.normal(size=shape) for name, shape in sizes.items()}
    arrays |= {f"{name}__bias": np.zeros(shape[0]) for name, shape in sizes.items()}
    graph.save(onnx_model(text, **arrays), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.npz"
    x = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0] > 0).astype(int) + (x[:, 1] > 0))
    return path


class Stop:
    """A listener that interrupts the run when an epoch has ended, before its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.at = epoch

    def stage(self, name: str) -> None:
        """Say nothing."""

    def epoch(self, record: dict[str, Any], done: int, total: int) -> None:
        if done == self.at:
            raise KeyboardInterrupt


def load(settings: Settings) -> schedule.Schedule:
    content: dict[str, Any] = {}
    for key, text in {**BASE, **settings}.items():
        schedule._set(content, key, schedule.value(text, key))
    return schedule.Schedule.model_validate(content)


@pytest.fixture
def train(model: Path, data: Path, tmp_path: Path) -> Train:
    """Run the chain without firmware and return the summary."""

    def run(settings: Settings, name: str = "out", source: Path = model, **options: Any) -> dict[str, Any]:
        listener = options.pop("listener", None)
        chosen = workflows.RunOptions(hls=False, verify_each=False, **options)
        return workflows.run(workflows.resolve(source), load(settings), data, tmp_path / name, chosen, listener)

    return run


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What a user is told although nothing is wrong."""
    monkeypatch.setattr(logging.getLogger("pqc.notes"), "propagate", True)
    caplog.set_level(logging.INFO, "pqc.notes")
    return caplog


# Options and schedules


@pytest.mark.parametrize("method", sorted(TABLE))
def test_options_beyond_float32_are_refused(method: str) -> None:
    numbers = [name for name, kind in TABLE[method].__annotations__.items() if kind == "float"]
    assert numbers
    for name in numbers:
        for value in (1e300, -1e300, "1e39", "inf", "nan", float("inf"), float("nan"), 10**400):
            with pytest.raises(PassError, match=f"method '{method}': .*"):
                make(method, {name: value})


def test_an_unknown_scope_is_refused_by_every_method_that_has_one() -> None:
    for method in ("magnitude", "activation_pruning", "pdp", "wanda"):
        with pytest.raises(PassError, match="scope is one of auto, global, layer, not 'rows'"):
            make(method, {"scope": "rows"})


@pytest.mark.parametrize("pattern", ["2:", ":4", "2:٤", "²:4", "2:4:8", "0:4", "4:4", "1:" + "9" * 30, "9" * 5000])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(PassError, match="method 'magnitude': a pattern is written like 2:4"):
        make("magnitude", {"pattern": pattern})


def test_a_pattern_that_yaml_reads_as_minutes_needs_quotes() -> None:
    with pytest.raises(ValueError, match="pattern: expected text and got 124; put it in quotes"):
        load({"pruning.method": "magnitude", "pruning.options.pattern": "2:4"})


@pytest.mark.parametrize("options", ["metric=StructuredSparsity", "metric=FPGAAwareSparsity,memory=BRAM"])
def test_a_block_of_mdmm_is_no_longer_than_a_row(options: str) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"fc1__weight": weight, "fc1__bias": np.zeros(3), "fc2__weight": np.ones((3, 3)), "fc2__bias": np.zeros(3)}
    model = onnx_model(MLP, **arrays)
    pipeline.run(model, f"normalize,lower-gemm,insert-masks{{method=mdmm options=rf={2**31},{options}}}")
    found = masking.Program(model, masking.scores).run({})["fc1.weight"]
    norms = np.sqrt((weight**2).sum(axis=1, keepdims=True)) - 1e-3
    # rtol: float32 sums of four squares.
    np.testing.assert_allclose(found, np.broadcast_to(norms, weight.shape), rtol=1e-6)


@pytest.mark.parametrize("value", ["null", ".nan", ".inf", "[1]", "{a: 1}"])
def test_an_option_is_no_list_and_no_null(value: str) -> None:
    with pytest.raises(ValueError, match="an option is a finite number, true, false or text"):
        load({"pruning.method": "cs", "pruning.options.final_temp": value})


@pytest.mark.parametrize("ramp", ["2", "-1", "linear(0, 1.5)"])
def test_a_ramp_is_a_share(ramp: str) -> None:
    for method in ("magnitude", "pdp"):
        with pytest.raises(ValueError, match="ramp is a share from 0 to 1, not"):
            load({"pruning.method": method, "controls.ramp": ramp})


@pytest.mark.parametrize("curve", ["1e300", "exp(1, 1e39)", "-1e39"])
def test_a_curve_stays_within_float32(curve: str) -> None:
    with pytest.raises(PqcError, match="cannot read the curve"):
        curves.parse(curve)


def test_so_many_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to"):
        load({"phases.training.rounds": "1000000000"})


def test_what_training_alone_moves_needs_training() -> None:
    settings = {"phases.training.epochs": "0", "phases.calibration.batches": "2"}
    with pytest.raises(ValueError, match="a pruning method needs phases.training.epochs"):
        load({"pruning.method": "cs", **settings})
    load({"pruning.method": "dst", **settings})


@pytest.mark.parametrize(
    ("method", "layer", "message"),
    [
        ("magnitude", "{sparsity: 0.1}", "'fc1' sets sparsity to 0.1, which the target decides"),
        ("magnitude", "{pattern: '2:4'}", "the pattern 2:4 says how much remains"),
        ("mdmm", "{target_sparsity: 0.1}", "'fc1' sets target_sparsity to 0.1, which the target decides"),
    ],
)
def test_layers_do_not_take_a_target_back(method: str, layer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load({"pruning.method": method, "pruning.layers.fc1": layer, "target.sparsity": "0.9"})


@pytest.mark.parametrize(("method", "layer"), [("cs", "{threshold_init: 0.1}"), ("magnitude", "{scope: layer}")])
def test_layers_may_change_what_a_target_leaves_open(method: str, layer: str) -> None:
    load({"pruning.method": method, "pruning.layers.fc1": layer, "target.sparsity": "0.9"})


@pytest.mark.parametrize("text", ["a: " + "[" * 100_000, "{a: " * 100_000, "- " * 60 + "1"])
def test_deep_nesting_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text)
    with pytest.raises(ScheduleError, match="not YAML: nested too deeply"):
        schedule.load(path)
    with pytest.raises(ScheduleError, match="--set description: not YAML: nested too deeply"):
        schedule.load("cs", {"description": text})


def test_a_conversion_can_be_read_whatever_its_notes_quote(tmp_path: Path) -> None:
    path, converted = tmp_path / "config.yaml", tmp_path / "mine.yaml"
    path.write_text('training_parameters: {epochs: 1, rewind: "é\\e[31m"}\n')
    converted.write_text(schedules.convert(path))
    assert "é\\x1b[31m" in converted.read_text()
    schedule.load(converted)


# Runs


def test_wanda_without_a_pattern_takes_any_size(train: Train) -> None:
    found = train({"pruning.method": "wanda", "pruning.options": "{batches: 2, sparsity: 0.5}"})
    assert found["keep_ratio"] == 0.5


def test_patterns_of_layers_are_skipped_where_the_schedule_says_so(
    train: Train, notes: pytest.LogCaptureFixture
) -> None:
    train({"pruning.method": "magnitude", "pruning.layers.zzz": "{sparsity: 0.1}", "pruning.unmatched": "skip"})
    assert "pruning.layers: no layer is named like 'zzz'; skipped" in notes.text


def test_a_network_without_masks_is_told_or_refused(train: Train, notes: pytest.LogCaptureFixture) -> None:
    settings = {"pruning.method": "magnitude", "pruning.exclude": "['*']"}
    assert train(settings)["keep_ratio"] == 1.0
    assert "pruning.method: no weight gets a mask" in notes.text
    with pytest.raises(UnsupportedError, match=r"^target\.sparsity: no weight gets a mask"):
        train({**settings, "target.sparsity": "0.5"})


SHORT = {"phases.training.early_stopping": "{patience: 1, min_delta: 100}", "phases.training.epochs": "6"}
BEST = {"phases.training.select": "best", "phases.training.epochs": "4"}


@pytest.mark.parametrize(
    "settings",
    [
        {"pruning.method": "pdp"},
        {"pruning.method": "magnitude", "controls.ramp": "0"},
        {"pruning.method": "magnitude", **SHORT},
        {"pruning.method": "magnitude", **BEST},
        {"pruning.method": "pdp", **BEST},
        {"pruning.method": "wanda", "pruning.options": "{batches: 2, start_epoch: 3}", **SHORT},
        {"pruning.method": "wanda", "pruning.options": "{batches: 2, start_epoch: 2}", **BEST},
    ],
)
def test_a_target_is_met_by_short_ramps_and_early_epochs_too(settings: Settings, train: Train) -> None:
    assert 1 - train({**settings, "target.sparsity": "0.75"})["keep_ratio"] == 0.75


def test_a_constraint_that_no_epoch_keeps_is_noted(train: Train, notes: pytest.LogCaptureFixture) -> None:
    train({"pruning.method": "magnitude", **BEST, "phases.training.constraint": "{sparsity: 0.99}"})
    assert "no epoch" in notes.text


@pytest.mark.parametrize("batch", ["16", "1000000000"])
def test_steps_longer_than_an_epoch_are_refused(batch: str, train: Train) -> None:
    with pytest.raises(TrainingError, match="^training.accumulate: a step takes 4096 batches, and an epoch has "):
        train({"training.batch": batch, "training.accumulate": "4096"})


def test_a_calibration_too_short_for_the_masks_leaves_them_to_training(train: Train) -> None:
    settings = {"pruning.method": "wanda", "phases.calibration.batches": "1"}
    with pytest.raises(TrainingError, match="the masks would never be found"):
        train(settings)
    assert train({**settings, "pruning.options": "{batches: 4, sparsity: 0.5}"})["keep_ratio"] == 0.5


RESUMED = {
    "wanda": {
        "pruning.method": "wanda",
        "pruning.options": "{batches: 6}",
        "phases.training": "{epochs: 2, rounds: 2, rewind: every-round, save_weights_epoch: 1}",
    },
    "wanda, calibrated": {
        "pruning.method": "wanda",
        "pruning.options": "{batches: 3}",
        "phases.calibration.batches": "3",
        "phases.pretraining.epochs": "1",
    },
    "cs": {"pruning.method": "cs", "target.sparsity": "0.75", "phases.training": "{epochs: 2, rounds: 2}"},
    "dst": {"pruning.method": "dst", "target.sparsity": "0.75", "phases.training": "{epochs: 3, select: best}"},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_as_an_uninterrupted_one(name: str, train: Train, tmp_path: Path) -> None:
    train(RESUMED[name], "whole")
    whole = (tmp_path / "whole" / "trained.onnx").read_bytes()
    for epoch in range(1, 1 + len(json.loads((tmp_path / "whole" / "history.json").read_text()))):
        with pytest.raises(Interrupted):
            train(RESUMED[name], str(epoch), listener=Stop(epoch))
        train(RESUMED[name], str(epoch), resume=True)
        assert (tmp_path / str(epoch) / "trained.onnx").read_bytes() == whole, epoch


def test_a_finished_calibration_is_not_done_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "pruning.method": "wanda",
        "pruning.options": "{batches: 2}",
        "phases.calibration.batches": "2",
        "phases.training.epochs": "0",
    }
    train(settings, "whole")
    saved: list[checkpoints.TrainingState] = []
    original = checkpoints.save

    def save(state: checkpoints.TrainingState, path: Path) -> None:
        original(state, path)
        saved.append(state)
        if len(saved) == 2:  # the first is the start, the second the end of the calibration
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(Interrupted):
        train(settings, "broken")
    monkeypatch.setattr(checkpoints, "save", original)
    train(settings, "broken", resume=True)
    one, two = (checkpoints.load(tmp_path / name / CHECKPOINT) for name in ("whole", "broken"))
    for name, array in one.values.items():
        np.testing.assert_array_equal(two.values[name], array, err_msg=name)


def test_moments_go_on_from_round_to_round_where_nothing_new_is_trained(train: Train, tmp_path: Path) -> None:
    train({"pruning.method": "wanda", "pruning.options.batches": "2", "phases.training.rounds": "2"})
    steps = checkpoints.load(tmp_path / "out" / CHECKPOINT).position.step
    assert steps == 5 * (72 // BATCH), "two rounds of two epochs and one of fine-tuning"


Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], None]
EDITS: dict[str, Edit] = {
    "no history": lambda header, arrays: header.update(history=[]),
    "another segment": lambda header, arrays: header["position"].update(segment=99),
    "an endless position": lambda header, arrays: header["position"].update(segment=float("inf")),
    "steering to nowhere": lambda header, arrays: header["steering"].update(
        beta={"missing": 0.0, "total": float("nan")}
    ),
    "a weight that is no number": lambda header, arrays: arrays["value/fc1.weight"].fill(np.nan),
    "a moment of another shape": lambda header, arrays: arrays.update(
        {"moment/first_moment/fc1.weight": np.zeros((2, 2), np.float32)}
    ),
    "a moment less": lambda header, arrays: arrays.__delitem__("moment/first_moment/fc1.weight"),
    "a section more": lambda header, arrays: arrays.update({"masks/zzz": np.zeros(2, np.float32)}),
    "no digest": lambda header, arrays: arrays.__delitem__("digest"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_checkpoint_is_refused(edit: str, train: Train, tmp_path: Path) -> None:
    settings = {"pruning.method": "cs", "target.sparsity": "0.5"}
    with pytest.raises(Interrupted):
        train(settings, listener=Stop(2))
    path = tmp_path / "out" / CHECKPOINT
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    EDITS[edit](header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="the checkpoint is damaged"):
        train(settings, resume=True)


# Models


def masked(method: str) -> ir.Model:
    model = onnx_model(
        MLP, fc1__weight=np.ones((4, 4)), fc1__bias=np.zeros(4), fc2__weight=np.ones((4, 3)), fc2__bias=np.zeros(3)
    )
    pipeline.run(model, f"normalize,lower-gemm,insert-masks{{method={method}}}")
    return model


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ('{"method": "zzz", "options": {}}', ": no pruning method 'zzz'"),
        ('{"method": "cs", "options": {"zz": 1}}', ": method 'cs' has no option 'zz'"),
        ('{"method": "cs", "options": {"final_temp": Infinity}}', ": method 'cs': final_temp is"),
        ('{"method": "dst", "options": {}}', ""),
        ('{"method": "wanda", "options": {}}', ""),
        ('{"method": "cs"}', ""),
        ("null", ""),
        ("", ""),
        ("[" * 100_000, ""),
    ],
)
def test_a_damaged_note_on_a_mask_is_refused(note: str, reason: str) -> None:
    model = masked("cs")
    node = next(iter(masking.masks(model.graph))).node
    node.metadata_props[mask_sites.METHOD] = note
    with pytest.raises(GraphError, match=f"^node '{node.name}': the mask's method cannot be read{reason}"):
        list(masking.masks(model.graph))


def test_a_model_with_learned_masks_is_no_start(train: Train, tmp_path: Path) -> None:
    train({"pruning.method": "cs"})
    for method in ("cs", "null"):
        with pytest.raises(UnsupportedError, match=r"^node '.*': the weight '.*' has a mask of the method cs already"):
            train({"pruning.method": method}, "again", source=tmp_path / "out" / "compressible.onnx")
    train({"pruning.method": "cs"}, "again", source=tmp_path / "out" / "trained.onnx")


def test_merged_parameters_cannot_be_told_apart_again() -> None:
    model = masked("cs")
    pipeline.run(model, "attach-loss,attach-updates,expose-parameters,batch-parameters")
    with pytest.raises(PassError, match="the training step does not have 'fc1.weight' of the network any more"):
        pipeline.run(model, "strip-training")


def test_a_teacher_needs_no_shapes_inside(tmp_path: Path) -> None:
    student = onnx_model(
        MLP, fc1__weight=np.ones((4, 4)), fc1__bias=np.zeros(4), fc2__weight=np.ones((4, 3)), fc2__bias=np.zeros(3)
    )
    graph.save(student, tmp_path / "teacher.onnx")
    pipeline.run(student, "normalize,lower-gemm,attach-loss,expose-parameters")
    layers = '"{\\"fc1\\": 1}"'
    pipeline.run(student, f"attach-teacher{{model={tmp_path / 'teacher.onnx'} layers={layers}}}")


# Files and interrupts


def test_only_files_are_written_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        PqcError, match="pipe: cannot write the file: it is a device or a pipe\nhint: give the name of a file"
    ):
        files.write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_what_an_interrupt_broke_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interrupts, "requested", lambda: True)
    assert cli._fail(PqcError("onnxruntime-training is not installed"), False) == 1
    assert capsys.readouterr().err == "pqc: error: stopped\n"
    cli._fail(Interrupted("stopped after 1 of 2 epochs", hint="resume"), False)
    assert "stopped after 1 of 2 epochs" in capsys.readouterr().err
