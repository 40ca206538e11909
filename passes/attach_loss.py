from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from pqc import graph, layers, library
from pqc.errors import PassError, UnsupportedError
from pqc.functions.losses import LOSSES, target_of
from pqc.mask_nodes import Builder
from pqc.mask_sites import masks
from pqc.names import HEAD, LOSS, OUTPUTS, TARGET
from pqc.options import check_options, nearest
from pqc.rewriting import Pass

# The head whose logits the loss wants: it has the same function inside, in a form that cannot overflow.
HEADS = {"cross-entropy": "Softmax", "binary-cross-entropy": "Sigmoid", "focal": "Sigmoid"}


@dataclass(frozen=True)
class AttachLoss(Pass):
    """Add a loss on the first output, and the masks' penalties.

    y = f(x) → also loss = L(logits, target) + sum of penalties, with the input target. Cross entropy takes what
    enters a final softmax.
    Leaves the model's own outputs where they are, and a model that has a loss.
    """

    title: ClassVar[str] = "attach-loss"

    loss: str = "cross-entropy"
    options: dict[str, str] = field(default_factory=dict)

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        if any(value.name == LOSS for value in main.outputs):
            return 0
        if self.loss not in LOSSES:
            raise PassError(f"no loss '{self.loss}'{nearest(self.loss, LOSSES)}", hint=f"losses: {', '.join(LOSSES)}")
        model.metadata_props[OUTPUTS] = json.dumps([value.name for value in main.outputs])
        prediction = logits(main.outputs[0], self.loss)
        _remember_head(model, prediction)
        task, builder = self._task(main, prediction), Builder(main)
        total = task
        for number, term in enumerate(_penalties(builder)):
            total = scalar(main, "Add", [total, term], "", f"loss.sum_{number}", builder.names)
        total.name = LOSS
        main.outputs.append(total)
        library.link(model)
        return 1

    def _task(self, main: ir.Graph, prediction: ir.Value) -> ir.Value:
        shape = prediction.shape
        if prediction.dtype != ir.DataType.FLOAT or shape is None:
            raise UnsupportedError(
                "the first output is not a float tensor of known rank", at=f"output '{prediction.name}'"
            )
        wanted = target_of(self.loss)
        kind = ir.DataType.INT64 if wanted.classes else ir.DataType.FLOAT
        target = ir.val(TARGET, kind, ir.Shape(wanted.shape(shape.dims)))
        main.inputs.append(target)
        domain, operator = LOSSES[self.loss].key
        attributes = self._attributes(domain, operator)
        return scalar(main, operator, [prediction, target], domain, "loss.task", graph.Names(main), attributes)

    def _attributes(self, domain: str, operator: str) -> dict[str, object]:
        known = [attribute.name for attribute in library.bodies()[domain, operator].attribute_proto]
        check_options(f"loss '{self.loss}'", self.options, known)
        try:
            return {name: float(value) for name, value in self.options.items()}
        except ValueError as error:
            raise PassError(f"loss '{self.loss}': {error}", hint="its options are numbers") from error


def logits(output: ir.Value, loss: str) -> ir.Value:
    """What the loss reads: the input of a head that the loss contains, else `output`.

    Raises:
        UnsupportedError: such a head is there, but not last.
    """
    node = output.producer()
    if node is not None and not node.domain and node.op_type == HEADS.get(loss):
        return graph.operand(node, 0)
    while node is not None and not node.domain and node.op_type in layers.MOVES:
        node = graph.operand(node, 0).producer()
        if node is not None and not node.domain and node.op_type == HEADS.get(loss):
            raise UnsupportedError(
                f"{node.op_type} is not the last operator, so its logits cannot be told",
                at=f"node '{node.name}'",
                hint=f"end the model with {node.op_type}, or leave it out",
            )
    return output


def _remember_head(model: ir.Model, prediction: ir.Value) -> None:
    """Note what the loss skips: with the model's own output it goes when the graph is differentiated."""
    output = model.graph.outputs[0]
    head = output.producer()
    if head is not None and output is not prediction:
        attributes = {name: attribute.value for name, attribute in head.attributes.items()}
        note = {"operator": head.op_type, "reads": prediction.name, "node": head.name, "attributes": attributes}
        model.metadata_props[HEAD] = json.dumps(note)


def _penalties(builder: Builder) -> list[ir.Value]:
    terms = []
    for site in list(masks(builder.main)):
        call = site.method.penalty()
        if call is not None:
            terms.append(builder.call(site, call, "penalty")[0])
            terms[-1].shape = ir.Shape([])
    return terms


def scalar(
    main: ir.Graph,
    operator: str,
    inputs: list[ir.Value],
    domain: str,
    name: str,
    names: graph.Names,
    attributes: dict[str, object] | None = None,
) -> ir.Value:
    """The first output, a scalar, of a new last node."""
    output = ir.val(names.new(f"{name}.out"), ir.DataType.FLOAT, [])
    body = library.bodies().get((domain, operator))
    extra = [ir.val(names.new(f"{name}.{part}")) for part in body.output[1:]] if body is not None else []
    node = ir.node(operator, inputs, attributes or {}, domain=domain, name=names.new(name), outputs=[output, *extra])
    main.append(node)
    return output
