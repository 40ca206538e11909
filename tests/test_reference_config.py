"""Config files of the reference library, read as schedules."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_mlp
from hypothesis import given
from hypothesis import strategies as st

from pqc import schedule, workflows
from pqc.data import Split
from pqc.errors import PassError, PqcError, ScheduleError
from pqc.fit.settings import Fit
from pqc.methods import TABLE
from pqc.reference_config import convert, detects, their_settings
from pqc.schedule import Schedule
from pqc.workflows.sources import Source
from pqc.yaml_file import Document, Note

Content = dict[str, Any]

OFF = {"enable_fitcompress": False, "compression_goal": 0.1}
# The values of the eight files that the library ships: pruning, then epochs before, of and after training, then more.
SHIPPED: dict[str, tuple[Content, tuple[int, int, int], Content]] = {
    "activation_pruning": ({"threshold": 0.2, "t_delta": 100, "t_start_collecting_batch": 100}, (0, 200, 0), {}),
    "autosparse": (
        {"alpha": 0.5, "alpha_reset_epoch": 90, "autotune_epochs": 10, "backward_sparsity": False}
        | {"threshold_init": -5.0, "threshold_type": "channelwise"},
        (0, 100, 0),
        {},
    ),
    "cs": (
        {"final_temp": 200, "threshold_decay": 1e-9, "threshold_init": 0.0},
        (0, 85, 85),
        {"rounds": 3, "rewind": "post-training-stage", "save_weights_epoch": 2},
    ),
    "dst": ({"alpha": 5e-6, "max_pruning_pct": 0.99, "threshold_type": "weightwise"}, (0, 160, 0), {}),
    "mdmm": (
        {"constraint_type": "Equality", "target_value": 0.0, "metric_type": "UnstructuredSparsity"}
        | {"target_sparsity": 0.9, "rf": 1, "epsilon": 1e-3, "scale": 10.0, "damping": 1.0, "use_grad": False}
        | {"l0_mode": "coarse", "constraint_lr": 1e-3},
        (0, 200, 30),
        {},
    ),
    "pdp": (
        {"epsilon": 0.015, "sparsity": 0.8, "temperature": 1e-5, "structured_pruning": False},
        (1, 100, 20),
        {},
    ),
    "wanda": (
        {"sparsity": 0.9, "N": None, "M": None, "t_delta": 100, "t_start_collecting_batch": 100}
        | {"calculate_pruning_budget": True},
        (50, 200, 0),
        {},
    ),
}
OPTIONS: dict[str, Content] = {
    "activation_pruning": {"threshold": 0.2, "batches": 100, "start_epoch": 100},
    "autosparse": {
        "alpha": 0.5,
        "alpha_reset_epoch": 90,
        "backward_sparsity": False,
        "threshold_init": -5.0,
        "threshold_type": "channelwise",
    },
    "cs": {"final_temp": 200.0, "threshold_init": 0.0, "threshold_decay": 1e-9},
    "dst": {"alpha": 5e-6, "max_pruning_pct": 0.99, "threshold_init": 0.0, "threshold_type": "weightwise"},
    "mdmm": {
        "constraint": "Equality",
        "target_value": 0.0,
        "metric": "UnstructuredSparsity",
        "target_sparsity": 0.9,
        "rf": 1,
        "epsilon": 1e-3,
        "scale": 10.0,
        "damping": 1.0,
        "l0_mode": "coarse",
        "scale_mode": "mean",
        "constraint_lr": 1e-3,
    },
    "pdp": {"epsilon": 0.015, "sparsity": 0.8, "temperature": 1e-5, "structure": "none"},
    "wanda": {"sparsity": 0.9, "pattern": "", "batches": 100, "start_epoch": 100, "scope": "global"},
}
QUANTIZATION: Content = {
    "enable_quantization": True,
    "default_weight_keep_negatives": 1.0,
    "default_weight_integer_bits": 0.0,
    "default_weight_fractional_bits": 7.0,
    "default_data_keep_negatives": 0.0,
    "default_data_integer_bits": 0.0,
    "default_data_fractional_bits": 7.0,
    "quantize_input": True,
    "quantize_output": False,
    "granularity": "per_tensor",
    "dynamic_data_quantization": False,
    "use_high_granularity_quantization": False,
    "hgq_beta": "1e-5",
    "hgq_gamma": 3e-4,
    "hgq_heterogeneous": True,
    "layer_specific": {},
    "use_real_tanh": False,
    "use_relu_multiplier": False,
    "use_symmetric_quantization": False,
    "overflow_mode_parameters": "SAT",
    "overflow_mode_data": "SAT",
    "round_mode": "RND",
}


def shipped(method: str) -> Content:
    """A config with the values of the file that ships for `method`."""
    options, (before, epochs, after), more = SHIPPED[method]
    training = {"pretraining_epochs": before, "epochs": epochs, "fine_tuning_epochs": after, "pruning_first": True}
    training |= {"rewind": "never", "rounds": 1, "save_weights_epoch": -1} | more
    pruning = {"pruning_method": method, "enable_pruning": True, "disable_pruning_for_layers": []}
    tuning = {"experiment_name": "e", "model_name": "jet_tagger", "num_trials": 1, "sampler": {"type": "RandomSampler"}}
    return {
        "pruning_parameters": pruning | {"threshold_decay": 0.0} | options,
        "quantization_parameters": QUANTIZATION,
        "training_parameters": training,
        "fitcompress_parameters": OFF,
        "hpo_parameters": tuning | {"hyperparameter_search": {"numerical": {}, "categorical": {}}},
    }


def converted(content: Content | str) -> tuple[Content, list[Note]]:
    """The schedule that a config becomes, and the notes."""
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    found = convert(Document(text, "c.yaml"))
    return found.content, found.notes


def notes(content: Content | str) -> dict[str, str]:
    """The notes by key."""
    return {note.key: note.text for note in converted(content)[1]}


def training(**keys: Any) -> Content:
    """A config that has only these training parameters, but no note about what is missing."""
    given = {"optimizer": "adam", "lr": 1e-3, "batch_size": 256} | keys
    return {"training_parameters": given}


def refusal(text: str, folder: Path, settings: dict[str, str] | None = None) -> ScheduleError:
    """The error that reading the config `text` raises."""
    (folder / "c.yaml").write_text(text)
    with pytest.raises(ScheduleError) as caught:
        schedule.load(folder / "c.yaml", settings)
    return caught.value


# The shipped values


@pytest.mark.parametrize("method", SHIPPED)
def test_each_shipped_config_becomes_a_schedule(method: str, tmp_path: Path) -> None:
    content, _ = converted(shipped(method))
    _, (before, epochs, after), more = SHIPPED[method]
    assert content == {
        "pruning": {"method": method, "options": OPTIONS[method], "pruning_first": True},
        "quantization": {
            "weights": [1, 0, 7],
            "biases": [1, 0, 7],
            "inputs": [0, 0, 7],
            "outputs": None,
            "rounding": "RND",
            "calibrate": True,
        },
        "phases": {
            "pretraining": {"epochs": before},
            "training": {"epochs": epochs, "rounds": 1} | more,
            "fine_tuning": {"epochs": after},
        },
    }
    if method in TABLE:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(shipped(method)))
        plan = schedule.load(tmp_path / "c.yaml")
        assert (plan.name, plan.pruning.method) == ("c", method)


def test_the_shipped_config_and_the_shipped_schedule_are_one_but_for_batch_and_ties(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(shipped("cs")))
    changes = {"training.batch": "128", "quantization.rounding": "ROUND"}
    plan, ours = schedule.load(tmp_path / "c.yaml", changes), schedule.load("cs")
    for part in ("method", "target", "quantization", "training", "controls", "phases"):
        assert getattr(plan, part) == getattr(ours, part)


def test_the_notes_on_the_shipped_cs_config() -> None:
    assert notes(shipped("cs")) == {
        "quantization_parameters.use_real_tanh": "a tanh stays one; the reference would train a hard tanh",
        "quantization_parameters.default_data_integer_bits": (
            "sign and integer bits are chosen from the data, at the same width; "
            "--set quantization.calibrate=false keeps them as written, as the reference does"
        ),
        "training_parameters": (
            "says nothing of the optimizer, the learning rate, the batch size, which the reference leaves to your own "
            "code; pqc's defaults hold"
        ),
    }


FITCOMPRESS = """training_parameters: {pretraining_epochs: 100, epochs: 200}
pruning_parameters: {pruning_method: fitcompress, min_frac_bits: 2.0, disable_pruning_for_layers: [fc1]}
fitcompress_parameters:
  enable_fitcompress: true
  quantization_schedule: [7., 6., 5., 4., 3.]
  pruning_schedule: {start: 0, end: -2, steps: 40}
  compression_goal: 0.007
  optimize_pruning: true
