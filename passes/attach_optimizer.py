from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pqc import graph, library
from pqc.errors import PassError
from pqc.functions.optimizers import OPTIMIZERS, Optimizer
from pqc.options import nearest
from pqc.passes.differentiate import SUFFIX
from pqc.passes.expose_parameters import THETA
from pqc.rewriting import Pass

RATE, LEARNING_RATE, NEXT = "rate", "learning_rate", ".next"


@dataclass(frozen=True)
class AttachOptimizer(Pass):
    """Append the optimizer's update of theta: one run of the graph is one training step.

    theta_grad → theta.next and the optimizer's next moments; learning rate, rates by element and moments become
    inputs with defaults.
    Leaves a graph that has an optimizer.
    """

    title: ClassVar[str] = "attach-optimizer"

    optimizer: str = "adam"
    options: dict[str, str] = field(default_factory=dict)

    def rewrite(self, model: ir.Model) -> int:
        main = model.graph
        if any(value.name == THETA + NEXT for value in main.outputs):
            return 0
        gradient = next((value for value in main.outputs if value.name == THETA + SUFFIX), None)
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
        main.append(
            ir.node(operator, inputs, optimizer.attributes(), domain=domain, name="optimizer", outputs=outputs)
        )
        main.outputs[:] = [value for value in main.outputs if value is not gradient] + outputs
        library.link(model)
        return 1


def make_optimizer(name: str, options: dict[str, str]) -> Optimizer:
    """The optimizer `name` with its options, given as text.

    Raises:
        PassError: no such optimizer or option, or a value that is not a number.
    """
    if name not in OPTIMIZERS:
        raise PassError(
            f"no optimizer '{name}'{nearest(name, OPTIMIZERS)}", hint=f"optimizers: {', '.join(OPTIMIZERS)}"
        )
    kind = OPTIMIZERS[name]
    for option in options:
        if option not in kind.__dataclass_fields__:
            raise PassError(
                f"optimizer '{name}' has no option '{option}'{nearest(option, kind.__dataclass_fields__)}",
                hint=f"it has: {', '.join(kind.__dataclass_fields__)}",
            )
    try:
        return kind(**{option: float(value) for option, value in options.items()})
    except ValueError as error:
        raise PassError(f"optimizer '{name}': {error}", hint="its options are numbers") from error


def _input(main: ir.Graph, name: str, default: np.ndarray) -> ir.Value:
    value = graph.add_initializer(main, name, default.astype(np.float32))
    main.inputs.append(value)
    return value
