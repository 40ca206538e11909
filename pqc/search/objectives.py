"""What a search wants: metrics to improve, and bounds to keep."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pqc.errors import ScheduleError
from pqc.metrics import REGRESSION, SHARES
from pqc.options import nearest

Direction = Literal["maximize", "minimize"]

SIZES = ("keep_ratio", "ebops", "seconds", "epochs")
"""Numbers at the top of a summary that are better when they are small."""
MODELS = ("float", "trained", "clean", "validation", "hls")
"""Parts of a summary that dotted names lead into."""
_BOUND = re.compile(r"\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Objective:
    """A metric to improve.

    Args:
        name: see `measured`.
        direction: where to.
    """

    name: str
    direction: Direction

    def is_better(self, one: float, other: float) -> bool:
        """Whether one value is better than another."""
        return one > other if self.direction == "maximize" else one < other


@dataclass(frozen=True)
class Constraint:
    """A bound that a metric must keep.

    Args:
        name: see `measured`.
        sign: `<=` or `>=`.
        bound: the largest or the smallest value.
    """

    name: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, name: str, text: str) -> Constraint:
        """Read `>= 0.66` or `<= 5000`.

        Raises:
            ValueError: neither.
        """
        found = _BOUND.fullmatch(text)
        try:
            bound = float(found[2]) if found else math.nan
        except ValueError:
            bound = math.nan
        if found is None or not math.isfinite(bound):
            raise ValueError(f"a bound is written '>= 0.66' or '<= 5000', not '{text}'")
        return cls(name, found[1], bound)

    def violation(self, value: float) -> float:
        """How far a value is beyond the bound; zero or less where it is kept."""
        return value - self.bound if self.sign == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:g}"


def direction(name: str, metric: str, given: str | None) -> Direction:
    """Where a metric is to go: as given, or as its name tells.

    Args:
        name: of the metric.
        metric: what the loss is measured by.
        given: `maximize`, `minimize`, or None.

    Raises:
        ValueError: no such metric, or its name does not tell.
    """
    refuse_unmeasured(name, metric)
    if given is not None:
        return "maximize" if given == "maximize" else "minimize"
    if name in SIZES:
        return "minimize"
    if name.rpartition(".")[2] in {*SHARES, REGRESSION.name, metric}:
        return "maximize"
    raise ValueError(f"say whether '{name}' is to be maximized or minimized: {name}: minimize")


def refuse_unmeasured(name: str, metric: str) -> None:
    """Refuse a name that no summary of this task can have.

    Raises:
        ValueError: names the nearest one that it has.
    """
    known = (metric, *SIZES)
    part, _, rest = name.partition(".")
    if name not in known and not (rest and part in MODELS):
        what = f"known: {', '.join(known)}, and dotted names in {', '.join(MODELS)}"
        raise ValueError(f"no metric '{name}'{nearest(name, known)}; {what}")


def measured(summary: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Metrics of a run by name.

    The task's own metric is that of the clean model on the validation rows, so that the test rows stay unseen by the
    search; other names are keys of the summary, dotted ones lead into it (`clean.accuracy`, `hls.mismatches`).

    Raises:
        ScheduleError: the summary has no such number.
    """
    found: dict[str, float] = {}
    for name in names:
        value: Any = summary
        for part in (f"validation.{name}" if name == summary["metric"] else name).split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ScheduleError(f"the run did not measure '{name}'", hint="see summary.json for what there is")
        found[name] = float(value)
    return found


def refuse_pruner(objectives: Iterable[Objective], metric: str) -> None:
    """Refuse to prune trials where no single number of each epoch says how good they are.

    Raises:
        ValueError: several objectives, or one that is only known at the end.
    """
    names, watched = [one.name for one in objectives], (metric, "keep_ratio", "ebops")
    if len(names) > 1:
        raise ValueError("trials are compared by one objective, not by several")
    if names[0] not in watched:
        raise ValueError(f"'{names[0]}' is not measured in every epoch; {', '.join(watched)} are")
