"""HEPT in PyTorch, written so that its export is a graph of plain operators with the sort inside.

Miao et al., "Locality-Sensitive Hashing-Based Efficient Point Transformer", arXiv:2402.12535: points that are near get
hashes that are near (E2LSH); sorted by region and hash they are cut into blocks, and a point attends to its block only.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from .sizes import Size

PADDING = 1e6
"""Beyond every coordinate and every key: padding is sorted to the end."""
EPSILON = 1e-6
"""Added to the sum of a point's kernels: where it lies in a block of strangers, all of them vanish."""


class Dense(nn.Module):
    """x · weight + bias, with the weight stored [inputs, outputs], so that it keeps its name in the export."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] → [..., outputs]."""
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def cuts(size: Size, random: np.random.Generator) -> np.ndarray:
    """How many regions each head and table cuts the first two coordinates into [2, heads, tables].

    Two numbers drawn evenly between 2 and 2 √regions - 2, scaled so that their product is `regions`.
    """
    counts = random.uniform(2, 2 * math.sqrt(size.regions) - 2, (2, size.heads, size.tables))
    return np.asarray(counts * np.sqrt(size.regions / counts.prod(axis=0)), np.float32)


def ranks(values: torch.Tensor, count: int) -> torch.Tensor:
    """The place of each value [..., count] in ascending order, as integers."""
    return ascending(ascending(values, count), count)


def ascending(values: torch.Tensor, count: int) -> torch.Tensor:
    """The indices that sort [..., count]."""
    return torch.topk(values, count, dim=-1, largest=False, sorted=True)[1]


