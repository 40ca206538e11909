"""What a PQuantML config says of single layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from typing import Any

from pqc.reference_config.converted import Converted, Key
from pqc.reference_config.schema import QUANTIZATION

TENSORS = {"weight": "weight", "bias": "weight", "input": "data", "output": "data"}
"""The keys of `layer_specific`, and whose defaults they change."""
BITS = ("keep_negatives", "integer_bits", "fractional_bits")
ROOT = (QUANTIZATION, "layer_specific")


@dataclass(frozen=True)
class Quantizers:
    """What holds for all layers.

    Args:
        defaults: the bits of `weight` and `data` by name.
        words: what differs from a plain type, by tensor.
        rounded: whether a tensor is rounded at all.
    """

    defaults: Mapping[str, Mapping[str, int]]
    words: Mapping[str, Mapping[str, str]]
    rounded: Mapping[str, bool]

    def default(self, tensor: str) -> dict[str, int]:
        """The bits of a tensor by name."""
        return dict(self.defaults[TENSORS[tensor]])

    def written(self, tensor: str, changes: Mapping[str, int] | None = None) -> object:
        """A quantizer as a schedule writes it."""
        bits = list({**self.default(tensor), **(changes or {})}.values())
        return {"bits": bits, **self.words[tensor]} if self.words[tensor] else bits


def layer_specific(converted: Converted, entries: Any, kinds: Quantizers) -> dict[str, dict[str, object]]:
    """The layers' own quantizers by name and tensor: those that differ from what holds for all.

    Raises:
        ScheduleError: another form, or a type of a part that is no layer of its own in a graph.
    """
    found: dict[str, dict[str, object]] = {}
    for part in entries if isinstance(entries, list) else [entries or {}]:
        if not isinstance(part, dict):
            raise converted.refusal(ROOT, "a mapping of layers to their types, or a list of such mappings")
        for name, tensors in part.items():
            key = (*ROOT, str(name))
            if not isinstance(tensors, dict):
                raise converted.refusal(key, "a mapping of weight, bias, input and output to their bits")
            own = dict(_changed(converted, kinds, key, tensors))
            if own:
                found.setdefault(escape(str(name)), {}).update(own)
    return found


def _changed(
    converted: Converted, kinds: Quantizers, key: Key, tensors: Mapping[Any, Any]
) -> Iterator[tuple[str, object]]:
    for tensor, bits in tensors.items():
        here = (*key, str(tensor))
        if tensor in TENSORS and isinstance(bits, dict):
            changes = _changes(converted, kinds, here, bits)
            if not changes.pop("quantize", kinds.rounded[tensor]):
                if kinds.rounded[tensor]:
                    yield tensor, None
            elif changes or not kinds.rounded[tensor]:
                yield tensor, kinds.written(tensor, changes)
        elif isinstance(bits, dict) and not TENSORS.keys().isdisjoint(bits):
            for inner, _ in _changed(converted, kinds, here, bits):
                text = "a type of its own for a part of a layer, which is no layer in the graph"
                hint = "remove the entry; `quantization.layers` of the converted schedule takes names of the graph"
                raise converted.refusal((*here, inner), text, hint)
        else:
            converted.unknown(here, f"not one of {', '.join(TENSORS)}")


def _changes(converted: Converted, kinds: Quantizers, key: Key, bits: Mapping[Any, Any]) -> dict[str, int]:
    """The bits that differ from what all layers have, and `quantize`, where it is said.

    Raises:
        ScheduleError: no whole number, or no truth value.
    """
    tensor = key[-1]
    default: dict[str, Any] = kinds.default(tensor)
    default |= {"quantize": kinds.rounded[tensor]} if TENSORS[tensor] == "data" else {}
    found = {}
    for part, value in bits.items():
        if part not in default:
            converted.unknown((*key, str(part)), f"not one of {', '.join(default)}")
        elif not isinstance(value, int | float) or (isinstance(value, float) and not value.is_integer()):
            raise converted.refusal((*key, part), f"a whole number, not {value!r:.40}")
        elif part == "quantize" or value != default[part]:
            found[part] = int(value)
    return found
