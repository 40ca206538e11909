"""Autoencoders: trained on normal classes with the input for the target, judged by how well the error finds the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pqc import data, engine, graph, workflows
from pqc.errors import DataError, PqcError, ScheduleError, UnsupportedError
from pqc.models import TABLE
from pqc.report import roc
from pqc.workflows import anomaly

SETTINGS = {"phases.training.epochs": "2", "phases.fine_tuning.epochs": "2"}


def autoencoder(path: Path, outputs: int = 4) -> Path:
    """Four numbers through two and back, or to other many."""
    rng = np.random.default_rng(0)
    arrays = {"down": rng.normal(size=(4, 2)), "up": rng.normal(size=(2, outputs))}
    nodes = [helper.make_node("MatMul", ["x", "down"], ["z"]), helper.make_node("MatMul", ["z", "up"], ["y"])]
    main = helper.make_graph(
        nodes,
        "autoencoder",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rows(path: Path, train: list[int], test: list[int]) -> Path:
    """A data folder with these classes; each row tells its part and number."""
    path.mkdir()
    for part, classes in (("train", train), ("test", test)):
        x = np.arange(4 * len(classes), dtype=np.float32).reshape(-1, 4) + (1000 if part == "test" else 0)
        np.savez(path / f"{part}.npz", x=x, y=np.array(classes))
    return path


def loaded(tmp_path: Path, train: list[int], test: list[int], normal: list[int], outputs: int = 4) -> data.Dataset:
    """What a run makes of such data."""
    main = graph.load(autoencoder(tmp_path / "net.onnx", outputs)).graph
    found = data.load(rows(tmp_path / "data", train, test), main, labels=False, marks=True)
    return anomaly.learn_normal(found, normal, main)


def test_only_normal_rows_are_trained_with_and_all_are_tested(tmp_path: Path) -> None:
    train, test = 4 * [0, 9, 1, 0, 7, 1, 1, 0, 9, 1], [0, 9, 1, 7, 7]
    found = loaded(tmp_path, train, test, [0, 1])
    used = np.concatenate([split.all()[1] for split in (found.train, found.validation)])
    expected = np.arange(160, dtype=np.float32).reshape(-1, 4)[[kind in (0, 1) for kind in train]]
    assert np.array_equal(used[np.argsort(used[:, 0])], expected)
    for split in (found.train, found.validation, found.test):
        inputs, target = split.all()
        assert target.dtype == np.float32
        assert np.array_equal(inputs["x"], target)
    assert np.array_equal(found.test.all()[1], np.arange(20, dtype=np.float32).reshape(-1, 4) + 1000)
    assert found.anomalous is not None
    assert found.anomalous.tolist() == [False, True, False, True, True]


@pytest.mark.parametrize(
    ("train", "test", "outputs", "message"),
    [
        ([7, 7, 7], [0, 7], 4, "no row of train has a class of 0, 1"),
        (4 * [0], [7, 7], 4, "no row of test has a class of 0, 1"),
        (4 * [0], [0, 1], 4, "all test rows are normal"),
        (4 * [0], [0, 7], 3, "the model gives out the shape [batch,3], not that of its one input"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, train: list[int], test: list[int], outputs: int, message: str
) -> None:
    with pytest.raises((DataError, UnsupportedError)) as caught:
        loaded(tmp_path, train, test, [0, 1], outputs)
    assert caught.value.message == message


def test_marks_are_one_class_number_a_row(tmp_path: Path) -> None:
    main = graph.load(autoencoder(tmp_path / "net.onnx")).graph
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 4)), y=np.zeros((9, 4)))
    with pytest.raises(DataError) as caught:
        data.load(tmp_path / "data.npz", main, labels=False, marks=True)
    assert caught.value.message == "the target needs class numbers of the shape [rows] and has [9, 4]"


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=(60, 3))
    output = np.round(target + rng.normal(size=(60, 3)), 1)
    output[:20] = target[:20] + 0.5  # ties
    marks = rng.random(60) < 0.3
    score = anomaly.errors(output, target)
    assert np.allclose(score, ((output - target) ** 2).sum(axis=1) / 3, rtol=1e-12, atol=0)
    above = (score[marks][:, None] > score[~marks]).sum() + 0.5 * (score[marks][:, None] == score[~marks]).sum()
    assert anomaly.area(output, target, marks) == above / (marks.sum() * (~marks).sum())


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy"])
def test_a_loss_of_classes_reconstructs_nothing(loss: str) -> None:
    source = workflows.resolve("autoencoder")
    with pytest.raises(ScheduleError) as caught:
        workflows.load_plan("autoencoder", source, {"training.loss": loss})
    assert f"normal_classes needs a loss of mse, l1, huber, not {loss}" in caught.value.message


def measured(path: Path) -> tuple[float, float]:
    """The mean squared error of the normal test jets and the area, from the model's file alone."""
    with np.load(TABLE["autoencoder"].data_path() / "test.npz") as arrays:
        x, odd = arrays["x"].astype(np.float32), arrays["y"] > 1
    model = graph.load(path)
    output = engine.evaluate(model, {"x": x})[str(model.graph.outputs[0].name)]
    score = np.square(output.astype(np.float64) - x).mean(axis=1)
    ranks = np.empty(len(score))
    ranks[np.argsort(score)] = np.arange(len(score))
    pairs = ranks[odd].sum() - odd.sum() * (odd.sum() - 1) / 2
    return score[~odd].mean(), pairs / (odd.sum() * (~odd).sum())


