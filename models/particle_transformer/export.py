"""Train the small float particle transformer on the jet constituents and export it to ONNX.

Run as `python -m pqc.models.particle_transformer.export small`; the command `published`
writes the untrained network of the published size instead, which is too large to be committed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pqc.models.exporting import require_packages
from pqc.models.jet_constituents.generate import PARTICLES
from pqc.models.jet_constituents.training import DATA, export, export_command

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
MOST_PARTICLES = 128
"""As many as the published network reads."""


def build_model(size: str = "SMALL", particles: int = PARTICLES) -> "torch.nn.Module":
    """Return the untrained network from (N, 5, 1, particles) to logits (N, 5); `size` names one of `network`."""
    from pqc.models.particle_transformer import network

    record = json.loads((DATA / "standardization.json").read_text())
    return network.ParticleTransformer(getattr(network, size), record["mean"], record["std"], particles)


@click.group()
def main() -> None:
    """Write a particle transformer as ONNX."""


main.add_command(export_command(build_model, HERE / "particle_transformer.onnx", epochs=20, rate=4e-3), "small")


@main.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.option("--particles", type=click.IntRange(2, MOST_PARTICLES), default=PARTICLES, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def published(out: Path, particles: int, seed: int) -> None:
    """Export the untrained network of the published size, 2.14 million parameters."""
    require_packages()
    export_published(out, particles, seed)
    click.echo(f"wrote {out}")


def export_published(out: Path, particles: int, seed: int) -> None:
    """Write the network of the published size with random weights."""
    import torch

    torch.manual_seed(seed)
    export(build_model("PUBLISHED", particles), out, particles)


if __name__ == "__main__":
    main()
