"""Reading data that cannot be trusted: every array is checked before anything runs."""

from __future__ import annotations

import builtins
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import onnx_model

from pqc import data
from pqc.errors import DataError

ROWS = 40
LINEAR = "(float[n,4] x) => (float[n,3] y) { y = MatMul (x, w) }"
PAIR = "(float[n,4] a, float[n,2] b) => (float[n,3] y) { s = MatMul (a, w) t = MatMul (b, v) y = Add (s, t) }"


@pytest.fixture
def linear() -> ir.Graph:
    return onnx_model(LINEAR, w=np.ones((4, 3))).graph


@pytest.fixture
def pair() -> ir.Graph:
    return onnx_model(PAIR, w=np.ones((4, 3)), v=np.ones((2, 3))).graph


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(ROWS, 4)).astype(np.float32)


@pytest.fixture
def y() -> np.ndarray:
    return np.arange(ROWS) % 3


def stored(folder: Path, **arrays: object) -> Path:
    """`arrays` as an .npz."""
    path = folder / "d.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def refusal(path: Path, main: ir.Graph, *, labels: bool = True) -> DataError:
    """The error that loading `path` raises; it names a file at or below `path` and has a hint."""
    with pytest.raises(DataError) as caught:
        data.load(path, main, labels=labels)
    assert str(caught.value.at).startswith(str(path))
    assert caught.value.hint
    assert len(str(caught.value)) < 1000
    return caught.value


# What is read


def rows_of(found: data.Dataset) -> np.ndarray:
    """All inputs of a data set, sorted by their first column."""
    pieces = [split.all()[0]["x"] for split in (found.train, found.validation, found.test)]
    joined = np.concatenate(pieces)
    return joined[np.argsort(joined[:, 0])]


