"""Write the report of a search: one HTML page, its plots inside, without scripts or links to elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pqc import files
from pqc.report import markup, study_plots
from pqc.report.page import NAME, document
from pqc.report.sections import fold_long
from pqc.report.study_plots import metric_words, shown

Record = Mapping[str, Any]


def write(folder: Path, found: Record) -> Path:
    """Write `report.html` into `folder` and return its path.

    Args:
        folder: of the study.
        found: the search in numbers, as in `study.json`.

    Raises:
        PqcError: the page cannot be written.
    """
    front = [one for number in found["front"] for one in found["trials"] if one["number"] == number]
    several = len(found["objectives"]) > 1
    parts = [
        _title(found),
        _cards(found),
        markup.section("Pareto front", study_plots.front(found), _trials(found, front) if several else ""),
        markup.section("Course of the search", study_plots.course(found)),
        markup.section(
            "Parameters",
            study_plots.parallel(found),
            markup.paragraph("A line for each trial. Orange: the front; grey: a constraint is broken."),
        ),
        markup.section("Importances", study_plots.importances(found), markup.paragraph(_importance_note(found))),
        markup.section("Finalists", _finalists(found)),
        markup.section("All trials", _trials(found, found["trials"])),
        markup.section("Failures", _failures(found)),
    ]
    path = folder / NAME
    files.write_text(path, document(markup.plain(found["model"]), "".join(parts)))
    return path


def _title(found: Record) -> str:
    facts = " · ".join(["pqc search", f"data {found['data']}", *found["constraints"]])
    return f'<header><h1>{markup.text(found["model"])}</h1>\n<div class="sub">{markup.text(facts)}</div></header>\n'


def _cards(found: Record) -> str:
    states = [one["state"] for one in found["trials"]]
    counts = [f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states]
    minutes = sum(one["seconds"] for one in found["trials"]) / 60
    cards = [
        markup.card("trials", markup.count(len(states)), ", ".join(counts)),
        markup.card("time of all trials", f"{markup.real(minutes, 3)}{markup.GAP}minutes"),
    ]
    winner = next((one for one in found["trials"] if one["number"] == found["winner"]), None)
    if winner is None:
        cards.append(markup.card("winner", "none", "no trial keeps the constraints", "bad"))
    else:
        values = ", ".join(_value(one["name"], value) for one, value in _pairs(found, winner))
        cards.append(markup.card("winner", f"trial {winner['number']}", values, "good"))
    return f'<div class="cards">\n{"".join(cards)}</div>\n'


def _pairs(found: Record, trial: Record) -> list[tuple[Record, float]]:
    """Each objective with a complete trial's value."""
    return list(zip(found["objectives"], trial["values"], strict=True))


def _value(name: str, value: float) -> str:
    unit = f"{markup.GAP}%" if study_plots.title(name).endswith("(%)") else ""
    number = markup.real(shown(name, value)) if unit else markup.count(shown(name, value))
    return f"{metric_words(name)} {number}{unit}"


def _trials(found: Record, trials: Sequence[Record]) -> str:
    """A row for each trial: its values and parameters."""
    names = [one["name"] for one in found["parameters"]]
    header = ["trial", "state", *(metric_words(one["name"]) for one in found["objectives"]), "constraints", *names]
    rows = [
        [
            markup.count(one["number"]),
            one["state"],
            *(_cells(found, one)),
            ("kept" if one["feasible"] else "broken") if one["state"] == "complete" else None,
            *(_parameter(one["params"].get(name)) for name in names),
        ]
        for one in trials
    ]
    align = "rl" + "r" * len(found["objectives"]) + "l" + "r" * len(names)
    return fold_long(f"{len(rows)} trials", rows, markup.table(header, align, rows))


def _cells(found: Record, trial: Record) -> list[str | None]:
    if trial["state"] != "complete":
        return [None] * len(found["objectives"])
    return [markup.real(shown(one["name"], value)) for one, value in _pairs(found, trial)]


def _parameter(value: Any) -> str | None:
    return markup.real(value, 4) if isinstance(value, float) else None if value is None else str(value)


def _importance_note(found: Record) -> str:
    note = "How differently the best fifth of the trials is spread, for each objective (PED-ANOVA)."
    return note if found["importances"] else "There are too few trials to say what matters."


def _finalists(found: Record) -> str:
    names = [one["name"] for one in found["objectives"]]
    rows = [
        (markup.count(one["number"]), seed, *(markup.real(shown(name, metrics[name])) for name in names))
        for one in found["finalists"]
        for seed, metrics in one["metrics"].items()
    ]
    return markup.table(["trial", "seed", *map(metric_words, names)], "rr" + "r" * len(names), rows)


def _failures(found: Record) -> str:
    rows = [(markup.count(one["number"]), one["error"]) for one in found["trials"] if one["error"]]
    return markup.table(("trial", "why"), "rl", rows)
