"""What methods that rank have in common: units, patterns, and their options' checks."""

from __future__ import annotations

import math
import re
from typing import Literal

from onnxscript import FLOAT, script
from onnxscript import opset21 as op

from pqc.functions.operator import SCORE, Operator

STRUCTURES = ("none", "output", "input")
SCOPES = ("auto", "global", "layer")


@script(SCORE, default_opset=op)
def StoredMask(mask: FLOAT) -> FLOAT:
    """The mask as it was chosen."""
    return op.Identity(mask)


STORED_MASK = Operator(StoredMask)
"""The hard mask of methods that keep theirs as a state."""


def check_share(name: str, value: float) -> None:
    """Refuse what is no share of the weights.

    Raises:
        ValueError: it is outside 0 to 1.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} is a share from 0 up to, but not, 1, and not {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is none of its choices.

    Raises:
        ValueError: lists the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, not '{value}'")


def check_structure(structure: str, pattern: str, scope: str) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: says which.
    """
    check_choice("structure", structure, STRUCTURES)
    check_choice("scope", scope, SCOPES)
    if pattern:
        parse_pattern(pattern)
        if structure != "none":
            raise ValueError("a pattern prunes single weights; leave structure at none")


def parse_pattern(pattern: str) -> tuple[int, int]:
    """`2:4`: how many remain of how many neighbours.

    Raises:
        ValueError: not two numbers, or not fewer than there are.
    """
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", pattern)
    kept, group = map(int, match.groups()) if match is not None else (0, 0)
    if not 0 < kept < group:
        raise ValueError(f"a pattern is written like 2:4, two of four remain, and not '{pattern[:100]}'")
    return kept, group


def resolve_scope(scope: str, structure: str) -> Literal["global", "layer"]:
    """Rank single weights of all layers together, and whole outputs or inputs, whose norms depend on size, by layer."""
    together = scope == "global" or (scope == "auto" and structure == "none")
    return "global" if together else "layer"


def check_no_pattern(pattern: str) -> None:
    """Refuse a target where a pattern says how much remains.

    Raises:
        ValueError: there is a pattern.
    """
    if pattern:
        raise ValueError(f"the pattern {pattern} says how much remains; leave the target or the pattern out")


def check_pattern_fits(pattern: str, shape: tuple[int, ...]) -> None:
    """Refuse a weight that does not divide into groups.

    Raises:
        ValueError: names the numbers.
    """
    if pattern and math.prod(shape) % parse_pattern(pattern)[1]:
        raise ValueError(f"its {math.prod(shape)} weights do not divide into groups of {parse_pattern(pattern)[1]}")


def pattern_attributes(pattern: str) -> dict[str, int]:
    """The attributes of the functions that keep so many of a group."""
    return dict(zip(("keep", "group"), parse_pattern(pattern), strict=True)) if pattern else {}
