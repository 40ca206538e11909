"""What a schedule may say, and is warned about."""

from __future__ import annotations

from collections.abc import Iterator

from pqc.quantizer import Quantizer
from pqc.schedule_sections import Quantization

UNSEEN = (
    "an activation beyond its range wraps to the other end, and nothing sees to its integer bits: training does not "
    "wrap, the finished network does; use calibrate: true, learns: fractional_bits, or overflow: SAT"
)


def lint(quantization: Quantization | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys of a schedule and what is doubtful about them."""
    if quantization is None or (quantization.calibrate and quantization.calibration is not None):
        return
    kinds: dict[tuple[str, ...], Quantizer | None] = {
        ("inputs",): quantization.inputs,
        ("outputs",): quantization.outputs,
    }
    for pattern, own in quantization.overrides().items():
        kinds |= {("layers", pattern, name): own[name] for name in ("input", "output") if name in own}
    for key, kind in kinds.items():
        if kind is not None and kind.overflow.startswith("WRAP") and kind.learns != "fractional_bits":
            yield ("quantization", *key), UNSEEN
