"""Binary, ternary and learned scales on real parts: real jets, a short training, real hls4ml and g++."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pqc import graph, layers, scales, workflows
from pqc.models import TABLE

SCHEDULE = """
quantization: {{weights: {weights}, biases: [1, 0, 6], inputs: {inputs}}}
training: {{learning_rate: 5e-3, batch: 64}}
phases: {{training: {{epochs: 2}}, fine_tuning: {{epochs: 1}}}}
"""
LEARNED = "{bits: [0, 3, 5], learns: power_of_two_scale}"
KINDS = {
    "binary": ("binary", "[0, 3, 5]"),
    "ternary": ("{bits: ternary, granularity: per_channel, learns: power_of_two_scale}", LEARNED),
}
"""Binary weights have one scale a tensor from calibration; ternary ones learn theirs, as do the activations."""


@pytest.mark.parametrize("kind", KINDS)
def test_few_bits_learn_and_reach_the_firmware(kind: str, tmp_path: Path) -> None:
    weights, inputs = KINDS[kind]
    (tmp_path / "schedule.yaml").write_text(SCHEDULE.format(weights=weights, inputs=inputs))
    for part, rows in (("train", 20_000), ("test", 2000)):
        with np.load(TABLE["jet_tagger"].data_path() / f"{part}.npz") as arrays:
            np.savez(tmp_path / f"{part}.npz", **{name: array[:rows] for name, array in arrays.items()})
    source = workflows.resolve("jet_tagger")
    plan = workflows.load_plan(str(tmp_path / "schedule.yaml"), source, {})
    summary = workflows.run(source, plan, tmp_path, tmp_path / "out", workflows.RunOptions())
    assert summary["clean_equals_trained"]
    assert summary["hls"]["samples"] == 2000
    assert summary["hls"]["mismatches"] == 0
    assert summary["hls"]["accuracy"] == summary["clean"]["accuracy"] > 0.5
    clean = graph.load(tmp_path / "out" / "clean.onnx")
    assert sum(node.op_type == "BipolarQuant" for node in clean.graph) == (4 if kind == "binary" else 0)
    for layer in layers.layers(clean.graph):
        columns = [set(column.tolist()) for column in np.abs(graph.stored(layer.weight)).T]
        assert all(len(column - {0.0}) <= 1 for column in columns), "one scale a channel"
        if kind == "binary":
            assert len(set.union(*columns)) == 1, "one scale, and no zero"
    trained, started = (graph.load(tmp_path / "out" / f"{name}.onnx") for name in ("trained", "compressible"))
    sites = list(zip(scales.sites(trained.graph), scales.sites(started.graph), strict=True))
    assert len(sites) == (0 if kind == "binary" else 8)
    assert all(not np.array_equal(graph.stored(a.trained), graph.stored(b.trained)) for a, b in sites)
