"""Arrays to train and measure with: from files, matched to a graph's inputs, checked before anything runs.

A data path is one of
    a folder with `train` and `test` (and perhaps `validation`), each a file or a folder of .npy files;
    one file, or one folder of .npy files, which is split.
Files are .npz, .npy folders (memory-mapped), HDF5 and Parquet. The target is named y, target, label or labels;
the other arrays are inputs, by the graph's names or else in order.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pqc import files
from pqc.errors import DataError

Arrays = dict[str, np.ndarray]
Dims = Sequence[Any]
TARGETS = ("target", "y", "label", "labels")
PARTS = ("train", "validation", "test")
SUFFIXES = (".npz", ".h5", ".hdf5", ".parquet")
CHECK_ROWS = 65536


@dataclass(frozen=True)
class Split:
    """Inputs by the graph's names, the target, and the rows that are used.

    Args:
        inputs: arrays [rows, ...].
        target: array [rows, ...].
        rows: indices into them.
    """

    inputs: Arrays
    target: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """Inputs and target of some of the rows, as float32 and the target's type."""
        chosen = self.rows[rows]
        return {name: as_float(array[chosen]) for name, array in self.inputs.items()}, self.target[chosen]

    def all(self) -> tuple[Arrays, np.ndarray]:
        """Everything."""
        return self.take(np.arange(len(self)))


@dataclass(frozen=True)
class Dataset:
    """What a run needs: training, validation and test rows.

    Args:
        train: likewise `validation` and `test`.
        source: where they come from.
        labelled: whether the targets do, too.
        anomalous: which of the test rows are anomalies [rows]; None where no class is said to be normal.
    """

    train: Split
    validation: Split
    test: Split
    source: str
    labelled: bool = True
    anomalous: np.ndarray | None = None


def as_float(array: np.ndarray) -> np.ndarray:
    """float32, which every stored type but float64 widens to exactly."""
    return np.ascontiguousarray(array, np.float32)


def load(
    path: str | Path,
    main: ir.Graph,
    *,
    labels: bool,
    validation: float = 0.1,
    seed: int = 0,
    needs_target: bool = True,
    marks: bool = False,
    target_dims: Callable[[Dims], Dims] | None = None,
) -> Dataset:
    """Read the data at `path` for the graph `main`.

    Args:
        path: see the module.
        main: its inputs without a default give names, shapes and types.
        labels: the target holds class numbers, one a row.
        validation: the share of the training rows to validate on, where the data bring none.
        seed: of that choice.
        needs_target: whether a missing target is an error; otherwise zeros stand for it.
        marks: the target holds one class number a row, whatever the graph gives out.
        target_dims: the target's dimensions from the output's; by default, its own without the classes.

    Raises:
        DataError: a file is missing or broken, an array does not fit the graph, or holds NaN.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("no such data file or folder", at=str(path), hint="give --data, or a reference model by name")
    output = main.outputs[0].shape
    dims = None if output is None else _target_dims(output.dims, labels, target_dims)
    parts = _parts(path)
    arrays = {name: read(part) for name, part in parts.items()}
    labelled = all(set(TARGETS) & found.keys() for found in arrays.values())
    if not labelled and not needs_target:
        arrays = {name: _with_target(found, dims or (), labels) for name, found in arrays.items()}
    splits = {name: _fit(arrays[name], part, main, labels, dims, marks) for name, part in parts.items()}
    rng = np.random.default_rng(seed)
    if "train" not in splits:
        whole = splits["whole"]
        order = rng.permutation(len(whole))
        cut = len(whole) // 5
        splits["test"], splits["train"] = _rows(whole, order[:cut]), _rows(whole, order[cut:])
    if "validation" not in splits:
        train = splits["train"]
        order = rng.permutation(len(train))
        cut = max(1, round(validation * len(train)))
        splits["validation"], splits["train"] = _rows(train, np.sort(order[:cut])), _rows(train, np.sort(order[cut:]))
    if not all(len(splits[name]) for name in ("train", "validation", "test")):
        raise DataError("too few rows to split into training, validation and test", at=str(path), hint="give more data")
    return Dataset(splits["train"], splits["validation"], splits["test"], str(path), labelled)


def _target_dims(dims: Dims, labels: bool, given: Callable[[Dims], Dims] | None) -> Dims:
    """The target's dimensions but for the rows."""
    wanted = given(dims) if given is not None else dims[:-1] if labels else dims
    return wanted[1:]


