"""The particle transformer (Qu, Li, Qian, arXiv:2202.03772) in PyTorch, with its pair features inside the graph.

Left out of the published network: dropout, and the learned factors of heads and of residual branches. Batch
normalization of the inputs is a constant standardization here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pqc.models.jet_constituents.generate import FEATURES, MASK, PARTICLES

LOWEST_BIAS = -8.0
"""Added to the score of a key that is no particle: a weight of e^-8. A constant of the size of true scores, so that
calibration spends no integer bits on it; a quantizer that saturates higher still gives it the lowest score."""
CLOSEST = 1e-3
"""Distance and relative transverse momentum below which pairs look alike, about the resolution of the data."""
PAIR_MEAN, PAIR_STD = (-7.1, -1.7, -2.0, -12.9), (1.2, 1.0, 1.2, 2.4)
"""About those of ln kT, ln z, ln ΔR and ln m² over the training jets."""


@dataclass(frozen=True)
class Sizes:
    """Widths and depths.

    Args:
        embedding: widths of the embedding of a particle; the last is that of the network.
        pairs: widths of the embedding of a pair, before that to the heads.
        blocks: blocks of attention between particles.
        class_blocks: blocks in which the class token reads the particles.
        heads: heads of each attention; they divide the width.
    """

    embedding: tuple[int, ...]
    pairs: tuple[int, ...]
    blocks: int
    class_blocks: int
    heads: int


SMALL = Sizes(embedding=(16, 16), pairs=(8,), blocks=2, class_blocks=1, heads=2)
PUBLISHED = Sizes(embedding=(128, 512, 128), pairs=(64, 64, 64), blocks=8, class_blocks=2, heads=8)


class Dense(nn.Module):
    """x W + b over the last axis; exported as MatMul and Add with the parameters' own names."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return x @ self.weight + self.bias


