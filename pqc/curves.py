"""Closed-form curves over epochs or steps, written as text: `exp(1, 200)`.

A curve takes the position n and the length N: it is at its start at n = 0 and at its end at n = N - 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from pqc.errors import PqcError
from pqc.options import nearest

Curve = Callable[[float, int], float]

LARGEST = (2 - 2**-23) * 2.0**127
"""The largest float32."""
_CALL = re.compile(r"\s*([a-z][a-z_]*)\s*\(([^()]*)\)\s*")


def _part(n: float, length: int) -> float:
    return n / (length - 1) if length > 1 else float(n)


def constant(value: float) -> Curve:
    """The same number always."""
    return lambda n, length: value


def linear(start: float, end: float) -> Curve:
    """A straight line."""
    return lambda n, length: start + (end - start) * _part(n, length)


def exp(start: float, end: float) -> Curve:
    """A constant factor a step: start (end/start)^(n/(N-1))."""
    return lambda n, length: start * (end / start) ** _part(n, length)


def stairs(start: float, end: float, steps: float) -> Curve:
    """So many equal stretches, each a constant factor above the one before, from start to end."""
    if steps < 1 or steps != int(steps):
        raise ValueError("the number of stretches is a whole number from 1 on")

    def curve(n: float, length: int) -> float:
        step = min(math.floor(n * steps / max(length, 1)), steps - 1)
        value: float = start * (end / start) ** (step / max(steps - 1, 1))
        return value

    return curve


def cosine(start: float, end: float) -> Curve:
    """Half a cosine wave."""
    return lambda n, length: end + (start - end) * (1 + math.cos(math.pi * min(_part(n, length), 1.0))) / 2


def restarts(start: float, end: float, times: float) -> Curve:
    """Half a cosine wave in each of so many equal stretches: with `stairs`, rates fall on every stair."""
    if times < 1 or times != int(times):
        raise ValueError("the number of stretches is a whole number from 1 on")
    falling = cosine(start, end)

    def curve(n: float, length: int) -> float:
        stretch = max(length / times, 1.0)
        return falling(n % stretch, math.ceil(stretch))

    return curve


def step(value: float, factor: float, *fractions: float) -> Curve:
    """`value`, multiplied by `factor` at each of the fractions of the length."""
    return lambda n, length: value * factor ** sum(n >= fraction * length for fraction in fractions)


def warmup_cosine(start: float, end: float, warmup: float) -> Curve:
    """A straight rise to `start` over the fraction `warmup`, then half a cosine wave to `end`."""
    falling = cosine(start, end)

    def curve(n: float, length: int) -> float:
        rise = warmup * length
        return start * (n + 1) / rise if n + 1 < rise else falling(n, length)

    return curve


def piecewise(*points: float) -> Curve:
    """Straight lines between points: the fraction of the length, the number there, and so on; level beyond the ends."""
    places, values = _points(points)
    return lambda n, length: float(np.interp(_part(n, length), places, values))


def piecewise_exp(*points: float) -> Curve:
    """As `piecewise`, with a constant factor a step between two points; all numbers are above zero."""
    places, values = _points(points)
    logarithms = [math.log(value) for value in values]
    return lambda n, length: math.exp(float(np.interp(_part(n, length), places, logarithms)))


def _points(numbers: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    places, values = numbers[::2], numbers[1::2]
    if not numbers or len(places) != len(values) or list(places) != sorted(set(places)):
        raise ValueError("points are fractions in rising order, each with its number")
    return places, values


def ramp(slope: float, limit: float = 1.0) -> Curve:
    """`slope` more every step from the first on, up to `limit`."""
    return lambda n, length: min(slope * (n + 1), limit)


def cubic(start: float, end: float, first: float = 0.0, last: float = 1.0) -> Curve:
    """From start to end between two fractions of the length, fast first: end + (start - end)(1 - share)³."""

    def curve(n: float, length: int) -> float:
        begin, width = first * (length - 1), (last - first) * (length - 1)
        share = min(max((n - begin) / width, 0.0), 1.0) if width > 0 else float(n >= begin)
        return end + (start - end) * (1 - share) ** 3

    return curve


def autosparse(start: float, reset: float) -> Curve:
    """start · max((1 + cos πt)/2, 1 - sigmoid(12t - 6)), t the share done an epoch before; 0 after epoch `reset`."""

    def curve(n: float, length: int) -> float:
        before = max(n - 1, 0)
        t = before / length
        falling = max((1 + math.cos(math.pi * t)) / 2, 1 - 1 / (1 + math.exp(6 - 12 * t)))
        return 0.0 if n > 0 and before >= reset else start * falling

    return curve


CURVES: dict[str, Callable[..., Curve]] = {
    "constant": constant,
    "linear": linear,
    "exp": exp,
    "stairs": stairs,
    "cosine": cosine,
    "restarts": restarts,
    "step": step,
    "warmup_cosine": warmup_cosine,
    "piecewise": piecewise,
    "piecewise_exp": piecewise_exp,
    "ramp": ramp,
    "cubic": cubic,
    "autosparse": autosparse,
}


def parse(text: str | float) -> Curve:
    """Read a curve: a number, or `name(numbers)`.

    Raises:
        PqcError: no such curve, or the wrong numbers for it.
    """
    match = _CALL.fullmatch(text) if isinstance(text, str) else None
    try:
        if match is None:
            return _finite(constant(float(text)))
        name, inside = match.groups()
        if name not in CURVES:
            raise PqcError(f"no curve '{name}'{nearest(name, CURVES)}", hint=f"curves are: {', '.join(CURVES)}")
        return _finite(CURVES[name](*(float(part) for part in inside.split(",") if part.strip())))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise PqcError(f"cannot read the curve '{text}'", hint="write a number or, for example, exp(1, 200)") from error


def _finite(curve: Curve) -> Curve:
    """The curve itself, tried at a few places.

    Raises:
        ValueError: it is not finite there, in float32.
    """
    if not all(abs(float(curve(n, length))) <= LARGEST for length in (1, 2, 9) for n in range(length + 1)):
        raise ValueError("not finite")
    return curve
