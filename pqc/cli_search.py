"""`pqc search`: a search over schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pqc import tables
from pqc.cli_options import PATH, settings_option


@click.command()
@click.argument("model", default="jet_tagger")
@click.option("--space", type=PATH, help="A space file: what varies, what is wanted. Or a PQuantML config.")
@click.option("--budget", metavar="NAME=SIZE", help="Instead of a space: ebops=5000, or keep=0.1 of the weights.")
@click.option("--min-accuracy", "least", type=float, help="With --budget: look for the smallest network this good.")
@click.option(
    "-s", "--schedule", help="What is searched around, where the space file does not say.  [default: the model's]"
)
@click.option("-d", "--data", type=PATH, help="Data: a folder with train and test, or one file.")
@click.option("-o", "--out", type=PATH, default=Path("build/search"), show_default=True, help="The study's folder.")
@click.option("--trials", type=click.IntRange(1), help="How many schedules to train, instead of what the space says.")
@settings_option
@click.option("--resume", is_flag=True, help="Go on with the study in the folder; nothing that is done is done again.")
@click.option("--warm-start", type=PATH, metavar="STUDY", help="Learn from a study; its best trial runs again first.")
@click.option("--storage", metavar="URL", help="A database for the study, such as postgresql+psycopg://host/db.")
@click.option("--scheduler", metavar="WHERE", help="Dask: local:4, tcp://host:8786, or a cluster file.")
@click.option("--hls", is_flag=True, help="Make and compare the firmware of every trial.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print study.json instead of the winner's path.")
@click.pass_obj
def search(
    flags: dict[str, Any],
    /,
    model: str,
    space: Path | None,
    budget: str | None,
    least: float | None,
    schedule: str | None,
    data: Path | None,
    out: Path,
    trials: int | None,
    settings: dict[str, str],
    hls: bool,
    threads: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Search over schedules of MODEL: train many, keep all, and write the best to best.yaml in the study's folder.

    MODEL is an ONNX file or the name of a reference model, which brings its own data. `pqc run MODEL --schedule
    STUDY/best.yaml` gives the winner again, bit for bit.

    \b
    Examples:
      pqc search --budget ebops=5000
      pqc search jet_tagger --budget keep=0.1 --min-accuracy 0.66 --out build/small
      pqc search jet_tagger --space space.yaml --out build/study
      pqc search model.onnx --space space.yaml --data folder --out build/study --resume --trials 200
    """
    from pqc import workflows
    from pqc.search.progress import Reporter

    source = workflows.resolve(model)
    if (space is None) == (budget is None) or (least is not None and budget is None):
        raise click.UsageError("give --space FILE, or --budget NAME=SIZE, which --min-accuracy goes with")
    request = workflows.plan_search(source, space or str(budget), schedule, settings, least).with_trials(trials)
    run = workflows.RunOptions(hls=hls, threads=threads, verify_each=False)
    reporter = Reporter(tables.ERRORS, [one.name for one in request.objectives], quiet=flags["quiet"])
    try:
        found = workflows.search(source, request, data, out, workflows.SearchOptions(run=run, **options), reporter)
    finally:
        reporter.close()
    if not flags["quiet"]:
        tables.ERRORS.print(f"report: {out / 'report.html'}", highlight=False)
    click.echo(json.dumps(found, indent=2) if as_json else out / "best.yaml")
