"""Look at schedules: complete, epoch by epoch, and in pqc's own form."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pqc import curves, schedule
from pqc.errors import PqcError
from pqc.fit.settings import Fit
from pqc.functions.losses import LOSSES
from pqc.functions.optimizers import OPTIMIZERS
from pqc.schedule import Schedule
from pqc.schedule_sections import Phase
from pqc.training.segments import Segment, segments
from pqc.yaml_file import Note

FINE = 1000
"""Places of an epoch at which a learning rate is looked at, since it moves with the steps."""
WIDTH = 118


@dataclass(frozen=True)
class Stretch:
    """Epochs in which the same things are on.

    Args:
        first: the first epoch, counted from 1 over the whole run.
        last: the last one; early stopping may end the stretch before it, and later ones move up then.
        phase: `pretraining`, `calibration`, `training` or `fine-tuning`.
        round: of training, counted from 0.
        quantizers: whether they round.
        masks: `off`, `learned` or `frozen`.
        learning_rate: at the start and at the end.
        controls: the same of each annealed scalar of the method.
        events: what else happens, in words.
    """

    first: int
    last: int
    phase: str
    round: int
    quantizers: bool
    masks: str
    learning_rate: tuple[float, float]
    controls: dict[str, tuple[float, float]]
    events: list[str]


@dataclass(frozen=True)
class View:
    """A schedule as it will be run.

    Args:
        content: its keys, every default filled in.
        epochs: what happens when.
        notes: on a config of the reference library.
    """

    content: dict[str, Any]
    epochs: list[Stretch]
    notes: list[Note]

    def record(self) -> dict[str, Any]:
        """The view, ready for JSON."""
        notes = [vars(note) for note in self.notes]
        return {"schedule": self.content, "epochs": [asdict(one) for one in self.epochs], "notes": notes}


@dataclass(frozen=True)
class Check:
    """What is known about a schedule file.

    Args:
        file: as it was named.
        error: what is wrong with it, or None.
        notes: on a config of the reference library.
    """

    file: str
    error: PqcError | None
    notes: list[Note]

    def record(self) -> dict[str, Any]:
        """The check, ready for JSON."""
        error = self.error
        return {
            "file": self.file,
            "ok": error is None,
            "error": None if error is None else {"at": error.at, "message": error.message, "hint": error.hint},
            "notes": [vars(note) for note in self.notes],
        }


def show(source: str | Path, settings: dict[str, str] | None = None) -> View:
    """A schedule with all its defaults, and what happens in which epochs.

    Args:
        source: see `schedule.read`.
        settings: values by dotted key.

    Raises:
        ScheduleError: see `schedule.read`.
    """
    plan, notes = schedule.read(source, settings)
    return View(complete(plan), timeline(plan), notes)


def check(source: str | Path, settings: dict[str, str] | None = None) -> Check:
    """Read a schedule and say what is wrong with it, if anything is."""
    try:
        return Check(str(source), None, schedule.read(source, settings)[1])
    except PqcError as error:
        return Check(str(source), error, [])


def convert(source: str | Path, settings: dict[str, str] | None = None) -> str:
    """A schedule in pqc's own form, as YAML with the notes as comments at the top.

    Raises:
        ScheduleError: see `schedule.read`.
    """
    plan, notes = schedule.read(source, settings)
    comments = [line for note in notes for line in _comment(str(note))]
    return "".join(f"{line}\n" for line in comments) + to_yaml(plan.model_dump(mode="json", exclude_unset=True))


def complete(plan: Schedule) -> dict[str, Any]:
    """A schedule with every default filled in, also those of the method, the optimizer and the loss."""
    content = plan.model_dump(mode="json")
    if plan.method is not None:
        content["pruning"]["options"] = {one.name: getattr(plan.method, one.name) for one in fields(plan.method)}
        content["controls"] = {**plan.method.controls(), **content["controls"]}
    optimizer, training = plan.training.optimizer, content["training"]
    defaults = OPTIMIZERS[optimizer.name]()
    known = {one.name: float(getattr(defaults, one.name)) for one in fields(defaults)}
    training["optimizer"]["options"] = {**known, **optimizer.options}
    attributes = LOSSES[plan.training.loss].bodies()[0].attribute_proto
    training["loss_options"] = {**{one.name: float(one.f) for one in attributes}, **plan.training.loss_options}
    return content


def to_yaml(content: dict[str, Any]) -> str:
    """The content of a schedule as YAML, short lists on one line."""
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=WIDTH)


def timeline(plan: Schedule) -> list[Stretch]:
    """What happens in which epochs."""
    found: list[Stretch] = []
    done = 0
    for segment in segments(plan):
        if segment.stage == "calibration":
            found.append(_calibration(plan, done))
            continue
        found.append(_stretch(plan, segment, done))
        done += segment.epochs
    if plan.phases.fit is not None:
        before = [one for one in found if one.phase == "pretraining"]
        found.insert(len(before), _search(plan.phases.fit, before[-1].last if before else 0))
    return found


def _search(fit: Fit, done: int) -> Stretch:
    what = " and ".join([*(["bit widths"] if fit.quantize else []), *(["masks"] if fit.prune else [])])
    text = f"{fit.search} search of {what} for {fit.goal} at most; no weight moves"
    return Stretch(done + 1, done, "fit", 0, False, "off", (0, 0), {}, [text])


def _stretch(plan: Schedule, segment: Segment, done: int) -> Stretch:
    training = segment.stage == "training"
    masks = {"pretraining": "off", "training": "learned"}.get(segment.stage, "frozen")
    return Stretch(
        first=done + 1,
        last=done + segment.epochs,
        phase=segment.stage,
        round=segment.round,
        quantizers=plan.quantization is not None,
        masks="off" if plan.method is None else masks,
        learning_rate=_ends(segment.learning_rate, 0, segment.epochs, segment.epochs, FINE),
        controls=_controls(plan, segment) if training else {},
        events=[*(_round(plan, segment, done) if training else []), *_selection(segment.phase)],
    )


def _calibration(plan: Schedule, done: int) -> Stretch:
    text = f"{plan.phases.calibration.batches} batches feed the method's statistics; no weight moves"
    quantizers = plan.quantization is not None
    return Stretch(
        done + 1, done, "calibration", 0, quantizers, "learned" if plan.method else "off", (0, 0), {}, [text]
    )


def _ends(curve: curves.Curve, start: int, epochs: int, length: int, fine: int = 1) -> tuple[float, float]:
    """A curve at the start and at the end of some of its epochs."""
    return curve(start * fine, length * fine), curve((start + epochs) * fine - 1, length * fine)


def _controls(plan: Schedule, segment: Segment) -> dict[str, tuple[float, float]]:
    texts = {**plan.method.controls(), **plan.controls} if plan.method is not None else {}
    start, length = 0, segment.epochs
    if plan.phases.training.ramps == "global":
        start, length = segment.round * segment.epochs, plan.phases.training.rounds * segment.epochs
    return {name: _ends(curves.parse(text), start, segment.epochs, length) for name, text in texts.items()}


def _round(plan: Schedule, segment: Segment, done: int) -> list[str]:
    """What happens in a round of training and when it ends."""
    phase, method = plan.phases.training, plan.method
    last = segment.round == phase.rounds - 1
    words: list[str] = []
    what = " and ".join(phase.rewind_what) or "nothing"
    if segment.round == 0 and phase.rewind != "never":
        words.append(f"{what} saved before epoch {done + phase.save_weights_epoch + 1}")
    if method is not None and plan.target.sparsity is not None and method.strength is not None:
        words.append(f"{method.strength} is steered to a sparsity of {plan.target.sparsity:g}")
    if last and method is not None:
        words.append("at the end the masks become zeros and ones")
    if phase.rewind == "every-round" or (phase.rewind == "post-training-stage" and last):
        words.append(f"at the end {what} go back to the saved ones")
    elif not last and method is not None and method.end_of_round() is not None:
        words.append("at the end the method prepares the next round")
    return words


def _selection(phase: Phase) -> list[str]:
    """Which epoch's parameters are kept, and when the phase ends early."""
    words = []
    if phase.select == "best":
        bounds = (
            [f"a sparsity of at least {phase.constraint.sparsity:g}"] if phase.constraint.sparsity is not None else []
        )
        bounds += [f"at most {phase.constraint.ebops:g} EBOPs"] if phase.constraint.ebops is not None else []
        words.append("the best epoch is kept" + (f", of those with {' and '.join(bounds)}" if bounds else ""))
    if phase.early_stopping is not None:
        stopping = phase.early_stopping
        least = f" by more than {stopping.min_delta:g}" if stopping.min_delta else ""
        words.append(f"ends early after {stopping.patience} epochs in which the validation loss did not fall{least}")
    return words


def _comment(text: str) -> list[str]:
    # What YAML allows in no comment, as it stands in the file that is quoted.
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
