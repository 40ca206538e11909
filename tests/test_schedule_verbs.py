"""`pqc schedule`: data on standard output, words on standard error, and nothing that a run would do otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_cli
import yaml
from test_cli import Job, Run, assert_fails

from pqc import schedule
from pqc.workflows import schedules

program = test_cli.pqc
job, linear = test_cli.job, test_cli.linear

CONFIG = """\
pruning_parameters:
  pruning_method: cs
  threshold_decay: 1.0e-9
quantization_parameters: {use_relu_multiplier: false, round_mode: RND_CONV, use_real_tanh: true}
training_parameters:
  pretraining_epochs: 0
  epochs: 4
  rounds: 2
  fine_tuning_epochs: 1
  batch_size: 8
  lr: 0.01
  optimizer: adam
  dataset: jets
"""
NOTES = [
    "4: quantization_parameters.default_data_integer_bits: sign and integer bits are chosen from the data, at the same "
    "width; --set quantization.calibrate=false keeps them as written, as the reference does",
    "13: training_parameters.dataset: the reference leaves it to your own code; not taken",
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config of the reference library."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("verb", ["show", "check", "convert"])
def test_the_help_of_each_verb_has_an_example(verb: str, program: Run) -> None:
    result = program("schedule", verb, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"Examples:\n    pqc schedule {verb} " in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["schedule", "nosuch"], "No such command 'nosuch'"),
        (["schedule", "show"], "Missing argument 'NAME_OR_FILE'"),
        (["schedule", "check"], "Missing argument 'NAMES_OR_FILES...'"),
        (["schedule", "show", "cs", "--set", "batch"], "expected key=value and got 'batch'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], words: str, program: Run) -> None:
    result = program(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err


# show


def test_show_tells_when_bits_are_searched() -> None:
    plan = schedule.load("fitcompress", {"phases.pretraining": "{epochs: 3, quantize: false}"})
    stretches = schedules.timeline(plan)
    assert [(one.phase, one.first, one.last) for one in stretches] == [
        ("pretraining", 1, 3),
        ("fit", 4, 3),
        ("fine-tuning", 4, 103),
    ]
    assert stretches[1].events == ["greedy search of bit widths and masks for rate=0.05 at most; no weight moves"]


@pytest.mark.parametrize("name", ["cs", "cs-demo"])
def test_what_show_prints_is_the_same_schedule_with_nothing_left_out(name: str, tmp_path: Path, program: Run) -> None:
    result = program("schedule", "show", name)
    assert result.code == 0
    (tmp_path / "s.yaml").write_text(result.out)
    shown, plan = schedule.load(tmp_path / "s.yaml"), schedule.load(name)
    for part in ("name", "description", "method", "target", "quantization", "phases"):
        assert getattr(shown, part) == getattr(plan, part)
    assert schedules.timeline(shown) == schedules.timeline(plan)
    content = yaml.safe_load(result.out)
    assert content["pruning"]["options"].keys() == {"final_temp", "threshold_init", "threshold_decay"}
    assert content["training"]["optimizer"]["options"].keys() == {"beta1", "beta2", "epsilon", "weight_decay"}
    assert content["training"]["loss_options"] == {"smoothing": 0.0}
    assert content["controls"]["beta"] == "exp(1, 200)"
    assert content["phases"]["fine_tuning"]["select"] == "last"


def test_show_says_what_happens_when(program: Run) -> None:
    words = program("schedule", "show", "cs", "--set", "training.learning_rate=cosine(1e-2, 1e-4)").err
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in words.splitlines() if "│" in line]
    prepares, hardens = "at the end the method prepares the next round", "at the end the masks become zeros and ones"
    assert table == [
        ["1-85", "training 1 of 3", "on", "learned", "0.01 → 0.0001", "beta 1 → 200", "weights saved before epoch 3"],
        ["", "", "", "", "", "threshold_decay 1e-09", prepares],
        ["86-170", "training 2 of 3", "on", "learned", "0.01 → 0.0001", "beta 1 → 200", prepares],
        ["", "", "", "", "", "threshold_decay 1e-09", ""],
        ["171-255", "training 3 of 3", "on", "learned", "0.01 → 0.0001", "beta 1 → 200", hardens],
        ["", "", "", "", "", "threshold_decay 1e-09", "at the end weights go back to the saved ones"],
        ["256-340", "fine-tuning", "on", "frozen", "0.01 → 0.0001", "", ""],
    ]


def test_show_in_json_is_one_document(config: Path, program: Run) -> None:
    result = program("schedule", "show", config, "--json", "--set", "quantization=null")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found.keys() == {"schedule", "epochs", "notes"}
    assert found["schedule"]["quantization"] is None
    assert [(one["first"], one["last"], one["phase"], one["round"]) for one in found["epochs"]] == [
        (1, 4, "training", 0),
        (5, 8, "training", 1),
        (9, 9, "fine-tuning", 0),
    ]
    assert found["epochs"][0]["controls"]["beta"] == [1.0, 200.0]
    assert found["epochs"][0]["learning_rate"] == [0.01, 0.01]
    assert {one["quantizers"] for one in found["epochs"]} == {False}
    assert found["notes"][-1] == {
        "at": f"{config}:13",
        "key": "training_parameters.dataset",
        "text": "the reference leaves it to your own code; not taken",
    }


def test_quiet_show_is_data_alone(config: Path, program: Run) -> None:
    assert program("-q", "schedule", "show", config).err == ""


@pytest.mark.parametrize(
    ("settings", "index", "events"),
    [
        ({"phases.fine_tuning.select": "best"}, -1, ["the best epoch is kept"]),
        (
            {"phases.fine_tuning": "{epochs: 9, select: best, constraint: {sparsity: 0.5, ebops: 1000}}"},
            -1,
            ["the best epoch is kept, of those with a sparsity of at least 0.5 and at most 1000 EBOPs"],
        ),
        (
            {"phases.fine_tuning.early_stopping": "{patience: 3, min_delta: 0.01}"},
            -1,
            ["ends early after 3 epochs in which the validation loss did not fall by more than 0.01"],
        ),
        (
            {"target.sparsity": "0.8", "phases.training.rounds": "1"},
            0,
            [
                "weights saved before epoch 3",
                "threshold_decay is steered to a sparsity of 0.8",
                "at the end the masks become zeros and ones",
                "at the end weights go back to the saved ones",
            ],
        ),
        (
            {"phases.training.rewind": "every-round", "phases.training.rewind_what": "[weights, states]"},
            1,
            ["at the end weights and states go back to the saved ones"],
        ),
        ({"phases.calibration.batches": "7"}, 0, ["7 batches feed the method's statistics; no weight moves"]),
    ],
)
def test_events(settings: dict[str, str], index: int, events: list[str]) -> None:
    assert schedules.timeline(schedule.load("cs", settings))[index].events == events


def test_a_schedule_without_a_method_has_no_masks() -> None:
    plan = schedule.load(
        "cs-demo", {"pruning.method": "null", "pruning.options": "{}", "phases.pretraining.epochs": "2"}
    )
    found = schedules.timeline(plan)
    assert [(one.phase, one.first, one.last, one.masks, one.controls) for one in found] == [
        ("pretraining", 1, 2, "off", {}),
        ("training", 3, 42, "off", {}),
        ("fine-tuning", 43, 142, "off", {}),
    ]


def test_calibration_is_one_stretch_and_takes_no_epoch() -> None:
    settings = {"phases.pretraining.epochs": "2", "phases.fine_tuning.epochs": "3"}
    found = schedules.timeline(schedule.load("wanda-ptq", settings))
    assert [(one.phase, one.first, one.last, one.masks) for one in found] == [
        ("pretraining", 1, 2, "off"),
        ("calibration", 3, 2, "learned"),
        ("fine-tuning", 3, 5, "frozen"),
    ]


@pytest.mark.parametrize("ramps", ["phase", "global"])
def test_the_epochs_are_those_that_are_trained(ramps: str, job: Job, program: Run) -> None:
    """Phases, rounds, learning rates and controls as a run's own history has them."""
    settings = {
        "training.learning_rate": "linear(1e-2, 1e-3)",
        "training.batch": "8",
        "phases.training.rounds": "2",
        "phases.training.epochs": "3",
        "phases.training.ramps": ramps,
        "phases.pretraining.epochs": "1",
        "phases.fine_tuning.epochs": "1",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    arguments = ["-q", "train", job.model, "--schedule", "cs-demo", "--data", job.data, "--out", job.out, *words]
    assert program(*arguments).code == 0
    history = json.loads((job.out / "history.json").read_text())
    stretches = schedules.timeline(schedule.load("cs-demo", settings))
    assert [(one.phase, one.round) for one in stretches] == list(
        dict.fromkeys((record["stage"], record["round"]) for record in history)
    )
    for one in stretches:
        records = [record for record in history if one.first <= record["epoch"] <= one.last]
        assert {(record["stage"], record["round"]) for record in records} == {(one.phase, one.round)}
        assert records[0]["learning_rate"] == pytest.approx(one.learning_rate[0])
        for name, (first, last) in one.controls.items():
            assert (records[0][name], records[-1][name]) == pytest.approx((first, last))
        assert ("beta" in records[0]) == ("beta" in one.controls)


# check


def test_check_says_ok_and_the_notes(config: Path, program: Run) -> None:
    result = program("schedule", "check", "cs", config)
    assert result.code == 0
    assert result.out == f"cs: ok\n{config}: ok\n"
    assert result.err == "".join(f"note: {config}:{note}\n" for note in NOTES)
    assert program("-q", "schedule", "check", config).err == ""


def test_check_names_the_line_and_goes_on(config: Path, tmp_path: Path, program: Run) -> None:
    (tmp_path / "bad.yaml").write_text("training:\n  batchh: 3\n")
    result = program("schedule", "check", tmp_path / "bad.yaml", "cs")
    assert (result.code, result.out) == (1, "cs: ok\n")
    assert result.err.startswith(
        f"pqc: schedule error: {tmp_path / 'bad.yaml'}:2: unknown key 'training.batchh'; did you mean 'batch'?\nhint: "
    )
    result = program("schedule", "check", config, "--set", "training_parameters.epochs=many")
    assert_fails(
        result, "--set training_parameters.epochs: 'training_parameters.epochs': Input should be a valid integer"
    )


def test_check_in_json(config: Path, program: Run) -> None:
    result = program("schedule", "check", "nosuch", config, "--json")
    assert (result.code, result.err) == (1, "")
    bad, good = json.loads(result.out)
    assert (bad["file"], bad["ok"], bad["notes"]) == ("nosuch", False, [])
    assert bad["error"] == {
        "at": None,
        "message": "no schedule file or shipped schedule 'nosuch'",
        "hint": "see `pqc list schedules`",
    }
    assert (good["file"], good["ok"], good["error"]) == (str(config), True, None)
    assert [note["key"] for note in good["notes"]] == [
        "quantization_parameters.default_data_integer_bits",
        "training_parameters.dataset",
    ]


# convert


def test_the_whole_text_of_a_converted_config(tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    result = program("schedule", "convert", "config.yaml", "--set", "training.seed=3")
    assert (result.code, result.err) == (0, "")
    assert (
        result.out
        == """\
# config.yaml:4: quantization_parameters.default_data_integer_bits: sign and integer bits are chosen from the data, at
#   the same width; --set quantization.calibrate=false keeps them as written, as the reference does
# config.yaml:13: training_parameters.dataset: the reference leaves it to your own code; not taken
name: config
pruning:
  method: cs
  options: {final_temp: 200.0, threshold_init: 0.0, threshold_decay: 1.0e-09}
  pruning_first: false
quantization:
  weights: [1, 0, 7]
  biases: [1, 0, 7]
  inputs: [0, 0, 7]
  outputs: null
  rounding: ROUND
  calibrate: true
training:
  optimizer: {name: adam}
  learning_rate: 0.01
  batch: 8
  seed: 3
phases:
  pretraining: {epochs: 0}
  training: {epochs: 4, rounds: 2}
  fine_tuning: {epochs: 1}
"""
    )


def test_a_converted_config_is_the_same_schedule(config: Path, tmp_path: Path, program: Run) -> None:
    out = tmp_path / "folder" / "mine.yaml"
    result = program("schedule", "convert", config, "-o", out)
    assert (result.code, result.out, result.err) == (0, f"{out}\n", "")
    plan, notes = schedule.read(out)
    assert plan == schedule.load(config)
    assert notes == []


def test_a_schedule_of_our_own_is_converted_to_itself(tmp_path: Path, program: Run) -> None:
    (tmp_path / "s.yaml").write_text(program("schedule", "convert", "cs").out)
    assert schedule.load(tmp_path / "s.yaml") == schedule.load("cs")


def test_a_config_that_is_refused_leaves_no_file(config: Path, tmp_path: Path, program: Run) -> None:
    settings = ["--set", "quantization_parameters.granularity=per_row"]
    result = program("schedule", "convert", config, "-o", tmp_path / "mine.yaml", *settings)
    assert_fails(result, "'quantization_parameters.granularity': no granularity 'per_row'")
    assert not (tmp_path / "mine.yaml").exists()


# A run


def test_a_run_takes_a_config_and_says_its_notes(config: Path, job: Job, program: Run) -> None:
    settings = ["--set", "phases.training.epochs=1", "--set", "training_parameters.rounds=1"]
    arguments = [job.model, "--schedule", config, "--data", job.data, "--out", job.out, "--no-hls", *settings]
    result = program("run", *arguments)
    assert result.code == 0, result.err
    for note in NOTES:
        assert f"note: {config}:{note}\n" in result.err
    plan = schedule.load(job.out / "schedule.yaml")
    assert plan == schedule.load(config, {"phases.training.epochs": "1", "phases.training.rounds": "1"})
    assert len(json.loads((job.out / "history.json").read_text())) == 2


def test_a_quiet_run_says_no_notes(config: Path, job: Job, program: Run) -> None:
    arguments = ["train", job.model, "--schedule", config, "--data", job.data, "--out", job.out]
    result = program("-q", *arguments, "--set", "phases.training.epochs=1")
    assert (result.code, result.err) == (0, "")
