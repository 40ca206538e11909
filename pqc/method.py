"""The protocol of a pruning method: all that the passes and the trainer know about one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pqc.functions.operator import Operator

Array = np.ndarray
Curve = str
"""A closed form in epochs, as text: `exp(1, 200)`."""


@dataclass(frozen=True)
class State:
    """A tensor that a method keeps beside each weight.

    Args:
        name: its name in the method's functions; `<weight>.<name>` in the graph.
        initial: the starting value for a weight, float32.
        trained: whether the optimizer moves it.
    """

    name: str
    initial: Callable[[Array], Array]
    trained: bool = True


@dataclass(frozen=True)
class Method:
    """A way to find a mask. The fields are its options.

    The functions take, in the order that the tuple beside them gives, any of `weight`, the names of states and
    the names of controls. Their attributes are those of `attributes()` that they name.
    """

    title: ClassVar[str]
    mask: ClassVar[Operator]
    """The mask while it is learned."""
    mask_inputs: ClassVar[tuple[str, ...]]
    elementwise: ClassVar[bool] = False
    """Whether the mask treats every weight by itself, and the penalty is a sum over the weights."""
    hard_mask: ClassVar[Operator]
    """The mask of zeros and ones that fine-tuning and the exported model use."""
    hard_mask_inputs: ClassVar[tuple[str, ...]]
    penalty: ClassVar[Operator | None] = None
    """A scalar added to the loss for each mask; it takes the mask."""
    end_of_round: ClassVar[Operator | None] = None
    """New values of `end_of_round_states` when a round ends and another follows."""
    end_of_round_inputs: ClassVar[tuple[str, ...]] = ()
    end_of_round_states: ClassVar[tuple[str, ...]] = ()

    def states(self) -> tuple[State, ...]:
        """The tensors kept beside each weight."""
        return ()

    def controls(self) -> dict[str, Curve]:
        """The scalars that a schedule anneals over the epochs of a round, with their default curves."""
        return {}

    def attributes(self) -> dict[str, float]:
        """Attributes of the method's nodes."""
        return {}

    def penalizes(self) -> bool:
        """Whether the penalty is other than zero."""
        return self.penalty is not None

    @classmethod
    def operators(cls) -> list[Operator]:
        """Every function of the method."""
        candidates = (cls.mask, cls.hard_mask, cls.penalty, cls.end_of_round)
        return [operator for operator in candidates if operator is not None]
