"""A clean model in other forms: portable QONNX, and ONNX's own quantizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import initializers, onnx_model
from hypothesis import given
from hypothesis import strategies as st

from pqc import engine, graph, layers, pipeline
from pqc.functions.quant import ROUNDING_MODES
from pqc.models import TABLE
from pqc.qcdq import reason_to_keep
from pqc.workflows import exports

QUANT = 'qonnx.custom_op.general.Quant <signed: int = {}, narrow: int = {}, rounding_mode: string = "{}">'
ACTIVATION = "(float[n,3] x) => (float[n,3] y) {{ y = {} (x, s, z, b) }}"


def activation(signed: int = 1, narrow: int = 0, mode: str = "ROUND", **parts: object) -> ir.Model:
    text = ACTIVATION.format(QUANT.format(signed, narrow, mode))
    return onnx_model(text, **{"s": 0.25, "z": 0.0, "b": 6.0, **parts})


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jet tagger in fixed point, on its grid."""
    model = graph.load(TABLE["jet_tagger"].path())
    types = "weights=1,0,5/per_channel biases=1,1,6 inputs=0,2,5"
    pipeline.run(model, f"normalize,fold-batchnorm,lower-gemm,legalize,insert-quant{{{types}}},calibrate-quant")
    pipeline.run(model, "fold-quant,strip-training,normalize")
    path = tmp_path_factory.mktemp("clean") / "clean.onnx"
    graph.save(model, path)
    return path


def test_a_portable_file_runs_in_a_runtime_that_knows_nothing_of_qonnx(clean: Path, tmp_path: Path) -> None:
    path = tmp_path / "portable.onnx"
    list(exports.export(clean, portable=path))
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    wanted = engine.evaluate(graph.load(clean), {"x": x})
    import onnxruntime as ort

    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(found, next(iter(wanted.values())))
    proto = onnx.load(path)
    assert {function.name for function in proto.functions} == {"Quant"}
    assert graph.load(path).graph.num_nodes() == graph.load(clean).graph.num_nodes()


def test_a_qcdq_file_has_onnx_s_own_operators_only(clean: Path, tmp_path: Path) -> None:
    path = tmp_path / "qcdq.onnx"
    lines = list(exports.export(clean, qcdq=path))
    assert not [line for line in lines if "kept" in line]
    proto = onnx.load(path)
    assert not proto.functions
    assert {node.domain for node in proto.graph.node} == {""}
    x = np.random.default_rng(1).normal(size=(2000, 16)).astype(np.float32)
    model, wanted = graph.load(path), engine.evaluate(graph.load(clean), {"x": x})
    for name, array in engine.evaluate(model, {"x": x}).items():
        np.testing.assert_array_equal(array, wanted[name])
    kinds = {
        str(initializers(model)[str(node.inputs[0].name)].dtype)
        for node in model.graph
        if "dequantize" in str(node.name) and node.inputs[0].is_initializer()
    }  # type: ignore[union-attr]
    assert kinds == {"int8"}


@given(
    st.integers(2, 8),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([0.25, 3.0, 2.0**-9, 0.3]),
    st.lists(st.floats(-300, 300, width=32), min_size=3, max_size=3),
)
def test_rounding_is_the_same(bits: int, signed: int, narrow: int, scale: float, numbers: list[float]) -> None:
    model = activation(signed, narrow, s=scale, b=float(bits))
    ties = scale * (np.arange(-260, 262, 1.0) + 0.5)
    x = np.concatenate([np.float32(numbers), ties.astype(np.float32)]).reshape(-1, 3)
    wanted = engine.evaluate(model, {"x": x})["y"]
    pipeline.run(model, "write-qcdq")
    assert "Quant" not in operators(model)
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], wanted)


def test_scales_along_an_axis() -> None:
    model = activation(s=[[0.5, 0.25, 2.0]])
    x = np.random.default_rng(2).normal(size=(100, 3)).astype(np.float32) * 5
    wanted = engine.evaluate(model, {"x": x})["y"]
    pipeline.run(model, "write-qcdq")
    assert operators(model) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    np.testing.assert_array_equal(engine.evaluate(model, {"x": x})["y"], wanted)


def test_all_levels_need_no_clip() -> None:
    model = activation(b=8.0)
    pipeline.run(model, "write-qcdq")
    assert operators(model) == ["QuantizeLinear", "DequantizeLinear"]


def test_wide_weights_are_integers_of_thirty_two_bits() -> None:
    quant = QUANT.format(1, 0, "ROUND")
    text = f"(float[n,2] x) => (float[n,2] y) {{ w = {quant} (p, s, z, b) y = Mul (x, w) }}"
    model = onnx_model(text, p=[1.5, -129.25], s=0.25, z=0.0, b=12.0)
    pipeline.run(model, "write-qcdq", verify_each=True)
    assert operators(model) == ["DequantizeLinear", "Mul"]
    assert initializers(model)["p.integers"].tolist() == [6, -517]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"b": 9.0}, "its widths differ, or are over eight bits"),
        ({"b": [[4.0, 5.0, 6.0]]}, "its widths differ, or are over eight bits"),
        ({"z": 1.0}, "it has a zero point or one signed bit"),
        ({"b": 1.0}, "it has a zero point or one signed bit"),
        *[({"mode": mode}, f"rounding {mode}") for mode in ROUNDING_MODES if mode not in ("ROUND", "HALF_EVEN")],
    ],
)
def test_what_onnx_does_not_compute_stays(parts: dict[str, object], reason: str) -> None:
    model = activation(**parts)  # type: ignore[arg-type]
    assert reason_to_keep(model.graph.node(0)) == reason
    before = [node.name for node in model.graph]
    assert pipeline.parse("write-qcdq")[0].rewrite(model) == 0
    assert [node.name for node in model.graph] == before
    assert layers.is_quant(model.graph.node(0))


def test_weights_off_the_grid_stay() -> None:
    quant = QUANT.format(1, 0, "ROUND")
    text = f"(float[n,2] x) => (float[n,2] y) {{ w = {quant} (p, s, z, b) y = Mul (x, w) }}"
    model = onnx_model(text, p=[1.6, -2.0], s=0.25, z=0.0, b=6.0)
    assert pipeline.parse("write-qcdq")[0].rewrite(model) == 0
