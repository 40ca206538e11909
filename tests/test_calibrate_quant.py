"""Sign and integer bits from numbers: every method, granularity and overflow, against the reference in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import initializers, onnx_model

import reference_quant as reference
from pqc import calibration, engine, graph, layers, pipeline, schedule
from pqc.calibration import Calibration, Kind
from pqc.data import Split
from pqc.errors import PqcError, ScheduleError
from pqc.fixed_point import rounded
from pqc.functions.fixed_quant import ROUNDINGS
from pqc.schedule import Schedule
from pqc.workflows.compression import compress, compress_pipeline

DENSE = "(float[n,4] x) => (float[n,4] y) { h = MatMul (x, fc__weight) y = Tanh (h) }"
TANH = "(float[n,3] x) => (float[n,2] y) { t = Tanh (x) y = MatMul (t, fc__weight) }"
SAMPLES = {
    "normal": np.random.default_rng(0).normal(0.3, 1.7, 3000),
    "tails": np.random.default_rng(1).standard_t(2, 3000),
    "positive": np.random.default_rng(2).exponential(0.02, 3000),
    "powers": np.array([-4.0, -2.0, 1.0, 2.0, 0.5] * 100),
    "one": np.full(300, -0.3),
    "below": np.full(300, 0.999),
}


def found(x: np.ndarray, magnitude: int, signed: int, method: str, percent: float = 99.99, **more: str) -> int:
    kind = Kind(np.array([magnitude]), bool(signed), **more)
    return int(calibration.integer_bits(x[None].astype(np.float64), kind, Calibration(method, percent))[0])


@pytest.mark.parametrize("mode", [*ROUNDINGS])
def test_roundings_are_those_of_the_reference(mode: str) -> None:
    v = np.concatenate([np.arange(-41, 41) / 4, np.random.default_rng(3).normal(0, 5, 1000), [0.49999999999999994]])
    np.testing.assert_array_equal(rounded(v, mode), reference.round_mode(v, mode))


def test_a_rounding_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no rounding 'NEAREST'"):
        rounded(np.zeros(1), "NEAREST")


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("name", SAMPLES)
def test_extremes_and_percentiles(name: str, signed: int) -> None:
    x = SAMPLES[name]
    if signed or (x > 0).any():
        assert found(x, 7, signed, "min-max") == reference.calibrate_minmax(x, signed)
        for percent in (60.0, 99.0, 99.9):
            expected = reference.calibrate_percentile(x, signed, percent)
            assert found(x, 7, signed, "percentile", percent) == expected, percent


@pytest.mark.parametrize("rounding", ["RND", "TRN", "RND_CONV", "TRN_ZERO"])
@pytest.mark.parametrize("magnitude", [2, 5, 8])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_least_squared_error(name: str, magnitude: int, rounding: str) -> None:
    x, top = SAMPLES[name], reference.calibrate_minmax(SAMPLES[name], 1)

    def error(i: int) -> float:
        return reference.mean_squared_error(x, 1, i, magnitude - i, rounding)

    i = found(x, magnitude, 1, "mse", rounding=rounding)
    # What is just below 2^i may be nearer to 2^i than to the highest number of i bits; the reference stops at i.
    assert i == min(range(top + 1, top - 25, -1), key=error)
    assert error(i) <= error(reference.calibrate_mse(x, magnitude, 1, rounding))


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("magnitude", [3, 6])
@pytest.mark.parametrize("name", ["normal", "tails", "positive"])
def test_the_least_divergence(name: str, magnitude: int, signed: int) -> None:
    expected = reference.calibrate_entropy(SAMPLES[name], magnitude, signed)
    assert found(SAMPLES[name], magnitude, signed, "entropy", rounding="RND") == expected


def test_methods_differ_where_there_are_tails() -> None:
    x = np.append(np.linspace(-0.98, 0.98, 999), 1.05)
    bits = {method: found(x, 6, 1, method, 99.0) for method in calibration.METHODS}
    assert bits == {"mse": 0, "min-max": 1, "percentile": 0, "entropy": 1}
    assert found(SAMPLES["tails"], 4, 1, "entropy") < found(SAMPLES["tails"], 4, 1, "mse")


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", ["WRAP", "WRAP_SM"])
@pytest.mark.parametrize("method", calibration.METHODS)
def test_what_wraps_holds_all_it_meets(method: str, overflow: str, rounding: str) -> None:
    for end in (0.99, 1.0, 1.01, 3.9375, 3.96875, 3.99, -4.0, -4.0625, -4.03125, -4.04):
        x = np.array([end, 0.1, -0.1])
        i = found(x, 6, 1, method, 1.0, rounding=rounding, overflow=overflow)

        def held(bits: int, x: np.ndarray = x) -> bool:
            q = reference.round_mode(x * 2.0 ** (6 - bits), rounding)
            return bool(q.min() >= -64 + (overflow == "WRAP_SM") and q.max() <= 63)

        assert held(i), end
        assert not held(i - 1) or i == reference.calibrate_minmax(x, 1), end


def quant(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def calibrated(text: str, folder: Path, quantizers: str, how: str = "", **arrays: np.ndarray) -> ir.Model:
    feeds = {name: array for name, array in arrays.items() if name == "x"}
    np.savez(folder / "d.npz", **{name: array.astype(np.float32) for name, array in feeds.items()})
    model = onnx_model(text, **{name: array for name, array in arrays.items() if name not in feeds})
    pipeline.run(model, f"normalize,insert-quant{{{quantizers}}},calibrate-quant{{data={folder / 'd.npz'} {how}}}")
    return model


@pytest.mark.parametrize("words", ["", "/SAT_SYM", "/RND", "/WRAP", "/TRN"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_weight"])
def test_each_lane_has_the_bits_of_its_own_numbers(tmp_path: Path, granularity: str, words: str) -> None:
    rng = np.random.default_rng(4)
    weight = (rng.normal(size=(4, 4)) * [0.01, 0.3, 4, 100]).astype(np.float32)
    weight[1, 2] = 0
    model = calibrated(
        DENSE,
        tmp_path,
        f"weights=1,0,5/{granularity}{words} inputs=none",
        "method=min-max",
        x=rng.normal(size=(50, 4)),
        fc__weight=weight,
    )
    grid = layers.grid(quant(model, "fc.weight.quant"))
    assert grid is not None
    f = -np.log2(grid.scale.astype(np.float64))
    i = grid.bits - 1 - f
    assert np.all(i + f == 5)
    groups = {"per_tensor": [weight.ravel()], "per_channel": list(weight.T), "per_weight": list(weight.reshape(16, 1))}
    lanes = groups[granularity]
    assert i.size == len(lanes)
    for bits, numbers in zip(i.ravel(), lanes, strict=True):
        expected = reference.calibrate_minmax(numbers, 1) if numbers.any() else 0
        if words == "/WRAP":
            q = reference.round_mode(numbers * 2.0 ** (5 - expected), "RND_CONV")
            expected += int(q.max() > 31 or q.min() < -32)
        assert bits == expected


def test_elements_of_activations(tmp_path: Path) -> None:
    x = np.random.default_rng(5).normal(size=(500, 4)) * [0.02, 1, 9, 300]
    quantizers = "inputs=0,0,6/per_element/RND weights=none"
    model = calibrated(DENSE, tmp_path, quantizers, x=x, fc__weight=np.eye(4))
    grid = layers.grid(quant(model, "x.quant"))
    assert grid is not None and grid.signed and grid.scale.shape == (1, 4)
    numbers = x.astype(np.float32).astype(np.float64)
    expected = [reference.calibrate_mse(numbers[:, lane], 6, 1, "RND") for lane in range(4)]
    assert list(6 + np.log2(grid.scale[0])) == expected
    assert np.all(grid.bits == 7)


@pytest.mark.parametrize("learns", ["bits", "fractional_bits"])
def test_learned_bits_start_where_nothing_saturates(tmp_path: Path, learns: str) -> None:
    overflow = "SAT" if learns == "bits" else "WRAP"
    weight = np.array([[0.1, 1.9], [5.0, -9.0], [0.2, 0.3], [1.0, 2.0]], np.float32)
    x = np.random.default_rng(6).normal(size=(200, 4)) * [0.1, 1, 10, 100]
    text = "(float[n,4] x) => (float[n,2] y) { y = MatMul (x, fc__weight) }"
    kind = f"1,1,3/per_weight/{overflow}/{learns}"
    model = calibrated(
        text, tmp_path, f"weights={kind} inputs={kind.replace('weight', 'element')}", x=x, fc__weight=weight
    )
    bits = {name: np.asarray(graph.constant(value)) for name, value in model.graph.initializers.items()}
    assert np.all(bits["fc.weight.quant.fractional_bits"] == 3)
    assert np.all(bits["x.quant.fractional_bits"] == 3)
    # A parameter keeps the room the schedule gives it: 1 bit where less would do.
    assert bits["fc.weight.quant.integer_bits"].tolist() == [[1, 1], [3, 4], [1, 1], [1, 2]]
    model.graph.outputs.append(quant(model, "x.quant").outputs[0])
    model.graph.outputs.append(quant(model, "fc.weight.quant").outputs[0])
    feeds = {"x": x.astype(np.float32)}
    rounded_x, rounded_weight = list(engine.evaluate(model, feeds).values())[1:]
    np.testing.assert_array_equal(rounded_x, np.rint(feeds["x"] * 8) / 8)
    np.testing.assert_array_equal(rounded_weight, np.rint(weight * 8) / 8)


def test_no_default_clips_the_negative_half(tmp_path: Path) -> None:
    """The published default has inputs (0, 0, 7) and tanh (0, 0, 7): what is negative becomes zero."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(2000, 3)).astype(np.float32)
    weight = rng.normal(size=(3, 2)).astype(np.float32)
    exact = np.tanh(x) @ weight
    published = reference.fixed_point(np.tanh(reference.fixed_point(x, 0, 0, 7, "RND", "SAT")), 0, 0, 7, "RND", "SAT")
    clipped = np.abs(published @ reference.fixed_point(weight, 1, 0, 7, "RND", "SAT") - exact)
    model = calibrated(TANH, tmp_path, "", x=x, fc__weight=weight)
    kinds = [layers.grid(node) for node in model.graph if layers.is_quant(node)]
    assert all(kind is not None and kind.signed for kind in kinds)
    error = np.abs(engine.evaluate(model, {"x": x})["y"] - exact)
    # Eight bits of range [-1, 1) or [-4, 4): steps of 2^-7 and 2^-5, summed over three.
    assert error.max() < 0.2 < np.quantile(clipped, 0.5)


