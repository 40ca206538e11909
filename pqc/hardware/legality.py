"""The table of what hls4ml 1.3.0 rejects or, worse, accepts and computes wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from pqc import graph, scales, unary
from pqc.errors import UnsupportedError
from pqc.hardware import rules
from pqc.hardware.ranges import input_shape
from pqc.hardware.rules import JOINS, POOLS
from pqc.hardware.tables import REACH
from pqc.layers import is_fixed_quant, is_quant
from pqc.quantizer_sites import sites

HINTS = {
    **dict.fromkeys(
        unary.ACTIVATIONS | unary.PARTS,
        "put one quantizer before it, of at most 14 bits, and one right behind it (insert-quant does): "
        "it becomes a table",
    ),
    "Gemm": "run the pass lower-gemm",
    "Softmax": "end the network at its logits: run the pass strip-softmax before insert-quant",
    "LogSoftmax": "end the network at its logits: run the pass strip-softmax before insert-quant",
    "BatchNormalization": "run the passes fold-batchnorm and legalize before training",
    "GlobalAveragePool": "run the pass lower-pool",
    "GlobalMaxPool": "run the pass lower-pool",
    "Reshape": "run the pass lower-reshape; only flattening is supported",
    "Div": "multiply by the reciprocal",
    "IntQuant": "name the operator Quant; hls4ml loses the type otherwise",
    "ReduceMax": "leave out a softmax inside the network (the largest score is the largest probability), "
    "or keep it and what follows out of the firmware",
    "ReduceMean": "use batch normalization, which folds into the weights, in place of layer normalization",
    "Resize": "hls4ml resizes along the wrong axes",
}


@dataclass(frozen=True)
class Rule:
    """One thing that must not be handed to hls4ml.

    Args:
        name: what tests and documentation call it.
        reason: what hls4ml would do.
        hint: what to do about it.
        applies: the nodes that it looks at.
        broken: says what it found at a node, or None.
    """

    name: str
    reason: str
    hint: str
    applies: Callable[[ir.Node], bool]
    broken: Callable[[ir.Node], str | None]


def check(model: ir.Model, io_type: str = "io_parallel") -> None:
    """Refuse a graph that hls4ml would reject or compute wrongly.

    Raises:
        UnsupportedError: names the first such node, what is wrong with it, and how many more there are.
    """
    found = list(problems(model, io_type))
    if not found:
        return
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    raise UnsupportedError(found[0].message + more, at=found[0].at, hint=found[0].hint)


def check_learned(main: ir.Graph, io_type: str = "io_parallel") -> None:
    """Refuse what training is going to make of quantizers and hls4ml cannot say: scales, activations of many types.

    Raises:
        UnsupportedError: names the first.
    """
    for step in scales.sites(main):
        if not step.power_of_two:
            rule = next(rule for rule in RULES if rule.name == "quant-scale")
            place = f"{step.node.op_type} '{step.node.name}'"
            raise UnsupportedError(f"any scale is learned: {rule.reason}", at=place, hint=rule.hint)
    for site in sites(main):
        many = max((math.prod(graph.dims(bits)) for bits in (site.i, site.f)), default=1) > 1
        if not site.learns or site.of_parameter or not many:
            continue
        source = site.x.producer()
        broken = [rule for rule in STREAM_RULES if rule.name == "stream-types" and io_type == "io_stream"]
        if source is not None and source.op_type in REACH:
            broken += [rule for rule in RULES if rule.name == "table-types"]
        for rule in broken:
            place = f"{site.node.op_type} '{site.node.name}'"
            raise UnsupportedError(f"many types are learned: {rule.reason}", at=place, hint=rule.hint)


def unknown_operators(main: ir.Graph) -> list[str]:
    """The operators that hls4ml has no exact form of, in the order of the graph."""
    rule = next(rule for rule in RULES if rule.name == "operator")
    return list(dict.fromkeys(node.op_type for node in main if rule.applies(node) and rule.broken(node) is not None))


def problems(model: ir.Model, io_type: str = "io_parallel") -> Iterator[UnsupportedError]:
    """Everything that speaks against handing `model` to hls4ml: the graph's own problems, then one a node."""
    yield from _input_problems(model.graph)
    table = RULES + (STREAM_RULES if io_type == "io_stream" else ())
    for node in model.graph:
        for rule in table:
            found = rule.broken(node) if rule.applies(node) else None
            if found is not None:
                hint = HINTS.get(node.op_type, rule.hint) if rule.name == "operator" else rule.hint
                yield UnsupportedError(f"{found}: {rule.reason}", at=f"{node.op_type} '{node.name}'", hint=hint)
                break


