"""onnxruntime-training behind one door: differentiation at build time, kernels at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from pqc import graph, library
from pqc.errors import EnvironmentFault, GraphError, UnsupportedError
from pqc.functions.operator import Key

ENGINE_VERSION = "1.19.2"
WHEELS = {"cpu": "onnxruntime-training-cpu", "cuda": "onnxruntime-training"}


def repair_command(device: str = "cpu") -> str:
    """What puts the training build for `device` into the folder that several packages share."""
    return f"pip install --force-reinstall --no-deps {WHEELS[device]}=={ENGINE_VERSION}"


REPAIR = repair_command()


@cache
def bindings() -> ModuleType:
    """The C bindings of the training build.

    Raises:
        EnvironmentFault: onnxruntime is missing, or another build lies in its folder.
    """
    try:
        from onnxruntime.capi import _pybind_state
    except ImportError as error:
        raise EnvironmentFault("onnxruntime-training is not installed", hint=f"run: {REPAIR}") from error
    state: ModuleType = _pybind_state
    if not hasattr(state, "GradientGraphBuilder"):
        raise EnvironmentFault(
            "onnxruntime is in place, but not its training build (another package has overwritten it)",
            hint=f"run: {REPAIR}, or `pqc doctor --repair`",
        )
    return state


@cache
def _register(key: Key) -> None:
    """Tell the engine an operator's gradient; its registry is global to the process and keeps the first entry."""
    one, state = library.derivatives()[key], bindings()
    assert one.gradient is not None
    definition = state.GradientNodeDefinition()
    definition.op_type, definition.domain = one.gradient.name, one.gradient.opset.domain
    definition.inputs, definition.outputs = list(one.arguments), list(one.results)
    definition.attributes = []
    state.register_gradient_definition("::".join(key), [definition])


def gradient_graph(proto: onnx.ModelProto, loss: str, parameters: Sequence[str]) -> onnx.ModelProto:
    """`proto` with the backward pass: one more output `<parameter>_grad` for each of `parameters`.

    Raises:
        UnsupportedError: an operator on the way has no gradient, or a parameter does not reach the loss.
    """
    state = bindings()
    for key in library.derivatives():
        _register(key)
    options = state.SessionOptions()
    options.log_severity_level = 4
    try:
        builder = state.GradientGraphBuilder(proto.SerializeToString(), {loss}, set(parameters), loss, options)
        builder.build()
        return onnx.load_model_from_string(builder.get_model())
    except RuntimeError as error:
        raise UnsupportedError(
            f"the graph cannot be differentiated: {_reason(error)}",
            hint="run legalize first: it rewrites or refuses what has no checked gradient",
        ) from error


def _reason(error: Exception) -> str:
    """The engine's message without the places in its source."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.split("[ONNXRuntimeError] : ")[-1]
    if " was false. " in text:
        text = text.split(" was false. ")[-1]
    return text.split("/onnxruntime_src/")[0].removesuffix("Status Message: ").strip()[:300] or "no reason given"


BROKEN_OPTIMIZERS = ["GemmSumFusion"]
"""It fails on a Gemm that reads the third result or a later one of another operator."""


class Session:
    """A graph that runs: arrays in and out by name.

    Args:
        model: the graph; bodies of pqc's operators are attached where it lacks them.
        device: `cpu` or `cuda`.
        threads: threads inside an operator; one is the fastest for small networks.
        fuse: let the engine fuse operators, which is fast; without it every node is computed as it stands.
    """

    def __init__(self, model: ir.Model, *, device: str = "cpu", threads: int = 1, fuse: bool = True) -> None:
        bindings()
        import onnxruntime as ort

        linked = graph.copy(model)
        library.link(linked)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not fuse:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = ort.InferenceSession(
                graph.to_proto(linked).SerializeToString(),
                options,
                providers=providers(device),
                disabled_optimizers=BROKEN_OPTIMIZERS,
            )
        except Exception as error:  # the bindings' exceptions share no narrower base
            raise GraphError(f"the engine refuses the graph: {_reason(error)}") from error
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def input_names(self) -> list[str]:
        """The inputs, those with a default included."""
        return self.inputs + [value.name for value in self.session.get_overridable_initializers()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            GraphError: a kernel failed, for example on a shape.
        """
        try:
            return dict(
                zip(
                    self.outputs,
                    self.session.run(None, {name: np.asarray(array) for name, array in feeds.items()}),
                    strict=True,
                )
            )
        except Exception as error:  # the bindings' exceptions share no narrower base
            raise GraphError(f"running the graph failed: {_reason(error)}") from error


def providers(device: str) -> list[str]:
    """The execution providers of `device`.

    Raises:
        EnvironmentFault: the card or the CUDA build is missing.
    """
    if device == "cpu":
        return ["CPUExecutionProvider"]
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise EnvironmentFault(
            "the engine in place has no CUDA",
            hint="on Python 3.11: pip install 'pqc[cuda]', then pqc doctor --repair --device cuda; or use --device cpu",
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def device_value(array: np.ndarray, device: str) -> Any:
    """An OrtValue; on the CPU it shares the array's memory."""
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array, device, 0)


def evaluate(model: ir.Model, feeds: Mapping[str, np.ndarray], *, fuse: bool = True) -> dict[str, np.ndarray]:
    """Run `model` once."""
    return Session(model, fuse=fuse).run(feeds)


def call(
    function: onnx.FunctionProto, inputs: Sequence[np.ndarray], attributes: Mapping[str, object]
) -> list[np.ndarray]:
    """Run one function on arrays.

    Raises:
        GraphError: the function does not take these inputs.
    """
    arrays = [np.asarray(array) for array in inputs]
    kinds = tuple((onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.ndim) for array in arrays)
    known = {attribute.name for attribute in function.attribute_proto} | set(function.attribute)
    given = tuple(sorted((name, value) for name, value in attributes.items() if name in known))
    session = _session_of(function.SerializeToString(deterministic=True), kinds, given)
    return list(session.run({f"in{i}": array for i, array in enumerate(arrays)}).values())


@lru_cache(maxsize=64)
def _session_of(body: bytes, kinds: tuple[tuple[int, int], ...], attributes: tuple[tuple[str, Any], ...]) -> Session:
    """A session that runs one function on arrays of these types and ranks; making one takes long."""
    function = onnx.FunctionProto.FromString(body)
    names = [f"in{i}" for i in range(len(kinds))]
    node = onnx.helper.make_node(
        function.name, names, list(function.output), domain=function.domain, **dict(attributes)
    )
    values = [
        onnx.helper.make_tensor_value_info(name, kind, [None] * rank)
        for name, (kind, rank) in zip(names, kinds, strict=True)
    ]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in function.output]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "call", values, outputs),
        opset_imports=[
            onnx.helper.make_opsetid("", graph.OPSET),
            onnx.helper.make_opsetid(function.domain, 1),
        ],
        functions=[function, *library.callees(function)],
        ir_version=graph.IR_VERSION,
    )
    return Session(graph.from_proto(proto))
