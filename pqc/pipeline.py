"""Pipelines: passes as text, `fold-batchnorm,insert-quant{weights=1,0,7}`, and how they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import onnx
import onnx_ir as ir

from pqc import engine, graph
from pqc.errors import GraphError, PassError, PipelineError, PqcError
from pqc.names import OUTPUTS, PIPELINE, RESERVED
from pqc.options import field_types, nearest, quote, read, spell, split_words, unquote, write
from pqc.passes import TABLE
from pqc.rewriting import Meaning, Pass
from pqc.samples import batch_size, sample
from pqc.verifier import verify

VERIFY_BATCH = 16
DEFECT = "this is a defect of the pass; report it with the model"


def parse(text: str) -> list[Pass]:
    """Read a pipeline: pass names with `{option=value option=value}`, separated by commas.

    Raises:
        PipelineError: with a caret under the place.
    """
    passes = []
    position = 0
    while position <= len(text):
        end = _end_of_pass(text, position)
        passes.append(_parse_pass(text, position, end))
        position = end + 1
    return passes


def _end_of_pass(text: str, start: int) -> int:
    depth, quoted = 0, False
    for position in range(start, len(text)):
        character = text[position]
        quoted ^= character == '"' and text[position - 1] != "\\"
        if quoted:
            continue
        depth += (character == "{") - (character == "}")
        if depth < 0:
            raise _error(text, position, "a closing brace without an opening one")
        if character == "," and depth == 0:
            return position
    if depth:
        raise _error(text, text.index("{", start), "this brace is never closed")
    return len(text)


def _parse_pass(text: str, start: int, end: int) -> Pass:
    brace = text.find("{", start, end)
    stop = end if brace < 0 else brace
    name = text[start:stop].strip()
    at = start + len(text[start:stop]) - len(text[start:stop].lstrip())
    if name not in TABLE:
        what = f"no pass '{name}'{nearest(name, TABLE)}" if name else "a pass is missing"
        raise _error(text, at, what, hint="see `pqc list passes`")
    kind = TABLE[name]
    if brace >= 0 and not text[brace:end].rstrip().endswith("}"):
        raise _error(text, end - 1, "expected a closing brace or a comma")
    options = {} if brace < 0 else _parse_options(text, brace + 1, text.rindex("}", brace, end), kind)
    try:
        return kind(**options)
    except ValueError as error:
        raise _error(text, stop, str(error)) from error


def _parse_options(text: str, start: int, end: int, kind: type[Pass]) -> dict[str, object]:
    types = {spell(name): (name, hint) for name, hint in field_types(kind).items()}
    options: dict[str, object] = {}
    for offset, word in split_words(text[start:end]):
        position = start + offset
        name, separator, value = word.partition("=")
        if not separator or name not in types:
            known = f"it has: {', '.join(types)}" if types else "it has no options"
            what = f"'{kind.title}' has no option '{name}'{nearest(name, types)}"
            raise _error(text, position, what if separator else "expected option=value", hint=known)
        field, hint = types[name]
        try:
            options[field] = read(unquote(value), hint)
        except ValueError as error:
            raise _error(text, position + len(name) + 1, f"'{value}' does not fit '{name}': {error}") from error
    return options


def _error(text: str, position: int, message: str, hint: str | None = None) -> PipelineError:
    return PipelineError(f"{message}\n  {text}\n  {' ' * position}^", hint=hint)


def unparse(passes: Sequence[Pass]) -> str:
    """The text that `parse` turns back into `passes`."""
    return ",".join(_unparse_pass(one) for one in passes)


def _unparse_pass(one: Pass) -> str:
    default = type(one)()
    options = [
        f"{spell(field.name)}={quote(write(getattr(one, field.name)))}"
        for field in fields(one)
        if getattr(one, field.name) != getattr(default, field.name)
    ]
    return one.title + (f"{{{' '.join(options)}}}" if options else "")


@dataclass(frozen=True)
class Step:
    """What one pass did."""

    text: str
    changed: int
    seconds: float
    difference: float | None
    """The largest difference of an output over its largest magnitude, or None where it was not measured."""


def run(
    model: ir.Model,
    pipeline: str | Sequence[Pass],
    *,
    verify_each: bool = False,
    feeds: Mapping[str, np.ndarray] | None = None,
    after_change: Callable[[Pass, ir.Model], None] | None = None,
) -> list[Step]:
    """Run a pipeline on `model`, in place.

    Args:
        model: changed in place; the text of the pipeline is added to its metadata.
        pipeline: text, or passes.
        verify_each: run the model before and after each pass on sample inputs, and hold the difference against
            what the pass declares.
        feeds: sample inputs by name; random ones by default.
        after_change: called after each pass that changed something.

    Raises:
        PipelineError: the text cannot be parsed.
        PassError: a pass failed, gave an invalid graph, or moved the outputs more than it declares.
    """
    passes = parse(pipeline) if isinstance(pipeline, str) else list(pipeline)
    steps = []
    for number, one in enumerate(passes):
        before = graph.copy(model) if verify_each else None
        start = time.perf_counter()
        changed = _apply(one, model, passes[: number + 1])
        seconds = time.perf_counter() - start
        difference = _measure(before, model, feeds or {}, one) if before is not None and changed else None
        steps.append(Step(_unparse_pass(one), changed, seconds, difference))
        if changed and after_change is not None:
            after_change(one, model)
    _remember(model, passes)
    return steps


def _apply(one: Pass, model: ir.Model, so_far: Sequence[Pass]) -> int:
    try:
        with graph.shared_names(model.graph):
            changed = one.rewrite(model)
    except PqcError:
        raise
    except Exception as error:  # the one boundary: any failure of a pass names the pass and how to repeat it
        raise PassError(
            f"'{one.title}' failed: {type(error).__name__}: {error}",
            hint=f"this is a defect of pqc; report it with the model and: pqc opt -p '{unparse(so_far)}'",
        ) from error
    try:
        verify(model)
    except GraphError as error:
        raise PassError(
            f"'{one.title}' left a graph in which {error.message}",
            hint=f"this is a defect of pqc; report it with the model and: pqc opt -p '{unparse(so_far)}'",
        ) from error
    return changed


def _remember(model: ir.Model, passes: Sequence[Pass]) -> None:
    earlier = model.metadata_props.get(PIPELINE)
    text = unparse([one.remembered() for one in passes])
    model.metadata_props[PIPELINE] = f"{earlier},{text}" if earlier else text


def _measure(before: ir.Model, after: ir.Model, feeds: Mapping[str, np.ndarray], one: Pass) -> float | None:
    """The largest relative difference over the outputs that both have, held against the declared meaning."""
    batch = batch_size(after) or VERIFY_BATCH
    arrays = {**sample(before, batch), **sample(after, batch)}
    arrays |= {name: np.resize(array, (batch, *array.shape[1:])) for name, array in feeds.items() if name in arrays}
    _free_outputs(before, after)
    _expose(before, [str(value.name) for value in after.graph.outputs])
    old, new = (_evaluate(model, arrays) for model in (before, after))
    common = [name for name in old if name in new and old[name].shape == new[name].shape]
    lost = [name for name in old if name not in common]
    if one.meaning.kind != "changes" and (not common or (lost and not one.drops_outputs)):
        raise PassError(f"'{one.title}' declares {one.meaning} and loses an output: {', '.join(lost)}", hint=DEFECT)
    if not common:
        return None
    worst = max(_difference(old[name], new[name]) for name in common)
    meaning: Meaning = one.meaning
    allowed = {"exact": 0.0, "close": meaning.bound}.get(meaning.kind, float("inf"))
    if not worst <= allowed:
        raise PassError(
            f"'{one.title}' declares {meaning} and moved an output by {worst:.3g} of its largest magnitude",
            hint=DEFECT,
        )
    return worst


def _free_outputs(before: ir.Model, after: ir.Model) -> None:
    """Follow outputs that had to give up a name that training uses."""
    for old, new in zip(before.graph.outputs, after.graph.outputs, strict=False):
        if old.name in RESERVED and new.name not in RESERVED and OUTPUTS not in before.metadata_props:
            old.name = new.name


def _expose(model: ir.Model, names: Sequence[str]) -> None:
    """Let inner values leave the graph that are outputs of another form of it."""
    present = {value.name for value in model.graph.outputs}
    inner = [output for node in model.graph for output in node.outputs if output.name in names]
    model.graph.outputs.extend(value for value in inner if value.name not in present)


def _evaluate(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {value.name for value in model.graph.inputs}
    # Unfused, since which operators the engine fuses depends on the graph's form, and fusing moves the last bits.
    return engine.evaluate(model, {name: array for name, array in arrays.items() if name in names}, fuse=False)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating)):
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a.astype(np.float64) - b).max() / max(np.abs(a).max(), np.finfo(np.float32).tiny))


def to_text(model: ir.Model, *, functions: bool = False) -> str:
    """The graph as ONNX text; of initializers the type only, of function bodies nothing unless asked for."""
    proto = graph.to_proto(model)
    for field in (proto.graph.value_info, proto.metadata_props, *([] if functions else [proto.functions])):
        del field[:]
    for tensor in proto.graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.value_info.append(info)
    del proto.graph.initializer[:]
    return str(onnx.printer.to_text(proto))