def _with_target(arrays: Arrays, dims: Dims, labels: bool) -> Arrays:
    """The arrays with zeros for their missing target."""
    rows = len(next(iter(arrays.values()), ()))
    shape = (rows, *(dim for dim in dims if isinstance(dim, int)))
    zeros = np.zeros(shape, np.int64 if labels else np.float32)
    return {**{name: array for name, array in arrays.items() if name not in TARGETS}, TARGETS[0]: zeros}


def _rows(split: Split, chosen: np.ndarray) -> Split:
    return Split(split.inputs, split.target, split.rows[chosen])


def _parts(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        return {"whole": path}
    parts = [
        part for part in sorted(path.iterdir()) if part.stem in PARTS and (part.is_dir() or part.suffix in SUFFIXES)
    ]
    found = {part.stem: part for part in parts}
    if {"train", "test"} <= found.keys():
        return found
    if found:
        there = ", ".join(sorted(found))
        raise DataError(f"found {there}, but both train and test are needed", at=str(path), hint="add the other")
    if not list(path.glob("*.npy")):
        raise DataError("neither train and test nor .npy files in the folder", at=str(path), hint="see docs/data.md")
    return {"whole": path}


def read(path: Path) -> Arrays:
    """The arrays of a file or of a folder of .npy files, by name.

    Raises:
        DataError: unknown format, or a broken file.
    """
    if not path.is_dir() and path.suffix not in SUFFIXES:
        hint = f"use .npy files or {', '.join(SUFFIXES)}"
        raise DataError(f"unknown data format '{path.suffix}'", at=str(path), hint=hint)
    if not path.exists():
        raise DataError("no such data file or folder", at=str(path), hint="give --data, or a reference model by name")
    try:
        if path.is_dir():
            return {file.stem: _map(file) for file in sorted(path.glob("*.npy"))}
        _refuse_device(path)
        if path.suffix == ".npz":
            return _read_npz(path)
        return _read_parquet(path) if path.suffix == ".parquet" else _read_hdf5(path)
    except DataError:
        raise
    except Exception as error:  # the readers raise whatever a broken file leads them to
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"cannot read the data: {reason}", at=str(path), hint="is the file complete?") from error


def samples(path: Path, values: Iterable[ir.Value]) -> Arrays:
    """The arrays at `path` for some inputs, by name: what a model is compared or calibrated on, without a target.

    Raises:
        DataError: an array is missing, does not fit its input, has no rows, or holds NaN.
    """
    arrays, found, rows = read(path), {}, dict[str, int]()
    for value in values:
        name = str(value.name)
        if name not in arrays:
            there = ", ".join(arrays) or "nothing"
            raise DataError(f"no array for the input '{name}'", at=str(path), hint=f"name it so; there is {there}")
        _check_numbers(name, arrays[name], path)
        if not len(arrays[name]):
            raise DataError(f"'{name}' has no rows", at=str(path), hint="give at least one")
        if value.shape is not None and len(value.shape):
            _check_input(arrays[name], value, path)
            _check_batch(arrays[name], value, path)
            rows |= {} if isinstance(value.shape[0], int) else {name: len(arrays[name])}
        found[name] = arrays[name]
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"'{name}' {count}" for name, count in rows.items())
        raise DataError(f"the inputs have different numbers of rows: {counts}", at=str(path), hint="cut them")
    return found


