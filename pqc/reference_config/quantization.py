"""The quantizers of a PQuantML config: what is taken, what is refused, what is not quite the same."""

from __future__ import annotations

from typing import Any

from pqc.errors import ScheduleError
from pqc.names import BITS_WEIGHT, EBOPS_WEIGHT
from pqc.quantizer import PER_ELEMENT, PER_TENSOR, PER_WEIGHT, QONNX_ROUNDING, STOCHASTIC
from pqc.reference_config.converted import Converted
from pqc.reference_config.layer_specific import BITS, TENSORS, Quantizers, layer_specific
from pqc.reference_config.schema import QUANTIZATION, Quantization

ROUNDING = {**QONNX_ROUNDING, "RND": "RND", "RND_MIN_INF": "RND_MIN_INF"}
ROUNDING |= {STOCHASTIC + name: STOCHASTIC + name for name in ROUNDING}
"""QONNX's names where it has one: its quantizer is the quicker one."""
WRAPS_BACK = ("RND", "RND_CONV")
"""The roundings that go with WRAP_SM."""
GRANULARITIES = ("per_tensor", "per_channel", "per_weight")
CALIBRATED = (
    "sign and integer bits are chosen from the data, at the same width; "
    "--set quantization.calibrate=false keeps them as written, as the reference does"
)
STARTED = (
    "sign and integer bits start from the data, fractional bits as written; "
    "--set quantization.calibrate=false keeps them all, as the reference does"
)


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
    kinds = _quantizers(section)
    for native, tensor in (("weights", "weight"), ("biases", "bias"), ("inputs", "input"), ("outputs", "output")):
        part = "fractional_bits" if kinds.default(tensor)["keep_negatives"] in (0, 1) else "keep_negatives"
        converted.origins[f"quantization.{native}"] = (QUANTIZATION, f"default_{TENSORS[tensor]}_{part}")
    converted.origins["quantization.relu_multiplier"] = (QUANTIZATION, "use_relu_multiplier")
    converted.origins["quantization.layers"] = (QUANTIZATION, "layer_specific")
    own = layer_specific(converted, section.layer_specific, kinds)
    learns = section.use_high_granularity_quantization
    if learns:
        converted.content["controls"] = {EBOPS_WEIGHT: section.hgq_beta, BITS_WEIGHT: section.hgq_gamma}
        converted.origins |= {f"controls.{EBOPS_WEIGHT}": (QUANTIZATION, "hgq_beta")}
        converted.origins |= {f"controls.{BITS_WEIGHT}": (QUANTIZATION, "hgq_gamma")}
    return {
        "weights": kinds.written("weight"),
        "biases": kinds.written("bias"),
        "inputs": kinds.written("input") if section.quantize_input else None,
        "outputs": kinds.written("output") if section.quantize_output else None,
        **({"layers": own} if own else {}),
        "rounding": ROUNDING[section.round_mode],
        "calibrate": True,
        **({"relu_multiplier": True} if section.use_relu_multiplier and not learns else {}),
    }


def _quantizers(section: Quantization) -> Quantizers:
    """What holds for each tensor; biases and activations have one type each unless bits are learned."""
    learns = section.use_high_granularity_quantization
    overflows = {"weight": _of_parameters(section), "data": section.overflow_mode_data}
    fine = learns and section.granularity == "per_weight"
    granularities = {
        "weight": section.granularity,
        "bias": PER_WEIGHT if fine else PER_TENSOR,
        "input": PER_ELEMENT if fine else PER_TENSOR,
        "output": PER_ELEMENT if fine else PER_TENSOR,
    }
    words: dict[str, dict[str, str]] = {}
    for tensor, title in TENSORS.items():
        found = {"granularity": granularities[tensor], "overflow": overflows[title]}
        if learns:
            found["learns"] = "fractional_bits" if found["overflow"] == "WRAP" else "bits"
        usual = {"granularity": PER_TENSOR, "overflow": "SAT"}
        words[tensor] = {key: word for key, word in found.items() if word != usual.get(key)}
    defaults = {
        title: {part: getattr(section, f"default_{title}_{part}") for part in BITS} for title in ("weight", "data")
    }
    rounded = {"weight": True, "bias": True, "input": section.quantize_input, "output": section.quantize_output}
    return Quantizers(defaults, words, rounded)


def _of_parameters(section: Quantization) -> str:
    """How parameters overflow; older files say a symmetric range in another way."""
    older = section.use_symmetric_quantization and section.overflow_mode_parameters == "SAT"
    return "SAT_SYM" if older else section.overflow_mode_parameters


def _refuse_quantizers(converted: Converted, section: Quantization) -> None:
    """Refuse what is switched on and would change the result.

    Raises:
        ScheduleError: names the key.
    """

    def refuse(key: str, message: str, instead: str) -> ScheduleError:
        hint = f"--set {QUANTIZATION}.{key}={instead} trains without it"
        return converted.refusal((QUANTIZATION, key), message, hint)

    learns = section.use_high_granularity_quantization
    if section.round_mode not in ROUNDING:
        raise refuse("round_mode", f"no rounding '{section.round_mode}' (known: {', '.join(ROUNDING)})", "RND_CONV")
    if section.granularity not in GRANULARITIES:
        known = ", ".join(GRANULARITIES)
        raise refuse("granularity", f"no granularity '{section.granularity}' (known: {known})", "per_tensor")
    if learns and section.granularity == "per_channel":
        raise refuse("granularity", "trained bits are per_tensor or per_weight, as in the reference", "per_weight")
    for key in ("overflow_mode_parameters", *_data_keys(section)):
        if getattr(section, key) == "WRAP_SM" and learns:
            raise refuse(key, "bits are trained under SAT, SAT_SYM or WRAP, not WRAP_SM", "SAT")
        if getattr(section, key) == "WRAP_SM" and section.round_mode not in WRAPS_BACK:
            raise refuse(key, f"WRAP_SM goes with {' and '.join(WRAPS_BACK)}, as in the reference", "SAT")


def _data_keys(section: Quantization) -> list[str]:
    return ["overflow_mode_data"] if section.quantize_input or section.quantize_output else []


def _note_quantizers(converted: Converted, section: Quantization) -> None:
    def note(key: str, text: str) -> None:
        converted.note((QUANTIZATION, key), text)

    learns = section.use_high_granularity_quantization
    if section.granularity != "per_tensor" and not learns:
        note("granularity", "integer bits of weights are chosen once, before training, not in each step")
    if section.use_symmetric_quantization and section.overflow_mode_parameters == "SAT":
        note("use_symmetric_quantization", "an older word for overflow_mode_parameters: SAT_SYM")
    if section.dynamic_data_quantization:
        note("dynamic_data_quantization", "types of activations are chosen once, before training, not for each batch")
    if section.quantize_output:
        note("quantize_output", "rounds what leaves the model, not what leaves each layer")
    if not section.use_real_tanh:
        note("use_real_tanh", "a tanh stays one; the reference would train a hard tanh")
    if section.use_relu_multiplier and "use_relu_multiplier" not in section.model_fields_set and not learns:
        note("use_relu_multiplier", "true where it is missing: a power of two before each relu is learned")
    if learns and section.overflow_mode_data == "WRAP" and _data_keys(section):
        note(
            "overflow_mode_data",
            "integer bits of activations follow each batch and lose at most 0.01 a step; in the reference's PyTorch "
            "layers they are what the last batch needed (--set quantization.integer_bits_decay)",
        )
    if not converted.settled("quantization.calibrate"):
        note("default_data_integer_bits", STARTED if learns else CALIBRATED)
