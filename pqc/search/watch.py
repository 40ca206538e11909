"""Trials compared while they train, by what each epoch measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from pqc.search import samplers
from pqc.search.request import Tool
from pqc.search.study import Place


@dataclass(frozen=True)
class Watch:
    """What a worker needs to compare a trial with others.

    Args:
        place: where the study is stored.
        pruner: which trials end early.
        name: of the objective, a key of an epoch's record.
    """

    place: Place
    pruner: Tool
    name: str

    def trial(self, number: int) -> WatchedTrial:
        """The trial with this number."""
        pruner = samplers.pruner(self.pruner.name, self.pruner.options)
        study = optuna.load_study(study_name=self.place.name, storage=self.place.storage(), pruner=pruner)
        frozen = study.get_trials(deepcopy=False)[number]
        return WatchedTrial(optuna.trial.Trial(study, frozen._trial_id), self.name, frozen.last_step or 0)


class WatchedTrial:
    """A trial whose epochs are compared with those of others.

    Args:
        trial: in Optuna's storage.
        name: a key of an epoch's record.
        known: the last epoch that is stored already.
    """

    def __init__(self, trial: optuna.trial.Trial, name: str, known: int) -> None:
        self._trial, self._name, self._known = trial, name, known

    def is_hopeless(self, record: Mapping[str, Any], epoch: int) -> bool:
        """Store what an epoch measured, and say whether the trial is to end."""
        if epoch > self._known:
            self._trial.report(float(record[self._name]), epoch)
        return bool(self._trial.should_prune())
