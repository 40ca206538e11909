from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, library
from pqc.errors import PassError
from pqc.functions.optimizers import CLIP_BY_NORM, Optimizer, make_optimizer
from pqc.names import ACCUMULATED, BASE, DECAY, GRADIENT_SUFFIX, LEARNING_RATE, NEXT, RATE, THETA, by_role, layout
from pqc.rewriting import Pass


@dataclass(frozen=True)
class AttachOptimizer(Pass):
    """Append the update of theta: one run is one training step.

    theta_grad → theta.next and the optimizer's next moments; learning rate, rates by element and moments become
    inputs with defaults. `decays` adds the input decay, a weight decay by element; `clip` bounds the gradient's norm;
    `accumulate` averages the gradients of so many batches, from the input accumulated to accumulated.next.
    Leaves a graph that has an optimizer.
    """

    title: ClassVar[str] = "attach-optimizer"
    drops_outputs: ClassVar[bool] = True

    optimizer: str = "adam"
    options: dict[str, str] = field(default_factory=dict)
    decays: bool = False
    clip: float | None = None
    accumulate: int = 1

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        if any(value.name == THETA + NEXT for value in main.outputs):
            return 0
        gradient = next((value for value in main.outputs if value.name == THETA + GRADIENT_SUFFIX), None)
        if gradient is None:
            raise PassError("there is no gradient", hint="run differentiate first")
        optimizer = make_optimizer(self.optimizer, self.options)
        spent = (THETA + GRADIENT_SUFFIX, THETA + BASE)
        base = next((value for value in main.outputs if value.name == THETA + BASE), main.initializers[THETA])
        kept = [value for value in main.outputs if value.name not in spent]
        if self.accumulate > 1:
            gradient = _accumulated(main, gradient, self.accumulate)
            kept.append(gradient)
        if self.clip is not None:
            gradient = _clipped(main, gradient, self.clip)
        main.outputs[:] = kept + self._update(model, optimizer, base, gradient)
        library.link(model)
        return 1

    def _update(self, model: ir.Model, optimizer: Optimizer, base: ir.Value, gradient: ir.Value) -> list[ir.Value]:
        """Append the optimizer's nodes; theta.next and the next moments."""
        main = model.graph
        size = graph.stored(main.initializers[THETA]).shape
        inputs = [base, gradient, _input(main, RATE, np.ones(size)), _input(main, LEARNING_RATE, np.array(1e-3))]
        inputs.append(_input(main, DECAY, self._decay(model, optimizer)))
        moments = [_input(main, name, np.array(value)) for name, value in optimizer.scalars(1).items()]
        moments += [_input(main, slot, np.zeros(size)) for slot in optimizer.slots]
        outputs = [ir.val(name + NEXT, ir.DataType.FLOAT, size) for name in (THETA, *optimizer.slots)]
        domain, operator = optimizer.operator.key
        attributes = optimizer.attributes()
        moving = inputs
        if optimizer.pull is not None:  # the input decay is the pull's strength, beside the step's own decay
            own = np.array(optimizer.weight_decay, np.float32)
            moving = [*inputs[:-1], graph.add_initializer(main, "optimizer.decay", own)]
        elif self.decays:
            attributes["decays"] = 1
        step = ir.node(operator, [*moving, *moments], attributes, domain=domain, name="optimizer", outputs=outputs)
        main.append(step)
        if optimizer.pull is not None:
            outputs[0] = _pulled(main, optimizer, step, inputs)
        return outputs

    def _decay(self, model: ir.Model, optimizer: Optimizer) -> np.ndarray:
        """The default decays: one for all parameters, or one for each where roles differ."""
        if not self.decays and optimizer.decayed is None:
            return np.array(optimizer.decay)
        roles = {role for _, _, role in layout(model)} if optimizer.decayed is None else optimizer.decayed
        return by_role(layout(model), dict.fromkeys(roles, optimizer.decay), 0.0)


def _pulled(main: ir.Graph, optimizer: Optimizer, step: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    """theta.next after the optimizer's last pull."""
    assert optimizer.pull is not None
    moved = step.outputs[0]
    moved.name = f"{THETA}.moved"
    domain, operator = optimizer.pull.key
    base, _, *rates = inputs
    attributes = {"p": getattr(optimizer, "p", 1.0)}
    return _node(main, operator, [base, moved, *rates], THETA + NEXT, moved.shape, attributes, domain)


def _accumulated(main: ir.Graph, gradient: ir.Value, count: int) -> ir.Value:
    """The sum of the gradients so far, each divided by how many there will be."""
    before = _input(main, ACCUMULATED, np.zeros(graph.stored(main.initializers[THETA]).shape))
    share = graph.add_initializer(main, "accumulated.share", np.array(1 / count, np.float32))
    scaled = _node(main, "Mul", [gradient, share], "accumulated.scaled", gradient.shape)
    return _node(main, "Add", [before, scaled], ACCUMULATED + NEXT, gradient.shape)


def _clipped(main: ir.Graph, gradient: ir.Value, bound: float) -> ir.Value:
    """The gradient, shortened to the length `bound` where it is longer."""
    domain, operator = CLIP_BY_NORM.key
    return _node(main, operator, [gradient], "theta.clipped", gradient.shape, {"bound": bound}, domain)


def _node(
    main: ir.Graph,
    operator: str,
    inputs: list[ir.Value],
    name: str,
    shape: ir.Shape | None,
    attributes: dict[str, float] | None = None,
    domain: str = "",
) -> ir.Value:
    output = ir.val(name, ir.DataType.FLOAT, shape)
    main.append(ir.node(operator, inputs, attributes, domain=domain, name=f"{name}.node", outputs=[output]))
    return output


def _input(main: ir.Graph, name: str, default: np.ndarray) -> ir.Value:
    value = graph.add_initializer(main, name, default.astype(np.float32))
    main.inputs.append(value)
    return value
