"""What a new user gets wrong, verb by verb: one paragraph that names the place, and never a hang or a wrong result."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_mlp

from pqc import cli, data, graph
from pqc.errors import DataError
from pqc.functions.losses import LOSSES, RANGES

ROWS = 60
SCHEDULE = "training: {batch: 8}\nphases: {training: {epochs: 1}, fine_tuning: {epochs: 1}}\n"
Fails = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model, data, a schedule, and things that are no files."""
    monkeypatch.chdir(tmp_path)
    graph.save(make_mlp(), "m.onnx")
    rng = np.random.default_rng(5)
    np.savez("d.npz", x=rng.normal(size=(ROWS, 4)).astype(np.float32), y=np.arange(ROWS) % 3)
    Path("s.yaml").write_text(SCHEDULE)
    Path("folder").mkdir()
    Path("text").write_text("text")
    os.mkfifo("pipe")
    os.mkfifo("pipe.npz")
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    return tmp_path


@pytest.fixture
def fails(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Call the program and give what it wrote to standard error: one paragraph with a hint."""

    def call(*arguments: object, code: int = 1) -> str:
        monkeypatch.setattr(sys, "argv", ["pqc", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capfd.readouterr()
        assert caught.value.code == code, captured.err
        assert captured.out == ""
        assert code == 2 or captured.err.count("\nhint: ") == 1, captured.err
        assert "defect" not in captured.err, captured.err
        return captured.err

    return call


NO_FILES = {
    "folder": "it is a folder",
    "pipe": "it is a device or a pipe",
    "/dev/zero": "it is a device or a pipe",
    "loop": "it is a link that leads nowhere",
    "dangling": "it is a link that leads nowhere",
}
READERS: dict[str, tuple[str, ...]] = {
    "show": ("show", "{}"),
    "opt": ("opt", "{}", "-p", "normalize"),
    "finalize": ("finalize", "{}", "-o", "o.onnx"),
    "hls": ("hls", "{}", "-o", "project"),
    "check-quant": ("check-quant", "{}"),
    "export": ("export", "{}", "--portable", "o.onnx"),
    "import": ("import", "{}", "-o", "o.onnx"),
    "diff": ("diff", "m.onnx", "{}"),
    "train": ("train", "{}", "-s", "s.yaml", "-d", "d.npz", "-o", "out"),
    "schedule show": ("schedule", "show", "{}"),
    "schedule convert": ("schedule", "convert", "{}", "-o", "o.yaml"),
    "train with a schedule": ("train", "m.onnx", "-s", "{}", "-d", "d.npz", "-o", "out"),
}


@pytest.mark.parametrize("verb", READERS)
def test_what_is_no_file_is_named_as_what_it_is(verb: str, fails: Fails) -> None:
    for path, reason in NO_FILES.items():
        error = fails(*(part.format(path) for part in READERS[verb]))
        assert f"{path}: no " in error
        assert reason in error
    assert not Path("out").exists()


BAD_SAMPLES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "no rows": ({"x": np.zeros((0, 4))}, "'x' has no rows"),
    "a number": ({"x": np.float32(3)}, "'x' is a single number"),
    "NaN": ({"x": np.full((3, 4), np.nan)}, "'x' has NaN or infinity, first in row 0"),
    "infinity": ({"x": np.array([[0.0] * 4, [1e300] * 4])}, "'x' has NaN or infinity, first in row 1"),
    "text": ({"x": np.array([["1"] * 4])}, "'x' holds <U1, not numbers"),
    "complex": ({"x": np.zeros((3, 4), complex)}, "'x' holds complex128, not numbers"),
    "another shape": ({"x": np.zeros((3, 5))}, "'x' needs the shape [batch, 4] and has [3, 5]"),
    "another name": ({"X": np.zeros((3, 4))}, "no array for the input 'x'\nhint: name it so; there is X"),
    "nothing": ({}, "no array for the input 'x'\nhint: name it so; there is nothing"),
}
SAMPLERS: dict[str, tuple[str, ...]] = {
    "diff": ("diff", "m.onnx", "m.onnx", "--data", "{}"),
    "import": ("import", "m.onnx", "-o", "o.onnx", "--samples", "{}"),
    "check-quant": ("check-quant", "m.onnx", "--fix", "o.onnx", "--data", "{}"),
    "hls": ("hls", "m.onnx", "--out", "project", "--data", "{}"),
}


@pytest.mark.parametrize("verb", SAMPLERS)
@pytest.mark.parametrize("kind", BAD_SAMPLES)
def test_samples_that_do_not_fit_are_refused(verb: str, kind: str, fails: Fails) -> None:
    arrays, reason = BAD_SAMPLES[kind]
    np.savez("bad.npz", **arrays)
    reason = reason.replace("batch", "rows")
    assert reason in fails(*(part.format("bad.npz") for part in SAMPLERS[verb]))
    assert not Path("o.onnx").exists()
    assert not Path("project").exists()


@pytest.mark.parametrize("verb", SAMPLERS)
def test_samples_from_a_pipe_do_not_hang(verb: str, fails: Fails) -> None:
    assert "pipe.npz: cannot read the data: it is a device or a pipe" in fails(
        *(part.format("pipe.npz") for part in SAMPLERS[verb])
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: os.mkfifo(path), "it is a device or a pipe"),
        (lambda path: path.write_bytes(b"junk"), "not an array of numbers"),
        (lambda path: np.save(path, np.array([{}] * ROWS), allow_pickle=True), "not an array of numbers"),
    ],
)
def test_a_bad_file_among_arrays_is_named_and_nothing_unpickled(
    make: Callable[[Path], object], reason: str, fails: Fails
) -> None:
    np.save("folder/x.npy", np.zeros((ROWS, 4), np.float32))
    make(Path("folder/y.npy"))
    error = fails("train", "m.onnx", "-s", "s.yaml", "-d", "folder", "-o", "out")
    assert error.startswith("pqc: data error: folder/y.npy: ")
    assert reason in error
    assert "allow_pickle" not in error


def test_fewer_samples_than_a_fixed_batch_are_refused(here: Path, fails: Fails) -> None:
    model = onnx.load("m.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, "fixed.onnx")
    np.savez("few.npz", x=np.zeros((3, 4), np.float32))
    for arguments in (("diff", "fixed.onnx", "fixed.onnx"), ("check-quant", "fixed.onnx", "--fix", "o.onnx")):
        error = fails(*arguments, "--data", "few.npz")
        assert "few.npz: the model takes 8 rows at a time, and 'x' has 3" in error


def test_inputs_with_different_numbers_of_rows_are_refused(here: Path) -> None:
    model = graph.load("m.onnx")
    second = graph.load("m.onnx").graph.inputs[0]
    second.name = "z"
    np.savez("two.npz", x=np.zeros((3, 4), np.float32), z=np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match="different numbers of rows: 'x' 3, 'z' 4"):
        data.samples(Path("two.npz"), [model.graph.inputs[0], second])


@pytest.mark.parametrize("option", ["--out", "--data"])
def test_an_empty_path_is_not_the_working_directory(option: str, here: Path, fails: Fails) -> None:
    before = sorted(here.iterdir())
    paths = {"--out": "out", "--data": "d.npz", option: ""}
    error = fails("train", "m.onnx", "-s", "s.yaml", *(part for pair in paths.items() for part in pair), code=2)
    assert "the path is empty" in error
    assert sorted(here.iterdir()) == before


def test_an_empty_schedule_is_not_the_default(fails: Fails) -> None:
    error = fails("train", "m.onnx", "-s", "", "-d", "d.npz", "-o", "out")
    assert "no schedule file or shipped schedule ''" in error


@pytest.mark.parametrize("path", ["text", "/dev/full", "dangling"])
def test_a_folder_that_is_none_is_named(path: str, fails: Fails) -> None:
    reason = f"cannot write the file: '{path}' is not a folder"
    assert reason in fails("opt", "m.onnx", "-p", "normalize", "-o", f"{path}/o.onnx")
    assert reason in fails("train", "m.onnx", "-s", "s.yaml", "-d", "d.npz", "-o", path)


def test_a_checkpoint_that_is_a_pipe_does_not_hang(fails: Fails) -> None:
    Path("out").mkdir()
    os.mkfifo("out/checkpoint.npz")
    error = fails("train", "m.onnx", "-s", "s.yaml", "-d", "d.npz", "-o", "out", "--resume")
    assert "out/checkpoint.npz: the checkpoint is damaged" in error


def test_diff_says_how_the_inputs_differ(fails: Fails) -> None:
    assert "the inputs differ: x [4] against x [16]" in fails("diff", "m.onnx", "jet_tagger")


@pytest.mark.parametrize("option", [("--input", "x=batch,4"), ("--weights", "d.npz")])
def test_what_is_for_code_is_refused_with_an_onnx_file(option: tuple[str, str], fails: Fails) -> None:
    error = fails("import", "m.onnx", "-o", "o.onnx", *option, code=2)
    assert "shapes and weights are for code" in error


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str, here: Path) -> None:
    command = f"{sys.executable} -m pqc opt m.onnx -p normalize -o o.onnx {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("o.onnx\n" if closed in ("<&-", "2>&-") else "")
    graph.load("o.onnx")
    failed = subprocess.run(["bash", "-c", command.replace("m.onnx", "nosuch")], capture_output=True, timeout=60)
    assert failed.returncode == 1


@pytest.mark.parametrize("samples", [0, -3])
def test_calibration_needs_a_sample(samples: int, fails: Fails) -> None:
    error = fails("opt", "m.onnx", "-p", f"calibrate-quant{{samples={samples}}}", "-o", "o.onnx")
    assert f"at least one sample is needed, not {samples}" in error


def test_more_threads_than_any_machine_has_are_refused(fails: Fails) -> None:
    error = fails("train", "m.onnx", "-s", "s.yaml", "-d", "d.npz", "-o", "out", "--threads", 10**11, code=2)
    assert "is not in the range 1<=x<=1024" in error


@pytest.mark.parametrize(
    ("loss", "option", "value", "words"),
    [
        ("cross-entropy", "smoothing", "2", "a number from 0 to 1, not 2"),
        ("cross-entropy", "smoothing", "-0.1", "a number from 0 to 1, not -0.1"),
        ("huber", "delta", "0", "a positive number, not 0"),
        ("huber", "delta", "1.0e+300", "a positive number, not 1e+300"),
        ("focal", "gamma", "-1", "a number from 0 on, not -1"),
        ("info-nce", "temperature", "1.0e-300", "a positive number, not 1e-300"),
    ],
)
def test_an_option_of_a_loss_out_of_its_range_is_refused(
    loss: str, option: str, value: str, words: str, fails: Fails
) -> None:
    Path("loss.yaml").write_text(f"training:\n  loss: {loss}\n  loss_options: {{{option}: {value}}}\n")
    error = fails("schedule", "check", "loss.yaml")
    assert error.startswith("pqc: schedule error: loss.yaml:1: 'training': ")
    assert f"loss_options: {option} is {words}" in error


def test_every_option_of_a_loss_has_a_range() -> None:
    options = {one.name for loss in LOSSES.values() for one in loss.bodies()[0].attribute_proto}
    assert options == RANGES.keys()
