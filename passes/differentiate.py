from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from pqc import engine, graph, library, trainable
from pqc.errors import GraphError, PassError
from pqc.functions.operator import GRADIENT
from pqc.lowering import pools
from pqc.names import BASE, BUFFERS, GRADIENT_SUFFIX, LOSS, NEXT, THETA
from pqc.passes.legalize import slices
from pqc.rewriting import Pass
from pqc.samples import sample
from pqc.shapes import infer_shapes

KEPT = (LOSS, THETA + BASE, BUFFERS + NEXT)
HINT = "run legalize first; if it did run, report the model"


@dataclass(frozen=True)
class Differentiate(Pass):
    """Add the backward pass: the gradient of the loss with respect to theta.

    loss(x, target, theta) → also theta_grad. Other outputs go, so that nothing is computed that training does not
    read; the states that a step changes stay. Every gradient's shape is compared with its tensor's in a trial run.
    Leaves a graph that has a gradient.
    """

    title: ClassVar[str] = "differentiate"
    drops_outputs: ClassVar[bool] = True

    def rewrite(self, model: ir.Model) -> int:
        if any(value.name == THETA + GRADIENT_SUFFIX for value in model.graph.outputs):
            return 0
        kept = [value for value in model.graph.outputs if value.name in KEPT]
        loss = next((value for value in kept if value.name == LOSS), None)
        if loss is None or THETA not in model.graph.initializers:
            raise PassError("there is no loss or no theta", hint="run attach-loss,expose-parameters first")
        main = model.graph
        main.outputs[:] = kept
        graph.remove_unused(main)
        for node in [node for node in main if node.op_type == "Split"]:
            slices(main, node)
        graph.remove_unused(main)
        trainable.check(main, [main.initializers[THETA]], [loss])
        _spell_biases(main)
        pools.differentiable(main)
        inlined = _inlined(model)
        library.link(inlined, gradients=True)
        differentiated = graph.from_proto(engine.gradient_graph(graph.to_proto(inlined), LOSS, [THETA]))
        _inherit_attributes(differentiated.graph)
        model.graph = differentiated.graph
        library.link(model)
        library.prune_imports(model)
        check_shapes(model)
        return 1


def _inlined(model: ir.Model) -> ir.Model:
    """The graph with the bodies in place of the operators that have no gradient of their own but are differentiable."""
    if not any((node.domain, node.op_type) in library.inlined() for node in model.graph):
        return model
    library.link(model)
    proto = onnx.inliner.inline_selected_functions(graph.to_proto(model), library.inlined())
    graph.name_nodes(proto)
    inlined = graph.from_proto(proto)
    infer_shapes(inlined)
    return inlined


def _spell_biases(main: ir.Graph) -> None:
    """Give a ConvTranspose without bias one of zeros: its gradient has a place for it."""
    names = graph.Names(main)
    for node in main:
        if node.op_type == "ConvTranspose" and not node.domain and len(node.inputs) < 3:
            channels = graph.dims(graph.operand(node, 1))[1] * node.attributes.get_int("group", 1)
            node.resize_inputs(3)
            zeros = np.zeros(channels, np.float32)
            node.replace_input_with(2, graph.add_initializer(main, names.new(f"{node.name}.bias"), zeros))


def _inherit_attributes(main: ir.Graph) -> None:
    """Complete the gradient nodes, which the engine makes bare: forward attributes, and outputs that nobody reads."""
    names = graph.Names(main)
    forward = {node.name: node for node in main}
    for node in main:
        if node.domain != GRADIENT.domain:
            continue
        origin = forward[(node.name or "").split("_Grad/")[0]]
        _narrow(node, origin)
        body = library.bodies()[node.domain, node.op_type]
        known = {*body.attribute, *(attribute.name for attribute in body.attribute_proto)}
        node.resize_outputs(len(body.output))  # shape inference runs past the end of outputs that are left out
        for output in node.outputs:
            output.name = output.name or names.new(f"{node.name}.unread")
        for name, attribute in origin.attributes.items():
            if name in known:
                node.attributes[name] = attribute


def _narrow(node: ir.Node, origin: ir.Node) -> None:
    """Compute no more than the gradient of the data, where that is all that is read and a body for it exists."""
    one = library.operators().get((origin.domain, origin.op_type))
    if one is None or one.of_data is None or any(output.name for output in node.outputs[1:]):
        return
    node.op_type = one.of_data.name
    node.resize_inputs(len(library.bodies()[node.domain, node.op_type].input))
    node.resize_outputs(1)


def check_shapes(model: ir.Model) -> None:
    """Run the graph once and compare each gradient's shape with its tensor's.

    Raises:
        PassError: names the tensor; a wrong shape means wrong training.
    """
    trial = graph.copy(model)
    values = {value.name: value for value in graph.values(trial.graph)}
    names = [name for name in values if name and f"{name}{GRADIENT_SUFFIX}" in values]
    kept = [value for name in names for value in (values[name], values[f"{name}{GRADIENT_SUFFIX}"])]
    trial.graph.outputs[:] = [value for value in kept if not value.is_graph_input()]
    feeds = sample(trial, 2)
    arrays = {**feeds}
    arrays |= {name: graph.stored(values[name]) for name in names if values[name].is_initializer()}
    try:
        arrays |= engine.evaluate(trial, feeds)
    except GraphError as error:
        raise PassError(f"the gradient of a tensor cannot be computed: {error.message}", hint=HINT) from error
    for name in names:
        found, expected = arrays[f"{name}{GRADIENT_SUFFIX}"].shape, arrays[name].shape
        if found != expected:
            raise PassError(
                f"the gradient of '{name}' has shape {list(found)} instead of {list(expected)}",
                at="differentiate",
                hint=HINT,
            )