def test_lanes_without_numbers_keep_what_they_had(tmp_path: Path) -> None:
    weight = np.array([[0.0, 3.0]] * 3)
    text = "(float[n,3] x) => (float[n,2] y) { y = MatMul (x, fc__weight) }"
    arguments = (text, tmp_path, "weights=1,2,5/per_channel", "method=min-max")
    model = calibrated(*arguments, x=np.ones((4, 3)), fc__weight=weight)
    grid = layers.grid(quant(model, "fc.weight.quant"))
    assert grid is not None and np.log2(grid.scale).ravel().tolist() == [-5, -5]
    model = calibrated(*arguments, x=np.ones((4, 3)), fc__weight=weight * [1, 0.1])
    grid = layers.grid(quant(model, "fc.weight.quant"))
    assert grid is not None and np.log2(grid.scale).ravel().tolist() == [-5, -8]


def test_a_shared_scale_is_changed_for_one_alone(tmp_path: Path) -> None:
    body = 'qonnx.custom_op.general.Quant <signed: int = 1, narrow: int = 0, rounding_mode: string = "ROUND">'
    text = f"""(float[n,2] x) => (float[n,2] y) {{
        q = {body} (x, s, z, b) w = {body} (fc__weight, s, z, b) y = MatMul (q, w) }}"""
    weight = np.array([[0.1, 0.2], [0.3, -0.1]])
    model = onnx_model(text, fc__weight=weight, s=0.125, z=0.0, b=8.0)
    np.savez(tmp_path / "d.npz", x=np.full((10, 2), 100, np.float32))
    pipeline.run(model, f"calibrate-quant{{data={tmp_path / 'd.npz'} method=min-max}}")
    grids = [layers.grid(node) for node in model.graph if layers.is_quant(node)]
    assert [(float(kind.scale), float(kind.bits), kind.signed) for kind in grids if kind] == [
        (1.0, 7.0, False),
        (2.0**-8, 8.0, True),
    ]


