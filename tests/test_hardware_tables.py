"""Functions of one number in hardware: tables, tried on every number that can enter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from activation_forms import FORMS, constants
from conftest import initializers, onnx_model, text_of
from hardware_networks import Network
from method_networks import plan, trainer_of

from pqc import engine, graph, pipeline
from pqc.errors import UnsupportedError
from pqc.hardware.handover import hls
from pqc.hardware.project import IoType
from pqc.workflows.compression import finalize

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def side_by_side(forms: list[str]) -> ir.Model:
    """Every form on one input, each with an output of its own."""
    graphs = []
    for number, nodes in enumerate(forms):
        text = f"(float[n,1] x) => (float[n,1] a) {{ h = Identity (x) {nodes} }}"
        proto = graph.to_proto(onnx_model(text, **constants(nodes)))
        one = onnx.compose.add_prefix(proto, f"f{number}_").graph
        for node in one.node:
            node.input[:] = ["x" if name == f"f{number}_x" else name for name in node.input]
        graphs.append(one)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1])
    main = onnx.helper.make_graph(
        [node for one in graphs for node in one.node],
        "functions",
        [x],
        [output for one in graphs for output in one.output],
        [constant for one in graphs for constant in one.initializer],
    )
    imports = [onnx.helper.make_opsetid("", graph.OPSET)]
    return graph.from_proto(onnx.helper.make_model(main, opset_imports=imports, ir_version=graph.IR_VERSION))


EVERY = {
    "signed": ("1,3,4", "1,3,4", np.arange(-300, 300) / 16),
    "fine, from unsigned": ("0,3,5", "1,0,11/RND", np.arange(-10, 270) / 32),
    "coarse, wraps": ("1,4,0/TRN", "1,1,2/WRAP/TRN", np.arange(-20, 20) / 1.0),
    "every bit counts": ("1,-1,9", "1,0,15", np.arange(-260, 260) / 512),
}


@compiled
@pytest.mark.parametrize("name", EVERY)
def test_every_function_of_every_number(name: str, tmp_path: Path) -> None:
    _check(name, list(FORMS.values()), "io_parallel", tmp_path)


@compiled
def test_tables_in_streams(tmp_path: Path) -> None:
    """A stream goes to seven layers at most."""
    _check(
        "signed", [FORMS[name] for name in ("LeakyRelu", "Gelu", "SiLU", "hard tanh", "Mish")], "io_stream", tmp_path
    )


def _check(name: str, forms: list[str], io_type: IoType, tmp_path: Path) -> None:
    entering, leaving, x = EVERY[name]
    model = side_by_side(forms)
    pipeline.run(model, f"normalize,insert-quant{{inputs={entering} outputs={leaving}}}")
    samples = x.astype(np.float32)[:, None]
    result = hls(model, tmp_path / "hls", samples=samples, io_type=io_type)
    assert result.mismatches == 0, result.comparison.first
    code = (tmp_path / "hls" / "firmware" / "myproject.cpp").read_text()
    assert code.count("nnet::unary_lut") == len(forms) == len(result.comparison.outputs)
    exact = engine.evaluate(model, {"x": samples})
    for output, found in zip(model.graph.outputs, result.comparison.outputs, strict=True):
        np.testing.assert_array_equal(found, exact[str(output.name)])
    assert sum(len(np.unique(output)) > 4 for output in result.comparison.outputs) > len(forms) // 2


def test_lower_tables() -> None:
    model = onnx_model("(float[n,2] x) => (float[n,2] y) { s = Sigmoid (x) y = Mul (x, s) }")
    pipeline.run(model, "insert-quant{inputs=1,1,0 outputs=1,1,2},lower-tables")
    assert text_of(model).splitlines()[2:] == [
        "y = pqc.quant.Lookup <step: float = 1, low: float = -2> (x.quantized, Mul_y.entries)"
    ]
    x = np.array([-2, -1, 0, 1])
    np.testing.assert_array_equal(initializers(model)["Mul_y.entries"], np.rint(x / (1 + np.exp(-x)) * 4) / 4)


@pytest.mark.parametrize(
    ("nodes", "quantizers", "message"),
    [
        ("y = Gelu (x)", "inputs=1,3,11 outputs=1,3,4", "Gelu 'Gelu_y': operator Gelu"),
        ("y = Gelu (x)", "inputs=1,3,4", "Gelu 'Gelu_y': operator Gelu"),
        ("a = Gelu (x) b = MatMul (a, w) y = Add (a, b)", "inputs=none", "Gelu 'Gelu_a': operator Gelu"),
    ],
)
def test_what_becomes_no_table_is_refused(nodes: str, quantizers: str, message: str, tmp_path: Path) -> None:
    used = {"w": np.eye(2)} if "w" in nodes else {}
    model = onnx_model(f"(float[n,2] x) => (float[n,2] y) {{ {nodes} }}", **used)
    pipeline.run(model, f"insert-quant{{{quantizers}}}")
    before = text_of(model)
    pipeline.run(model, "lower-tables")
    assert text_of(model) == before
    if "none" not in quantizers:
        with pytest.raises(UnsupportedError) as caught:
            hls(model, tmp_path / "hls")
        assert str(caught.value) == (
            f"{message}: hls4ml has no exact form of it\nhint: put one quantizer before it, of at most 14 bits, and one "
            "right behind it (insert-quant does): it becomes a table"
        )


SLOPES = """(float[n,2,4,4] x) => (float[n,3] y) {{
    h = Conv <kernel_shape: ints = [1,1]> (x, conv__weight) {} f = Flatten (a) y = MatMul (f, fc__weight) }}"""


@compiled
@pytest.mark.parametrize("name", ["slopes", "Gelu, PyTorch", "SiLU", "PRelu"])
def test_a_trained_network_is_handed_over_exactly(name: str, tmp_path: Path) -> None:
    """From float weights through training to firmware, with types from the data."""
    nodes = "a = PRelu (h, slopes)" if name == "slopes" else FORMS[name]
    rng = np.random.default_rng(4)
    weights = {"conv__weight": rng.normal(0, 0.8, (3, 2, 1, 1)), "fc__weight": rng.normal(0, 0.3, (48, 3))}
    own = {"slopes": rng.normal(0.2, 0.2, (3, 1, 1))} if name == "slopes" else constants(nodes)
    model = onnx_model(SLOPES.format(nodes), **weights, **own)
    trainer = trainer_of(model, plan(None, quantization={"calibrate": True}), tmp_path)
    start = {key: array.copy() for key, array in trainer.state.values.items()}
    trained = trainer.train()
    moved = [key for key, array in start.items() if not np.array_equal(array, trainer.state.values[key])]
    assert moved == list(start) and ("PRelu" not in nodes or len(moved) == 3)
    clean, _ = finalize(trained)
    x = rng.normal(0, 1.5, (300, 2, 4, 4)).astype(np.float32)
    assert np.array_equal(engine.evaluate(clean, {"x": x})["y"], engine.evaluate(trained, {"x": x})["y"])
    result = hls(clean, tmp_path / "hls")
    assert result.mismatches == 0, result.comparison.first
    assert len(np.unique(result.outputs)) > 100
    code = (tmp_path / "hls" / "firmware" / "myproject.cpp").read_text()
    assert ("nnet::prelu" if name == "slopes" else "nnet::unary_lut") in code


@compiled
@pytest.mark.parametrize("io_type", get_args(IoType))
@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1), (3, 2, 2)])
def test_slopes_for_channels_and_elements(shape: tuple[int, ...], io_type: IoType, tmp_path: Path) -> None:
    image = len(shape) > 1
    net = Network(3, 2, 2) if image else Network(3)
    slopes = (np.arange(np.prod(shape)).reshape(shape) - 2) / 8
    x = net.op("PRelu", net.quant(net.x, 8, 4), net.quant(net.constant(slopes), 5, 3))
    model = net.model(net.quant(x, 12, 6))
    result = hls(model, tmp_path / "hls", io_type=io_type)
    assert result.mismatches == 0, result.comparison.first
    assert len(np.unique(result.outputs)) > 100


@compiled
def test_elements_of_many_types_share_a_table(tmp_path: Path) -> None:
    net = Network(3)
    bits = [net.constant(np.array([row], np.float64)) for row in ([2, 0, -1], [3, 4, 5])]
    x = net.op("FixedQuant", net.quant(net.x, 10, 6), *bits, domain="pqc.quant", signed=1)
    model = net.model(net.quant(net.op("Softplus", x), 10, 8))
    result = hls(model, tmp_path / "hls")
    assert result.mismatches == 0, result.comparison.first
    assert "nnet::unary_lut" in (tmp_path / "hls" / "firmware" / "myproject.cpp").read_text()
    assert all(len(np.unique(result.outputs[:, element])) > 20 for element in range(3))
