"""The protocol of a pass."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

_LOG = logging.getLogger("pqc.explain")


@dataclass(frozen=True)
class Meaning:
    """How far a pass may move the outputs of a model.

    Args:
        kind: `exact` (equal bit for bit), `close` (within `bound`), `changes` (meant to compute something else).
        bound: for `close`, the largest difference over the largest output magnitude.
    """

    kind: str
    bound: float = 0.0

    def __str__(self) -> str:
        return f"close({self.bound:g})" if self.kind == "close" else self.kind


EXACT = Meaning("exact")
CHANGES = Meaning("changes")


def close(bound: float) -> Meaning:
    """A meaning that allows rounding: differences up to `bound` times the largest output magnitude."""
    return Meaning("close", bound)


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """One small rewrite of a graph. The fields are its options.

    A pass is idempotent, keeps no state, and counts what it changed exactly. Its docstring has an imperative
    summary (at most 72 characters), before → after, and what it leaves alone.
    """

    title: ClassVar[str]
    """The name in pipeline text: `fold-batchnorm` for the class `FoldBatchNorm`."""
    meaning: ClassVar[Meaning] = EXACT
    drops_outputs: ClassVar[bool] = False
    """Whether outputs may go or come; a pass that is exact or close keeps all of them otherwise."""

    @abstractmethod
    def rewrite(self, model: ir.Model) -> int:
        """Change `model` in place and return the number of places changed."""

    def remembered(self) -> Pass:
        """The pass as the model's metadata tell of it: without what is the machine's alone."""
        return self

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, self.rewrite(model) > 0)

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]


def explain(node: ir.Node, reason: str) -> None:
    """Say why a pass changed or left `node`; `--explain` shows it."""
    _LOG.info("%s '%s': %s", node.op_type, node.name, reason)
