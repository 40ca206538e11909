"""A space chosen for a budget: so many bit operations, or such a share of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pqc import metrics
from pqc.errors import UsageError
from pqc.options import nearest
from pqc.search.request import Request, checked
from pqc.search.space import written
from pqc.yaml_file import Document

Content = dict[str, Any]

MARGIN = 0.99
"""Trainings aim this far below the budget: a target is met to one weight, or to a step of a controller."""
SMALLEST = 0.25
"""The share of the budget down to which is searched where the smallest network is wanted."""
TRIALS = 16


def request(budget: str, least: float | None, loss: str, settings: Mapping[str, str]) -> Request:
    """The search for the best network within a budget, or for the smallest one that is good enough.

    Args:
        budget: `ebops=5000` or `keep=0.1`.
        least: what the task's metric must reach; None looks for the best within the budget.
        loss: of the task.
        settings: keys of the schedule by `--set`.

    Raises:
        UsageError: no such budget.
    """
    name, _, text = budget.partition("=")
    if name not in KINDS:
        raise UsageError(f"no budget '{name}'{nearest(name, KINDS)}", hint="give ebops=5000 or keep=0.1")
    try:
        most = float(text)
    except ValueError:
        most = 0.0
    if not 0 < most < (1 if name == "keep" else float("inf")):
        raise UsageError(f"'{text}' is no budget of {name}", hint="give ebops=5000 or keep=0.1")
    content = KINDS[name](most, least is not None)
    metric, size = metrics.metric_name(loss), SIZES[name]
    content["constraints"] = {size: f"<= {most!r}", **({} if least is None else {metric: f">= {least!r}"})}
    content |= {"objectives": [metric if least is None else size], "trials": TRIALS}
    content["set"]["training.loss"] = loss
    if loss != "cross-entropy":
        content["set"] |= {"distill": None}  # what the schedule compares are classes
    return checked(Document(written(content), f"--budget {budget}"), content, "", settings)


def _ebops(most: float, smallest: bool) -> Content:
    """Learned bits, steered to the budget; each training ends with its best epoch within it."""
    target = {"float": [SMALLEST * most, MARGIN * most], "log": True, "also": "phases.training.constraint.ebops"}
    fixed = {"target.ebops": MARGIN * most, "phases.training.constraint": {"ebops": MARGIN * most}}
    return {
        "schedule": "hgq",
        "set": {
            **({} if smallest else fixed),
            "controls.ebops_weight": 1e-5,
            "training.batch": 512,
            "phases.training.epochs": 80,
        },
        "parameters": {
            "training.learning_rate": {"float": [2e-3, 2e-2], "log": True, "as": "cosine({}, 2e-4)"},
            "training.rates.fractional_bits": {"float": [1.0, 5.0], "log": True, "also": "training.rates.integer_bits"},
            **({"target.ebops": target} if smallest else {}),
        },
    }


def _keep(most: float, smallest: bool) -> Content:
    """Two pruning methods at eight bits, both set to the share."""
    target = {"float": [1 - MARGIN * most, 1 - SMALLEST * most]}
    return {
        "schedule": ["cs-demo", "magnitude"],
        "set": {
            **({} if smallest else {"target.sparsity": 1 - MARGIN * most}),
            "phases.training.epochs": 30,
            "phases.fine_tuning.epochs": 30,
        },
        "parameters": {
            "training.learning_rate": {"float": [2e-3, 3e-2], "log": True, "as": "cosine({}, 1e-4)"},
            "training.batch": {"choice": [512, 1024]},
            **({"target.sparsity": target} if smallest else {}),
        },
    }


KINDS: dict[str, Callable[[float, bool], Content]] = {"ebops": _ebops, "keep": _keep}
SIZES = {"ebops": "ebops", "keep": "keep_ratio"}
