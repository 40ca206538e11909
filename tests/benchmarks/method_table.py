"""Train the jet tagger with every pruning method at several sparsities and seeds; write the table of accuracies.

    make method-table        # or: python tests/benchmarks/method_table.py --jobs 2

Every run has the same budget: 40 epochs in which masks are learned and 100 with frozen masks, 8-bit fixed point, the
batches, learning rate and data of `cs-demo`. Methods that rank are given the share to prune; those that learn
thresholds get it as a target; patterns keep so many of a group, and activation pruning prunes whole outputs. With seed 0
the firmware of every method is compiled too and compared on all test jets. A run that is finished is not repeated: its
result lies in the folder, so the command goes on where it was stopped. The tables go into docs/results.md and
docs/methods.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import results_page

MODEL = "jet_tagger"
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
SEEDS = (0, 1, 2)
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("results.md", "methods.md")]
BEGIN, END = "<!-- method table: written by tests/benchmarks/method_table.py -->", "<!-- end of method table -->"


@dataclass(frozen=True)
class Row:
    """A line of the table: a method with its settings, as `--set` gives them."""

    label: str
    kind: str
    settings: dict[str, str] = field(default_factory=dict, hash=False)
    pattern: bool = False


ROWS = (
    Row("magnitude, gradual", "unstructured", {"pruning.options.when": "gradual"}),
    Row("magnitude, one shot", "unstructured", {"pruning.options.when": "start"}),
    Row(
        "autosparse",
        "unstructured",
        {
            "pruning.method": "autosparse",
            "pruning.options": "{}",
            "training.rates": "{threshold: 10}",
            "training.decays": "{weight: 3.0e-4}",
        },
    ),
    Row("cs", "unstructured", {"pruning.method": "cs", "pruning.options": "{}"}),
    Row("dst", "unstructured", {"pruning.method": "dst", "pruning.options": "{threshold_type: weightwise}"}),
    Row(
        "mdmm",
        "unstructured",
        {"pruning.method": "mdmm", "pruning.options": "{constraint: LessThanOrEqual, l0_mode: smooth}"},
    ),
    Row("pdp", "unstructured", {"pruning.method": "pdp", "pruning.options": "{epsilon: 0.05}"}),
    Row("wanda", "unstructured", {"pruning.method": "wanda", "pruning.options": "{}"}),
    Row("p-norm (pAdam)", "unstructured", {"pruning.options.when": "end", "training.optimizer.name": "padam"}),
    Row("magnitude, outputs", "structured", {"pruning.options": "{structure: output, scope: layer}"}),
    Row("magnitude, inputs", "structured", {"pruning.options": "{structure: input, scope: layer}"}),
    Row(
        "pdp, outputs",
        "structured",
        {"pruning.method": "pdp", "pruning.options": "{epsilon: 0.05, structure: output, scope: layer}"},
    ),
    Row(
        "pdp, inputs",
        "structured",
        {"pruning.method": "pdp", "pruning.options": "{epsilon: 0.05, structure: input, scope: layer}"},
    ),
    Row(
        "activation pruning",
        "structured",
        {"pruning.method": "activation_pruning", "pruning.options": "{scope: layer, start_epoch: 5}"},
    ),
    Row("magnitude", "N:M", {"pruning.options": '{{pattern: "{pattern}"}}'}, pattern=True),
    Row("pdp", "N:M", {"pruning.method": "pdp", "pruning.options": '{{pattern: "{pattern}"}}'}, pattern=True),
    Row("wanda", "N:M", {"pruning.method": "wanda", "pruning.options": '{{pattern: "{pattern}"}}'}, pattern=True),
)


@dataclass(frozen=True)
class Run:
    """One training: a row at a column with a seed."""

    row: Row
    column: float | str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        words = f"{self.row.kind} {self.row.label} {self.column} {self.seed}"
        return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in words)

    def settings(self) -> dict[str, str]:
        """What it changes in the schedule."""
        found = {
            key: value.format(pattern=self.column) if self.row.pattern else value
            for key, value in self.row.settings.items()
        }
        if not self.row.pattern:
            found["target.sparsity"] = str(self.column)
        return {**found, "training.seed": str(self.seed)}

    @property
    def compiles(self) -> bool:
        """Whether its firmware is made: once a method, where most would use it."""
        return self.seed == 0 and self.column in (0.8, "2:4")


def runs(only: str | None) -> list[Run]:
    """All trainings of the table."""
    return [
        Run(row, column, seed)
        for row in ROWS
        if only is None or only in row.label
        for column in (PATTERNS if row.pattern else SPARSITIES)
        for seed in SEEDS
    ]


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Do one training, or read what it found."""
    path = folder / run.name / "summary.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    from pqc import workflows

    source = workflows.resolve(MODEL)
    plan = workflows.load_plan("magnitude", source, run.settings())
    summary = workflows.run(source, plan, None, folder / run.name, workflows.RunOptions(hls=run.compiles))
    path.write_text(json.dumps(summary))
    return summary


