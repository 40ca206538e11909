"""The section `fitcompress_parameters` of PQuantML's configs, as the phase `fit` of a schedule."""

from __future__ import annotations

from typing import Any

from pqc.reference_config.converted import Converted
from pqc.reference_config.schema import PRUNING, SEARCH, FitCompress, Search, WholeSearch

KEYS = {
    "compression_goal": "goal",
    "optimize_quantization": "quantize",
    "optimize_pruning": "prune",
    "quantization_schedule": "widths",
    "pruning_schedule": "sparsities",
    "greedy_astar": "search",
    "approximate": "estimate",
    "f_lambda": "heuristic",
}


def is_on(converted: Converted) -> bool:
    """Whether the config searches."""
    return converted.read(SEARCH, Search).enable_fitcompress


def fit(converted: Converted, *, quantizes: bool) -> dict[str, Any]:
    """The phase `fit`, with notes on what pqc counts otherwise; empty where the config does not search.

    Args:
        converted: the schedule in the making.
        quantizes: whether anything is quantized.
    """
    converted.drop(SEARCH, converted.read(SEARCH, Search))
    if not is_on(converted):
        return {}
    section = converted.read(SEARCH, WholeSearch)
    converted.origins |= {f"phases.fit.{native}": (SEARCH, key) for key, native in KEYS.items()}
    converted.origins["phases.fit"] = (SEARCH, "enable_fitcompress")
    converted.origins["phases.fit.min_frac_bits"] = (PRUNING, "min_frac_bits")
    _remark(converted, section, quantizes)
    least = converted.read(PRUNING, FitCompress).min_frac_bits
    return {
        "goal": {"rate": section.compression_goal},
        "quantize": section.optimize_quantization and quantizes,
        "prune": section.optimize_pruning,
        "widths": [int(width) for width in section.quantization_schedule if width],
        "sparsities": section.pruning_schedule.model_dump(),
        "search": "greedy" if section.greedy_astar else "astar",
        "estimate": "expanded" if section.approximate else "neighbours",
        "heuristic": section.f_lambda,
        "min_frac_bits": int(least),
    }


def _remark(converted: Converted, section: WholeSearch, quantizes: bool) -> None:
    text = "counts sign bits, and as zero only what is rounded to zero; the reference: no signs, zero below four steps"
    converted.note((SEARCH, "compression_goal"), text)
    if section.optimize_quantization and not quantizes:
        text = "not taken: quantization is off; the reference would switch it on"
        converted.note((SEARCH, "optimize_quantization"), text)
    if 0 in section.quantization_schedule:
        converted.note((SEARCH, "quantization_schedule"), "0 is left out; name layers to skip in quantization.exclude")
