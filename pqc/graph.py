"""ONNX files in and out, and the few graph helpers that every pass needs. Protobuf is touched here only."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from pqc import files
from pqc.errors import GraphError, UnsupportedError

logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # its warnings would end up among the words for the user

OPSET = 21
IR_VERSION = 10
MIN_OPSET = 7
# From opset 22 to this one, the operators of opset 21 gained types and attributes, and kept what they compute.
MAX_OPSET = 28
QONNX = "qonnx.custom_op.general"
MAX_FILE_BYTES = 2**31 - 1


def load(path: str | Path) -> ir.Model:
    """Read an ONNX file without trusting it.

    Raises:
        GraphError: not a file, not ONNX, truncated, or external data that is missing or leaves the model's folder.
        UnsupportedError: an opset or a size beyond what the engine takes.
    """
    path = Path(path)
    proto = _parse(path)
    _check_tensors(proto, path)
    _check_opset(proto, path)
    onnx.load_external_data_for_model(proto, str(path.parent))
    name_nodes(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(
            f"not a valid ONNX model: {_first_line(error)}", at=str(path), hint="export the model again"
        ) from error
    return from_proto(proto)


def save(model: ir.Model, path: str | Path) -> None:
    """Write `model` to `path` in one step."""
    files.write_bytes(Path(path), to_proto(model).SerializeToString())


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The in-memory form of `proto`."""
    try:
        return ir.serde.deserialize_model(proto)
    except Exception as error:  # onnx_ir raises whatever the broken field leads to
        raise GraphError(f"cannot read the graph: {_first_line(error)}", hint="export the model again") from error


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """`model` as protobuf, with the IR version that the engine takes."""
    proto = ir.serde.serialize_model(model)
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    return proto


def copy(model: ir.Model) -> ir.Model:
    """An independent copy of `model`."""
    return ir.serde.deserialize_model(ir.serde.serialize_model(model))


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give nodes that share a name, or have none, one of their own: the engine and hls4ml go by names."""
    taken = {node.name for node in proto.graph.node}
    seen: set[str] = set()
    for node in proto.graph.node:
        wanted = node.name or f"{node.op_type}_{next(iter(node.output), '')}"
        name, number = wanted, 1
        while name in seen or (name != node.name and name in taken):
            name, number = f"{wanted}_{number}", number + 1
        node.name = name
        seen.add(name)


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise GraphError("no such model file", at=str(path), hint="give an .onnx file or a name from `pqc list models`")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnsupportedError("the file is larger than 2 GiB", at=str(path), hint="keep weights as external data")
    hint = "is it complete, and exported as ONNX?"
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise GraphError("not an ONNX file, or truncated", at=str(path), hint=hint) from error
    except OSError as error:
        raise GraphError(
            f"cannot read the file: {error.strerror}", at=str(path), hint="check its permissions"
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise GraphError("the file holds no graph with nodes and outputs", at=str(path), hint=hint)
    return proto


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    if not MIN_OPSET <= version <= MAX_OPSET:
        word = "new" if version > MAX_OPSET else "old"
        raise UnsupportedError(
            f"opset {version} is too {word}: pqc takes {MIN_OPSET} to {MAX_OPSET}",
            at=str(path),
            hint="export the model with opset_version=17",
        )
    if version > OPSET:
        _lower_opset(proto, version)


def _lower_opset(proto: onnx.ModelProto, version: int) -> None:
    """Read a newer file as one of the engine's opset; attributes that this lacks fail the check that follows."""
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, OPSET, ""):
            raise UnsupportedError(
                f"{node.op_type} of opset {version} has no counterpart in opset {OPSET}",
                at=f"node '{node.name or next(iter(node.output), '')}'",
                hint=f"export with opset_version={OPSET}, where exporters write it out in simpler operators",
            )
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    proto.ir_version = min(proto.ir_version, IR_VERSION)


def _check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    for tensor in external_data_helper._get_all_tensors(proto):
        if any(dim < 0 for dim in tensor.dims):
            raise GraphError(f"initializer '{tensor.name}' has a negative dimension", at=str(path), hint="export again")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path)
        elif tensor.HasField("raw_data"):
            _check_size(tensor, len(tensor.raw_data), path)
        else:
            _check_count(tensor, path)


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    folder = path.parent.resolve()
    file = (folder / entries.get("location", "")).resolve()
    if folder not in file.parents:
        raise GraphError(
            f"external data of '{tensor.name}' lie outside the model's folder: {entries.get('location')!r}",
            at=str(path),
            hint="move the data file beside the model; pqc reads nothing else",
        )
    if not file.is_file():
        raise GraphError(
            f"external data of '{tensor.name}' are missing: {file.name}",
            at=str(path),
            hint="copy the file beside the model",
        )
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", file.stat().st_size - offset))
    except ValueError as error:
        raise GraphError(f"external data of '{tensor.name}' have a broken offset", at=str(path)) from error
    if min(offset, length) < 0 or offset + length > file.stat().st_size:
        raise GraphError(
            f"external data of '{tensor.name}' end beyond their file",
            at=str(path),
            hint="the data file is truncated",
        )
    _check_size(tensor, length, path)