def test_calibrating_twice_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    arrays = {"x": rng.normal(size=(300, 4)), "fc__weight": rng.normal(size=(4, 4))}
    for method in calibration.METHODS:
        model = calibrated(DENSE, tmp_path, "weights=1,0,5/per_channel/WRAP", f"method={method}", **arrays)
        before = initializers(model)
        again = f"calibrate-quant{{data={tmp_path / 'd.npz'} method={method}}}"
        assert [step.changed for step in pipeline.run(model, again)] == [0]
        for name, array in initializers(model).items():
            np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("method=median", "no method 'median'; there are mse, min-max, percentile, entropy"),
        ("percent=0", "a percentile"),
    ],
)
def test_other_methods_are_refused(options: str, message: str) -> None:
    with pytest.raises(PqcError, match=message):
        pipeline.parse(f"calibrate-quant{{{options}}}")


# What schedules say


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("entropy", "method=entropy"),
        ("{method: percentile, percent: 99.5}", "method=percentile percent=99.5"),
        ("mse", ""),
        ("{}", ""),
    ],
)
def test_a_schedule_names_the_method(text: str, expected: str) -> None:
    plan = schedule.load("quantize-only", {"quantization.calibration": text})
    assert f"calibrate-quant{{data=d.npz{' ' * bool(expected)}{expected}}}" in compress_pipeline(plan, Path("d.npz"))