class Attention(nn.Module):
    """One layer: hash, sort, attend within blocks, put back, and sum over the tables; then the dense part.

    Args:
        size: of the network.
        random: draws the hash functions and the regions.
    """

    def __init__(self, size: Size, random: np.random.Generator) -> None:
        super().__init__()
        self.size = size
        inside = size.width * size.heads
        self.norm1, self.norm2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.query = Dense(size.width, inside, bias=False)
        self.key = Dense(size.width, inside, bias=False)
        self.value = Dense(size.width, inside, bias=False)
        # The published layer has a bias that nothing reads; it is left out of the graph, and counted in `README.md`.
        self.distance = Dense(inside, (len(size.coordinates) - 1) * size.terms, bias=False)
        self.out = Dense(inside, size.width)
        self.dense1, self.dense2 = Dense(size.width, size.width), Dense(size.width, size.width)
        # A number, not a shape: the export would compute it in the graph.
        self.hashed = hashed = size.width + len(size.coordinates)
        self.register_buffer("projections", torch.from_numpy(_normal(random, (size.heads, size.tables, hashed))))
        self.register_buffer("heads", torch.kron(torch.eye(size.heads), torch.ones(1, size.width)))
        places = torch.arange(size.tables).reshape(1, 1, -1, 1) * size.points
        self.register_buffer("places", places)
        self.register_buffer("each", torch.ones(1, size.heads, 1, 1))
        self.register_buffer("columns", torch.zeros(hashed, dtype=torch.int64))
        self.register_buffer("value_columns", torch.zeros(hashed + size.width + 1, dtype=torch.int64))

    def forward(
        self,
        x: torch.Tensor,
        coordinates: torch.Tensor,
        valid: torch.Tensor,
        regions: torch.Tensor,
        spread: torch.Tensor,
    ) -> torch.Tensor:
        """One layer.

        Args:
            x: [events, points, width].
            coordinates: [events, points, coordinates].
            valid: [events, points, 1], 1 or 0.
            regions: [events, heads, tables, points], the number of each point's region, from 0.
            spread: 1 where the event has points [events, 1, 1].
        """
        normed = self.norm1(x)
        where = self._scaled(coordinates, spread)
        query, key = (self._split(layer(normed)) for layer in (self.query, self.key))
        valid = valid.unsqueeze(1)
        query, key = torch.cat([query, where], -1) * valid, torch.cat([key, where], -1) * valid
        value = torch.cat([self._split(self.value(normed)) * valid, valid * self.each], -1)
        orders = self.orders(query.detach(), key.detach(), valid, regions)
        summed = self.attend(query, key, value, *orders)
        mixed = summed[..., :-1] / (summed[..., -1:] + EPSILON)
        x = x + self.out(mixed.transpose(1, 2).reshape(-1, self.size.points, self.size.width * self.size.heads))
        return x + self.dense2(torch.relu(self.dense1(self.norm2(x))))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[events, points, heads · width] → [events, heads, points, width]."""
        return x.reshape(-1, self.size.points, self.size.heads, self.size.width).transpose(1, 2)

    def _scaled(self, coordinates: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Coordinates times the root of twice their weights: [events, heads, points, coordinates].

        The weight of a distance is a sum of exponentials, each of a sum of the head's trained numbers. That sum is a
        layer that sees a one where the event has points, so that its numbers are trained and pruned as others are.
        """
        size = self.size
        exponents = self.distance(self.heads * spread).reshape(-1, size.heads, len(size.coordinates) - 1, size.terms)
        weights = torch.exp(torch.clamp(exponents, max=50.0)).sum(-1)
        weights = torch.cat([weights[..., :1], weights], -1)
        return torch.sqrt(2 * weights).unsqueeze(2) * coordinates.unsqueeze(1)

    def orders(
        self, query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor, regions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The indices that sort queries and keys by region and hash [events, heads, tables, points]; no gradient."""
        # The constant stands on the left: what multiplies from the right is a layer, and would be trained and pruned.
        hashes = [self.projections @ one.transpose(-1, -2) for one in (query, key)]
        both = torch.cat(hashes, -1)
        span = both.amax(-1, keepdim=True) - both.amin(-1, keepdim=True)
        shift = regions * span + (1 - valid.transpose(-1, -2)) * PADDING
        found = [ascending(one + shift, self.size.points) for one in hashes]
        return found[0], found[1]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, by_query: torch.Tensor, by_key: torch.Tensor
    ) -> torch.Tensor:
        """Sums of exp(-|q - k|²/2) · value over each point's blocks of all tables: [events, heads, points, values]."""
        size = self.size
        queries = self._sorted(query, by_query, self.columns)
        both = self._sorted(torch.cat([key, value], -1), by_key, self.value_columns)
        keys, values = both[..., : self.hashed], both[..., self.hashed :]
        squares = (queries * queries).sum(-1, keepdim=True) + (keys * keys).sum(-1, keepdim=True).transpose(-1, -2)
        kernel = torch.exp(torch.clamp(queries @ keys.transpose(-1, -2) - 0.5 * squares, max=0.0))
        mixed = (kernel @ values).reshape(-1, size.heads, size.tables * size.points, size.width + 1)
        back = (ascending(by_query, size.points) + self.places).reshape(-1, size.heads, size.tables * size.points, 1)
        found = torch.gather(mixed, 2, back + self.value_columns[: size.width + 1])
        return found.reshape(-1, size.heads, size.tables, size.points, size.width + 1).sum(2)

    def _sorted(self, x: torch.Tensor, order: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Rows [events, heads, points, n] in the order of each table, in blocks: [events, heads, blocks, block, n]."""
        size = self.size
        index = order.reshape(-1, size.heads, size.tables * size.points, 1) + columns
        blocks = size.tables * size.points // size.block
        return torch.gather(x, 2, index).reshape(-1, size.heads, blocks, size.block, columns.shape[0])


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.normal(0, 1, shape).astype(np.float32)


class Hept(nn.Module):
    """The network: [events, points, features] → [events, points, outputs], or logits [events, points].

    Args:
        size: see `sizes`.
        seed: of the hash functions and the regions, which are not trained; weights follow torch's own seed.
    """

    def __init__(self, size: Size, seed: int = 0) -> None:
        super().__init__()
        random = np.random.default_rng(seed)
        self.size = size
        plain = size.features - size.kinds
        self.kind = Dense(size.kinds, size.embedded, bias=False) if size.kinds else None
        self.encoder1, self.encoder2 = Dense(plain + size.embedded, size.width), Dense(size.width, size.width)
        self.attention = nn.ModuleList(Attention(size, random) for _ in range(size.layers))
        narrow = size.width // 2
        self.join = Dense(size.width * (size.layers + 1), narrow, bias=False)
        widths = [narrow, *[size.hidden] * (size.depth - 1), narrow]
        self.last = nn.ModuleList(Dense(*pair) for pair in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(size.hidden) for _ in range(size.depth - 1))
        self.logit = None if size.outputs else Dense(narrow, 1)
        counts = cuts(size, random)
        self.register_buffer(
            "lengths", torch.from_numpy(np.ceil(size.points / counts)).reshape(2, 1, *counts.shape[1:], 1)
        )
        self.register_buffer("stride", torch.from_numpy(np.ceil(counts[0]) + 1).reshape(1, *counts.shape[1:], 1))
        self.register_buffer("chosen", torch.tensor(size.coordinates))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings or logits of the points; those of padding mean nothing."""
        size = self.size
        valid = x[..., :1]
        coordinates = torch.index_select(x, -1, self.chosen) * valid
        regions = self.regions(coordinates, valid)
        spread = valid.amax(1, keepdim=True)
        if self.kind is not None:
            x = torch.cat([x[..., : -size.kinds], self.kind(x[..., -size.kinds :])], -1)
        x = self.encoder2(torch.relu(self.encoder1(x)))
        seen = [x]
        for layer in self.attention:
            x = layer(x, coordinates, valid, regions, spread)
            seen.append(x)
        x = self.join(torch.cat(seen, -1))
        inner = x
        for dense, norm in zip(self.last, self.norms, strict=False):
            inner = torch.tanh(norm(dense(inner)))
        x = x + self.last[-1](inner)
        return x if self.logit is None else self.logit(x).reshape(-1, size.points)

    def regions(self, coordinates: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The number of each point's region [events, heads, tables, points]: equal shares of the points by rank.

        The second coordinate counts in steps that the first cannot reach (AND).
        """
        far = (1 - valid) * PADDING
        both = (coordinates[..., :2] + far).transpose(1, 2).unsqueeze(2).unsqueeze(2)
        place = ranks(both, self.size.points).to(torch.float32)
        first, second = (torch.floor(place[:, axis] / self.lengths[axis]) for axis in (0, 1))
        return first + second * self.stride
