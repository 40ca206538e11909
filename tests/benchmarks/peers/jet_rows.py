"""Write the training, validation and test rows that a run of the jet tagger sees, for peers to train on.

    .venv/bin/python tests/benchmarks/peers/jet_rows.py build/peers/jets.npz

Runs under pqc's Python. The split is the one of a run with the schedule's default seed and share; --seed and --validation
choose another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pqc import data, graph
from pqc.models import TABLE


def main() -> None:
    """Write x_train, y_train, x_validation, y_validation, x_test and y_test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=float, default=0.1)
    options = parser.parse_args()
    path = TABLE["jet_tagger"].path()
    model = graph.load(path)
    dataset = data.load(
        path.parent / "data", model.graph, labels=True, validation=options.validation, seed=options.seed
    )
    arrays = {}
    for name in ("train", "validation", "test"):
        inputs, target = getattr(dataset, name).all()
        (arrays[f"x_{name}"],) = inputs.values()
        arrays[f"y_{name}"] = target.astype(np.int32)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, **arrays)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
