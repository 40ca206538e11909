"""`pqc fit`: search the bit widths and masks of a trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pqc import tables
from pqc.cli_options import PATH, settings_option


@click.command()
@click.argument("model")
@click.option("-s", "--schedule", default="fitcompress", show_default=True, help="What to search, and what follows it.")
@click.option("-d", "--data", type=PATH, help="Data: a folder with train and test, or one file.")
@click.option("-o", "--out", type=PATH, required=True, help="The schedule to write.")
@click.option("--goal", metavar="MEASURE=NUMBER", help="At most so much: rate, ebops, bits or keep.")
@click.option("--search", metavar="HOW", help="greedy, beam:K or astar.")
@settings_option
@click.option("--resume", is_flag=True, help="Go on from the journal beside the output, if there is one.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.pass_obj
def fit(
    flags: dict[str, Any],
    /,
    model: str,
    schedule: str,
    data: Path | None,
    out: Path,
    goal: str | None,
    search: str | None,
    settings: dict[str, str],
    resume: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Search bit widths and pruned weights of a trained MODEL; write them as a schedule.

    The schedule names a type for each layer, and a file of masks beside it. Edit it, and give it to `pqc run`. Exits
    with 1 if nothing meets the goal.

    \b
    Examples:
      pqc fit jet_tagger --goal rate=0.10 --out fit.yaml
      pqc fit net.onnx -d data --goal ebops=20000 --search beam:8 -o fit.yaml
      pqc run jet_tagger --schedule fit.yaml --out build/fitted
    """
    from pqc import workflows
    from pqc.progress import Reporter

    changes = {"phases.fit.goal": goal, "phases.fit.search": search}
    changed = settings | {key: json.dumps(text) for key, text in changes.items() if text is not None}
    reporter = Reporter(tables.ERRORS, quiet=flags["quiet"] or as_json)
    try:
        source = workflows.resolve(model)
        plan = workflows.load_plan(schedule, source, changed)
        options = workflows.RunOptions(resume=resume, threads=threads)
        found = workflows.fit(source, plan, data, out, options, reporter)
    finally:
        reporter.close()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not flags["quiet"]:
        tables.say_fit(found)
    click.echo(out)