"""


def test_the_fitcompress_config_is_a_search(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FITCOMPRESS)
    plan, found = schedule.read(tmp_path / "c.yaml")
    fit = plan.phases.fit
    assert fit == Fit(
        goal="rate=0.007",
        widths=(7, 6, 5, 4, 3),
        prune=True,
        sparsities={"start": 0, "end": -2, "steps": 40},
        search="greedy",
        estimate="expanded",
        heuristic=1.0,
        min_frac_bits=2,
    )
    assert (plan.phases.pretraining.epochs, plan.phases.pretraining.quantize) == (100, False)
    assert (plan.pruning.method, plan.pruning.exclude, plan.phases.training.epochs) == (None, ("fc1",), 200)
    text = {note.key: note.text for note in found}["fitcompress_parameters.compression_goal"]
    assert text.startswith("counts sign bits, and as zero only what is rounded to zero")


@pytest.mark.parametrize(
    ("key", "value", "native", "expected"),
    [
        ("greedy_astar", "false", "search", "astar"),
        ("approximate", "false", "estimate", "neighbours"),
        ("f_lambda", "0.5", "heuristic", 0.5),
        ("optimize_quantization", "false", "quantize", False),
        ("quantization_schedule", "[7, 4, 0]", "widths", (7, 4)),
    ],
)
def test_settings_of_a_search(key: str, value: str, native: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FITCOMPRESS)
    plan = schedule.load(tmp_path / "c.yaml", {f"fitcompress_parameters.{key}": value})
    assert getattr(plan.phases.fit, native) == expected


def test_a_search_that_is_off_prunes_nothing() -> None:
    content, found = converted({"pruning_parameters": {"pruning_method": "fitcompress"}})
    assert content["pruning"]["method"] is None
    assert "fit" not in content["phases"]
    assert "prunes nothing without" in {note.key: note.text for note in found}["pruning_parameters.pruning_method"]


def test_another_method_stops_where_a_search_finds_masks() -> None:
    search = {"enable_fitcompress": True}
    content, found = converted({"pruning_parameters": {"pruning_method": "pdp"}, "fitcompress_parameters": search})
    assert content["pruning"]["method"] is None
    assert (
        "the masks of the search hold" in {note.key: note.text for note in found}["pruning_parameters.pruning_method"]
    )


def test_a_goal_that_is_none_is_named(tmp_path: Path) -> None:
    error = refusal("fitcompress_parameters:\n  enable_fitcompress: true\n  compression_goal: 0\n", tmp_path)
    assert str(error).startswith(
        f"{tmp_path / 'c.yaml'}:3: 'fitcompress_parameters.compression_goal': a goal is a number above 0, not 0.0\n"
    )


# Defaults


def test_missing_sections_have_the_defaults_of_the_library() -> None:
    content, _ = converted("hpo_parameters: {}\n")
    assert content["pruning"] == {
        "method": "cs",
        "pruning_first": False,
        "options": {"final_temp": 200.0, "threshold_init": 0.0, "threshold_decay": 0.0},
    }
    assert content["phases"] == {
        "pretraining": {"epochs": 50},
        "training": {"epochs": 200, "rounds": 1},
        "fine_tuning": {"epochs": 0},
    }
    assert content["quantization"]["weights"] == [1, 0, 7]
    assert Schedule.model_validate(content).method is not None


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("activation_pruning", {"threshold": 0.3, "batches": 50, "start_epoch": 50}),
        ("dst", OPTIONS["dst"] | {"threshold_type": "channelwise"}),
        ("wanda", OPTIONS["wanda"]),
        ("pdp", OPTIONS["pdp"]),
        ("mdmm", OPTIONS["mdmm"]),
        ("autosparse", OPTIONS["autosparse"]),
        ("cs", OPTIONS["cs"] | {"threshold_decay": 0.0}),
    ],
)
def test_missing_options_have_the_defaults_of_the_library(method: str, expected: Content) -> None:
    assert converted({"pruning_parameters": {"pruning_method": method}})[0]["pruning"]["options"] == expected


@pytest.mark.parametrize("section", ["pruning_parameters:\n", "training_parameters: {}\n", "hpo_parameters: null\n"])
def test_an_empty_section_is_a_config(section: str) -> None:
    assert converted(section)[0]["phases"]["training"]["epochs"] == 200


def test_a_schedule_of_our_own_is_no_config() -> None:
    assert not detects({"pruning": {}, "phases": {}})
    assert detects({"hpo_parameters": None})


# Pruning


@pytest.mark.parametrize("pruning", [{"enable_pruning": False}, {"pruning_method": None}])
def test_pruning_can_be_off(pruning: Content) -> None:
    content, _ = converted({"pruning_parameters": {"pruning_method": "fitcompress"} | pruning})
    assert content["pruning"] == {"method": None, "pruning_first": False}
    assert Schedule.model_validate(content).method is None


def test_wanda_prunes_n_of_m_and_a_pattern_keeps_the_rest() -> None:
    pruning = {"pruning_method": "wanda", "N": 3, "M": 4, "calculate_pruning_budget": False}
    content, _ = converted({"pruning_parameters": pruning})
    assert content["pruning"]["options"] | {"pattern": "1:4", "scope": "layer"} == content["pruning"]["options"]
    found = notes({"pruning_parameters": pruning})
    assert found["pruning_parameters.N"] == "3 of 4 are pruned, so pqc keeps 1 of 4"
    assert "counts epochs of training" in found["pruning_parameters.t_start_collecting_batch"]
    assert "pattern" in notes({"pruning_parameters": {"pruning_method": "wanda", "M": 4}})["pruning_parameters.M"]


def test_what_a_method_does_not_take_is_noted() -> None:
    dst = {"pruning_method": "dst", "threshold_init": 0.5, "threshold_decay": 1e-3}
    found = notes({"pruning_parameters": dst})
    assert "starts every threshold at 0" in found["pruning_parameters.threshold_init"]
    assert found["pruning_parameters.threshold_decay"] == "the reference uses it with cs only"
    assert converted({"pruning_parameters": dst})[0]["pruning"]["options"]["threshold_init"] == 0.0
    found = notes({"pruning_parameters": {"pruning_method": "mdmm", "use_grad": True}})
    assert found["pruning_parameters.use_grad"].startswith("not taken")
    found = notes({"pruning_parameters": {"pruning_method": "autosparse", "autotune_epochs": 10}})
    assert found["pruning_parameters.autotune_epochs"] == "nothing reads it in the reference either"
    assert "pruning_parameters.autotune_epochs" not in notes({"pruning_parameters": {"pruning_method": "autosparse"}})


def test_a_structured_pdp_prunes_outputs() -> None:
    pruning = {"pruning_method": "pdp", "structured_pruning": True}
    assert converted({"pruning_parameters": pruning})[0]["pruning"]["options"]["structure"] == "output"


def test_an_option_of_another_method_is_dropped_with_a_note() -> None:
    found = notes("pruning_parameters: {pruning_method: cs, sparsity: 0.5, final_tmp: 3}\n")
    assert found["pruning_parameters.sparsity"] == "'cs' has no such key; not taken"
    assert found["pruning_parameters.final_tmp"] == "unknown key; did you mean 'final_temp'? not taken"


def test_names_of_layers_are_no_patterns() -> None:
    content, _ = converted({"pruning_parameters": {"disable_pruning_for_layers": ["fc1", "a[0]"]}})
    assert content["pruning"]["exclude"] == ["fc1", "a[[]0]"]
    assert content["pruning"]["unmatched"] == "skip"


def test_a_name_of_no_layer_is_skipped_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Split({"x": np.ones((8, 4), np.float32)}, np.zeros(8, np.int64), np.arange(8))
    plan = Schedule.model_validate(
        {
            "pruning": {"method": "cs", "exclude": ["nosuch", "fc1"], "unmatched": "skip"},
            "phases": {"training": {"epochs": 1}},
        }
    )
    logger = logging.getLogger("pqc.notes")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="pqc.notes"):
            compressible, _ = workflows.compress(make_mlp(), plan, rows, tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    notes = {record.getMessage() for record in caplog.records if record.name == "pqc.notes"}
    assert notes == {"pruning.exclude: no layer is named like 'nosuch'; skipped"}
    masked = {name for name in compressible.graph.initializers if name.endswith(".s")}
    assert masked == {"fc2.weight.s"}
    strict = plan.model_copy(update={"pruning": plan.pruning.model_copy(update={"unmatched": "error"})})
    with pytest.raises(PassError, match="no layer is named like 'nosuch'"):
        workflows.compress(make_mlp(), strict, rows, tmp_path)


# Quantization


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"enable_quantization": False}, None),
        ({"quantize_input": False}, {"inputs": None}),
        ({"quantize_output": True, "default_data_integer_bits": 3}, {"inputs": [0, 3, 7], "outputs": [0, 3, 7]}),
        ({"default_weight_fractional_bits": 3.0}, {"weights": [1, 0, 3], "biases": [1, 0, 3]}),
        ({"default_weight_fractional_bits": "3"}, {"weights": [1, 0, 3]}),
        ({"round_mode": "RND_CONV"}, {"rounding": "ROUND"}),
        ({"round_mode": "TRN"}, {"rounding": "FLOOR"}),
        ({"round_mode": "TRN_ZERO"}, {"rounding": "DOWN"}),
        ({"round_mode": "RND_INF"}, {"rounding": "HALF_UP"}),
        ({"round_mode": "RND_ZERO"}, {"rounding": "HALF_DOWN"}),
        ({"round_mode": "RND_MIN_INF"}, {"rounding": "RND_MIN_INF"}),
        ({"round_mode": "RND"}, {"rounding": "RND"}),
        ({"round_mode": "S_RND"}, {"rounding": "S_RND"}),
        ({"round_mode": "S_TRN_ZERO"}, {"rounding": "S_TRN_ZERO"}),
        ({}, {"rounding": "RND"}),
        (
            {"overflow_mode_data": "WRAP", "overflow_mode_parameters": "SAT_SYM"},
            {"inputs": {"bits": [0, 0, 7], "overflow": "WRAP"}, "weights": {"bits": [1, 0, 7], "overflow": "SAT_SYM"}},
        ),
        ({"overflow_mode_parameters": "WRAP"}, {"biases": {"bits": [1, 0, 7], "overflow": "WRAP"}}),
        (
            {"overflow_mode_data": "WRAP_SM", "default_data_keep_negatives": 1},
            {"inputs": {"bits": [1, 0, 7], "overflow": "WRAP_SM"}},
        ),
        ({"use_symmetric_quantization": True}, {"weights": {"bits": [1, 0, 7], "overflow": "SAT_SYM"}}),
        (
            {"granularity": "per_channel"},
            {"weights": {"bits": [1, 0, 7], "granularity": "per_channel"}, "biases": [1, 0, 7], "inputs": [0, 0, 7]},
        ),
        ({"granularity": "per_weight"}, {"weights": {"bits": [1, 0, 7], "granularity": "per_weight"}}),
    ],
)
def test_quantizers(keys: Content, expected: Content | None) -> None:
    content, _ = converted({"quantization_parameters": keys})
    assert Schedule.model_validate(content)
    if expected is None:
        assert content["quantization"] is None
    else:
        assert content["quantization"] | expected == content["quantization"]


def test_quantizers_that_are_off_are_not_looked_at() -> None:
    keys = {
        "enable_quantization": False,
        "granularity": "per_weight",
        "overflow_mode_data": "WRAP",
        "round_mode": "S_RND",
    }
    found = notes({"quantization_parameters": keys, **training()})
    assert set(found) == {"training_parameters.pretraining_epochs"}


def test_how_data_overflow_does_not_matter_where_no_data_are_rounded() -> None:
    keys = {"overflow_mode_data": "WRAP", "quantize_input": False, "quantize_output": False}
    assert converted({"quantization_parameters": keys})[0]["quantization"]["inputs"] is None


def test_what_is_approximated_is_noted() -> None:
    keys = {"dynamic_data_quantization": True, "quantize_output": True, "granularity": "per_channel"}
    found = notes({"quantization_parameters": keys})
    assert "once, before training" in found["quantization_parameters.granularity"]
    assert "once, before training" in found["quantization_parameters.dynamic_data_quantization"]
    assert "not what leaves each layer" in found["quantization_parameters.quantize_output"]
    assert "true where it is missing" in found["quantization_parameters.use_relu_multiplier"]
    exact = {"use_real_tanh": True, "use_relu_multiplier": False, "overflow_mode_data": "SAT_SYM"}
    for mode in ("TRN", "RND", "RND_CONV", "TRN_ZERO", "RND_ZERO", "RND_MIN_INF", "RND_INF", "S_RND"):
        content = {"quantization_parameters": exact | {"round_mode": mode}, **training(pretraining_epochs=0)}
        assert set(notes(content)) == {"quantization_parameters.default_data_integer_bits"}


def test_the_multiplier_of_relus_is_taken_but_not_where_bits_are_learned() -> None:
    for section, wanted in (
        ({}, True),
        ({"use_relu_multiplier": True}, True),
        ({"use_relu_multiplier": False}, False),
        ({"use_relu_multiplier": True, "use_high_granularity_quantization": True}, False),
    ):
        found = converted({"quantization_parameters": section})[0]["quantization"]
        assert found.get("relu_multiplier", False) is wanted
    assert "quantization_parameters.use_relu_multiplier" not in notes(
        {"quantization_parameters": {"use_relu_multiplier": True}}
    )


def test_the_older_word_for_a_symmetric_range() -> None:
    found = notes({"quantization_parameters": {"use_symmetric_quantization": True}})
    key = "quantization_parameters.use_symmetric_quantization"
    assert found[key] == "an older word for overflow_mode_parameters: SAT_SYM"
    both = {"use_symmetric_quantization": True, "overflow_mode_parameters": "SAT_SYM"}
    assert key not in notes({"quantization_parameters": both})


HGQ = {"use_high_granularity_quantization": True, "hgq_beta": "2e-5", "hgq_gamma": 1e-4}


def test_trained_bits() -> None:
    keys = HGQ | {"granularity": "per_weight", "overflow_mode_data": "WRAP", "overflow_mode_parameters": "SAT_SYM"}
    content, found = converted({"quantization_parameters": keys})
    parameters = {"bits": [1, 0, 7], "granularity": "per_weight", "overflow": "SAT_SYM", "learns": "bits"}
    data = {"bits": [0, 0, 7], "granularity": "per_element", "overflow": "WRAP", "learns": "fractional_bits"}
    assert content["quantization"] == {
        "weights": parameters,
        "biases": parameters,
        "inputs": data,
        "outputs": None,
        "rounding": "RND",
        "calibrate": True,
    }
    assert content["controls"] == {"ebops_weight": 2e-5, "bits_weight": 1e-4}
    texts = {note.key: note.text for note in found}
    assert texts["quantization_parameters.overflow_mode_data"].startswith(
        "integer bits of activations follow each batch"
    )
    assert texts["quantization_parameters.default_data_integer_bits"].startswith("sign and integer bits start from")
    plan = Schedule.model_validate(content)
    assert plan.quantization is not None and plan.quantization.learns_bits


def test_trained_bits_per_tensor() -> None:
    found = converted({"quantization_parameters": HGQ})[0]["quantization"]
    assert found["weights"] == {"bits": [1, 0, 7], "learns": "bits"}
    assert found["inputs"] == {"bits": [0, 0, 7], "learns": "bits"}


def test_a_price_of_bits_that_is_none_has_its_line(tmp_path: Path) -> None:
    keys = "quantization_parameters:\n  use_high_granularity_quantization: true\n"
    error = refusal(f"{keys}  hgq_gamma: .inf\n", tmp_path)
    assert (error.at, "hgq_gamma" in error.message) == (f"{tmp_path / 'c.yaml'}:3", True)


@pytest.mark.parametrize(
    ("key", "value", "message", "instead"),
    [
        (
            "granularity",
            "per_row",
            "no granularity 'per_row' (known: per_tensor, per_channel, per_weight)",
            "per_tensor",
        ),
        (
            "round_mode",
            "S_UP",
            "no rounding 'S_UP' (known: TRN, RND_CONV, TRN_ZERO, RND_ZERO, RND_INF, RND, RND_MIN_INF, "
            "S_TRN, S_RND_CONV, S_TRN_ZERO, S_RND_ZERO, S_RND_INF, S_RND, S_RND_MIN_INF)",
            "RND_CONV",
        ),
    ],
)
def test_what_would_change_the_result_is_refused(
    key: str, value: str, message: str, instead: str, tmp_path: Path
) -> None:
    text = f"training_parameters: {{epochs: 3}}\nquantization_parameters:\n  hgq_gamma: 0.1\n  {key}: {value}\n"
    assert str(refusal(text, tmp_path)) == (
        f"{tmp_path / 'c.yaml'}:4: 'quantization_parameters.{key}': {message}\n"
        f"hint: --set quantization_parameters.{key}={instead} trains without it"
    )
    assert schedule.load(tmp_path / "c.yaml", {f"quantization_parameters.{key}": instead})


@pytest.mark.parametrize(
    "entries",
    [
        {},
        [],
        None,
        {"fc1": {"weight": {"integer_bits": 0.0, "fractional_bits": 7}, "input": {"quantize": True}}},
        [{"fc1": {"weight": {"integer_bits": 0}}}, {"fc2": {"bias": {"keep_negatives": 1}}}],
        {"act": {"relu": {"output": {"quantize": False}}}},
    ],
)
def test_layers_that_say_what_holds_for_all_are_taken(entries: object) -> None:
    found = notes({"quantization_parameters": {"layer_specific": entries}})
    assert not any("layer_specific" in key for key in found)


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        (HGQ | {"granularity": "per_channel"}, "granularity", "trained bits are per_tensor or per_weight"),
        (HGQ | {"overflow_mode_data": "WRAP_SM"}, "overflow_mode_data", "bits are trained under SAT, SAT_SYM or WRAP"),
        ({"overflow_mode_data": "WRAP_SM", "round_mode": "TRN"}, "overflow_mode_data", "WRAP_SM goes with RND and"),
    ],
)
def test_what_does_not_go_together_is_refused(keys: Content, key: str, message: str, tmp_path: Path) -> None:
    error = refusal(yaml.safe_dump({"quantization_parameters": keys}), tmp_path)
    assert error.message.startswith(f"'quantization_parameters.{key}': {message}")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"fc1": {"weight": {"integer_bits": 2.0}}}, {"fc1": {"weight": [1, 2, 7]}}),
        ([{"fc1": {"output": {"quantize": True}}}], {"fc1": {"output": [0, 0, 7]}}),
        (
            [{"fc1": {"input": {"quantize": False}}}, {"fc1": {"bias": {"keep_negatives": 0}}, "a[0]": {}}],
            {"fc1": {"input": None, "bias": [0, 0, 7]}},
        ),
        ({"a[0]": {"input": {"fractional_bits": 3}}}, {"a[[]0]": {"input": [0, 0, 3]}}),
        ({"fc1": {"output": {"integer_bits": 5}}}, None),  # not rounded, so its bits do nothing
        ({"fc1": {"input": {"quantize": False, "integer_bits": 5}}}, {"fc1": {"input": None}}),
    ],
)
def test_layers_of_their_own_types(entries: object, expected: Content | None) -> None:
    content, _ = converted({"quantization_parameters": {"layer_specific": entries}})
    assert content["quantization"].get("layers") == expected
    assert Schedule.model_validate(content)


def test_layers_keep_what_holds_for_all_besides_bits() -> None:
    keys = HGQ | {"granularity": "per_weight", "layer_specific": {"fc1": {"weight": {"fractional_bits": 2}}}}
    content, _ = converted({"quantization_parameters": keys})
    kind = {"bits": [1, 0, 2], "granularity": "per_weight", "learns": "bits"}
    assert content["quantization"]["layers"] == {"fc1": {"weight": kind}}


@pytest.mark.parametrize(
    ("entries", "key", "message"),
    [
        ("{a: {tanh: {input: {keep_negatives: 1}}}}", ".a.tanh.input", "a type of its own for a part of a layer"),
        ("{fc1: {weight: {integer_bits: 2.5}}}", ".fc1.weight.integer_bits", "a whole number, not 2.5"),
        ("{fc1: {weight: {integer_bits: .nan}}}", ".fc1.weight.integer_bits", "a whole number, not nan"),
        ("{fc1: {weight: {integer_bits: two}}}", ".fc1.weight.integer_bits", "a whole number, not 'two'"),
        ("{fc1: 3}", ".fc1", "a mapping of weight, bias, input and output to their bits"),
        ("fc1", "", "a mapping of layers to their types"),
        ("{fc1: {weight: {integer_bits: 200}}}", "", "layers: 'fc1': weight: (1,200,7) has 208 bits"),
    ],
)
def test_layers_of_no_types_are_refused(entries: str, key: str, message: str, tmp_path: Path) -> None:
    error = refusal(f"quantization_parameters:\n  layer_specific: {entries}\n", tmp_path)
    assert error.message.startswith(f"'quantization_parameters.layer_specific{key}': {message}")
    assert error.at == f"{tmp_path / 'c.yaml'}:2"


def test_what_no_layer_has_is_noted() -> None:
    entries = {"conv1": {"integer_bits": 4, "weight": {"bits": 8}}}
    found = notes({"quantization_parameters": {"layer_specific": entries}})
    root = "quantization_parameters.layer_specific.conv1"
    assert found[f"{root}.integer_bits"] == "not one of weight, bias, input, output; not taken"
    assert found[f"{root}.weight.bits"] == ("not one of keep_negatives, integer_bits, fractional_bits; not taken")


# Phases


@pytest.mark.parametrize(
    ("written", "meant"),
    [("round", "every-round"), ("post-ticket-search", "post-training-stage"), ("every-round", "every-round")],
)
def test_older_words_for_rewinding(written: str, meant: str) -> None:
    content, _ = converted(training(rewind=written, save_weights_epoch=0, epochs=3))
    assert content["phases"]["training"] == {"epochs": 3, "rounds": 1, "rewind": meant, "save_weights_epoch": 0}


def test_an_unknown_way_to_rewind_is_never_as_in_the_reference() -> None:
    config = training(rewind="every_round", save_weights_epoch=0)
    assert "rewind" not in converted(config)[0]["phases"]["training"]
    assert notes(config)["training_parameters.rewind"] == (
        "no way to rewind 'every_round'; did you mean 'every-round'?; taken as never"
    )


@pytest.mark.parametrize("epoch", [-1, 3, 7])
def test_weights_that_were_never_saved_do_not_go_back(epoch: int) -> None:
    config = training(rewind="post-training-stage", save_weights_epoch=epoch, epochs=3, rounds=2)
    assert converted(config)[0]["phases"]["training"] == {"epochs": 3, "rounds": 2}
    assert notes(config)["training_parameters.save_weights_epoch"] == (
        f"there is no epoch {epoch} among 3, so no weights are saved and none go back, as in the reference"
    )
    # With every-round the method does not prepare the next round either.
    content, _ = converted(training(rewind="every-round", save_weights_epoch=epoch, epochs=3, rounds=2))
    expected = {"rewind": "every-round", "save_weights_epoch": 0, "rewind_what": []}
    assert content["phases"]["training"] == {"epochs": 3, "rounds": 2} | expected
    assert Schedule.model_validate(content).phases.training.rewind_what == ()


def test_rounds_without_pretraining_have_no_note_on_beta() -> None:
    assert "training_parameters.pretraining_epochs" in notes(training(pretraining_epochs=3))
    assert "training_parameters.pretraining_epochs" not in notes(training(pretraining_epochs=0))


# What users add


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"batch_size": 128}, {"batch": 128}),
        ({"lr": "1e-2"}, {"learning_rate": 0.01}),
        ({"learning_rate": 0.1}, {"learning_rate": 0.1}),
        ({"optimizer": "SGD", "momentum": 0.9}, {"optimizer": {"name": "sgd", "options": {"momentum": 0.9}}}),
        (
            {"optimizer": "AdamW", "weight_decay": 0.1},
            {"optimizer": {"name": "adamw", "options": {"weight_decay": 0.1}}},
        ),
        ({"l2_decay": 0.001}, {"optimizer": {"name": "adam", "options": {"weight_decay": 0.001}}}),
        ({"lr_schedule": "cosine", "lr": 0.1, "cosine_tmax": 200}, {"learning_rate": "cosine(0.1, 0)"}),
        ({"scheduler": "CosineAnnealingLR"}, {"learning_rate": "cosine(0.001, 0)"}),
        (
            {"lr_scheduler": "multistep", "milestones": [100, 150, 300], "gamma": 0.5, "lr": 1},
            {"learning_rate": "step(1.0, 0.5, 0.5, 0.75)"},
        ),
        ({"scheduler": "multistep", "lr": 0.1}, {"learning_rate": 0.1}),
        ({"scheduler": "exponential", "gamma": 0.5, "lr": 1, "epochs": 3}, {"learning_rate": "exp(1.0, 0.25)"}),
        ({"scheduler": "exponential", "lr": 1}, {"learning_rate": 1.0}),
        ({"scheduler": "constant", "lr": 1}, {"learning_rate": 1.0}),
        ({"scheduler": "plateau", "lr": 1}, {"learning_rate": 1.0}),
        ({"loss": "MSELoss"}, {"loss": "mse"}),
        (
            {"loss": "cross_entropy", "label_smoothing": 0.1},
            {"loss": "cross-entropy", "loss_options": {"smoothing": 0.1}},
        ),
        ({"label_smoothing": 0}, {}),
        ({"seed": 7, "validation_split": 0.2, "clip_grad_norm": 1}, {"seed": 7, "validation": 0.2, "clip": 1.0}),
        ({"lr": None}, {}),
    ],
)
def test_what_users_add_is_taken(keys: Content, expected: Content) -> None:
    content, _ = converted({"training_parameters": {"pretraining_epochs": 0, **keys}})
    assert content.get("training", {}) == expected
    assert Schedule.model_validate(content)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"dataset": "cifar10"}, "the reference leaves it to your own code; not taken"),
        ({"epohcs": 3}, "the reference leaves it to your own code; did you mean 'epochs'? not taken"),
        ({"optimizer": "ranger"}, "not one of adam, adamw, sgd, padam, psgd; adam is taken"),
        ({"batch_size": "many"}, "not taken: input should be a valid integer, unable to parse string as an integer"),
        ({"momentum": 0.9}, "not taken: adam has none"),
        ({"loss": "focal"}, "not taken: cross-entropy, binary-cross-entropy, mse, l1 and huber are known"),
        ({"scheduler": "plateau"}, "not taken: cosine, multistep, exponential and constant are known"),
        ({"scheduler": "multistep"}, "not taken: no milestone lies within the 200 epochs of training"),
        ({"scheduler": "exponential"}, "not taken: it needs gamma"),
        ({"milestones": [3]}, "the reference leaves it to your own code; not taken"),
        ({"gamma": 3}, "not taken: input should be less than or equal to 1"),
    ],
)
def test_what_users_add_and_pqc_does_not_take_is_noted(keys: Content, text: str) -> None:
    assert notes({"training_parameters": keys})[f"training_parameters.{next(iter(keys))}"] == text


def test_of_two_keys_that_say_the_same_one_is_taken() -> None:
    config = {"training_parameters": {"lr": 0.1, "learning_rate": 0.2, "loss": "mse", "label_smoothing": 0.1}}
    assert converted(config)[0]["training"]["learning_rate"] == 0.2
    assert notes(config)["training_parameters.lr"] == "not taken: 'learning_rate' says it already"
    assert notes(config)["training_parameters.label_smoothing"] == "not taken: mse has none"


def test_a_search_over_settings_is_noted() -> None:
    search = {"numerical": {"lr": [1e-5, 1e-3, 0.2]}}
    found = notes({"hpo_parameters": {"num_trials": 3, "hyperparameter_search": search}, **training()})
    assert found["hpo_parameters.hyperparameter_search"] == ("a schedule is one run: `pqc search --space` takes this")


# Files, lines, settings


def test_a_config_in_json(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(shipped("cs"), indent="\t"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(shipped("cs")))
    assert schedule.load(path) == schedule.load(tmp_path / "c.yaml")
    path.write_text('{\n\t"training_parameters": {\n\t\t"epochs": "many"\n\t}\n}\n')
    with pytest.raises(ScheduleError) as caught:
        schedule.load(path)
    assert caught.value.at == f"{path}:3"


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("training_parameters:\n  epochs: many\n", 2, "'training_parameters.epochs': Input should be a valid integer"),
        ("training_parameters:\n  epochs: -1\n", 2, "'training_parameters.epochs': Input should be greater than"),
        ("hpo_parameters:\ntraining_parameters:\n  rounds: 0\n", 3, "'training_parameters.rounds': Input should be"),
        ("training_parameters:\n  batch_size: 0\n", 2, "'training_parameters.batch_size': Input should be greater"),
        ("training_parameters:\n  lr: -1\n", 2, "'training_parameters.lr': a learning rate is not negative"),
        ("training_parameters:\n- 3\n", 1, "'training_parameters': a section is a mapping"),
        (
            "pruning_parameters:\n  pruning_method: css\n",
            2,
            "'pruning_parameters.pruning_method': the reference has no",
        ),
        (
            "pruning_parameters:\n  final_temp: hot\n",
            2,
            "'pruning_parameters.final_temp': Input should be a valid number",
        ),
        ("pruning_parameters:\n  final_temp: .nan\n", 2, "'pruning_parameters.final_temp': Input should be a finite"),
        ("pruning_parameters:\n  final_temp: -1\n", 1, "'pruning_parameters': method 'cs': final_temp is a positive"),
        (
            "pruning_parameters:\n  pruning_method: wanda\n  N: 4\n  M: 4\n",
            3,
            "'pruning_parameters.N': 4 of 4 cannot be pruned",
        ),
        (
            "quantization_parameters:\n  default_weight_keep_negatives: 5\n",
            2,
            "'quantization_parameters.default_weight_keep_negatives': the sign bit k is 0 or 1, not 5",
        ),
        (
            "quantization_parameters:\n  default_data_fractional_bits: 99\n",
            2,
            "'quantization_parameters.default_data_fractional_bits': (0,0,99) has 99 bits",
        ),
        (
            "quantization_parameters:\n  default_data_fractional_bits: 1.5\n",
            2,
            "'quantization_parameters.default_data_fractional_bits': Input should be a valid integer",
        ),
        ("hpo_parameters: {}\nphases: {}\n", 2, "'phases': a section of pqc's own schedules, in a file that has the"),
        ("hpo_parameters: {}\nname: 3\n", 2, "'name': Input should be a valid string"),
    ],
)
def test_an_error_names_the_key_of_the_config_and_its_line(text: str, at: int, message: str, tmp_path: Path) -> None:
    error = refusal(text, tmp_path)
    assert error.message.startswith(message)
    assert error.at == f"{tmp_path / 'c.yaml'}:{at}"


def test_notes_have_lines_and_sections_that_nobody_knows_are_noted() -> None:
    _, found = converted("prunning_parameters: {}\ntraining_parameters:\n  epochs: 3\n  dataset: jets\n")
    texts = [str(note) for note in found]
    assert "c.yaml:1: prunning_parameters: unknown section; did you mean 'pruning_parameters'? not taken" in texts
    assert (
        "c.yaml:4: training_parameters.dataset: the reference leaves it to your own code; did you mean 'batch_size'?"
        " not taken"
    ) not in texts
    assert "c.yaml:4: training_parameters.dataset: the reference leaves it to your own code; not taken" in texts


def test_settings_of_both_forms(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(shipped("cs")))
    settings = {
        "phases.training.epochs": "2",
        "training_parameters.rounds": "1",
        "training.batch": "64",
        "pruning_parameters.final_temp": "100",
        "quantization.calibrate": "false",
        "training.optimizer.name": "sgd",
    }
    plan, found = schedule.read(tmp_path / "c.yaml", settings)
    assert (plan.phases.training.epochs, plan.phases.training.rounds, plan.training.batch) == (2, 1, 64)
    assert (plan.phases.training.rewind, plan.pruning.options["final_temp"]) == ("never", 100.0)
    assert plan.quantization is not None
    assert not plan.quantization.calibrate
    by_key = {note.key: note for note in found}
    assert "quantization_parameters.default_data_integer_bits" not in by_key
    assert by_key["training_parameters"].text.startswith("says nothing of the learning rate, which")
    assert their_settings(settings) == {
        "phases.training.epochs": "training_parameters.epochs",
        "training_parameters.rounds": "training_parameters.rounds",
        "pruning_parameters.final_temp": "pruning_parameters.final_temp",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training_parameters.epochs", "many"),
        ("training_parameters.epochs", "-1"),
        ("training_parameters.epohcs", "3"),
        ("pruning_parameters.final_tmp", "3"),
        ("pruning_parameters.sparsity", "0.5"),
        ("quantization_parameters.granularity", "per_row"),
        ("quantization_parameters.nosuch", "3"),
        ("phases.training.epochs", "-1"),
        ("phases.training.epochs", "many"),
        ("training.batch", "0"),
        ("training.batchh", "3"),
        ("fitcompress_parameters", "{enable_fitcompress: true, compression_goal: none}"),
        ("training_parameters", "3"),
        ("training_parameters.epochs.x", "3"),
    ],
)
def test_a_wrong_setting_is_named_as_the_place(key: str, value: str, tmp_path: Path) -> None:
    assert refusal(yaml.safe_dump(shipped("cs")), tmp_path, {key: value}).at == f"--set {key}"


def test_the_words_of_a_config_are_kept(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: mine\ndescription: why\ntraining_parameters: {epochs: 3}\n")
    plan = schedule.load(tmp_path / "c.yaml")
    assert (plan.name, plan.description) == ("mine", "why")


def test_notes_of_a_plan_go_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(shipped("cs")))
    logger = logging.getLogger("pqc.notes")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="pqc.notes"):
            workflows.load_plan(tmp_path / "c.yaml", Source("m", tmp_path / "m.onnx"), {})
    finally:
        logger.removeHandler(caplog.handler)
    assert any("quantization_parameters.use_real_tanh: a tanh stays one" in message for message in caplog.messages)


# Anything that a config may say

NUMBERS = st.floats(-10, 10) | st.integers(-3, 300) | st.sampled_from([1e-9, "1e-5", 0, 1])
COUNTS = st.integers(0, 300) | st.sampled_from([85.0, "3"])
KEYS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "pruning_parameters": {
        "pruning_method": st.sampled_from([*SHIPPED, "fitcompress", None]) | st.just("cs"),
        "enable_pruning": st.booleans(),
        "disable_pruning_for_layers": st.lists(st.text(max_size=5), max_size=3),
        "threshold_type": st.sampled_from(["channelwise", "layerwise", "weightwise"]),
        "constraint_type": st.sampled_from(["Equality", "LessThanOrEqual", "GreaterThanOrEqual"]),
        "metric_type": st.sampled_from(["UnstructuredSparsity", "StructuredSparsity"]),
        "l0_mode": st.sampled_from(["coarse", "smooth"]),
        "scale_mode": st.sampled_from(["mean", "sum"]),
        "N": st.none() | st.integers(0, 4),
        "M": st.none() | st.integers(0, 8),
        **{key: st.booleans() for key in ("structured_pruning", "backward_sparsity", "use_grad")},
        **dict.fromkeys(("t_delta", "t_start_collecting_batch", "alpha_reset_epoch", "autotune_epochs", "rf"), COUNTS),
        **dict.fromkeys(("threshold_decay", "final_temp", "threshold_init", "alpha", "sparsity", "epsilon"), NUMBERS),
    },
    "quantization_parameters": {
        **{key: st.booleans() for key, value in QUANTIZATION.items() if isinstance(value, bool)},
        **{key: st.integers(-1, 9) for key in QUANTIZATION if key.startswith("default_")},
        "granularity": st.sampled_from(["per_tensor", "per_channel", "per_weight"]),
        "overflow_mode_data": st.sampled_from(["SAT", "SAT_SYM", "WRAP", "WRAP_SM"]),
        "overflow_mode_parameters": st.sampled_from(["SAT", "SAT_SYM", "WRAP", "WRAP_SM"]),
        "round_mode": st.sampled_from(["TRN", "RND", "RND_CONV", "TRN_ZERO", "RND_ZERO", "RND_MIN_INF", "RND_INF"]),
        "layer_specific": st.just({}) | st.just([]) | st.just({"fc1": {"weight": {"integer_bits": 2.0}}}),
    },
    "training_parameters": {
        **dict.fromkeys(("epochs", "pretraining_epochs", "fine_tuning_epochs", "rounds", "batch_size"), COUNTS),
        "rewind": st.sampled_from(["never", "every-round", "post-training-stage", "round", "post-ticket-search"]),
        "save_weights_epoch": st.integers(-1, 300),
        "pruning_first": st.booleans(),
        "lr_schedule": st.sampled_from(["cosine", "multistep", "exponential", "step"]),
        "milestones": st.lists(st.integers(0, 300), max_size=3),
        "optimizer": st.sampled_from(["adam", "sgd", "AdamW", "ranger"]),
        "loss": st.sampled_from(["cross_entropy", "mse", "focal"]),
        **dict.fromkeys(("lr", "gamma", "momentum", "l2_decay", "label_smoothing", "T_max"), NUMBERS),
    },
    "fitcompress_parameters": {"enable_fitcompress": st.booleans(), "compression_goal": NUMBERS},
    "hpo_parameters": {"num_trials": COUNTS, "hyperparameter_search": st.just({"numerical": {"lr": [0, 1]}})},
}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
VALID = st.fixed_dictionaries(
    {}, optional={name: st.fixed_dictionaries({}, optional=keys) for name, keys in KEYS.items()}
)
INVALID = st.fixed_dictionaries(
    {},
    optional={name: JUNK | st.dictionaries(st.sampled_from([*keys]), JUNK, max_size=4) for name, keys in KEYS.items()},
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs") / "c.yaml"


@given(content=VALID)
def test_any_valid_config_is_read_or_refused(content: Content, file: Path) -> None:
    file.write_text(yaml.safe_dump(content or {"hpo_parameters": {}}))
    try:
        plan, found = schedule.read(file)
    except PqcError as error:
        assert str(error.at).startswith(str(file))
        return
    assert all(note.at.startswith(str(file)) for note in found)
    file.write_text(plan.text())
    assert schedule.load(file) == plan


@given(content=INVALID)
def test_any_config_at_all_is_read_or_refused(content: Content, file: Path) -> None:
    file.write_text(yaml.safe_dump(content or {"hpo_parameters": {}}))
    try:
        schedule.read(file)
    except PqcError as error:
        assert len(str(error)) < 1500
