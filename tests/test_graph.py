"""Reading model files that cannot be trusted, and writing them in one step."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import content, initializers, onnx_model

from pqc import engine, files, graph, pipeline
from pqc.errors import GraphError, PqcError, UnsupportedError

TINY = "(float[n,2] x) => (float[n,2] y) { y = MatMul (x, w) }"
WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0]])


@pytest.fixture
def tiny() -> onnx.ModelProto:
    return graph.to_proto(onnx_model(TINY, w=WEIGHT))


def refusal(proto: onnx.ModelProto | bytes, path: Path, kind: type[PqcError] = GraphError) -> PqcError:
    """The error that loading `proto` from `path` raises; it names the file and has a hint."""
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    with pytest.raises(kind) as caught:
        graph.load(path)
    assert type(caught.value) is kind
    assert caught.value.at == str(path)
    assert caught.value.hint
    return caught.value


def external(proto: onnx.ModelProto, location: str, **entries: object) -> onnx.ModelProto:
    """`proto` with its weight in the file `location`."""
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return proto


def test_load_reads_what_save_wrote(mlp: ir.Model, tmp_path: Path) -> None:
    graph.save(mlp, tmp_path / "sub" / "m.onnx")
    assert content(graph.load(tmp_path / "sub" / "m.onnx")) == content(mlp)


def test_save_writes_the_ir_version_of_the_engine(mlp: ir.Model, tmp_path: Path) -> None:
    mlp.ir_version = 11
    graph.save(mlp, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").ir_version == graph.IR_VERSION


def test_copy_is_independent(mlp: ir.Model) -> None:
    before = content(mlp)
    twin = graph.copy(mlp)
    graph.set_initializer(twin.graph.initializers["fc1.bias"], np.zeros(8, np.float32))
    twin.graph.node(0).name = "other"
    assert content(mlp) == before != content(twin)


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GraphError) as caught:
        graph.load(tmp_path / "none.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'none.onnx'}: no such model file\nhint: give an .onnx file or a name from `pqc list models`"
    )


def test_load_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no such model file"):
        graph.load(tmp_path)


@pytest.mark.parametrize("junk", [b"", b"\x00" * 64, b"not a model at all", b"\xff\xfe\xfd" * 99, b"PK\x03\x04zip"])
def test_load_refuses_what_is_not_onnx(junk: bytes, tmp_path: Path) -> None:
    refusal(junk, tmp_path / "m.onnx")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_load_refuses_a_truncated_file(mlp: ir.Model, share: float, tmp_path: Path) -> None:
    whole = content(mlp)
    refusal(whole[: int(share * len(whole))], tmp_path / "m.onnx")


def test_load_reads_external_data_beside_the_model(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"....." + WEIGHT.astype(np.float32).tobytes() + b"...")
    path = tmp_path / "m.onnx"
    path.write_bytes(external(tiny, "w.bin", offset=5, length=16).SerializeToString())
    loaded = graph.load(path)
    (tmp_path / "w.bin").unlink()
    np.testing.assert_array_equal(initializers(loaded)["w"], WEIGHT)


@pytest.mark.parametrize("where", ["parent", "absolute", "symlink", "folder symlink"])
def test_load_refuses_external_data_outside_the_folder(where: str, tiny: onnx.ModelProto, tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    (outside / "w.bin").write_bytes(WEIGHT.astype(np.float32).tobytes())
    (home / "link.bin").symlink_to(outside / "w.bin")
    (home / "sub").symlink_to(outside)
    location = {
        "parent": "../outside/w.bin",
        "absolute": str(outside / "w.bin"),
        "symlink": "link.bin",
        "folder symlink": "sub/w.bin",
    }[where]
    error = refusal(external(tiny, location), home / "m.onnx")
    assert error.message == f"external data of 'w' lie outside the model's folder: {location!r}"


def test_load_refuses_external_data_of_a_constant_node_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "w.bin").write_bytes(WEIGHT.astype(np.float32).tobytes())
    model = onnx_model(
        "(float[n,2] x) => (float[n,2] y) { w = Constant <value = float[2,2] {1,2,3,4}> () y = MatMul (x, w) }"
    )
    proto = graph.to_proto(model)
    tensor = proto.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../w.bin"
    refusal(proto, tmp_path / "home" / "m.onnx")


def test_load_refuses_missing_external_data(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    error = refusal(external(tiny, "w.bin"), tmp_path / "m.onnx")
    assert error.message == "external data of 'w' are missing: w.bin"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "initializer 'w' of shape [2, 2] needs 16 bytes and has 12"),
        ({"length": 16}, "external data of 'w' end beyond their file"),
        ({"offset": 8, "length": 16}, "external data of 'w' end beyond their file"),
        ({"offset": -4}, "external data of 'w' end beyond their file"),
        ({"offset": 100}, "external data of 'w' end beyond their file"),
        ({"length": 8}, "initializer 'w' of shape [2, 2] needs 16 bytes and has 8"),
        ({"length": -16}, "external data of 'w' end beyond their file"),
        ({"offset": "three"}, "external data of 'w' have a broken offset"),
    ],
)
def test_load_refuses_external_data_that_are_too_short(
    entries: dict[str, object], message: str, tiny: onnx.ModelProto, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(12))
    (tmp_path / "m.onnx").write_bytes(external(tiny, "w.bin", **entries).SerializeToString())
    with pytest.raises(GraphError) as caught:
        graph.load(tmp_path / "m.onnx")
    assert caught.value.at == str(tmp_path / "m.onnx")
    assert caught.value.message == message


@pytest.mark.parametrize("size", [0, 12, 17, 32])
def test_load_refuses_raw_data_of_the_wrong_size(size: int, tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tiny.graph.initializer[0].raw_data = bytes(size)
    error = refusal(tiny, tmp_path / "m.onnx")
    assert error.message == f"initializer 'w' of shape [2, 2] needs 16 bytes and has {size}"


def test_load_refuses_typed_data_of_the_wrong_size(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tensor = tiny.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0, 2.0, 3.0])
    refusal(tiny, tmp_path / "m.onnx")


def test_load_refuses_negative_dimensions(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tiny.graph.initializer[0].dims[:] = [-2, -2]
    assert refusal(tiny, tmp_path / "m.onnx").message == "initializer 'w' has a negative dimension"


@pytest.mark.parametrize("kind", [0, 99])
def test_load_refuses_an_unknown_type(kind: int, tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tiny.graph.initializer[0].data_type = kind
    (tmp_path / "m.onnx").write_bytes(tiny.SerializeToString())
    with pytest.raises(GraphError):
        graph.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(("version", "word"), [(29, "new"), (1000, "new"), (6, "old"), (1, "old")])
def test_load_refuses_an_opset(version: int, word: str, tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tiny.opset_import[0].version = version
    error = refusal(tiny, tmp_path / "m.onnx", UnsupportedError)
    assert error.message == f"opset {version} is too {word}: pqc takes 7 to 28"


@pytest.mark.parametrize("version", [7, 13, 17, 21])
def test_load_takes_the_opsets_between(version: int, tmp_path: Path) -> None:
    model = onnx_model("(float[2,3] x) => (float[2,3] y) { y = Relu (x) }", opset=version)
    graph.save(model, tmp_path / "m.onnx")
    loaded = graph.load(tmp_path / "m.onnx")
    pipeline.run(loaded, "normalize")
    assert loaded.graph.opset_imports[""] == graph.OPSET
    x = np.array([[-1, 0, 2], [3, -4, 5]], np.float32)
    np.testing.assert_array_equal(engine.evaluate(loaded, {"x": x})["y"], np.maximum(x, 0))


def test_load_refuses_an_operator_that_onnx_does_not_know(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tiny.graph.node[0].op_type = "MatrixMultiply"
    error = refusal(tiny, tmp_path / "m.onnx")
    assert "MatrixMultiply" in error.message


def test_normalize_refuses_an_operator_of_another_domain() -> None:
    model = onnx_model("(float[n,2] x) => (float[n,2] y) { y = test.Twist (x) }")
    with pytest.raises(UnsupportedError) as caught:
        pipeline.run(model, "normalize")
    assert str(caught.value) == (
        "node 'Twist_y': unknown operator test::Twist\nhint: export with standard ONNX operators"
    )


def test_load_refuses_a_graph_without_nodes(tmp_path: Path) -> None:
    error = refusal(onnx.ModelProto(ir_version=10), tmp_path / "m.onnx")
    assert error.message == "the file holds no graph with nodes and outputs"


def test_load_refuses_a_graph_that_reads_too_early(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tiny.graph.node[0].input[0] = "nowhere"
    assert "not a valid ONNX model" in refusal(tiny, tmp_path / "m.onnx").message


# Atomic writing


def test_a_failing_write_leaves_the_old_file(mlp: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PqcError, match=re.escape(f"{path}: cannot write the file: No space left on device")):
        graph.save(mlp, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_rename_leaves_the_old_file(mlp: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PqcError, match="Permission denied"):
        graph.save(mlp, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_an_error(mlp: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(PqcError, match="cannot write the file"):
        graph.save(mlp, tmp_path / "taken" / "m.onnx")


def test_write_text_replaces_the_file_and_keeps_the_usual_mode(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old, and longer")
    files.write_text(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


# Small helpers


def test_names_number_what_is_taken(mlp: ir.Model) -> None:
    names = graph.Names(mlp.graph)
    assert [names.new(name) for name in ("h", "fc1.bias", "Gemm_h", "new", "new")] == [
        "h_1",
        "fc1.bias_1",
        "Gemm_h_1",
        "new",
        "new_1",
    ]


def test_remove_unused_counts_nodes_and_initializers() -> None:
    model = onnx_model(
        "(float[n,2] x) => (float[n,2] y) { y = MatMul (x, w) a = Add (x, b) c = Relu (a) }", w=WEIGHT, b=WEIGHT[0]
    )
    assert graph.remove_unused(model.graph) == 3
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert set(model.graph.initializers) == {"w"}
    assert graph.remove_unused(model.graph) == 0


def test_an_input_with_a_default_is_no_constant() -> None:
    model = onnx_model("(float[n,2] x, float[2,2] w) => (float[n,2] y) { y = MatMul (x, w) }", w=WEIGHT)
    weight = model.graph.initializers["w"]
    assert graph.constant(weight) is None
    np.testing.assert_array_equal(graph.stored(weight), WEIGHT)
