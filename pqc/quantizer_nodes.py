"""Quantizer nodes for a graph: QONNX's Quant where it says what is wanted, pqc's FixedQuant where not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pqc import batch_norm, calibration, graph, layers, scales
from pqc.calibration import Calibration, Kind
from pqc.errors import PassError, UnsupportedError
from pqc.functions.fixed_quant import FIXED_QUANT, NEEDED_BITS, ROUNDINGS
from pqc.functions.quant import ROUNDING_MODES
from pqc.functions.scale import SCALES
from pqc.quantizer import PER_CHANNEL, PER_GROUP, PER_TENSOR, Quantizer
from pqc.quantizer_sites import GROUPED, LEARNS, STOCHASTIC, BitsSite


class QuantizerWriter:
    """Adds quantizers with names that follow from what they round.

    Args:
        main: the graph.
        rounding: what holds for quantizers that do not say theirs.
    """

    def __init__(self, main: ir.Graph, rounding: str) -> None:
        self.main = main
        self.rounding = rounding
        self.names = graph.Names(main)

    def quantize(self, value: ir.Value, kind: Quantizer, layer: layers.Layer | None) -> None:
        """Round `value` for all its readers.

        Args:
            value: a parameter or an activation.
            kind: how to round it.
            layer: the layer whose parameter it is, or None for an activation.

        Raises:
            UnsupportedError: the tensor's shape does not allow the granularity.
            PassError: the rounding has no name in ap_fixed or QONNX, and the quantizer needs one.
        """
        kind = kind if kind.rounding is not None else kind.changed({"rounding": self.rounding})
        name = self.names.new(f"{value.name}.quant")
        if kind.learns_scale and not kind.said_by_qonnx:
            hint = f"roundings: {', '.join(ROUNDING_MODES)}"
            raise PassError(f"no scale is learned under {kind.rounding}", at=f"tensor '{value.name}'", hint=hint)
        node = self._quant(value, kind, layer, name) if kind.said_by_qonnx else self._fixed(value, kind, layer, name)
        if kind.granularity == PER_GROUP:
            node.metadata_props[GROUPED] = str(kind.size)
        if kind.stochastic and not kind.bits.binary:
            node.metadata_props[STOCHASTIC] = "1"
        readers = [use for use in value.uses() if use[0] is not node]
        for reader, index in readers:
            reader.replace_input_with(index, node.outputs[0])
        self._place(value, node)
        if kind.learns_scale:
            self._train_scale(value, kind, layer, node)
        if value.is_graph_output() and not readers:
            self._become_output(value, node)

    def _quant(self, value: ir.Value, kind: Quantizer, layer: layers.Layer | None, name: str) -> ir.Node:
        i, f = (np.float32(kind.bits.i), np.float32(kind.bits.f))
        if kind.granularity != PER_TENSOR:
            i, f = initial_bits(value, kind, layer)
        parts = {
            "scale": np.ldexp(np.float32(1), -f.astype(int)),
            "zeropt": np.float32(0),
            "bitwidth": kind.bits.k + i + f,
        }
        narrow = int(kind.overflow == "SAT_SYM" and kind.bits.k)
        attributes = {"signed": kind.bits.k, "narrow": narrow, "rounding_mode": kind.qonnx_rounding}
        return self._node(value, name, (graph.QONNX, "Quant"), parts, attributes)

    def _fixed(self, value: ir.Value, kind: Quantizer, layer: layers.Layer | None, name: str) -> ir.Node:
        parts = dict(zip(("integer_bits", "fractional_bits"), initial_bits(value, kind, layer), strict=True))
        attributes = {"signed": kind.bits.k, "rounding": _ap_rounding(kind, value), "overflow": kind.overflow}
        node = self._node(value, name, FIXED_QUANT.key, parts, attributes)
        if kind.learns:
            node.metadata_props[LEARNS] = kind.learns
        return node

    def _train_scale(self, value: ir.Value, kind: Quantizer, layer: layers.Layer | None, node: ir.Node) -> None:
        """Let a node compute the scale of a Quant from a tensor that is trained."""
        site = scales.ScaleSite(node, self._scale_node(value, kind, layer, node))
        self.main.insert_before(node, site.scale)
        node.replace_input_with(1, site.scale.outputs[0])
        shape = parameter_shape(value, kind, layer)
        graph.set_initializer(site.trained, site.start(np.full(shape, kind.bits.scale)))

    def _scale_node(self, value: ir.Value, kind: Quantizer, layer: layers.Layer | None, node: ir.Node) -> ir.Node:
        assert kind.learns is not None and value.shape is not None
        trained, shape = graph.operand(node, 1), parameter_shape(value, kind, layer)
        counted = list(value.shape)[0 if layer is not None else 1 :]
        elements = math.prod(length for length in counted if isinstance(length, int))
        attributes = {"share": scales.share(elements, math.prod(shape), kind.bits.i + kind.bits.f)}
        domain, operator = SCALES[kind.learns].key
        name = self.names.new(f"{trained.name}.learned")
        output = ir.val(self.names.new(f"{name}.out"), ir.DataType.FLOAT, shape)
        return ir.node(operator, [trained], attributes, domain=domain, name=name, outputs=[output])

    def _node(
        self,
        value: ir.Value,
        name: str,
        key: tuple[str, str],
        parts: Mapping[str, np.ndarray | np.float32],
        attributes: Mapping[str, object],
    ) -> ir.Node:
        constants = [
            graph.add_initializer(self.main, self.names.new(f"{name}.{part}"), np.asarray(number))
            for part, number in parts.items()
        ]
        output = ir.val(self.names.new(f"{value.name}.quantized"), value.dtype, value.shape)
        return ir.node(key[1], [value, *constants], attributes, domain=key[0], name=name, outputs=[output])

    def _place(self, value: ir.Value, node: ir.Node) -> None:
        producer = value.producer()
        if producer is not None:
            self.main.insert_after(producer, node)
        else:
            self.main.insert_before(self.main.node(0), node)

    def _become_output(self, value: ir.Value, node: ir.Node) -> None:
        """Let the rounded value leave the graph under the output's own name."""
        index = next(i for i, output in enumerate(self.main.outputs) if output is value)
        self.main.outputs[index] = node.outputs[0]
        value.name, node.outputs[0].name = node.outputs[0].name, value.name


