"""LSTM, GRU and RNN as their steps in time: layers that share their weights, and functions of one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pqc import graph
from pqc.errors import UnsupportedError
from pqc.writer import Writer

FUNCTIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
KNOWN = frozenset({"Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"})
PEEPHOLES, SEQUENCE_LENGTHS = 7, 4
State = tuple[ir.Value | None, ir.Value | None]
"""The hidden state and the cell; None is zero."""


@dataclass(frozen=True)
class Cell:
    """One direction.

    Args:
        write: adds the nodes.
        title: of the direction.
        hidden: the size H.
        functions: the activations.
        weight: of what enters, [inputs, gates H].
        bias: what is added to that product, [gates H], or None.
        recurrent: of the hidden state, [H, gates H]; of a GRU its gates, and the candidate by itself.
        inner: what a GRU adds to the candidate's product before its reset (linear_before_reset), [H], or None.
        reset_last: whether a GRU resets after that product.
    """

    write: Writer
    title: str
    hidden: int
    functions: tuple[str, ...]
    weight: ir.Value
    bias: ir.Value | None
    recurrent: tuple[ir.Value, ...]
    inner: ir.Value | None
    reset_last: bool

    def add(self, operator: str, inputs: Sequence[ir.Value | None], title: str) -> ir.Value:
        """The result of a new node."""
        return self.write.add(operator, inputs, f"{self.title}.{title}")

    def entering(self, x: ir.Value) -> ir.Value:
        """x W + b, [N, gates H]."""
        product = self.add("MatMul", [x, self.weight], "input")
        return product if self.bias is None else self.add("Add", [product, self.bias], "biased")

    def split(self, value: ir.Value, count: int) -> list[ir.Value]:
        """`value` in `count` pieces of H columns."""
        write, name = self.write, self.write.names.new(f"{self.write.origin.name}.{self.title}.gates")
        outputs = [ir.val(write.names.new(f"{name}.out"), ir.DataType.FLOAT) for _ in range(count)]
        sizes = write.integers([self.hidden] * count, f"{self.title}.gates.sizes")
        write.main.insert_before(
            write.origin, ir.node("Split", [value, sizes], {"axis": -1}, name=name, outputs=outputs)
        )
        return outputs

    def part(self, value: ir.Value, index: int) -> ir.Value:
        """The piece `index` by itself: a Split with a piece that nobody reads has no right gradient."""
        bounds = [index * self.hidden, (index + 1) * self.hidden, -1]
        places = [self.write.integers([number], f"{self.title}.part") for number in bounds]
        return self.add("Slice", [value, *places], "gate")

    def summed(self, x: ir.Value, h: ir.Value | None, index: int = 0) -> ir.Value:
        """x + h R; h is zero in a first step."""
        return x if h is None else self.add("Add", [x, self.add("MatMul", [h, self.recurrent[index]], "state")], "sum")


def lower(main: ir.Graph, node: ir.Node) -> int:
    """Unroll over a fixed number of steps; every step reads the same weights.

    Weights are stored as [inputs, gates H], so that they are those of layers; both biases become one, but for that
    inside the reset of a GRU. Y, Y_h and Y_c are written where they are read.

    Raises:
        UnsupportedError: sequence lengths, peepholes, clipping, coupled gates, activations with parameters, computed
            or shared weights, or a number of steps that is not fixed.
    """
    _check(node)
    write, by_batch = Writer(main, node), node.attributes.get_int("layout", 0) == 1
    time = 1 if by_batch else 0
    steps = _steps(write, graph.operand(node, 0), time)
    count = graph.dims(graph.operand(node, 1))[0]
    names = ("forward", "backward") if count == 2 else (node.attributes.get_string("direction", "forward"),)
    sequences: list[ir.Value | None] = []
    last: list[State] = []
    for index, name in enumerate(names):
        cell, turned = _cell(write, node, index, str(name)), name in ("backward", "reverse")
        state: State = (_initial(write, node, 5, index, count), _initial(write, node, 6, index, count))
        found = []
        for x in reversed(steps) if turned else steps:
            state = STEPS[node.op_type](cell, cell.entering(x), *state)
            found.append(state[0])
        sequences.append(_sequence(write, node, found[::-1] if turned else found, time))
        last.append(state)
    axis = time + 1
    y = _joined(write, sequences, axis, "sequence")
    ends = [
        _joined(write, [one[part] if _read(node, part + 1) else None for one in last], time, title)
        for part, title in enumerate(("hidden", "cell"))
    ]
    write.replace(y, *ends)
    return 1


def _check(node: ir.Node) -> None:
    given = [index for index, value in enumerate(node.inputs) if value is not None]
    functions = node.attributes.get_strings("activations", ())
    reasons = {
        "a sequence_lens input": SEQUENCE_LENGTHS in given,
        "peepholes": node.op_type == "LSTM" and PEEPHOLES in given,
        "clip": "clip" in node.attributes,
        "input_forget": node.attributes.get_int("input_forget", 0) != 0,
        "activations with parameters": any(f"activation_{one}" in node.attributes for one in ("alpha", "beta")),
        f"activations {', '.join(map(str, functions))}": any(one not in KNOWN for one in functions),
        "weights that are computed or shared": any(
            not graph.operand(node, index).is_initializer() or len(graph.operand(node, index).uses()) > 1
            for index in (1, 2, 3)
            if index in given
        ),
    }
    reason = next((text for text, holds in reasons.items() if holds), None)
    if reason is not None:
        raise UnsupportedError(
            f"{node.op_type} with {reason} is not unrolled", at=f"node '{node.name}'", hint="export it without"
        )


def _steps(write: Writer, x: ir.Value, time: int) -> list[ir.Value]:
    """What enters at each step, [N, inputs]."""
    length = None if x.shape is None else x.shape[time]
    if not isinstance(length, int):
        node = write.origin
        raise UnsupportedError(
            f"{node.op_type} over a number of steps that is not fixed: {x.shape}",
            at=f"node '{node.name}'",
            hint="export the model with a fixed sequence length",
        )
    places = [write.integers([step], "step") for step in range(length + 1)]
    axis = write.integers([time], "time")
    pieces = [write.add("Slice", [x, *places[step : step + 2], axis], "slice") for step in range(length)]
    return [write.add("Squeeze", [piece, axis], "entering") for piece in pieces]


def _cell(write: Writer, node: ir.Node, index: int, title: str) -> Cell:
    weight, recurrent = (graph.constant(node.inputs[place])[index].T for place in (1, 2))  # type: ignore[index]
    hidden, width = len(recurrent), recurrent.shape[1]
    after = node.op_type == "GRU" and node.attributes.get_int("linear_before_reset", 0) != 0
    stored = graph.constant(node.inputs[3]) if len(node.inputs) > 3 else None
    bias = inner = None
    if stored is not None:
        first, second = stored[index][:width].copy(), stored[index][width:].copy()
        kept = width - hidden if after else width
        first[:kept] += second[:kept]
        bias = write.constant(first, f"{title}.input.bias")
        inner = write.constant(second[kept:], f"{title}.candidate.bias") if after else None
    parts = (recurrent[:, :-hidden], recurrent[:, -hidden:]) if node.op_type == "GRU" else (recurrent,)
    names = ("state", "candidate")
    matrices = tuple(
        write.constant(np.ascontiguousarray(part), f"{title}.{name}.weight")
        for name, part in zip(names, parts, strict=False)
    )
    count = len(FUNCTIONS[node.op_type])
    named = [str(one) for one in node.attributes.get_strings("activations", ())][index * count :][:count]
    functions = tuple(named) or FUNCTIONS[node.op_type]
    entering = write.constant(np.ascontiguousarray(weight), f"{title}.input.weight")
    return Cell(write, title, hidden, functions, entering, bias, matrices, inner, after)


def _initial(write: Writer, node: ir.Node, place: int, index: int, count: int) -> ir.Value | None:
    """The state that a direction starts from, [N, H]."""
    value = node.inputs[place] if len(node.inputs) > place else None
    if value is None:
        return None
    axis = node.attributes.get_int("layout", 0)
    if count > 1:
        bounds = [write.integers([one], "direction") for one in (index, index + 1, axis)]
        value = write.add("Slice", [value, *bounds], "direction")
    return write.add("Squeeze", [value, write.integers([axis], "direction.axis")], "initial")


def _lstm(cell: Cell, x: ir.Value, h: ir.Value | None, c: ir.Value | None) -> State:
    """c' = f c + i g, h' = o tanh(c'); the gates lie as i, o, f, g."""
    gate, candidate, end = cell.functions
    x = cell.summed(x, h)
    i, o, f, g = cell.split(x, 4) if c is not None else (cell.part(x, 0), cell.part(x, 1), None, cell.part(x, 3))
    fresh = cell.add("Mul", [cell.add(gate, [i], "in"), cell.add(candidate, [g], "new")], "fresh")
    if c is not None:
        fresh = cell.add("Add", [cell.add("Mul", [cell.add(gate, [f], "forget"), c], "kept"), fresh], "cell")
    return cell.add("Mul", [cell.add(gate, [o], "out"), cell.add(end, [fresh], "shown")], "hidden"), fresh


def _gru(cell: Cell, x: ir.Value, h: ir.Value | None, _: ir.Value | None) -> State:
    """h' = n + z (h - n), n = tanh(x + (r h) R), or tanh(x + r (h R + b)) where the reset comes last."""
    gate, candidate = cell.functions
    resets = h is not None or (cell.reset_last and cell.inner is not None)
    z, r, n = cell.split(x, 3) if resets else (cell.part(x, 0), None, cell.part(x, 2))
    if h is not None:
        state = cell.split(cell.add("MatMul", [h, cell.recurrent[0]], "state"), 2)
        z, r = (cell.add("Add", [one, other], "sum") for one, other in zip((z, r), state, strict=True))
    update = cell.add(gate, [z], "update")
    if r is not None:
        n = _with_reset(cell, n, h, cell.add(gate, [r], "reset"))
    n = cell.add(candidate, [n], "new")
    change = cell.add("Neg", [n], "change") if h is None else cell.add("Sub", [h, n], "change")
    return cell.add("Add", [n, cell.add("Mul", [update, change], "kept")], "hidden"), None


def _with_reset(cell: Cell, n: ir.Value, h: ir.Value | None, reset: ir.Value) -> ir.Value:
    """n + (r h) R, or n + r (h R + b); one of h and b is there."""
    if not cell.reset_last:
        return cell.summed(n, cell.add("Mul", [reset, h], "shown"), 1)
    product = cell.inner if h is None else cell.add("MatMul", [h, cell.recurrent[1]], "candidate")
    if h is not None and cell.inner is not None:
        product = cell.add("Add", [product, cell.inner], "candidate.biased")
    return cell.add("Add", [n, cell.add("Mul", [reset, product], "shown")], "sum")


def _rnn(cell: Cell, x: ir.Value, h: ir.Value | None, _: ir.Value | None) -> State:
    """h' = tanh(x + h R)"""
    return cell.add(cell.functions[0], [cell.summed(x, h)], "hidden"), None


STEPS: dict[str, Callable[[Cell, ir.Value, ir.Value | None, ir.Value | None], State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
}


def _read(node: ir.Node, index: int) -> bool:
    return index < len(node.outputs) and bool(node.outputs[index].uses() or node.outputs[index].is_graph_output())


def _sequence(write: Writer, node: ir.Node, states: list[ir.Value | None], time: int) -> ir.Value | None:
    """All hidden states along the axis of time, where they are read."""
    return _joined(write, states, time, "steps") if _read(node, 0) else None


def _joined(write: Writer, values: list[ir.Value | None], axis: int, title: str) -> ir.Value | None:
    """The values along a new axis; None where there are none."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    place = write.integers([axis], f"{title}.axis")
    wide = [write.add("Unsqueeze", [value, place], title) for value in found]
    return wide[0] if len(wide) == 1 else write.add("Concat", wide, f"{title}.joined", axis=axis)
