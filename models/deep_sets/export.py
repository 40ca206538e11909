"""Train the float deep-sets tagger on the jet constituents and export it to ONNX.

Run as `python -m pqc.models.deep_sets.export`.
"""

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pqc.models.jet_constituents.training import SHAPE, export_command

if TYPE_CHECKING:
    import torch

PHI = (SHAPE[0], 32, 32, 32)
RHO = (32, 32, 5)


def build_model() -> "torch.nn.Sequential":
    """Return the untrained network from (N, 5, 1, 32) to logits (N, 5).

    `phi` describes every particle by itself, as convolutions with a kernel of 1; the mean over the particles forgets
    their order; `rho` classifies it (Zaheer et al., arXiv:1703.06114).
    """
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, (inputs, outputs) in enumerate(pairwise(PHI), start=1):
        layers[f"phi{place}"] = nn.Conv2d(inputs, outputs, kernel_size=1)
        layers[f"phi{place}_relu"] = nn.ReLU()
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    for place, (inputs, outputs) in enumerate(pairwise(RHO), start=1):
        if place > 1:
            layers[f"rho{place - 1}_relu"] = nn.ReLU()
        layers[f"rho{place}"] = nn.Linear(inputs, outputs)
    return nn.Sequential(layers)


main = export_command(build_model, Path(__file__).parent / "deep_sets.onnx", epochs=60, rate=4e-3)

if __name__ == "__main__":
    main()