@pytest.mark.parametrize(("width", "rows"), [(4, 4096), (2**13, 1024), (2**18, 64)])
def test_large_activations_are_calibrated_on_fewer_rows(tmp_path: Path, width: int, rows: int) -> None:
    text = f"(float[n,2] x) => (float[n,{width}] y) {{ h = MatMul (x, fc__weight) y = Tanh (h) }}"
    model = onnx_model(text, fc__weight=np.zeros((2, width)))
    pipeline.run(model, "normalize")
    inputs = {"x": np.arange(10_000, dtype=np.float32).reshape(5000, 2)}
    split = Split(inputs, np.zeros(5000, np.int64), np.arange(5000))
    compress(model, Schedule.model_validate({"quantization": None}), split, tmp_path, verify_each=False)
    with np.load(tmp_path / "calibration.npz") as arrays:
        assert arrays["x"].shape == (rows, 2) and arrays["x"][-1, 0] == inputs["x"][-1, 0]


def test_calibration_may_be_off() -> None:
    for off in ({"quantization.calibrate": "false"}, {"quantization.calibration": "null"}):
        assert "calibrate" not in compress_pipeline(schedule.load("quantize-only", off), Path("d.npz"))


def test_wrong_methods_have_their_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for text, line, message in (
        ("calibration: mean", 3, "'quantization.calibration.method': "),
        ("calibration:\n    method: percentile\n    percent: 0", 5, "'quantization.calibration.percent': "),
        ("calibration:\n    percent: 99\n    mehtod: mse", 5, "unknown key 'quantization.calibration.mehtod'; did you"),
        ("calibration: 3", 3, "'quantization.calibration': "),
        ("calibration: {percent: 99}", 3, "'quantization.calibration': percent goes with method: percentile"),
    ):
        path.write_text(f"name: s\nquantization:\n  {text}\n")
        with pytest.raises(ScheduleError) as caught:
            schedule.load(path)
        assert (caught.value.at, caught.value.message[: len(message)]) == (f"{path}:{line}", message)
