from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from pqc import batch_norm, graph, layers, library
from pqc.batch_norm import Maker, NormSite
from pqc.functions.batch_norm import BATCH_STATISTICS, CORRECTED
from pqc.layers import WEIGHT_INPUT
from pqc.rewriting import CHANGES, Meaning, Pass
from pqc.shapes import infer_shapes


@dataclass(frozen=True)
class AttachStatistics(Pass):
    """Normalize with the statistics of the batch.

    layer(x, Quant(FoldedWeight(W, gamma, var)), FoldedBias(beta, gamma, mean, var)) →
    m, v = BatchStatistics(layer(x, W)),
    layer(x, Corrected(Quant(FoldedWeight(W, gamma, var)), var, v), FoldedBias(beta, gamma, m, v)).
    The quantizer rounds the weight that the running variance gives, as in the clean model, and the factor behind it
    makes up for the difference, so that rounding does not jump from batch to batch (Krishnamoorthi 2018, section
    3.2.2). For the training step only.
    Leaves what is normalized so already.
    """

    title: ClassVar[str] = "attach-statistics"
    meaning: ClassVar[Meaning] = CHANGES

    def rewrite(self, model: ir.Model) -> int:
        found = list(batch_norm.sites(model.graph))
        for site in found:
            _attach(model.graph, site)
        if found:
            library.link(model)
            infer_shapes(model)
        return len(found)


def _attach(main: ir.Graph, site: NormSite) -> None:
    make, end = Maker(main, site.title), _end(site.factor.outputs[0])
    x = _normalized(make, site, end)
    assert x.shape is not None
    read, channels = [x, site.mean, site.variance], graph.dims(site.variance)
    attributes: dict[str, object] = {"axes": [0, *range(2, len(x.shape))], "momentum": site.momentum}
    measured = make.add(site.term, BATCH_STATISTICS.key, read, "statistics", [channels] * 4, attributes)
    mean, variance = measured.outputs[:2]
    weight = graph.operand(end.reader, WEIGHT_INPUT)
    kept = {name: site.factor.attributes[name].value for name in ("form", "epsilon")}
    corrected = make.add(
        end.reader, CORRECTED.key, [weight, site.variance, variance], "corrected", [weight.shape], kept
    )
    end.reader.replace_input_with(WEIGHT_INPUT, corrected.outputs[0])
    site.term.replace_input_with(2, mean)
    site.term.replace_input_with(3, variance)


@dataclass(frozen=True)
class _End:
    """What takes a factor: the layer, or the product where there is none, and the masks on the way to it."""

    reader: ir.Node
    masks: list[ir.Value]


def _end(value: ir.Value) -> _End:
    masks: list[ir.Value] = []
    while True:
        readers = [node for node, index in value.uses() if index == 0]
        step = next((node for node in readers if layers.is_quant(node) or layers.applies_mask(node)), None)
        if step is None:
            return _End(next(node for node, index in value.uses() if index == WEIGHT_INPUT and not node.domain), masks)
        masks += [graph.operand(step, 1)] if layers.applies_mask(step) else []
        value = step.outputs[0]


def _normalized(make: Maker, site: NormSite, end: _End) -> ir.Value:
    """What is normalized: the layer's result with the weight in float and no bias, or what the product reads."""
    data, weight = graph.operand(end.reader, 0), site.weight
    if weight is None:
        return data
    for mask in end.masks:
        weight = make.add(site.term, ("", "Mul"), [weight, mask], "pruned", [weight.shape], {}).outputs[0]
    # Behind an Identity it is no weight that anything looks for: this is not a layer of the network.
    weight = make.add(site.term, ("", "Identity"), [weight], "weight", [weight.shape], {}).outputs[0]
    attributes = {name: one.value for name, one in end.reader.attributes.items()}
    shape = end.reader.outputs[0].shape
    return make.add(site.term, ("", end.reader.op_type), [data, weight], "raw", [shape], attributes).outputs[0]
