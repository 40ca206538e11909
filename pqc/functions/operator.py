"""What an operator of pqc is: an ONNX function, and the function that is its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnxscript import OnnxFunction
from onnxscript.values import Opset

GRADIENT = Opset("pqc.gradient", 1)
STANDARD = Opset("pqc.standard", 1)
MASK = Opset("pqc.mask", 1)
PENALTY = Opset("pqc.penalty", 1)
SCORE = Opset("pqc.score", 1)
UPDATE = Opset("pqc.update", 1)
RANKING = Opset("pqc.ranking", 1)
LOSS = Opset("pqc.loss", 1)
FIXED = Opset("pqc.fixed", 1)
QUANTIZER = Opset("pqc.quant", 1)
COST = Opset("pqc.cost", 1)
LEARNED = Opset("pqc.learned", 1)
OPTIMIZER = Opset("pqc.optimizer", 1)
POOL = Opset("pqc.pool", 1)
NORM = Opset("pqc.norm", 1)

Key = tuple[str, str]


@dataclass(frozen=True)
class Operator:
    """A function node that stays one node through differentiation.

    Args:
        function: the forward body.
        gradient: the body that gives input gradients, or None where nothing upstream is trained. It sees the
            forward node's attributes of the same names.
        arguments: the gradient's inputs: `GO(i)` is the gradient of output i, `I(i)` and `O(i)` the forward
            inputs and outputs.
        results: the gradient's outputs: `GI(i)` is the gradient of input i.
        of_data: the gradient's body where nobody asks for more than the first of the results; it takes the first of
            the arguments.
        inline: differentiate the body instead; it is made of operators that the engine differentiates rightly.
        helpers: functions that the bodies call.
    """

    function: OnnxFunction
    gradient: OnnxFunction | None = None
    arguments: Sequence[str] = ()
    results: Sequence[str] = ("GI(0)",)
    of_data: OnnxFunction | None = None
    inline: bool = False
    helpers: Sequence[OnnxFunction] = ()

    @property
    def key(self) -> Key:
        """Domain and name of the forward node."""
        return self.function.opset.domain, self.function.name

    def bodies(self) -> list[onnx.FunctionProto]:
        """The forward body, the gradients' where there are any, and those that they call."""
        functions = [self.function, *(one for one in (self.gradient, self.of_data) if one is not None), *self.helpers]
        return [function.to_function_proto() for function in functions]
