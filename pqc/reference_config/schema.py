"""PQuantML's config files as data: sections, keys, types, and the library's values for keys that are missing."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Options = dict[str, bool | int | float | str]

SECTIONS = (
    "pruning_parameters",
    "quantization_parameters",
    "training_parameters",
    "fitcompress_parameters",
    "hpo_parameters",
)
PRUNING, QUANTIZATION, TRAINING, SEARCH, TUNING = SECTIONS


class Section(BaseModel):
    """A part of a config. Numbers may be written as text; unknown keys are kept aside in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Pruning(Section):
    """What every pruning method has."""

    pruning_method: str | None = "cs"
    enable_pruning: bool = True
    disable_pruning_for_layers: tuple[str, ...] = ()
    threshold_decay: float = 0.0

    def options(self) -> Options:
        """The options of pqc's method of the same name."""
        return {}

    def remarks(self) -> dict[str, str]:
        """By key, what pqc reads in another way than it looks."""
        return {"threshold_decay": "the reference uses it with cs only"} if self.threshold_decay else {}


class ContinuousSparsification(Pruning):
    final_temp: float = 200.0
    threshold_init: float = 0.0

    def options(self) -> Options:
        return {
            "final_temp": self.final_temp,
            "threshold_init": self.threshold_init,
            "threshold_decay": self.threshold_decay,
        }

    def remarks(self) -> dict[str, str]:
        return {}


ThresholdType = Literal["channelwise", "layerwise", "weightwise"]


class DynamicSparseTraining(Pruning):
    alpha: float = 5e-6
    max_pruning_pct: float = 0.99
    threshold_init: float = 0.0
    threshold_type: ThresholdType = "channelwise"

    def options(self) -> Options:
        return {
            "alpha": self.alpha,
            "max_pruning_pct": self.max_pruning_pct,
            "threshold_init": 0.0,
            "threshold_type": self.threshold_type,
        }

    def remarks(self) -> dict[str, str]:
        ignored = {
            "threshold_init": "the reference starts every threshold at 0 whatever is written here, and so does pqc"
        }
        return {**super().remarks(), **(ignored if self.threshold_init else {})}


class DifferentiablePruning(Pruning):
    epsilon: float = 0.015
    sparsity: float = 0.8
    temperature: float = 1e-5
    structured_pruning: bool = False

    def options(self) -> Options:
        return {
            "epsilon": self.epsilon,
            "sparsity": self.sparsity,
            "temperature": self.temperature,
            "structure": "output" if self.structured_pruning else "none",
        }


LATE = "counts epochs of training, not batches, in the reference too; with no more epochs than this nothing is pruned"


class Wanda(Pruning):
    N: int | None = None
    M: int | None = None
    sparsity: float = 0.9
    t_delta: int = 100
    t_start_collecting_batch: int = 100
    calculate_pruning_budget: bool = True

    def options(self) -> Options:
        return {
            "sparsity": self.sparsity,
            "pattern": "" if self.N is None or self.M is None else f"{self.M - self.N}:{self.M}",
            "batches": self.t_delta,
            "start_epoch": self.t_start_collecting_batch,
            "scope": "global" if self.calculate_pruning_budget else "layer",
        }

    def remarks(self) -> dict[str, str]:
        found = {**super().remarks(), "t_start_collecting_batch": LATE}
        if self.N is not None and self.M is not None:
            found["N"] = f"{self.N} of {self.M} are pruned, so pqc keeps {self.M - self.N} of {self.M}"
        elif self.N is not None or self.M is not None:
            found["M" if self.N is None else "N"] = "without both of N and M there is no pattern"
        return found


class AutoSparse(Pruning):
    alpha: float = 0.5
    alpha_reset_epoch: int = 90
    autotune_epochs: int = 10
    backward_sparsity: bool = False
    threshold_init: float = -5.0
    threshold_type: ThresholdType = "channelwise"

    def options(self) -> Options:
        return {
            "alpha": self.alpha,
            "alpha_reset_epoch": self.alpha_reset_epoch,
            "backward_sparsity": self.backward_sparsity,
            "threshold_init": self.threshold_init,
            "threshold_type": self.threshold_type,
        }

    def remarks(self) -> dict[str, str]:
        inert = {"autotune_epochs": "nothing reads it in the reference either"}
        return {**super().remarks(), **(inert if "autotune_epochs" in self.model_fields_set else {})}


class ActivationPruning(Pruning):
    threshold: float = 0.3
    t_delta: int = 50
    t_start_collecting_batch: int = 50

    def options(self) -> Options:
        return {
            "threshold": self.threshold,
            "batches": self.t_delta,
            "start_epoch": self.t_start_collecting_batch,
        }

    def remarks(self) -> dict[str, str]:
        return {**super().remarks(), "t_start_collecting_batch": LATE}


