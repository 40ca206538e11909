"""`pqc import` of ONNX files, and the passes that bring a graph into form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import initializers, make_convnet, onnx_model, text_of

from pqc import engine, graph, pipeline
from pqc.errors import GraphError, PqcError, UnsupportedError, UsageError
from pqc.workflows.importing import Request, import_model

ATTENTION = """(float[N,3,8] x) => (float[N,3,8] y) {
    s = Transpose <perm: ints = [1,0,2]> (x)
    q = MatMul (s, w)
    h = Reshape (q, heads)
    t = Transpose <perm: ints = [1,0,2]> (h)
    u = Transpose <perm: ints = [0,2,1]> (t)
    a = MatMul (t, u)
    r = Reshape (a, apart)
    p = Softmax (r)
    b = Reshape (p, together)
    c = MatMul (b, t)
    v = Transpose <perm: ints = [1,0,2]> (c)
    g = Reshape (v, joined)
    y = Transpose <perm: ints = [1,0,2]> (g)
}"""


def attention(rows: int) -> ir.Model:
    """Two heads whose rows lie behind the tokens, as PyTorch writes them, for so many rows."""
    shapes = {"heads": [3, 2 * rows, 4], "apart": [rows, 2, 3, 3], "together": [2 * rows, 3, 3], "joined": [3, rows, 8]}
    weight = np.random.default_rng(0).normal(0, 0.4, (8, 8))
    return onnx_model(ATTENTION.replace("N", str(rows)), w=weight, **{k: np.array(v) for k, v in shapes.items()})


def saved(model: ir.Model, path: Path) -> str:
    graph.save(model, path)
    return str(path)


# simplify


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("a = Transpose <perm: ints = [0,2,1]> (x) b = Transpose <perm: ints = [0,2,1]> (a) y = Relu (b)", ["Relu"]),
        (
            "a = Transpose <perm: ints = [1,0,2]> (x) b = Transpose <perm: ints = [1,2,0]> (a) y = Relu (b)",
            ["Transpose", "Relu"],
        ),
        ("a = Unsqueeze (x, one) b = Squeeze (a, one) y = Relu (b)", ["Relu"]),
        ("a = Unsqueeze (x, one) b = Squeeze (a, last) y = Relu (b)", ["Unsqueeze", "Squeeze", "Relu"]),
        ("a = Mul (x, unit) b = Add (a, nought) y = Relu (b)", ["Relu"]),
        ("a = Cast <to: int = 1> (x) y = Relu (a)", ["Relu"]),
    ],
)
def test_simplify_removes_what_undoes_itself(before: str, expected: list[str]) -> None:
    arrays = {"one": np.array([1]), "last": np.array([-1]), "unit": 1.0, "nought": 0.0}
    signature = "(float[n,1,1] x) => (float[n,1,1] y)"
    model = onnx_model(f"{signature} {{ {before} }}", **arrays)
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 1, 1)).astype(np.float32)}
    wanted = engine.evaluate(model, feeds)["y"]
    pipeline.run(model, "normalize,simplify")
    assert [node.op_type for node in model.graph] == expected
    assert np.array_equal(engine.evaluate(model, feeds)["y"], wanted)


def test_simplify_keeps_a_value_with_another_reader() -> None:
    text = """(float[n,2] x) => (float[n,2] y, float[n,2,1] z) {
        a = Unsqueeze (x, two) b = Squeeze (a, two) y = Relu (b) z = Relu (a)
    }"""
    model = onnx_model(text, two=np.array([2]))
    before = text_of(model)
    pipeline.run(model, "simplify")
    assert text_of(model) == before


def test_simplify_normalizes_vectors_without_a_length() -> None:
    text = """(float[n,2] x) => (float[n,2] y) {
        a = Unsqueeze (x, two) b = BatchNormalization (a, gamma, beta, mean, var) y = Squeeze (b, two)
    }"""
    arrays = {"gamma": [2.0, 1.0], "beta": [0.5, 0.0], "mean": [1.0, -1.0], "var": [4.0, 0.25]}
    model = onnx_model(text, two=np.array([2]), **arrays)
    pipeline.run(model, "normalize,simplify")
    assert [node.op_type for node in model.graph] == ["BatchNormalization"]
    x = np.array([[3.0, 1.0]], np.float32)
    wanted = (x - arrays["mean"]) / np.sqrt(np.add(arrays["var"], 1e-5)) * arrays["gamma"] + arrays["beta"]
    np.testing.assert_allclose(engine.evaluate(model, {"x": x})["y"], wanted, rtol=1e-6)


def test_simplify_moves_zero_padding_into_a_convolution() -> None:
    text = """(float[n,1,4,4] x) => (float[n,2,4,4] y) {
        a = Pad (x, pads) y = Conv <kernel_shape: ints = [3,3]> (a, weight)
    }"""
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    model = onnx_model(text, pads=pads, weight=np.random.default_rng(0).normal(size=(2, 1, 3, 3)))
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 1, 4, 4)).astype(np.float32)}
    wanted = engine.evaluate(model, feeds)["y"]
    pipeline.run(model, "normalize,simplify")
    (node,) = model.graph
    assert list(node.attributes.get_ints("pads")) == [1, 1, 1, 1]
    np.testing.assert_allclose(engine.evaluate(model, feeds)["y"], wanted, rtol=1e-6, atol=1e-6)


def test_simplify_drops_initial_states_of_zeros() -> None:
    text = """(float[3,2,4] x) => (float[3,1,2,5] y) { y = GRU <hidden_size: int = 5> (x, w, r, b, , state) }"""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(1, 15, 4)), "r": rng.normal(size=(1, 15, 5)), "b": rng.normal(size=(1, 30))}
    model = onnx_model(text, **arrays, state=np.zeros((1, 2, 5)))
    pipeline.run(model, "simplify")
    assert "state" not in initializers(model)
    kept = onnx_model(text, **arrays, state=np.ones((1, 2, 5)))
    pipeline.run(kept, "simplify")
    assert "state" in initializers(kept)


# free-batch


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_free_batch_follows_the_rows_through_heads(rows: int) -> None:
    fixed = attention(rows)
    free = graph.copy(fixed)
    pipeline.run(free, "free-batch")
    assert [str(dim) for dim in free.graph.inputs[0].shape] == ["batch", "3", "8"]
    assert [str(dim) for dim in free.graph.outputs[0].shape] == ["batch", "3", "8"]
    x = np.random.default_rng(0).normal(size=(3 * rows, 3, 8)).astype(np.float32)
    parts = [engine.evaluate(fixed, {"x": x[at : at + rows]})["y"] for at in range(0, 3 * rows, rows)]
    np.testing.assert_allclose(engine.evaluate(free, {"x": x})["y"], np.concatenate(parts), rtol=1e-5, atol=1e-6)


def test_free_batch_repeats_a_token_for_every_row() -> None:
    text = """(float[2,3,4] x) => (float[2,4,4] y) {
        t = Expand (token, shape) y = Concat <axis: int = 1> (t, x)
    }"""
    token = np.arange(4.0).reshape(1, 1, 4)
    model = onnx_model(text, token=token, shape=np.array([2, 1, 4]))
    pipeline.run(model, "free-batch")
    x = np.zeros((5, 3, 4), np.float32)
    found = engine.evaluate(model, {"x": x})["y"]
    assert found.shape == (5, 4, 4) and np.array_equal(found[:, :1], np.broadcast_to(token, (5, 1, 4)))


def test_free_batch_takes_one_of_equal_rows() -> None:
    text = "(float[3,2] x) => (float[3,2] y) { y = Add (x, c) }"
    model = onnx_model(text, c=np.tile([1.0, 2.0], (3, 1)))
    pipeline.run(model, "free-batch")
    assert np.array_equal(engine.evaluate(model, {"x": np.zeros((2, 2), np.float32)})["y"], [[1, 2]] * 2)


def test_free_batch_refuses_rows_that_differ() -> None:
    text = "(float[3,2] x) => (float[3,2] y) { y = Add (x, c) }"
    model = onnx_model(text, c=np.arange(6.0).reshape(3, 2))
    with pytest.raises(PqcError, match="Add fixes the number of rows"):
        pipeline.run(model, "free-batch")


@pytest.mark.parametrize("shapes", ["float[n,2] x, float[3,2] z", "float[2,2] x, float[3,2] z"])
def test_free_batch_leaves_inputs_that_differ(shapes: str) -> None:
    model = onnx_model(f"({shapes}) => (float[a,2] y, float[b,2] u) {{ y = Relu (x) u = Relu (z) }}")
    before = text_of(model)
    pipeline.run(model, "free-batch")
    assert text_of(model) == before


# import


def test_import_frees_the_rows_and_keeps_the_outputs(tmp_path: Path) -> None:
    found = import_model(Request(saved(attention(1), tmp_path / "a.onnx")), tmp_path / "b.onnx")
    assert (found["batch"], found["trains"], found["notes"]) == ("free", "yes", [])
    assert found["difference"] < 1e-6
    x = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
    wanted = [engine.evaluate(attention(1), {"x": row[None]})["y"][0] for row in x]
    np.testing.assert_allclose(engine.evaluate(graph.load(tmp_path / "b.onnx"), {"x": x})["y"], wanted, atol=1e-6)


def test_import_keeps_rows_that_depend_on_each_other(tmp_path: Path) -> None:
    text = "(float[4,2] x) => (float[4,2] y) { m = ReduceMean <keepdims: int = 1> (x, rows) y = Sub (x, m) }"
    source = saved(onnx_model(text, rows=np.array([0])), tmp_path / "a.onnx")
    found = import_model(Request(source), tmp_path / "b.onnx")
    assert found["batch"] == 4
    assert found["notes"] == ["the number of rows stays 4: a row's output 'y' depends on the other rows"]


def test_import_keeps_the_batch_if_told(tmp_path: Path) -> None:
    source = saved(attention(2), tmp_path / "a.onnx")
    assert import_model(Request(source, free_batch=False), tmp_path / "b.onnx")["batch"] == 2


def test_import_names_what_cannot_be_trained(tmp_path: Path) -> None:
    text = "(float[n,2] x) => (float[n,2] y) { h = MatMul (x, w) z = Hardmax (h) y = MatMul (z, w) }"
    found = import_model(Request(saved(onnx_model(text, w=np.eye(2)), tmp_path / "a.onnx")), tmp_path / "b.onnx")
    assert found["trains"].startswith("node 'Hardmax_z': Hardmax")


def test_import_folds_batch_normalization_if_told(tmp_path: Path) -> None:
    source = saved(make_convnet(), tmp_path / "a.onnx")
    operators = []
    for fold in (False, True):
        import_model(Request(source, fold_norm=fold), tmp_path / "b.onnx")
        operators.append({node.op_type for node in graph.load(tmp_path / "b.onnx").graph})
    assert operators[0] - operators[1] == {"BatchNormalization"}


@pytest.mark.parametrize("version", [22, 23, 28])
def test_a_newer_file_is_read_as_one_of_the_engine(version: int, tmp_path: Path) -> None:
    proto = graph.to_proto(onnx_model("(float[n,2] x) => (float[n,2] y) { y = Relu (x) }"))
    proto.opset_import[0].version, proto.ir_version = version, 13
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    assert graph.load(tmp_path / "a.onnx").graph.opset_imports[""] == 21


@pytest.mark.parametrize("operator", ["Swish", "RMSNormalization", "Attention"])
def test_a_newer_operator_is_refused_by_name(operator: str, tmp_path: Path) -> None:
    proto = graph.to_proto(onnx_model("(float[n,2] x) => (float[n,2] y) { y = Relu (x) }"))
    proto.opset_import[0].version, proto.graph.node[0].op_type = 24, operator
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedError, match=f"node 'Relu_y': {operator} of opset 24 has no counterpart in opset 21"):
        graph.load(tmp_path / "a.onnx")


def test_a_newer_attribute_is_refused(tmp_path: Path) -> None:
    proto = graph.to_proto(onnx_model("(float[n,2] x) => (float[n,2] y) { y = Cast <to: int = 1> (x) }"))
    proto.opset_import[0].version = 24
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("round_mode", "down"))
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GraphError, match="round_mode"):
        graph.load(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("missing.onnx", GraphError, "no such model file"),
        ("net.py", UsageError, "which model of"),
        ("net.pt", UnsupportedError, "a pickled model is a program, and is not run"),
        ("net.py:Net", PqcError, "net.py imports nosuchframework, which this Python lacks"),
        ("other.py:Net", PqcError, "other.py has no 'Net'"),
        ("other.py:THREE", PqcError, "'THREE' is a int, which is no model of PyTorch, Keras or JAX"),
    ],
)
def test_import_refuses(name: str, kind: type[PqcError], words: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import nosuchframework")
    (tmp_path / "other.py").write_text("THREE = 3")
    (tmp_path / "net.pt").write_bytes(b"pickle")
    with pytest.raises(kind, match=words):
        import_model(Request(str(tmp_path / name)), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
