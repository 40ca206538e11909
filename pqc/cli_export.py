"""`pqc export`: a clean model in forms for other runtimes."""

from __future__ import annotations

from pathlib import Path

import click

from pqc.cli_options import PATH


@click.command()
@click.argument("model")
@click.option("--portable", type=PATH, help="File to write: QONNX with the bodies of its operators.")
@click.option("--qcdq", type=PATH, help="File to write: QuantizeLinear, Clip and DequantizeLinear.")
def export(model: str, portable: Path | None, qcdq: Path | None) -> None:
    """Write a clean MODEL for other runtimes.

    A portable file runs in any ONNX Runtime as it is, and is still read as QONNX. A QCDQ file has ONNX's own operators
    only; quantizers that these do not compute exactly stay, with their bodies, and are named. Both are run on random
    inputs, and must give the numbers that MODEL gives.

    \b
    Examples:
      pqc export build/demo/clean.onnx --portable build/demo/portable.onnx
      pqc export build/demo/clean.onnx --qcdq build/demo/qcdq.onnx
    """
    from pqc.workflows import exports

    if portable is None and qcdq is None:
        raise click.UsageError("there is nothing to write; give --portable FILE, --qcdq FILE or both")
    for line in exports.export(model, portable=portable, qcdq=qcdq):
        click.echo(line)
