"""Optuna's samplers and pruners by name, with their options."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pqc.errors import EnvironmentFault
from pqc.options import nearest
from pqc.search.space import Space

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cma-es": "CmaEsSampler",
    "gp": "GPSampler",
    "nsga-ii": "NSGAIISampler",
    "nsga-iii": "NSGAIIISampler",
    "qmc": "QMCSampler",
    "grid": "GridSampler",
    "brute-force": "BruteForceSampler",
}
PRUNERS = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive-halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
    "patient": "PatientPruner",
    "wilcoxon": "WilcoxonPruner",
}
NEEDED = {"cma-es": "cmaes", "qmc": "scipy", "gp": "torch"}
"""Packages that Optuna imports only where a sampler draws."""
ORDERED = ("grid", "qmc")
"""Samplers whose trials are places of one sequence, which a seed fixes as a whole."""
CONSTRAINED = ("tpe", "gp", "nsga-ii", "nsga-iii")
"""Samplers that keep away from what breaks a constraint; with others only the choice of the winner knows of it."""
STRIDE = 1_000_003


def sampler(name: str, options: Mapping[str, Any], space: Space, seed: int, trial: int) -> BaseSampler:
    """The sampler that draws trial number `trial`.

    Each trial has a sampler with a seed of its own, so that a search that was stopped goes on as if it never had been.

    Raises:
        ValueError: no such sampler or option.
        EnvironmentFault: it needs a package that is not there.
    """
    from optuna import samplers

    settings = dict(options)
    if name == "grid":
        settings["search_space"] = _grid(space)
    settings["seed"] = seed if name in ORDERED else seed * STRIDE + trial
    kind = getattr(samplers, SAMPLERS[_known(name, SAMPLERS, "sampler")])
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        package = NEEDED[name]
        raise EnvironmentFault(f"the sampler '{name}' needs {package}", hint=f"pip install {package}")
    for option, parameter in inspect.signature(kind).parameters.items():
        if option.startswith("warn_") and parameter.default is True:  # of what every conditional space does
            settings[option] = False
    made: BaseSampler = _make(kind, name, settings)
    return made


def pruner(name: str, options: Mapping[str, Any]) -> BasePruner:
    """The pruner by name; `patient` takes the name of another as `wrapped_pruner`.

    Raises:
        ValueError: no such pruner or option.
    """
    from optuna import pruners

    settings = dict(options)
    if name == "patient":
        inner = settings.get("wrapped_pruner")
        settings["wrapped_pruner"] = None if inner is None else pruner(str(inner), {})
    made: BasePruner = _make(getattr(pruners, PRUNERS[_known(name, PRUNERS, "pruner")]), name, settings)
    return made


def _known(name: str, table: Mapping[str, str], what: str) -> str:
    if name not in table:
        raise ValueError(f"no {what} '{name}'{nearest(name, table)}; known: {', '.join(table)}")
    return name


def _make(kind: type, name: str, settings: Mapping[str, Any]) -> Any:
    from optuna.exceptions import ExperimentalWarning

    known = inspect.signature(kind).parameters
    for option in settings:
        if option not in known:
            raise ValueError(f"'{name}' has no option '{option}'{nearest(option, known)}; it has: {', '.join(known)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # it is chosen by name
            return kind(**settings)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"'{name}': {error}") from error


def _grid(space: Space) -> dict[str, list[Any]]:
    """All values of every dimension.

    Raises:
        ValueError: a dimension has no end of them.
    """
    found: dict[str, list[Any]] = {}
    for one in space.dimensions:
        kind = one.parameter
        if kind.choice is not None:
            found[one.name] = [*one.choices()]
        elif kind.whole is not None:
            found[one.name] = list(range(kind.whole[0], kind.whole[1] + 1, int(kind.step or 1)))
        elif kind.real is not None and kind.step is not None:
            low, high = kind.real
            count = int((high - low) / kind.step + 1e-9) + 1
            found[one.name] = [low + index * kind.step for index in range(count)]
        else:
            raise ValueError(f"a grid needs '{one.name}' as a choice, whole numbers, or with a step")
    return found
