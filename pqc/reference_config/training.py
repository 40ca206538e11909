"""What users write beside the phases of PQuantML's configs; the library hands it through to their own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

Finite = Annotated[float, Field(allow_inf_nan=False)]
NUMBER: TypeAdapter[Any] = TypeAdapter(Finite)
SHARE: TypeAdapter[Any] = TypeAdapter(Annotated[float, Field(gt=0, le=1)])
NUMBERS: TypeAdapter[Any] = TypeAdapter(list[Finite])
WHOLE: TypeAdapter[Any] = TypeAdapter(int)
TEXT: TypeAdapter[Any] = TypeAdapter(str)
ALIASES: dict[str, tuple[TypeAdapter[Any], tuple[str, ...]]] = {
    "batch": (WHOLE, ("batch_size", "batch")),
    "learning_rate": (NUMBER, ("learning_rate", "lr")),
    "optimizer": (TEXT, ("optimizer",)),
    "weight_decay": (NUMBER, ("weight_decay", "l2_decay")),
    "momentum": (NUMBER, ("momentum",)),
    "loss": (TEXT, ("loss", "loss_function")),
    "smoothing": (NUMBER, ("label_smoothing",)),
    "scheduler": (TEXT, ("lr_schedule", "lr_scheduler", "scheduler")),
    "milestones": (NUMBERS, ("milestones",)),
    "gamma": (SHARE, ("gamma",)),
    "period": (NUMBER, ("T_max", "cosine_tmax")),
    "seed": (WHOLE, ("seed",)),
    "validation": (NUMBER, ("validation_split",)),
    "clip": (NUMBER, ("clip_grad_norm", "grad_clip")),
}
"""What is taken, its type, and the keys that people give it under."""
OPTIMIZERS = ("adam", "adamw", "sgd", "padam", "psgd")
LOSSES = {
    "crossentropy": "cross-entropy",
    "crossentropyloss": "cross-entropy",
    "ce": "cross-entropy",
    "binarycrossentropy": "binary-cross-entropy",
    "bcewithlogits": "binary-cross-entropy",
    "bcewithlogitsloss": "binary-cross-entropy",
    "bce": "binary-cross-entropy",
    "mse": "mse",
    "mseloss": "mse",
    "l1": "l1",
    "l1loss": "l1",
    "mae": "l1",
    "huber": "huber",
    "huberloss": "huber",
}
SCHEDULERS = {
    "cosine": "cosine",
    "cosineannealing": "cosine",
    "cosineannealinglr": "cosine",
    "multistep": "multistep",
    "multisteplr": "multistep",
    "exponential": "exponential",
    "exponentiallr": "exponential",
    "none": "constant",
    "constant": "constant",
}
NEEDED = {"optimizer": "the optimizer", "learning_rate": "the learning rate", "batch": "the batch size"}
DEFAULT_RATE, DEFAULT_GAMMA = 1e-3, 0.1


class Extras:
    """The keys beside the phases, as far as pqc has a place for them.

    Args:
        extras: what the file says.
        epochs: of the training phase; milestones count in them.

    Attributes:
        content: the keys of a schedule's `training`.
        origins: by dotted key of `content`, the key it comes from.
        remarks: by key, what was made of it, where that is not plain.
        left: the keys that nothing was taken from.
        missing: what training needs and the file does not say, in words.
    """

    def __init__(self, extras: Mapping[str, Any], epochs: int) -> None:
        self.origins: dict[str, str] = {}
        self.remarks: dict[str, str] = {}
        self._epochs = epochs
        self._keys: dict[str, str] = {}
        self._used: set[str] = set()
        self._values = {what: value for what in ALIASES if (value := self._find(what, extras)) is not None}
        self.content = self._content()
        done = {*self.remarks, *(self._keys[what] for what in self._used)}
        self.left = [key for key in extras if key not in done]
        self.missing = {what: words for what, words in NEEDED.items() if what not in self._values}

    def _find(self, what: str, extras: Mapping[str, Any]) -> Any:
        """The first value of the right type under one of the keys for `what`."""
        kind, keys = ALIASES[what]
        found = None
        for key in keys:
            if extras.get(key) is None:
                continue
            if found is not None:
                self.remarks[key] = f"not taken: '{self._keys[what]}' says it already"
                continue
            try:
                found = kind.validate_python(extras[key])
                self._keys[what] = key
            except ValidationError as error:
                self.remarks[key] = f"not taken: {error.errors()[0]['msg'].lower()}"
        return found

    def _take(self, what: str, native: str = "", default: Any = None) -> Any:
        """A value that is used, or the default; `native` is where it goes."""
        if what not in self._values:
            return default
        self._used.add(what)
        if native:
            self.origins[native] = self._keys[what]
        return self._values[what]

    def _remark(self, what: str, text: str) -> None:
        self.remarks[self._keys[what]] = text

    def _content(self) -> dict[str, Any]:
        content = {what: self._take(what, what) for what in ("batch", "seed", "validation", "clip")}
        content |= {"optimizer": self._optimizer(), "learning_rate": self._rate(), **self._loss()}
        return {key: value for key, value in content.items() if value is not None}

    def _optimizer(self) -> dict[str, Any] | None:
        given = self._take("optimizer", "optimizer")
        name = "adam" if given is None or _plain(given) not in OPTIMIZERS else _plain(given)
        if given is not None and name != _plain(given):
            self._remark("optimizer", f"not one of {', '.join(OPTIMIZERS)}; adam is taken")
        options = {"weight_decay": self._take("weight_decay", "optimizer.options.weight_decay")}
        momentum = self._take("momentum", "optimizer.options.momentum")
        if name in ("sgd", "psgd"):
            options["momentum"] = momentum
        elif momentum is not None:
            self._remark("momentum", f"not taken: {name} has none")
        options = {option: value for option, value in options.items() if value is not None}
        if given is None and not options:
            return None
        return {"name": name, "options": options} if options else {"name": name}

    def _rate(self) -> float | str | None:
        """The learning rate as a number or a curve; a curve runs anew in each phase and round."""
        rate = self._take("learning_rate", "learning_rate")
        scheduler = self._take("scheduler")
        if scheduler is None:
            return None if rate is None else float(rate)
        start = DEFAULT_RATE if rate is None else float(rate)
        kind = SCHEDULERS.get(_plain(scheduler))
        if kind == "cosine":
            return self._cosine(start)
        if kind == "multistep":
            return self._steps(start)
        if kind == "exponential":
            return self._exponential(start)
        if kind != "constant":
            self._remark("scheduler", "not taken: cosine, multistep, exponential and constant are known")
        return start

    def _cosine(self, start: float) -> str:
        self._remark("scheduler", "half a cosine wave down to 0, anew in each phase and round")
        if self._take("period", default=self._epochs) != self._epochs:
            self._remark("period", "not taken: the wave ends with the phase or round")
        return f"cosine({start!r}, 0)"

    def _steps(self, start: float) -> float | str:
        epochs = [epoch for epoch in self._take("milestones", default=[]) if 0 < epoch < self._epochs]
        gamma = self._take("gamma", default=DEFAULT_GAMMA)
        if not epochs:
            self._remark("scheduler", f"not taken: no milestone lies within the {self._epochs} epochs of training")
            return start
        self._remark(
            "scheduler", f"steps at milestones of {self._epochs} epochs, in proportion in each phase and round"
        )
        return f"step({start!r}, {gamma!r}, {', '.join(f'{epoch / self._epochs:.6g}' for epoch in epochs)})"

    def _exponential(self, start: float) -> float | str:
        gamma = self._take("gamma")
        if gamma is None:
            self._remark("scheduler", "not taken: it needs gamma")
            return start
        self._remark("scheduler", f"falls by as much as in {self._epochs} epochs, in each phase and round")
        return f"exp({start!r}, {start * gamma ** max(self._epochs - 1, 0)!r})"

    def _loss(self) -> dict[str, Any]:
        given = self._take("loss", "loss")
        loss = None if given is None else LOSSES.get(_plain(given))
        if given is not None and loss is None:
            self._remark("loss", "not taken: cross-entropy, binary-cross-entropy, mse, l1 and huber are known")
        smoothing = self._take("smoothing", "loss_options")
        if smoothing and loss not in (None, "cross-entropy"):
            self._remark("smoothing", f"not taken: {loss} has none")
            smoothing = None
        return {"loss": loss, "loss_options": {"smoothing": smoothing} if smoothing else None}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
