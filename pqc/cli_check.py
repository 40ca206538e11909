"""`pqc check-quant`: is there a quantizer between every two operations?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pqc import tables
from pqc.cli_options import PATH


@click.command("check-quant")
@click.argument("model")
@click.option("--fix", type=PATH, help="Write the model with the missing quantizers to this file.")
@click.option("-d", "--data", type=PATH, help="An .npz of arrays by input name, for sign and integer bits of --fix.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def check_quant(context: click.Context, model: str, fix: Path | None, data: Path | None, as_json: bool) -> None:
    """Check that MODEL computes on grids only; exits with 1 if a quantizer is missing.

    With --fix the missing ones are added, and the exit code is that of the file written.

    \b
    Examples:
      pqc check-quant model.onnx
      pqc check-quant model.onnx --fix quantized.onnx --data sample.npz
    """
    from pqc.workflows import quantization

    findings = quantization.check_quant(model)
    found: dict[str, Any] = quantization.record(findings)
    if fix is not None:
        found["added"] = quantization.fix_quant(model, fix, data=data)
        found["ok"] = quantization.record(quantization.check_quant(fix))["ok"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not context.obj["quiet"]:
        tables.say_missing(findings)
    if fix is not None and not as_json:
        click.echo(fix)
    context.exit(0 if found["ok"] else 1)
