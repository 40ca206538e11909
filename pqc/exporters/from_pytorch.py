"""PyTorch to ONNX, by either of its exporters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from main import Refused, Request, inputs, named

OPSET = {"dynamo": 18, "torchscript": 17}
TRACED = 2


def read(path: Path) -> Any:
    """The module of a file of torch.export."""
    return torch.export.load(str(path)).module()


def export(model: Any, request: Request, out: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Write the model to `out`; return samples and a report.

    The batch is a symbol where the request gives its first dimension a name and the exporter agrees.
    """
    _load_weights(model, request["weights"])
    if hasattr(model, "train") and not isinstance(model, torch.fx.GraphModule):
        model.train(False)
    arrays = inputs(request)
    free = [name for name, one in request["inputs"].items() if one["dims"] and isinstance(one["dims"][0], str)]
    return write(model, arrays, free, request["exporter"], out)


def write(
    model: Any, arrays: Mapping[str, np.ndarray], free: list[str], exporter: str, out: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run a module on `arrays`, and write it with the rows of the inputs `free` as a symbol."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        results = model(*tensors.values())
    results = results if isinstance(results, (tuple, list)) else [results]
    if not all(isinstance(one, torch.Tensor) for one in results):
        raise Refused("the model gives something else than tensors", "wrap it in a module that gives tensors")
    traced = {name: tensor[:TRACED] if name in free else tensor for name, tensor in tensors.items()}
    _WRITERS[exporter](model, traced, free, out)
    samples = {**named(list(arrays.values()), "in"), **named([one.numpy() for one in results], "out")}
    return samples, {"version": torch.__version__, "exporter": exporter, "inputs": list(arrays)}


def _dynamo(model: Any, traced: Mapping[str, Any], free: list[str], out: Path) -> None:
    # A network may take its inputs as *args: the shapes stand in the order of the arguments.
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if name in free else None for name in traced)
    dynamic = (shapes,) if _takes_any(model) else shapes
    options = {"input_names": list(traced), "opset_version": OPSET["dynamo"], "external_data": False}
    torch.onnx.export(
        model, tuple(traced.values()), str(out), dynamo=True, verbose=False, dynamic_shapes=dynamic, **options
    )


def _takes_any(model: Any) -> bool:
    import inspect

    kinds = [one.kind for one in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _torchscript(model: Any, traced: Mapping[str, Any], free: list[str], out: Path) -> None:
    names = {"input_names": list(traced), "output_names": ["output"]}
    axes = {name: {0: "batch"} for name in [*free, *(["output"] if free else [])]}
    options = {"opset_version": OPSET["torchscript"], "dynamic_axes": axes, **names}
    torch.onnx.export(model, tuple(traced.values()), str(out), dynamo=False, **options)


_WRITERS = {"dynamo": _dynamo, "torchscript": _torchscript}


def _load_weights(model: Any, weights: str | None) -> None:
    if weights is None:
        return
    path = Path(weights)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    elif path.suffix in (".pt", ".pth"):
        state = torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    else:
        raise Refused(f"cannot read weights from {path.name}", "give a .safetensors, .pt, .pth or .npz file")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise Refused(f"the weights do not fit the model: {' '.join(str(error).split())}", "give its own") from error
