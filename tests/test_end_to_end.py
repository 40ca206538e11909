"""The main job on real parts: real jets, real training, real hls4ml and g++."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pqc import engine, graph, workflows
from pqc.hardware.compare import reference
from pqc.hardware.handover import prepare
from pqc.models import TABLE


def run(model: str, schedule: str, out: Path, data: Path | None = None, **options: Any) -> dict[str, Any]:
    """Run the chain as the command line does and return the summary."""
    settings = options.pop("settings", {})
    source = workflows.resolve(model)
    plan = workflows.load_plan(schedule, source, settings)
    summary = workflows.run(source, plan, data, out, workflows.RunOptions(**options))
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "report.html").stat().st_size > 10_000
    return summary


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What `make demo` makes."""
    out = tmp_path_factory.mktemp("demo")
    return out, run("jet_tagger", "cs-demo", out)


def test_the_demo_keeps_its_accuracy_with_few_weights(demo: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demo
    assert summary["float"]["accuracy"] > 0.67
    assert summary["clean"]["accuracy"] >= summary["float"]["accuracy"] - 0.007
    assert 0.01 < summary["keep_ratio"] <= 0.15
    assert summary["trained"] == summary["clean"]
    assert summary["clean_equals_trained"]


def test_the_demo_firmware_is_exact_on_every_test_jet(demo: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demo
    with np.load(TABLE["jet_tagger"].data_path() / "test.npz") as arrays:
        assert summary["hls"]["samples"] == len(arrays["y"]) == summary["test_rows"]
    assert summary["hls"]["mismatches"] == 0
    assert summary["hls"]["accuracy"] == summary["clean"]["accuracy"]
    assert summary["hls"]["head"] == "Softmax"


def test_the_summary_has_what_it_promises(demo: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demo
    assert {"keep_ratio", "ebops", "layers", "seconds", "precisions", "passes", "versions", "seed"} <= summary.keys()
    layers = summary["layers"]
    assert [layer["name"] for layer in layers] == ["fc1", "fc2", "fc3", "fc4"]
    assert (
        sum(layer["nonzero"] for layer in layers) / sum(layer["weights"] for layer in layers) == summary["keep_ratio"]
    )
    assert sum(layer["ebops"] for layer in layers) == summary["ebops"]
    assert all(step["difference"] is not None for step in summary["passes"] if step["text"].startswith("fold-m"))


def test_the_clean_model_is_plain_qonnx_and_exact_in_its_executor(demo: tuple[Path, dict[str, Any]]) -> None:
    out, _ = demo
    clean = graph.load(out / "clean.onnx")
    assert {node.domain for node in clean.graph} == {"", graph.QONNX}
    assert not clean.functions
    with np.load(TABLE["jet_tagger"].data_path() / "test.npz") as arrays:
        x = arrays["x"][:3000].astype(np.float32)
    logits, head = prepare(clean)
    assert head == "Softmax"
    ours = engine.evaluate(logits, {"x": x})["probabilities"]
    assert np.array_equal(reference(logits, x)[0], ours)


def conv_net(path: Path, activation: str) -> None:
    """A small image network as a framework would export it: depthwise 3x3, BN, pointwise, pool, dense, softmax."""
    rng = np.random.default_rng(0)
    arrays = {
        "depthwise.weight": rng.normal(size=(2, 1, 3, 3)) * 0.4,
        "depthwise.bias": rng.normal(size=2) * 0.1,
        "gamma": np.ones(2),
        "beta": rng.normal(size=2) * 0.1,
        "mean": rng.normal(size=2) * 0.1,
        "var": np.ones(2),
        "pointwise.weight": rng.normal(size=(4, 2, 1, 1)) * 0.4,
        "pointwise.bias": rng.normal(size=4) * 0.1,
        "dense.weight": rng.normal(size=(3, 36)) * 0.2,
        "dense.bias": rng.normal(size=3) * 0.1,
    }
    norm = ["gamma", "beta", "mean", "var"]
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "depthwise.weight", "depthwise.bias"], ["c"], group=2, kernel_shape=[3, 3]),
        make("BatchNormalization", ["c", *norm], ["n"]),
        make("Conv", ["n", "pointwise.weight", "pointwise.bias"], ["p"], kernel_shape=[1, 1]),
        make(activation, ["p"], ["a"]),
        make("AveragePool", ["a"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Flatten", ["m"], ["f"]),
        make("Gemm", ["f", "dense.weight", "dense.bias"], ["y"], transB=1),
        make("Softmax", ["y"], ["probabilities"], axis=-1),
    ]
    main = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def images(path: Path) -> None:
    """Noise with a bright patch whose place tells the class."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3000, 2, 8, 8)).astype(np.float32), rng.integers(0, 3, 3000)
    for kind in range(3):
        x[y == kind, kind % 2, 2 + kind : 5 + kind, 2:5] += 1.5
    np.savez(path, x=x, y=y)


SLOW = pytest.mark.slow
CASES = [
    ("Relu", "io_parallel", ()),
    ("Tanh", "io_stream", ()),
    ("Relu", "io_stream", SLOW),
    ("Tanh", "io_parallel", SLOW),
]


@pytest.mark.parametrize(("activation", "io_type"), [pytest.param(*case[:2], marks=case[2]) for case in CASES])
def test_a_conv_net_trains_and_its_firmware_is_exact(tmp_path: Path, activation: str, io_type: str) -> None:
    conv_net(tmp_path / "net.onnx", activation)
    images(tmp_path / "data.npz")
    settings = {"phases.training.epochs": "8", "phases.fine_tuning.epochs": "4", "training.batch": "128"}
    summary = run(
        str(tmp_path / "net.onnx"),
        "cs-demo",
        tmp_path / "out",
        tmp_path / "data.npz",
        io_type=io_type,
        settings=settings,
    )
    assert summary["clean"]["accuracy"] > 0.85 > summary["float"]["accuracy"]
    assert summary["clean_equals_trained"]
    assert summary["keep_ratio"] < 0.8
    assert (summary["hls"]["samples"], summary["hls"]["mismatches"]) == (600, 0)
