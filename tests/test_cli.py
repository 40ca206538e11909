"""The command line: one paragraph for each error, data alone on standard output, exit codes 0, 1, 2, nothing half written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import make_mlp, onnx_model

from pqc import cli, graph, workflows
from pqc.training import state as checkpoints

ROWS = 40
LINEAR = "(float[n,4] x) => (float[n,3] y) { y = MatMul (x, w) }"
SCHEDULE = """\
training: {batch: 8}
phases:
  training: {epochs: 1}
  fine_tuning: {epochs: 1}
"""
VERBS = [
    "import",
    "fit",
    "run",
    "search",
    "train",
    "finalize",
    "hls",
    "opt",
    "show",
    "diff",
    "list",
    "schedule",
    "check-quant",
    "export",
    "track",
    "doctor",
]
DEFECT = "this is a defect of pqc"


@dataclass(frozen=True)
class Result:
    """What a call of the program left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def pqc(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the program with arguments, in this process."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["pqc", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capfd.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return call


def process(*arguments: object, before: str = "", **options: Any) -> Result:
    """Call the program in a process of its own; `before` is Python code that runs first."""
    code = f"{before}\nimport sys\nfrom pqc import cli\ncli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def assert_fails(result: Result, *words: str) -> None:
    """One paragraph with a hint on standard error, nothing on standard output, exit code 1."""
    assert result.code == 1, result
    assert result.out == "", result
    assert result.err.startswith("pqc: "), result.err
    assert result.err.count("\nhint: ") == 1, result.err
    assert result.err.endswith("\n")
    assert "\n\n" not in result.err
    assert "Traceback" not in result.err
    assert DEFECT not in result.err
    assert "onnxruntime_src" not in result.err
    assert len(result.err) < 1200
    for word in words:
        assert word in result.err, result.err


def write(model: onnx.ModelProto | bytes, path: Path) -> Path:
    """Store a model as it is, unchecked."""
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@pytest.fixture
def proto() -> onnx.ModelProto:
    """A dense network as protobuf."""
    return graph.to_proto(make_mlp())


@pytest.fixture
def mlp_file(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    return write(proto, tmp_path / "mlp.onnx")


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A model of one layer, as a file."""
    weight = np.random.default_rng(1).normal(0, 0.5, (4, 3))
    graph.save(onnx_model(LINEAR, w=weight), tmp_path / "linear.onnx")
    return tmp_path / "linear.onnx"


@dataclass(frozen=True)
class Job:
    """The files of a tiny training run."""

    model: Path
    schedule: Path
    data: Path
    out: Path

    def arguments(self, verb: str, *more: object, model: Path | None = None, data: Path | None = None) -> list[object]:
        """The command line of `verb`."""
        files = ["--schedule", self.schedule, "--data", data or self.data, "--out", self.out]
        return ["-q", verb, model or self.model, *files, *more]


@pytest.fixture
def job(linear: Path, tmp_path: Path) -> Job:
    rng = np.random.default_rng(2)
    (tmp_path / "s.yaml").write_text(SCHEDULE)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(ROWS, 4)).astype(np.float32), y=np.arange(ROWS) % 3)
    return Job(linear, tmp_path / "s.yaml", tmp_path / "d.npz", tmp_path / "out")


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Help, lists, usage


def test_fit_prints_what_it_found_and_fails_where_nothing_meets_the_goal(pqc: Run, tmp_path: Path) -> None:
    quick = ("--set", "phases.fit.fisher={least: 2, most: 2}", "--json")
    result = pqc("fit", "jet_tagger", "--goal", "rate=0.3", "--out", tmp_path / "fit.yaml", *quick)
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert 0.1 < found["rate"] <= 0.3
    assert (tmp_path / "fit.yaml").exists()
    result = pqc("fit", "jet_tagger", "--goal", "bits=1", "--search", "beam:1", "--out", tmp_path / "no.yaml", *quick)
    assert_fails(result, "nothing meets bits=1: the nearest is bits=")
    result = pqc("fit", "jet_tagger", "--goal", "size=1", "--out", tmp_path / "no.yaml")
    assert_fails(result, "no goal 'size'")
    assert not (tmp_path / "no.yaml").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_has_an_example(verb: str, pqc: Run) -> None:
    result = pqc(verb, "--help")
    assert (result.code, result.err) == (0, "")
    assert re.search(rf"Examples?:\n +pqc {verb} ", result.out), result.out


def test_the_verbs_are_listed_in_the_order_of_the_chain(pqc: Run) -> None:
    listed = re.findall(r"^  ([a-z-]+) ", pqc("--help").out.split("Commands:")[1], re.M)
    assert listed == VERBS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["--nosuch"], "No such option '--nosuch'"),
        (["run"], "Missing argument 'MODEL'"),
        (["run", "m.onnx"], "Missing option '-o' / '--out'"),
        (["run", "m.onnx", "-o", "x", "--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["run", "m.onnx", "-o", "x", "--threads", "0"], "0 is not in the range 1<=x<=1024"),
        (["run", "m.onnx", "-o", "x", "--set", "batch"], "expected key=value and got 'batch'"),
        (["run", "m.onnx", "-o", "x", "--set", "=3"], "expected key=value and got '=3'"),
        (["list", "nothing"], "'nothing' is not one of 'passes', 'methods', 'schedules', 'models'"),
        (["opt", "m.onnx"], "Missing option '-p' / '--passes'"),
        (["show", "a", "b"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], words: str, pqc: Run) -> None:
    result = pqc(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "--help" in result.err


@pytest.mark.parametrize("kind", ["passes", "methods", "schedules", "models"])
def test_list_prints_json(kind: str, pqc: Run) -> None:
    result = pqc("list", kind, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found == workflows.catalogue(kind)
    assert all(found.values())
    assert [line.split()[0] for line in pqc("list", kind).out.splitlines()] == list(found)


def test_show_prints_json(mlp_file: Path, pqc: Run) -> None:
    result = pqc("show", mlp_file, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["parameters"] == 8 * 4 + 8 + 8 * 3 + 3
    assert [layer["weights"] for layer in found["layers"]] == [32, 24]
    assert found["inputs"] == [{"name": "x", "type": "float", "shape": ["batch", 4]}]


def test_show_prints_bit_operations_by_node(mlp_file: Path, pqc: Run) -> None:
    found = json.loads(pqc("show", mlp_file, "--ebops", "--convention", "products", "--json").out)
    assert (found["convention"], found["uncounted"]) == ("products", [])
    assert [one["ebops"] for one in found["nodes"]] == [32 * 32 * 32, 24 * 32 * 32]
    assert found["total"] == {"products": 56 * 1024, "additions": 0, "ebops": 56 * 1024}
    printed = pqc("show", mlp_file, "--ebops")
    assert (printed.code, "convention: products+additions" in printed.out) == (0, True)
    assert_fails(pqc("show", mlp_file, "--ebops", "--convention", "hgq"), "did you mean 'hgq2'?")


def test_doctor_prints_json(pqc: Run) -> None:
    result = pqc("doctor", "--json")
    found = json.loads(result.out)
    assert result.err == ""
    assert result.code == (0 if all(one["ok"] for one in found) else 1)
    assert {"python", "engine", "onnx", "qonnx", "hls4ml", "g++"} <= {one["name"] for one in found}
    assert all(one["hint"] for one in found if not one["ok"])


def test_doctor_exits_with_1_if_something_is_missing(pqc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = pqc("doctor")
    assert "BAD  g++" in result.out
    assert "hint: install g++" in result.out
    assert result.code == 1


def test_diff_exits_with_0_for_equal_models(mlp_file: Path, pqc: Run) -> None:
    assert pqc("diff", mlp_file, mlp_file) == Result(0, "y: 0 of 3072 values differ, by 0 at most\n", "")


def test_diff_exits_with_1_for_different_models(mlp_file: Path, tmp_path: Path, pqc: Run) -> None:
    assert pqc("opt", mlp_file, "-p", "normalize,insert-quant", "-o", tmp_path / "q.onnx").code == 0
    result = pqc("diff", mlp_file, tmp_path / "q.onnx", "--json")
    assert json.loads(result.out)[0]["different"] > 0
    assert result.code == 1


def test_opt_prints_the_graph_and_nothing_else(linear: Path, pqc: Run) -> None:
    result = pqc("opt", linear, "-p", "normalize", "--time", "--verify-each", "--print-after-change")
    assert result.code == 0
    assert result.out.startswith("<\n   ir_version")
    onnx.parser.parse_model(result.out)
    assert "normalize" in result.err
    again = pqc("opt", linear, "-p", "normalize")
    assert (again.out, again.err) == (result.out, "")


# Models


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file holds no graph with nodes and outputs"),
        (b"hello world\n" * 9, "not an ONNX file, or truncated"),
        (b"PK\x03\x04" + bytes(99), "not an ONNX file, or truncated"),
        (b"\xff" * 999, "not an ONNX file, or truncated"),
    ],
)
@pytest.mark.parametrize("verb", ["show", "opt", "finalize", "diff", "hls"])
def test_a_file_that_is_not_onnx_fails(content: bytes, words: str, verb: str, tmp_path: Path, pqc: Run) -> None:
    path = write(content, tmp_path / "m.onnx")
    more = {"opt": ["-p", "normalize"], "finalize": ["-o", tmp_path / "o"], "diff": [path], "hls": ["-o", tmp_path]}
    assert_fails(pqc(verb, path, *more.get(verb, [])), f"pqc: model error: {path}: {words}")


def test_a_truncated_model_fails_wherever_it_ends(proto: onnx.ModelProto, tmp_path: Path, pqc: Run) -> None:
    whole = proto.SerializeToString()
    for length in (1, 2, 10, 60, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        assert_fails(pqc("show", write(whole[:length], tmp_path / "m.onnx")))


def test_random_bytes_fail(tmp_path: Path, pqc: Run, rng: np.random.Generator) -> None:
    for length in (1, 7, 100, 5000):
        assert_fails(pqc("show", write(rng.bytes(length), tmp_path / "m.onnx")))


def test_a_damaged_model_fails_or_is_read(proto: onnx.ModelProto, tmp_path: Path, pqc: Run) -> None:
    whole = bytearray(proto.SerializeToString())
    for place in range(0, len(whole), 29):
        damaged = bytes(whole[:place]) + bytes([whole[place] ^ 0x55]) + bytes(whole[place + 1 :])
        result = pqc("opt", write(damaged, tmp_path / "m.onnx"), "-p", "normalize,fold-constants,lower-gemm")
        if result.code:
            assert_fails(result)


def test_a_missing_model_names_the_nearest(pqc: Run) -> None:
    assert pqc("show", "jet_taggr") == Result(
        1,
        "",
        "pqc: model error: no model file or reference model 'jet_taggr'; did you mean 'jet_tagger'?\n"
        "hint: see `pqc list models`\n",
    )


Change = Callable[[onnx.ModelProto], None]


def _opset(version: int) -> Change:
    return lambda proto: setattr(proto.opset_import[0], "version", version)


def _operator(name: str, domain: str = "") -> Change:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].op_type = name
        if domain:
            proto.graph.node[1].domain = domain
            proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))

    return change


def _weight(array: np.ndarray) -> Change:
    return lambda proto: proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "fc1.weight"))


def _dims(*dims: int, typed: bool = False) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.dims[:] = dims
        if typed:
            tensor.ClearField("raw_data")
            tensor.float_data.append(1.0)

    return change


def _input(*dims: int | str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims))

    return change


def _every_type(kind: type, code: int) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor).astype(kind)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = code

    return change


def _no_rank(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.ClearField("shape")


def _sequence(proto: onnx.ModelProto) -> None:
    tensor = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2])
    proto.graph.input[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(tensor))


def _twice(field: str) -> Change:
    return lambda proto: getattr(proto.graph, field).append(getattr(proto.graph, field)[0])


def _reads(number: int, name: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[number].input[0] = name

    return change


def _huge_fill(proto: onnx.ModelProto) -> None:
    shape = np.array([2**20, 2**20, 2**10])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(shape, "shape"))
    proto.graph.node.extend(
        [
            onnx.helper.make_node("ConstantOfShape", ["shape"], ["huge"], name="fill"),
            onnx.helper.make_node("ReduceSum", ["huge"], ["sum"], name="sum", keepdims=0),
            onnx.helper.make_node("Add", ["y", "sum"], ["z"], name="add"),
        ]
    )
    proto.graph.output[0].name = "z"


def _same_node_names(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.name = "same"


def _with(value: float) -> np.ndarray:
    array = np.full((8, 4), 0.25, np.float32)
    array[2, 1] = value
    return array


BROKEN: dict[str, tuple[Change, str]] = {
    "opset too new": (_opset(99), "opset 99 is too new: pqc takes 7 to 28"),
    "opset too old": (_opset(6), "opset 6 is too old: pqc takes 7 to 28"),
    "unknown operator": (_operator("Relux"), "Relux"),
    "unknown domain": (_operator("Relux", "com.acme"), "com.acme::Relux"),
    "rank unknown": (_no_rank, "shape"),
    "sequence": (_sequence, "x"),
    "two inputs of one name": (_twice("input"), "'x'"),
    "two initializers of one name": (_twice("initializer"), "fc1.weight"),
    "a value that does not exist": (_reads(2, "nowhere"), "nowhere"),
    "a cycle": (_reads(0, "a"), "'a'"),
    "weights of another shape": (_weight(np.zeros((8, 5), np.float32)), ""),
    "weights of another type": (_weight(np.zeros((8, 4), np.float64)), ""),
    "a huge weight": (_dims(2**31, 2**31), "needs 18446744073709551616 bytes and has 128"),
    "a huge weight of typed data": (_dims(2**31, 2**31, typed=True), "fc1.weight"),
    "a weight beyond integers": (_dims(2**62, 2**62), "bytes and has 128"),
    "a negative weight": (_dims(-8, -4), "negative dimension"),
    "a huge batch": (_input(2**40, 4), ""),
    "no features": (_input("n", 0), ""),
    "a huge constant": (_huge_fill, ""),
    "float64": (_every_type(np.float64, onnx.TensorProto.DOUBLE), ""),
    "float16": (_every_type(np.float16, onnx.TensorProto.FLOAT16), ""),
    "int32": (_every_type(np.int32, onnx.TensorProto.INT32), ""),
    "NaN in a weight": (_weight(_with(np.nan)), "fc1.weight"),
    "infinity in a weight": (_weight(_with(np.inf)), "fc1.weight"),
}
STEPS = "normalize,fold-constants,fold-batchnorm,lower-gemm,legalize,insert-quant,insert-masks"


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_compressed_fails(name: str, proto: onnx.ModelProto, tmp_path: Path, pqc: Run) -> None:
    change, words = BROKEN[name]
    change(proto)
    path = write(proto, tmp_path / "m.onnx")
    assert_fails(pqc("opt", path, "-p", STEPS, "--verify-each", "-o", tmp_path / "o.onnx"), words)
    assert not (tmp_path / "o.onnx").exists()
    for result in (pqc("show", path, "--json"), pqc("diff", path, path)):
        if result.code:
            assert_fails(result)


@pytest.mark.parametrize("verb", ["opt", "finalize", "diff"])
def test_node_names_that_repeat_are_taken_or_refused(
    verb: str, proto: onnx.ModelProto, tmp_path: Path, pqc: Run
) -> None:
    _same_node_names(proto)
    path = write(proto, tmp_path / "m.onnx")
    more = {"opt": ["-p", STEPS, "--verify-each"], "finalize": ["-o", tmp_path / "o.onnx"], "diff": [path]}
    result = pqc(verb, path, *more[verb])
    if result.code:
        assert_fails(result, "same")


def test_external_data_outside_the_folder_are_not_read(proto: onnx.ModelProto, tmp_path: Path, pqc: Run) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "secret").write_bytes(bytes(128))
    (tmp_path / "home" / "link").symlink_to(tmp_path / "secret")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key = "location"
    for location in ("../secret", str(tmp_path / "secret"), "link"):
        entry.value = location
        path = write(proto, tmp_path / "home" / "m.onnx")
        assert pqc("show", path) == Result(
            1,
            "",
            f"pqc: model error: {path}: external data of 'fc1.weight' lie outside the model's folder: {location!r}\n"
            "hint: move the data file beside the model; pqc reads nothing else\n",
        )


# Pipelines


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("normalise", "no pass 'normalise'; did you mean 'normalize'?\n  normalise\n  ^\nhint: see `pqc list passes`"),
        ("normalize,", "a pass is missing\n  normalize,\n            ^\nhint: see `pqc list passes`"),
        (
            "insert-quant{wieghts=1,0,7}",
            "'insert-quant' has no option 'wieghts'; did you mean 'weights'?\n  insert-quant{wieghts=1,0,7}\n"
            "               ^\nhint: it has: weights, biases, inputs, outputs, rounding, layers, exclude",
        ),
        ("normalize{a=1}", "'normalize' has no option 'a'\n  normalize{a=1}\n            ^\nhint: it has no options"),
    ],
)
def test_the_whole_text_of_a_pipeline_error(text: str, error: str, mlp_file: Path, pqc: Run) -> None:
    assert pqc("opt", mlp_file, "-p", text) == Result(1, "", f"pqc: pipeline error: {error}\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "normalize{",
        "normalize}",
        'normalize{"}',
        "lower-gemm normalize",
        "insert-quant{weights}",
        "insert-quant{weights=}",
        "insert-quant{weights=1,0}",
        "insert-quant{weights=1,0,99}",
        "insert-quant{weights=1,0,7}{a}",
        "insert-quant{rounding=foo}",
        "insert-masks{method=nosuch}",
        "insert-masks{method=cs options=foo=3}",
        "insert-masks{method=cs options=title=3}",
        "insert-masks{method=cs options=final_temp=x}",
        "insert-masks{method=cs options=final_temp}",
        "calibrate-quant{data=/no/such/file.npz}",
        "attach-loss{loss=nosuch}",
        "fix-batch{size=many}",
        "fix-batch{size=0}",
        "fix-batch{size=-3}",
        "fix-batch{size=99999999999999999999}",
        "differentiate",
        "attach-optimizer",
    ],
)
def test_a_pipeline_that_cannot_run_fails(text: str, mlp_file: Path, tmp_path: Path, pqc: Run) -> None:
    out = tmp_path / "o.onnx"
    out.write_bytes(b"old")
    assert_fails(pqc("opt", mlp_file, "-p", text, "-o", out))
    assert out.read_bytes() == b"old"


# Writing


def test_output_that_cannot_be_written_fails(job: Job, mlp_file: Path, tmp_path: Path, pqc: Run) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"old")
    assert_fails(pqc("opt", mlp_file, "-p", "normalize", "-o", tmp_path), f"{tmp_path}: cannot write the file")
    assert_fails(pqc("opt", mlp_file, "-p", "normalize", "-o", taken / "o.onnx"), "cannot write the file")
    assert_fails(pqc(*job.arguments("train")[:-1], taken), "cannot write the file")
    assert taken.read_bytes() == b"old"


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, suffix: str) -> Iterator[None]:
    """Files whose name holds `suffix` cannot be finished."""
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if suffix in str(target):
            raise OSError(28, "No space left on device")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield


@pytest.mark.parametrize("name", ["schedule.yaml", "calibration.npz", "compressible.onnx", "checkpoint.npz"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    name: str, job: Job, pqc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.out.mkdir()
    (job.out / name).write_bytes(b"old")
    with full_disk(monkeypatch, name):
        result = pqc(*job.arguments("train"))
    assert result == Result(
        1,
        "",
        f"pqc: error: {job.out / name}: cannot write the file: No space left on device\n"
        "hint: check the folder's permissions and the free space\n",
    )
    assert (job.out / name).read_bytes() == b"old"
    assert not [path.name for path in job.out.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_standard_output_that_is_full_is_no_defect_of_pqc(mlp_file: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pqc", "show", str(mlp_file), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert_fails(Result(done.returncode, "", done.stderr), "No space left on device")


def test_a_pipe_that_breaks_ends_in_silence() -> None:
    reader = subprocess.Popen(
        [sys.executable, "-m", "pqc", "opt", "jet_tagger", "-p", "normalize"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None and reader.stderr is not None
    reader.stdout.close()
    words = reader.stderr.read()
    reader.stderr.close()
    assert reader.wait(30) in (0, 1)
    assert words == ""


# The engine and the machine


HIDE = "from onnxruntime.capi import _pybind_state as s\ndel s.GradientGraphBuilder"
REMOVE = "import sys\nsys.modules['onnxruntime'] = sys.modules['onnxruntime.capi'] = None"
REPAIR = "pip install --force-reinstall --no-deps onnxruntime-training-cpu==1.19.2"


@pytest.mark.parametrize(
    "arguments", [["opt", "jet_tagger", "-p", "normalize", "--verify-each"], ["run", "jet_tagger"]]
)
def test_an_engine_overwritten_by_the_plain_build_says_what_to_run(arguments: list[str], tmp_path: Path) -> None:
    result = process(*arguments, "-o", tmp_path / "o", before=HIDE)
    assert result == Result(
        1,
        "",
        "pqc: environment error: onnxruntime is in place, but not its training build "
        "(another package has overwritten it)\n"
        f"hint: run: {REPAIR}, or `pqc doctor --repair`\n",
    )


@pytest.mark.parametrize(
    "arguments", [["opt", "jet_tagger", "-p", "normalize", "--verify-each"], ["run", "jet_tagger"]]
)
def test_a_missing_engine_says_what_to_run(arguments: list[str], tmp_path: Path) -> None:
    result = process(*arguments, "-o", tmp_path / "o", before=REMOVE)
    assert_fails(result, "pqc: environment error: onnxruntime-training is not installed", REPAIR)


def test_cuda_without_cuda_says_what_to_install(job: Job, pqc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    result = pqc(*job.arguments("train", "--device", "cuda"))
    assert_fails(result, "pqc: environment error: the engine in place has no CUDA", "--device cpu")
    assert not job.out.exists()


def test_a_missing_compiler_stops_a_run_before_it_trains(job: Job, pqc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert_fails(pqc(*job.arguments("run")), "g++ is needed", "--no-hls")
    assert not job.out.exists()


# Training


def test_run_prints_the_summary_s_path_and_writes_it(job: Job, pqc: Run) -> None:
    result = pqc(*job.arguments("run", "--no-hls"))
    assert result == Result(0, f"{job.out / 'summary.json'}\n", "")
    summary = json.loads((job.out / "summary.json").read_text())
    assert (summary["epochs"], summary["clean_equals_trained"], summary["hls"]) == (2, True, None)
    written = {"schedule.yaml", "history.json", "trained.onnx", "clean.onnx", "report.html", "checkpoint.npz"}
    assert written <= {path.name for path in job.out.iterdir()}
    assert not [path.name for path in job.out.iterdir() if path.name.startswith(".")]


def test_no_data_is_an_error_before_anything_is_written(job: Job, pqc: Run) -> None:
    assert pqc("train", job.model, "-o", job.out) == Result(
        1,
        "",
        "pqc: data error: there are no data to train on\nhint: give --data; see docs/data.md for the formats\n",
    )
    assert not job.out.exists()


@pytest.mark.parametrize(
    ("setting", "at"),
    [
        ("training.batch=0", "--set training.batch: "),
        ("training.batchh=3", "--set training.batchh: "),
        ("training.learning_rate=expp(1,2)", "--set training.learning_rate: "),
        ("training.learning_rate=nan", "--set training.learning_rate: "),
        ("training.batch=[", "--set training.batch: "),
        ("training.batch=2001-99-01", "--set training.batch: "),
        ("controls.betta=3", "--set controls.betta: "),
        ("trainign.batch=3", "--set trainign.batch: "),
    ],
)
def test_a_wrong_setting_is_named(setting: str, at: str, job: Job, pqc: Run) -> None:
    assert_fails(pqc(*job.arguments("train", "--set", setting)), f"pqc: schedule error: {at}")
    assert not job.out.exists()


@pytest.mark.parametrize("rate", ["1e30", "1e8"])
def test_divergence_says_when_and_where(rate: str, job: Job, pqc: Run) -> None:
    result = pqc(*job.arguments("train", "--set", f"training.learning_rate={rate}"))
    assert_fails(result, "pqc: training error: epoch 1 (training)", "'w'", "hint: lower training.learning_rate")
    assert not (job.out / "trained.onnx").exists()
    checkpoints.load(job.out / "checkpoint.npz")


CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], list[str]]] = {
    "one class": ("(float[n,4] x) => (float[n,1] y) { y = MatMul (x, w) }", {"w": (4, 1)}, []),
    "output of rank 1": (
        "(float[n,4] x) => (float[n] y) { h = MatMul (x, w) y = ReduceSum <keepdims: int = 0> (h, axis) }",
        {"w": (4, 1), "axis": ()},
        [],
    ),
    "a sequence of classes": (
        "(float[n,4] x) => (float[n,2,3] y) { h = MatMul (x, w) y = Reshape (h, shape) }",
        {"w": (4, 6), "shape": ()},
        [],
    ),
    "class numbers for a real target": (LINEAR, {"w": (4, 3)}, ["training.loss=mse"]),
    "no weights": ("(float[n,4] x) => (float[n,4] y) { y = Relu (x) }", {}, []),
    "weights that no output sees": (
        "(float[n,4] x) => (float[n,4] y, float[n,3] z) { y = Relu (x) z = MatMul (x, w) }",
        {"w": (4, 3)},
        [],
    ),
    "no gradient": (
        "(float[n,4] x) => (float[n,3] y) { h = MatMul (x, w) m = Hardmax (h) y = MatMul (m, v) }",
        {"w": (4, 3), "v": (3, 3)},
        [],
    ),
    "integer output": (
        "(float[n,4] x) => (int64[n] y) { h = MatMul (x, w) y = ArgMax <axis: int = 1, keepdims: int = 0> (h) }",
        {"w": (4, 3)},
        [],
    ),
    "a batch that shrinks": (
        "(float[n,4] x) => (float[m,3] y) { h = MatMul (x, w) y = ReduceMean <keepdims: int = 1> (h, axis) }",
        {"w": (4, 3), "axis": ()},
        [],
    ),
    "free features that do not fit": ("(float[n,k] x) => (float[n,5] y) { y = MatMul (x, w) }", {"w": (7, 5)}, []),
    "two inputs for one array": (
        "(float[n,4] x, float[n,4] u) => (float[n,3] y) { s = Add (x, u) y = MatMul (s, w) }",
        {"w": (4, 3)},
        [],
    ),
}


def save_case(text: str, shapes: dict[str, tuple[int, ...]], path: Path) -> Path:
    """A model of random weights; the helpers `axis` and `shape` have their values."""
    rng = np.random.default_rng(3)
    fixed = {"axis": np.array([0 if "float[m" in text else 1]), "shape": np.array([-1, 2, 3])}
    arrays = {name: fixed[name] if name in fixed else rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
    graph.save(onnx_model(text, **arrays), path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_cannot_be_trained_fails_before_training(name: str, job: Job, tmp_path: Path, pqc: Run) -> None:
    text, shapes, settings = CASES[name]
    model = save_case(text, shapes, tmp_path / "m.onnx")
    more = [word for setting in settings for word in ("--set", setting)]
    assert_fails(pqc(*job.arguments("run", "--no-hls", *more, model=model)))
    assert not (job.out / "trained.onnx").exists()


@pytest.mark.parametrize(
    "text",
    [
        "(float[8,4] x) => (float[8,3] y) { y = MatMul (x, w) }",
        "(int64[n,4] x) => (float[n,3] y) { f = Cast <to: int = 1> (x) y = MatMul (f, w) }",
        "(float[n,k] x) => (float[n,3] y) { y = MatMul (x, w) }",
    ],
    ids=["batch of 8", "integer input", "free features"],
)
def test_an_unusual_input_trains_or_is_refused(text: str, job: Job, tmp_path: Path, pqc: Run) -> None:
    model = save_case(text, {"w": (4, 3)}, tmp_path / "m.onnx")
    result = pqc(*job.arguments("run", "--no-hls", model=model))
    if result.code:
        assert_fails(result)
    else:
        assert json.loads((job.out / "summary.json").read_text())["clean_equals_trained"]


@pytest.mark.parametrize("name", ["theta", "target", "learning_rate", "rate", "beta", "loss", "header"])
@pytest.mark.parametrize("role", ["input", "weight", "output"])
def test_a_model_s_names_may_be_those_of_pqc(name: str, role: str, job: Job, tmp_path: Path, pqc: Run) -> None:
    names = {"input": "x", "weight": "w", "output": "y"} | {role: name}
    text = (
        f"(float[n,4] {names['input']}) => (float[n,3] {names['output']}) "
        f"{{ {names['output']} = MatMul ({names['input']}, {names['weight']}) }}"
    )
    graph.save(onnx_model(text, **{names["weight"]: np.full((4, 3), 0.25)}), tmp_path / "m.onnx")
    settings = ["--set", "pruning.method=cs", "--set", "phases.fine_tuning.epochs=0"]
    result = pqc(*job.arguments("train", *settings, model=tmp_path / "m.onnx"))
    if result.code:
        assert_fails(result, name)


def test_names_full_of_signs_are_read(job: Job, tmp_path: Path, pqc: Run) -> None:
    proto = graph.to_proto(onnx_model(LINEAR, w=np.full((4, 3), 0.25)))
    names = {"x": 'in "put" {a=1},µ', "w": "layers/0/[red]weight.T", "y": "out put"}
    proto.graph.node[0].name = "/fc/Mat Mul,{}"
    proto.graph.node[0].input[:] = [names["x"], names["w"]]
    proto.graph.node[0].output[:] = [names["y"]]
    proto.graph.input[0].name, proto.graph.output[0].name = names["x"], names["y"]
    proto.graph.initializer[0].name = names["w"]
    model = write(proto, tmp_path / "m.onnx")
    assert pqc(*job.arguments("run", "--no-hls", model=model)).code == 0
    assert json.loads(pqc("show", model, "--json").out)["inputs"][0]["name"] == names["x"]


def test_show_gives_layer_names_whole_where_there_is_no_terminal(tmp_path: Path, pqc: Run) -> None:
    name = "model.encoder.layers.0.[red]attention.projection.weight"
    proto = graph.to_proto(onnx_model(LINEAR, w=np.full((4, 3), 0.25)))
    proto.graph.node[0].input[1] = proto.graph.initializer[0].name = name
    result = pqc("show", write(proto, tmp_path / "m.onnx"))
    assert result.code == 0
    assert name.removesuffix(".weight") in result.out


def test_an_exclusion_that_meets_nothing_is_refused(job: Job, pqc: Run) -> None:
    assert_fails(pqc(*job.arguments("train", "--set", "quantization.exclude=[nosuch]")), "nosuch")


# Resuming


@pytest.fixture
def trained(job: Job, pqc: Run) -> Job:
    """A finished run."""
    assert pqc(*job.arguments("train")).code == 0
    return job


def test_a_finished_run_can_be_resumed(trained: Job, pqc: Run) -> None:
    before = (trained.out / "trained.onnx").read_bytes()
    assert pqc(*trained.arguments("train", "--resume")) == Result(0, f"{trained.out / 'trained.onnx'}\n", "")
    assert (trained.out / "trained.onnx").read_bytes() == before


def test_resuming_without_a_checkpoint_starts_anew_or_says_so(job: Job, pqc: Run) -> None:
    result = pqc(*job.arguments("train", "--resume"))
    if result.code:
        assert_fails(result, "checkpoint")
    else:
        assert (job.out / "trained.onnx").is_file()


@pytest.mark.parametrize("damage", ["empty", "text", "half", "one byte less", "other arrays", "flipped"])
def test_a_damaged_checkpoint_is_refused_and_nothing_is_touched(damage: str, trained: Job, pqc: Run) -> None:
    path = trained.out / "checkpoint.npz"
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "text": b"hello",
        "half": whole[: len(whole) // 2],
        "one byte less": whole[:-1],
        "other arrays": trained.data.read_bytes(),
        "flipped": whole[:200] + bytes([whole[200] ^ 0xFF]) + whole[201:],
    }[damage]
    path.write_bytes(content)
    before = snapshot(trained.out)
    assert pqc(*trained.arguments("train", "--resume")) == Result(
        1, "", f"pqc: training error: {path}: the checkpoint is damaged\nhint: run without --resume\n"
    )
    assert snapshot(trained.out) == before


@pytest.mark.parametrize("change", ["header without history", "header of words", "weight missing", "weight cut"])
def test_a_checkpoint_with_parts_missing_is_refused(change: str, trained: Job, pqc: Run) -> None:
    path = trained.out / "checkpoint.npz"
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    weight = next(name for name in arrays if name.startswith("value/"))
    if change == "header without history":
        del header["history"]
    elif change == "header of words":
        header["position"] = {"segment": "a", "epochs": "b", "step": None}
    elif change == "weight missing":
        del arrays[weight]
    else:
        arrays[weight] = arrays[weight].ravel()[:2]
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)
    assert_fails(pqc(*trained.arguments("train", "--resume")), str(path))


@pytest.mark.parametrize("setting", ["training.batch=4", "quantization.weights=[1,0,3]", "training.seed=5"])
def test_resuming_another_run_is_refused_and_nothing_is_touched(setting: str, trained: Job, pqc: Run) -> None:
    before = snapshot(trained.out)
    result = pqc(*trained.arguments("train", "--resume", "--set", setting))
    assert result == Result(
        1,
        "",
        f"pqc: training error: {trained.out / 'checkpoint.npz'}: "
        "the checkpoint belongs to another schedule, model or data\n"
        "hint: run without --resume, or with what the run was started with\n",
    )
    assert snapshot(trained.out) == before


def start(job: Job, *more: object) -> subprocess.Popen[str]:
    """A long training run in a process of its own, once it has trained an epoch."""
    path = job.out / "checkpoint.npz"
    known = len(checkpoints.load(path).history) if path.exists() else 0
    arguments = job.arguments("train", "--set", "phases.training.epochs=100000", *more)
    running = subprocess.Popen(
        [sys.executable, "-m", "pqc", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        if path.exists() and len(checkpoints.load(path).history) > known:
            break
        time.sleep(0.05)
    return running


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(job: Job) -> None:
    running = start(job)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    path = job.out / "checkpoint.npz"
    match = re.fullmatch(
        rf"pqc: interrupted: {re.escape(str(path))}: stopped after (\d+) of 100001 epochs\n"
        r"hint: the same command with --resume goes on from there\n",
        err,
    )
    assert match is not None, err
    assert (running.returncode, out) == (1, "")
    done = len(checkpoints.load(path).history)
    assert 0 <= int(match[1]) - done <= 1
    assert not [file.name for file in job.out.iterdir() if file.name.startswith(".")]
    resumed = start(job, "--resume")
    resumed.send_signal(signal.SIGINT)
    resumed.communicate(timeout=30)
    assert resumed.returncode == 1
    assert len(checkpoints.load(path).history) >= done


def test_a_polite_kill_ends_like_ctrl_c(job: Job) -> None:
    running = start(job)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=30)
    checkpoints.load(job.out / "checkpoint.npz")
    assert "--resume" in err
    assert not [file.name for file in job.out.iterdir() if file.name.startswith(".")]


def test_ctrl_c_before_training_ends_in_one_line(job: Job) -> None:
    before = "import os, signal\nfrom pqc import data\ndata.load = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)"
    result = process(*job.arguments("train"), before=before)
    assert (result.code, result.out) == (1, "")
    assert result.err.strip() == "pqc: error: stopped"


# Tracebacks are for those who ask


def test_a_defect_is_a_paragraph_and_a_traceback_only_on_request(
    mlp_file: Path, pqc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("something odd")

    monkeypatch.setattr(workflows, "show", fail)
    expected = (
        "pqc: error: RuntimeError: something odd\n"
        "hint: this is a defect of pqc; run again with -vv and report what it prints\n"
    )
    assert pqc("show", mlp_file) == Result(1, "", expected)
    loud = pqc("-vv", "show", mlp_file)
    assert loud.code == 1
    assert loud.err.startswith("Traceback")
    assert loud.err.endswith(expected)


def test_no_hint_names_a_command_that_does_not_exist() -> None:
    known = set(VERBS)
    folder = Path(cli.__file__).parent
    commands = {
        match
        for file in (*folder.rglob("*.py"), *Path(folder.parent / "passes").glob("*.py"))
        for match in re.findall(r"`pqc ([a-z-]+)", file.read_text())
    }
    assert commands <= known
    kinds = {match for file in folder.rglob("*.py") for match in re.findall(r"`pqc list ([a-z]+)", file.read_text())}
    assert kinds <= {"passes", "methods", "schedules", "models"}