def test_one_file_is_split_and_nothing_is_lost(x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    found = data.load(stored(tmp_path, x=x, y=y), linear, labels=True, validation=0.25, seed=3)
    assert [len(part) for part in (found.test, found.validation, found.train)] == [8, 8, 24]
    np.testing.assert_array_equal(rows_of(found), x[np.argsort(x[:, 0])])
    for part in (found.train, found.validation, found.test):
        inputs, target = part.all()
        np.testing.assert_array_equal(target, y[part.rows])
        np.testing.assert_array_equal(inputs["x"], x[part.rows])


def test_the_split_is_the_same_for_a_seed_and_differs_for_another(
    x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    path = stored(tmp_path, x=x, y=y)
    first, second, other = (data.load(path, linear, labels=True, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train.rows, second.train.rows)
    assert not np.array_equal(first.test.rows, other.test.rows)


@pytest.mark.parametrize("kind", ["npz", "npy", "h5"])
@pytest.mark.parametrize("parts", [("train", "test"), ("train", "validation", "test")])
def test_a_folder_with_parts_is_read_as_they_are(
    kind: str, parts: tuple[str, ...], x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    for number, name in enumerate(parts):
        write_part(tmp_path / name, kind, {"x": x + np.float32(number), "y": y})
    found = data.load(tmp_path, linear, labels=True)
    np.testing.assert_array_equal(found.test.all()[0]["x"], x + np.float32(len(parts) - 1))
    assert len(found.train) == (ROWS if len(parts) == 3 else ROWS - 4)


def write_part(path: Path, kind: str, arrays: dict[str, np.ndarray]) -> None:
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    elif kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)


@pytest.mark.parametrize("name", data.TARGETS)
def test_the_target_has_one_of_four_names(
    name: str, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    found = data.load(stored(tmp_path, x=x, **{name: y}), linear, labels=True)
    np.testing.assert_array_equal(np.sort(found.test.all()[1]), np.sort(y[found.test.rows]))


def test_arrays_of_other_names_are_taken_in_order(pair: ir.Graph, y: np.ndarray, tmp_path: Path) -> None:
    p, q = np.ones((ROWS, 4)), np.zeros((ROWS, 2))
    found = data.load(stored(tmp_path, p=p, q=q, y=y), pair, labels=True)
    assert {name: array.shape[1] for name, array in found.train.all()[0].items()} == {"a": 4, "b": 2}


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.uint16, np.int64, np.bool_, np.longdouble])
def test_numbers_of_any_type_become_float32(
    kind: type, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    array = np.abs(10 * x).astype(kind)
    found = data.load(stored(tmp_path, x=array, y=y.astype(np.float32)), linear, labels=True)
    inputs, target = found.train.all()
    assert inputs["x"].dtype == np.float32
    assert target.dtype == np.int64
    np.testing.assert_array_equal(inputs["x"], array[found.train.rows].astype(np.float32))


def test_a_file_in_fortran_order_and_big_endian_is_read(
    x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    found = data.load(stored(tmp_path, x=np.asfortranarray(x).astype(">f4"), y=y.astype(">i8")), linear, labels=True)
    np.testing.assert_array_equal(rows_of(found), x[np.argsort(x[:, 0])])


# Shapes, types, rows


@pytest.mark.parametrize("shape", [(ROWS, 3), (ROWS, 5), (ROWS, 4, 1), (ROWS,), (), (4, ROWS)])
def test_an_input_of_another_shape_is_refused(
    shape: tuple[int, ...], y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    path = stored(tmp_path, x=np.zeros(shape), y=y)
    assert str(refusal(path, linear)) == (
        f"{path}: 'x' needs the shape [rows, 4] and has {list(shape)}\nhint: reshape it"
    )


@pytest.mark.parametrize("kind", ["U32", "S8", "complex64", "M8[D]", "V4"])
def test_an_input_that_holds_no_numbers_is_refused(
    kind: str, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    array = x.view("V4") if kind == "V4" else np.zeros(x.shape, kind)
    path = stored(tmp_path, x=array, y=y)
    assert str(refusal(path, linear)) == f"{path}: 'x' holds {array.dtype}, not numbers\nhint: store floats"


def test_a_structured_input_is_refused(y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    refusal(stored(tmp_path, x=np.zeros(ROWS, [("a", "f4")]), y=y), linear)


def test_other_row_counts_are_refused(x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    path = stored(tmp_path, x=x[:-1], y=y)
    assert refusal(path, linear).message == "'x' has 39 rows, the target 40"


def test_a_missing_target_is_refused(x: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    path = stored(tmp_path, x=x)
    assert str(refusal(path, linear)) == (f"{path}: no target among x\nhint: name it target or y or label or labels")


def test_a_missing_input_is_refused(y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    path = stored(tmp_path, y=y)
    assert refusal(path, linear).message == "the model has the inputs x and the data none"


def test_too_many_arrays_of_other_names_are_refused(
    x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    path = stored(tmp_path, p=x, q=x, y=y)
    assert refusal(path, linear).message == "the model has the inputs x and the data p, q"


def test_arrays_of_which_one_bears_an_input_s_name_are_not_shifted(y: np.ndarray, tmp_path: Path) -> None:
    twins = onnx_model("(float[n,4] a, float[n,4] b) => (float[n,4] y) { y = Sub (a, b) }").graph
    refusal(stored(tmp_path, b=np.ones((ROWS, 4)), c=np.zeros((ROWS, 4)), y=y), twins)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4])
def test_too_few_rows_are_refused(rows: int, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    path = stored(tmp_path, x=x[:rows], y=y[:rows])
    assert refusal(path, linear).message == "too few rows to split into training, validation and test"


@pytest.mark.parametrize("empty", ["train", "test"])
def test_an_empty_part_is_refused(empty: str, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = 0 if name == empty else ROWS
        np.savez(tmp_path / f"{name}.npz", x=x[:rows], y=y[:rows])
    refusal(tmp_path, linear)


@pytest.mark.parametrize(("row", "value"), [(0, np.nan), (17, np.nan), (39, np.inf), (5, -np.inf)])
def test_a_value_that_is_not_finite_is_reported_with_its_row(
    row: int, value: float, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    x[row, 2] = value
    x[39, 3] = np.nan
    path = stored(tmp_path, x=x, y=y)
    assert str(refusal(path, linear)) == (f"{path}: 'x' has NaN or infinity, first in row {row}\nhint: clean the data")


def test_the_row_is_right_beyond_the_first_chunk(linear: ir.Graph, tmp_path: Path) -> None:
    rows = data.CHECK_ROWS + 10
    array = np.zeros((rows, 4), np.float32)
    array[data.CHECK_ROWS + 7, 1] = np.nan
    path = stored(tmp_path, x=array, y=np.zeros(rows, np.int64))
    assert f"first in row {data.CHECK_ROWS + 7}" in refusal(path, linear).message


def test_a_number_beyond_float32_is_refused(x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    array = x.astype(np.float64)
    array[11, 0] = 1e300
    assert "row 11" in refusal(stored(tmp_path, x=array, y=y), linear).message


# Targets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + 1, "labels run from 1 to 3, but the model has 3 classes"),
        (lambda y: y - 1, "labels run from -1 to 1, but the model has 3 classes"),
        (lambda y: y + 0.5, "the labels are not whole numbers"),
        (lambda y: np.where(y == 1, np.nan, y), "the labels are not whole numbers"),
        (lambda y: np.where(y == 1, 7, y).astype(np.uint8), "labels run from 0 to 7, but the model has 3 classes"),
    ],
    ids=["from one", "negative", "fractions", "nan", "unsigned"],
)
def test_labels_out_of_range_are_refused(
    change: Any, message: str, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    assert refusal(stored(tmp_path, x=x, y=change(y)), linear).message == message


@pytest.mark.parametrize(
    "change",
    [
        lambda y: np.where(y == 1, np.inf, y),
        lambda y: np.where(y == 1, 1e300, y),
        lambda y: y.astype(str),
        lambda y: y.astype("S3"),
        lambda y: y.astype("M8[D]"),
        lambda y: y.astype(np.complex64),
        lambda y: y.astype([("a", "i4")]),
        lambda y: np.int64(1),
        lambda y: y[:, None],
        lambda y: np.eye(3)[y],
    ],
    ids=["inf", "huge", "text", "bytes", "dates", "complex", "structured", "scalar", "column", "one-hot"],
)
def test_labels_that_are_no_class_numbers_are_refused(
    change: Any, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    refusal(stored(tmp_path, x=x, y=change(y)), linear)


def test_labels_for_a_single_output_are_refused(x: np.ndarray, tmp_path: Path) -> None:
    one = onnx_model("(float[n,4] x) => (float[n,1] y) { y = MatMul (x, w) }", w=np.ones((4, 1))).graph
    refusal(stored(tmp_path, x=x, y=np.ones(ROWS, np.int64)), one)


def test_a_real_target_of_the_output_s_shape_is_read(x: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    found = data.load(stored(tmp_path, x=x, y=x[:, :3].astype(np.float64)), linear, labels=False)
    assert found.train.target.dtype == np.float32
    np.testing.assert_array_equal(found.train.all()[1], x[found.train.rows, :3])


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (ROWS, 2), (ROWS, 3, 1)])
def test_a_real_target_of_another_shape_is_refused(
    shape: tuple[int, ...], x: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    refusal(stored(tmp_path, x=x, y=np.zeros(shape)), linear, labels=False)


@pytest.mark.parametrize("kind", ["U4", "complex64", "M8[D]"])
def test_a_real_target_that_holds_no_numbers_is_refused(
    kind: str, x: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    refusal(stored(tmp_path, x=x, y=np.zeros((ROWS, 3), kind)), linear, labels=False)


def test_a_real_target_that_is_not_finite_is_reported_with_its_row(
    x: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    target = x[:, :3].copy()
    target[23, 1] = np.nan
    assert "row 23" in refusal(stored(tmp_path, x=x, y=target), linear, labels=False).message


# Files


def test_a_missing_file_is_refused(linear: ir.Graph, tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    assert str(refusal(path, linear)) == (
        f"{path}: no such data file or folder\nhint: give --data, or a reference model by name"
    )


@pytest.mark.parametrize("name", ["d.csv", "d", "d.npy", "d.pkl"])
def test_an_unknown_suffix_is_refused(name: str, linear: ir.Graph, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"1,2\n")
    suffix = Path(name).suffix
    assert refusal(tmp_path / name, linear).message == f"unknown data format '{suffix}'"


@pytest.mark.parametrize("name", ["d.npz", "d.h5", "d.hdf5"])
@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", b"\x80\x04K\x01.", b"PK\x03\x04", bytes(500)])
def test_a_file_that_is_not_what_its_suffix_says_is_refused(
    name: str, content: bytes, linear: ir.Graph, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name, linear)


@pytest.mark.parametrize("compress", [False, True])
def test_a_damaged_npz_is_refused_or_read_as_it_was(
    compress: bool, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    path = tmp_path / "d.npz"
    (np.savez_compressed if compress else np.savez)(path, x=x, y=y)
    whole = path.read_bytes()
    for cut in (1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refusal(path, linear)
    for place in range(30, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = data.load(path, linear, labels=True)
        except DataError as error:
            assert error.hint
        else:
            np.testing.assert_array_equal(rows_of(found), x[np.argsort(x[:, 0])])


def test_an_npz_of_things_that_are_no_arrays_is_refused(linear: ir.Graph, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("y.npy", b"no array")
        file.writestr("x.npy", b"")
    refusal(tmp_path / "d.npz", linear)


def test_an_npy_that_is_called_npz_is_refused(x: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", x)
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    refusal(tmp_path / "d.npz", linear)


def header(shape: tuple[int, ...]) -> bytes:
    """The beginning of an .npy file of float32."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_an_npz_that_claims_terabytes_is_refused(linear: ir.Graph, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("x.npy", header((2**38, 4)) + b"1234")
    refusal(tmp_path / "d.npz", linear)


@pytest.mark.parametrize("content", [b"", b"junk", header((2**38, 4)), header((ROWS, 4)) + bytes(100)])
def test_a_broken_npy_is_refused(content: bytes, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", y)
    (tmp_path / "x.npy").write_bytes(content)
    refusal(tmp_path, linear)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_nothing_is_unpickled(kind: str, x: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "sprung"), "w"))

    objects = np.empty(ROWS, object)
    objects[:] = [Trap()] * ROWS
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "y.npy", objects, allow_pickle=True)
    np.save(folder / "x.npy", x)
    refusal(stored(tmp_path, x=x, y=objects) if kind == "npz" else folder, linear)
    assert not (tmp_path / "sprung").exists()


def test_an_empty_folder_is_refused(linear: ir.Graph, tmp_path: Path) -> None:
    assert str(refusal(tmp_path, linear)) == (
        f"{tmp_path}: neither train and test nor .npy files in the folder\nhint: see docs/data.md"
    )


@pytest.mark.parametrize("name", ["train", "test", "validation"])
def test_a_folder_with_one_part_is_refused(
    name: str, x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path
) -> None:
    np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    assert refusal(tmp_path, linear).message == f"found {name}, but both train and test are needed"


def test_notes_beside_the_data_are_no_data(x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    (tmp_path / "train.txt").write_text("how the training data were made")
    assert len(data.load(tmp_path, linear, labels=True).test) == ROWS


def test_a_part_of_an_unknown_format_is_named(x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=x, y=y)
    (tmp_path / "test.csv").write_text("1,2\n")
    refusal(tmp_path, linear)


@pytest.mark.parametrize(
    ("suffix", "module", "package", "format_name"),
    [(".h5", "h5py", "h5py", "HDF5"), (".parquet", "pyarrow", "pyarrow", "Parquet")],
)
def test_a_missing_package_is_named(
    suffix: str,
    module: str,
    package: str,
    format_name: str,
    linear: ir.Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_bytes(b"content")
    original = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(f"No module named '{module}'")
        return original(name, *arguments, **more)

    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert str(refusal(path, linear)) == (
        f"{path}: {format_name} needs the package {package}\nhint: pip install 'pqc[data]'"
    )


def test_text_labels_in_hdf5_are_refused(x: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"], file["y"] = x, ["a"] * ROWS
    refusal(tmp_path / "d.h5", linear)


def test_a_truncated_hdf5_is_refused(x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "d.h5"
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = x, y
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        refusal(path, linear)


def test_lists_in_parquet_become_matrices(x: np.ndarray, y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parquet.write_table(pa.table({"x": list(x), "y": y}), path)
    np.testing.assert_array_equal(rows_of(data.load(path, linear, labels=True)), x[np.argsort(x[:, 0])])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refusal(path, linear)


def test_ragged_lists_in_parquet_are_refused(y: np.ndarray, linear: ir.Graph, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parquet.write_table(pa.table({"x": [[1.0] * (3 + row % 2) for row in range(ROWS)], "y": y}), path)
    refusal(path, linear)
