"""`pqc track`: a run that is over, in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pqc.cli_options import PATH


@click.command()
@click.argument("run_dir", type=PATH)
@click.option("--uri", help="A server, or a local folder.  [default: where it was sent before, or MLflow's own]")
@click.option("--experiment", metavar="NAME", help="The experiment.  [default: the schedule's, or pqc]")
@click.option("--register", metavar="NAME", help="Register the clean model by this name.")
@click.option("--json", "as_json", is_flag=True, help="Print the address, the run, the model and its versions as JSON.")
def track(run_dir: Path, uri: str | None, experiment: str | None, register: str | None, as_json: bool) -> None:
    """Send the folder of a run to MLflow, or what is missing of it.

    Credentials come from the environment; see docs/tracking.md. Prints the id of the run.

    \b
    Examples:
      pqc track build/demo
      pqc track build/demo --uri http://localhost:5000 --register jets
    """
    from pqc.workflows import tracking

    found = tracking.track(run_dir, uri=uri, experiment=experiment, registered_model=register)
    click.echo(json.dumps(found, indent=2) if as_json else found["run"])