def _refuse_device(path: Path) -> None:
    reason = files.no_file(path)
    if reason is not None:
        raise DataError(f"cannot read the data: {reason}", at=str(path), hint="give a file or a folder")


def _map(path: Path) -> np.ndarray:
    _refuse_device(path)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise DataError(f"not an array of numbers: {error}", at=str(path), hint="is the file complete?") from error


def _read_npz(path: Path) -> Arrays:
    """Every member's header is held against its stored size before anything is allocated."""
    with zipfile.ZipFile(path) as file:
        _check_memory(sum(info.file_size for info in file.infolist()))
        for info in file.infolist():
            with file.open(info) as member:
                version = np.lib.format.read_magic(member)
                reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = reader[version](member)
                if math.prod(shape) * dtype.itemsize != info.file_size - member.tell():
                    raise ValueError(f"'{info.filename}' does not hold what its header says")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_memory(size: int) -> None:
    """Refuse arrays that the machine cannot hold, before anything is allocated."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > total:
        raise ValueError(f"its arrays need {size / 2**30:.0f} GiB, and the machine has {total / 2**30:.0f}")


def _read_hdf5(path: Path) -> Arrays:
    try:
        import h5py
    except ImportError as error:
        raise DataError("HDF5 needs the package h5py", at=str(path), hint="pip install 'pqc[data]'") from error
    with h5py.File(path, "r") as file:
        kept = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
        items = {name: file[name] for name in kept if isinstance(file[name], h5py.Dataset)}
        if any(item.is_virtual or item.external for item in items.values()):
            raise ValueError("it keeps arrays in other files")
        _check_memory(sum(item.nbytes for item in items.values()))
        return {name: np.asarray(item) for name, item in items.items()}


def _read_parquet(path: Path) -> Arrays:
    """Columns as they are; list columns become matrices."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("Parquet needs the package pyarrow", at=str(path), hint="pip install 'pqc[data]'") from error
    groups = parquet.read_metadata(path)
    _check_memory(sum(groups.row_group(number).total_byte_size for number in range(groups.num_row_groups)))
    table = parquet.read_table(path)
    arrays = {}
    for name in table.column_names:
        column = table.column(name).to_numpy()
        arrays[name] = np.stack(list(column)) if column.dtype == object else column
    return arrays


def _fit(arrays: Arrays, path: Path, main: ir.Graph, labels: bool, dims: Dims | None, marks: bool) -> Split:
    name = next((name for name in TARGETS if name in arrays), None)
    if name is None:
        raise DataError(
            f"no target among {', '.join(arrays) or 'no arrays'}",
            at=str(path),
            hint=f"name it {' or '.join(TARGETS)}",
        )
    target = arrays.pop(name)
    _check_numbers(name, target, path)
    wanted = [value for value in main.inputs if value.name not in main.initializers and value.name != "target"]
    inputs = _match(arrays, wanted, path)
    for value in wanted:
        _check_input(inputs[str(value.name)], value, path)
    for label, array in inputs.items():
        if len(array) != len(target):
            raise DataError(f"'{label}' has {len(array)} rows, the target {len(target)}", at=str(path), hint="cut them")
    found = _check_marks(target, path) if marks else _check_target(target, main, labels, dims, path)
    return Split(inputs, found, np.arange(len(target)))


def _check_numbers(name: str, array: np.ndarray, path: Path) -> None:
    if array.dtype.kind not in "fiub":
        raise DataError(f"'{name}' holds {array.dtype}, not numbers", at=str(path), hint="store floats")
    if array.ndim == 0:
        raise DataError(f"'{name}' is a single number, not one a row", at=str(path), hint="store an array")