class Pairs(nn.Module):
    """ln kT, ln z, ln ΔR and ln m² of every pair of particles, embedded as a bias of each head's scores."""

    def __init__(self, sizes: Sizes, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((len(PAIR_MEAN), *sizes.pairs)):
            layers += [nn.Conv2d(inputs, outputs, kernel_size=1), nn.BatchNorm2d(outputs), nn.GELU()]
        self.embedding = nn.Sequential(*layers, nn.Conv2d(sizes.pairs[-1], sizes.heads, kernel_size=1))
        self.features = PairFeatures(mean, std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5, 1, P) to (N, heads, P, P)."""
        bias: Tensor = self.embedding(self.features(x))
        return bias


class PairFeatures(nn.Module):
    """The four features of every pair, from four-momenta of massless particles relative to the jet.

    With p = pT (cos φ, sin φ, sinh η, cosh η): kT = min(pTi, pTj) ΔR, z = min(pTi, pTj) / (pTi + pTj) and
    m² = (pi + pj)² = 2 pTi pTj (cosh Δη - cos Δφ), of which float32 keeps more digits than of a difference of squares.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5, 1, P), standardized, to (N, 4, P, P), standardized; zero where one is no particle."""
        log_pt, eta, phi = (x[:, i : i + 1] * self.std[i] + self.mean[i] for i in range(3))
        mask = x[:, MASK : MASK + 1]
        pt = log_pt.exp()
        d_eta, d_phi = eta.transpose(2, 3) - eta, phi.transpose(2, 3) - phi
        floor = CLOSEST**2
        squared = d_eta * d_eta + d_phi * d_phi + floor
        # 2 cosh through exponentials: PyTorch's exporter does not know it.
        angles = d_eta.exp() + (-d_eta).exp() - 2 * d_phi.cos() + floor
        lower = torch.minimum(log_pt.transpose(2, 3), log_pt)
        log_distance = 0.5 * squared.log()
        features = (
            lower + log_distance,
            lower - (pt.transpose(2, 3) + pt).log(),
            log_distance,
            log_pt.transpose(2, 3) + log_pt + angles.log(),
        )
        both = mask.transpose(2, 3) * mask
        scaled = [(part - mean) / std * both for part, mean, std in zip(features, PAIR_MEAN, PAIR_STD, strict=True)]
        return torch.cat(scaled, dim=1)


class Attention(nn.Module):
    """Several heads of attention from `queries` to `keys` places, which are fixed; the scores take a bias."""

    def __init__(self, width: int, heads: int, queries: int, keys: int) -> None:
        super().__init__()
        self.heads, self.width, self.queries, self.keys = heads, width, queries, keys
        self.query, self.key, self.value, self.out = (Dense(width, width) for _ in range(4))

    def forward(self, x: Tensor, read: Tensor, bias: Tensor) -> Tensor:
        """What each of x (N, T, width) reads from (N, S, width), with bias (N, 1 or heads, 1 or T, S)."""
        query = self.split(self.query(x), self.queries)
        key, value = self.split(self.key(read), self.keys), self.split(self.value(read), self.keys)
        scores = query @ key.transpose(2, 3) * (self.width // self.heads) ** -0.5 + bias
        context = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(-1, self.queries, self.width)
        result: Tensor = self.out(context)
        return result

    def split(self, x: Tensor, places: int) -> Tensor:
        """(N, places, width) to (N, heads, places, width / heads)."""
        return x.reshape(-1, places, self.heads, self.width // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Attention and a dense network of two layers, each normalized before and inside, each added to what came in."""

    def __init__(self, width: int, heads: int, queries: int, keys: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, queries, keys)
        self.wide1, self.wide2 = Dense(width, 4 * width), Dense(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(4 * width)

    def forward(self, x: Tensor, bias: Tensor, others: Tensor | None = None) -> Tensor:
        """x (N, T, width) after it has read itself and, where given, others (N, S, width).

        A class token asks as it is, and reads itself and the particles normalized; particles do both normalized.
        """
        read = self.before(x if others is None else torch.cat((x, others), dim=1))
        x = x + self.after(self.attention(read if others is None else x, read, bias))
        return x + self.wide2(self.norm2(nn.functional.gelu(self.wide1(self.norm1(x)))))


class ParticleTransformer(nn.Module):
    """The network from (N, 5, 1, P) to logits (N, 5).

    Args:
        sizes: widths and depths.
        mean, std: the standardization of the inputs, to find the momenta again.
        particles: how many there are, P.
    """

    def __init__(self, sizes: Sizes, mean: Sequence[float], std: Sequence[float], particles: int = PARTICLES) -> None:
        super().__init__()
        self.particles = particles
        width = self.width = sizes.embedding[-1]
        layers: list[nn.Module] = [Dense(len(FEATURES), sizes.embedding[0]), nn.GELU()]
        for inputs, outputs in pairwise(sizes.embedding):
            layers += [nn.LayerNorm(inputs), Dense(inputs, outputs), nn.GELU()]
        self.embedding = nn.Sequential(*layers)
        self.pairs = Pairs(sizes, mean, std)
        self.blocks = nn.ModuleList(Block(width, sizes.heads, particles, particles) for _ in range(sizes.blocks))
        self.class_blocks = nn.ModuleList(
            Block(width, sizes.heads, 1, particles + 1) for _ in range(sizes.class_blocks)
        )
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.head = Dense(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the five classes."""
        padding = (1 - x[:, MASK : MASK + 1]) * LOWEST_BIAS  # (N, 1, 1, P)
        bias = self.pairs(x) + padding
        particles = self.embedding(x.reshape(-1, len(FEATURES), self.particles).transpose(1, 2))
        for block in self.blocks:
            particles = block(particles, bias)
        # The token is never padding; nor is the leading particle, whose bias it takes.
        padding = torch.cat((padding[..., :1], padding), dim=-1)
        token = self.token.expand(x.shape[0], -1, -1)
        for block in self.class_blocks:
            token = block(token, padding, particles)
        logits: Tensor = self.head(self.norm(token).reshape(-1, self.width))
        return logits


def count(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
