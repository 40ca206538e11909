"""Quantizers as schedules and pipelines write them: type, granularity, rounding, overflow, and what is learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pqc.blocks import PARTS
from pqc.fixed_point import FixedPoint
from pqc.functions.fixed_quant import OVERFLOWS, ROUNDINGS
from pqc.functions.quant import ROUNDING_MODES
from pqc.functions.scale import SCALES
from pqc.options import nearest

PER_TENSOR, PER_CHANNEL, PER_WEIGHT, PER_ELEMENT, PER_GROUP = (
    "per_tensor",
    "per_channel",
    "per_weight",
    "per_element",
    "per_group",
)
GRANULARITIES = (PER_TENSOR, PER_CHANNEL, PER_WEIGHT, PER_ELEMENT, PER_GROUP)
LEARNED_BITS = ("bits", "fractional_bits")
LEARNED = (*LEARNED_BITS, *SCALES)
"""What a quantizer may learn, besides nothing."""
NAMED: dict[str, dict[str, Any]] = {
    "binary": {"bits": FixedPoint(1, 0, 0), "overflow": "SAT"},
    "ternary": {"bits": FixedPoint(1, 0, 1), "overflow": "SAT_SYM"},
}
"""Types with names of their own: -1 and 1; -1, 0 and 1, times a scale each."""

STOCHASTIC = "S_"
"""The prefix of a rounding that a training step replaces by chance: up as often as the fraction says."""
ALL_ROUNDINGS = (*ROUNDINGS, *ROUNDING_MODES, *(STOCHASTIC + name for name in ROUNDINGS))

QONNX_ROUNDING = {
    "TRN": "FLOOR",
    "RND_CONV": "ROUND",
    "TRN_ZERO": "DOWN",
    "RND_ZERO": "HALF_DOWN",
    "RND_INF": "HALF_UP",
}
"""QONNX's names of the roundings of ap_fixed; RND and RND_MIN_INF have none."""
AP_ROUNDING = {name: ap for ap, name in QONNX_ROUNDING.items()} | {"HALF_EVEN": "RND_CONV"}


@dataclass(frozen=True)
class Quantizer:
    """How a tensor is rounded.

    Args:
        bits: the type (k, i, f); where bits are learned, what they start from.
        granularity: `per_tensor`; `per_channel`; `per_weight` or, for activations, `per_element`; `per_group`.
        size: the length of a group, along the inputs of a weight; 0 otherwise.
        axis: what counts the channels of `per_channel`; None is the outputs of a weight, and axis 1 of an activation.
        rounding: of QONNX or of ap_fixed, or None where the schedule's own holds; `S_` and a name of ap_fixed for
            stochastic rounding in a training step, and the named one anywhere else.
        overflow: SAT, SAT_SYM, WRAP or WRAP_SM.
        learns: `bits` for trained integer and fractional bits; `fractional_bits` where integer bits follow the numbers
            that are met, so that a training step never overflows; `scale` for a trained step of a fixed number of
            bits, `power_of_two_scale` for one that stays a power of two; or None.

    Raises:
        ValueError: a name that is none of the above.
    """

    bits: FixedPoint
    granularity: str = PER_TENSOR
    size: int = 0
    rounding: str | None = None
    overflow: str = "SAT"
    learns: str | None = None
    axis: int | None = None

    def __post_init__(self) -> None:
        _check("granularity", self.granularity, GRANULARITIES)
        _check("overflow", self.overflow, OVERFLOWS)
        _check("learns", self.learns, (*LEARNED, None))
        _check("rounding", self.rounding, (*ALL_ROUNDINGS, None))
        if (self.granularity == PER_GROUP) != (self.size > 0):
            raise ValueError("per_group needs the size of a group: per_group:16")
        if self.axis is not None and self.granularity != PER_CHANNEL:
            raise ValueError(f"an axis goes with per_channel, not with {self.granularity}")
        if self.overflow == "WRAP_SM" and not self.bits.k:
            raise ValueError(f"WRAP_SM turns back at a sign, which ({self.bits}) has not; use WRAP, or k = 1")
        if self.learns == "bits" and not self.overflow.startswith("SAT"):
            raise ValueError(f"integer bits have no gradient under {self.overflow}; learn fractional_bits")
        if self.learns and self.granularity == PER_GROUP:
            raise ValueError("bits are not learned per group; use per_channel or per_weight")
        if self.learns_scale and self.granularity not in (PER_TENSOR, PER_CHANNEL):
            raise ValueError(f"scales are learned per_tensor or per_channel, not {self.granularity}")
        if self.learns_scale and self.overflow not in ("SAT", "SAT_SYM"):
            raise ValueError(f"a learned scale saturates; {self.overflow} does not go with it")
        if self.bits.binary and (self.overflow != "SAT" or self.learns_bits or self.granularity == PER_GROUP):
            raise ValueError(f"({self.bits}) has one bit, with nothing to overflow, to learn bits of, or to group")

    @property
    def stochastic(self) -> bool:
        """Whether a training step rounds up or down by chance."""
        return self.rounding is not None and self.rounding.startswith(STOCHASTIC)

    @property
    def plain_rounding(self) -> str:
        """How numbers are rounded outside of a training step."""
        return (self.rounding or "ROUND").removeprefix(STOCHASTIC)

    @property
    def learns_bits(self) -> bool:
        """Whether bits are trained."""
        return self.learns in LEARNED_BITS

    @property
    def learns_scale(self) -> bool:
        """Whether a scale is trained."""
        return self.learns in SCALES

    @property
    def said_by_qonnx(self) -> bool:
        """Whether QONNX's Quant computes the same, so that no quantizer of pqc's own is needed."""
        known = self.plain_rounding in (*ROUNDING_MODES, *QONNX_ROUNDING) or self.bits.binary
        return known and self.overflow in ("SAT", "SAT_SYM") and not self.learns_bits

    @property
    def qonnx_rounding(self) -> str:
        """QONNX's name of the rounding; a sign is not rounded."""
        rounding = "ROUND" if self.bits.binary else self.plain_rounding
        return QONNX_ROUNDING.get(rounding, rounding)

    @property
    def ap_rounding(self) -> str:
        """The name of the rounding in ap_fixed.

        Raises:
            ValueError: it has none.
        """
        rounding = AP_ROUNDING.get(self.plain_rounding, self.plain_rounding)
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding {rounding} does not go with {self.learns or self.overflow}")
        return rounding

    @classmethod
    def parse(cls, text: str) -> Quantizer:
        """Read `k,i,f` or a name, and words after slashes in any order: `1,0,7/per_channel/SAT_SYM/RND/bits`.

        Raises:
            ValueError: a word that means nothing here.
        """
        kind, *words = text.split("/")
        return cls(**{**(NAMED.get(kind) or {"bits": FixedPoint.parse(kind)}), **_settings(words)})

    def changed(self, settings: Mapping[str, Any]) -> Quantizer:
        """The quantizer with some of its fields set anew.

        Raises:
            ValueError: there is no such field, or it does not take the value.
        """
        known = [field.name for field in fields(self)]
        for name in settings:
            if name not in known:
                raise ValueError(f"a quantizer has no '{name}'{nearest(name, known)}; it has: {', '.join(known)}")
        given = dict(settings)
        if "granularity" in given:
            given = {**_granularity(str(given.pop("granularity"))), **given}
        return replace(self, **given)

    @property
    def sharing(self) -> str:
        """The granularity with its size or axis, as `changed` reads it."""
        number = self.axis if self.granularity == PER_CHANNEL else self.size or None
        return self.granularity if number is None else f"{self.granularity}:{number}"

    def words(self) -> list[str]:
        """What differs from a plain saturating type, as `parse` reads it."""
        found = [self.sharing, self.rounding, self.overflow, self.learns]
        return [word for word in found if word is not None and word not in (PER_TENSOR, "SAT")]

    def __str__(self) -> str:
        return "/".join([str(self.bits), *self.words()])


