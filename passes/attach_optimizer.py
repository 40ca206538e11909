from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, library
from pqc.errors import PassError
from pqc.functions.optimizers import make_optimizer
from pqc.names import GRADIENT_SUFFIX, LEARNING_RATE, NEXT, RATE, THETA
from pqc.rewriting import Pass


@dataclass(frozen=True)
class AttachOptimizer(Pass):
    """Append the update of theta: one run is one training step.

    theta_grad → theta.next and the optimizer's next moments; learning rate, rates by element and moments become
    inputs with defaults.
    Leaves a graph that has an optimizer.
    """

    title: ClassVar[str] = "attach-optimizer"
    drops_outputs: ClassVar[bool] = True

    optimizer: str = "adam"
    options: dict[str, str] = field(default_factory=dict)

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        if any(value.name == THETA + NEXT for value in main.outputs):
            return 0
        gradient = next((value for value in main.outputs if value.name == THETA + GRADIENT_SUFFIX), None)
        if gradient is None:
            raise PassError("there is no gradient", hint="run differentiate first")
        optimizer = make_optimizer(self.optimizer, self.options)
        theta = main.initializers[THETA]
        size = graph.stored(theta).shape
        inputs = [
            theta,
            gradient,
            _input(main, RATE, np.ones(size)),
            _input(main, LEARNING_RATE, np.array(1e-3)),
        ]
        inputs += [_input(main, name, np.array(value)) for name, value in optimizer.scalars(1).items()]
        inputs += [_input(main, slot, np.zeros(size)) for slot in optimizer.slots]
        outputs = [ir.val(name + NEXT, ir.DataType.FLOAT, size) for name in (THETA, *optimizer.slots)]
        domain, operator = optimizer.operator.key
        main.append(ir.node(operator, inputs, optimizer.attributes(), domain=domain, name="optimizer", outputs=outputs))
        main.outputs[:] = [value for value in main.outputs if value is not gradient] + outputs
        library.link(model)
        return 1


def _input(main: ir.Graph, name: str, default: np.ndarray) -> ir.Value:
    value = graph.add_initializer(main, name, default.astype(np.float32))
    main.inputs.append(value)
    return value
