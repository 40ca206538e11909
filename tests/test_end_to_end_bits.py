"""Learned bits on real parts: real jets, a short training, real hls4ml and g++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pqc import graph, workflows
from pqc.hardware.quantizer import fixed_types
from pqc.models import TABLE

SCHEDULE = """
quantization:
  weights: {{bits: [1, 0, 5], granularity: per_weight, {weights}}}
  biases: {{bits: [1, 0, 5], granularity: per_weight, {weights}}}
  inputs: {{bits: [1, 3, 5], granularity: per_element, {inputs}}}
  calibrate: false
training: {{learning_rate: "cosine(5e-3, 1e-4)", batch: {batch}}}
controls: {{ebops_weight: "exp(1e-6, 3e-5)"}}
phases: {{training: {{epochs: {epochs}}}}}
"""
SATURATING = {"weights": "overflow: SAT_SYM, learns: bits", "inputs": "learns: bits"}
ROUNDING_UP = {"weights": "overflow: SAT_SYM, learns: bits", "inputs": "learns: bits, rounding: RND"}
WRAPPING = dict.fromkeys(("weights", "inputs"), "overflow: WRAP, learns: fractional_bits, rounding: RND")


def run(folder: Path, kinds: dict[str, str], epochs: int, rows: int | None = None, batch: int = 1024) -> dict[str, Any]:
    """Run the chain as the command line does, on the first `rows` jets of each part."""
    (folder / "schedule.yaml").write_text(SCHEDULE.format(**kinds, epochs=epochs, batch=batch))
    data = None
    if rows is not None:
        for part in ("train", "test"):
            with np.load(TABLE["jet_tagger"].data_path() / f"{part}.npz") as arrays:
                np.savez(folder / f"{part}.npz", **{name: array[:rows] for name, array in arrays.items()})
        data = folder
    source = workflows.resolve("jet_tagger")
    plan = workflows.load_plan(str(folder / "schedule.yaml"), source, {})
    return workflows.run(source, plan, data, folder / "out", workflows.RunOptions())


def check(folder: Path, summary: dict[str, Any]) -> None:
    """The firmware is exact, and the activations' elements do have types of their own."""
    assert summary["clean_equals_trained"]
    assert summary["hls"]["samples"] == summary["test_rows"]
    assert summary["hls"]["mismatches"] == 0
    assert summary["hls"]["accuracy"] == summary["clean"]["accuracy"] > 0.6
    code = (folder / "out" / "hls" / "firmware" / "nnet_utils" / "nnet_code_gen.h").read_text()
    assert len({line.split("=")[1].split("(")[0] for line in code.splitlines() if "fixed<" in line}) > 2


@pytest.mark.parametrize("kinds", [SATURATING], ids=["saturating"])
def test_learned_bits_reach_the_firmware(kinds: dict[str, str], tmp_path: Path) -> None:
    summary = run(tmp_path, kinds, epochs=3, rows=6000, batch=64)
    check(tmp_path, summary)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [SATURATING, ROUNDING_UP], ids=["saturating", "half-up"])
def test_learned_bits_reach_the_firmware_after_a_longer_training(kinds: dict[str, str], tmp_path: Path) -> None:
    summary = run(tmp_path, kinds, epochs=12)
    check(tmp_path, summary)
    clean = graph.load(tmp_path / "out" / "clean.onnx")
    assert {node.domain for node in clean.graph} == {"", graph.QONNX}


@pytest.mark.slow
def test_wrapping_quantizers_reach_the_firmware(tmp_path: Path) -> None:
    """They stay FixedQuant in the clean model, which keeps the body."""
    summary = run(tmp_path, WRAPPING, epochs=4)
    check(tmp_path, summary)
    path = tmp_path / "out" / "clean.onnx"
    clean = graph.load(path)
    wraps = [node for node in clean.graph if node.op_type == "FixedQuant"]
    assert wraps and all(fixed_types(node).overflow == "WRAP" for node in wraps)
    assert {name[:2] for name in clean.functions} == {("pqc.quant", "FixedQuant"), ("pqc.quant", "Rounded")}
