"""Train the float MLP-mixer tagger on the jet constituents and export it to ONNX.

Run as `python -m pqc.models.mlp_mixer.export`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pqc.models.jet_constituents.generate import PARTICLES
from pqc.models.jet_constituents.training import SHAPE, export_command

if TYPE_CHECKING:
    import torch

WIDTH, HIDDEN = 16, 32
BLOCKS = 2


def build_model() -> "torch.nn.Module":
    """Return the untrained network from (N, 5, 1, 32) to logits (N, 5).

    Tolstikhin et al., arXiv:2105.01601, with batch normalization, which folds into the layer before it, in place of
    layer normalization, as in arXiv:2503.03103. Dense layers over features, and over particles between two
    transposes, are convolutions with a kernel of 1.
    """
    from torch import nn

    def dense(inputs: int, outputs: int, *, relu: bool) -> "torch.nn.Sequential":
        layers = (nn.Conv2d(inputs, outputs, kernel_size=1, bias=False), nn.BatchNorm2d(outputs))
        return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)

    class Mixer(nn.Module):
        """One block: particles are mixed, then features, each added to what came in."""

        def __init__(self) -> None:
            super().__init__()
            self.particles1, self.particles2 = dense(PARTICLES, HIDDEN, relu=True), dense(HIDDEN, PARTICLES, relu=False)
            self.features1, self.features2 = dense(WIDTH, HIDDEN, relu=True), dense(HIDDEN, WIDTH, relu=False)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            mixed = x + self.particles2(self.particles1(x.transpose(1, 3))).transpose(1, 3)
            return mixed + self.features2(self.features1(mixed))

    embedding = (dense(SHAPE[0], HIDDEN, relu=True), dense(HIDDEN, WIDTH, relu=True))
    pooled = (dense(WIDTH, HIDDEN, relu=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = (nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 5))
    return nn.Sequential(*embedding, *(Mixer() for _ in range(BLOCKS)), *pooled, *head)


main = export_command(build_model, Path(__file__).parent / "mlp_mixer.onnx", epochs=40, rate=4e-3)

if __name__ == "__main__":
    main()
