"""What a search found as a schedule that a person reads, edits and runs, with its masks in a file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pqc import files, fixed_masks
from pqc.fit.network import Kinds
from pqc.schedule import Schedule

HEADER = """\
# {line}
# quantization.layers and pruning.masks were found; the rest is the schedule that the search was given.
"""


def write(
    path: Path, plan: Schedule, line: str, kinds: Kinds, masks: dict[str, np.ndarray], sparsity: float | None = None
) -> Path | None:
    """Write the schedule to `path`, and masks with zeros to `<stem>.masks.npz` beside it.

    Args:
        path: of the YAML file.
        plan: what the search was given; its search and what came before it are left out.
        line: what it found, in a line.
        kinds: the types found; they join those of the plan.
        masks: bool arrays by the weights' names.
        sparsity: a target for the plan's pruning method, or None.

    Returns:
        the file of the masks, or None where nothing is pruned.
    """
    content = plan.model_dump(mode="json", exclude_unset=True, exclude={"name": True, "description": True})
    phases = content.get("phases", {})
    for done in ("pretraining", "fit"):
        phases.pop(done, None)
    content["phases"] = phases
    if kinds:
        _join(content.setdefault("quantization", {}), kinds)
    pruned = {name: mask for name, mask in masks.items() if not mask.all()}
    beside = path.with_name(f"{path.stem}.masks.npz")
    if pruned:
        fixed_masks.write(beside, pruned)
        content.setdefault("pruning", {})["masks"] = beside.name
    if sparsity is not None:
        content["target"] = {**content.get("target", {}), "sparsity": sparsity}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    files.write_text(path, f"{HEADER.format(line=line)}{text}")
    return beside if pruned else None


def _join(quantization: dict[str, Any], kinds: Kinds) -> None:
    """Put the types behind those that are there, of which the later count, and keep all as written."""
    quantization["calibrate_layers"] = False
    known: dict[str, dict[str, object]] = dict(quantization.get("layers", {}))
    for pattern, found in kinds.items():
        known[pattern] = {**known.pop(pattern, {}), **found}
    quantization["layers"] = known
