"""Reading schedules that somebody wrote by hand, or against us."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from pqc import curves, schedule
from pqc.errors import ScheduleError
from pqc.fixed_point import FixedPoint
from pqc.quantizer import Quantizer
from pqc.schedule import Schedule


def refusal(text: str | bytes, folder: Path, settings: dict[str, str] | None = None) -> ScheduleError:
    """The error that reading `text` raises; it names the file, or the setting, and has a hint."""
    path = folder / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScheduleError) as caught:
        schedule.load(path, settings)
    error = caught.value
    assert error.at is not None
    assert error.at.startswith((str(path), "--set "))
    assert error.hint
    assert len(str(error)) < 1000
    return error


def line(error: ScheduleError) -> int:
    """The line that the error points at."""
    return int(str(error.at).rsplit(":", 1)[1])


# What is read


@pytest.mark.parametrize("name", ["cs", "cs-demo"])
def test_shipped_schedules_have_a_description_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    plan = schedule.load(name)
    assert plan.name == name
    assert schedule.names()[name] == plan.description != ""
    (tmp_path / "again.yaml").write_text(plan.text())
    assert schedule.load(tmp_path / "again.yaml") == plan


def test_a_file_takes_its_name_from_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {batch: 8}\n")
    plan = schedule.load(tmp_path / "mine.yaml")
    assert (plan.name, plan.training.batch) == ("mine", 8)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes("\ufefftraining:\r\n  batch: 8\r\n".encode())
    assert schedule.load(tmp_path / "s.yaml").training.batch == 8


def test_the_fingerprint_ignores_words_and_nothing_else() -> None:
    plan = schedule.load("cs")
    assert schedule.load("cs", {"name": "other", "description": "other"}).fingerprint() == plan.fingerprint()
    for key, value in (
        ("training.seed", "1"),
        ("quantization.weights", "[1, 0, 6]"),
        ("controls.beta", "3"),
        ("pruning.options.final_temp", "100"),
    ):
        assert schedule.load("cs", {key: value}).fingerprint() != plan.fingerprint()


@pytest.mark.parametrize("value", [1.2345678901e-05, 5e-6, 3.0])
def test_a_curve_made_of_an_option_keeps_its_digits(value: float) -> None:
    plan = schedule.load("dst", {"pruning.options.alpha": repr(value), "target.sparsity": "null"})
    assert plan.method is not None
    assert curves.parse(plan.method.controls()["alpha"])(0, 9) == value


@pytest.mark.parametrize("method", ["magnitude", "pdp", "wanda", "activation_pruning"])
def test_an_unknown_scope_is_refused(method: str, tmp_path: Path) -> None:
    error = refusal(f"pruning: {{method: {method}, options: {{sparsity: 0.5, scope: layers}}}}\n", tmp_path)
    assert error.message.endswith("scope is one of auto, global, layer, not 'layers'")


def test_a_target_that_a_layer_cannot_have_is_refused(tmp_path: Path) -> None:
    text = "pruning: {method: magnitude, layers: {fc1: {pattern: '2:4'}}}\ntarget: {sparsity: 0.5}\n"
    error = refusal(text, tmp_path)
    assert error.message == ("'target': the pattern 2:4 says how much remains; leave the target or the pattern out")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.batch", "8", 8),
        ("training.learning_rate", "1e-3", "1e-3"),
        ("training.learning_rate", "exp(1e-3, 1e-5)", "exp(1e-3, 1e-5)"),
        ("quantization.weights", "[1, 0, 3]", Quantizer(FixedPoint(1, 0, 3))),
        ("quantization.weights", "null", None),
        ("quantization", "null", None),
        ("pruning.method", "null", None),
        ("training.optimizer", "{name: sgd}", None),
        ("training.optimizer.name", "sgd", "sgd"),
        ("phases.pretraining.epochs", "3", 3),
        ("pruning.exclude", "[fc1]", ("fc1",)),
        ("controls.beta", "exp(1, 9)", None),
    ],
)
def test_settings_override_any_key(key: str, value: str, expected: object) -> None:
    content = {"pruning.options": "{}"} if key.startswith("pruning") else {}
    found: object = schedule.load("cs", content | {key: value})
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    if expected is not None:
        assert found == expected


# Misspelt keys


@pytest.mark.parametrize(
    ("text", "at", "key", "near"),
    [
        ("name: a\npruningg: {}\n", 2, "pruningg", "pruning"),
        ("training:\n  seed: 1\n  batchh: 3\n", 3, "training.batchh", "batch"),
        ("training:\n  optimizer:\n    nam: adam\n", 3, "training.optimizer.nam", "name"),
        ("phases:\n  training:\n    epohcs: 3\n", 3, "phases.training.epohcs", "epochs"),
        ("quantization:\n  wieghts: [1, 0, 7]\n", 2, "quantization.wieghts", "weights"),
    ],
)
def test_a_misspelt_key_names_the_line_and_the_nearest(text: str, at: int, key: str, near: str, tmp_path: Path) -> None:
    error = refusal(text, tmp_path)
    assert error.message == f"unknown key '{key}'; did you mean '{near}'?"
    assert line(error) == at
    assert str(error.hint).startswith("known keys here: ")
    assert near in str(error.hint)


def test_the_whole_text_of_a_misspelt_key(tmp_path: Path) -> None:
    assert str(refusal("training:\n  batchh: 3\n", tmp_path)) == (
        f"{tmp_path / 's.yaml'}:2: unknown key 'training.batchh'; did you mean 'batch'?\n"
        "hint: known keys here: loss, loss_options, normal_classes, optimizer, learning_rate, rates, decays, clip, batch, accumulate, validation, seed, batch_norm"
    )


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("pruning:\n  method: css\n", 2, ["'pruning.method'", "no pruning method 'css'; did you mean 'cs'?"]),
        ("training:\n  optimizer:\n    name: adamm\n", 3, ["no optimizer 'adamm'; did you mean 'adam'?"]),
        ("training:\n  loss: mss\n", 2, ["no loss 'mss'; did you mean 'mse'?"]),
        ("training:\n  learning_rate: expp(1, 2)\n", 2, ["no curve 'expp'; did you mean 'exp'?"]),
        ("quantization:\n  rounding: ROUNDD\n", 2, ["no rounding mode 'ROUNDD'; did you mean 'ROUND'?"]),
        ("pruning:\n  method: cs\n  options:\n    final_tempp: 3\n", 1, ["did you mean 'final_temp'?"]),
        ("training:\n  optimizer:\n    options: {beta: 3}\n", 2, ["'adam' has no option 'beta'"]),
        ("phases:\n  training:\n    rewind: sometimes\n", 3, ["'phases.training.rewind'", "'never'"]),
    ],
)
def test_an_unknown_name_says_which_are_known(text: str, at: int, words: list[str], tmp_path: Path) -> None:
    error = refusal(text, tmp_path)
    assert all(word in error.message for word in words), error.message
    assert line(error) == at


def test_an_unknown_control_points_at_its_line(tmp_path: Path) -> None:
    error = refusal("pruning: {method: cs}\ncontrols:\n  betta: 3\n", tmp_path)
    assert "no control 'betta'; did you mean 'beta'?" in error.message
    assert line(error) in (2, 3)
    assert "controls" in str(error)


def test_a_control_without_a_method_is_refused(tmp_path: Path) -> None:
    assert "no control 'beta'" in refusal("controls: {beta: 3}\n", tmp_path).message


@pytest.mark.parametrize("option", ["title", "mask", "hard_mask", "penalty", "end_of_round"])
def test_what_a_method_declares_about_itself_is_no_option(option: str, tmp_path: Path) -> None:
    error = refusal(f"pruning: {{method: cs, options: {{{option}: 3}}}}\n", tmp_path)
    assert error.message == (
        f"'pruning': 'cs' has no option '{option}'; known: final_temp, threshold_init, threshold_decay"
    )


@pytest.mark.parametrize("option", ["slots", "operator", "decoupled"])
def test_what_an_optimizer_declares_about_itself_is_no_option(option: str, tmp_path: Path) -> None:
    error = refusal(f"training: {{optimizer: {{options: {{{option}: 3}}}}}}\n", tmp_path)
    assert f"'adam' has no option '{option}'" in error.message


@pytest.mark.parametrize(
    "text",
    [
        "training: {loss_options: {delta: 3}}\n",
        "training: {rates: {wieght: 3}}\n",
    ],
)
def test_a_name_that_would_be_ignored_is_refused(text: str, tmp_path: Path) -> None:
    refusal(text, tmp_path)


# Wrong types and values


@pytest.mark.parametrize(
    ("text", "at", "key"),
    [
        ("training:\n  batch: many\n", 2, "training.batch"),
        ("training:\n  batch: 0\n", 2, "training.batch"),
        ("training:\n  batch: [1]\n", 2, "training.batch"),
        ("training:\n  seed: -1\n", 2, "training.seed"),
        ("training:\n  validation: 1\n", 2, "training.validation"),
        ("training:\n  validation: 0\n", 2, "training.validation"),
        ("training: 3\n", 1, "training"),
        ("training: [1]\n", 1, "training"),
        ("name: a\ntraining:\n", 2, "training"),
        ("phases:\n  training:\n    epochs: 1.5\n", 3, "phases.training.epochs"),
        ("phases:\n  training:\n    epochs: -1\n", 3, "phases.training.epochs"),
        ("phases:\n  training:\n    rounds: 0\n", 3, "phases.training.rounds"),
        ("quantization:\n  exclude: fc1\n", 2, "quantization.exclude"),
        ("training:\n  learning_rate: []\n", 2, "training.learning_rate"),
        ("training:\n  learning_rate: null\n", 2, "training.learning_rate"),
        ("training:\n  learning_rate: exp(1)\n", 2, "training.learning_rate"),
        ("training:\n  optimizer: adam\n", 2, "training.optimizer"),
        ("name: 3\n", 1, "name"),
        ("name: 2001-01-01\n", 1, "name"),
    ],
)
def test_a_wrong_value_names_its_key_and_line(text: str, at: int, key: str, tmp_path: Path) -> None:
    error = refusal(text, tmp_path)
    assert error.message.startswith(f"'{key}': ")
    assert line(error) == at


@pytest.mark.parametrize(
    ("bits", "what"),
    [
        ("[1, 0]", "bits are three integers: [k, i, f], or binary or ternary"),
        ("'1,0,7'", "bits are three integers: [k, i, f], or binary or ternary"),
        ("[1, 0.5, 1]", "bits are three integers: [k, i, f], or binary or ternary"),
        ("[1, 0, true]", "bits are three integers: [k, i, f], or binary or ternary"),
        ("[5, 0, 3]", "the sign bit k is 0 or 1, not 5"),
        ("[1, 0, 99]", "(1,0,99) has 100 bits; 1 to 32 with one of magnitude are needed"),
        ("[1, -3, 1]", "(1,-3,1) has -1 bits; 1 to 32 with one of magnitude are needed"),
        ("[0, 0, 0]", "(0,0,0) has 0 bits; 1 to 32 with one of magnitude are needed"),
    ],
)
def test_bits_out_of_range_are_refused(bits: str, what: str, tmp_path: Path) -> None:
    error = refusal(f"quantization:\n  weights: {bits}\n", tmp_path)
    assert error.message == f"'quantization.weights': {what}"
    assert line(error) == 2


@pytest.mark.parametrize("value", [".nan", ".inf", "nan", "inf", "1e400"])
def test_a_learning_rate_is_finite(value: str, tmp_path: Path) -> None:
    assert "training.learning_rate" in refusal(f"training:\n  learning_rate: {value}\n", tmp_path).message


@pytest.mark.parametrize("value", ["-1", "-1e-3", "linear(1e-3, -1)"])
def test_a_learning_rate_is_not_negative(value: str, tmp_path: Path) -> None:
    assert "training.learning_rate" in refusal(f"training:\n  learning_rate: {value}\n", tmp_path).message


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_a_rate_is_finite(value: str, tmp_path: Path) -> None:
    refusal(f"training:\n  rates: {{weight: {value}}}\n", tmp_path)


@pytest.mark.parametrize("option", ["final_temp: -1", "final_temp: .nan", "threshold_init: .inf"])
def test_an_option_of_a_method_has_a_usable_value(option: str, tmp_path: Path) -> None:
    refusal(f"pruning: {{method: cs, options: {{{option}}}}}\n", tmp_path)


def test_rewinding_needs_saved_weights(tmp_path: Path) -> None:
    error = refusal("phases:\n  training: {epochs: 3, rewind: every-round}\n", tmp_path)
    assert error.message == "'phases.training': rewind 'every-round' needs save_weights_epoch between 0 and 2"
    assert line(error) == 2
    refusal("phases:\n  training: {epochs: 3, rewind: every-round, save_weights_epoch: 3}\n", tmp_path)


def test_a_method_needs_epochs_to_learn_its_masks(tmp_path: Path) -> None:
    text = "pruning: {method: cs}\nphases: {fine_tuning: {epochs: 3}}\n"
    assert "a pruning method needs phases.training.epochs" in refusal(text, tmp_path).message


# Not YAML, or more than YAML


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("training:\n\tbatch: 3\n", 2, "not YAML: found character '\\t' that cannot start any token"),
        ("a: [1\nb", 2, "not YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: a\n---\nname: b\n", 2, "not YAML: but found another document"),
        ("[1, 2]: 4\n", 1, "not YAML: found unhashable key"),
        (
            'name: !!python/object/apply:os.system ["touch stolen"]\n',
            1,
            "not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
    ],
)
def test_what_is_not_yaml_names_the_line(text: str, at: int, message: str, tmp_path: Path) -> None:
    error = refusal(text, tmp_path)
    assert error.message == message
    assert line(error) == at


@pytest.mark.parametrize("text", ["", "hello", "- 1\n", "3", "null"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path).message == "a schedule is a mapping of sections"


@pytest.mark.parametrize("text", ["3: 4\n", "null: 3\n", "training: {3: 4}\n", "true: 1\n"])
def test_keys_are_text(text: str, tmp_path: Path) -> None:
    refusal(text, tmp_path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    refusal("training: {batch: 3}\ntraining: {batch: 4}\n", tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert refusal(bytes(range(128, 256)), tmp_path).message.startswith("cannot read the file: ")


def test_a_null_character_is_refused(tmp_path: Path) -> None:
    assert refusal("a: \0\n", tmp_path).message.startswith("not YAML: ")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    error = refusal("# " + "x" * 1_000_001, tmp_path)
    assert error.message == "the file is too large for a schedule"


@pytest.mark.parametrize("value", ["2001-99-01", "9" * 5000, "[" * 2000, "{a: " * 2000 + "}" * 2000])
def test_a_value_that_the_yaml_library_chokes_on_is_refused(value: str, tmp_path: Path) -> None:
    refusal(f"name: {value}\n", tmp_path)


@pytest.mark.parametrize("value", ["2001-99-01", "[", "[" * 2000, "!!python/name:os.system", "'", "9" * 5000])
def test_a_setting_that_is_not_yaml_is_refused(value: str, tmp_path: Path) -> None:
    assert refusal("name: a\n", tmp_path, {"training.batch": value}).at == "--set training.batch"


def aliases(inner: str, levels: int = 9) -> str:
    """A list whose items refer to the ones before, nine times each."""
    lines = [f"{inner}- &a0 [l,l,l,l,l,l,l,l,l]"]
    lines += [f"{inner}- &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int = 9) -> str:
    """Mappings that merge the one before, nine times each."""
    lines = ["x0: &x0 {a: 1, b: 2}"]
    lines += [f"x{n}: &x{n} {{<<: [{','.join([f'*x{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "description:\n" + aliases("  "),
        "pruning:\n  method:\n" + aliases("    "),
        "training:\n  learning_rate:\n" + aliases("    "),
        "pruning:\n  exclude:\n" + aliases("    "),
        merges(),
        "name: &a [*a]\n",
        "pruning: &a\n  options: *a\n",
    ],
    ids=["description", "method", "learning_rate", "exclude", "merge", "itself", "section in itself"],
)
def test_references_that_multiply_end_in_an_error_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))\n"
        "from pqc import schedule, errors\n"
        "try: schedule.load(sys.argv[1])\n"
        "except errors.ScheduleError as error: print(len(str(error)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s.yaml")], capture_output=True, text=True, timeout=6, check=False
    )
    assert result.returncode == 0, result.stderr[-500:]
    assert int(result.stdout) < 1000


# Settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.batch", "0"),
        ("training.batchh", "3"),
        ("training", "3"),
        ("trainin.batch", "3"),
        ("training..batch", "3"),
        (".batch", "3"),
        ("training.", "3"),
        ("a.b.c", "3"),
        ("training.batch.x", "3"),
        ("name.x", "3"),
        ("controls.betta", "3"),
        ("pruning.options.final_tempp", "3"),
        ("phases.training.rewind", "every-round"),
        ("training.learning_rate", "exp(1,2"),
    ],
)
def test_a_wrong_setting_is_named_as_the_place(key: str, value: str, tmp_path: Path) -> None:
    text = "pruning: {method: cs}\nphases: {training: {epochs: 1}}\n"
    assert refusal(text, tmp_path, {key: value}).at == f"--set {key}"


# Which file


def test_a_missing_schedule_names_the_nearest_shipped_one() -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule.load("cs-dmo")
    assert str(caught.value) == (
        "no schedule file or shipped schedule 'cs-dmo'; did you mean 'cs-demo'?\nhint: see `pqc list schedules`"
    )


@pytest.mark.parametrize("source", ["", "no/such/file.yaml", "../cs", "cs.yaml", "__init__"])
def test_what_is_neither_file_nor_name_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScheduleError, match="no schedule file or shipped schedule"):
        schedule.load(source)


def test_a_folder_is_no_schedule(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError):
        schedule.load(tmp_path)


def test_the_defaults_are_a_schedule() -> None:
    plan = Schedule()
    assert Schedule.model_validate(plan.model_dump(mode="json")) == plan
    assert math.isclose(plan.training.validation, 0.1)


def test_the_documented_schedule_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "schedules.md").read_text()
    path = tmp_path / "documented.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    plan = schedule.load(path)
    assert plan.target.sparsity == 0.8
    assert plan.phases.training.rewind_what == ("weights",)