def _match(arrays: Mapping[str, np.ndarray], wanted: list[ir.Value], path: Path) -> Arrays:
    names = [str(value.name) for value in wanted]
    if all(name in arrays for name in names):
        return {name: arrays[name] for name in names}
    if len(arrays) != len(wanted) or any(name in arrays for name in names):
        raise DataError(
            f"the model has the inputs {', '.join(names)} and the data {', '.join(arrays) or 'none'}",
            at=str(path),
            hint="name the arrays as the model's inputs",
        )
    return dict(zip(names, arrays.values(), strict=True))


def _check_input(array: np.ndarray, value: ir.Value, path: Path) -> None:
    shape = value.shape.dims[1:] if value.shape is not None else ()
    if array.dtype.kind not in "fiub":
        raise DataError(f"'{value.name}' holds {array.dtype}, not numbers", at=str(path), hint="store floats")
    fits = array.ndim == len(shape) + 1 and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(shape, array.shape[1:], strict=True)
    )
    if not fits:
        expected = ", ".join(str(dim) for dim in ("rows", *shape))
        raise DataError(
            f"'{value.name}' needs the shape [{expected}] and has {list(array.shape)}",
            at=str(path),
            hint="reshape it",
        )
    _check_finite(str(value.name), array, path)


def _check_batch(array: np.ndarray, value: ir.Value, path: Path) -> None:
    size = value.shape[0] if value.shape is not None else None
    if isinstance(size, int) and len(array) < size:
        raise DataError(
            f"the model takes {size} rows at a time, and '{value.name}' has {len(array)}",
            at=str(path),
            hint="give more rows, or free the model's batch (pqc import)",
        )


def _check_finite(name: str, array: np.ndarray, path: Path) -> None:
    if array.dtype.kind != "f":
        return
    for start in range(0, len(array), CHECK_ROWS):
        with np.errstate(over="ignore"):
            chunk = array[start : start + CHECK_ROWS].astype(np.float32)
        finite = np.isfinite(chunk).reshape(len(chunk), -1)
        if not finite.all():
            row = start + int(np.argmin(finite.all(axis=1)))
            raise DataError(f"'{name}' has NaN or infinity, first in row {row}", at=str(path), hint="clean the data")


def _check_target(target: np.ndarray, main: ir.Graph, labels: bool, given: Dims | None, path: Path) -> np.ndarray:
    """Class numbers [rows] for each position of the output, or numbers of the wanted shape."""
    output, dims = main.outputs[0].shape, given or ()
    fits = target.ndim == len(dims) + 1 and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(dims, target.shape[1:], strict=True)
    )
    if not fits and output is not None:
        expected = ", ".join(str(dim) for dim in ("rows", *dims))
        what = "class numbers" if labels else "numbers"
        raise DataError(
            f"the target needs {what} of the shape [{expected}] and has {list(target.shape)}",
            at=str(path),
            hint="take the argmax of one-hot labels" if labels else "reshape it",
        )
    if not labels:
        _check_finite("target", target, path)
        return as_float(target)
    return _check_labels(target, output[-1] if output is not None else None, path)


def _check_marks(target: np.ndarray, path: Path) -> np.ndarray:
    """Class numbers [rows]."""
    if target.ndim != 1:
        raise DataError(
            f"the target needs class numbers of the shape [rows] and has {list(target.shape)}",
            at=str(path),
            hint="take the argmax of one-hot labels",
        )
    return _check_labels(target, None, path)


def _check_labels(target: np.ndarray, classes: object, path: Path) -> np.ndarray:
    if target.dtype.kind == "f" and not (np.isfinite(target).all() and np.array_equal(target, np.round(target))):
        raise DataError("the labels are not whole numbers", at=str(path), hint="store class numbers from 0")
    low, high = (target.min(), target.max()) if target.size else (0, 0)
    if low < 0 or (isinstance(classes, int) and high >= classes):
        raise DataError(
            f"labels run from {low:g} to {high:g}, but the model has {classes} classes",
            at=str(path),
            hint="count from 0",
        )
    return target.astype(np.int64)
