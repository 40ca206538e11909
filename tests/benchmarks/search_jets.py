"""Search over schedules of the jet tagger, and compare the front with the shipped schedules at equal length.

    make search-jets        # or: python tests/benchmarks/search_jets.py

Sixty trials of 20 epochs around `cs-demo` and `magnitude`: learning rate, bits and how much is pruned. The search sees
validation rows only; the table has test rows. A search that was stopped goes on, one that ended is only read. The table goes into docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import results_page

MODEL = "jet_tagger"
BEGIN, END = "<!-- search: written by tests/benchmarks/search_jets.py -->", "<!-- end of search -->"
SHORT = {"phases.training.epochs": "12", "phases.fine_tuning.epochs": "8"}
SHIPPED = ("cs-demo", "magnitude")
SPACE = """\
schedule: [cs-demo, magnitude]
parameters:
  training.learning_rate: {float: [2.0e-3, 4.0e-2], log: true, as: "cosine({}, 1e-4)"}
  quantization.weights: {int: [2, 7], as: "[1, 0, {}]", also: quantization.biases}
  quantization.inputs: {int: [4, 8], as: "[0, 0, {}]"}
  pruning.options.threshold_decay: {float: [3.0e-6, 1.0e-3], log: true, when: {schedule: cs-demo}}
  target.sparsity: {float: [0.5, 0.95], when: {schedule: magnitude}}
objectives: [accuracy, ebops]
constraints: {accuracy: ">= 0.6"}
sampler: {name: tpe, options: {multivariate: true, group: true}}
"""


def shipped(name: str, folder: Path) -> dict[str, Any]:
    """The summary of a shipped schedule at the length of the trials."""
    from pqc import workflows

    path = folder / name / "summary.json"
    if not path.exists():
        source = workflows.resolve(MODEL)
        plan = workflows.load_plan(name, source, SHORT)
        workflows.run(source, plan, None, folder / name, workflows.RunOptions(hls=False, report=False))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def searched(folder: Path, trials: int) -> dict[str, Any]:
    """What the search found."""
    from pqc import tables, workflows
    from pqc.search import request
    from pqc.search.progress import Reporter

    done = folder / "study" / "study.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    source, space = workflows.resolve(MODEL), folder / "space.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    space.write_text(SPACE)
    asked = request.read(space, "", SHORT).with_trials(trials)
    reporter = Reporter(tables.ERRORS, [one.name for one in asked.objectives])
    return workflows.search(source, asked, None, folder / "study", workflows.SearchOptions(resume=True), reporter)


def lines(found: dict[str, Any], defaults: dict[str, dict[str, Any]], folder: Path) -> Iterator[str]:
    """The tables in Markdown."""
    front = {number: json.loads((folder / f"trials/{number:04}/summary.json").read_text()) for number in found["front"]}
    seconds = sum(one["seconds"] for one in found["trials"])
    yield f"{len(found['trials'])} trials, {seconds / 60:.0f} minutes in all; {len(front)} on the front.\n"
    yield "| shipped schedule | accuracy (%) | EBOPs | trial on the front | accuracy (%) | EBOPs |"
    yield "|---|---|---|---|---|---|"
    for name, one in defaults.items():
        better = [(number, other) for number, other in front.items() if dominates(other, one)]
        best = min(better, key=lambda pair: pair[1]["ebops"], default=None)
        cells = ("none", "", "") if best is None else (str(best[0]), *numbers(best[1]))
        yield f"| `{name}` | {' | '.join((*numbers(one), *cells))} |"
    yield "\n| trial | schedule | accuracy (%) | EBOPs | weights left (%) |\n|---|---|---|---|---|"
    for number, one in sorted(front.items(), key=lambda pair: -float(pair[1]["ebops"])):
        base = found["trials"][number]["params"]["schedule"]
        yield f"| {number} | `{base}` | {' | '.join(numbers(one))} | {100 * one['keep_ratio']:.1f} |"


def numbers(summary: dict[str, Any]) -> tuple[str, str]:
    """Test accuracy and bit operations as text."""
    return f"{100 * summary['clean']['accuracy']:.2f}", f"{summary['ebops']:,}"


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a model is better in both, on the test rows."""
    return bool(one["clean"]["accuracy"] > other["clean"]["accuracy"] and one["ebops"] < other["ebops"])


def main() -> None:
    """Search, compare, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("build/search-jets"), help="where results are kept")
    parser.add_argument("--dry", action="store_true", help="print the table, and leave the page as it is")
    arguments = parser.parse_args()
    defaults = {name: shipped(name, arguments.out) for name in SHIPPED}
    found = searched(arguments.out, arguments.trials)
    table = "\n".join(lines(found, defaults, arguments.out / "study"))
    print(table)
    if not arguments.dry:
        results_page.write(BEGIN, END, table)


if __name__ == "__main__":
    main()