def _check(what: str, name: str | None, known: tuple[str | None, ...]) -> None:
    if name not in known:
        names = [one for one in known if one is not None]
        raise ValueError(f"no {what} '{name}'{nearest(str(name), names)}; there are: {', '.join(names)}")


def _granularity(text: str) -> dict[str, Any]:
    """The fields that `per_group:16` or `per_channel:1` sets."""
    name, _, number = text.partition(":")
    if number and not number.removeprefix("-").isdecimal():
        what = "axis" if name == PER_CHANNEL else "size of a group"
        raise ValueError(f"the {what} is a whole number, not '{number}'")
    counted = int(number) if number else None
    if name == PER_CHANNEL:
        return {"granularity": name, "size": 0, "axis": counted}
    return {"granularity": name, "size": counted or 0, "axis": None}


def _settings(words: list[str]) -> dict[str, Any]:
    """The fields that some words set."""
    found: dict[str, Any] = {}
    for word in words:
        name, _, number = word.partition(":")
        for field, known in (
            ("granularity", GRANULARITIES),
            ("rounding", ALL_ROUNDINGS),
            ("overflow", OVERFLOWS),
            ("learns", LEARNED),
        ):
            if name in known and field not in found:
                found[field] = name
                break
        else:
            everything = [*GRANULARITIES, *ALL_ROUNDINGS, *OVERFLOWS, *LEARNED]
            raise ValueError(f"'{word}' says nothing about a quantizer{nearest(name, everything)}")
        if number or name in GRANULARITIES:
            found |= _granularity(word)
    return found


TENSORS = ("weight", "bias", "input", "output", *PARTS)
"""What a layer may round in its own way, and what a softmax or a normalization may inside."""


def read_overrides(text: str) -> dict[str, dict[str, Quantizer | None]]:
    """Quantizers by pattern and tensor, from JSON: {"fc*": {"weight": "1,0,3/per_channel", "input": null}}.

    Raises:
        ValueError: no JSON, or no quantizer; TypeError or AttributeError where its form is another.
    """
    found = {}
    for pattern, kinds in json.loads(text or "{}").items():
        unknown = [name for name in kinds if name not in TENSORS]
        if unknown:
            raise ValueError(f"'{unknown[0]}' is not one of {', '.join(TENSORS)}")
        found[str(pattern)] = {
            name: None if kind is None else Quantizer.parse(str(kind)) for name, kind in kinds.items()
        }
    return found
