from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from pqc import graph, layers, opsets
from pqc.errors import UnsupportedError
from pqc.names import LAYOUT, OUTPUTS, RESERVED
from pqc.rewriting import Meaning, Pass, close, explain
from pqc.shapes import infer_shapes

WRONG_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
KNOWN_DOMAINS = ("", "ai.onnx", graph.QONNX)


@dataclass(frozen=True)
class Normalize(Pass):
    """Bring a model into the one form that the other passes know.

    Any opset, Constant nodes, unnamed or doubly named nodes, Identity, unknown shapes → the newest opset that the
    engine takes, initializers, unique names, no Identity, inferred shapes. Names that
    training uses (loss, target, …) get a number.
    Leaves what computes alone; a newer version of an operator may round its last bits differently.
    """

    title: ClassVar[str] = "normalize"
    meaning: ClassVar[Meaning] = close(1e-6)

    def rewrite(self, model: ir.Model) -> int:
        before = _text(model)
        check_operators(model)
        check_tensors(model.graph)
        _convert(model)
        for node in model.graph:
            if layers.is_qonnx_quant(node):
                _spell_quant(node)
        for library_pass in (
            common.RemoveInitializersFromInputsPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ):
            library_pass(model)
        _drop_identities(model.graph)
        graph.remove_unused(model.graph)
        if not model.metadata_props.keys() & {OUTPUTS, LAYOUT}:
            _free_names(model.graph)
        _name(model.graph)
        if not _shapes_known(model.graph):
            infer_shapes(model)
        return int(_text(model) != before)


def check_operators(model: ir.Model) -> None:
    """Refuse operators that neither ONNX, QONNX nor the model itself defines.

    Raises:
        UnsupportedError: names the node and the operator.
    """
    for node in model.graph.all_nodes():
        own = (node.domain, node.op_type, node.overload) in model.functions
        known = own or node.domain.startswith("pqc.") or _known(node, model.graph.opset_imports.get("", graph.OPSET))
        if not node.domain and node.op_type in RANDOM:
            raise UnsupportedError(
                f"{node.op_type} gives other numbers each time, and nothing could be compared",
                at=f"node '{node.name or node.outputs[0].name}'",
                hint="export the model in evaluation mode",
            )
        if not known:
            raise UnsupportedError(
                f"unknown operator {node.domain + '::' if node.domain else ''}{node.op_type}",
                at=f"node '{node.name or node.outputs[0].name}'",
                hint="export with standard ONNX operators",
            )


def check_tensors(main: ir.Graph) -> None:
    """Refuse what no network can compute with here: other floats than float32, NaN, empty dimensions.

    Raises:
        UnsupportedError: names the value.
    """
    for value in graph.values(main):
        if value.dtype in WRONG_FLOATS and not value.is_graph_output():
            kind = str(value.dtype).lower()
            hint = "export it with float32 weights and inputs"
            raise UnsupportedError(f"'{value.name}' is {kind}; networks are float32 here", hint=hint)
        if value.shape is not None and 0 in value.shape.dims and value.is_graph_input():
            raise UnsupportedError(f"the input '{value.name}' is empty: its shape is {value.shape}")
    for value in main.initializers.values():
        array = graph.stored(value)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UnsupportedError(
                f"'{value.name}' holds NaN or infinity", hint="export a model whose training went well"
            )


def _known(node: ir.Node, opset: int) -> bool:
    if node.domain == graph.QONNX:
        return node.op_type in ("Quant", "BipolarQuant", "Trunc")
    if node.domain not in KNOWN_DOMAINS:
        return False
    return bool(onnx.defs.has(node.op_type, opset, ""))


def _convert(model: ir.Model) -> None:
    version = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", graph.OPSET))
    if version == graph.OPSET:
        return
    try:
        proto = onnx.version_converter.convert_version(graph.to_proto(model), graph.OPSET)
    except Exception as error:  # the converter's C++ errors share no narrower base
        raise UnsupportedError(
            f"cannot convert from opset {version} to {graph.OPSET}: {str(error).splitlines()[0]}",
            hint="export the model with opset_version=17",
        ) from error
    converted = graph.from_proto(proto)
    model.graph = converted.graph
    opsets.complete(model.graph, version)
    model.ir_version = graph.IR_VERSION


def _drop_identities(main: ir.Graph) -> None:
    """Identity and inference Dropout, but for one that gives an input or a constant out under a name of its own."""
    for node in list(main):
        idle = node.op_type == "Identity" or (node.op_type == "Dropout" and not _drops(node))
        source = node.inputs[0] if node.inputs else None
        if node.domain or not idle or source is None:
            continue
        if node.outputs[0].is_graph_output() and (source.producer() is None or source.is_graph_output()):
            continue
        graph.replace(node.outputs[0], source)


def _drops(node: ir.Node) -> bool:
    """Whether a Dropout is in training mode, or its mask is read."""
    training = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else np.array(False)
    return training is None or bool(training) or any(output.uses() for output in node.outputs[1:])


def _spell_quant(node: ir.Node) -> None:
    """QONNX reads the rounding mode in any case; the function body in upper case only."""
    mode = str(node.attributes.get_string("rounding_mode", "ROUND")).upper()
    if mode != node.attributes.get_string("rounding_mode", ""):
        node.attributes["rounding_mode"] = ir.AttrString("rounding_mode", mode)


def _free_names(main: ir.Graph) -> None:
    """Number the values whose names training needs for itself."""
    names = graph.Names(main)
    for value in [value for value in graph.values(main) if value.name in RESERVED]:
        value.name = names.new(str(value.name))


def _name(main: ir.Graph) -> None:
    names = graph.Names(main)
    seen: set[str] = set()
    for node in main:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        node.name = names.new(node.name or f"{node.op_type}_{node.outputs[0].name}")
        seen.add(node.name)
        explain(node, "named")


def _shapes_known(main: ir.Graph) -> bool:
    return all(output.shape is not None and output.dtype is not None for node in main for output in node.outputs)


def _text(model: ir.Model) -> bytes:
    return bytes(graph.to_proto(model).SerializeToString(deterministic=True))
