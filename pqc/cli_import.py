"""`pqc import`: a model of another framework as ONNX."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pqc.cli_options import PATH

TYPES = ("float32", "int32", "int64")
Inputs = dict[str, tuple[list[int | str], str]]


def _inputs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Inputs:
    found: Inputs = {}
    for value in values:
        name, separator, rest = value.partition("=")
        text, _, kind = rest.partition(":")
        parts = [part.strip() for part in text.split(",")]
        words = [part for part in parts[1:] if not part.isdecimal() or not int(part)]
        if not separator or not name or not parts[0] or words:
            raise click.BadParameter(f"expected NAME=batch,16 or NAME=1,16:int64 and got '{value}'")
        if (kind or "float32") not in TYPES:
            raise click.BadParameter(f"the type is one of {', '.join(TYPES)}, not '{kind}'")
        found[name] = ([int(part) if part.isdecimal() else part for part in parts], kind or "float32")
    return found


@click.command("import")
@click.argument("source")
@click.option("-o", "--out", type=PATH, required=True, help="The ONNX file to write.")
@click.option("--input", "inputs", multiple=True, callback=_inputs, metavar="NAME=DIMS", help="Shape of an input.")
@click.option("--weights", type=PATH, help="Weights for the code: .safetensors, .pt, .npz, .weights.h5.")
@click.option("--samples", type=PATH, help="An .npz of inputs by name to compare on; random ones by default.")
@click.option("--framework", type=click.Choice(["torch", "keras", "jax"]), help="Whose model it is, if unclear.")
@click.option("--exporter", type=click.Choice(["dynamo", "torchscript"]), default="dynamo", show_default=True)
@click.option("--python", default=sys.executable, help="The interpreter that has the framework.  [default: this one]")
@click.option("--free-batch/--keep-batch", default=True, help="Make a fixed number of rows free.  [default: free]")
@click.option("--fold-norm", is_flag=True, help="Fold batch normalization into the layers before.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def import_(source: str, out: Path, as_json: bool, **options: Any) -> None:
    """Write SOURCE as an ONNX file that pqc trains, and compare the two.

    SOURCE is an ONNX file of any exporter (opset 7 on), a .keras file, a .pt2 file of torch.export, or FILE.py:NAME: a
    model of PyTorch, Keras or JAX, its class, or a function that gives it. The code in FILE.py runs. The written file
    must give what the source gives on 64 samples.

    \b
    Examples:
      pqc import net.py:Net --weights net.safetensors --input x=batch,16 -o net.onnx
      pqc import tagger.keras -o tagger.onnx --python ~/keras-env/bin/python
      pqc import wild.onnx -o clean.onnx --fold-norm
    """
    from pqc.workflows import importing

    found = importing.import_model(importing.Request(source, **options), out)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{found['source']}: {found['nodes']['before']} nodes, now {found['nodes']['after']}", err=True)
    click.echo(f"outputs on {found['rows']} rows within {found['difference']:.1e} of the source's", err=True)
    for note in found["notes"]:
        click.echo(f"note: {note}", err=True)
    if found["trains"] != "yes":
        click.echo(f"note: it cannot be trained yet: {found['trains']}", err=True)
    click.echo(out)