def _check_size(tensor: onnx.TensorProto, found: int, path: Path) -> None:
    kind = _kind(tensor, path)
    if kind == ir.DataType.STRING:
        return
    expected = math.ceil(math.prod(tensor.dims) * kind.bitwidth / 8)
    if found != expected:
        raise GraphError(
            f"initializer '{tensor.name}' of shape {list(tensor.dims)} needs {expected} bytes and has {found}",
            at=str(path),
            hint="the file is damaged; export it again",
        )


def _check_count(tensor: onnx.TensorProto, path: Path) -> None:
    """Typed fields: one entry a value, two for complex numbers; half-width types share their field."""
    kind = _kind(tensor, path)
    if kind in (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) or kind.bitwidth < 8:
        return
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    found, expected = len(getattr(tensor, field)), math.prod(tensor.dims)
    if found != expected:
        raise GraphError(
            f"initializer '{tensor.name}' of shape {list(tensor.dims)} needs {expected} values and has {found}",
            at=str(path),
            hint="the file is damaged; export it again",
        )


def _kind(tensor: onnx.TensorProto, path: Path) -> ir.DataType:
    if tensor.data_type not in ir.DataType.__members__.values() or tensor.data_type == ir.DataType.UNDEFINED:
        raise GraphError(
            f"initializer '{tensor.name}' has an unknown type {tensor.data_type}",
            at=str(path),
            hint="the file is damaged; export it again",
        )
    return ir.DataType(tensor.data_type)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class Names:
    """Stable unique names: the wanted one, or the wanted one with the first free number."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken: set[str | None] = graph.meta[_TAKEN] if _TAKEN in graph.meta else _taken(graph)

    def new(self, wanted: str) -> str:
        """A name that nothing in the graph has yet."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name


_TAKEN = "pqc.taken"


@contextmanager
def shared_names(main: ir.Graph) -> Iterator[None]:
    """Let every `Names` of the graph use one set of names, so that many small rewrites together stay linear."""
    outermost = _TAKEN not in main.meta
    if outermost:
        main.meta[_TAKEN] = _taken(main)
    try:
        yield
    finally:
        if outermost:
            del main.meta[_TAKEN]


def _taken(main: ir.Graph) -> set[str | None]:
    return {value.name for value in values(main)} | {node.name for node in main}


def values(graph: ir.Graph) -> Iterable[ir.Value]:
    """Every value of the graph: inputs, initializers, node outputs."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def operand(node: ir.Node, index: int) -> ir.Value:
    """The input `index` of `node`.

    Raises:
        GraphError: the node leaves it out.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise GraphError(
            f"{node.op_type} has no input {index}", at=f"node '{node.name}'", hint="export the model again"
        )
    return value


def dims(value: ir.Value) -> tuple[int, ...]:
    """The shape of `value`, all numbers.

    Raises:
        UnsupportedError: a dimension is not known.
    """
    known = [] if value.shape is None else [dim for dim in value.shape if isinstance(dim, int)]
    if value.shape is None or len(known) < len(value.shape):
        raise UnsupportedError(
            f"the shape of '{value.name}' is not fixed: {value.shape}", hint="export the model with fixed sizes"
        )
    return tuple(known)


def row_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of one row of an activation; unknown lengths count as one, the first where all are known.

    Rows come first, but for sequences in recurrent layers, which have the time there.
    """
    known = () if value.shape is None else value.shape.dims
    first = 1 if all(isinstance(dim, int) for dim in known) else 0
    return tuple(1 if place < first or not isinstance(dim, int) else dim for place, dim in enumerate(known))


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or of a Constant node, or None if `value` is computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or value.is_graph_input() else tensor.numpy()


def stored(value: ir.Value) -> np.ndarray:
    """The array of an initializer, also where it is only the default of an input."""
    assert value.const_value is not None
    return value.const_value.numpy()


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register `array` as the initializer `name`, which must be free."""
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def set_initializer(value: ir.Value, array: np.ndarray) -> None:
    """Replace the array of the initializer `value`."""
    value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let the readers of `old` read `new`; an output of the graph keeps its name."""
    was_output = old.is_graph_output()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if was_output and new.producer() is not None:
        name, old.name = old.name, f"{old.name}.replaced"
        new.name = name


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """The value of an attribute, or `default` where the node does not set it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def remove_unused(graph: ir.Graph) -> int:
    """Remove nodes and initializers that reach no output; return how many."""
    removed = 0
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
            removed += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
            removed += 1
    return removed