def lines(found: dict[Run, dict[str, Any]]) -> Iterator[str]:
    """The tables in Markdown."""
    for kind in dict.fromkeys(row.kind for row in ROWS):
        rows = [row for row in ROWS if row.kind == kind and any(run.row == row for run in found)]
        if not rows:
            continue
        columns = PATTERNS if rows[0].pattern else SPARSITIES
        heads = [str(column) if rows[0].pattern else f"{100 * float(column):g} %" for column in columns]
        yield f"\n**{kind}**\n"
        yield f"| method | {' | '.join(heads)} | firmware |"
        yield "|---|" + "---|" * (len(columns) + 1)
        for row in rows:
            cells = [
                cell([found[run] for run in found if (run.row, run.column) == (row, column)]) for column in columns
            ]
            made = [found[run]["hls"] for run in found if run.row == row and run.compiles and found[run].get("hls")]
            exact = f"{made[0]['mismatches']} of {made[0]['samples']:,} differ" if made else ""
            yield f"| {row.label} | {' | '.join(cells)} | {exact} |"


def cell(summaries: list[dict[str, Any]]) -> str:
    """Mean and spread of the accuracy, and the share of weights that remain."""
    scores = [100 * one["clean"]["accuracy"] for one in summaries]
    if not scores:
        return ""
    left = 100 * statistics.mean(one["keep_ratio"] for one in summaries)
    spread = (max(scores) - min(scores)) / 2
    return f"{statistics.mean(scores):.2f} ± {spread:.2f} ({left:.1f} %)"


def write(found: dict[Run, dict[str, Any]]) -> None:
    """Put the tables between the marks of the pages."""
    float_accuracy = 100 * next(iter(found.values()))["float"]["accuracy"]
    head = f"The float model has {float_accuracy:.2f} %. In brackets: the weights that are not zero once rounded.\n"
    for page in PAGES:
        results_page.write(BEGIN, END, head + "\n".join(lines(found)), page)


def main() -> None:
    """Train what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=Path, default=Path("build/method-table"), help="where results are kept")
    parser.add_argument("--only", help="methods whose label holds this")
    arguments = parser.parse_args()
    wanted = runs(arguments.only)
    found: dict[Run, dict[str, Any]] = {}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(train, run, arguments.out): run for run in wanted}
        for done, future in enumerate(as_completed(futures), start=1):
            run = futures[future]
            found[run] = future.result()
            accuracy = 100 * found[run]["clean"]["accuracy"]
            print(f"{done}/{len(wanted)}  {run.name}  {accuracy:.2f} %", file=sys.stderr, flush=True)
    inexact = [run.name for run, one in found.items() if not one["clean_equals_trained"]]
    inexact += [run.name for run, one in found.items() if one.get("hls") and one["hls"]["mismatches"]]
    ordered = {run: found[run] for run in wanted}
    print("\n".join(lines(ordered)))
    if arguments.only is None:
        write(ordered)
    sys.exit(f"not exact: {', '.join(inexact)}" if inexact else 0)


if __name__ == "__main__":
    main()
