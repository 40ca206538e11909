"""The sizes of HEPT: the published ones for both tasks, and small ones that train in minutes on one core."""

from dataclasses import dataclass

TASKS = ("tracking", "pileup")


@dataclass(frozen=True)
class Size:
    """What makes a network.

    Args:
        points: the fixed number of points of an event, padding included.
        features: columns of the input; the first is 1 for a point and 0 for padding.
        coordinates: the columns that span the space in which points are near; the first two share one weight, and
            they are what the regions are cut in.
        kinds: how many of the last columns are a one-hot kind, which is embedded; 0 for none.
        embedded: width of that embedding.
        width: of a point inside the network, and of each head.
        heads: attention heads.
        layers: attention layers.
        tables: hash tables (OR).
        regions: how many regions the coordinates cut the points into (AND).
        block: points that attend to each other; divides `points`.
        terms: exponentials that make the weight of one distance.
        hidden: width of the last dense layers.
        depth: how many of them there are.
        outputs: numbers for each point; 0 for one logit a point, without an axis of its own.
    """

    points: int
    features: int
    coordinates: tuple[int, ...]
    kinds: int
    embedded: int
    width: int
    heads: int
    layers: int
    tables: int
    regions: int
    block: int
    terms: int
    hidden: int
    depth: int
    outputs: int


# Widths, heads, tables and blocks: Miao et al., arXiv:2402.12535, and its published settings. The coordinates are
# those of the published features: eta and phi, then the first columns again.
PUBLISHED = {
    "tracking": Size(1000, 16, (4, 2, 1, 2, 3, 4), 0, 0, 24, 8, 4, 3, 150, 100, 10, 256, 5, 12),
    "pileup": Size(1000, 15, (1, 2, 1, 2), 7, 10, 24, 8, 4, 3, 140, 100, 10, 256, 5, 0),
}
SMALL = {
    "tracking": Size(256, 8, (4, 2, 1, 3), 0, 0, 12, 2, 2, 2, 8, 32, 2, 32, 3, 6),
    "pileup": Size(256, 9, (1, 2), 4, 4, 12, 2, 2, 2, 8, 32, 2, 32, 3, 0),
}
