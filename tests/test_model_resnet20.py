"""ResNet-20: the readers of MNIST's and CIFAR's files on synthetic ones, and the model as it ships."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from pqc import data, engine, graph, pipeline, workflows
from pqc.errors import DataError
from pqc.models import TABLE
from pqc.models.resnet20.convert import convert, main, read_idx
from pqc.workflows.compression import NORMALIZE

RNG = np.random.default_rng(0)


def idx(path: Path, array: np.ndarray, *, shape: tuple[int, ...] | None = None) -> Path:
    """An IDX file of uint8 as LeCun's page describes it, gzipped where the name says so."""
    sizes = b"".join(size.to_bytes(4, "big") for size in shape or array.shape)
    content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mnist(folder: Path, suffix: str) -> tuple[list[Path], dict[str, np.ndarray]]:
    """Four files and what is in them."""
    arrays = {}
    for part, rows in (("train", 7), ("t10k", 3)):
        arrays[f"{part}-images-idx3-ubyte{suffix}"] = RNG.integers(0, 256, (rows, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte{suffix}"] = RNG.integers(0, 10, rows, np.uint8)
    return [idx(folder / name, array) for name, array in arrays.items()], arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_becomes_a_data_folder(tmp_path: Path, suffix: str) -> None:
    paths, arrays = mnist(tmp_path, suffix)
    assert convert("mnist", paths, tmp_path / "out") == {"train": 7, "test": 3}
    for name, part in (("train", "train"), ("test", "t10k")):
        found = data.read(tmp_path / "out" / name)
        x = found["x"].astype(np.float32) * 256
        assert x.shape == (len(found["y"]), 1, 32, 32)
        assert np.array_equal(x[:, 0, 2:-2, 2:-2], arrays[f"{part}-images-idx3-ubyte{suffix}"])
        assert x.sum() == x[:, 0, 2:-2, 2:-2].sum()
        assert np.array_equal(found["y"], arrays[f"{part}-labels-idx1-ubyte{suffix}"])


@pytest.mark.parametrize(("kind", "labels", "classes"), [("cifar10", 1, 10), ("cifar100", 2, 100)])
def test_cifar_becomes_a_data_folder(tmp_path: Path, kind: str, labels: int, classes: int) -> None:
    tables = {}
    for name, rows in (("data_batch_1.bin", 4), ("data_batch_2.bin", 2), ("test_batch.bin", 3)):
        tables[name] = RNG.integers(0, 256, (rows, labels + 3072), np.uint8)
        tables[name][:, :labels] = RNG.integers(0, classes, (rows, labels))
        (tmp_path / name).write_bytes(tables[name].tobytes())
    result = CliRunner().invoke(main, [kind, *(str(tmp_path / name) for name in tables), "--out", str(tmp_path / "o")])
    assert (result.output, result.exit_code) == ("train: 6 images\ntest: 3 images\n", 0)
    expected = np.concatenate([tables["data_batch_1.bin"], tables["data_batch_2.bin"]])
    found = data.read(tmp_path / "o" / "train")
    assert np.array_equal(found["x"].astype(np.float32) * 256, expected[:, labels:].reshape(-1, 3, 32, 32))
    assert np.array_equal(found["y"], expected[:, labels - 1])


def refused(kind: str, paths: list[Path], out: Path) -> str:
    """The message with which the files are refused; nothing is written."""
    with pytest.raises(DataError) as caught:
        convert(kind, paths, out)
    assert not out.exists()
    return caught.value.message


def test_a_header_that_promises_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name in ("a", "b.gz"):
        path = idx(tmp_path / name, np.zeros((2, 28, 28), np.uint8), shape=(2**31, 28, 28))
        with pytest.raises(DataError, match="more than a file of this size holds"):
            read_idx(path)


def test_broken_idx_files_are_refused(tmp_path: Path) -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    whole = idx(tmp_path / "whole", images).read_bytes()
    cases = {
        "empty": (b"", "it begins with nothing, not as IDX images or labels do"),
        "other": (b"\x00\x00\x0d\x03" + whole[4:], "it begins with 00 00 0d 03, not as IDX images or labels do"),
        "header": (whole[:9], "it ends within its header"),
        "short": (whole[:-1], "its header says (2, 28, 28), but there are fewer bytes"),
        "long": (whole + b"\0", "its header says (2, 28, 28), but there are more bytes"),
        "cut.gz": (gzip.compress(whole)[:-9], "it cannot be unpacked: "),
        "plain.gz": (whole, "it cannot be unpacked: Not a gzipped file (b'\\x00\\x00')"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_idx(path)
        assert caught.value.message.startswith(message), name


def test_mnist_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    paths, _ = mnist(tmp_path, "")
    assert refused("mnist", paths[:2], tmp_path / "out") == "no file for the part 'test'"
    assert refused("mnist", paths[:3], tmp_path / "out") == "one file of images and one of labels are needed"
    other = idx(tmp_path / "t10k-labels", np.zeros(9, np.uint8))
    message = "images of the shape (3, 28, 28) do not go with 9 labels of ten classes"
    assert refused("mnist", [*paths[:3], other], tmp_path / "out") == message


def test_broken_cifar_files_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "data_batch_1.bin", tmp_path / "test_batch.bin"
    good.write_bytes(bytes(3073))
    bad.write_bytes(bytes(3072))
    assert refused("cifar10", [good, bad], tmp_path / "out") == "3072 bytes are not whole rows of 3073"
    bad.write_bytes(bytes([10]) + bytes(3072))
    assert refused("cifar10", [good, bad], tmp_path / "out") == "it has the class 10, and there are 10"
    bad.write_bytes(b"")
    assert refused("cifar10", [good, bad], tmp_path / "out") == "0 bytes are not whole rows of 3073"


def test_the_model_has_twenty_layers_and_nine_sums() -> None:
    model = onnx.load(TABLE["resnet20"].path())
    counts = {kind: sum(node.op_type == kind for node in model.graph.node) for kind in ("Conv", "Gemm", "Add", "Relu")}
    # 19 convolutions on the longest path and two in shortcuts.
    assert counts == {"Conv": 21, "Gemm": 1, "Add": 9, "Relu": 19}


def test_the_model_is_as_good_as_its_page_says_and_normalizes_without_change() -> None:
    shipped = TABLE["resnet20"]
    model = graph.load(shipped.path())
    test = data.read(shipped.data_path() / "test.npz")
    x = data.as_float(test["x"])
    before = engine.evaluate(model, {"x": x})["probabilities"]
    assert (before.argmax(axis=1) == test["y"]).mean() == 487 / 500
    pipeline.run(model, NORMALIZE)
    assert not [node for node in model.graph if node.op_type == "BatchNormalization"]
    assert np.abs(engine.evaluate(model, {"x": x})["probabilities"] - before).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("io_type", ["io_parallel", "io_stream"])
def test_the_firmware_is_exact_on_every_test_image(tmp_path: Path, io_type: str) -> None:
    source = workflows.resolve("resnet20")
    plan = workflows.load_plan("resnet20", source, {"phases.training.epochs": "3", "phases.fine_tuning.epochs": "2"})
    summary = workflows.run(source, plan, None, tmp_path, workflows.RunOptions(io_type=io_type))
    assert summary["clean_equals_trained"]
    assert summary["clean"]["accuracy"] > 0.95
    assert (summary["hls"]["samples"], summary["hls"]["mismatches"]) == (500, 0)
