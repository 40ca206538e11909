"""How much each parameter matters for an objective."""

from __future__ import annotations

import warnings

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from pqc.search.study import Study

LEAST = 10
"""Fewer complete trials say nothing."""
BETTER = 0.2
"""The share of trials that count as good."""


def importances(study: Study) -> dict[str, dict[str, float]]:
    """Shares by objective and parameter: how differently the good trials are spread (PED-ANOVA, arXiv:2304.10255).

    Empty where there are too few trials.
    """
    complete = sum(point.state == "complete" for point in study.points())
    found: dict[str, dict[str, float]] = {}
    for index, one in enumerate(study.request.objectives if complete >= LEAST else ()):
        sign = -1 if one.direction == "maximize" else 1  # the evaluator takes small values for good ones

        def value(trial: FrozenTrial, index: int = index, sign: int = sign) -> float:
            return sign * float(trial.values[index])

        evaluator = PedAnovaImportanceEvaluator(target_quantile=BETTER)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*low `target` values", UserWarning)  # which is why there is a sign
            found[one.name] = get_param_importances(study.optuna(), evaluator=evaluator, target=value)
    return found
