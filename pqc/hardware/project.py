"""Write the hls4ml project of a checked graph, with every type derived."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir

from pqc import files, graph
from pqc.errors import HardwareError
from pqc.hardware import layout, legality
from pqc.hardware import ranges as walk
from pqc.hardware.layout import Layout
from pqc.hardware.own_layers import register
from pqc.hardware.precision import NO_BIAS, TypeRecord, derive, sole_user, takes_quant
from pqc.hardware.quantizer import FixedType, rounds_to_one, told
from pqc.hardware.tables import ENTRY, REACH, table_for

Backend = Literal["Vitis", "Vivado"]
IoType = Literal["io_parallel", "io_stream"]

QONNX_FILE, PRECISION_FILE, LOG_FILE = "qonnx.onnx", "precision.json", "hls4ml.log"
# Only what no layer uses may fall back on this; `_settle` refuses a layer whose types were not derived.
DEFAULT = "fixed<32,16>"
MOVES = ("Reshape", "Repack", "Clone", "Transpose", "ZeroPadding1D", "ZeroPadding2D")
MODES = (("rounding_mode", "TRN"), ("saturation_mode", "WRAP"))
REPORT = "another version of hls4ml? pqc is tested with 1.3.0"


@dataclass(frozen=True)
class Project:
    """A written hls4ml project.

    Args:
        folder: where it is.
        backend: hls4ml's backend.
        io_type: how layers are connected.
        records: the type of every tensor of every layer.
        layout: how its flat input and outputs are ordered.
        fractions: for each output, the fraction bits of its grid.
        positions: for each output, its place among hls4ml's, which go in the order of the nodes.
    """

    folder: Path
    backend: Backend
    io_type: IoType
    records: list[TypeRecord]
    layout: Layout
    fractions: list[int]
    positions: list[int]

    @property
    def log(self) -> Path:
        """What hls4ml and the compiler said."""
        return self.folder / LOG_FILE


def write_project(
    model: ir.Model, out: Path, *, backend: Backend = "Vitis", io_type: IoType = "io_parallel"
) -> Project:
    """Check `model`, derive its types, and let hls4ml write its project into the folder `out`.

    Raises:
        UnsupportedError: a node that hls4ml would reject or compute wrongly.
        HardwareError: hls4ml failed, or made other layers or types than those derived.
    """
    model = graph.copy(model)
    legality.check(model, io_type)
    layout.unshare(model)
    ranges = walk.propagate(model)
    layout.rename(model)
    records = derive(model, ranges)
    tables = {
        node.name or "": table_for(node, ranges[graph.operand(node, 0)]).size
        for node in model.graph
        if node.op_type in REACH
    }
    rounded = {
        node.name or "" for node in model.graph if takes_quant(node) and rounds_to_one(sole_user(node.outputs[0]))
    }
    fractions = [ranges[value].fraction for value in model.graph.outputs]
    order = layout.to_channels_last(model, ranges)
    made = [node.outputs[0] for node in model.graph if node.outputs[0].is_graph_output()]
    positions = [made.index(value) for value in model.graph.outputs]
    out.mkdir(parents=True, exist_ok=True)
    graph.save(model, out / QONNX_FILE)
    files.write_text(out / PRECISION_FILE, to_json(records))
    project = Project(out, backend, io_type, records, order, fractions, positions)
    project.log.unlink(missing_ok=True)
    with quiet(project.log):
        _convert(graph.to_proto(model), project, tables, rounded)
    return project


def to_json(records: list[TypeRecord]) -> str:
    """Types as a list of objects, one a line."""
    rows = [json.dumps({**asdict(record), "type": str(record.type)}) for record in records]
    return "[\n" + ",\n".join(rows) + "\n]\n"


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what is printed to the file `log`, and drop third party warnings."""
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _convert(proto: onnx.ModelProto, project: Project, tables: dict[str, int], rounded: set[str]) -> None:
    import hls4ml

    register()
    try:
        config = hls4ml.utils.config_from_onnx_model(
            proto, granularity="name", backend=project.backend, default_precision=DEFAULT
        )
        config["Model"]["BitExact"] = False  # its pass knows no Quant, and pqc has derived the types already
        _configure(config["LayerName"], project.records, tables, rounded)
        hls = hls4ml.converters.convert_from_onnx_model(
            str(project.folder / QONNX_FILE),
            output_dir=str(project.folder),
            backend=project.backend,
            io_type=project.io_type,
            hls_config=config,
        )
        _settle(hls, project.records)
        hls.write()
    except HardwareError:
        raise
    except Exception as error:  # hls4ml raises whatever its passes run into
        raise HardwareError(
            f"hls4ml cannot convert the model: {type(error).__name__}: {error}",
            at=str(project.folder / QONNX_FILE),
            hint=f"see {project.log}",
        ) from error