def test_the_shipped_model_is_as_good_as_its_page_says() -> None:
    error, found = measured(TABLE["autoencoder"].path())
    assert (round(error, 4), round(found, 4)) == (0.0356, 0.6826)


def test_the_mass_alone_finds_as_much_as_the_page_says() -> None:
    with np.load(TABLE["autoencoder"].data_path() / "test.npz") as arrays:
        found = roc.curve(arrays["x"][:, 14].astype(np.float32), arrays["y"] > 1)
    assert found is not None
    assert round(found.area, 2) == 0.67


def run(out: Path, **options: Any) -> dict[str, Any]:
    """A short training of the shipped model."""
    source = workflows.resolve("autoencoder")
    return workflows.run(
        source, workflows.load_plan("autoencoder", source, SETTINGS), None, out, workflows.RunOptions(**options)
    )


def test_a_run_tells_error_and_area_of_each_model(tmp_path: Path) -> None:
    summary = run(tmp_path, hls=False)
    for model, file in (("float", TABLE["autoencoder"].path()), ("clean", tmp_path / "clean.onnx")):
        error, found = measured(file)
        assert summary[model].keys() == {"negative_mse", "anomaly_auc"}
        assert -summary[model]["negative_mse"] == pytest.approx(error, rel=1e-9, abs=0)
        assert summary[model]["anomaly_auc"] == pytest.approx(found, rel=1e-6, abs=0)
    assert summary["trained"] == summary["clean"]
    assert summary["clean_equals_trained"]
    assert summary["clean"]["anomaly_auc"] > 0.6
    assert summary["clean"]["negative_mse"] > -0.06
    curves = (tmp_path / "report.html").read_text()
    assert "Efficiency and mis-tag rate" in curves
    areas = (f"{model} {summary[model]['anomaly_auc']:.4f}" for model in ("float", "clean"))
    assert f"anomaly: AUC {', '.join(areas)}" in curves


def test_a_class_that_is_not_there_stops_the_run(tmp_path: Path) -> None:
    source = workflows.resolve("autoencoder")
    plan = workflows.load_plan("autoencoder", source, {"training.normal_classes": "[8]"})
    with pytest.raises(PqcError, match="no row of train has a class of 8"):
        workflows.run(source, plan, None, tmp_path, workflows.RunOptions(hls=False))


@pytest.mark.slow
def test_the_firmware_is_exact_on_every_test_jet(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert (summary["hls"]["samples"], summary["hls"]["mismatches"]) == (20_000, 0)
    assert summary["hls"]["anomaly_auc"] == summary["clean"]["anomaly_auc"]
