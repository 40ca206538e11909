"""Every operator of pqc by domain and name, and their bodies for a graph that uses them.

The table of methods is read anew each time: a method that is put in it is known here at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import onnx
import onnx_ir as ir

from pqc.functions.batch_norm import BATCH_NORM
from pqc.functions.costs import COSTS
from pqc.functions.dither import DITHER, NOISE
from pqc.functions.fixed import FIXED_POINT
from pqc.functions.fixed_quant import FIXED_QUANT, NEEDED_BITS
from pqc.functions.learned import LEARNED_QUANTIZERS
from pqc.functions.losses import DISTILLATION, LOSSES
from pqc.functions.multiplier import MULTIPLIER
from pqc.functions.operator import Key, Operator
from pqc.functions.optimizers import CLIP_BY_NORM, OPTIMIZERS, PULL
from pqc.functions.pools import AVERAGE_POOL, MAX_POOL
from pqc.functions.quant import BIPOLAR_QUANT, QUANT
from pqc.functions.ranking import RANKINGS
from pqc.functions.reductions import POWER
from pqc.functions.scale import SCALES
from pqc.functions.standard import GRADIENTS, StandardGradient
from pqc.functions.table import LOOKUP
from pqc.method import Method
from pqc.methods import TABLE as METHODS

Differentiable = Operator | StandardGradient


def operators() -> dict[Key, Operator]:
    """The operators of quantizers, losses, optimizers and methods."""
    return _operators(tuple(METHODS.values()))


def bodies() -> dict[Key, onnx.FunctionProto]:
    """The function bodies, forward and backward."""
    return _bodies(tuple(METHODS.values()))


def derivatives() -> dict[Key, Differentiable]:
    """What has a gradient of pqc's own, by domain and name of the forward operator."""
    return _derivatives(tuple(METHODS.values()))


@cache
def _operators(methods: tuple[type[Method], ...]) -> dict[Key, Operator]:
    found = [
        QUANT,
        BIPOLAR_QUANT,
        *SCALES.values(),
        FIXED_POINT,
        FIXED_QUANT,
        NEEDED_BITS,
        NOISE,
        DITHER,
        MULTIPLIER,
        LOOKUP,
        POWER,
        AVERAGE_POOL,
        MAX_POOL,
        *BATCH_NORM,
        *COSTS,
        *LEARNED_QUANTIZERS,
        CLIP_BY_NORM,
        PULL,
        *RANKINGS,
        *LOSSES.values(),
        *DISTILLATION.values(),
    ]
    found += [optimizer.operator for optimizer in OPTIMIZERS.values()]
    found += [operator for method in methods for operator in method.operators]
    return {operator.key: operator for operator in found}


@cache
def _bodies(methods: tuple[type[Method], ...]) -> dict[Key, onnx.FunctionProto]:
    found = [body for operator in _operators(methods).values() for body in operator.bodies()]
    found += [body.to_function_proto() for one in GRADIENTS for body in (one.gradient, *one.helpers)]
    for body in found:
        _import_domains(body)
    return {(body.domain, body.name): body for body in found}


def _import_domains(body: onnx.FunctionProto) -> None:
    """Import the domains that are called in branches too, which onnxscript leaves out."""
    known = {entry.domain for entry in body.opset_import}
    called = {domain for domain, _ in _calls(body.node)} - known - {"ai.onnx"}
    body.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(called) if domain)


@cache
def _derivatives(methods: tuple[type[Method], ...]) -> dict[Key, Differentiable]:
    own = {key: operator for key, operator in _operators(methods).items() if operator.gradient is not None}
    return {**own, **{("", one.name): one for one in GRADIENTS}}


def inlined() -> list[Key]:
    """The operators whose bodies are differentiated themselves."""
    return [key for key, operator in operators().items() if operator.inline]


def link(model: ir.Model, *, gradients: bool = False) -> int:
    """Attach the bodies that the graph uses and lacks, and import their domains; return how many were attached.

    Args:
        model: changed in place.
        gradients: attach the gradients' bodies too, before the nodes that use them exist.
    """
    present = {(node.domain, node.op_type) for node in model.graph.all_nodes()}
    used = _with_callees(present & bodies().keys())
    if gradients:
        own = [derivatives()[key].gradient for key in (present | used) & derivatives().keys()]
        used |= _with_callees({(one.opset.domain, one.name) for one in own if one is not None})
    missing = [key for key in sorted(used) if (*key, "") not in model.functions]
    # A body that a file brings along for one of pqc's operators does not count.
    for key in sorted(used):
        function = ir.serde.deserialize_function(bodies()[key])
        model.functions[function.identifier()] = function
    for domain, _ in sorted(used):
        model.graph.opset_imports.setdefault(domain, 1)
    return len(missing)


def _with_callees(used: Iterable[Key]) -> set[Key]:
    """The operators, and those that their bodies are made of."""
    found: set[Key] = set()
    waiting = list(used)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += [inner for inner in _calls(bodies()[key].node) if inner in bodies()]
    return found


def callees(function: onnx.FunctionProto) -> list[onnx.FunctionProto]:
    """The bodies of pqc's that `function` calls, directly or not."""
    called = {key for key in _calls(function.node) if key in bodies()}
    return [bodies()[key] for key in sorted(_with_callees(called))]


def _calls(nodes: Iterable[onnx.NodeProto]) -> Iterator[Key]:
    for node in nodes:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            yield from _calls(attribute.g.node)


def unlink(model: ir.Model, kept: Iterable[Key] = ()) -> int:
    """Remove the bodies of pqc's operators, and the imports of domains that no node uses; return how many.

    Args:
        model: changed in place.
        kept: operators whose bodies stay, with what they call, where a node uses them.
    """
    present = {(node.domain, node.op_type) for node in model.graph.all_nodes()}
    stay = _with_callees(present & set(kept))
    unlinked = [one for one in model.functions if one[:2] in bodies() and one[:2] not in stay]
    for identifier in unlinked:
        del model.functions[identifier]
    return len(unlinked) + prune_imports(model)


def prune_imports(model: ir.Model) -> int:
    """Remove the imports of domains that neither a node nor a function uses; return how many."""
    used = {"", *(node.domain for node in model.graph.all_nodes()), *(key[0] for key in model.functions)}
    stale = [domain for domain in model.graph.opset_imports if domain not in used]
    for domain in stale:
        del model.graph.opset_imports[domain]
    return len(stale)