def _configure(layers: dict[str, Any], records: list[TypeRecord], tables: dict[str, int], rounded: set[str]) -> None:
    """Set what hls4ml takes from its configuration: accumulators, the input, pools, tables and missing biases.

    The result of a MatMul or Conv stays `auto` here, and that of `rounded` nodes, which a Quant alone takes: a layer
    with a result type takes no bias and no Quant.
    """
    for record in records:
        if record.op in ("MatMul", "Conv"):
            wanted = record.tensor == "accum" or record.type == NO_BIAS
        else:
            wanted = record.tensor in ("accum", "result", "table", "param") and record.layer == record.node
            wanted = wanted and record.op not in ("Add", "Sub", "Mul", "Quant") and record.node not in rounded
        if wanted or record.layer == layout.INPUT:
            name = record.layer if record.layer == layout.INPUT else record.node
            layers[name]["Precision"][record.tensor] = str(told(record.type) if name == layout.INPUT else record.type)
    for name, size in tables.items():
        layers[name] |= {"TableSize": size, "TableT": str(ENTRY)}


def _settle(hls: Any, records: list[TypeRecord]) -> None:
    """Give every layer its derived types, and refuse layers or roundings that were not derived."""
    layers = {layer.name: layer for layer in hls.get_layers()}
    missing = sorted({record.layer for record in records} - set(layers))
    if missing:
        raise HardwareError(f"hls4ml made no layer for {', '.join(missing)}", hint=REPORT)
    for layer in set(layers) - {record.layer for record in records}:
        _check_move(layers[layer])
    for record in records:
        named = layers[record.layer].types.get(f"{record.tensor}_t")
        if named is not None and _type(named.precision) != record.type:
            _narrow(named, record)
        if record.tensor == "table":
            _check_index(layers[record.layer])
    for record in records:  # a type that two layers share would have been narrowed for both
        named = layers[record.layer].types.get(f"{record.tensor}_t")
        if named is not None and _type(named.precision) != record.type:
            raise _wrong_type(_type(named.precision), record)


def _check_index(layer: Any) -> None:
    """Accept a table with one entry for each pattern of its input's bits."""
    width, size = layer.get_input_variable().type.precision.width, layer.get_attr("table_size")
    if 1 << width != size:
        raise HardwareError(f"hls4ml gives {width} bits to a table of {size} entries: '{layer.name}'", hint=REPORT)


def _check_move(layer: Any) -> None:
    """Accept a layer that was not derived if it only moves values, in the type that it takes."""
    found, given = (variable.type.precision for variable in (layer.get_output_variable(), layer.get_input_variable()))
    if layer.class_name not in MOVES or _type(found) != _type(given):
        raise HardwareError(
            f"hls4ml made a layer that was not foreseen: {layer.class_name} '{layer.name}' of type {found}",
            hint=REPORT,
        )


def _type(precision: Any) -> FixedType:
    modes = (str(getattr(precision, name, default)) for name, default in MODES)
    return FixedType(int(precision.width), int(precision.integer), bool(precision.signed), *modes)


def _narrow(named: Any, record: TypeRecord) -> None:
    """Replace a lossless type by the derived one, which is narrower, or set the modes that no Quant can tell.

    A type that a Quant has told must have its bits already.
    """
    kind, found = record.type, _type(named.precision)
    same_bits = found == told(kind)
    narrower = kind.overflow == "WRAP" and found.overflow == "WRAP" and found.covers(kind)
    if record.tensor in ("weight", "bias") or not (same_bits or narrower):
        raise _wrong_type(found, record)
    precision = copy.copy(named.precision)
    precision.width, precision.integer, precision.signed = kind.width, kind.integer, kind.signed
    precision.rounding_mode, precision.saturation_mode = kind.rounding, kind.overflow
    named.precision = precision


def _wrong_type(found: FixedType, record: TypeRecord) -> HardwareError:
    return HardwareError(
        f"hls4ml gives the {record.tensor} of '{record.layer}' the type {found} instead of {record.type}", hint=REPORT
    )
