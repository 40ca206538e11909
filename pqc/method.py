"""The protocol of a pruning method: all that the passes and the trainer know about one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pqc.functions.operator import Operator

Array = np.ndarray
Curve = str
"""A closed form in epochs, as text: `exp(1, 200)`."""
Attribute = float | int | str


def constant(value: float) -> Curve:
    """The shortest text of a number that reads back as the same one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


@dataclass(frozen=True)
class State:
    """A tensor that a method keeps beside each weight.

    Args:
        name: its name in the method's functions; `<weight>.<name>` in the graph.
        initial: the starting value, float32, from a weight in the layout that the method sees.
        trained: whether the optimizer moves it.
        per: what `initial` takes: the `weight`, or zeros for the channels of its layer's `input`, which are more than
            the weight's second axis counts where a convolution has groups.
    """

    name: str
    initial: Callable[[Array], Array]
    trained: bool = True
    per: Literal["weight", "input"] = "weight"


@dataclass(frozen=True)
class Call:
    """One of a method's functions, what it reads, and the states it sets.

    Args:
        operator: the function.
        reads: its inputs in order: `weight`, names of states and of controls, `mask` (what the mask function gave,
            unless a state has that name), and in `Method.update` also `input` and `output`: what enters and leaves
            the weight's layers in this step, float32 [rows, channels], rows being samples times positions.
        sets: the states that its outputs become, "" for an output that is no state; empty where the output is a mask,
            a score or a penalty.
    """

    operator: Operator
    reads: tuple[str, ...]
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How many units of every layer a method that ranks prunes.

    Args:
        sparsity: the share to prune in the end, 0 to 1.
        scope: `global` ranks all layers' units together, `layer` gives every layer the same share.
        when: allocated once when `training` begins; before every `epoch`, as far as the control `ramp` is then; or at
            the `end` of training.
    """

    sparsity: float
    scope: Literal["global", "layer"] = "global"
    when: Literal["training", "epoch", "end"] = "training"


PRUNE = "prune"
"""The state that holds how many units of a layer go, where a method has a budget."""
RAMP = "ramp"
"""The control that says which share of the budget holds by now."""


@dataclass(frozen=True)
class Method:
    """A way to find a mask. The fields are its options.

    A weight is seen with its outputs first: [outputs, inputs, kernel…]; where `elementwise` holds, as it is stored.
    Functions take their attributes from `attributes()`.
    """

    title: ClassVar[str]
    operators: ClassVar[tuple[Operator, ...]]
    """Every function of the method, whatever its options."""
    strength: ClassVar[str | None] = None
    """The control that a sparsity target steers, where thresholds are learned; its curve gives the scale."""

    def mask(self) -> Call:
        """The mask while it is learned; it takes every state and control, so that they stay with it in the graph."""
        raise NotImplementedError

    def score(self) -> Call:
        """How much each unit matters: the hard mask keeps what is above zero, rankings the largest."""
        raise NotImplementedError

    def hard_mask(self) -> Call | None:
        """The mask of zeros and ones that fine-tuning and the exported model use; None: where the score is above 0."""
        return None

    def hard_weight(self) -> Call | None:
        """The weight that goes with the hard mask, or None where it stays."""
        return None

    def penalty(self) -> Call | None:
        """A scalar added to the loss for each mask."""
        return None

    def update(self) -> Call | None:
        """New states after each step; a trained state is what the optimizer starts from."""
        return None

    def begin_of_training(self) -> Call | None:
        """New states before the first epoch of training."""
        return None

    def begin_of_epoch(self) -> Call | None:
        """New states before each epoch of training."""
        return None

    def end_of_epoch(self) -> Call | None:
        """New states after each epoch of training."""
        return None

    def end_of_round(self) -> Call | None:
        """New states when a round ends and another follows."""
        return None

    def budget(self) -> Budget | None:
        """How much to prune by rank, kept in the state `prune`; None where thresholds are learned."""
        return None

    def aim(self, sparsity: float) -> Method:
        """The method with its options set to a sparsity target."""
        return self

    @property
    def elementwise(self) -> bool:
        """Whether the mask treats every weight by itself, and the penalty is a sum over the weights."""
        return False

    @property
    def cuts_outputs(self) -> bool:
        """Whether whole outputs of a layer go; the model's last layers are left alone then."""
        return False

    def needed_epochs(self, steps: int) -> int:
        """How many epochs of `steps` steps pass until the mask is found."""
        return 1

    def states(self) -> tuple[State, ...]:
        """The tensors kept beside each weight."""
        return ()

    def controls(self) -> dict[str, Curve]:
        """The scalars that a schedule anneals over the epochs of a round, with their default curves."""
        return {}

    def attributes(self) -> dict[str, Attribute]:
        """Attributes of the method's nodes."""
        return {}

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse a weight of the given shape, outputs first.

        Raises:
            ValueError: the method cannot prune it.
        """

    def calls(self) -> list[Call]:
        """Every function in use with the options as they are."""
        found = [self.mask(), self.score(), self.hard_mask(), self.hard_weight(), self.penalty(), self.update()]
        found += [self.begin_of_training(), self.begin_of_epoch(), self.end_of_epoch(), self.end_of_round()]
        return [call for call in found if call is not None]