class Multipliers(Pruning):
    constraint_type: Literal["Equality", "LessThanOrEqual", "GreaterThanOrEqual"] = "Equality"
    target_value: float = 0.0
    metric_type: Literal["UnstructuredSparsity", "StructuredSparsity"] = "UnstructuredSparsity"
    target_sparsity: float = 0.9
    rf: int = 1
    epsilon: float = 1e-3
    scale: float = 10.0
    damping: float = 1.0
    use_grad: bool = False
    l0_mode: Literal["coarse", "smooth"] = "coarse"
    scale_mode: Literal["mean", "sum"] = "mean"
    constraint_lr: float = 1e-3

    def options(self) -> Options:
        return {
            "constraint": self.constraint_type,
            "target_value": self.target_value,
            "metric": self.metric_type,
            "target_sparsity": self.target_sparsity,
            "rf": self.rf,
            "epsilon": self.epsilon,
            "scale": self.scale,
            "damping": self.damping,
            "l0_mode": self.l0_mode,
            "scale_mode": self.scale_mode,
            "constraint_lr": self.constraint_lr,
        }

    def remarks(self) -> dict[str, str]:
        ignored = {"use_grad": "not taken: the multiplier climbs by constraint_lr, as with use_grad: false"}
        return {**super().remarks(), **(ignored if self.use_grad else {})}


class FitCompress(Pruning):
    min_frac_bits: float = 2.0


METHODS: dict[str, type[Pruning]] = {
    "activation_pruning": ActivationPruning,
    "autosparse": AutoSparse,
    "cs": ContinuousSparsification,
    "dst": DynamicSparseTraining,
    "fitcompress": FitCompress,
    "mdmm": Multipliers,
    "pdp": DifferentiablePruning,
    "wanda": Wanda,
}


class Quantization(Section):
    """Fixed point; `use_symmetric_quantization` is what older files say for SAT_SYM parameters."""

    enable_quantization: bool = True
    default_weight_keep_negatives: int = 1
    default_weight_integer_bits: int = 0
    default_weight_fractional_bits: int = 7
    default_data_keep_negatives: int = 0
    default_data_integer_bits: int = 0
    default_data_fractional_bits: int = 7
    quantize_input: bool = True
    quantize_output: bool = False
    granularity: str = "per_tensor"
    dynamic_data_quantization: bool = False
    use_high_granularity_quantization: bool = False
    hgq_gamma: float = 3e-4
    hgq_beta: float = 1e-5
    hgq_heterogeneous: bool = True
    layer_specific: Any = {}
    use_real_tanh: bool = False
    overflow_mode_parameters: Literal["SAT", "SAT_SYM", "WRAP", "WRAP_SM"] = "SAT"
    overflow_mode_data: Literal["SAT", "SAT_SYM", "WRAP", "WRAP_SM"] = "SAT"
    round_mode: str = "RND"
    use_relu_multiplier: bool = True
    use_symmetric_quantization: bool = False


class Training(Section):
    """The phases; all else that stands here is the user's own and kept."""

    pretraining_epochs: int = 50
    epochs: int = 200
    fine_tuning_epochs: int = 0
    rounds: int = 1
    rewind: str = "never"
    save_weights_epoch: int = -1
    pruning_first: bool = False


class Search(Section):
    """The search for a bit width and a sparsity of each layer."""

    enable_fitcompress: bool = False
    optimize_quantization: Any = True
    quantization_schedule: Any = None
    pruning_schedule: Any = None
    compression_goal: Any = None
    optimize_pruning: Any = False
    greedy_astar: Any = True
    approximate: Any = True
    f_lambda: Any = 1


class PruningSchedule(Section):
    """Powers of ten of what is left."""

    start: float = 0.0
    end: float = -3.0
    steps: int = 40


class WholeSearch(Section):
    """The same where it is switched on."""

    optimize_quantization: bool = True
    quantization_schedule: tuple[int, ...] = (7, 4, 3, 2)
    pruning_schedule: PruningSchedule = PruningSchedule()
    compression_goal: float = 0.10
    optimize_pruning: bool = False
    greedy_astar: bool = True
    approximate: bool = True
    f_lambda: float = 1.0


class Tuning(Section):
    """The search for hyperparameters."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    experiment_name: Any = None
    model_name: Any = None
    sampler: Any = None
    num_trials: Any = 0
    hyperparameter_search: dict[str, Any] = {}
