"""The residual network for small images of He et al., arXiv:1512.03385, section 4.2, in PyTorch.

With n = 3 blocks a stage it has 6n + 2 = 20 layers with weights on its longest path.
"""

from collections import OrderedDict

import torch
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalization, added to the input, then ReLU.

    Where the size changes, the input passes through a 1x1 convolution with batch normalization (option B of the
    paper): firmware has no exact form of option A, which takes every other pixel and appends channels of zeros.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.add_module("conv", nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        total: torch.Tensor = self.relu2(y + self.shortcut(x))
        return total


def build(channels: int, classes: int, width: int = 16, blocks: int = 3) -> nn.Sequential:
    """Return the untrained network from (N, channels, H, W) to logits (N, classes).

    Args:
        channels: of the images, whose height and width are multiples of four.
        classes: how many.
        width: channels of the first stage; the second and the third have two and four times as many.
        blocks: of each stage.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    layers["bn"] = nn.BatchNorm2d(width)
    layers["relu"] = nn.ReLU()
    inputs = width
    for stage in range(3):
        outputs = width << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers[f"stage{stage + 1}_{block + 1}"] = Block(inputs, outputs, stride)
            inputs = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
