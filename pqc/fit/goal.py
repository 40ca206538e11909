"""What a search is to reach, as a number that falls from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pqc.options import nearest

FLOAT_BITS = 32


@dataclass(frozen=True)
class Counts:
    """What a compressed network holds, weight by weight; arrays [weights].

    Args:
        sizes: how many numbers a weight has.
        nonzero: how many of them are not zero once masked and rounded.
        bits: of each of them, with the sign; 32 in float.
        prices: bit operations of a bit of a number that is not zero.
        fixed: bit operations that neither widths nor masks change.
    """

    sizes: np.ndarray
    nonzero: np.ndarray
    bits: np.ndarray
    prices: np.ndarray
    fixed: float = 0.0


def _rate(counts: Counts) -> float:
    return float((counts.nonzero * counts.bits).sum() / (FLOAT_BITS * counts.sizes.sum()))


def _ebops(counts: Counts) -> float:
    return float((counts.prices * counts.nonzero * counts.bits).sum() + counts.fixed)


def _bits(counts: Counts) -> float:
    return float((counts.sizes * counts.bits).sum() / counts.sizes.sum())


def _keep(counts: Counts) -> float:
    return float(counts.nonzero.sum() / counts.sizes.sum())


MEASURES: Mapping[str, Callable[[Counts], float]] = {"rate": _rate, "ebops": _ebops, "bits": _bits, "keep": _keep}
"""Stored bits of what is not zero against float32; bit operations; mean bits of all weights; share not zero."""


@dataclass(frozen=True)
class Goal:
    """A bound on one of `MEASURES`.

    Raises:
        ValueError: no such measure, or a bound that is not above zero.
    """

    measure: str
    bound: float

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"no goal '{self.measure}'{nearest(self.measure, MEASURES)}; known: {', '.join(MEASURES)}")
        if not 0 < self.bound < np.inf:
            raise ValueError(f"a goal is a number above 0, not {self.bound}")

    def value(self, counts: Counts) -> float:
        """The measure."""
        return MEASURES[self.measure](counts)

    def met(self, value: float) -> bool:
        """Whether a value of the measure is within the bound."""
        return value <= self.bound

    @classmethod
    def read(cls, content: object) -> Goal:
        """A goal as a schedule has it, {rate: 0.1}, or as text, rate=0.1.

        Raises:
            ValueError: neither.
        """
        if isinstance(content, Goal):
            return content
        if isinstance(content, str) and content.count("=") == 1:
            content = dict([content.split("=")])
        if not isinstance(content, dict) or len(content) != 1:
            raise ValueError(f"a goal is one of {', '.join(MEASURES)} with a number: rate=0.1")
        (measure, bound), *_ = content.items()
        try:
            number = float(bound)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the goal '{measure}' needs a number, not {bound!r}") from error
        return cls(str(measure), number)

    def __str__(self) -> str:
        return f"{self.measure}={self.bound:g}"

    @classmethod
    def __get_pydantic_core_schema__(cls, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(
            cls,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda goal: {goal.measure: goal.bound}),
        )
