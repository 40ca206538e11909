"""The stretches of a schedule in order, and what can be said of them before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pqc import curves
from pqc.errors import TrainingError
from pqc.method import Method
from pqc.schedule import PRICES, Schedule
from pqc.schedule_sections import Constraint, Phase


@dataclass(frozen=True)
class Segment:
    """A stretch of epochs with one graph: a stage, the round of training it belongs to, and its phase."""

    stage: str
    round: int
    epochs: int
    learning_rate: curves.Curve
    rates: dict[str, curves.Curve]
    phase: Phase

    def is_over(self, records: list[dict[str, Any]], since: int = 0) -> bool:
        """Whether all epochs are done, or the validation loss has stopped falling.

        Args:
            records: the epochs so far.
            since: how many of them do not count for the loss.
        """
        stopping = self.phase.early_stopping
        if len(records) >= self.epochs or stopping is None:
            return len(records) >= self.epochs
        losses = [record["validation_loss"] for record in records[since:]]
        best = 0
        for epoch, loss in enumerate(losses):
            best = epoch if loss < losses[best] - stopping.min_delta else best
        return len(losses) - 1 - best >= stopping.patience


def segments(schedule: Schedule) -> list[Segment]:
    """The stretches of a schedule, in order; those without epochs are left out."""
    phases = schedule.phases
    plan: list[tuple[str, int, Phase]] = [("pretraining", 0, phases.pretraining)]
    if phases.calibration.batches:
        plan.append(("calibration", 0, Phase(epochs=1)))
    plan += [("training", number, phases.training) for number in range(phases.training.rounds)]
    plan += [("fine-tuning", 0, phases.fine_tuning)]
    bound = schedule.target.ebops
    return [_segment(schedule, stage, number, _within(phase, bound)) for stage, number, phase in plan if phase.epochs]


def _within(phase: Phase, ebops: float | None) -> Phase:
    """The phase, ending with its best epoch within the target where there is one."""
    if ebops is None:
        return phase
    constraint = phase.constraint.model_copy(update={"ebops": ebops})
    return phase.model_copy(update={"select": "best", "constraint": constraint})


def _segment(schedule: Schedule, stage: str, number: int, phase: Phase) -> Segment:
    training = schedule.training
    rate = training.learning_rate if phase.learning_rate is None else phase.learning_rate
    rates = training.rates if phase.rates is None else phase.rates
    return Segment(
        stage,
        number,
        phase.epochs,
        curves.parse(rate),
        {role: curves.parse(curve) for role, curve in rates.items()},
        phase,
    )


def control_curves(schedule: Schedule) -> dict[str, curves.Curve]:
    """The annealed scalars of the method and of the bits' price."""
    known = schedule.method.controls() if schedule.method is not None else {}
    prices = PRICES if schedule.quantization is not None and schedule.quantization.learns_bits else {}
    texts = {**known, **prices, **schedule.controls}
    return {name: curves.parse(text) for name, text in texts.items()}


def best_epoch(records: list[dict[str, Any]], metric: str, constraint: Constraint, since: int = 0) -> int | None:
    """The epoch with the largest metric of those that keep the constraint, the last of equals, or None.

    Args:
        records: the history of a segment.
        metric: the key to judge by.
        constraint: what an epoch must keep.
        since: how many epochs do not count.
    """
    eligible = [index for index, record in enumerate(records) if index >= since and _keeps(constraint, record)]
    return max(eligible, key=lambda index: (records[index][metric], index), default=None)


def _keeps(constraint: Constraint, record: dict[str, Any]) -> bool:
    """Whether an epoch's record keeps the constraint of its phase."""
    sparse = constraint.sparsity is None or 1 - record["keep_ratio"] >= constraint.sparsity
    return sparse and (constraint.ebops is None or record["ebops"] <= constraint.ebops)


def check_length(schedule: Schedule, per_epoch: int) -> None:
    """Refuse a run whose epochs are too short for a step, or that ends before its masks are found.

    Args:
        schedule: the plan.
        per_epoch: batches in an epoch.

    Raises:
        TrainingError: says how many epochs or batches are needed.
    """
    share = schedule.training.accumulate
    if share > per_epoch:
        raise TrainingError(
            f"a step takes {share} batches, and an epoch has {per_epoch}",
            at="training.accumulate",
            hint="lower it, or training.batch",
        )
    per_epoch -= per_epoch % share
    method, batches, phase = schedule.method, schedule.phases.calibration.batches, schedule.phases.training
    if method is None:
        return
    if batches:
        _check_calibration(method, batches, per_epoch, alone=not phase.epochs)
    if finds_masks(method, batches):
        return
    # What a calibration that is too short has measured is not counted here, to be sure.
    needed = method.needed_epochs(per_epoch)
    if needed > phase.epochs * phase.rounds > 0:
        raise TrainingError(
            f"the masks would never be found: they need {needed} epochs of {per_epoch} batches",
            at="phases.training.epochs",
            hint="train longer, or lower pruning.options.start_epoch or batches",
        )


def finds_masks(method: Method, batches: int) -> bool:
    """Whether so many batches of calibration are enough for the method to find its masks."""
    budget = method.budget()
    # Masks that are chosen when an epoch begins are chosen right after calibration.
    late = budget is not None and budget.when == "epoch"
    return batches > 0 and method.needed_epochs(batches) <= 1 + late


def _check_calibration(method: Method, batches: int, per_epoch: int, *, alone: bool) -> None:
    """Refuse more batches than there are, or, where masks come from them alone, too few to find masks."""
    place = "phases.calibration.batches"
    if batches > per_epoch:
        hint = "lower it, or training.batch"
        raise TrainingError(f"there are {per_epoch} batches to calibrate on, not {batches}", at=place, hint=hint)
    if alone and not finds_masks(method, batches):
        hint = "calibrate on more, or lower pruning.options.batches or start_epoch"
        raise TrainingError(f"{batches} batches are too few for the masks to be found", at=place, hint=hint)
