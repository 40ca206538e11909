"""Operators that move values without computing, and take their channels along."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pqc.channels.atoms import Axes, Axis, Channels


def transpose(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Axes in another order."""
    axes = found.of(node.inputs[0])
    if axes is None:
        return None
    order = node.attributes.get_ints("perm", [])
    return [[axes[place] for place in order] if order else axes[::-1]]


def concat(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Channels one after another; along the other axes they meet."""
    inputs = [found.of(value) for value in node.inputs]
    known = [axes for axes in inputs if axes is not None]
    if len(known) < len(inputs):
        return None
    joined = node.attributes["axis"].as_int() % len(known[0])
    places = enumerate(zip(*known, strict=True))
    return [[_beside(found, axes) if place == joined else _along(found, axes) for place, axes in places]]


def _beside(found: Channels, axes: Sequence[Axis | None]) -> Axis | None:
    whole = [axis for axis in axes if axis is not None]
    if len(whole) < len(axes):
        found.pin(whole)
        return None
    return Axis(np.concatenate([axis.atoms for axis in whole]), np.concatenate([axis.level for axis in whole]))


def _along(found: Channels, axes: Sequence[Axis | None]) -> Axis | None:
    whole = [axis for axis in axes if axis is not None]
    if len(whole) < len(axes):
        found.pin(whole)
        return None
    found.tie(*(axis.atoms for axis in whole))
    return whole[0].where(np.all([axis.level == whole[0].level for axis in whole], axis=0))


def split(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Runs of channels, a run an output."""
    axes = found.of(node.inputs[0])
    if axes is None:
        return None
    place = node.attributes.get_int("axis", 0) % len(axes)
    lengths = [dims[place] if (dims := found.dims(output)) else None for output in node.outputs]
    axis, sizes = axes[place], [length for length in lengths if length is not None]
    if axis is None or len(sizes) < len(lengths):
        return None
    ends = np.cumsum(sizes)
    parts = [axis.take(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    return [[*axes[:place], part, *axes[place + 1 :]] for part in parts]


def slice_(found: Channels, node: ir.Node) -> list[Axes] | None:
    """One run of channels; of a slice with steps all stay."""
    axes, parts = found.of(node.inputs[0]), slices(found, node)
    if axes is None or parts is None:
        return None
    result = list(axes)
    for place, part in parts.items():
        axis = axes[place]
        if axis is not None and part.step != 1:
            found.pin([axis])
            axis = found.stay(len(axis))
        result[place] = None if axis is None else axis.take(part)
    return [result]


def slices(found: Channels, node: ir.Node) -> dict[int, slice] | None:
    """What a Slice takes of each axis, in positions from 0; None where that is computed."""
    axes, given = found.of(node.inputs[0]), node.inputs[1:]
    numbers = [found.numbers(value) for value in given]
    if axes is None or any(read is None and value is not None for read, value in zip(numbers, given, strict=True)):
        return None
    starts, ends, places, steps = [*numbers, None, None][:4]
    assert starts is not None and ends is not None
    places = [place % len(axes) for place in places or range(len(starts))]
    result = {}
    for place, start, end, step in zip(places, starts, ends, steps or [1] * len(starts), strict=True):
        low, high, step = slice(start, end, step).indices(len(axes[place] or ()))
        result[place] = slice(low, None if high < 0 else max(low, high) if step > 0 else high, step)
    return result


def squeeze(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Without the named axes of one position."""
    axes, named = found.of(node.inputs[0]), places(found, node)
    if axes is None or named is None:
        return None
    gone = {place % len(axes) for place in named}
    return [[axis for place, axis in enumerate(axes) if place not in gone]]


def unsqueeze(found: Channels, node: ir.Node) -> list[Axes] | None:
    """With axes of one position more."""
    axes, named = found.of(node.inputs[0]), places(found, node)
    if axes is None or named is None:
        return None
    rank = len(axes) + len(named)
    rest, new = iter(axes), {place % rank for place in named}
    return [[found.stay(1) if place in new else next(rest) for place in range(rank)]]


def places(found: Channels, node: ir.Node) -> list[int] | None:
    """The axes that a node names, as an attribute or as its second input; None where it names none."""
    given = node.attributes.get("axes")
    if given is not None:
        return list(given.as_ints())
    return found.numbers(node.inputs[1]) if len(node.inputs) > 1 else None


def flatten(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Two axes of all: each channel has as many neighbouring positions as it had elements."""
    axes = found.of(node.inputs[0])
    if axes is None:
        return None
    place = node.attributes.get_int("axis", 1)
    place = place + len(axes) if place < 0 else place
    return _regrouped(found, axes, [_volume(axes[:place]), _volume(axes[place:])])


def reshape(found: Channels, node: ir.Node) -> list[Axes] | None:
    """Constant sizes, with 0 for an axis's own and -1 for the rest."""
    axes, target = found.of(node.inputs[0]), found.numbers(node.inputs[1])
    if axes is None or target is None or node.attributes.get_int("allowzero", 0) != 0:
        return None
    dims = [_volume(axes[place : place + 1]) if size == 0 else size for place, size in enumerate(target)]
    if -1 in dims:
        dims[dims.index(-1)] = _missing(axes, dims)
    return _regrouped(found, axes, dims)


def _volume(axes: Sequence[Axis | None]) -> int | None:
    lengths = [len(axis) for axis in axes if axis is not None]
    return math.prod(lengths) if len(lengths) == len(axes) else None


def _missing(axes: Axes, dims: Sequence[int | None]) -> int | None:
    """The size that -1 stands for, None if it is an unknown one."""
    given = [size for size in dims if size is not None and size != -1]
    if sum(axis is None for axis in axes) != sum(size is None for size in dims):
        return None
    return math.prod(len(axis) for axis in axes if axis is not None) // max(math.prod(given), 1)


def _regrouped(found: Channels, axes: Axes, dims: Sequence[int | None]) -> list[Axes] | None:
    """Read `axes` in the sizes `dims`, row by row; at most one size is unknown, and it must be the same axis."""
    unknown = [place for place, axis in enumerate(axes) if axis is None] or [len(axes)]
    missing = [place for place, size in enumerate(dims) if size is None] or [len(dims)]
    if (unknown[0] < len(axes)) != (missing[0] < len(dims)):
        return None
    before, after = axes[: unknown[0]], axes[unknown[0] + 1 :]
    first = _blocks(found, before, dims[: missing[0]])
    last = _blocks(found, after, dims[missing[0] + 1 :])
    if first is None or last is None:
        return None
    return [[*first, *axes[unknown[0] : unknown[0] + 1], *last]]


def _blocks(found: Channels, axes: Axes, dims: Sequence[int | None]) -> list[Axis] | None:
    """Merge and split the smallest runs of axes and sizes whose volumes agree."""
    known, sizes = [axis for axis in axes if axis is not None], [size for size in dims if size]
    volume = math.prod(map(len, known))
    if len(known) < len(axes) or len(sizes) < len(dims) or volume != math.prod(sizes) or not volume:
        return None
    result: list[Axis] = []
    i = j = 0
    while i < len(known) or j < len(sizes):
        first, last = i, j
        i, j = min(i + 1, len(known)), min(j + 1, len(sizes))
        while (left := math.prod(map(len, known[first:i]))) != (right := math.prod(sizes[last:j])):
            i, j = (i + 1, j) if left < right else (i, j + 1)
        result += _cut(found, _merged(found, known[first:i]), sizes[last:j])
    return result


def _merged(found: Channels, axes: Sequence[Axis]) -> Axis:
    """One axis of several; of two with channels only the first one's can go."""
    lengths = [len(axis) for axis in axes]
    lead = next((place for place, axis in enumerate(axes) if axis.atoms.any()), None)
    if lead is None:
        return found.stay(math.prod(lengths))
    found.pin([axis for place, axis in enumerate(axes) if place != lead])
    shape = [length if place == lead else 1 for place, length in enumerate(lengths)]
    parts = (axes[lead].atoms, axes[lead].level)
    return Axis(*(np.broadcast_to(part.reshape(shape), lengths).reshape(-1) for part in parts))


def _cut(found: Channels, axis: Axis, dims: Sequence[int]) -> list[Axis]:
    """Several axes of one: channels lie along the one that they vary along, or else along the first."""
    wide = [place for place, size in enumerate(dims) if size > 1]
    if len(wide) < 2:
        return [axis if size > 1 else found.stay(1) for size in dims]
    atoms, level = axis.atoms.reshape(dims), axis.level.reshape(dims)
    lead = next((place for place in wide if (atoms == _first(atoms, place)).all()), wide[0])
    found.tie(atoms, _first(atoms, lead))
    same = np.moveaxis(level == _first(level, lead), lead, 0).reshape(dims[lead], -1).all(axis=1)
    own = Axis(_first(atoms, lead).reshape(-1), _first(level, lead).reshape(-1)).where(same)
    return [own if place == lead else found.stay(size) for place, size in enumerate(dims)]


def _first(array: np.ndarray, lead: int) -> np.ndarray:
    """The first slice along all axes but `lead`."""
    return array[tuple(slice(None) if place == lead else slice(1) for place in range(array.ndim))]
