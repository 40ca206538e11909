"""`pqc import` from PyTorch, Keras and JAX, which live in an environment of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pqc import engine, graph, pipeline, schedule
from pqc.errors import PqcError
from pqc.workflows.compression import NORMALIZE, compress_pipeline
from pqc.workflows.importing import Request, import_model
from pqc.workflows.job import RunOptions
from pqc.workflows.running import train
from pqc.workflows.sources import Source

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("FRAMEWORKS_PYTHON", ROOT / ".venv-frameworks" / "bin" / "python"))
SAME = Path(__file__).parent / "frameworks" / "same.py"
FRAMEWORKS = ("torch", "keras", "jax")
SHAPES = {"mlp": (16,), "cnn": (2, 8, 8)}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="the frameworks are not installed: run make check-import"),
]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The weights of both networks, as files."""
    rng = np.random.default_rng(0)
    layers = {
        "mlp": {"fc0": (64, 16), "fc1": (32, 64), "fc2": (5, 32)},
        "cnn": {"conv0": (4, 2, 3, 3), "conv1": (4, 4, 2, 2), "fc": (5, 64)},
    }
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for network, shapes in layers.items():
        parts = {f"{name}.weight": rng.normal(0, np.prod(shape[1:]) ** -0.5, shape) for name, shape in shapes.items()}
        parts |= {f"{name}.bias": rng.normal(0, 0.1, shape[0]) for name, shape in shapes.items()}
        found[network] = folder / f"{network}.npz"
        np.savez(found[network], **{name: part.astype(np.float32) for name, part in parts.items()})
    return found


@pytest.fixture(scope="module")
def imported(arrays: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both networks from each framework, as ONNX files."""
    folder, found = tmp_path_factory.mktemp("imported"), {}
    for network, shape in SHAPES.items():
        for framework in FRAMEWORKS:
            inputs = {} if framework == "keras" else {"x": (["batch", *shape], "float32")}
            key = f"{framework}_{network}"
            found[key] = folder / f"{key}.onnx"
            request = Request(f"{SAME}:{key}", inputs=inputs, weights=arrays[network], python=str(PYTHON))
            report = import_model(request, found[key])
            assert (report["batch"], report["trains"]) == ("free", "yes")
    return found


def canonical(value: ir.Value) -> Any:
    """What computes a value: its operator and what that reads, down to inputs and arrays; names left out."""
    node = value.producer()
    if node is None:
        return "input" if value.is_graph_input() else graph.stored(value).tolist()
    return node.op_type, [None if one is None else canonical(one) for one in node.inputs]


@pytest.mark.parametrize("network", SHAPES)
def test_one_architecture_compresses_to_one_graph(network: str, imported: dict[str, Path]) -> None:
    plan = schedule.load("cs", {"quantization.calibrate": "false"})
    graphs = []
    for framework in FRAMEWORKS:
        model = graph.load(imported[f"{framework}_{network}"])
        pipeline.run(model, f"{NORMALIZE},{compress_pipeline(plan, None)}")
        graphs.append(canonical(model.graph.outputs[0]))
    assert graphs[0] == graphs[1] == graphs[2]


@pytest.mark.parametrize("network", SHAPES)
def test_one_architecture_trains_along_one_curve(network: str, imported: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, *SHAPES[network])).astype(np.float32)
    y = (x.reshape(len(x), -1) @ rng.normal(size=(np.prod(SHAPES[network]), 5))).argmax(-1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    curves = []
    for framework in FRAMEWORKS:
        plan = schedule.load("cs-demo", {"phases.training.epochs": "3", "training.batch": "100"})
        source = Source(framework, imported[f"{framework}_{network}"])
        train(source, plan, tmp_path / "data.npz", tmp_path / framework, RunOptions(), None)
        record = (tmp_path / framework / "history.json").read_text()
        curves.append(_losses(record))
    assert len(curves[0]) >= 3 and curves[0][-1] < curves[0][0]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)


def _losses(text: str) -> list[float]:
    import json

    return [epoch["loss"] for epoch in json.loads(text)]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("rows", ["batch", 1, 3])
def test_both_exporters_of_pytorch_free_the_rows(exporter: str, rows: str | int, tmp_path: Path) -> None:
    code = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        x = self.embed(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.out((x + y).mean(1))
"""
    (tmp_path / "net.py").write_text(code)
    inputs = {"x": ([rows, 8, 4], "float32")}
    request = Request(f"{tmp_path / 'net.py'}:Net", inputs=inputs, python=str(PYTHON), exporter=exporter)
    report = import_model(request, tmp_path / "net.onnx")
    assert (report["batch"], report["trains"], report["notes"]) == ("free", "yes", [])
    x = np.random.default_rng(0).normal(size=(5, 8, 4)).astype(np.float32)
    assert next(iter(engine.evaluate(graph.load(tmp_path / "net.onnx"), {"x": x}).values())).shape == (5, 5)


def test_a_file_of_keras_needs_no_code(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras; layers = keras.layers;"
        "keras.Sequential([keras.Input((8, 2)), layers.Conv1D(4, 3, activation='relu'), layers.BatchNormalization(),"
        f"layers.Flatten(), layers.Dense(3)]).save({str(tmp_path / 'net.keras')!r})"
    )
    subprocess.run([PYTHON, "-c", code], check=True, capture_output=True)
    report = import_model(Request(str(tmp_path / "net.keras"), python=str(PYTHON)), tmp_path / "net.onnx")
    assert (report["batch"], report["trains"]) == ("free", "yes")


def test_weights_that_do_not_fit_are_refused(arrays: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Linear(3, 2))\n"
    )
    inputs = {"x": (["batch", 3], "float32")}
    request = Request(f"{tmp_path / 'net.py'}:Net", inputs=inputs, weights=arrays["mlp"], python=str(PYTHON))
    with pytest.raises(PqcError, match="the weights do not fit the model"):
        import_model(request, tmp_path / "net.onnx")