def needed_bits(main: ir.Graph, names: graph.Names, site: BitsSite, decay: float) -> ir.Value:
    """The integer bits that a quantizer needs for what it rounds, or `decay` less than it has if that is more."""
    attributes = {
        "decay": decay,
        "signed": site.node.attributes.get_int("signed", 1),
        "overflow": site.node.attributes.get_string("overflow", "SAT"),
    }
    output = ir.val(names.new(f"{site.i.name}.needed"), ir.DataType.FLOAT, site.i.shape)
    domain, operator = NEEDED_BITS.key
    name = names.new(f"{site.i.name}.follow")
    main.append(ir.node(operator, [site.x, site.i, site.f], attributes, domain=domain, name=name, outputs=[output]))
    return output


def _ap_rounding(kind: Quantizer, value: ir.Value) -> str:
    try:
        return kind.ap_rounding
    except ValueError as error:
        raise PassError(str(error), at=f"tensor '{value.name}'", hint=f"roundings: {', '.join(ROUNDINGS)}") from error


def initial_bits(value: ir.Value, kind: Quantizer, layer: layers.Layer | None) -> tuple[np.ndarray, np.ndarray]:
    """Integer and fractional bits of a quantizer, float32 of the rank of `value`: one number where they are shared.

    A group gets as many bits as the type has, with the integer bits that round its weights with the least squared
    error; a group of zeros has the type itself.

    Raises:
        UnsupportedError: as `parameter_shape`.
    """
    shape = parameter_shape(value, kind, layer)
    if kind.granularity != PER_GROUP:
        return np.full(shape, kind.bits.i, np.float32), np.full(shape, kind.bits.f, np.float32)
    assert layer is not None
    magnitude, signed = kind.bits.i + kind.bits.f, bool(kind.bits.k)
    moved = np.moveaxis(batch_norm.stored(value), input_axis(layer), 0)
    groups = np.reshape(moved if signed else np.maximum(moved, 0), (-1, kind.size, moved[0].size))
    lanes = groups.transpose(0, 2, 1).reshape(-1, kind.size).astype(np.float64)
    given = Kind(np.full(len(lanes), magnitude), signed, kind.plain_rounding, kind.overflow)
    found = calibration.integer_bits(lanes, given, Calibration("mse"))
    chosen = np.where(lanes.any(axis=1), found, kind.bits.i).reshape(len(groups), -1)
    i = np.repeat(chosen.astype(np.float32), kind.size, axis=0).reshape(moved.shape)
    i = np.ascontiguousarray(np.moveaxis(i, 0, input_axis(layer)))
    return i, magnitude - i


def input_axis(layer: layers.Layer) -> int:
    """The axis of the weight that counts inputs."""
    rank = len(graph.dims(layer.weight))
    last = 2 * rank - 3 if layer.node.op_type in ("MatMul", "Gemm") else 1
    return last - layer.output_axis % rank


def parameter_shape(value: ir.Value, kind: Quantizer, layer: layers.Layer | None) -> tuple[int, ...]:
    """The shape of a quantizer's bits, of the rank of `value`: one where they are shared.

    Raises:
        UnsupportedError: a shape that is not known, or a granularity that does not go with the tensor.
    """
    place = f"tensor '{value.name}'"
    if value.shape is None:
        raise UnsupportedError("its rank is not known", at=place, hint="export with shapes")
    rank = len(value.shape)
    if kind.granularity == PER_TENSOR:
        return (1,) * rank
    if kind.granularity == PER_CHANNEL:
        axis = _channel_axis(value, kind, layer, rank)
        return tuple(_length(value, axis) if place == axis else 1 for place in range(rank))
    if kind.granularity == PER_GROUP:
        if layer is None or layers.source(value) is not layer.weight:
            raise UnsupportedError("groups are for weights", at=place, hint="use per_channel or per_element")
        inputs = _length(value, input_axis(layer))
        if inputs % kind.size:
            raise UnsupportedError(
                f"groups of {kind.size} do not divide its {inputs} inputs", at=place, hint="use a size that does"
            )
        return graph.dims(value)
    first = () if layer is not None else (1,)
    return (*first, *(_length(value, axis) for axis in range(len(first), rank)))


def _channel_axis(value: ir.Value, kind: Quantizer, layer: layers.Layer | None, rank: int) -> int:
    place = f"tensor '{value.name}'"
    if kind.axis is None:
        return (
            (layer.output_axis % rank if layers.source(value) is layer.weight else 0)
            if layer is not None
            else min(1, rank - 1)
        )
    if not -rank <= kind.axis < rank:
        raise UnsupportedError(f"it has no axis {kind.axis}", at=place, hint=f"axes are {-rank} to {rank - 1}")
    if layer is None and kind.axis % rank == 0:
        raise UnsupportedError("axis 0 of an activation counts rows", at=place, hint="use an axis from 1 on")
    return kind.axis % rank


def _length(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    length = value.shape[axis]
    if not isinstance(length, int):
        raise UnsupportedError(f"the length of axis {axis} is not a number", at=f"tensor '{value.name}'")
    return length