def _input_problems(main: ir.Graph) -> Iterator[UnsupportedError]:
    if len(main.inputs) != 1:
        names = ", ".join(value.name or "" for value in main.inputs)
        yield UnsupportedError(f"{len(main.inputs)} inputs ({names}): only one is supported", hint="join them outside")
        return
    source = main.inputs[0]
    users = [use.node for use in source.uses()]
    try:
        input_shape(source)
    except UnsupportedError as error:
        yield error
    if len(users) != 1 or not is_quant(users[0]) or source.is_graph_output():
        yield UnsupportedError(
            "the input is not rounded by one Quant for all: hls4ml would cut raw inputs off to its default type",
            at=f"input '{source.name}'",
            hint="put one Quant right behind it (insert-quant does)",
        )


def _on(*kinds: str) -> Callable[[ir.Node], bool]:
    return lambda node: node.op_type in kinds and not node.domain


def _any(node: ir.Node) -> bool:
    return True


# The first rule that a node breaks is the one reported, so rules that others rely on come first.
RULES: tuple[Rule, ...] = (
    Rule(
        "operator", "hls4ml has no exact form of it", "keep it out of the network, or rewrite it", _any, rules.unknown
    ),
    Rule("quant-computed", "hls4ml needs constants", "fold constants first", is_quant, rules.computed_parameter),
    Rule(
        "quant-scale",
        "hls4ml multiplies by it in its default type and is off by an LSB",
        "train with powers of two; learn them with `learns: power_of_two_scale`",
        is_quant,
        rules.scale,
    ),
    Rule(
        "quant-scales",
        "hls4ml takes one scale a weight or bias, and fails or is off by an LSB otherwise",
        "run the pass lower-scales",
        is_quant,
        rules.shape_of(1, "scales"),
    ),
    Rule(
        "quant-zero-point",
        "hls4ml adds it in its default type and is off by LSBs",
        "use symmetric types",
        is_quant,
        rules.zero_point,
    ),
    Rule(
        "quant-widths",
        "hls4ml takes one width a weight or bias",
        "run the pass lower-scales",
        is_quant,
        rules.shape_of(3, "bit widths"),
    ),
    Rule(
        "quant-fraction",
        "hls4ml rounds them up and the network does not",
        "round the bit width",
        is_quant,
        rules.fractional_bits,
    ),
    Rule(
        "quant-bits",
        "hls4ml has 0 and -1 where QONNX has +1 and -1",
        "use 2 bits, with narrow=1 for -1, 0 and 1",
        is_quant,
        rules.few_bits,
    ),
    Rule("quant-rounding", "ap_fixed has no such rounding", "train with ROUND or FLOOR", is_quant, rules.rounding),
    Rule(
        "quant-overflow",
        "ap_fixed folds back otherwise than pqc",
        "use SAT, SAT_SYM or WRAP for activations",
        is_quant,
        rules.overflow,
    ),
    Rule("quant-batch", "hls4ml has one type for all samples", "let them start with 1", is_quant, rules.along_batch),
    Rule(
        "quant-parameter", "hls4ml wants it on its grid", "run the pass lower-bits", is_fixed_quant, rules.not_lowered
    ),
    Rule("quant-narrow", "hls4ml has no such type", "set narrow to 0", is_quant, rules.narrow),
    Rule("on-grid", "hls4ml may take the unrounded values", "run the pass fold-quant", is_quant, rules.off_grid),
    Rule(
        "same-tensor",
        "hls4ml cannot tell its inputs apart",
        "multiply by 2 in the weights instead",
        _any,
        rules.twice,
    ),
    Rule(
        "constant-data",
        "hls4ml makes a layer of the other input only",
        "put the weight second",
        _on("MatMul", "Conv"),
        rules.data_constant,
    ),
    Rule(
        "constant-weight",
        "hls4ml computes a product of two activations wrongly",
        "use constant weights",
        _on("MatMul", "Conv", "PRelu"),
        rules.weight_not_constant,
    ),
    Rule(
        "missing-quant",
        "hls4ml would cut it off to its default type",
        "put a Quant behind it (insert-quant does)",
        _on("MatMul", "Conv", "PRelu", *JOINS),
        rules.bare_constant,
    ),
    Rule(
        "matmul-rank", "hls4ml computes it wrongly", "use a Conv with a kernel of 1", _on("MatMul"), rules.matmul_rank
    ),
    Rule("conv-rank", "hls4ml has one or two", "use Conv of one or two dimensions", _on("Conv"), rules.conv_rank),
    Rule(
        "auto-pad",
        "hls4ml ignores it",
        "run the pass legalize, which writes pads",
        _on("Conv", *POOLS),
        rules.auto_pad,
    ),
    Rule(
        "conv-attributes",
        "hls4ml stops at it",
        "run the pass lower-conv",
        _on("Conv"),
        rules.missing("kernel_shape", "strides", "pads", "dilations", "group"),
    ),
    Rule("conv-groups", "hls4ml aborts", "run the pass lower-conv, which fills in zeros", _on("Conv"), rules.grouped),
    Rule(
        "dilation",
        "hls4ml gets the output's size wrong",
        "run the pass lower-conv, which fills in zeros",
        _on("Conv", *POOLS),
        rules.dilation,
    ),
    Rule(
        "pool-rank",
        "hls4ml pools two dimensions only",
        "lift the network to two dimensions with a height of 1",
        _on(*POOLS),
        rules.pool_rank,
    ),
    Rule(
        "pool-attributes",
        "hls4ml stops at it",
        "run the pass lower-pool",
        _on(*POOLS),
        rules.missing("kernel_shape", "strides", "pads"),
    ),
    Rule(
        "pool-pads", "hls4ml counts what it pads otherwise", "pad in the Conv before it", _on(*POOLS), rules.pool_pads
    ),
    Rule("pool-ceil", "hls4ml drops the last window", "set ceil_mode to 0 and pad before", _on(*POOLS), rules.ceil),
    Rule(
        "unrounded",
        "its exact value has no end, and hls4ml cuts it off somewhere",
        "put a Quant right behind it",
        _on("AveragePool", *REACH),
        rules.unrounded,
    ),
    Rule(
        "table-types",
        "hls4ml's table has one",
        "use per_tensor for what is right behind it",
        _on(*REACH),
        rules.many_types_behind_table,
    ),
    Rule("fork", "hls4ml rounds it for all of them", "let all of them take the Quant's result", _any, rules.fork),
    Rule(
        "constant-join",
        "hls4ml makes a layer of its own that pqc has not checked",
        "fold it into the weights or the bias of the layer before",
        _on(*JOINS),
        rules.join,
    ),
    Rule(
        "transpose-batch",
        "hls4ml leaves the batch where it is",
        "keep the batch first",
        _on("Transpose"),
        rules.transposed_batch,
    ),
    Rule(
        "transpose-flatten",
        "hls4ml stops at it",
        "flatten before, or put a layer between",
        _on("Flatten"),
        rules.behind_transpose,
    ),
    Rule("flatten-axis", "hls4ml flattens all but the batch", "use axis 1", _on("Flatten"), rules.flatten_axis),
)

STREAM_RULES: tuple[Rule, ...] = (
    Rule(
        "stream-types",
        "hls4ml's streams carry one type a tensor",
        "use granularity per_tensor for activations, or io_parallel",
        is_quant,
        rules.many_types,
    ),
    Rule(
        "stream-transpose", "pqc has not checked it in streams", "use io_parallel", _on("Transpose"), rules.transposes
    ),
    Rule(
        "stream-pool",
        "hls4ml's streaming pools take windows side by side only",
        "use io_parallel",
        _on(*POOLS),
        rules.overlapping,
    ),
)
