"""The quantizers of a PQuantML config: what is taken, what is refused, what is not quite the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pqc.errors import ScheduleError
from pqc.reference_config.converted import Converted, Key
from pqc.reference_config.schema import QUANTIZATION, Quantization

ROUNDING = {
    "RND_CONV": "ROUND",
    "TRN": "FLOOR",
    "TRN_ZERO": "DOWN",
    "RND_INF": "HALF_UP",
    "RND_ZERO": "HALF_DOWN",
    "RND": "ROUND",
    "RND_MIN_INF": "ROUND",
}
"""The last two have no name in QONNX; only ties differ."""
TIES = {"RND": "up", "RND_MIN_INF": "down"}
TENSORS = {"weight": "weight", "bias": "weight", "input": "data", "output": "data"}
"""The keys of `layer_specific`, and whose defaults they change."""
SYMMETRIC = "the lowest value, -2^i, stays in the range (SAT)"
CALIBRATED = (
    "sign and integer bits are chosen from the data, at the same width; "
    "--set quantization.calibrate=false keeps them as written, as the reference does"
)
BITS = ("keep_negatives", "integer_bits", "fractional_bits")


def quantization(converted: Converted) -> dict[str, Any] | None:
    """The schedule's `quantization`, or None where it is off.

    Raises:
        ScheduleError: something is switched on that pqc cannot do and that changes the result.
    """
    section = converted.read(QUANTIZATION, Quantization)
    converted.drop(QUANTIZATION, section)
    if not section.enable_quantization:
        return None
    _refuse_quantizers(converted, section)
    _note_quantizers(converted, section)
    kinds = {title: [getattr(section, f"default_{title}_{part}") for part in BITS] for title in ("weight", "data")}
    for native, title in (("weights", "weight"), ("biases", "weight"), ("inputs", "data"), ("outputs", "data")):
        part = "fractional_bits" if kinds[title][0] in (0, 1) else "keep_negatives"
        converted.origins[f"quantization.{native}"] = (QUANTIZATION, f"default_{title}_{part}")
    return {
        "weights": kinds["weight"],
        "biases": kinds["weight"],
        "inputs": kinds["data"] if section.quantize_input else None,
        "outputs": kinds["data"] if section.quantize_output else None,
        "rounding": ROUNDING[section.round_mode],
        "calibrate": True,
    }


def _refuse_quantizers(converted: Converted, section: Quantization) -> None:
    """Refuse what is switched on and would change the result.

    Raises:
        ScheduleError: names the key.
    """

    def refuse(key: str, message: str, instead: str) -> ScheduleError:
        hint = f"--set {QUANTIZATION}.{key}={instead} trains without it"
        return converted.refusal((QUANTIZATION, key), message, hint)

    if section.use_high_granularity_quantization:
        raise refuse("use_high_granularity_quantization", "trained bit widths are not available yet", "false")
    if section.granularity != "per_tensor":
        raise refuse("granularity", f"pqc has one type per tensor, not {section.granularity}", "per_tensor")
    data = ["overflow_mode_data"] if section.quantize_input or section.quantize_output else []
    for key in ("overflow_mode_parameters", *data):
        if getattr(section, key).startswith("WRAP"):
            raise refuse(key, f"pqc saturates; {getattr(section, key)} is not available", "SAT")
    if section.round_mode not in ROUNDING:
        raise refuse("round_mode", f"no rounding '{section.round_mode}' (known: {', '.join(ROUNDING)})", "RND_CONV")
    if section.use_relu_multiplier and "use_relu_multiplier" in section.model_fields_set:
        raise refuse("use_relu_multiplier", "a learned factor before each relu is not available", "false")
    for place, text in _changed_layers(converted, section):
        raise converted.refusal(place, text, hint="remove the entry, or change the default for all layers")


def _changed_layers(converted: Converted, section: Quantization) -> Iterator[tuple[Key, str]]:
    """The entries of `layer_specific` that differ from what all layers have."""
    root = (QUANTIZATION, "layer_specific")
    entries = section.layer_specific or {}
    for part in entries if isinstance(entries, list) else [entries]:
        if not isinstance(part, dict):
            raise converted.refusal(root, "a mapping of layers to their types, or a list of such mappings")
        for layer, tensors in part.items():
            yield from _changed_tensors(converted, section, (*root, str(layer)), tensors)


def _changed_tensors(
    converted: Converted, section: Quantization, key: Key, tensors: object
) -> Iterator[tuple[Key, str]]:
    if not isinstance(tensors, dict):
        raise converted.refusal(key, "a mapping of weight, bias, input and output to their bits")
    for tensor, bits in tensors.items():
        here = (*key, str(tensor))
        if tensor in TENSORS and isinstance(bits, dict):
            yield from _changed_bits(converted, section, here, bits)
        elif isinstance(bits, dict) and not TENSORS.keys().isdisjoint(bits):
            yield from _changed_tensors(converted, section, here, bits)
        else:
            converted.unknown(here, f"not one of {', '.join(TENSORS)}")


def _changed_bits(
    converted: Converted, section: Quantization, key: Key, bits: dict[Any, Any]
) -> Iterator[tuple[Key, str]]:
    tensor = key[-1]
    default = {part: getattr(section, f"default_{TENSORS[tensor]}_{part}") for part in BITS}
    default |= {"quantize": getattr(section, f"quantize_{tensor}")} if TENSORS[tensor] == "data" else {}
    for part, value in bits.items():
        if part not in default:
            converted.unknown((*key, str(part)), f"not one of {', '.join(default)}")
        elif value != default[part]:
            yield (*key, part), f"{value!r:.40} in one layer, and pqc has {default[part]!r} in all of them so far"


def _note_quantizers(converted: Converted, section: Quantization) -> None:
    def note(key: str, text: str) -> None:
        converted.note((QUANTIZATION, key), text)

    if section.round_mode in TIES:
        ties = TIES[section.round_mode]
        note("round_mode", f"ties go to even (ROUND), not {ties} ({section.round_mode}): one last bit apart")
    if "SAT_SYM" in (section.overflow_mode_parameters, section.overflow_mode_data):
        parameters = section.overflow_mode_parameters == "SAT_SYM"
        note(f"overflow_mode_{'parameters' if parameters else 'data'}", SYMMETRIC)
    elif section.use_symmetric_quantization:
        note("use_symmetric_quantization", f"an older word for overflow_mode_parameters: SAT_SYM; {SYMMETRIC}")
    if section.dynamic_data_quantization:
        note("dynamic_data_quantization", "types of activations are chosen once, before training, not for each batch")
    if section.quantize_output:
        note("quantize_output", "rounds what leaves the model, not what leaves each layer")
    if not section.use_real_tanh:
        note("use_real_tanh", "a tanh stays one; the reference would train a hard tanh")
    if section.use_relu_multiplier:
        note("use_relu_multiplier", "true where it is missing, and not taken: no learned factor before each relu")
    if not converted.settled("quantization.calibrate"):
        note("default_data_integer_bits", CALIBRATED)
