"""Write a framework's model as ONNX, with samples of what it computes.

Run as `python main.py REQUEST.json` in an environment that has the framework; the folder need not have pqc. Writes
model.onnx, samples.npz (in0, in1, …, out0, …) and report.json, or error.json where the source cannot be taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Request = dict[str, Any]
FRAMEWORKS = {"torch": "from_pytorch", "keras": "from_keras", "jax": "from_jax"}
SUFFIXES = {".keras": "keras", ".pt2": "torch"}


class Refused(Exception):
    """The source cannot be taken; the arguments are a message and a hint."""


def main(path: str) -> int:
    """Answer the request in the file `path`."""
    # Layers of Keras run, and are exported, on PyTorch; weights and files of Keras do not depend on the backend.
    os.environ["KERAS_BACKEND"] = "torch"
    warnings.simplefilter("ignore")
    request = json.loads(Path(path).read_text())
    out = Path(request["out"])
    try:
        framework, model = load(request)
        exporter = importlib.import_module(FRAMEWORKS[framework])
        samples, report = exporter.export(model, request, out / "model.onnx")
    except Refused as error:
        message, hint = error.args
        (out / "error.json").write_text(json.dumps({"message": message, "hint": hint}))
        return 1
    np.savez(out / "samples.npz", **samples)
    (out / "report.json").write_text(json.dumps({"framework": framework, **report}))
    return 0


def load(request: Request) -> tuple[str, Any]:
    """The framework of the source, and its model."""
    path = Path(request["source"])
    framework = SUFFIXES.get(path.suffix)
    if framework is not None:
        require(framework)
        return framework, importlib.import_module(FRAMEWORKS[framework]).read(path)
    model = getattr(_module(path), request["object"], None)
    if model is None:
        raise Refused(
            f"{path.name} has no '{request['object']}'", "give FILE.py:NAME of a model, a class or a function"
        )
    framework = request["framework"] or framework_of(model)
    if callable(model) and (framework is None or isinstance(model, type)):
        model = build(model, request)
        framework = framework or framework_of(model)
    if framework is None and callable(model):
        framework = "jax"
    if framework is None:
        raise Refused(
            f"'{request['object']}' is a {type(model).__name__}, which is no model of PyTorch, Keras or JAX",
            "name a model, its class, or a function that gives it",
        )
    require(framework)
    return framework, model


def build(factory: Any, request: Request) -> Any:
    """Call a class or function that takes nothing, or the request's weights as a dictionary of arrays.

    A function of arrays is a network of JAX itself: it is left as it is where it cannot be called so.
    """
    import inspect

    weights = request["weights"]
    needed = [one for one in inspect.signature(factory).parameters.values() if one.default is one.empty]
    if len(needed) > (weights is not None):
        if isinstance(factory, type):
            raise Refused(
                f"'{factory.__name__}' needs arguments", "name a function that takes none and gives the model"
            )
        return factory
    if not needed:
        return factory()
    request["weights"] = None  # they are in the model now
    return factory(_arrays(Path(weights)))


def framework_of(model: Any) -> str | None:
    """The framework whose model this is, by the modules of its classes; Keras models on PyTorch are Keras's."""
    kind = model if isinstance(model, type) else type(model)
    homes = {one.__module__.split(".")[0] for one in kind.__mro__}
    homes = {"jax" if home in ("flax", "equinox") else home for home in homes}
    return next((name for name in ("keras", "torch", "jax") if name in homes), None)


def require(framework: str) -> None:
    """Refuse where the framework is missing."""
    needed = {"torch": ("torch", "onnxscript"), "keras": ("keras", "torch", "onnxscript"), "jax": ("jax", "jax2onnx")}
    missing = [name for name in needed[framework] if importlib.util.find_spec(name) is None]
    if missing:
        extra = {"torch": "export", "keras": "keras", "jax": "jax"}[framework]
        raise Refused(
            f"this Python lacks {' and '.join(missing)}",
            f"pip install 'pqc[{extra}]', or give another one that has them with --python",
        )


def inputs(request: Request, known: Mapping[str, tuple[list[Any], str]] | None = None) -> dict[str, np.ndarray]:
    """Samples for the inputs, by name: given ones, else normal numbers, or 0 and 1 for integers.

    Args:
        request: its `inputs` give dimensions and types by name, the first dimension perhaps a word.
        known: the same from the model itself, for what the request leaves out.
    """
    wanted = {name: (one["dims"], one["type"]) for name, one in request["inputs"].items()} or dict(known or {})
    if not wanted:
        raise Refused("the shapes of the inputs are not known", "give each with --input NAME=batch,16")
    given = _arrays(Path(request["samples"])) if request["samples"] else {}
    rng = np.random.default_rng(0)
    found = {}
    for name, (dims, kind) in wanted.items():
        rows = dims[0] if dims and isinstance(dims[0], int) else request["rows"]
        shape = [rows, *dims[1:]] if dims else []
        if name in given:
            found[name] = given[name][:rows].astype(kind)
        elif np.issubdtype(np.dtype(kind), np.floating):
            found[name] = rng.normal(size=shape).astype(kind)
        else:
            found[name] = rng.integers(0, 2, shape).astype(kind)
    return found


def named(found: list[Any], prefix: str) -> dict[str, np.ndarray]:
    """Arrays as in0, in1, … or out0, out1, …"""
    return {f"{prefix}{number}": np.asarray(array) for number, array in enumerate(found)}


def _module(path: Path) -> Any:
    if not path.is_file():
        raise Refused(f"no such file: {path}", "give FILE.py:NAME")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Refused(f"{path.name} is not a Python file", "give FILE.py:NAME, a .keras, .pt2 or .onnx file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        hint = "install it, or give an interpreter that has it with --python"
        raise Refused(f"{path.name} imports {error.name}, which this Python lacks", hint) from error
    return module


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    if path.suffix != ".npz":
        raise Refused(f"cannot read arrays from {path.name}", "give an .npz or a .safetensors file")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


if __name__ == "__main__":
    # The other files import this one by its name, so the exception must be one class.
    sys.modules["main"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1]))
